"""Differential privacy: DP-SGD over people, its randomness and its accounting."""
