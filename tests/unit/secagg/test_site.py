"""A site's steps where no attack is: what is stored, shown, and asked for again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fedpalm.errors import (
    ContributionReuseError,
    IllegalTransitionError,
    KeyFileError,
    MaskingMessageError,
    StaleRoundError,
    TooFewSurvivorsError,
)
from fedpalm.secagg import site as core
from fedpalm.secagg.boxes import HeldShares
from fedpalm.secagg.site import AttemptFacts, SiteAttempt
from fedpalm.secagg.stored import attempt_from_bytes, attempt_to_bytes
from fedpalm.secagg.terms import SecAggTerms
from fedpalm.secagg.unmasking import Collection, Step
from tests.support.masking import Attempt, Federation, names, signing_key


def states(attempt: Attempt) -> list[tuple[AttemptFacts, SiteAttempt]]:
    """s00's state after each of the steps, played without a driver."""
    facts, key = attempt.facts("s00"), signing_key("s00")
    found = []
    own, keys = core.begin(facts, key)
    found.append(own)
    for name in names(4)[1:]:
        attempt.collection = attempt.collection.take_keys(
            attempt.federation.sites[name].join(attempt.facts(name), attempt.ref, "m0")
        )
    attempt.collection = attempt.collection.take_keys(keys).close_step()
    listed = tuple(attempt.collection.keys.values())
    own, boxes = core.share(own, listed, key)
    found.append(own)
    attempt.collection = attempt.collection.take_boxes("s00", boxes)
    for name in names(4)[1:]:
        given = attempt.federation.sites[name].share(attempt.facts(name), attempt.ref, listed)
        attempt.collection = attempt.collection.take_boxes(name, given)
    attempt.collection = attempt.collection.close_step()
    vector = np.zeros(5, np.uint32)
    own, said = core.mask(own, attempt.collection.boxes_for("s00"), vector, key)
    found.append(own)
    attempt.collection = attempt.collection.take_input(said)
    for name in names(4)[1:3]:
        boxes = attempt.collection.boxes_for(name)
        given_input, _ = attempt.federation.sites[name].mask(
            attempt.facts(name), attempt.ref, boxes
        )
        attempt.collection = attempt.collection.take_input(given_input)
    attempt.collection = attempt.collection.close_step()
    inputs = tuple(attempt.collection.inputs.values())
    own, agreement = core.agree(own, inputs, key)
    found.append(own)
    agreements = [agreement] + [
        attempt.federation.sites[name].agree(attempt.facts(name), attempt.ref, inputs)
        for name in names(4)[1:3]
    ]
    own, _ = core.reveal(own, agreements, key)
    found.append(own)
    return [(facts, one) for one in found]


@pytest.fixture(scope="module")
def played() -> list[tuple[AttemptFacts, SiteAttempt]]:
    return states(Federation.of(4).attempt())


def test_every_state_survives_its_bytes(played: list[tuple[AttemptFacts, SiteAttempt]]) -> None:
    for facts, state in played:
        again = attempt_from_bytes(attempt_to_bytes(state), facts)
        assert attempt_to_bytes(again) == attempt_to_bytes(state)
        assert again.context == state.context and again.stage is state.stage


def test_a_complaint_survives_its_bytes_and_leaves_no_secret(
    played: list[tuple[AttemptFacts, SiteAttempt]],
) -> None:
    facts, shared = played[1]
    state, said = core.complain(shared, ["s02", "s01", "s02"], signing_key("s00"))
    assert said.accused == ("s01", "s02") and state.stage is core.Stage.COMPLAINED
    again = attempt_from_bytes(attempt_to_bytes(state), facts)
    assert (again.stage, again.complaint) == (state.stage, said)
    assert (again.secrets, again.own_shares, again.held) == (None, None, {})
    assert shared.secrets is not None
    raw = shared.secrets.to_bytes()
    for at in range(0, 160, 32):
        assert raw[at : at + 32].hex().encode() not in attempt_to_bytes(state)
    assert core.complain(again, said.accused, signing_key("s00")) == (again, said)


def test_secrets_are_gone_once_they_are_not_needed(
    played: list[tuple[AttemptFacts, SiteAttempt]],
) -> None:
    kept = [
        (bool(one.secrets), bool(one.own_shares), sorted(one.held), one.reveal is not None)
        for _, one in played
    ]
    everybody = list(names(4))
    assert kept == [
        (True, False, [], False),
        (True, True, [], False),
        (False, False, everybody, False),
        (False, False, everybody, False),
        (False, False, [], True),
    ]
    raw = played[0][1].secrets
    assert raw is not None
    for _, state in played[2:]:
        stored = attempt_to_bytes(state)
        for at in range(0, 160, 32):
            assert raw.to_bytes()[at : at + 32].hex().encode() not in stored


def test_no_state_shows_a_secret(played: list[tuple[AttemptFacts, SiteAttempt]]) -> None:
    secret: set[str] = set()
    for _, state in played:
        values = json.loads(attempt_to_bytes(state))
        if values["secrets"]:
            secret.update(values["secrets"][at : at + 64] for at in range(0, 320, 64))
        for text in (values["own_shares"], *values["held"].values()):
            if text:
                secret.update((text[:66], text[66:98], text[98:164], text[164:]))
        for _, _, share, salt in (values["reveal"] or {"shares": []})["shares"]:
            secret.update((share, salt))
    secret -= {"00" * 33, "00" * 16}
    assert len(secret) > 20
    shown = [repr(state) + str(state) for _, state in played] + [repr(played[0][0])]
    for text in shown:
        for value in secret:
            assert value not in text and repr(bytes.fromhex(value))[2:-1] not in text


def test_shares_are_given_again_as_they_were(
    played: list[tuple[AttemptFacts, SiteAttempt]],
) -> None:
    key = signing_key("s00")
    facts, shared = played[1]
    again = attempt_from_bytes(attempt_to_bytes(shared), facts)
    state, boxes = core.share(again, reversed(shared.keys), key)
    assert boxes == shared.own_boxes and attempt_to_bytes(state) == attempt_to_bytes(shared)
    with pytest.raises(ContributionReuseError, match="another set of keys"):
        core.share(again, shared.keys[:3], key)


def test_a_vector_is_masked_once(played: list[tuple[AttemptFacts, SiteAttempt]]) -> None:
    for _, state in (played[0], *played[2:]):
        vector = np.zeros(5, np.uint32)
        with pytest.raises(ContributionReuseError):
            core.mask(state, [], vector, signing_key("s00"))
        assert not vector.any()


def test_steps_do_not_come_before_the_ones_they_need(
    played: list[tuple[AttemptFacts, SiteAttempt]],
) -> None:
    key = signing_key("s00")
    for _, state in played[:2]:
        with pytest.raises(ContributionReuseError):
            core.agree(state, [], key)
    for _, state in played[:3]:
        with pytest.raises(ContributionReuseError):
            core.reveal(state, [], key)


def test_the_state_of_another_attempt_or_site_is_not_taken(
    played: list[tuple[AttemptFacts, SiteAttempt]],
) -> None:
    raw = attempt_to_bytes(played[1][1])
    federation = Federation.of(4)
    for facts in (federation.attempt().facts("s01"), federation.attempt(attempt=2).facts("s00")):
        with pytest.raises(StaleRoundError):
            attempt_from_bytes(raw, facts)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"stage": "later"},
        {"secrets": "00"},
        {"secrets": 5},
        {"held": {"s01": "00"}},
        {"own_keys": {"site": "s00"}},
        {"masked": {"site": "s00"}},
        {"reveal": {"shares": [["s01"]], "signature": ""}},
        {"context": "x"},
    ],
    ids=str,
)
def test_a_damaged_state_is_an_error_that_tells_no_secret(
    change: dict[str, Any], played: list[tuple[AttemptFacts, SiteAttempt]]
) -> None:
    facts, state = played[1]
    values = json.loads(attempt_to_bytes(state)) | change
    with pytest.raises(KeyFileError) as caught:
        attempt_from_bytes(json.dumps(values).encode(), facts)
    assert caught.value.__cause__ is None
    assert all(text not in str(caught.value) for text in ("secret", state.own_keys.agreement.hex()))
    for raw in (b"", b"[]", b"\xff", attempt_to_bytes(state)[:-1]):
        with pytest.raises(KeyFileError):
            attempt_from_bytes(raw, facts)


def test_a_site_begins_with_its_own_key_in_its_own_cohort() -> None:
    federation = Federation.of(5)
    with pytest.raises(MaskingMessageError, match="another key"):
        core.begin(federation.attempt().facts("s00"), signing_key("s01"))
    cohort = names(5)[:4]
    keys = {name: signing_key(name).public_key() for name in names(5)}
    facts = AttemptFacts(SecAggTerms(names(5)), "s04", bytes(32), cohort, keys)
    with pytest.raises(MaskingMessageError, match="not of the cohort"):
        core.begin(facts, signing_key("s04"))


@pytest.mark.parametrize("cohort", [("s01", "s00", "s02"), ("s00", "s00", "s01", "s02")], ids=str)
def test_a_cohort_is_sorted_and_names_each_site_once(cohort: tuple[str, ...]) -> None:
    keys = {name: signing_key(name).public_key() for name in names(4)}
    with pytest.raises(MaskingMessageError, match="sorted"):
        AttemptFacts(SecAggTerms(names(4)), "s00", bytes(32), cohort, keys)


def test_a_site_of_the_cohort_without_a_signing_key_makes_no_attempt() -> None:
    keys = {name: signing_key(name).public_key() for name in names(3)}
    with pytest.raises(MaskingMessageError, match="signing key"):
        AttemptFacts(SecAggTerms(names(4)), "s00", bytes(32), names(4), keys)


@pytest.mark.parametrize("length", [0, 97, 99])
def test_held_shares_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(MaskingMessageError):
        HeldShares.from_bytes(bytes(length))


# --- the coordinator's side -------------------------------------------------------------------------


def test_shares_lie_at_the_position_in_the_roster_not_in_the_cohort() -> None:
    """The first site of the roster is away: nobody's share moves."""
    federation = Federation.of(5)
    attempt = federation.attempt(cohort=names(5)[1:])
    attempt.keys().boxes().inputs().agreements().reveals()
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())


@pytest.mark.parametrize(("count", "dropped"), [(3, 0), (4, 1), (5, 1), (8, 3), (12, 5)])
def test_the_sum_is_exact_with_as_many_dropped_as_are_tolerated(count: int, dropped: int) -> None:
    federation = Federation.of(count)
    for drop in (names(count)[:dropped], names(count)[count - dropped :]):
        attempt = Federation.of(count).attempt().until_masked(drop).agreements().reveals()
        np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
    with pytest.raises(TooFewSurvivorsError):
        federation.attempt().keys().boxes().inputs(names(count)[: dropped + 1])
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("step", ["keys", "boxes", "inputs", "agreements", "reveals"])
def test_a_site_may_drop_out_in_any_step(step: str) -> None:
    attempt = Federation.of(5).attempt()
    for name in ("keys", "boxes", "inputs", "agreements", "reveals"):
        getattr(attempt, name)(drop=["s02"] if name == step else [])
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
    assert ("s02" in attempt.collection.survivors) == (step in ("agreements", "reveals"))


def test_who_is_waited_for() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt(cohort=names(5))
    everybody = frozenset(names(5))
    assert attempt.collection.waiting_for == everybody
    attempt.keys(drop=["s00"])
    assert attempt.collection.waiting_for == everybody - {"s00"}
    with pytest.raises(TooFewSurvivorsError):
        attempt.boxes(drop=["s01", "s02"])
    assert attempt.collection.waiting_for == {"s01", "s02"}
    whole = Federation.of(5).attempt()
    for name in ("keys", "boxes", "inputs", "agreements", "reveals"):
        assert whole.collection.step.value == name
        getattr(whole, name)(drop=["s04"])
        assert "s04" not in whole.collection.waiting_for
    assert whole.collection.step is Step.DONE and whole.collection.waiting_for == frozenset()


def test_a_message_again_is_no_news_and_another_in_its_place_is_refused() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().until_masked().agreements().reveals()
    done = attempt.collection
    for name in names(4):
        assert done.take_keys(done.keys[name]) is done
        assert done.take_boxes(name, done.boxes[name].values()) is done
        assert done.take_input(done.inputs[name]) is done
        assert done.take_agreement(done.agreements[name]) is done
        assert done.take_reveal(done.reveals[name]) is done
    other = federation.attempt(attempt=2, run="q", model="m9")
    keys = federation.sites["s00"].join(other.facts("s00"), other.ref, "m9")
    with pytest.raises(ContributionReuseError):
        done.take_keys(keys)
    with pytest.raises(ContributionReuseError):
        done.take_boxes("s00", list(done.boxes["s00"].values())[:1])


def test_nothing_comes_out_of_turn() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt()
    with pytest.raises(IllegalTransitionError, match="settled"):
        attempt.collection.boxes_for("s00")
    for name in ("keys", "boxes", "inputs", "agreements"):
        with pytest.raises(IllegalTransitionError):
            attempt.collection.corrections()
        getattr(attempt, name)()
    late = Collection(attempt.facts("", attempt.manifests["s00"]))
    for step in (
        lambda: late.take_boxes("s00", attempt.collection.boxes["s00"].values()),
        lambda: late.take_input(attempt.collection.inputs["s00"]),
        lambda: late.take_agreement(attempt.collection.agreements["s00"]),
    ):
        with pytest.raises(IllegalTransitionError):
            step()
    attempt.reveals()
    with pytest.raises(IllegalTransitionError):
        attempt.collection.close_step()


def test_a_collection_shows_no_share() -> None:
    attempt = Federation.of(4).attempt().until_masked().agreements().reveals()
    shown = repr(attempt.collection)
    for said in attempt.collection.reveals.values():
        for one in said.shares:
            assert repr(one.share) not in shown and one.share.hex() not in shown
