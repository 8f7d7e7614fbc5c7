"""A threshold at a target false match rate, on pairs of the site's own people, as they are compared in use.

Every person gets a reference fused from as many images as people are enrolled with, under a key of their
own; every probe is compared with every reference under that reference's key, as a claim of that name
would be. Closed: the images that trained against the closed probes. Open: the two halves of the open
identities.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedpalm.data.roi import Grey, read_roi
from fedpalm.errors import ConfigError, DataError
from fedpalm.evaluation.bootstrap import rate_intervals
from fedpalm.evaluation.metrics import least_threshold, roc
from fedpalm.evaluation.pairs import ScoreSet
from fedpalm.protection import Transform, scores

from ..config import ParticipantConfig
from ..images import split_records
from .gallery import Mode, fuse
from .model import StoredModel, VerificationModel
from .thresholds import Threshold

if TYPE_CHECKING:
    from fedpalm.data.records import ImageRecord

RESAMPLES = 500
_LEAST_ERRORS = 3.0
"""Rule of three: no false match in n comparisons bounds the rate (95 %) at 3 / n."""
_BATCH = 32
WEAK_FMR = 0.1
"""Above it every tenth stranger passes: a rate that is asked for on purpose, or by a slip."""

Tick = Callable[[str, int, int], None]
"""What, how many are done, of how many."""


@dataclass(frozen=True)
class DevelopmentPairs:
    """Which images make references, and which are compared with them."""

    mode: Mode
    gallery: tuple[ImageRecord, ...]
    probes: tuple[ImageRecord, ...]

    @property
    def people(self) -> tuple[str, ...]:
        return tuple(sorted({record.identity for record in self.gallery}))

    @property
    def impostors(self) -> int:
        """How many comparisons of two people there are."""
        people = set(self.people)
        return sum(len(people - {record.identity}) for record in self.probes)


def development_pairs(
    config: ParticipantConfig, model: StoredModel, mode: Mode
) -> DevelopmentPairs:
    """Raises ConfigError, DataError: the site's data are not named, or cannot be listed."""
    if config.data is None:
        raise ConfigError(
            "a threshold is set on the site's own images, and participant.toml has no [data]",
            next_step='name them there: [data] source = "PATH"',
        )
    split = split_records(config.data, config.site, model.run.plan.draft.privacy.unit)
    if mode == "closed":
        return DevelopmentPairs(mode, split.train, split.closed_probe)
    return DevelopmentPairs(mode, split.open_gallery, split.open_probe)


def require_rate(target_fmr: float, *, accept_weak: bool, safe: str) -> None:
    """Raises ConfigError: not in (0, 1), or above :data:`WEAK_FMR` without ``accept_weak``."""
    if not 0.0 < target_fmr < 1.0:
        raise ConfigError(
            f"a false match rate of {target_fmr:g} is no target: between 0 and 1",
            safe=safe,
            next_step="ask for a rate that you can live with, such as --fmr 1e-3",
        )
    if target_fmr > WEAK_FMR and not accept_weak:
        raise ConfigError(
            f"a false match rate of {target_fmr:g} lets {target_fmr:.0%} of strangers pass",
            safe=safe,
            next_step=f"ask for --fmr {WEAK_FMR:g} or less, or say that it is meant: --accept-weak",
        )


def require_enough(wanted: Sequence[DevelopmentPairs], target_fmr: float, *, safe: str) -> None:
    """Refuse a target that the comparisons of one of these modes cannot support.

    Raises:
        DataError: there are fewer than 3 / target impostor comparisons; says how many are needed, which
            rate all modes can show, and which mode can show this one.
    """
    needed = math.ceil(_LEAST_ERRORS / target_fmr - 1e-9)
    few = [pairs for pairs in wanted if pairs.impostors < needed]
    if not few:
        return
    steps = ["add people to the site's data"]
    fewest = min(pairs.impostors for pairs in few)
    if fewest and (least := _up(_LEAST_ERRORS / fewest)) <= WEAK_FMR:
        steps.append(f"ask for --fmr {least:g} at the least")
    steps += [
        f"set {one.mode} alone, which can: --mode {one.mode}" for one in wanted if one not in few
    ]
    raise DataError(
        "; ".join(
            f"{pairs.mode}: a false match rate of {target_fmr:g} cannot be told from "
            f"{pairs.impostors:,} comparisons of two people: {needed:,} are needed"
            for pairs in few
        ),
        safe=safe,
        next_step=", or ".join(steps),
    )


def stays(in_force: Sequence[Mode]) -> str:
    """What is so as long as no threshold has been set, given the modes that have one."""
    if not in_force:
        return "no threshold is in force: nobody is verified"
    return f"what is in force stays: {', '.join(in_force)}"


def calibrate(
    model: VerificationModel,
    pairs: DevelopmentPairs,
    *,
    target_fmr: float,
    images: int,
    seed: int,
    now_ms: int,
    tick: Tick,
) -> Threshold:
    """The most lenient threshold whose false match rate is at most the target.

    Args:
        images: of a reference, at most.
        seed: of the subjects' keys and of the intervals.
    Raises:
        DataError: an image cannot be used.
    """
    found = _scores(model, pairs, images, seed, tick)
    curve = roc(found.genuine, found.impostor)
    value, fmr, fnmr = least_threshold(curve, target_fmr)
    of_fmr, of_fnmr = rate_intervals(found, value, seed=seed, resamples=RESAMPLES)
    return Threshold(
        mode=pairs.mode,
        model=model.id.hash,
        run_id=model.id.run_id,
        value=value,
        target_fmr=target_fmr,
        fmr=fmr,
        fmr_interval=of_fmr,
        fnmr=fnmr,
        fnmr_interval=of_fnmr,
        identities=found.identities,
        genuine_pairs=found.genuine.size,
        impostor_pairs=found.impostor.size,
        images=images,
        calibrated_ms=now_ms,
    )


def _scores(
    model: VerificationModel, pairs: DevelopmentPairs, images: int, seed: int, tick: Tick
) -> ScoreSet:
    people = pairs.people
    first: list[ImageRecord] = []
    for person in people:
        first += [one for one in pairs.gallery if one.identity == person][:images]
    probes = [one for one in pairs.probes if one.identity in people]
    gallery = _templates(model, pairs.mode, first, f"{pairs.mode} references", tick)
    asked = _templates(model, pairs.mode, probes, f"{pairs.mode} probes", tick)
    claims = np.array([people.index(one.identity) for one in probes])
    every = np.empty((len(people), len(probes)))
    for number, person in enumerate(people):
        rows = gallery[[one.identity == person for one in first]]
        transform = Transform.of(_key(seed, person), gallery.shape[1])
        reference = transform.apply(fuse(rows))[0]
        every[number] = scores(transform.apply(asked), reference)
    mated = np.arange(len(people))[:, None] == claims[None, :]
    reference_at, probe_at = np.nonzero(~mated)
    return ScoreSet(
        genuine=every[mated],
        genuine_identity=np.nonzero(mated)[0].astype(np.int32),
        impostor=every[~mated],
        impostor_identities=np.stack([reference_at, claims[probe_at]], axis=1).astype(np.int32),
        site_of_identity=np.zeros(len(people), dtype=np.int32),
        rank1_hits=0,
        rank1_probes=0,
    )


def _templates(
    model: VerificationModel, mode: Mode, records: Sequence[ImageRecord], what: str, tick: Tick
) -> np.ndarray:
    """(N, D), read and made in batches."""
    made = []
    for at in range(0, len(records), _BATCH):
        greys: Grey = np.stack([read_roi(one.path).grey for one in records[at : at + _BATCH]])
        made.append(model.templates(mode, greys))
        tick(what, min(at + _BATCH, len(records)), len(records))
    return np.concatenate(made)


def _key(seed: int, person: str) -> bytes:
    return hashlib.sha256(f"calibration/v1 {seed} {person}".encode()).digest()


def _up(rate: float) -> float:
    """Rounded up to two digits."""
    digits = 1 - math.floor(math.log10(rate))
    scale = 10.0**digits
    return min(1.0, math.ceil(rate * scale) / scale)
