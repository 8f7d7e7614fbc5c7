"""FedBN: FedAvg of a model with batch normalisation, which stays.

Source: Li et al. 2021, arXiv:2102.07623. The expert has a normalisation of its reduced maps
here (CompNet has none). Shared: everything else of the model. Stays at the site: weight, bias and
running statistics of every normalisation, and the head. The sum is that of n_i (w_i - w) and of n_i.
Without normalisation it is FedAvg. Templates are made with the running statistics.
"""

from __future__ import annotations

from .single import SingleModelSite


class FedBNSite(SingleModelSite):
    """One site's half; :data:`~.template.ANATOMIES` says what it shares."""

    method = "fedbn"
