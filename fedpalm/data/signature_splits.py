"""A site's signatures: which writers train and which do not, what is enrolled, and which claims are tried.

As for palms, all by keyed hashes of names: half of the writers are closed (they train) and half open.
Half of a writer's genuine signatures (of each name, where several names are known) are references, and of
a closed writer training data too; the others are probes. Of a closed writer's skilled forgeries half
train. A site is dealt whole writers (:func:`fedpalm.data.splits.partition_sites`), so no writer is at
two.

Forgeries that nobody made are found: a *simple* one of a writer is the same name by another writer of the
same half, a *random* one another writer's signature with another name than the claimed one. Such an image
is also a genuine one of its author, so a network that is not told whose signature is claimed cannot learn
what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import DataError
from .records import by_identity, order_key, problems_error, seeded_order
from .signatures import SignatureRecord

CLAIMS_PER_WRITER = 30
"""Simple, and random, forgeries of one writer that are tried at most."""

Records = tuple[SignatureRecord, ...]


@dataclass(frozen=True)
class SignatureTrial:
    """What is enrolled and what is then claimed, for one half of a site's writers.

    ``references`` are genuine, in the order in which a writer gave them (the first five are a trial with
    five). All others are probes; ``simple`` is empty where no names are known, ``skilled`` where nobody
    forged.
    """

    references: Records
    genuine: Records
    skilled: Records
    simple: Records
    random: Records

    def first_references(self, count: int) -> Records:
        """``count`` references of every writer. Raises DataError where there are fewer."""
        groups: dict[str, list[SignatureRecord]] = {}
        for record in self.references:
            groups.setdefault(record.writer, []).append(record)
        few = [f"{writer}: {len(group)}" for writer, group in groups.items() if len(group) < count]
        if few or count < 1:
            raise problems_error(
                f"{count} references of every writer are asked for",
                few or ["one is the least"],
                "ask for fewer, or give more genuine signatures",
            )
        return tuple(record for group in groups.values() for record in group[:count])


@dataclass(frozen=True)
class SignatureSplit:
    """One site's signatures by use.

    ``train`` holds genuine and forged signatures of ``writers`` (numbers 0..C-1 in this order), no probe
    among them; its genuine ones are the references of ``closed``. Nobody of ``open_writers`` trains.
    """

    train: Records
    closed: SignatureTrial
    open: SignatureTrial
    writers: tuple[str, ...]
    open_writers: tuple[str, ...]


def split_signatures(
    records: Sequence[SignatureRecord], seed: int, site: int | str
) -> SignatureSplit:
    """Split one site's signatures; an odd writer, and an odd signature, goes to training.

    Raises:
        DataError: fewer than four writers, or fewer than two genuine signatures of one.
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
    order = sorted(groups, key=lambda name: order_key("writer-closed-open", seed, scope, name))
    half = (len(order) + 1) // 2
    closed, open_ = sorted(order[:half]), sorted(order[half:])
    references, probes = list[SignatureRecord](), list[SignatureRecord]()
    forged_train, forged = list[SignatureRecord](), list[SignatureRecord]()
    for name, group in groups.items():
        ordered = _by_turns(seeded_order("reference-probe", seed, genuine[name], scope))
        for text in {record.text: None for record in ordered}:
            same = [record for record in ordered if record.text == text]
            probes += same[(len(same) + 1) // 2 :]
        tried = {record.path for record in probes}
        references += [record for record in ordered if record.path not in tried]
        skilled = [r for r in group if r.kind == "skilled"]
        ordered = seeded_order("forged-train-probe", seed, skilled, scope)
        middle = (len(ordered) + 1) // 2 if name in closed else 0
        forged_train += ordered[:middle]
        forged += ordered[middle:]

    def trial(names: list[str]) -> SignatureTrial:
        claimed = _of(probes, names)
        return SignatureTrial(
            _of(references, names),
            claimed,
            _of(forged, names),
            found_forgeries(claimed, "simple", CLAIMS_PER_WRITER, seed),
            found_forgeries(claimed, "random", CLAIMS_PER_WRITER, seed),
        )

    own = _of(references, closed)
    most = max(sum(record.writer == name for record in own) for name in closed)
    return SignatureSplit(
        own + _of(forged_train, closed) + found_forgeries(own, "simple", most, seed),
        trial(closed),
        trial(open_),
        tuple(closed),
        tuple(open_),
    )


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


def _by_turns(ordered: Sequence[SignatureRecord]) -> list[SignatureRecord]:
    """One signature of every name, then the next of every name: few references show many names."""
    turns: dict[str | None, int] = {}
    ranked: list[tuple[int, SignatureRecord]] = []
    for record in ordered:
        turns[record.text] = turns.get(record.text, -1) + 1
        ranked.append((turns[record.text], record))
    return [record for _, record in sorted(ranked, key=lambda one: one[0])]


def _of(records: Sequence[SignatureRecord], names: Sequence[str]) -> Records:
    wanted = set(names)
    return tuple(record for record in records if record.writer in wanted)
