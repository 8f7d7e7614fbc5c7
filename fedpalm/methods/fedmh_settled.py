"""The signature model that a site ends with, apart from everything that made it: it makes templates.

A receipt is judged by a site's own signatures, which may be more tomorrow. What came out of the last one
is therefore taken out as tensors, and needs neither the shared model nor an image again.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..layout import FloatVector
from ..models.signature import SignatureModel
from ..models.signature_spec import TEMPLATE_LENGTH
from .base import Tensors
from .training import TEMPLATE_BATCH, export_tensors, import_into, named_tensors, stack, unit


class SettledModel:
    """Templates of one site's signatures, for ever alike.

    Args:
        tensors: what :func:`settled_tensors` gave.
    Raises:
        ConfigError: there is no such backbone.
        LayoutMismatchError: the tensors are not those of such a model.
    """

    def __init__(self, backbone: str, tensors: Tensors, threads: int) -> None:
        self._model, self._threads = SignatureModel(backbone), threads
        import_into(named_tensors(self._model), "", tensors)

    def closed_templates(
        self, images: npt.NDArray[np.float32], shared: FloatVector
    ) -> npt.NDArray[np.float32]:
        """(N, 256) L2-normalised templates; of the ``shared`` vector nothing is used any more."""
        torch.set_num_threads(self._threads)
        return templates(self._model, images)

    open_templates = closed_templates


def settled_tensors(model: SignatureModel) -> Tensors:
    """Copies of trunk, projection and detection head, by name."""
    return export_tensors(model, "")


def templates(model: SignatureModel, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, 1, 128, 128) -> (N, 256) L2-normalised."""
    parts = []
    with torch.no_grad():
        for begin in range(0, len(images), TEMPLATE_BATCH):
            part = torch.tensor(images[begin : begin + TEMPLATE_BATCH])
            parts.append(unit(model(model.prepare(part))))
    return stack(parts, TEMPLATE_LENGTH)
