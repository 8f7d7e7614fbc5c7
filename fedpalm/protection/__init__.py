"""Cancelable templates (ISO/IEC 24745): keyed transforms, compared by equal signs. Torch-free.

With secret keys two templates of one person cannot be linked; with a key, none of that is promised
(docs/adr/0017-cancelable-templates.md).
"""

from .transform import KEY_BYTES, Transform, score, scores

__all__ = ["KEY_BYTES", "Transform", "score", "scores"]
