"""What the report calls things, where palms and signatures differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .settings import DemoSettings


@dataclass(frozen=True)
class Words:
    """One subject's. ``labels`` by contender, ``against`` by kind of forgery, ``stays`` what and why."""

    labels: Mapping[str, str]
    shared: str
    """Behind the number of sites: the page's title."""
    drawn: str
    owner: tuple[str, str]
    """Whose images they are, one and many, as tables say it."""
    strangers: str
    """Those whom no site trained on, in a sentence."""
    image: str
    images: str
    against: Mapping[str, str]
    alone: str
    """What the rate of no federation is."""
    compared: Mapping[str, str]
    """What the comparisons were, by contender."""
    sample: str
    real: str
    """Why figures on drawn images are not those on real ones."""
    not_looked_for: str
    stays: tuple[tuple[str, str], ...]
    resampled: str
    """What intervals draw."""


_NAMES = "the list of images stays at the site; no message has a field for one"
_LOSSES = ("Losses and metrics", "told and kept at the site")
_KEYS = ("Private keys", "made at the site, in files only its user can read")

PALMS = Words(
    labels={"fedpalm": "FedPalm", "fedavg": "FedAvg", "local": "No federation"},
    shared="one shared model, no shared images",
    drawn="synthetic palms",
    owner=("identity", "identities"),
    strangers="people that no site trained on",
    image="image",
    images="images",
    against={"random": ""},
    alone="the mean of the sites\u2019 own models",
    compared={"fedavg": "FedAvg", "local": "training alone"},
    sample="What a site trains on here: synthetic palms, the images of an identity side by side. "
    "No image of a person is in this report.",
    real="The palms are drawn by a program. They show that the federation works; error rates on "
    "real palms differ.",
    not_looked_for="Nothing looks for a living hand.",
    stays=(
        ("Images", "read from the site\u2019s own list, never written or sent elsewhere"),
        (
            "Names of identities",
            "the label list stays at the site; no message has a field for one",
        ),
        ("Templates", "computed and compared at the site"),
        ("Classification heads", "their rows are prototypes of identities"),
        ("The closed-set embedding", "the personal model beyond its textural expert"),
        _LOSSES,
        _KEYS,
    ),
    resampled="identities",
)

SIGNATURES = Words(
    labels={"fedmh": "FedMH", "fedavg": "FedAvg by group", "local": "No federation"},
    shared="models of their own, no shared signatures",
    drawn="synthetic signatures",
    owner=("writer", "writers"),
    strangers="writers that no site trained on",
    image="signature",
    images="signatures",
    against={
        "random": "random forgeries",
        "simple": "simple forgeries",
        "skilled": "skilled forgeries",
    },
    alone="every site trained by itself. All are means over the sites, each with its own model, its own "
    "writers and its own threshold",
    compared={
        "fedavg": "FedAvg of each group of parameters (trunks in families, the rest over all sites; "
        "averages replace what a site has, no guidance, no augmentation)",
        "local": "every site alone (guidance and augmentation as in FedMH, nothing is taken from averages)",
    },
    sample="What a site trains on here: synthetic signatures, a writer a row, genuine ones and then "
    "skilled forgeries. No signature of a person is in this report.",
    real="The signatures are drawn by a program, and so are their forgers. They show that the federation "
    "works; error rates on real signatures differ.",
    not_looked_for="Nothing sees how the pen was moved: only what it left on paper.",
    stays=(
        ("Signatures", "read from the site\u2019s own list, never written or sent elsewhere"),
        ("Names of writers", _NAMES),
        ("Templates", "computed and compared at the site"),
        ("Heads of writers", "their rows are prototypes of writers"),
        ("Trunks that too few sites have", "a sum over them could not hide a site"),
        ("How far a site went towards an average", "it follows from its own held-out signatures"),
        _LOSSES,
        _KEYS,
    ),
    resampled="writers",
)


def words_of(settings: DemoSettings) -> Words:
    return {"palm": PALMS, "signature": SIGNATURES}[settings.modality]
