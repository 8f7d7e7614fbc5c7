"""A site's signatures: which writers train and which do not, what is enrolled, and which claims are tried.

As for palms, all by keyed hashes of names: half of the writers are closed (they train) and half open.
Half of a writer's genuine signatures (of each name, where several names are known) are references, and of
a closed writer training data too; the others are probes. Of a closed writer's skilled forgeries half
train. A site is dealt whole writers (:func:`fedpalm.data.splits.partition_sites`), so no writer is at
two. Once a run has trained, its images stay what they are, whatever is added to the folder
(:mod:`.trained_signatures`): who is new is open, and a new image of a closed writer is a probe.

Forgeries that nobody made are found: a *simple* one of a writer is the same name by another writer of the
same half, a *random* one another writer's signature with another name than the claimed one. They are
tried and never train: such an image is also a genuine one of its author, and a network that is not told
whose signature is claimed cannot learn what it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..errors import DataError
from .records import by_identity, order_key, problems_error, seeded_order
from .signatures import Claimed, SignatureRecord, by_claim
from .trained_signatures import Found, TrainedSignatures

CLAIMS_PER_WRITER = 30
"""Simple, and random, forgeries of one writer that are tried at most."""

Records = tuple[SignatureRecord, ...]


@dataclass(frozen=True)
class SignatureTrial:
    """What is enrolled and what is then claimed, for one half of a site's writers.

    A writer with several names has several signatures; each is enrolled and claimed by itself.
    ``references`` are genuine, in the order in which a writer gave them (the first five are a trial with
    five). All others are probes; ``simple`` is empty where no names are known, ``skilled`` where nobody
    forged.
    """

    references: Records
    genuine: Records
    skilled: Records
    simple: Records
    random: Records

    @property
    def fewest_references(self) -> int:
        """Of the signature that has the fewest."""
        return min(len(group) for group in by_claim(self.references).values())

    def first_references(self, count: int) -> Records:
        """``count`` references of every signature. Raises DataError where there are fewer."""
        groups = by_claim(self.references)
        few = [f"{name}: {len(group)}" for name, group in groups.items() if len(group) < count]
        if few or count < 1:
            raise problems_error(
                f"{count} references of every writer, and of each of their names, are asked for",
                few or ["one is the least"],
                "ask for fewer, or give more genuine signatures",
            )
        return tuple(record for group in groups.values() for record in group[:count])


@dataclass(frozen=True)
class SignatureSplit:
    """One site's signatures by use.

    ``train`` holds genuine and forged signatures of ``writers``, no probe among them; its genuine ones are
    the references of ``closed``. Nobody of ``open_writers`` trains.
    """

    train: Records
    closed: SignatureTrial
    open: SignatureTrial
    writers: tuple[str, ...]
    open_writers: tuple[str, ...]


def split_signatures(
    records: Sequence[SignatureRecord],
    seed: int,
    site: int | str,
    trained: TrainedSignatures | None = None,
) -> SignatureSplit:
    """Split one site's signatures; an odd writer, and an odd signature, goes to training.

    Args:
        trained: on which a run trained: these train, as far as they are here, and no others. A name of a
            closed writer of which none is here is in no trial.
    Raises:
        DataError: fewer than four writers (with ``trained``: than two of a half), fewer than two genuine
            signatures of one, a forgery of a name of which there is no genuine signature, or, with
            ``trained``, a file that cannot be read.
    """
    groups = by_identity(records)
    scope = str(site)
    if len(groups) < 4:
        raise DataError(
            f"site {site}: {len(groups)} writers; two that train and two that test are the least",
            next_step="give this site four writers or more",
        )
    genuine = {name: [r for r in group if r.genuine] for name, group in groups.items()}
    if few := [f"{name}: {len(own)} genuine" for name, own in genuine.items() if len(own) < 2]:
        raise problems_error(
            f"site {site}: writers with fewer than two genuine signatures",
            few,
            "add signatures or remove these writers",
        )
    known = {record.claimed for own in genuine.values() for record in own}
    if odd := [f"{r.path.name}: {r.claimed}" for r in records if r.claimed not in known]:
        raise problems_error(
            f"site {site}: forgeries of signatures of which there is no genuine one",
            odd,
            "say which of the writer's names is forged, or add genuine signatures of that name",
        )
    found = None if trained is None else trained.among(records)
    unused = frozenset[Path]() if found is None else found.others
    closed, open_ = _halves(groups, found, seed, scope)

    def parts(ordered: list[SignatureRecord], name: str) -> tuple[Records, Records]:
        """What trains or is enrolled, and what is tried."""
        if found is not None and name in closed:
            first = tuple(r for r in ordered if r.path in found.train)
            return first, tuple(r for r in ordered if r.path not in found.train)
        middle = (len(ordered) + 1) // 2
        return tuple(ordered[:middle]), tuple(ordered[middle:])

    references, probes = list[SignatureRecord](), list[SignatureRecord]()
    forged_train, forged = list[SignatureRecord](), list[SignatureRecord]()
    for name, group in groups.items():
        enrolled = set[Claimed]()
        own = [r for r in genuine[name] if r.path not in unused]
        for claim, same in by_claim(seeded_order("reference-probe", seed, own, scope)).items():
            first, rest = parts(same, name)
            if first:
                enrolled.add(claim)
                references += first
                probes += rest
        skilled = [r for r in group if r.kind == "skilled" and r.claimed in enrolled]
        skilled = [r for r in skilled if r.path not in unused]
        ordered = seeded_order("forged-train-probe", seed, skilled, scope)
        if name in closed:
            first, rest = parts(ordered, name)
            forged_train += first
            forged += rest
        else:
            forged += ordered

    def trial(names: list[str]) -> SignatureTrial:
        claimed = _of(probes, names)
        return SignatureTrial(
            _of(references, names),
            claimed,
            _of(forged, names),
            found_forgeries(claimed, "simple", CLAIMS_PER_WRITER, seed),
            found_forgeries(claimed, "random", CLAIMS_PER_WRITER, seed),
        )

    return SignatureSplit(
        _of(references, closed) + tuple(forged_train),
        trial(closed),
        trial(open_),
        tuple(closed),
        tuple(open_),
    )


def require_aside(train: Sequence[SignatureRecord], site: str) -> None:
    """Raises DataError: of no (writer, name) do two genuine signatures train, as FedMH needs."""
    if not any(len(same) > 1 for same in by_claim([r for r in train if r.genuine]).values()):
        raise nothing_aside(f"site {site}")


def nothing_aside(where: str) -> DataError:
    return DataError(
        f"{where}: of no name do two genuine signatures train, so none can be kept aside to judge a "
        "received model by",
        safe="nothing was trained or sent",
        next_step="give every writer three genuine signatures of the same name: half of the writers train, "
        "with half of their signatures, and of these a part is kept aside",
    )


def _halves(
    groups: Mapping[str, object], found: Found | None, seed: int, scope: str
) -> tuple[list[str], list[str]]:
    """Closed and open writers, both sorted. Raises DataError: of those who trained, or others, too few."""
    if found is None:
        order = sorted(groups, key=lambda name: order_key("writer-closed-open", seed, scope, name))
        half = (len(order) + 1) // 2
        return sorted(order[:half]), sorted(order[half:])
    closed, open_ = sorted(groups.keys() & found.writers), sorted(groups.keys() - found.writers)
    if min(len(closed), len(open_)) < 2:
        raise DataError(
            f"site {scope}: {len(closed)} writers who trained and {len(open_)} who did not are in the "
            "data; two of each are the least",
            next_step="put writers back into the data folder, or add others",
        )
    return closed, open_


def found_forgeries(
    genuine: Sequence[SignatureRecord],
    kind: Literal["simple", "random"],
    per_writer: int,
    seed: int,
) -> Records:
    """Genuine signatures of others, each claimed as a writer's own; ``text`` is then the claimed name.

    Args:
        kind: ``simple``: the others' signatures with a name that the writer has, too; ``random``: any of
            the others', claimed as another name of the writer's where names are known.
        per_writer: how many claims of each writer at most, chosen by a keyed hash.
    """
    texts: dict[str, set[str | None]] = {}
    for record in genuine:
        texts.setdefault(record.writer, set()).add(record.text)
    found: list[SignatureRecord] = []
    for writer, own in sorted(texts.items()):
        claims: list[tuple[bytes, SignatureRecord]] = []
        for other in genuine:
            if other.writer == writer:
                continue
            for text in _claimable(own, other.text, kind):
                key = (writer, text or "", other.writer, other.path.name)
                claim = replace(other, identity=writer, kind=kind, text=text, author=other.writer)
                claims.append((order_key(f"{kind}-forgery", seed, *key), claim))
        claims.sort(key=lambda one: (one[0], one[1].path.as_posix()))
        found += [claim for _, claim in claims[:per_writer]]
    return tuple(found)


def _claimable(
    own: set[str | None], written: str | None, kind: Literal["simple", "random"]
) -> set[str | None]:
    """The names of a writer's own as which another's signature can be claimed; {None} names none."""
    if kind == "simple":
        return {written} & own - {None}
    return own if written is None else own - {written}


def _of(records: Sequence[SignatureRecord], names: Sequence[str]) -> Records:
    wanted = set(names)
    return tuple(record for record in records if record.writer in wanted)
