"""A threshold at a target false match rate, on pairs of the site's own people, as they are compared in use.

Every person gets a reference fused from as many images as people are enrolled with, under a key of their
own; every probe is compared with every reference under that reference's key, as a claim of that name
would be. Somebody with several names has a reference of each: they are enrolled with one. A probe with the
claimed name by somebody else is a simple forgery, a practised one counts against whom it was practised on,
and all others are random ones, which is all that palms have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedpalm.canonical import domain_hash
from fedpalm.data.signatures import FORGERY_KINDS, ForgeryKind
from fedpalm.errors import ConfigError, DataError
from fedpalm.evaluation.bootstrap import rate_intervals
from fedpalm.evaluation.metrics import least_threshold, roc
from fedpalm.evaluation.pairs import ScoreSet
from fedpalm.protection import Transform, scores

from ..config import ParticipantConfig
from .gallery import Mode, fuse
from .model import StoredModel, VerificationModel
from .sensor import Sample, Sensor
from .thresholds import Passing, Threshold

RESAMPLES = 500
_LEAST_ERRORS = 3.0
"""Rule of three: no false match in n comparisons bounds the rate (95 %) at 3 / n."""
_BATCH = 32
WEAK_FMR = 0.1
"""Above it every tenth stranger passes: a rate that is asked for on purpose, or by a slip."""


class _Words(NamedTuple):
    claims: str
    passing: str
    missing: str


_IN_WORDS: dict[ForgeryKind, _Words] = {
    "random": _Words("comparisons of two people", "strangers", "people"),
    "simple": _Words(
        "claims with the same name by another writer",
        "others who write the same name",
        "people with the same names",
    ),
    "skilled": _Words("skilled forgeries", "skilled forgeries", "skilled forgeries"),
}

Tick = Callable[[str, int, int], None]
"""What, how many are done, of how many."""


@dataclass(frozen=True)
class DevelopmentPairs:
    """Which images make references, and which are compared with them."""

    mode: Mode
    gallery: tuple[Sample, ...]
    probes: tuple[Sample, ...]

    @cached_property
    def people(self) -> tuple[str, ...]:
        return tuple(sorted({one.identity for one in self.gallery}))

    @cached_property
    def subjects(self) -> tuple[tuple[str, str], ...]:
        """Who gets a reference: a person, and which name of theirs (empty: no name is known)."""
        return tuple(sorted({(one.identity, one.name or "") for one in self.gallery}))

    @cached_property
    def genuine(self) -> npt.NDArray[np.bool_]:
        """(subjects, probes): who claims to be whom they are, with the name that they claim."""
        same_person, same_name, _ = self._alike
        return same_person & same_name & ~self._skilled

    def forged(self, kind: ForgeryKind) -> npt.NDArray[np.bool_]:
        """(subjects, probes): which comparisons are forgeries of this kind."""
        same_person, same_name, known = self._alike
        if kind == "skilled":
            return same_person & same_name & self._skilled
        simple = ~same_person & same_name & known & ~self._skilled
        return simple if kind == "simple" else ~same_person & ~simple & ~self._skilled

    def claims(self, kind: ForgeryKind) -> int:
        """How many comparisons of this kind there are."""
        return int(self.forged(kind).sum())

    @cached_property
    def claimed(self) -> npt.NDArray[np.int32]:
        """(probes,): whose signature each is, or was practised on; -1 for nobody with a reference."""
        return _numbers([one.identity for one in self.probes], self.people)

    @cached_property
    def owners(self) -> npt.NDArray[np.int32]:
        """(subjects,): which of the people each is."""
        return _numbers([person for person, _ in self.subjects], self.people)

    @cached_property
    def _skilled(self) -> npt.NDArray[np.bool_]:
        return np.array([one.skilled for one in self.probes], dtype=np.bool_)

    @cached_property
    def _alike(self) -> tuple[npt.NDArray[np.bool_], ...]:
        """(subjects, probes): the same person; perhaps the same name; both names are known."""
        names = sorted({name for _, name in self.subjects if name})
        own = _numbers([name for _, name in self.subjects], names)[:, None]
        given = _numbers([one.name or "" for one in self.probes], names)[None, :]
        unknown = np.array([one.name is None for one in self.probes], dtype=np.bool_)
        nameless = np.array([not name for _, name in self.subjects], dtype=np.bool_)
        known = ~nameless[:, None] & ~unknown[None, :]
        same_person = self.owners[:, None] == self.claimed[None, :]
        return same_person, (own == given) | ~known, known


def development_pairs(
    config: ParticipantConfig, model: StoredModel, mode: Mode
) -> DevelopmentPairs:
    """Raises ConfigError, DataError: the site's data are not named, none of the run's, or unreadable."""
    if config.data is None:
        raise ConfigError(
            "a threshold is set on the site's own images, and participant.toml has no [data]",
            next_step='name them there: [data] source = "PATH"',
        )
    found = model.sensor.development(config.data, config.site, model.run.plan, mode, model.trained)
    people = {one.identity for one in found.gallery}
    probes = tuple(one for one in found.probes if one.identity in people)
    return DevelopmentPairs(mode, found.gallery, probes)


def require_kind(against: ForgeryKind, sensor: Sensor, *, safe: str) -> None:
    """Raises ConfigError: images of this sensor are not forged so."""
    if against not in sensor.forgeries:
        raise ConfigError(
            f"no {against} forgeries of a {sensor.noun} are known here",
            safe=safe,
            next_step=f"ask for a rate against {' or '.join(sensor.forgeries)} ones: --against",
        )


def require_rate(
    target_fmr: float, against: ForgeryKind = "random", *, accept_weak: bool, safe: str
) -> None:
    """Raises ConfigError: not in (0, 1), or above :data:`WEAK_FMR` without ``accept_weak``."""
    if not 0.0 < target_fmr < 1.0:
        raise ConfigError(
            f"a false match rate of {target_fmr:g} is no target: between 0 and 1",
            safe=safe,
            next_step="ask for a rate that you can live with, such as --fmr 1e-3",
        )
    if target_fmr > WEAK_FMR and not accept_weak:
        who = _IN_WORDS[against].passing
        raise ConfigError(
            f"a false match rate of {target_fmr:g} lets {target_fmr:.0%} of {who} pass",
            safe=safe,
            next_step=f"ask for --fmr {WEAK_FMR:g} or less, or say that it is meant: --accept-weak",
        )


def require_enough(
    wanted: Sequence[DevelopmentPairs],
    target_fmr: float,
    against: ForgeryKind = "random",
    *,
    safe: str,
) -> None:
    """Refuse a target that the comparisons of one of these modes cannot support.

    Raises:
        DataError: there are fewer than 3 / target claims of the kind; says how many are needed, which rate
            all modes can show, and which mode can show this one.
    """
    needed = math.ceil(_LEAST_ERRORS / target_fmr - 1e-9)
    counts = {pairs.mode: pairs.claims(against) for pairs in wanted}
    few = {mode: count for mode, count in counts.items() if count < needed}
    if not few:
        return
    what = _IN_WORDS[against].claims
    steps = [f"add {_IN_WORDS[against].missing} to the site's data"]
    fewest = min(few.values())
    if not fewest:
        steps += [
            f"set it against claims that there are: --against {kind}"
            for kind in FORGERY_KINDS
            if all(pairs.claims(kind) >= needed for pairs in wanted)
        ]
    elif (least := _up(_LEAST_ERRORS / fewest)) <= WEAK_FMR:
        steps.append(f"ask for --fmr {least:g} at the least")
    steps += [f"set {mode} alone, which can: --mode {mode}" for mode in counts if mode not in few]
    raise DataError(
        "; ".join(
            f"{mode}: a false match rate of {target_fmr:g} cannot be told from {count:,} {what}: "
            f"{needed:,} are needed"
            for mode, count in few.items()
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
    against: ForgeryKind = "random",
    images: int,
    seed: int,
    now_ms: int,
    tick: Tick,
) -> Threshold:
    """The most lenient threshold at which at most the target's part of claims of a kind passes.

    Args:
        images: of a reference, at most.
        seed: of the subjects' keys and of the intervals.
    Raises:
        DataError: an image cannot be used.
    """
    every = _scores(model, pairs, images, seed, tick)
    found = _of_kind(pairs, every, against)
    curve = roc(found.genuine, found.impostor)
    value, fmr, fnmr = least_threshold(curve, target_fmr)
    of_fmr, of_fnmr = rate_intervals(found, value, seed=seed, resamples=RESAMPLES)
    kinds = [kind for kind in model.sensor.forgeries if pairs.claims(kind)]
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
        identities=len(pairs.people),
        genuine_pairs=found.genuine.size,
        impostor_pairs=found.impostor.size,
        images=images,
        calibrated_ms=now_ms,
        against=against,
        passing=tuple(_passing(_of_kind(pairs, every, kind), kind, value, seed) for kind in kinds)
        if len(model.sensor.forgeries) > 1
        else (),
    )


def _passing(found: ScoreSet, kind: ForgeryKind, threshold: float, seed: int) -> Passing:
    interval, _ = rate_intervals(found, threshold, seed=seed, resamples=RESAMPLES)
    rate = float((found.impostor >= threshold).mean())
    return Passing(kind, rate, interval, found.impostor.size)


def _of_kind(
    pairs: DevelopmentPairs, every: npt.NDArray[np.float64], kind: ForgeryKind
) -> ScoreSet:
    """Genuine claims and those of a kind, with whom they are of; people are drawn for intervals."""
    genuine, forged = pairs.genuine, pairs.forged(kind)
    reference_at, probe_at = np.nonzero(forged)
    people = len(pairs.people)
    others, sites = pairs.claimed[probe_at], np.zeros(people, dtype=np.int32)
    if kind == "skilled":
        # Who forged is not known. A place that is in every draw once stands for them, so that such a claim
        # counts as often as the person on whom it was practised.
        others, sites = np.full_like(others, people), np.append(sites, np.int32(1))
    return ScoreSet(
        genuine=every[genuine],
        genuine_identity=pairs.owners[np.nonzero(genuine)[0]],
        impostor=every[forged],
        impostor_identities=np.stack([pairs.owners[reference_at], others], axis=1),
        site_of_identity=sites,
        rank1_hits=0,
        rank1_probes=0,
    )


def _scores(
    model: VerificationModel, pairs: DevelopmentPairs, images: int, seed: int, tick: Tick
) -> npt.NDArray[np.float64]:
    """(subjects, probes): every probe under the key of every subject."""
    first = {subject: list[Sample]() for subject in pairs.subjects}
    for one in pairs.gallery:
        chosen = first[one.identity, one.name or ""]
        if len(chosen) < images:
            chosen.append(one)
    used = [one for chosen in first.values() for one in chosen]
    gallery = iter(_templates(model, pairs.mode, used, f"{pairs.mode} references", tick))
    asked = _templates(model, pairs.mode, pairs.probes, f"{pairs.mode} probes", tick)
    every = np.empty((len(first), len(pairs.probes)))
    for number, (subject, chosen) in enumerate(first.items()):
        rows = np.stack([next(gallery) for _ in chosen])
        transform = Transform.of(_key(seed, *subject), rows.shape[1])
        every[number] = scores(transform.apply(asked), transform.apply(fuse(rows))[0])
        tick(f"{pairs.mode} comparisons", number + 1, len(first))
    return every


def _templates(
    model: VerificationModel, mode: Mode, samples: Sequence[Sample], what: str, tick: Tick
) -> np.ndarray:
    """(N, D), read and made in batches."""
    made = []
    for at in range(0, len(samples), _BATCH):
        greys = np.stack([model.sensor.read(one.path) for one in samples[at : at + _BATCH]])
        made.append(model.templates(mode, greys))
        tick(what, min(at + _BATCH, len(samples)), len(samples))
    return np.concatenate(made)


def _numbers(values: Sequence[str], order: Sequence[str]) -> npt.NDArray[np.int32]:
    """The place of each in ``order``; -1: it is not there."""
    places = {value: at for at, value in enumerate(order)}
    return np.array([places.get(value, -1) for value in values], dtype=np.int32)


def _key(seed: int, person: str, name: str) -> bytes:
    return domain_hash("calibration/v2", str(seed).encode(), person.encode(), name.encode())


def _up(rate: float) -> float:
    """Rounded up to two digits."""
    digits = 1 - math.floor(math.log10(rate))
    scale = 10.0**digits
    return min(1.0, math.ceil(rate * scale) / scale)
