"""What an auditor does with a bundle, offline; imports neither torch nor opacus."""
