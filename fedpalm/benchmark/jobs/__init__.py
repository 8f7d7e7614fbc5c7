"""What the benchmarks of trained models have in common: jobs in processes, their rounds, their results."""
