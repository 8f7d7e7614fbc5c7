"""Receipts: taken only for what was sent, and held against the log and the coordinator's own list."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sqlite3
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest
from click.testing import CliRunner

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    ChainBrokenError,
    HashMismatchError,
    IdentityError,
    IntegrityError,
    NotFoundError,
    ProtocolError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Role
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.receipt import PayloadReceipt
from participant.cli.egress import egress
from participant.ending import ExitAfter
from participant.link import Link
from participant.receipts import compare_with_coordinator, runs_of, verify_receipts
from tests.support.fake_coordinator import FakeConnection, FakeCoordinator
from tests.support.participant import LAYOUT, SITES, Site, ToyMethod, make_plan
from tests.support.pki import TestAuthority
from tests.support.rounds import RUN, Chain, receipt_for


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    world.agreed(made, make_plan())
    yield made
    made.store.close()


@pytest.fixture
def chain(world, site):
    made = Chain(world, make_plan())
    made.ask(site)
    return made


@pytest.fixture
def payload(site, chain):
    """An update that was released for the first attempt."""
    import numpy as np

    from fedpalm.methods.base import SiteUpdate

    update = SiteUpdate(np.full(LAYOUT.size, 0.01, dtype=np.float32), 3.0)
    private = ToyMethod(make_plan(), "north").state()
    model = bytes.fromhex(make_plan().initial_model)
    encoded = site.gate.encode_update(
        *(RUN, 1, model, LAYOUT, update), shared=np.zeros(LAYOUT.size, "f4"), private=private
    )
    site.store.commit_round(RUN, 1, private, encoded)
    return site.gate.release_update(RUN, 1, 1)


def _kinds(site):
    return [entry.kind for entry in site.log.entries()]


def _verify(site, anchors=None):
    return verify_receipts(
        site.store, site.log, site.identity.identity, anchors or site.identity.anchors
    )


def _edit(site, statement, *values):
    """What somebody with the disk can do to the tables beside the log."""
    db = sqlite3.connect(site.home.database)
    db.execute(statement, values)
    db.commit()
    db.close()


# --- taking a receipt in -----------------------------------------------------------------------------


def test_a_receipt_is_stored_and_logged_at_once_and_once(world, site, payload):
    signed = receipt_for(world, payload)
    for _ in range(2):
        site.gate.record_receipt(payload, signed)
    (entry,) = [e for e in site.log.entries() if e.kind is EntryKind.RECEIPT]
    assert dict(entry.body) == {
        "egress": payload.seq,
        "payload_hash": payload.payload_hash.hex(),
        "receipt_hash": signed.hash.hex(),
        "sender": "spiffe://unit/coordinator/coordinator",
    }
    row = site.store.row("SELECT * FROM releases WHERE seq = ?", payload.seq)
    assert row["receipt_seq"] == entry.seq
    assert SignedStatement.from_bytes(row["receipt"]) == signed


@pytest.mark.parametrize(
    "changes",
    [
        {"payload_hash": "00" * 32},
        {"payload_bytes": 7},
        {"site": "west"},
        {"place": f"{RUN}/1/2"},
        {"place": f"{RUN}/2/1"},
        {"place": "toy-2/1/1"},
        {"payload": "sealed_expert"},
    ],
    ids=str,
)
def test_a_receipt_for_anything_but_what_was_sent_is_refused(world, site, payload, changes):
    before = _kinds(site)
    with pytest.raises(HashMismatchError, match=next(iter(changes))):
        site.gate.record_receipt(payload, receipt_for(world, payload, **changes))
    assert _kinds(site) == before
    assert site.store.row("SELECT receipt FROM releases WHERE seq = ?", payload.seq)[0] is None


def test_a_receipt_of_an_earlier_attempt_is_none_for_a_later_one(world, site, chain, payload):
    first = receipt_for(world, payload)
    site.gate.record_receipt(payload, first)
    chain.ask(site, 1, 2)
    again = site.gate.release_update(RUN, 1, 2)
    assert again.payload_hash == payload.payload_hash
    with pytest.raises(HashMismatchError, match="place"):
        site.gate.record_receipt(again, first)


def test_a_receipt_that_the_coordinator_has_not_signed_is_refused(world, site, payload):
    good = receipt_for(world, payload)
    stranger = TestAuthority("unit").enrol(Role.COORDINATOR, "coordinator")
    before = _kinds(site)
    for bad, error in (
        (dataclasses.replace(good, signature=bytes(64)), IdentityError),
        (dataclasses.replace(good, chain=world.absent("west").chain), WrongRoleError),
        (PayloadReceipt.read(good).sign(stranger), IdentityError),
        (dataclasses.replace(good, statement=good.statement[:-1]), ProtocolError),
    ):
        with pytest.raises(error):
            site.gate.record_receipt(payload, bad)
    assert _kinds(site) == before


def test_a_second_and_different_receipt_for_a_payload_is_refused(world, site, payload):
    first = receipt_for(world, payload)
    site.gate.record_receipt(payload, first)
    with pytest.raises(HashMismatchError, match="another one already"):
        site.gate.record_receipt(payload, receipt_for(world, payload, received_ms=2))
    row = site.store.row("SELECT receipt FROM releases WHERE seq = ?", payload.seq)
    assert SignedStatement.from_bytes(row["receipt"]) == first


# --- holding the log against them --------------------------------------------------------------------


def test_a_whole_log_verifies_and_names_what_has_no_receipt(world, site, chain, payload):
    site.gate.release_hello()
    report = _verify(site)
    assert (report.verified, report.without, report.untrusted) == (0, (payload.seq,), ())
    site.gate.record_receipt(payload, receipt_for(world, payload))
    report = _verify(site)
    assert (report.verified, report.without) == (1, ())
    assert report.entries == len(_kinds(site))


def _sign_anew(world, row, by=None, **changes):
    said = PayloadReceipt.read(SignedStatement.from_bytes(row["receipt"]))
    made = PayloadReceipt.model_validate({**said.model_dump(), **changes})
    return made.sign(by or world.coordinator).to_bytes()


def _no_signature(row):
    signed = SignedStatement.from_bytes(row["receipt"])
    return dataclasses.replace(signed, signature=bytes(64)).to_bytes()


def _foreign_chain(world, row):
    signed = SignedStatement.from_bytes(row["receipt"])
    return dataclasses.replace(signed, chain=world.absent("west").chain).to_bytes()


TAMPERED = {
    "another receipt": (
        "UPDATE releases SET receipt = ? WHERE seq = ?",
        lambda world, row: (_sign_anew(world, row, received_ms=2), row["seq"]),
        "not the one that was logged",
    ),
    "unsigned": (
        "UPDATE releases SET receipt = ? WHERE seq = ?",
        lambda world, row: (_no_signature(row), row["seq"]),
        "does not hold",
    ),
    "signed by a site": (
        "UPDATE releases SET receipt = ? WHERE seq = ?",
        lambda world, row: (_foreign_chain(world, row), row["seq"]),
        "does not hold",
    ),
    "receipt taken away": (
        "UPDATE releases SET receipt = NULL, receipt_seq = NULL WHERE seq = ?",
        lambda world, row: (row["seq"],),
        "do not go together",
    ),
    "receipt moved": (
        "UPDATE releases SET receipt_seq = receipt_seq - 1 WHERE seq = ?",
        lambda world, row: (row["seq"],),
        "do not go together",
    ),
    "other bytes": (
        "UPDATE releases SET payload_bytes = 1 WHERE seq = ?",
        lambda world, row: (row["seq"],),
        "of other bytes",
    ),
    "release taken away": (
        "DELETE FROM releases WHERE seq = ?",
        lambda world, row: (row["seq"],),
        "do not name the same payloads",
    ),
    "release invented": (
        "INSERT INTO releases SELECT 0, payload, place, recipient, payload_hash, payload_bytes, "
        "released_ms, NULL, NULL FROM releases WHERE seq = ?",
        lambda world, row: (row["seq"],),
        "do not name the same payloads",
    ),
}


@pytest.mark.parametrize(("statement", "values", "match"), TAMPERED.values(), ids=TAMPERED)
def test_every_change_beside_the_log_is_found(world, site, payload, statement, values, match):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    _verify(site)
    row = site.store.row("SELECT * FROM releases WHERE seq = ?", payload.seq)
    _edit(site, statement, *values(world, row))
    with pytest.raises(IntegrityError, match=match):
        _verify(site)


def test_a_log_that_was_cut_is_found(world, site, payload):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    _edit(site, "DROP TRIGGER log_is_not_deleted")
    _edit(site, "DELETE FROM log WHERE seq >= ?", payload.seq)
    with pytest.raises(ChainBrokenError):
        _verify(site)


def test_a_receipt_holds_though_its_certificate_has_ended_since(world, site, payload):
    brief = TestAuthority.of(world.authority).enrol(
        Role.COORDINATOR, "coordinator", lifetime=timedelta(hours=1)
    )
    receipt = PayloadReceipt.read(receipt_for(world, payload)).sign(brief)
    site.gate.record_receipt(payload, receipt)
    site.store.clock = FakeClock(time.time() + 7 * 86400)
    assert _verify(site).verified == 1


def test_a_receipt_under_a_retired_ca_is_a_finding_of_its_own(world, site, payload):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    present = TestAuthority("unit").enrol(Role.COORDINATOR, "coordinator").anchors
    report = _verify(site, present)
    assert (report.verified, report.untrusted, report.without) == (0, (payload.seq,), ())


def test_a_forgery_under_a_strange_ca_is_a_forgery_unless_it_says_what_was_logged(
    world, site, payload
):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    row = site.store.row("SELECT * FROM releases WHERE seq = ?", payload.seq)
    strange = TestAuthority("unit")
    late = strange.enrol(Role.COORDINATOR, "coordinator", now=time.time() + 3600)
    site_of_it = strange.enrol(Role.PARTICIPANT, "west")
    said = PayloadReceipt.read(SignedStatement.from_bytes(row["receipt"]))
    signed = said.sign(late)
    for forged in (signed, dataclasses.replace(signed, chain=site_of_it.chain)):
        _edit(site, "UPDATE releases SET receipt = ? WHERE seq = ?", forged.to_bytes(), row["seq"])
        with pytest.raises(IntegrityError, match="does not hold"):
            _verify(site)


# --- the coordinator's own list ----------------------------------------------------------------------


def _compare(site, *listed):
    return compare_with_coordinator(
        _verify(site),
        *(site.store, site.log, site.identity.identity, site.identity.anchors),
        {RUN: listed},
    )


def test_lists_that_agree_say_so(world, site, payload):
    signed = receipt_for(world, payload)
    site.gate.record_receipt(payload, signed)
    assert _compare(site, signed) == _verify(site)


def test_a_receipt_for_something_that_is_not_in_the_log_is_named(world, site, payload):
    signed = receipt_for(world, payload)
    site.gate.record_receipt(payload, signed)
    unknown = receipt_for(world, payload, payload_hash="ab" * 32)
    with pytest.raises(IntegrityError, match=f"not in the log: update of {RUN}/1/1.*abababab"):
        _compare(site, signed, unknown)
    with pytest.raises(IntegrityError, match="not in the log"):
        _compare(site, signed, receipt_for(world, payload, place=f"{RUN}/1/2"))


def test_a_receipt_that_the_coordinator_does_not_have_any_more_is_named(world, site, payload):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    with pytest.raises(IntegrityError, match=f"does not list 1 receipts.*entry {payload.seq}"):
        _compare(site)


def test_a_receipt_that_was_lost_on_its_way_is_found_in_the_list(world, site, payload):
    report = _compare(site, receipt_for(world, payload))
    assert (report.without, report.listed) == ((), (payload.seq,))


def test_another_receipt_for_the_same_payload_is_named(world, site, payload):
    site.gate.record_receipt(payload, receipt_for(world, payload))
    with pytest.raises(IntegrityError, match=f"another receipt for entry {payload.seq}"):
        _compare(site, receipt_for(world, payload, received_ms=9))


def test_what_the_coordinator_lists_must_be_its_own_word_about_this_run(world, site, payload):
    good = receipt_for(world, payload)
    other_run = receipt_for(world, payload, place="toy-2/1/1")
    for listed in (dataclasses.replace(good, signature=bytes(64)), other_run):
        with pytest.raises(IntegrityError, match="does not hold"):
            _compare(site, listed)


# --- a whole run, and the command ---------------------------------------------------------------------


@pytest.fixture
def finished(world):
    """Three sites after a run of two rounds, and the coordinator that they had."""
    coordinator = FakeCoordinator(world, make_plan(rounds=2), expected=SITES)

    async def run():
        await asyncio.gather(
            *(Site(world.home(name)).run(coordinator, ExitAfter.RUN) for name in SITES)
        )

    asyncio.run(asyncio.wait_for(run(), 60))
    return coordinator


def _lists(coordinator, site):
    async def fetch():
        link = Link(FakeConnection(coordinator, site), site.gate)
        await link.hello()
        return {run_id: await link.list_receipts(run_id) for run_id in runs_of(site.store)}

    return asyncio.run(fetch())


def test_after_a_run_log_receipts_and_the_coordinators_list_agree(world, finished):
    for name in SITES:
        site, _ = world.site(name)
        lists = _lists(finished, site)
        report = compare_with_coordinator(
            _verify(site),
            *(site.store, site.log, site.identity.identity, site.identity.anchors),
            lists,
        )
        assert (report.verified, report.without, report.listed) == (2, (), ())
        assert len(lists[RUN]) == 2
        site.store.close()


def _command(world, *options):
    done = CliRunner().invoke(egress, ["--home", str(world.home("north").path), *options])
    return done.exit_code, done.output


def test_the_command_reports_receipts_and_fails_on_a_changed_one(world, finished):
    code, output = _command(world, "--verify", "--json")
    assert code == 0
    shown = json.loads(output)
    assert shown["receipts"] == {
        "verified": 2,
        "untrusted": [],
        "without": [],
        "listed_by_coordinator_only": None,
    }
    assert all(entry["receipt_ms"] for entry in shown["entries"] if entry["kind"] == "update")
    code, output = _command(world, "--verify")
    assert "receipts verified: 2" in output
    site, _ = world.site("north")
    row = site.store.row("SELECT * FROM releases WHERE receipt IS NOT NULL")
    _edit(site, "UPDATE releases SET receipt = ? WHERE seq = ?", _no_signature(row), row["seq"])
    site.store.close()
    code, output = _command(world, "--verify", "--json")
    assert (code, json.loads(output)["error"]["code"]) == (IntegrityError.exit_code, "integrity")


def test_the_command_asks_the_coordinator_and_logs_what_it_asks(world, finished, monkeypatch):
    @contextmanager
    def reopened():
        site, _ = world.site("north")
        yield site
        site.store.close()

    class Dialled:
        def __init__(self, address, identity):
            assert identity.identity.name == "north"

        async def __aenter__(self):
            self.site, _ = world.site("north")
            return FakeConnection(finished, self.site)

        async def __aexit__(self, *_):
            self.site.store.close()

    monkeypatch.setattr("fedpalm.transport.channel.Connection", Dialled)
    code, output = _command(world, "--with-coordinator")
    assert code == 0, output
    assert "the coordinator's list and this log agree" in output
    with reopened() as site:
        last = [e.body["payload"] for e in site.log.entries() if e.kind is EntryKind.EGRESS][-2:]
    assert last == ["hello", "list_receipts"]
    finished.receipts.clear()
    for error in ({}, {"ListReceipts": NotFoundError("no such run")}):
        finished.errors = error
        code, output = _command(world, "--with-coordinator", "--json")
        assert code == IntegrityError.exit_code
        assert "does not list 2 receipts" in json.loads(output)["error"]["what"]
