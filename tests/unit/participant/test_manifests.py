"""The chain of manifests: what follows is accepted, what contradicts is kept, and nothing else counts."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from fedpalm.clock import FakeClock
from fedpalm.errors import (
    EgressRefusedError,
    ForkError,
    HashMismatchError,
    IdentityError,
    NotFoundError,
    NotOnRosterError,
    PlanNotApprovedError,
    PolicyError,
    ProtocolError,
    StaleRoundError,
    WrongRoleError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Role
from fedpalm.rounds.manifest import Countersignature, RoundManifest
from participant.cli.manifests import manifests
from participant.outgoing import Place
from tests.support.agreement import countersignature
from tests.support.participant import SITES, Site, make_plan
from tests.support.pki import TestAuthority
from tests.support.rounds import RUN, Chain

MODEL_2 = "22" * 32


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    world.agreed(made, make_plan())
    yield made
    made.store.close()


@pytest.fixture
def chain(world):
    return Chain(world, make_plan())


def _book(site):
    return site.gate.manifests


def _kinds(site):
    return [entry.kind for entry in site.log.entries() if entry.kind is not EntryKind.PLAN_APPROVED]


def _refused(site, signed, error, match=None, **how):
    """Accepting it fails, and nothing was stored or logged."""
    before = (_kinds(site), _book(site).chain(RUN))
    with pytest.raises(error, match=match) as caught:
        _book(site).accept(signed, **how)
    assert (_kinds(site), _book(site).chain(RUN)) == before
    return caught.value


# --- what follows ------------------------------------------------------------------------------------


def test_a_manifest_is_stored_in_the_transaction_of_its_log_entry(world, chain):
    armed = False

    def dies(step):
        if armed and step == "before commit":
            raise KeyboardInterrupt

    made, home = world.site("north", dies)
    world.agreed(made, make_plan())
    armed = True
    signed = chain.next()
    with pytest.raises(KeyboardInterrupt):
        _book(made).accept(signed)
    armed = False
    assert (_kinds(made), _book(made).chain(RUN)) == ([], [])
    _book(made).accept(signed)
    made.store.close()

    again = Site(home)
    (entry,) = [e for e in again.log.entries() if e.kind is EntryKind.MANIFEST_ACCEPTED]
    assert dict(entry.body) == {
        "run": RUN,
        "round": 1,
        "attempt": 1,
        "seq": 0,
        "manifest_hash": signed.hash.hex(),
    }
    assert [one.hash for one in _book(again).chain(RUN)] == [signed.hash]
    again.store.close()


def test_the_newest_manifest_again_is_no_news(site, chain):
    signed = chain.next()
    first = _book(site).accept(signed)
    assert _book(site).accept(signed) == first
    assert _kinds(site) == [EntryKind.MANIFEST_ACCEPTED]


def test_retries_and_rounds_follow_each_other(site, chain):
    for number, attempt, model in ((1, 1, None), (1, 2, None), (2, 1, MODEL_2), (3, 1, "33" * 32)):
        changes = {"model_hash": model} if model else {}
        _book(site).accept(chain.next(number, attempt, **changes))
    assert _book(site).size(RUN) == 4


def test_a_missed_manifest_fills_its_gap_though_it_is_not_about_this_site(site, chain):
    missed = chain.next(cohort=["east", "west"])
    newest = chain.next(1, 2)
    assert "missing before it" in _refused(site, newest, ProtocolError).what
    _refused(site, missed, NotOnRosterError)
    _book(site).accept(missed, missed=True)
    _book(site).accept(newest)
    assert _book(site).size(RUN) == 2


def test_a_missed_manifest_holds_though_its_certificate_has_ended_since(world, chain):
    made, _ = world.site("north")
    world.agreed(made, make_plan())
    signed = chain.next()
    later = signed.chain[0].not_valid_after_utc.timestamp() + 60
    made.store.clock = FakeClock(later)
    _refused(made, signed, IdentityError, "expired")
    _book(made).accept(signed, missed=True)
    made.store.close()


# --- what does not -----------------------------------------------------------------------------------


def test_a_forged_manifest_is_refused(world, site, chain):
    good = chain.say()
    stranger = TestAuthority("unit").enrol(Role.COORDINATOR, "coordinator")
    forgeries = [
        (dataclasses.replace(good, signature=bytes(64)), IdentityError),
        (dataclasses.replace(good, chain=world.absent("west").chain), WrongRoleError),
        (chain.say(by=stranger), IdentityError),
        (dataclasses.replace(good, statement=good.statement + b" "), ProtocolError),
    ]
    for forged, error in forgeries:
        _refused(site, forged, error)


def test_an_altered_manifest_is_refused(site, chain):
    good = chain.say()
    model = RoundManifest.read(good).model_hash.encode()
    altered = dataclasses.replace(good, statement=good.statement.replace(model, b"00" * 32))
    assert altered.statement != good.statement
    _refused(site, altered, IdentityError, "signature does not hold")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"plan_hash": "ab" * 32}, HashMismatchError),
        ({"cohort": ["east", "north", "stranger"]}, NotOnRosterError),
        ({"cohort": ["east", "west"]}, NotOnRosterError),
        ({"cohort": ["north"]}, ProtocolError),
        ({"round": 4}, ProtocolError),
        ({"round": 2}, ProtocolError),
        ({"seq": 1}, ProtocolError),
    ],
    ids=["plan", "stranger", "without this site", "below quorum", "no such round", "skips", "gap"],
)
def test_a_manifest_that_does_not_fit_the_approved_plan_is_refused(site, chain, changes, error):
    _refused(site, chain.say(**changes), error)


def test_a_manifest_of_a_run_whose_plan_is_not_approved_is_refused(world, site, chain):
    _refused(site, Chain(world, make_plan(), "toy-2").say(), PlanNotApprovedError)
    site.desk.plans.refuse(RUN, "no more")
    _refused(site, chain.say(), PlanNotApprovedError)


def test_a_manifest_of_the_plan_with_another_federations_name_is_refused(world, site, chain):
    other = TestAuthority("other").enrol(Role.COORDINATOR, "coordinator")
    _refused(site, chain.say(by=other, federation="other"), IdentityError)


def test_a_rolled_back_round_is_refused(site, chain):
    first = chain.next()
    _book(site).accept(first)
    _book(site).accept(chain.next(2, model_hash=MODEL_2))
    _refused(site, first, StaleRoundError, "past")
    for number, attempt in ((1, 1), (1, 2), (2, 1)):
        _refused(site, chain.say(number, attempt), StaleRoundError)


def test_a_cohort_below_this_sites_own_minimum_is_refused_at_the_limit_of_the_moment(site, chain):
    site.home.policy.write_text("min_cohort = 2\n")
    two = chain.say(cohort=["north", "west"])
    site.home.policy.write_text("min_cohort = 3\n")
    _refused(site, two, PolicyError)
    site.home.policy.write_text("min_cohort = 2 \n")
    _book(site).accept(two)


# --- forks -------------------------------------------------------------------------------------------


def _forked(site, signed, match, **how):
    with pytest.raises(ForkError, match=match) as caught:
        _book(site).accept(signed, **how)
    assert f"fedpalm-participant manifests {RUN}" in caught.value.next_step
    assert f"fedpalm-participant refuse {RUN}" in caught.value.next_step


@pytest.mark.parametrize("missed", [False, True])
def test_a_second_manifest_at_a_filled_position_is_a_fork(site, chain, missed):
    other = chain.say(sealed_ms=2)
    held = chain.next()
    _book(site).accept(held)
    _forked(site, other, "there twice", missed=missed)
    assert _kinds(site) == [EntryKind.MANIFEST_ACCEPTED, EntryKind.FORK_SEEN]
    body = list(site.log.entries())[-1].body
    assert dict(body) == {
        "run": RUN,
        "manifest_hash": held.hash.hex(),
        "other_hash": other.hash.hex(),
    }
    (fork,) = _book(site).forks()
    assert (fork.open, fork.held.hash, fork.other.to_bytes()) == (True, held.hash, other.to_bytes())
    site.log.verify()


@pytest.mark.parametrize(
    ("begun", "changes"),
    [
        (True, {"previous": "99" * 32, "attempt": 2}),
        (True, {"model_hash": MODEL_2, "attempt": 2}),
        (False, {"model_hash": MODEL_2}),
        (False, {"previous": "99" * 32}),
    ],
    ids=["another past", "another model", "another first model", "another beginning"],
)
def test_a_manifest_that_contradicts_the_chain_is_a_fork(site, chain, begun, changes):
    if begun:
        _book(site).accept(chain.next())
    _forked(site, chain.say(**changes), "fork")
    assert _kinds(site)[-1] is EntryKind.FORK_SEEN
    assert _book(site).size(RUN) == int(begun)


def test_after_a_fork_the_run_goes_no_further_until_a_person_has_decided(site, chain):
    other = chain.say(sealed_ms=2)
    chain.ask(site)
    _forked(site, other, "there twice")
    newer = chain.say(1, 2)
    for signed in (newer, other):
        _forked(site, signed, "contradict")
    assert _kinds(site).count(EntryKind.FORK_SEEN) == 1
    with pytest.raises(ForkError):
        _book(site).agreed(Place(RUN, 1, 1), make_plan())
    site.desk.plans.refuse(RUN, "fork")
    _refused(site, newer, PlanNotApprovedError)
    site.desk.plans.approve(RUN)
    _book(site).accept(newer)
    assert [fork.open for fork in _book(site).forks()] == [False]


# --- countersignatures -------------------------------------------------------------------------------


def test_only_an_accepted_manifest_is_signed_and_the_signature_is_stored_first(site, chain):
    signed = chain.next()
    with pytest.raises(EgressRefusedError):
        _book(site).countersign(RoundManifest.read(signed))
    manifest = _book(site).accept(signed)
    own = _book(site).countersign(manifest)
    assert _book(site).countersigned_by(manifest) == ["north"]
    assert Countersignature.read(own).manifest_hash == signed.hash.hex()
    assert _book(site).countersign(manifest).statement == own.statement


def test_signatures_of_the_cohort_over_the_same_manifest_count(world, site, chain):
    manifest = chain.ask(site, signers=("west", "east"))
    assert _book(site).countersigned_by(manifest) == ["east", "north", "west"]
    assert _book(site).agreed(Place(RUN, 1, 1), make_plan()) == manifest


def _about(manifest, site="west", **changes):
    values = {
        "federation": manifest.federation,
        "run": manifest.run,
        "round": manifest.round,
        "attempt": manifest.attempt,
        "manifest_hash": manifest.hash.hex(),
        "site": site,
    }
    return Countersignature.model_validate({**values, **changes})


def test_a_signature_that_proves_nothing_does_not_count_and_is_no_fork(world, site, chain):
    manifest = chain.ask(site, signers=(), cohort=["east", "north", "west"])
    west = world.absent("west")
    good = _about(manifest).sign(west)
    nothing = [
        dataclasses.replace(good, signature=bytes(64)),
        dataclasses.replace(good, chain=world.absent("east").chain),
        _about(manifest).sign(TestAuthority("unit").enrol(Role.PARTICIPANT, "west")),
        _about(manifest, attempt=2).sign(west),
        _about(manifest, attempt=2, manifest_hash="00" * 32).sign(west),
        _about(manifest, run="toy-2").sign(west),
        _about(manifest, site="stranger").sign(world.absent("stranger")),
        _about(manifest, site="stranger", manifest_hash="00" * 32).sign(world.absent("stranger")),
        chain.say(),
    ]
    for signed in nothing:
        assert not _book(site).take_countersignature(manifest, signed)
    assert _book(site).countersigned_by(manifest) == ["north"]
    assert EntryKind.FORK_SEEN not in _kinds(site)
    assert _book(site).take_countersignature(manifest, good)


@pytest.mark.parametrize("already_signed", [False, True])
def test_a_signature_over_another_manifest_of_the_attempt_is_a_fork(
    world, site, chain, already_signed
):
    manifest = chain.ask(site, signers=("east", "west") if already_signed else ("east",))
    other = chain.say(sealed_ms=7)
    signed = _about(manifest, manifest_hash=other.hash.hex()).sign(world.absent("west"))
    with pytest.raises(ForkError, match="west has signed another manifest"):
        _book(site).take_countersignature(manifest, signed)
    entry = list(site.log.entries())[-1]
    assert entry.kind is EntryKind.FORK_SEEN
    assert entry.body["other_hash"] == other.hash.hex()
    assert _book(site).forks()[0].other.to_bytes() == signed.to_bytes()
    with pytest.raises(ForkError):
        _book(site).agreed(Place(RUN, 1, 1), make_plan())


def test_an_update_may_leave_only_for_the_newest_manifest_that_a_quorum_has_signed(world, chain):
    made, _ = world.site("north")
    plan = make_plan()
    world.agreed(made, plan)
    book, place = _book(made), Place(RUN, 1, 1)
    with pytest.raises(EgressRefusedError, match="no manifest"):
        book.agreed(place, plan)
    manifest = chain.ask(made, signers=())
    with pytest.raises(EgressRefusedError, match="1 sites have signed"):
        book.agreed(place, plan)
    newest = book.chain(RUN)[0]
    book.take_countersignature(manifest, countersignature(world.absent("west"), newest))
    assert book.agreed(place, plan) == manifest
    chain.ask(made, 1, 2)
    with pytest.raises(StaleRoundError, match="later manifest"):
        book.agreed(place, plan)
    assert book.agreed(Place(RUN, 1, 2), plan).attempt == 2
    made.home.policy.write_text("min_cohort = 4\n")
    with pytest.raises(PolicyError):
        book.agreed(Place(RUN, 1, 2), plan)
    made.store.close()


def test_signatures_of_others_alone_do_not_send_this_sites_update(world, site, chain):
    signed = chain.next()
    manifest = _book(site).accept(signed)
    for name in ("east", "west"):
        _book(site).take_countersignature(manifest, countersignature(world.absent(name), signed))
    with pytest.raises(EgressRefusedError, match="have signed"):
        _book(site).agreed(Place(RUN, 1, 1), make_plan())


# --- the command -------------------------------------------------------------------------------------


def _command(site, *options):
    done = CliRunner().invoke(manifests, [*options, "--home", str(site.home.path)])
    return done.exit_code, done.output


def test_the_command_shows_the_chain_and_who_signed_it(site, chain):
    code, output = _command(site, "--json")
    assert (code, json.loads(output)["error"]["code"]) == (NotFoundError.exit_code, "not_found")
    chain.ask(site, signers=("east", "west"))
    newest = chain.ask(site, 2, model_hash=MODEL_2, cohort=["north", "west"])
    code, output = _command(site, RUN, "--json")
    assert code == 0
    shown = json.loads(output)
    assert shown["newest_hash"] == newest.hash.hex()
    assert [one["countersigned_by"] for one in shown["manifests"]] == [
        ["east", "north", "west"],
        ["north", "west"],
    ]
    assert [(one["seq"], one["round"], one["attempt"]) for one in shown["manifests"]] == [
        (0, 1, 1),
        (1, 2, 1),
    ]
    assert shown["forks"] == []
    code, output = _command(site)
    assert f"newest manifest {newest.hash.hex()}" in output.replace("\n", " ")


def test_the_command_shows_both_offers_of_a_run_that_was_offered_twice(world, site):
    """Nothing was accepted yet, and nothing is held up: the first offer stands."""
    second = world.offer(make_plan(rounds=4), "toy-2")
    site.desk.plans.propose("toy-2", make_plan(), world.offer(make_plan(), "toy-2"))
    with pytest.raises(ForkError):
        site.desk.plans.propose("toy-2", make_plan(rounds=4), second)
    code, output = _command(site, "toy-2", "--json")
    assert code == 0
    shown = json.loads(output)
    assert (shown["manifests"], shown["newest_hash"]) == ([], "")
    (fork,) = shown["forks"]
    assert not fork["open"]
    assert make_plan().hash.hex() in fork["held"]
    assert make_plan(rounds=4).hash.hex() in fork["other"]
    assert "AGAINST offer" in _command(site, "toy-2")[1].replace("\n", " ")


def test_the_command_shows_both_sides_of_a_fork(world, site, chain):
    manifest = chain.ask(site)
    other = chain.say(sealed_ms=7)
    west = _about(manifest, manifest_hash=other.hash.hex()).sign(world.absent("west"))
    with pytest.raises(ForkError):
        _book(site).take_countersignature(manifest, west)
    _, output = _command(site, "--json")
    (shown,) = json.loads(output)["forks"]
    assert shown["open"]
    assert manifest.hash.hex() in shown["held"]
    assert shown["other"].startswith(f"west has signed manifest {other.hash.hex()}")
    assert "the run is held up" in _command(site)[1]


# --- signing keys ------------------------------------------------------------------------------------


def test_a_manifest_with_another_key_for_this_site_is_refused_and_one_with_its_own_is_taken(
    site, world, chain
):
    true = world.signing_keys(SITES)
    lie = chain.say(signing_keys={**true, "north": true["east"]})
    error = _refused(site, lie, NotOnRosterError, "another signing key for this site than its own")
    assert error.next_step
    assert _book(site).accept(chain.next(signing_keys=true)).signing_keys == true


def test_a_countersignature_under_another_key_than_the_manifests_does_not_count(site, world, chain):
    keys = world.signing_keys(SITES)
    signed = chain.next(signing_keys={**keys, "east": keys["west"]})
    manifest = _book(site).accept(signed)
    by_east = countersignature(world.absent("east"), signed)
    assert not _book(site).take_countersignature(manifest, by_east)
    assert _book(site).countersigned_by(manifest) == []
    by_west = countersignature(world.absent("west"), signed)
    assert _book(site).take_countersignature(manifest, by_west)
