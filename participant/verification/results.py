"""What a question about a person is answered with: values that a program can read, without templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fedpalm.data.signatures import ForgeryKind

from .gallery import Mode
from .model import ModelId
from .quality import Quality


@dataclass(frozen=True)
class Enrolment:
    """Somebody who is enrolled from now on.

    ``resembles`` are those enrolled whom they match. ``warnings`` are all there are, ``image_warnings``
    those that come from the images alone.
    """

    subject: str
    mode: Mode
    model: ModelId
    images: int
    kept_images: bool
    resembles: tuple[str, ...]
    quality: tuple[Quality, ...]
    image_warnings: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return _values(self)


@dataclass(frozen=True)
class Verification:
    """Whether somebody is who they claim to be: ``score`` >= ``threshold``, both 0..1.

    ``target_fmr`` is the rate that the threshold was set for, of claims of the kind ``against``.
    """

    subject: str
    match: bool
    score: float
    threshold: float
    target_fmr: float
    against: ForgeryKind
    mode: Mode
    model: ModelId
    quality: Quality

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.quality.warnings

    def to_json(self) -> dict[str, Any]:
        return _values(self)


@dataclass(frozen=True)
class Identification:
    """Who of those enrolled this is; ``subject`` None: nobody.

    ``comparisons`` were made, and somebody who is not enrolled matches one of them with a probability of at
    most ``fpir_bound``. ``left_out`` were not compared with: stale, locked out, or of a mode without
    threshold.
    """

    subject: str | None
    score: float | None
    threshold: float | None
    mode: Mode | None
    comparisons: int
    left_out: int
    fpir_bound: float
    model: ModelId
    quality: Quality

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.quality.warnings

    def to_json(self) -> dict[str, Any]:
        return _values(self)


@dataclass(frozen=True)
class Renewal:
    """Who has a new key and a new reference, and who could not be renewed, for want of images."""

    renewed: tuple[str, ...]
    without_images: tuple[str, ...]
    model: ModelId

    def to_json(self) -> dict[str, Any]:
        return _values(self)


@dataclass(frozen=True)
class EnrolledSubject:
    """What a list says of somebody."""

    subject: str
    mode: Mode
    images: int
    images_kept: bool
    stale: bool
    locked_until_ms: int | None
    run_id: str
    model: str
    enrolled_ms: int
    renewed_ms: int

    def to_json(self) -> dict[str, Any]:
        return _values(self)


@dataclass(frozen=True)
class Erasure:
    """What an erasure has erased, and what it cannot: ``runs`` whose models may remember the person.

    ``in_training_data`` says whether the site's data have somebody of this name among those who train;
    None: it could not be told. ``journal_cut`` is False while another process keeps the database's
    journal, with sealed bytes of the old records in it, open.
    """

    subject: str
    erased: dict[str, bool]
    attempts: int
    runs: tuple[str, ...]
    in_training_data: bool | None
    journal_cut: bool
    entry_seq: int

    def to_json(self) -> dict[str, Any]:
        return _values(self)


def _values(result: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in vars(result).items():
        if isinstance(value, ModelId):
            values |= {"run_id": value.run_id, "model_round": value.round, "model": value.hash}
        else:
            values[name] = _plain(value)
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, Quality):
        return value.to_json()
    return [_plain(one) for one in value] if isinstance(value, tuple) else value
