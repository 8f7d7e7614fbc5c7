"""Secure aggregation: sans-I/O protocol cores. Holds the exact fixed-point codec of every update."""
