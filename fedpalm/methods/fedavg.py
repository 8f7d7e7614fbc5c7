"""FedAvg: one model for everybody. Source: McMahan et al. 2017, arXiv:1602.05629.

    w <- w + sum_i n_i (w_i - w) / sum_i n_i

Shared: the open-set model (textural expert and embedding layer). Stays at the site: the ArcFace head,
whose rows are prototypes of this site's people; identities are disjoint, so there is nothing to
average. The sum is that of n_i (w_i - w) and of n_i, the images trained on.
"""

from __future__ import annotations

from .single import SingleModelSite


class FedAvgSite(SingleModelSite):
    """One site's half."""

    method = "fedavg"
