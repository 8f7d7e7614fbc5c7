"""Exchanges at the coordinator as time passes: certificates end, sites leave, it restarts, it expires."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import timedelta

import pytest

from coordinator.exchange_records import ExchangeRecords
from coordinator.status import run_status
from fedpalm.errors import (
    ConsentError,
    SanctionExpiredError,
    StateError,
)
from fedpalm.pki.identity import COORDINATOR_NAME, Role
from tests.support.agreement import Unchanging
from tests.support.exchange_world import (
    DAY_MS,
    RUN,
    SITES,
    ExchangeWorld,
)
from tests.support.pki import TestAuthority

# --- certificates -----------------------------------------------------------------------------------


def replace_authority(world: ExchangeWorld) -> None:
    """The CA is replaced and the old anchor retired; sites keep their signing keys."""
    old, world.authority = world.authority, TestAuthority("simulated")
    hub = world.authority.enrol(Role.COORDINATOR, COORDINATOR_NAME)
    past = old.authority.anchors
    world.notary._identity = Unchanging(dataclasses.replace(hub, past_anchors=past))


def outlive(world: ExchangeWorld) -> None:
    """The certificates of the consents end; sites have newer ones of the same keys."""
    world.clock.advance(40 * 86400)


@pytest.mark.parametrize("happens", [replace_authority, outlive])
@pytest.mark.parametrize("state", ["sealing", "revealing", "delivering"])
def test_a_yes_goes_on_to_count_after_its_certificate_over_a_restart(
    world: ExchangeWorld, state: str, happens: Callable[[ExchangeWorld], None]
) -> None:
    world.propose(valid_ms=60 * DAY_MS)
    world.play(state)
    before = world.sanction.hash
    happens(world)
    world.kill()
    assert world.sanction.hash == before


def test_a_yes_under_a_certificate_that_has_ended_or_of_a_retired_anchor_is_not_taken(
    world: ExchangeWorld,
) -> None:
    world.propose(valid_ms=60 * DAY_MS)
    replace_authority(world)
    with pytest.raises(ConsentError):
        world.consent("amber")
    outlive(world)
    with pytest.raises(ConsentError):
        world.consent("amber")


def test_the_expiry_ends_a_sanction_whatever_the_certificates(world: ExchangeWorld) -> None:
    world.play("sealing")
    machine = world.machine
    world.clock.advance(40 * 86400)
    with pytest.raises(SanctionExpiredError):
        world.desk.sanction(machine)


def test_the_status_warns_of_certificates_that_end_before_the_exchange(
    world: ExchangeWorld,
) -> None:
    week, days = timedelta(days=7), timedelta(days=8)
    world.identities["birch"] = world.authority.enrol(Role.PARTICIPANT, "birch", lifetime=week)
    world.propose(valid_ms=8 * DAY_MS)
    (warning,) = run_status(RUN, world.conductor, world.desk).warnings
    assert "before the exchange expires: birch;" in warning
    world.consent("birch")
    renewed = world.authority.enrol(Role.PARTICIPANT, "birch", lifetime=2 * days)
    consented, world.identities["birch"] = world.identities["birch"], renewed
    assert world.desk.uncertified(world.machine) == ["birch"], "its yes is under the earlier one"
    world.identities["birch"] = consented
    world.play("revealing")
    assert list(run_status(RUN, world.conductor, world.desk).warnings) == []


# --- sites that leave -------------------------------------------------------------------------------


def test_a_site_that_is_revoked_once_the_keys_are_out_keeps_nobody_from_opening(
    world: ExchangeWorld,
) -> None:
    world.play("delivering")
    world.absent = frozenset({"cedar"})
    with pytest.raises(StateError, match="cedar left the federation"):
        world.relay.keys(RUN, world.exchange_id, "cedar")
    assert set(world.opened("birch")) == {"amber", "cedar"}
    world.confirm("birch")
    world.desk.expel("cedar", "revoked by the operator")
    world.desk.expel("birch", "revoked by the operator")
    assert world.state == "delivering"
    assert world.machine.failed == {"cedar": "it was revoked by the operator"}
    world.confirm("amber")
    assert world.state == "completed" and world.machine.delivered == {"amber", "birch"}


@pytest.mark.parametrize("state", ["proposed", "sealing", "revealing"])
def test_an_exchange_ends_when_a_site_that_it_waits_for_is_revoked(
    world: ExchangeWorld, state: str
) -> None:
    world.play(state)
    world.told.clear()
    world.desk.expel("birch", "revoked by the operator")
    assert world.state == "cancelled" and world.files() == []
    assert world.machine.reason == "the coordinator: site birch was revoked by the operator"
    assert world.told == [(site, "exchange_closed") for site in SITES]
    world.told.clear()
    world.desk.expel("birch", "revoked by the operator")
    assert world.told == []


def test_an_exchange_of_others_goes_on_when_a_site_is_revoked(world: ExchangeWorld) -> None:
    world.propose()
    world.desk.expel("stranger", "revoked by the operator")
    assert world.state == "proposed"


@pytest.mark.parametrize("consented", [False, True])
def test_a_site_that_is_revoked_before_all_have_answered_counts_as_a_no_where_that_ends_nothing(
    lenient: ExchangeWorld, consented: bool
) -> None:
    lenient.propose()
    lenient.consent("amber", *(["birch"] if consented else []))
    lenient.told.clear()
    lenient.desk.expel("birch", "revoked by the operator")
    assert lenient.machine.refused == {"birch": "it was revoked by the operator"}
    assert lenient.told == [("cedar", "exchange_proposed")]
    lenient.consent("cedar")
    assert lenient.state == "sealing" and lenient.machine.signers == ("amber", "cedar")
    lenient.desk.expel("birch", "cut off or admitted anew")
    assert lenient.state == "sealing"
    lenient.desk.expel("cedar", "revoked by the operator")
    assert lenient.state == "cancelled"


def test_from_the_revocation_on_nobody_is_told_to_seal_or_given_anything(
    world: ExchangeWorld,
) -> None:
    """The registry says so a moment before the exchange is ended."""
    world.propose()
    world.consent("cedar", "amber")
    world.absent = frozenset({"cedar"})
    world.told.clear()
    with pytest.raises(StateError, match="cedar left the federation"):
        world.consent("birch")
    assert world.told == []
    world.absent = frozenset()
    world.play("revealing")
    world.absent = frozenset({"cedar"})
    for attempt in (
        lambda: world.desk.consents(RUN, world.exchange_id, "amber"),
        lambda: world.relay.deliverable(RUN, world.exchange_id, "amber", "birch"),
        lambda: world.reveal("birch"),
    ):
        with pytest.raises(StateError, match="cedar left the federation"):
            attempt()
    assert world.machine.revealed == frozenset()


def test_a_revoked_site_that_had_refused_holds_up_nobody(lenient: ExchangeWorld) -> None:
    lenient.propose()
    lenient.refuse("birch")
    lenient.absent = frozenset({"birch"})
    lenient.play(sites=("amber", "cedar"))
    assert lenient.state == "completed"


# --- time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["proposed", "sealing", "revealing", "delivering"])
def test_an_exchange_whose_time_is_over_ends_by_itself(world: ExchangeWorld, state: str) -> None:
    world.play(state)
    world.clock.advance(7 * 86400 - 1)
    world.desk.expire()
    assert world.state == state
    world.clock.advance(2)
    world.told.clear()
    world.desk.expire()
    assert world.state == "cancelled" and "expired" in world.machine.reason
    assert world.told == [(site, "exchange_closed") for site in SITES]
    assert world.files() == [] and world.rows("expert_keys") == 0


def test_what_some_have_opened_in_time_is_exchanged(world: ExchangeWorld) -> None:
    world.play("delivering")
    world.confirm("amber")
    world.clock.advance(8 * 86400)
    with pytest.raises(SanctionExpiredError):
        world.relay.keys(RUN, world.exchange_id, "birch")
    assert world.state == "completed" and world.desk.completed(RUN)
    assert world.machine.failed == {"birch": "expired", "cedar": "expired"}
    closed = [one.exchange_closed.completed for _, one in world.heard[-3:]]
    assert closed == [True, False, False]
    assert world.files() == [] and world.rows("expert_keys") == 0


@pytest.mark.parametrize(
    ("state", "call"),
    [
        ("proposed", lambda world: world.consent("amber")),
        ("sealing", lambda world: world.desk.consents(RUN, world.exchange_id, "amber")),
        ("sealing", lambda world: world.send("amber", b"x")),
        (
            "revealing",
            lambda world: world.relay.deliverable(RUN, world.exchange_id, "amber", "birch"),
        ),
        ("revealing", lambda world: world.reveal("amber", [])),
        ("delivering", lambda world: world.relay.keys(RUN, world.exchange_id, "amber")),
    ],
)
def test_whatever_comes_too_late_finds_it_ended(world, state, call) -> None:  # type: ignore[no-untyped-def]
    world.play(state)
    world.clock.advance(8 * 86400)
    with pytest.raises(SanctionExpiredError):
        call(world)
    assert world.state == "cancelled"
    world.kill()
    assert world.state == "cancelled" and world.files() == []


def test_who_connects_too_late_hears_that_it_is_over(world: ExchangeWorld) -> None:
    world.propose()
    world.kill()
    world.clock.advance(8 * 86400)
    world.desk.site_connected("amber")
    assert world.state == "cancelled" and "exchange_proposed" not in dict(world.told).values()


def test_an_expired_exchange_stands_in_nobodys_way(world: ExchangeWorld) -> None:
    world.propose()
    world.clock.advance(8 * 86400)
    world.propose()
    assert (world.state, world.machine.terms.number) == ("proposed", 2)


# --- restarts ---------------------------------------------------------------------------------------


def test_a_site_that_dials_in_hears_what_it_owes_also_after_a_restart(world: ExchangeWorld) -> None:
    world.propose()
    world.consent("amber")
    owed = {"proposed": "exchange_proposed", "sealing": "seal_experts"}
    owed |= {"revealing": "reveal_keys", "delivering": "open_experts"}
    for state, step in (
        ("proposed", world.consent),
        ("sealing", world.send),
        ("revealing", world.reveal),
        ("delivering", world.confirm),
    ):
        world.play(state)
        step("amber")
        world.kill()
        for site in SITES:
            world.desk.site_connected(site)
        assert world.told == [("birch", owed[state]), ("cedar", owed[state])]
        step("birch")
        step("cedar")
    world.kill()
    world.desk.site_connected("cedar")
    assert world.told == [("cedar", "exchange_closed")]
    assert world.files() == []


def test_a_site_that_missed_the_end_of_an_exchange_hears_of_it_before_the_next_one(
    world: ExchangeWorld,
) -> None:
    """It takes up no proposal while it believes that an earlier one goes on."""
    world.propose(valid_ms=DAY_MS)
    world.consent("amber")
    first = world.exchange_id
    world.clock.advance(2 * 86400)
    world.propose()
    second = world.exchange_id
    world.desk.cancel(RUN, "olga")
    world.propose()
    world.kill()
    world.heard.clear()
    world.desk.site_connected("amber")
    assert [
        (str(one.WhichOneof("kind")), getattr(one, one.WhichOneof("kind")).ref.exchange_id)
        for _, one in world.heard
    ] == [
        ("exchange_closed", first),
        ("exchange_closed", second),
        ("exchange_proposed", world.exchange_id),
    ]


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("state", "after", "owed"),
    [
        ("proposed", "sealing", "seal_experts"),
        ("sealing", "revealing", "reveal_keys"),
        ("revealing", "delivering", "open_experts"),
        ("delivering", "completed", "exchange_closed"),
    ],
)
def test_a_kill_at_the_step_of_the_last_site_loses_nothing(
    world: ExchangeWorld,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    after: str,
    owed: str,
    stored: bool,
) -> None:
    world.play(state)
    step = {
        "proposed": world.consent,
        "sealing": world.send,
        "revealing": world.reveal,
        "delivering": world.confirm,
    }[state]
    step("amber")
    step("birch")
    save = ExchangeRecords.save

    def killed(*args: object) -> None:
        if stored:
            save(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ExchangeRecords, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            step("cedar")
    world.kill()
    assert world.state == (after if stored else state)
    for site in SITES:
        world.desk.site_connected(site)
    if stored:
        assert world.told == [(site, owed) for site in SITES]
    else:
        assert [site for site, _ in world.told] == ["cedar"]
        step("cedar")
    if after == "completed":
        assert world.files() == [] and world.rows("expert_keys") == 0
    else:
        world.play()


def test_files_that_a_killed_process_left_of_an_ended_exchange_go_at_the_next_start(
    world: ExchangeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.play("revealing")
    monkeypatch.setattr("coordinator.spool._erase", lambda _: None)
    world.desk.cancel(RUN, "olga")
    assert world.files() == list(SITES)
    world.kill()
    assert world.files() == []
