"""FedPalm against its baselines: jobs, results, tables and plots."""
