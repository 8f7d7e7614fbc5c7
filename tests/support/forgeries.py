"""Bundles that somebody has changed: with no key, with the site's own, or with its coordinator's help.

A forgery takes a random source and a world by the book, and gives the bytes of a bundle and the exit codes
that are right for it. ``sealed`` forgers hold the site's signing key, and sign anew whatever is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from fedpalm.audit.findings import Exit
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.entries import Entry
from fedpalm.ledger.merkle import root
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import SignedStatement
from tests.support.audit import SITE, World, again, digest, make_plan

Forged = tuple[bytes, set[Exit]]
Forgery = Callable[[Random, World], Forged]

MALFORMED, TAMPERED, FORKED = {Exit.MALFORMED}, {Exit.TAMPERED}, {Exit.FORKED}
BROKEN = MALFORMED | TAMPERED


# --- by somebody who holds no key ---------------------------------------------------------------------


def flip_a_bit(rng: Random, world: World) -> Forged:
    content = bytearray(world.bundle())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    return bytes(content), BROKEN


def cut_the_file(rng: Random, world: World) -> Forged:
    content = world.bundle()
    return content[: rng.randrange(len(content))], MALFORMED


def put_bytes_in(rng: Random, world: World) -> Forged:
    content = world.bundle()
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.randint(1, 4)) + content[at:], BROKEN


def swap_two_lines(rng: Random, world: World) -> Forged:
    lines = world.bundle().splitlines(keepends=True)
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines), BROKEN


def delete_a_line(rng: Random, world: World) -> Forged:
    """And count one less in the header, as a careful hand would."""
    lines = world.bundle().splitlines(keepends=True)
    header = json.loads(lines[0])
    sections = [name for name in _ORDER if header["sections"][name]]
    name = rng.choice(sections)
    before = 1 + sum(header["sections"][one] for one in _ORDER[: _ORDER.index(name)])
    del lines[before + rng.randrange(header["sections"][name])]
    header["sections"][name] -= 1
    lines[0] = _line(header)
    return b"".join(lines), BROKEN


def repeat_a_line(rng: Random, world: World) -> Forged:
    lines = world.bundle().splitlines(keepends=True)
    header = json.loads(lines[0])
    name = rng.choice([name for name in _ORDER if header["sections"][name]])
    before = 1 + sum(header["sections"][one] for one in _ORDER[: _ORDER.index(name)])
    at = before + rng.randrange(header["sections"][name])
    lines.insert(at, lines[at])
    header["sections"][name] += 1
    lines[0] = _line(header)
    return b"".join(lines), BROKEN


_ORDER = (
    *("certificates", "plans", "manifests", "countersignatures", "checkpoints", "receipts"),
    *("consents", "entries"),
)


def _line(values: object) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode() + b"\n"


# --- by the site, which seals anew, but lets the log's signatures stand ---------------------------------


def reorder_entries(rng: Random, world: World) -> Forged:
    entries = list(world.entries)
    one, other = rng.sample(range(len(entries)), 2)
    entries[one], entries[other] = entries[other], entries[one]
    return world.bundle(entries=entries), TAMPERED


def delete_entries(rng: Random, world: World) -> Forged:
    first = rng.randrange(len(world.entries) - 1)
    last = rng.randint(first + 1, len(world.entries) - 1)
    return world.bundle(entries=world.entries[:first] + world.entries[last:]), TAMPERED


def flip_a_bit_of_an_entry(rng: Random, world: World) -> Forged:
    at = rng.randrange(len(world.entries))
    line = bytearray(world.entries[at].to_bytes())
    bit = rng.randrange(8 * len(line))
    line[bit // 8] ^= 1 << bit % 8
    if b"\n" in line:
        return world.bundle(entries=_with(world, at, bytes(line))), MALFORMED
    return world.bundle(entries=_with(world, at, bytes(line))), BROKEN


def change_an_entry(rng: Random, world: World) -> Forged:
    at = rng.randrange(len(world.entries))
    entry = world.entries[at]
    field = rng.choice(["time_ms", "previous_hash", "signature", "key_id"])
    value = entry.time_ms + 1 if field == "time_ms" else rng.randbytes(len(getattr(entry, field)))
    return world.bundle(entries=_with(world, at, replace(entry, **{field: value}))), TAMPERED


def _with(world: World, at: int, one: Entry | bytes) -> list[Entry | bytes]:
    return [*world.entries[:at], one, *world.entries[at + 1 :]]


SECTIONS = ("manifests", "countersignatures", "checkpoints", "receipts")


def flip_a_bit_of_a_statement(rng: Random, world: World) -> Forged:
    section, at, said = _any_statement(rng, world)
    text = bytearray(said.statement)
    bit = rng.randrange(8 * len(text) - 1)
    text[bit // 8] ^= 1 << bit % 8
    try:
        bytes(text).decode()
    except UnicodeDecodeError:
        text = bytearray(said.statement.replace(b'"', b"'", 1))
    return _replaced(world, section, at, replace(said, statement=bytes(text))), BROKEN


def change_a_signature(rng: Random, world: World) -> Forged:
    section, at, said = _any_statement(rng, world)
    return _replaced(world, section, at, replace(said, signature=rng.randbytes(64))), TAMPERED


def swap_the_keys_of_two_statements(rng: Random, world: World) -> Forged:
    section, at, said = _any_statement(rng, world)
    chains = [
        other.chain
        for name in SECTIONS
        for other in world.contents[name]
        if other.chain != said.chain
    ]
    return _replaced(world, section, at, replace(said, chain=rng.choice(chains))), TAMPERED


def replay_a_statement(rng: Random, world: World) -> Forged:
    """One of another round in the place of one of this."""
    section = rng.choice(["manifests", "countersignatures", "receipts"])
    said = list(world.contents[section])
    one, other = rng.sample(range(len(said)), 2)
    said[one] = said[other]
    return world.bundle(**{section: said}), BROKEN


def _any_statement(rng: Random, world: World) -> tuple[str, int, SignedStatement]:
    section = rng.choice([name for name in SECTIONS if world.contents[name]])
    at = rng.randrange(len(world.contents[section]))
    return section, at, world.contents[section][at]


def _replaced(world: World, section: str, at: int, one: SignedStatement) -> bytes:
    said = list(world.contents[section])
    said[at] = one
    return world.bundle(**{section: said})


# --- by the site, which signs its whole log anew ---------------------------------------------------------


def truncate_the_log(rng: Random, world: World) -> Forged:
    """And let every statement of later vanish; only somebody else's checkpoint tells."""
    keep = rng.randrange(1, Checkpoint.read(world.newest).size)
    entries = world.entries[:keep]
    kept = {kind: [e for e in entries if e.kind is kind] for kind in EntryKind}
    plans = world.contents["plans"] if kept[EntryKind.PLAN_APPROVED] else []
    manifests = len(kept[EntryKind.MANIFEST_ACCEPTED])
    return world.bundle(
        entries=entries,
        plans=plans,
        manifests=world.contents["manifests"][:manifests],
        countersignatures=world.contents["countersignatures"][: manifests * len(world.plan.roster)],
        checkpoints=world.contents["checkpoints"][: len(kept[EntryKind.CHECKPOINT])],
        receipts=world.contents["receipts"][: len(kept[EntryKind.RECEIPT])],
        consents=[],
    ), FORKED


def truncate_the_log_alone(rng: Random, world: World) -> Forged:
    keep = rng.randrange(1, Checkpoint.read(world.newest).size)
    return world.bundle(entries=world.entries[:keep]), FORKED


def fork_the_log(rng: Random, world: World) -> Forged:
    """Another history from some entry on, all of it signed."""
    at = rng.randrange(Checkpoint.read(world.newest).size)
    entries = world.resigned(
        (entry.kind, entry.body, entry.time_ms + (entry.seq >= at)) for entry in world.entries
    )
    return world.bundle(entries=entries), FORKED


def fork_the_log_and_its_checkpoints(rng: Random, world: World) -> Forged:
    """The same, with checkpoints to match; no manifest names them, and a witness holds another."""
    at = rng.randrange(Checkpoint.read(world.newest).size)
    entries = world.resigned(
        (entry.kind, entry.body, entry.time_ms + (entry.seq >= at)) for entry in world.entries
    )
    return world.bundle(entries=entries, checkpoints=_to_match(world, entries)), FORKED


def edit_the_noise(rng: Random, world: World) -> Forged:
    sigma = rng.choice(["1.2", "2.2", "0.9"])
    chosen = rng.choice(_of(world, EntryKind.BUDGET_RESERVED))
    entries = world.resigned(
        again(one, noise_multiplier=sigma) if one.seq == chosen.seq else again(one)
        for one in world.entries
    )
    checkpoints = rng.choice([world.contents["checkpoints"], _to_match(world, entries), []])
    return world.bundle(entries=entries, checkpoints=checkpoints), FORKED


def remove_a_release(rng: Random, world: World) -> Forged:
    """The update and its receipt were never there, says the site."""
    gone = rng.choice([one for one in world.entries if one.body.get("payload") == "update"])
    receipts = _of(world, EntryKind.RECEIPT)
    index = next(at for at, one in enumerate(receipts) if one.body["egress"] == gone.seq)
    said = [one for at, one in enumerate(world.contents["receipts"]) if at != index]
    return world.bundle(
        entries=_without(world, {gone.seq, receipts[index].seq}), receipts=said
    ), FORKED


def remove_a_charge(rng: Random, world: World) -> Forged:
    """Reserved, committed, or both: never, says the site."""
    gone = rng.choice(_of(world, EntryKind.BUDGET_RESERVED))
    spent = next(
        e for e in _of(world, EntryKind.BUDGET_COMMITTED) if e.body["reservation"] == gone.seq
    )
    both = {gone.seq, spent.seq}
    return world.bundle(entries=_without(world, rng.choice([both, {spent.seq}]))), FORKED


def _without(world: World, gone: set[int]) -> list[Entry]:
    """The log without these entries, signed anew, its references moved along."""
    left = [one for one in world.entries if one.seq not in gone]
    moved = {one.seq: at for at, one in enumerate(left)}
    return world.resigned(
        again(
            one,
            **{
                name: moved[int(one.body[name])]
                for name in ("egress", "reservation")
                if name in one.body
            },
        )
        for one in left
    )


def _of(world: World, *kinds: EntryKind) -> list[Entry]:
    return [one for one in world.entries if one.kind in kinds]


def _to_match(world: World, entries: Sequence[Entry]) -> list[SignedStatement]:
    lines = [one.to_bytes() for one in entries]
    made = []
    for signed in world.contents["checkpoints"]:
        said = Checkpoint.read(signed)
        made.append(
            said.model_copy(update={"root": root(lines[: said.size]).hex()}).sign(world.own)
        )
    return made


def begin_again_with_another_key(rng: Random, world: World) -> Forged:
    """The CA gives the site a second certificate, and it signs everything of its own anew."""
    other = _like(world)
    other.sites = {**world.sites, SITE: world.authority.enrol(Role.PARTICIPANT, SITE)}
    return other.trained(rng.randint(1, 3)).bundle(), TAMPERED


# --- by a site that did wrong when it trained, and had it witnessed --------------------------------------


def send_without_a_charge(rng: Random, world: World) -> Forged:
    lie = rng.choice(
        [{"charge": False}, {"commit": False}, {"update": {"payload_hash": "ab" * 32}}]
    )
    return _lied(rng, world, lie), {Exit.UNCHARGED}


def charge_another_mechanism(rng: Random, world: World) -> Forged:
    lie = rng.choice(
        [
            {"noise_multiplier": "2.2"},
            {"sampling_rate": "0.01"},
            {"steps": 1},
            {"clip_norm": "0.5"},
            {"unit": "record"},
            {"rng": "seeded"},
            {"plan_hash": digest("other")},
        ]
    )
    return _lied(rng, world, {"mechanism": lie}), {Exit.UNCHARGED}


def send_something_more(rng: Random, world: World) -> Forged:
    other = _like(world).trained(2)
    payload = rng.choice(["update", "sealed_expert", "images", "hello"])
    place = rng.choice([{}, {"run": other.run}, {"run": other.run, "round": 2, "attempt": 1}])
    other.send(payload, 20_000_000, place)
    return other.bundle(), {Exit.UNCHARGED}


def claim_another_epsilon(rng: Random, world: World) -> Forged:
    lie = {"epsilon": repr(round(rng.choice([rng.uniform(0, 0.7), rng.uniform(1.2, 40)]), 6))}
    return _lied(rng, world, {"mechanism": lie}), {Exit.EPSILON}


def pass_the_budget(rng: Random, world: World) -> Forged:
    other = _like(world)
    other.budget = rng.uniform(0.05, 0.7)
    return other.trained(2).bundle(), {Exit.OVER_BUDGET}


def two_disjoint_witness_sets(rng: Random, world: World) -> Forged:
    """The coordinator shows one history to some sites and another to the others; this is one of them.

    Its witnesses are too few, or the others' checkpoint contradicts it.
    """
    others = list(world.plan.roster[1:])
    rng.shuffle(others)
    cut = rng.randint(0, len(others))
    here, there = {SITE, *others[:cut]}, {SITE, *others[cut:]}
    elsewhere, other = _like(world), _like(world)
    other.clock_ms += 1000 * rng.randint(1, 9)
    for one, signers in ((elsewhere, there), (other, here)):
        one.join()
        one.round(1, signers=signers)
    world.held = elsewhere.newest if cut >= 2 else None
    return other.bundle(), FORKED if cut >= 2 else {Exit.UNWITNESSED}


def release_an_expert_under_no_sanction(rng: Random, world: World) -> Forged:
    """Somebody's yes, the approval, the record or the order is missing, or says something else."""
    other = World(make_plan(unit="none", experts=True), authority=world.authority)
    other.sites, other.coordinator = world.sites, world.coordinator
    other.join()
    other.round(1)
    site, elsewhere = rng.choice(other.plan.roster[1:]), rng.randbytes(32).hex()
    other.exchange(
        **rng.choice(
            [
                {"signers": [name for name in other.plan.roster if name != site]},
                {
                    "steps": rng.choice(
                        [("release", "seal"), ("approve", "refuse", "release", "seal")]
                    )
                },
                {
                    "steps": rng.choice(
                        [("approve", "seal"), ("approve", "release", "keys", "seal")]
                    )
                },
                {"approved": {rng.choice(["consent_hash", "commitment"]): elsewhere}},
                {"released": {"sanction": elsewhere}},
                {"sealed": {"bytes": rng.randint(0, 20_000)}},
                {"keys": {"bytes": rng.randint(10_000, 1_000_000)}},
                {"terms": other.terms(expires_ms=other.clock_ms - rng.randint(10**6, 10**9))},
            ]
        )
    )
    return other.bundle(), {Exit.UNCHARGED}


def _lied(rng: Random, world: World, lie: dict[str, object]) -> bytes:
    """Two rounds, the second with a lie in it, and all of it witnessed."""
    other = _like(world)
    other.join()
    other.round(1)
    other.round(2, **lie)
    other.close()
    return other.bundle()


def _like(world: World) -> World:
    """The same parties, before anything happened."""
    other = World(world.plan, authority=world.authority)
    other.sites, other.coordinator = world.sites, world.coordinator
    return other


KEYLESS: tuple[Forgery, ...] = (
    *(flip_a_bit, cut_the_file, put_bytes_in, swap_two_lines, delete_a_line, repeat_a_line),
)
SEALED: tuple[Forgery, ...] = (
    *(reorder_entries, delete_entries, flip_a_bit_of_an_entry, change_an_entry),
    *(flip_a_bit_of_a_statement, change_a_signature, swap_the_keys_of_two_statements),
    replay_a_statement,
)
RESIGNED: tuple[Forgery, ...] = (
    *(truncate_the_log, truncate_the_log_alone, fork_the_log, fork_the_log_and_its_checkpoints),
    *(edit_the_noise, remove_a_release, remove_a_charge, begin_again_with_another_key),
)
LIVED: tuple[Forgery, ...] = (
    *(send_without_a_charge, charge_another_mechanism, send_something_more),
    release_an_expert_under_no_sanction,
    *(claim_another_epsilon, pass_the_budget, two_disjoint_witness_sets),
)
FORGERIES = (*KEYLESS, *SEALED, *RESIGNED, *LIVED)
