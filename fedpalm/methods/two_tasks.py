"""The two tasks of a signature model on one batch, and on what a site keeps aside to judge models by.

Telling writers: the cross-entropy of an ArcFace head over genuine signatures alone; that head names
people and stays at the site. Telling forgeries: the binary cross-entropy of the shared detection head,
where genuine and forged count alike, however many there are of each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.signature_splits import nothing_aside
from ..data.signatures import SignatureImages
from ..models.arcface import ArcFace
from ..models.signature import SignatureModel

Rows = npt.NDArray[np.int64]


class TaskLosses(NamedTuple):
    """None where a batch has nothing for the task."""

    user: Tensor | None
    forged: Tensor | None


class Outputs(NamedTuple):
    """Of n signatures, g of them genuine: (n, D) ``embeddings``, (g, C) logits of the head of ``writers``,
    (n,) of ``detection``, and both losses."""

    embeddings: Tensor
    writers: Tensor
    detection: Tensor
    losses: TaskLosses


class Balance(NamedTuple):
    """What a genuine and a forged signature count in the detection loss, 1 on average."""

    genuine: float
    forged: float

    @classmethod
    def of(cls, genuine: npt.NDArray[np.bool_]) -> Balance | None:
        """None if one of the two is missing: then there is nothing to tell apart."""
        count, real = len(genuine), int(genuine.sum())
        if real in (0, count):
            return None
        return cls(count / (2 * real), count / (2 * (count - real)))


class Signatures:
    """Signatures as a model takes them; prepared once, they serve every epoch and every probe."""

    def __init__(self, images: SignatureImages, model: SignatureModel) -> None:
        self.size = len(images.writers)
        self.balance = Balance.of(images.genuine)
        self.writers = torch.from_numpy(images.writers)
        self.genuine = torch.from_numpy(images.genuine)
        self._model = model
        self._prepared = model.prepare(torch.from_numpy(images.images))

    def inputs(self, rows: Tensor) -> Tensor:
        """Those at (n,) rows, prepared."""
        return self._model.take(self._prepared, rows)


def outputs_of(
    model: SignatureModel,
    head: ArcFace,
    signatures: Signatures,
    rows: Tensor,
    keep: Tensor | None = None,
    *,
    embeddings: Tensor | None = None,
) -> Outputs:
    """What both tasks make of the signatures at (n,) rows.

    Args:
        keep: (n, D) factors of dropout before the writers' head.
        embeddings: (n, D) of these signatures; left out, the model makes them.
    """
    if embeddings is None:
        embeddings = model(signatures.inputs(rows))
    real = signatures.genuine[rows]
    of_writers = embeddings[real] if keep is None else (embeddings * keep)[real]
    logits = model.task(embeddings)
    user = forged = None
    if real.any():
        writers = signatures.writers[rows][real]
        of_writers = head(of_writers, writers)
        user = F.cross_entropy(of_writers, writers)
    if (balance := signatures.balance) is not None:
        weights = torch.where(real, balance.genuine, balance.forged)
        forged = F.binary_cross_entropy_with_logits(logits, real.float(), weights)
    return Outputs(embeddings, of_writers, logits, TaskLosses(user, forged))


def held_out(images: SignatureImages, share: float, seed: int) -> tuple[Rows, Rows]:
    """Rows to train on and rows to probe with: of the genuine and the forged ones of each
    (writer, name), which is what is claimed, ``share``.

    Of two or more at least one is kept aside and at least one is left; a single one is trained on.

    Raises:
        DataError: no (writer, name) has two genuine ones to train on, so none could be kept aside.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    aside = np.zeros(len(images.writers), dtype=np.bool_)
    for claimed in range(images.classes):
        for kind in (True, False):
            rows = np.flatnonzero((images.writers == claimed) & (images.genuine == kind))
            if len(rows) > 1:
                aside[rng.permutation(rows)[: max(1, int(share * len(rows)))]] = True
    if not (aside & images.genuine).any():
        raise nothing_aside("this site")
    return np.flatnonzero(~aside), np.flatnonzero(aside)
