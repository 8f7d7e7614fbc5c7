"""Secure aggregation, sans I/O: the fixed-point codec, and masked attempts of sites and coordinator.

``terms``: who may take part. ``site``: a site's five steps; ``unmasking``: the coordinator's; ``boxes``:
what sites entrust to each other. ``messages``: what is said and signed. ``secrets``, ``shamir``, ``masks``:
what that is made of. ``memory``: what no retry may forget. ``stored``: a site's state as one secret file.
Whoever drives them stores, then sends.
"""
