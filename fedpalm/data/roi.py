"""Region-of-interest images: the check that they are one, and the network's input.

FedPalm takes images already cropped to the region of interest; it does not find the palm in a
photograph. A pixel of value 0 means "outside the palm" and stays 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from .records import ImageRecord, by_identity, problems_error

SIDE_PX = 128
MIN_SIDE_PX = 64
MAX_ASPECT = 1.25
MAX_PIXELS = 50_000_000
MIN_CONTRAST = 4.0
"""Least standard deviation of grey levels (of 255) over pixels > 0."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
NEXT_STEP = (
    f"give images cropped to the palm's region of interest: {MIN_SIDE_PX} px or more a side, near "
    f"square (at most 1:{MAX_ASPECT}), with visible creases; or take these files out"
)

Image32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PreflightReport:
    """What a look at every image found; pairs are (least, greatest), contrast in grey levels."""

    images: int
    identities: int
    images_per_identity: tuple[int, int]
    width_px: tuple[int, int]
    height_px: tuple[int, int]
    contrast: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "identities": self.identities,
            "images_per_identity": list(self.images_per_identity),
            "width_px": list(self.width_px),
            "height_px": list(self.height_px),
            "contrast": [round(c, 2) for c in self.contrast],
        }


def load_roi(path: Path) -> Image32:
    """Read one image as network input.

    Grey, resized to 128x128 with antialiasing, then zero mean and unit standard deviation over
    pixels > 0; pixels of value 0 stay 0.

    Returns:
        (1, 128, 128) float32.
    Raises:
        DataError: unreadable, damaged, too large to decode safely, or not a region of interest.
    Source: Liang et al. 2021, CompNet (doi 10.1109/LSP.2021.3103475), as released.
    """
    grey, _ = _read(path)
    inside = grey > 0
    values = grey[inside]
    out = np.zeros((1, SIDE_PX, SIDE_PX), dtype=np.float32)
    out[0][inside] = (values - values.mean()) / values.std()
    return out


def preflight(records: Sequence[ImageRecord]) -> PreflightReport:
    """Read every image once and report sizes and contrast.

    Raises:
        DataError: no record at all, or one message for all images that cannot be used.
    """
    if not records:
        raise DataError("there are no images", next_step="name a source that holds some")
    sizes: list[tuple[int, int]] = []
    contrasts: list[float] = []
    problems: list[str] = []
    for record in records:
        try:
            grey, size = _read(record.path)
        except DataError as error:
            problems.append(error.what)
        else:
            sizes.append(size)
            contrasts.append(float(grey[grey > 0].std()))
    if problems:
        raise problems_error(
            f"{len(problems)} of {len(records)} images cannot be used", problems, NEXT_STEP
        )
    counts = [len(group) for group in by_identity(records).values()]
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    return PreflightReport(
        images=len(records),
        identities=len(counts),
        images_per_identity=(min(counts), max(counts)),
        width_px=(min(widths), max(widths)),
        height_px=(min(heights), max(heights)),
        contrast=(min(contrasts), max(contrasts)),
    )


def _refuse(path: Path, why: str) -> DataError:
    return DataError(f"{path}: {why}", safe="the file is unchanged", next_step=NEXT_STEP)


def _read(path: Path) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """The checked (128, 128) grey image, 0..255, and the file's (width, height) in pixels."""
    try:
        with warnings.catch_warnings():
            # Pillow warns about sizes below our own limit, which is checked before any decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise _refuse(path, f"{width}x{height} px, more than {MAX_PIXELS} pixels")
                if min(width, height) < MIN_SIDE_PX:
                    raise _refuse(
                        path, f"{width}x{height} px is too small for a region of interest"
                    )
                if max(width, height) > MAX_ASPECT * min(width, height):
                    raise _refuse(
                        path, f"{width}x{height} px is not near square: not a cropped palm"
                    )
                grey = _grey(path, ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise _refuse(path, "no such file") from None
    except UnidentifiedImageError:
        raise _refuse(path, "not a png, jpg, bmp or tif image") from None
    except Image.DecompressionBombError:
        raise _refuse(path, f"more than {MAX_PIXELS} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise _refuse(path, f"damaged or unreadable image ({error})") from error
    small = np.asarray(
        grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=3.0),
        dtype=np.float64,
    )
    inside = small[small > 0]
    contrast = float(inside.std()) if inside.size > 1 else 0.0
    if contrast < MIN_CONTRAST:
        raise _refuse(
            path, f"contrast {contrast:.1f} grey levels, at least {MIN_CONTRAST:g} needed: blank?"
        )
    return small, (width, height)


def _grey(path: Path, image: Image.Image) -> Image.Image:
    """8-bit grey; what is transparent counts as outside the palm."""
    if image.mode.startswith("I;16"):
        # convert("L") would clip 16-bit levels at 255 instead of scaling them.
        levels = np.asarray(image, dtype=np.uint16)
        return Image.fromarray((levels // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise _refuse(path, f"pixels of mode {image.mode}; 8 or 16 bits a channel are expected")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert(
            "L"
        )
    return image.convert("L")
