"""Exchanges at the coordinator: proposed once, true consents only, refusals that count, an end in time."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path

import pytest
from rich.console import Console

from coordinator.cli.view import exchange_json, exchange_text, run_json
from coordinator.status import run_status
from fedpalm.errors import (
    ConfigError,
    ConsentError,
    IdentityError,
    IllegalTransitionError,
    NotFoundError,
    NotOnRosterError,
    RefusedError,
    ResourceError,
    StateError,
)
from fedpalm.pki.identity import Role
from fedpalm.rounds.run import (
    AbortRun,
    RunState,
)
from fedpalm.wire.limits import check_limits
from tests.support.exchange_world import (
    DAY_MS,
    PURPOSE,
    RUN,
    SITES,
    ExchangeWorld,
    after_round_1,
    exchange_plan,
)

# --- proposals --------------------------------------------------------------------------------------


def test_a_proposal_is_signed_and_says_what_the_operator_said_and_the_plan_decides(
    world: ExchangeWorld,
) -> None:
    world.propose(valid_ms=DAY_MS)
    assert world.told == [(site, "exchange_proposed") for site in SITES]
    for terms in world.heard_terms():
        assert terms == world.machine.terms
        assert terms.are_of(world.plan, RUN)
        assert (terms.number, terms.purpose, terms.without_refusers) == (1, PURPOSE, False)
        assert terms.expires_ms == round(world.clock.now() * 1000) + DAY_MS
    assert world.machine.operator == "olga"


@pytest.mark.parametrize("purpose", ["", "  ", "two\nlines", "x\x1b[2J", "ä" * 101])
def test_a_purpose_is_one_line_of_text(world: ExchangeWorld, purpose: str) -> None:
    with pytest.raises(ConfigError, match="the purpose is one line"):
        world.desk.propose(RUN, "olga", purpose, DAY_MS)
    assert world.desk.of_run(RUN) is None


@pytest.mark.parametrize("valid_ms", [0, 91 * DAY_MS, 2**63])
def test_an_exchange_is_valid_for_some_time_and_not_for_ever(
    world: ExchangeWorld, valid_ms: int
) -> None:
    with pytest.raises(ConfigError, match="at most 90 days"):
        world.propose(valid_ms=valid_ms)
    assert world.desk.of_run(RUN) is None


def test_numbers_count_the_exchanges_of_a_plan_over_runs_cancellations_and_restarts(
    world: ExchangeWorld,
) -> None:
    for number in (1, 2):
        world.propose()
        assert world.machine.terms.number == number
        world.desk.cancel(RUN, "olga")
        world.kill()
    world.add_run(world.store, "trained-again")
    world.kill()
    world.propose("trained-again")
    again = world.desk.of_run("trained-again")
    assert again is not None and again.terms.number == 3
    assert world.machine.terms.number == 2
    assert len({terms.exchange_id for terms in world.heard_terms()}) == 3


def test_a_number_is_never_given_twice_even_if_the_desk_forgot(world: ExchangeWorld) -> None:
    world.propose()
    with pytest.raises(sqlite3.IntegrityError):
        world.store.query(
            "INSERT INTO exchanges SELECT 'other', run_id, plan_hash, number, terms, state, created_ms "
            "FROM exchanges"
        )


def test_a_proposal_that_cannot_be_signed_or_stored_leaves_nothing(
    world: ExchangeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        def refuse(_: object) -> None:
            raise ResourceError("nothing can be signed")

        patched.setattr(world.notary, "exchange_terms", refuse)
        with pytest.raises(ResourceError):
            world.propose()
    assert world.told == [] and world.desk.of_run(RUN) is None
    assert world.rows("exchanges") == 0
    world.propose()
    assert world.machine.terms.number == 1


def test_an_exchange_follows_a_completed_run_and_there_is_one_at_a_time(
    world: ExchangeWorld, tmp_path: Path
) -> None:
    world.propose()
    with pytest.raises(StateError, match="releases its experts once"):
        world.propose()
    world.desk.cancel(RUN, "olga")
    first = world.exchange_id
    world.propose()
    assert world.exchange_id != first

    running = ExchangeWorld(tmp_path / "running", state=RunState.CREATED)
    with pytest.raises(StateError, match="after its last round"):
        running.propose()
    running.conductor.feed(RUN, AbortRun("enough"))
    with pytest.raises(StateError, match="after its last round"):
        running.propose()
    with pytest.raises(NotFoundError):
        running.desk.cancel(RUN, "olga")
    running.store.close()


def test_a_plan_releases_once_whichever_of_its_runs(world: ExchangeWorld) -> None:
    world.add_run(world.store, "trained-again")
    world.kill()
    world.play()
    for run_id in (RUN, "trained-again"):
        with pytest.raises(StateError, match="releases its experts once"):
            world.propose(run_id)


def test_a_cancelled_exchange_in_which_a_site_has_sealed_has_no_successor(
    world: ExchangeWorld,
) -> None:
    world.play("sealing")
    world.desk.cancel(RUN, "olga")
    world.play("sealing")
    world.send("amber")
    world.desk.cancel(RUN, "olga")
    with pytest.raises(StateError, match=r"amber sealed an expert .* seals once") as caught:
        world.propose()
    assert "plan amend" in caught.value.next_step
    world.kill()
    with pytest.raises(StateError, match="amber sealed"):
        world.propose()


def test_where_it_goes_on_without_refusers_two_that_have_not_sealed_are_enough(
    lenient: ExchangeWorld,
) -> None:
    lenient.play("sealing")
    lenient.send("amber")
    lenient.desk.cancel(RUN, "olga")
    lenient.propose()
    lenient.refuse("amber", "sealed already")
    lenient.consent("birch", "cedar")
    lenient.send("birch")
    lenient.desk.cancel(RUN, "olga")
    with pytest.raises(StateError, match="amber, birch sealed"):
        lenient.propose()


def test_an_exchange_that_a_site_cannot_agree_to_is_not_proposed_and_the_site_is_named(
    world: ExchangeWorld, tmp_path: Path
) -> None:
    world.absent = frozenset({"birch", "somebody-else"})
    with pytest.raises(StateError, match="revoked or left the run: birch\n") as caught:
        world.propose()
    assert "plan amend" in caught.value.next_step
    world.absent = frozenset()
    world.propose()
    gone = ExchangeWorld(tmp_path / "gone", expelled=frozenset({"cedar"}))
    with pytest.raises(StateError, match="cedar"):
        gone.propose()
    gone.store.close()


def test_a_site_that_cannot_come_counts_as_a_no_where_that_ends_nothing(
    lenient: ExchangeWorld,
) -> None:
    lenient.absent = frozenset({"birch"})
    lenient.propose()
    assert lenient.told == [(site, "exchange_proposed") for site in ("amber", "cedar")]
    lenient.kill()
    lenient.consent("amber", "cedar")
    assert lenient.state == "sealing" and lenient.machine.signers == ("amber", "cedar")
    lenient.desk.cancel(RUN, "olga")
    lenient.absent = frozenset({"birch", "cedar"})
    with pytest.raises(StateError, match="two sites of its roster at least"):
        lenient.propose()


# --- consents ---------------------------------------------------------------------------------------


def test_nobody_is_asked_to_seal_before_every_site_has_said_yes(world: ExchangeWorld) -> None:
    world.propose()
    world.consent(*SITES[:2])
    with pytest.raises(StateError):
        world.desk.consents(RUN, world.exchange_id, SITES[0])
    world.told.clear()
    world.consent(SITES[2])
    assert world.told == [(site, "seal_experts") for site in SITES]
    given = [world.signed_consent(site).statement for site in SITES]
    for site in SITES:
        relayed = world.desk.consents(RUN, world.exchange_id, site)
        assert [one.statement for one in relayed] == given


def test_a_yes_again_changes_nothing_and_another_is_refused(world: ExchangeWorld) -> None:
    world.propose()
    world.consent("amber")
    world.kill()
    world.consent("amber")
    other = world.signed_consent("amber", log_size=8)
    with pytest.raises(RefusedError):
        world.desk.consent(RUN, world.exchange_id, "amber", other)
    world.consent("birch", "cedar")
    world.told.clear()
    world.consent("amber")
    with pytest.raises(RefusedError):
        world.desk.consent(RUN, world.exchange_id, "amber", other)
    assert world.told == [] and world.rows("consents") == 3
    assert world.machine.consents["amber"] == world.signed_consent("amber").hash


def test_a_yes_that_somebody_else_signed_or_sent_does_not_count(world: ExchangeWorld) -> None:
    world.propose()
    with pytest.raises(IdentityError):
        world.consent_of("amber").sign(world.identities["birch"])
    amber, birch = world.signed_consent("amber"), world.signed_consent("birch")
    forged = type(amber)(amber.statement, birch.signature, birch.chain)
    with pytest.raises(ConsentError):
        world.desk.consent(RUN, world.exchange_id, "amber", forged)
    with pytest.raises(NotOnRosterError):
        world.desk.consent(RUN, world.exchange_id, "birch", amber)
    assert world.machine.consents == {} and world.rows("consents") == 0


def test_a_yes_to_other_terms_does_not_count(world: ExchangeWorld) -> None:
    world.propose()
    stale = world.signed_consent("amber")
    longer = world.machine.terms.model_copy(update={"expires_ms": 2**52})
    world.desk.cancel(RUN, "olga")
    world.propose()
    for signed in (stale, world.signed_consent("amber", terms=longer)):
        with pytest.raises(ConsentError):
            world.desk.consent(RUN, world.exchange_id, "amber", signed)


@pytest.mark.parametrize("field", ["recipient_key", "commitment"])
def test_nobody_says_yes_with_what_is_another_sites(world: ExchangeWorld, field: str) -> None:
    """Or the sanction would hold for nobody, once everybody has said yes."""
    world.propose()
    world.consent("amber")
    copied = getattr(world.consent_of("amber"), field)
    with pytest.raises(ConsentError, match=f"{field.replace('_', ' ')} of birch is that of amber"):
        world.desk.consent(
            RUN, world.exchange_id, "birch", world.signed_consent("birch", **{field: copied})
        )
    world.consent("birch", "cedar")
    assert world.state == "sealing"


def test_a_yes_that_was_signed_with_an_earlier_key_is_none(world: ExchangeWorld) -> None:
    world.propose()
    stale = world.signed_consent("cedar")
    world.identities["cedar"] = world.authority.enrol(Role.PARTICIPANT, "cedar")
    with pytest.raises(IdentityError, match="not that of site cedar"):
        world.desk.consent(RUN, world.exchange_id, "cedar", stale)
    assert world.machine.consents == {}
    world.consent("cedar")
    assert set(world.machine.consents) == {"cedar"}


def test_a_yes_whose_storing_is_killed_is_asked_for_again(
    world: ExchangeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.propose()
    world.consent("amber", "birch")
    with monkeypatch.context() as patched:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr("coordinator.exchange_records.json.dumps", killed)
        with pytest.raises(KeyboardInterrupt):
            world.consent("cedar")
    world.kill()
    assert world.rows("consents") == 2 and world.state == "proposed"
    for site in SITES:
        world.desk.site_connected(site)
    assert world.told == [("cedar", "exchange_proposed")]
    world.consent("cedar")
    assert world.state == "sealing"


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["proposed", "sealing", "revealing"])
def test_one_no_ends_the_exchange_for_all_and_erases_what_came(
    world: ExchangeWorld, state: str
) -> None:
    world.play(state)
    if state == "sealing":
        world.send("amber")
    world.told.clear()
    world.refuse("cedar")
    world.refuse("cedar")
    assert world.told == [(site, "exchange_closed") for site in SITES]
    assert world.machine.reason == "cedar refused: not today"
    assert world.files() == [] and world.rows("expert_keys") == 0
    with pytest.raises(StateError):
        world.desk.consents(RUN, world.exchange_id, "amber")
    with pytest.raises(StateError):
        world.relay.keys(RUN, world.exchange_id, "amber")


def test_a_no_once_the_keys_are_out_keeps_nobody_from_opening(world: ExchangeWorld) -> None:
    """Or one signer could open everybody's expert, and see to it that nobody else opens any."""
    world.play("delivering")
    world.opened("cedar")
    world.told.clear()
    world.refuse("cedar")
    assert world.told == [] and world.state == "delivering"
    with pytest.raises(StateError, match="cedar is out of"):
        world.relay.keys(RUN, world.exchange_id, "cedar")
    with pytest.raises(StateError, match="cedar is out of"):
        world.confirm("cedar")
    world.kill()
    for site in ("amber", "birch"):
        assert set(world.opened(site)) == set(SITES) - {site}
        world.confirm(site)
    assert world.state == "completed" and world.machine.failed == {"cedar": "not today"}
    closed = [one.exchange_closed for _, one in world.heard[-3:]]
    assert [one.completed for one in closed] == [True, True, False]
    assert {one.reason for one in closed} == {"cedar did not open: not today"}
    assert world.files() == [] and world.rows("expert_keys") == 0
    world.refuse("cedar", "again")
    assert world.state == "completed"


def test_once_the_keys_are_out_an_operator_cannot_take_them_back(world: ExchangeWorld) -> None:
    world.play("revealing")
    world.reveal("amber")
    world.desk.cancel(RUN, "olga")
    assert world.state == "cancelled" and world.rows("expert_keys") == 0


def test_a_cancel_that_would_keep_experts_from_some_alone_is_refused(world: ExchangeWorld) -> None:
    world.play("delivering")
    with pytest.raises(StateError, match="nothing can be taken back") as caught:
        world.desk.cancel(RUN, "olga")
    assert "ends by itself" in caught.value.next_step
    world.play()


def test_a_no_is_too_late_when_everybody_has_opened(world: ExchangeWorld) -> None:
    world.play()
    with pytest.raises(IllegalTransitionError):
        world.refuse("cedar")
    assert world.state == "completed"


def test_the_reason_of_a_no_is_one_line_that_moves_no_terminal(world: ExchangeWorld) -> None:
    world.propose()
    world.refuse("birch", "no\x1b[2J\nStatus: completed\u202e")
    assert "no\ufffd[2J Status: completed\ufffd" in world.machine.reason
    assert not set("\x1b\n\u202e") & set(world.machine.reason)


def test_where_the_plan_says_so_it_goes_on_without_a_site_that_refuses(
    lenient: ExchangeWorld,
) -> None:
    lenient.propose()
    lenient.consent("amber", "birch")
    lenient.refuse("birch")
    lenient.refuse("birch", "again")
    with pytest.raises(RefusedError):
        lenient.consent("birch")
    lenient.told.clear()
    lenient.consent("cedar")
    assert lenient.machine.refused == {"birch": "not today"}
    assert lenient.told == [
        *((site, "seal_experts") for site in ("amber", "cedar")),
        ("birch", "exchange_closed"),
    ]
    relayed = lenient.desk.consents(RUN, lenient.exchange_id, "amber")
    assert len(relayed) == 2 and lenient.sanction.signers == ("amber", "cedar")
    for given_out in (
        lambda: lenient.desk.consents(RUN, lenient.exchange_id, "birch"),
        lambda: lenient.consent("birch"),
        lambda: lenient.send("birch", b"x"),
        lambda: lenient.relay.deliverable(RUN, lenient.exchange_id, "amber", "birch"),
        lambda: lenient.relay.keys(RUN, lenient.exchange_id, "birch"),
    ):
        with pytest.raises((RefusedError, StateError)):
            given_out()
    lenient.refuse("birch", "and again")
    lenient.told.clear()
    lenient.play(sites=("amber", "cedar"))
    assert ("birch", "exchange_closed") in lenient.told
    assert ("birch", "open_experts") not in lenient.told


def test_it_does_not_go_on_with_one_site(lenient: ExchangeWorld) -> None:
    lenient.propose()
    lenient.refuse("amber")
    lenient.refuse("birch")
    lenient.consent("cedar")
    assert lenient.state == "cancelled" and "too few are left" in lenient.machine.reason


def test_a_no_of_a_signer_ends_it_there_too(lenient: ExchangeWorld) -> None:
    lenient.propose()
    lenient.refuse("birch")
    lenient.consent("amber", "cedar")
    lenient.refuse("cedar")
    assert lenient.state == "cancelled"


def test_a_silent_site_is_waited_for_until_the_operator_closes_the_answers(
    lenient: ExchangeWorld,
) -> None:
    lenient.propose()
    lenient.consent("amber")
    with pytest.raises(RefusedError, match="fewer than two"):
        lenient.desk.close_answers(RUN, "olga")
    lenient.consent("birch")
    lenient.told.clear()
    lenient.desk.close_answers(RUN, "olga")
    assert lenient.state == "sealing" and lenient.machine.signers == ("amber", "birch")
    assert lenient.told == [
        ("amber", "seal_experts"),
        ("birch", "seal_experts"),
        ("cedar", "exchange_closed"),
    ]
    with pytest.raises(RefusedError, match=r"goes on without cedar.*operator olga"):
        lenient.consent("cedar")
    lenient.kill()
    lenient.desk.site_connected("cedar")
    assert lenient.told == [("cedar", "exchange_closed")]
    with pytest.raises(IllegalTransitionError):
        lenient.desk.close_answers(RUN, "olga")
    lenient.play(sites=("amber", "birch"))


def test_answers_are_not_closed_without_a_site_that_must_say_yes_or_with_one_that_leaves(
    world: ExchangeWorld, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError):
        world.desk.close_answers(RUN, "olga")
    world.propose()
    world.consent("amber", "birch")
    with pytest.raises(RefusedError, match="waits for every site"):
        world.desk.close_answers(RUN, "olga")
    plan = exchange_plan(exchange_without_refusers=True)
    lenient = ExchangeWorld(tmp_path / "lenient", plan=plan)
    lenient.propose()
    lenient.consent("amber", "birch")
    lenient.absent = frozenset({"birch"})
    with pytest.raises(StateError, match="birch left the federation"):
        lenient.desk.close_answers(RUN, "olga")
    assert world.state == lenient.state == "proposed"
    lenient.store.close()


# --- what the operator sees -------------------------------------------------------------------------


def text_of(world: ExchangeWorld) -> str:
    console = Console(width=200, file=io.StringIO(), highlight=False)
    console.print(exchange_text(run_status(RUN, world.conductor, world.desk)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_status_says_who_has_done_what(lenient: ExchangeWorld) -> None:
    assert "no exchange was proposed" in text_of(lenient)
    lenient.propose()
    lenient.refuse("cedar")
    lenient.consent("amber")
    assert "birch" in text_of(lenient).partition("waiting for")[2]
    lenient.consent("birch")
    lenient.send("amber")
    status = run_status(RUN, lenient.conductor, lenient.desk)
    shown = exchange_json(status.exchange)
    assert shown == run_json(status)["exchange"]
    assert shown == {
        "exchange_id": lenient.exchange_id,
        "state": "sealing",
        "number": 1,
        "purpose": PURPOSE,
        "expires_ms": lenient.machine.terms.expires_ms,
        "consented": ["amber", "birch"],
        "refused": ["cedar"],
        "sealed": ["amber"],
        "revealed": [],
        "delivered": [],
        "unopened": [],
        "reason": "",
    }
    for said in ("number 1 of this plan", "sealing", PURPOSE, "amber, birch", "cedar"):
        assert said in text_of(lenient)
    assert list(status.warnings) == []


def test_the_status_names_who_could_not_open_what(world: ExchangeWorld) -> None:
    world.play("delivering")
    hashes = world.receipt_of("amber").experts
    signer = world.identities["amber"]
    world.confirm(
        "amber", world.receipt_of("amber", experts={"birch": hashes["birch"]}).sign(signer)
    )
    world.refuse("birch")
    shown = exchange_json(run_status(RUN, world.conductor, world.desk).exchange)
    assert (shown["state"], shown["delivered"]) == ("delivering", ["amber"])
    assert shown["unopened"] == [
        {"site": "amber", "senders": ["cedar"], "reason": "it did not open there"},
        {"site": "birch", "senders": ["amber", "cedar"], "reason": "not today"},
    ]
    assert "amber could not open the expert of cedar" in text_of(world)
    assert "birch did not open the experts of amber, cedar: not today" in text_of(world)
    world.confirm("cedar")
    assert "completed: amber could not open cedar; birch did not open" in text_of(world)


@pytest.mark.parametrize(
    ("exchange", "advice"), [("deployment", "plan amend"), ("freeze", "abort")]
)
def test_the_status_warns_of_a_plan_whose_exchange_can_never_be_completed(
    tmp_path: Path, exchange: str, advice: str
) -> None:
    plan = exchange_plan(rounds=3, expert_exchange=exchange)
    run = after_round_1(plan) if exchange == "freeze" else None
    world = ExchangeWorld(tmp_path, plan=plan, run=run)
    world.play("sealing")
    world.send("birch")
    assert list(run_status(RUN, world.conductor, world.desk).warnings) == []
    world.desk.cancel(RUN, "olga")
    world.kill()
    (warning,) = run_status(RUN, world.conductor, world.desk).warnings
    assert "birch sealed an expert" in warning and advice in warning
    world.store.close()


def test_the_status_of_a_frozen_run_says_what_is_next(frozen: ExchangeWorld) -> None:
    said = run_status(RUN, frozen.conductor, frozen.desk).reason
    assert "fedpalm-coordinator exchange propose" in said
    frozen.play()
    said = run_status(RUN, frozen.conductor, frozen.desk).reason
    assert "fedpalm-coordinator resume" in said


def test_a_warning_is_never_longer_than_its_field(
    world: ExchangeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer one would make every answer that shows the run unreadable, to cancel it as well."""
    monkeypatch.setattr("coordinator.status._exchange_warnings", lambda *_: ["ä" * 400])
    status = run_status(RUN, world.conductor, world.desk)
    check_limits(status)
    assert status.warnings[-1].startswith("ä" * 200)
