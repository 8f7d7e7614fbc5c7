"""No federation: each site trains the same network alone, on its own images.

Shared: nothing; the layout is empty and so is every delta. Stays at the site: the model and its head.
A round is what it is in FedAvg (same initial model, data order, epochs, a new optimiser), so that the
two differ in the averaging alone: FedAvg with one site is this method. There is no sum.
"""

from __future__ import annotations

from .single import SingleModelSite


class LocalSite(SingleModelSite):
    """One site on its own; ``shared`` is an empty vector everywhere."""

    method = "local"
