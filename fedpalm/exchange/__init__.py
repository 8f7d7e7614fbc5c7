"""The deployment exchange: the one sanctioned release of closed-set experts, sealed site to site."""
