"""What the coordinator relays and cannot open: only what was signed for this, none early, none twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.exchange_relay import KeyClaim
from fedpalm.errors import (
    DuplicateExpertError,
    HashMismatchError,
    IdentityError,
    IllegalTransitionError,
    IntegrityError,
    MessageTooLargeError,
    NotFoundError,
    NotOnRosterError,
    SealedExpertError,
    SenderMismatchError,
    StateError,
    SwappedExpertError,
    WrongRecipientError,
)
from fedpalm.exchange import sealing
from fedpalm.exchange.sealing import (
    SIGNATURE_DOMAIN,
    SealedExpert,
    SealedHeader,
    max_sealed_bytes,
)
from fedpalm.pki.identity import Role
from fedpalm.pki.signing import sign
from fedpalm.rounds.receipt import PayloadReceipt
from tests.support.exchange_world import EXPERT, RUN, SITES, ExchangeWorld, altered, exchange_plan


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ExchangeWorld]:
    made = ExchangeWorld(tmp_path)
    yield made
    made.store.close()


def test_experts_reach_the_others_after_every_yes_and_are_then_erased(world: ExchangeWorld) -> None:
    world.play("sealing")
    world.told.clear()
    world.play("revealing")
    assert world.told == [(site, "reveal_keys") for site in SITES]
    for site in SITES:
        assert set(world.fetched(site)) == set(SITES) - {site}
    world.told.clear()
    world.play("delivering")
    assert world.told == [(site, "open_experts") for site in SITES]
    for site in SITES:
        for sender, expert in world.opened(site).items():
            np.testing.assert_array_equal(expert, world.experts[sender])
    world.told.clear()
    world.play()
    assert world.told == [(site, "exchange_closed") for site in SITES]
    assert world.files() == [] and world.rows("expert_keys") == 0
    assert world.rows("sealed_experts") == world.rows("expert_receipts") == 3


def test_the_coordinator_stores_no_expert_and_no_key_that_it_could_open(
    world: ExchangeWorld,
) -> None:
    world.play("delivering")
    stored = b"".join(path.read_bytes() for path in world.root.rglob("*") if path.is_file())
    for site in SITES:
        assert world.experts[site].tobytes() not in stored
        assert world.keys_of(site)[0].wrapped in stored


# --- sealed experts ---------------------------------------------------------------------------------


def test_no_expert_is_taken_before_every_site_has_said_yes(world: ExchangeWorld) -> None:
    world.propose()
    world.consent(*SITES[:2])
    with pytest.raises(StateError):
        world.send(SITES[0], b"whatever")
    assert world.files() == []


def test_no_expert_is_given_out_before_all_have_come_or_to_anybody_else(
    world: ExchangeWorld,
) -> None:
    world.play("sealing")
    world.send("amber")
    world.send("birch")
    with pytest.raises(StateError):
        world.relay.deliverable(RUN, world.exchange_id, "amber", "birch")
    world.send("cedar")
    for sender in ("birch", "mallory"):
        with pytest.raises(NotFoundError):
            world.relay.deliverable(RUN, world.exchange_id, sender, "birch")
    with pytest.raises(NotOnRosterError):
        world.relay.deliverable(RUN, world.exchange_id, "amber", "mallory")
    with pytest.raises(NotFoundError):
        world.relay.deliverable("another-run", world.exchange_id, "amber", "birch")


def test_bytes_that_are_not_a_sealed_expert_of_this_exchange_are_refused_and_deleted(
    world: ExchangeWorld,
) -> None:
    world.play("sealing")
    plain = world.experts["amber"].tobytes()
    own = world.sealing("amber")[0].to_bytes()
    for data in (plain, b"", world.sealing("birch")[0].to_bytes(), altered(own), own + b"x"):
        with pytest.raises((SealedExpertError, MessageTooLargeError)):
            world.send("amber", data)
        assert world.files() == []
    assert world.machine.sealed == {} and world.rows("sealed_experts") == 0
    world.send("amber", own)


def test_a_sealed_expert_of_an_earlier_exchange_is_refused(world: ExchangeWorld) -> None:
    world.play("sealing")
    earlier = world.sealing("amber")[0].to_bytes()
    world.desk.cancel(RUN, "olga")
    world.play("sealing")
    with pytest.raises(SealedExpertError):
        world.send("amber", earlier)
    assert world.files() == []


def test_an_expert_that_its_site_did_not_commit_to_is_refused(world: ExchangeWorld) -> None:
    world.play("sealing")
    sealed = world.sealing("amber")[0]
    header = SealedHeader.model_validate({**sealed.header.model_dump(), "expert_hash": "0" * 64})
    said = (header, sealed.key_hashes, sealed.ciphertext)
    signature = sign(
        world.identities["amber"].signing_key, SIGNATURE_DOMAIN, sealing._signed_bytes(*said)
    )
    with pytest.raises(SwappedExpertError):
        world.send("amber", SealedExpert(*said, signature).to_bytes())
    assert world.files() == []


def test_a_sealed_expert_has_a_size_that_the_plan_says(world: ExchangeWorld) -> None:
    world.play("sealing")
    most = max_sealed_bytes(EXPERT, len(SITES))
    claim = world.claim("amber", b"x")
    for size in (0, most + 1, 2**63):
        with pytest.raises(MessageTooLargeError):
            world.relay.check_sealed(replace(claim, payload_bytes=size))
    assert world.relay.check_sealed(replace(claim, payload_bytes=most)) is None


def test_the_second_of_two_that_announce_the_same_expert_is_told_so(world: ExchangeWorld) -> None:
    world.experts["birch"] = world.experts["amber"]
    world.play("sealing")
    world.send("amber")
    with pytest.raises(DuplicateExpertError, match="amber and birch announce the same expert"):
        world.send("birch")
    world.send("cedar")
    assert world.files() == ["amber", "cedar"] and world.state == "sealing"
    with pytest.raises(StateError):
        world.relay.deliverable(RUN, world.exchange_id, "amber", "birch")


def test_a_sealed_expert_again_gets_the_same_receipt_and_another_is_refused(
    world: ExchangeWorld,
) -> None:
    world.play("sealing")
    first = world.send("amber")
    world.kill()
    assert world.send("amber") == first
    data = world.sealing("amber")[0].to_bytes()
    del world.sealings[world.exchange_id, "amber"]
    with pytest.raises(HashMismatchError):
        world.send("amber")
    assert (world.spool.root / "exchange" / world.exchange_id / "amber").read_bytes() == data
    world.send("birch")
    world.send("cedar")
    assert world.send("amber", data) == first
    world.desk.cancel(RUN, "olga")
    assert world.send("amber", data) == first and world.files() == []


def test_the_receipt_of_a_sealed_expert_says_whose_and_of_what(world: ExchangeWorld) -> None:
    world.play("sealing")
    receipt = world.send("amber")
    said = PayloadReceipt.open(receipt, world.notary.anchors, now=world.clock.now())
    assert (said.site, said.payload) == ("amber", "sealed_expert")
    assert said.place == f"{RUN}/{world.exchange_id}"
    data = world.sealing("amber")[0].to_bytes()
    assert said.payload_hash == hashlib.sha256(data).hexdigest()
    assert list(world.runs.receipts(RUN, "amber")) == [receipt]
    assert list(world.runs.receipts(RUN, "birch")) == []


def test_bytes_that_a_killed_process_left_do_not_count(world: ExchangeWorld) -> None:
    world.play("sealing")
    data = world.sealing("amber")[0].to_bytes()
    world.relay.sealed_path(world.claim("amber", data)).write_bytes(data)
    world.kill()
    assert world.machine.sealed == {}
    with pytest.raises(StateError):
        world.reveal("amber", [])
    for site in SITES:
        world.send(site)
    assert world.state == "revealing"


# --- keys -------------------------------------------------------------------------------------------


def test_no_key_is_taken_before_every_sealed_expert_has_come(world: ExchangeWorld) -> None:
    world.play("sealing")
    world.send("amber")
    with pytest.raises(StateError, match="is sealing"):
        world.reveal("amber")
    assert world.rows("expert_keys") == 0


def test_no_key_is_given_out_before_all_have_come_and_only_to_its_recipient(
    world: ExchangeWorld,
) -> None:
    world.play("revealing")
    world.reveal("amber")
    world.reveal("birch")
    for site in SITES:
        with pytest.raises(StateError):
            world.relay.keys(RUN, world.exchange_id, site)
    world.reveal("cedar")
    for site in SITES:
        given = world.relay.keys(RUN, world.exchange_id, site)
        assert [(one.sender, one.recipient) for one in given] == [
            (other, site) for other in SITES if other != site
        ]
    with pytest.raises(NotOnRosterError):
        world.relay.keys(RUN, world.exchange_id, "mallory")


def test_keys_are_one_for_each_other_signer_as_the_sender_signed_them(world: ExchangeWorld) -> None:
    world.play("revealing")
    to_birch, to_cedar = world.keys_of("amber")
    foreign = world.keys_of("birch")
    for keys in (
        [],
        [to_birch],
        [to_birch, to_birch],
        [to_birch, to_cedar, to_cedar],
        [to_birch, replace(to_cedar, recipient="amber")],
        [to_birch, to_cedar, replace(to_cedar, recipient="mallory")],
        [replace(to_birch, wrapped=to_cedar.wrapped), replace(to_cedar, wrapped=to_birch.wrapped)],
        [to_birch, replace(to_cedar, wrapped=altered(to_cedar.wrapped, 5))],
        [to_birch, replace(to_cedar, wrapped=to_cedar.wrapped[:-1])],
        [to_birch, replace(to_cedar, wrapped=b"")],
        [to_birch, KeyClaim("amber", "cedar", foreign[1].wrapped)],
    ):
        with pytest.raises(WrongRecipientError):
            world.reveal("amber", keys)
    for keys in (foreign, [to_birch, replace(to_cedar, sender="birch")]):
        with pytest.raises(SenderMismatchError):
            world.reveal("amber", keys)
    assert world.rows("expert_keys") == 0 and world.machine.revealed == frozenset()
    world.reveal("amber", [to_cedar, to_birch])
    assert world.machine.revealed == {"amber"}


def test_keys_again_change_nothing_and_are_checked_as_before(world: ExchangeWorld) -> None:
    world.play("revealing")
    world.reveal("amber")
    world.kill()
    world.reveal("amber")
    first, second = world.keys_of("amber")
    with pytest.raises(WrongRecipientError):
        world.reveal("amber", [first, replace(second, wrapped=altered(second.wrapped, 5))])
    world.play("delivering")
    world.told.clear()
    world.reveal("amber")
    assert world.told == [] and world.rows("expert_keys") == 6


def test_a_stored_expert_that_was_altered_takes_no_keys(world: ExchangeWorld) -> None:
    world.play("revealing")
    path = world.spool.sealed(world.exchange_id, "amber")
    whole = path.read_bytes()
    for damaged in (b"", altered(whole)):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match="gone or altered"):
            world.reveal("amber")
    path.unlink()
    with pytest.raises(IntegrityError, match="gone or altered"):
        world.reveal("amber")
    path.write_bytes(whole)
    world.reveal("amber")


# --- receipts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["sealing", "revealing"])
def test_nobody_confirms_what_it_cannot_have_opened(world: ExchangeWorld, state: str) -> None:
    world.play(state)
    with pytest.raises(StateError):
        world.confirm("amber")
    assert world.rows("expert_receipts") == 0


def test_a_receipt_is_the_sites_own_and_for_what_was_relayed(world: ExchangeWorld) -> None:
    world.play("delivering")
    mine = world.receipt_of("amber")
    signer = world.identities["amber"]
    wrong: list[dict[str, Any]] = [
        {"experts": {}},
        {"experts": {**mine.experts, "birch": "0" * 64}},
        {"experts": {"birch": mine.experts["cedar"]}},
        {"experts": {**mine.experts, "amber": "0" * 64}},
        {"sanction": "0" * 64},
        {"exchange_id": "exchange-other"},
        {"run": "another-run"},
    ]
    for changes in wrong:
        with pytest.raises(HashMismatchError):
            world.confirm("amber", world.receipt_of("amber", **changes).sign(signer))
    foreign = world.receipt_of("birch").sign(world.identities["birch"])
    with pytest.raises(SenderMismatchError):
        world.confirm("amber", foreign)
    forged = replace(mine.sign(signer), signature=foreign.signature)
    with pytest.raises(IdentityError):
        world.confirm("amber", forged)
    later = world.authority.enrol(Role.PARTICIPANT, "amber")
    with pytest.raises(IdentityError, match="not that of site amber"):
        world.confirm("amber", mine.sign(later))
    assert world.machine.delivered == frozenset() and world.rows("expert_receipts") == 0


def test_a_receipt_may_name_fewer_experts_than_were_relayed(world: ExchangeWorld) -> None:
    """One sender gave bytes that nobody can open: the others' experts are exchanged all the same."""
    world.play("delivering")
    for site in SITES:
        signer, experts = world.identities[site], dict(world.receipt_of(site).experts)
        experts.pop("cedar", None)
        receipt = world.receipt_of(site, experts=experts).sign(signer)
        world.confirm(site, receipt)
        world.kill()
        world.confirm(site, receipt)
    assert world.state == "completed" and world.machine.failed == {}
    assert world.machine.missing == {"amber": ("cedar",), "birch": ("cedar",)}
    assert world.machine.reason == "amber could not open cedar; birch could not open cedar"


def test_a_receipt_again_changes_nothing_and_another_is_refused(world: ExchangeWorld) -> None:
    world.play("delivering")
    world.confirm("amber")
    world.kill()
    world.confirm("amber")
    other = world.receipt_of("amber", experts={}).sign(world.identities["amber"])
    with pytest.raises(HashMismatchError):
        world.confirm("amber", other)
    mine = world.receipt_of("amber").sign(world.identities["amber"])
    fewer = world.receipt_of("amber", experts={"birch": world.receipt_of("amber").experts["birch"]})
    with pytest.raises(HashMismatchError, match="another receipt"):
        world.confirm("amber", fewer.sign(world.identities["amber"]))
    assert world.machine.missing == {}
    world.play()
    world.confirm("amber", mine)
    with pytest.raises(StateError):
        world.confirm("amber", other)
    stored = world.records.receipt(world.exchange_id, "amber")
    assert stored is not None and stored.statement == mine.statement


def test_who_refused_has_no_part_in_keys_or_receipts(tmp_path: Path) -> None:
    world = ExchangeWorld(tmp_path, plan=exchange_plan(exchange_without_refusers=True))
    world.propose()
    world.refuse("birch")
    world.play("revealing", sites=("amber", "cedar"))
    (key,) = world.keys_of("amber")
    with pytest.raises(WrongRecipientError):
        world.reveal("amber", [key, replace(key, recipient="birch")])
    with pytest.raises(NotOnRosterError):
        world.reveal("birch", [])
    world.play("delivering", sites=("amber", "cedar"))
    refuser = world.receipt_of("amber").model_copy(update={"site": "birch"})
    with pytest.raises((NotOnRosterError, IllegalTransitionError)):
        world.confirm("birch", refuser.sign(world.identities["birch"]))
    world.store.close()
