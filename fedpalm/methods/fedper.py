"""FedPer: base layers are averaged, personalisation layers stay.

Source: Arivazhagan et al. 2019, arXiv:1912.00818. Shared: the textural expert
(``expert.*``). Stays at the site: the embedding layer and the head, which go on from where the site's
last round left them. The sum is that of n_i (w_i - w) and of n_i, over the expert alone: our reading of
"base", since the embedding layer is what makes a template of a texture.
"""

from __future__ import annotations

from .single import SingleModelSite


class FedPerSite(SingleModelSite):
    """One site's half; :data:`~.template.ANATOMIES` says what it shares."""

    method = "fedper"
