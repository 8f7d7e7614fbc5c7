"""The exchange of experts: the one sanctioned release of closed-set experts, sealed site to site."""
