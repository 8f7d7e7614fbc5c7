"""Whether the image of a signature is good enough: four plain measures and their limits.

They are our own. Measured on 400 cross-media signatures and 216 synthetic ones of six desks, as found in
their images: the longer side of the ink 127 to 305 px, 82 to 248 grey levels between ink and paper, the
ink's share of its box 0.02 to 0.37, sharpness 0.53 to 2.4. Blurred by two pixels sharpness is 0.33 to 1.2,
by four 0.25 to 0.53. Look at the measures of your scanner's images first (``--json`` shows them). None of
them tells ink from print, nor a signature from other marks.
"""

from __future__ import annotations

from fedpalm.data.signature_image import MIN_INK_LEVELS, Signature, box_of

from .quality import Limit, Quality, judged, sharpness_of

# Beyond the first limit an image is refused, beyond the second it is used with a warning.
MIN_SIDE_PX, GOOD_SIDE_PX = 32, 112
"""Of the longer side of the box around the ink; below the second it is enlarged."""
GOOD_LEVELS = 40.0
"""Grey levels between ink and paper; below 24 reading the image refuses it."""
MAX_INK, GOOD_INK = 0.6, 0.45
"""Mean ink of the box: a signature is mostly paper; a stroke, a block and a blot are not."""
MIN_SHARPNESS, GOOD_SHARPNESS = 0.25, 0.45
"""Deviation of the Laplacian over that of the ink: edges of strokes against strokes."""
SIGNATURE_NEXT_STEP = (
    f"take another image: one signature, dark on light paper or light on dark, {GOOD_SIDE_PX} px or more "
    "across the ink, without lines, stamps or print"
)


def assess_signature(signature: Signature, name: str = "the image") -> Quality:
    """Measure a signature that could be read. Raises QualityError: as :func:`.quality.judged`."""
    width, height = signature.box_px
    side = max(width, height)
    ink = float(signature.ink[box_of(signature.ink)].mean()) / 255
    sharpness = sharpness_of(signature.ink)
    return judged(
        name,
        {
            "ink_width_px": width,
            "ink_height_px": height,
            "levels": round(signature.levels, 1),
            "ink_share": round(ink, 3),
            "sharpness": round(sharpness, 3),
        },
        refused=(
            Limit(side < MIN_SIDE_PX, f"the ink is {side} px across, {MIN_SIDE_PX} are needed"),
            Limit(ink > MAX_INK, f"its box is {ink:.0%} ink: a stroke or a blot, not a signature"),
            Limit(
                sharpness < MIN_SHARPNESS,
                f"sharpness {sharpness:.3f}, {MIN_SHARPNESS:g} is needed: blurred",
            ),
        ),
        told=(
            Limit(side < GOOD_SIDE_PX, f"small (the ink is {side} px across)"),
            Limit(
                signature.levels < GOOD_LEVELS,
                f"faint ({signature.levels:.0f} grey levels between ink and paper, "
                f"{MIN_INK_LEVELS:.0f} are the least)",
            ),
            Limit(ink > GOOD_INK, f"much ink ({ink:.0%} of its box)"),
            Limit(sharpness < GOOD_SHARPNESS, f"blurred (sharpness {sharpness:.3f})"),
        ),
        next_step=SIGNATURE_NEXT_STEP,
    )
