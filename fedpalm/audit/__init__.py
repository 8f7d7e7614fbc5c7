"""What an auditor does with one file and no network: read a bundle, verify it, report on it.

Imports neither torch nor opacus.
"""
