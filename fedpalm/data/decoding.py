"""From a file, the bytes of one, or pixels to 8-bit grey: within limits, whatever was sent."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError

MAX_PIXELS = 50_000_000

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")


class ImageRules(NamedTuple):
    """What an image must be before it is decoded, and what to say if it is not.

    ``behind``: the grey level that stands for what is transparent.
    """

    min_side_px: int
    max_aspect: float
    too_small: str
    too_long: str
    behind: int
    next_step: str


def decode(
    source: Path | bytes | npt.NDArray[Any], rules: ImageRules
) -> tuple[str, Image.Image, tuple[int, int]]:
    """Read one image: what to call it, its grey levels (mode L), and its (width, height).

    Args:
        source: pixels are (H, W) or (H, W, 3) uint8, as they would stand in a file.
    Raises:
        DataError: unreadable, damaged, too large to decode safely, or against the rules.
    """
    if isinstance(source, np.ndarray):
        return _from_pixels(source, rules)
    name = str(source) if isinstance(source, Path) else "the image"
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes below our own limit, which is checked before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(opened, formats=_FORMATS) as image:
                _check_size(name, image.size, rules)
                return name, _grey(name, ImageOps.exif_transpose(image), rules), image.size
    except FileNotFoundError:
        raise refuse(name, "no such file", rules.next_step) from None
    except UnidentifiedImageError:
        raise refuse(name, "not a png, jpg, bmp or tif image", rules.next_step) from None
    except Image.DecompressionBombError:
        raise refuse(name, f"more than {MAX_PIXELS} pixels", rules.next_step) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise refuse(name, f"damaged or unreadable image ({error})", rules.next_step) from error


def refuse(name: str, why: str, next_step: str) -> DataError:
    """The error that says which image cannot be used, and why."""
    safe = "nothing was stored" if name.startswith("the ") else "the file is unchanged"
    return DataError(f"{name}: {why}", safe=safe, next_step=next_step)


def _from_pixels(
    pixels: npt.NDArray[Any], rules: ImageRules
) -> tuple[str, Image.Image, tuple[int, int]]:
    name = "the pixels"
    if pixels.dtype != np.uint8 or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    ):
        raise refuse(
            name,
            f"{pixels.dtype} {pixels.shape}; (H, W) or (H, W, 3) uint8 is expected",
            rules.next_step,
        )
    size = (pixels.shape[1], pixels.shape[0])
    _check_size(name, size, rules)
    return name, Image.fromarray(pixels).convert("L"), size


def _check_size(name: str, size: tuple[int, int], rules: ImageRules) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise refuse(name, f"{width}x{height} px, more than {MAX_PIXELS} pixels", rules.next_step)
    if min(width, height) < rules.min_side_px:
        raise refuse(name, f"{width}x{height} px {rules.too_small}", rules.next_step)
    if max(width, height) > rules.max_aspect * min(width, height):
        raise refuse(name, f"{width}x{height} px {rules.too_long}", rules.next_step)


def _grey(name: str, image: Image.Image, rules: ImageRules) -> Image.Image:
    """8-bit grey; what is transparent shows what is behind."""
    if image.mode.startswith("I;16"):
        # convert("L") would clip 16-bit levels at 255 instead of scaling them.
        levels = np.asarray(image, dtype=np.uint16)
        return Image.fromarray((levels // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise refuse(
            name,
            f"pixels of mode {image.mode}; 8 or 16 bits a channel are expected",
            rules.next_step,
        )
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        behind = Image.new("RGBA", rgba.size, (rules.behind,) * 3 + (255,))
        return Image.alpha_composite(behind, rgba).convert("L")
    return image.convert("L")
