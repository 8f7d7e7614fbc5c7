"""The model that a site ends a run with, where its own images have a say in that: made once, and kept.

FedMH judges what it receives by signatures that the site keeps aside. Judged again next year, with other
signatures in the folder, the same last global model could become another one, and every reference be stale.
So the outcome of the last receipt is sealed in the vault under the hash of the model's
:class:`.model.ModelId`; templates are made by it from then on, without any image (ADR 0021). Torch-free.
"""

from __future__ import annotations

import safetensors
import safetensors.numpy

from fedpalm.errors import IntegrityError
from fedpalm.methods.base import Tensors

from ..store import SiteStore

SETTLED = "settled-model"


def load_settled(store: SiteStore, model: str) -> Tensors | None:
    """What was kept under the hash of a model, or None.

    Raises:
        IntegrityError: it is not tensors.
        VaultError: the vault cannot be opened, or its records are not what was stored.
    """
    data = store.items.get(SETTLED, model)
    if data is None:
        return None
    try:
        return dict(safetensors.numpy.load(data))
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"the settled model {model[:12]}: not safetensors: {error}") from error


def keep_settled(store: SiteStore, model: str, tensors: Tensors) -> None:
    """Keep them under the hash of a model, unless something is kept there: what came first stays."""
    with store.transaction() as db:
        if store.items.get(SETTLED, model) is None:
            store.items.put(db, SETTLED, model, safetensors.numpy.save(tensors))
