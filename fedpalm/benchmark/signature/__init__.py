"""FedMH against its parts and its baselines on signatures: jobs, results, tables and plots."""
