"""Verification performance in ISO/IEC 19795 terms: scores, error rates, intervals, reports. Torch-free."""
