"""Attacks over several attempts: retries, second contributions, crashes and homes from a backup."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from fedpalm.errors import (
    BoxesRefusedError,
    ContributionReuseError,
    KeyFileError,
    SplitViewError,
    StaleRoundError,
    TooFewSurvivorsError,
)
from fedpalm.secagg.memory import AttemptRef
from tests.support.masking import (
    Attempt,
    Crash,
    Federation,
    names,
    refused,
)

# --- retries --------------------------------------------------------------------------------------


def test_a_finished_attempt_and_then_a_retry_with_one_more_site_gives_no_second_sum() -> None:
    federation = Federation.of(5)
    first = federation.attempt(attempt=1, cohort=names(4))
    first.keys().boxes().inputs().agreements().reveals()
    np.testing.assert_array_equal(first.sum(), first.expected_sum())
    retry = federation.attempt(attempt=2)
    for name in names(4):
        refused(
            ContributionReuseError,
            lambda name=name: federation.sites[name].join(retry.facts(name), retry.ref, "m0"),
        )
    # The fifth is alone: it cannot get even the keys of a quorum.
    own = federation.sites["s04"].join(retry.facts("s04"), retry.ref, "m0")
    refused(
        TooFewSurvivorsError,
        lambda: federation.sites["s04"].share(retry.facts("s04"), retry.ref, [own]),
    )
    assert {said.site for _, said in federation.reveals()} == set(names(4))


@pytest.mark.parametrize(
    "again", [AttemptRef("r", 2, 1), AttemptRef("r", 1, 2), AttemptRef("another", 1, 1)], ids=str
)
def test_no_site_contributes_twice_to_one_model(again: AttemptRef) -> None:
    federation = Federation.of(4)
    federation.attempt().until_masked().agreements().reveals()
    given = len(federation.reveals())
    second = Attempt(federation, again)
    refused(ContributionReuseError, second.keys)
    assert len(federation.reveals()) == given


def test_an_attempt_that_a_later_one_replaced_is_dead_at_every_step() -> None:
    federation = Federation.of(4)
    old = federation.attempt(attempt=1).until_masked().agreements()
    federation.attempt(attempt=2).keys()
    s00, facts, ref = federation.sites["s00"], old.facts("s00"), old.ref
    refused(StaleRoundError, lambda: s00.join(facts, ref, "m0"))
    refused(StaleRoundError, lambda: s00.share(facts, ref, []))
    refused(StaleRoundError, lambda: s00.mask(facts, ref, []))
    refused(StaleRoundError, lambda: s00.agree(facts, ref, []))
    refused(StaleRoundError, old.reveals)
    federation.assert_nothing_was_revealed()


def test_a_retry_sends_the_stored_vector_under_fresh_masks_and_opens_the_same_sum() -> None:
    federation = Federation.of(4)
    first = federation.attempt(attempt=1).until_masked()
    second = federation.attempt(attempt=2).until_masked()
    for name in names(4):
        assert (first.vectors[name] != second.vectors[name]).mean() > 0.9
    second.agreements().reveals()
    np.testing.assert_array_equal(second.sum(), first.expected_sum())
    assert {facts.context for facts, _ in federation.reveals()} == {second.collection.facts.context}


def test_a_retry_with_another_vector_is_refused() -> None:
    federation = Federation.of(4)
    federation.attempt(attempt=1).until_masked()
    federation.sites["s01"].disk["vectors"].clear()
    refused(ContributionReuseError, federation.attempt(attempt=2).keys)
    federation.assert_nothing_was_revealed()


# --- crashes and backups --------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before store", "before send"])
@pytest.mark.parametrize("step", ["keys", "boxes", "inputs", "agreements", "reveals"])
@pytest.mark.parametrize("others", ["honest", "all"])
def test_a_crash_between_any_two_steps_changes_nothing_but_time(
    step: str, when: str, others: str
) -> None:
    """The site comes back with what it stored, is asked again, and the sum is the same."""
    federation = Federation.of(4)
    attempt = federation.attempt()
    crashing = ["s01"] if others == "honest" else list(names(4))
    for name in ("keys", "boxes", "inputs", "agreements", "reveals"):
        if name == step:
            for site in crashing:
                federation.sites[site].crash = when
                before = attempt.collection
                with pytest.raises(Crash):
                    getattr(attempt, name)()
                attempt.collection = before
        getattr(attempt, name)()
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
    assert all(len(kinds) == 1 for kinds in federation.openable().values())


def test_the_coordinator_comes_back_from_what_it_stored_at_any_step() -> None:
    """Its memory is the messages that it took and the steps that it closed, played again."""
    federation = Federation.of(4)
    attempt = federation.attempt().until_masked(drop=["s03"]).agreements().reveals()
    done = attempt.collection
    replayed = federation.attempt().collection
    for said in done.keys.values():
        replayed = replayed.take_keys(said).take_keys(said)
    replayed = replayed.close_step()
    for name, boxes in done.boxes.items():
        replayed = replayed.take_boxes(name, boxes.values()).take_boxes(name, boxes.values())
    replayed = replayed.close_step()
    for given in done.inputs.values():
        replayed = replayed.take_input(given).take_input(given)
    replayed = replayed.close_step()
    for agreed in done.agreements.values():
        replayed = replayed.take_agreement(agreed).take_agreement(agreed)
    replayed = replayed.close_step()
    for opened in done.reveals.values():
        replayed = replayed.take_reveal(opened).take_reveal(opened)
    assert replayed.close_step() == done
    assert replayed.close_step().corrections() == done.corrections()


def test_a_restored_backup_of_a_sites_store_begins_nothing_that_it_had_finished() -> None:
    """Its copy of the memory, where no backup reaches, is newer, and the newer of the two counts."""
    federation = Federation.of(4)
    s00 = federation.sites["s00"]
    backup = s00.memory
    federation.attempt().until_masked().agreements().reveals()
    kept = s00.memory
    s00.disk["memory"] = json.dumps(backup.merge(kept).to_json())
    refused(ContributionReuseError, federation.attempt(attempt=2).keys)
    refused(ContributionReuseError, federation.attempt(round_=2).keys)


def test_a_site_that_was_restored_whole_gives_a_coordinator_no_second_sum() -> None:
    """Disk and all: it plays along like a corrupt one, and is one of those that the threshold counts."""
    federation = Federation.of(4, corrupt=["s00"])
    s00 = federation.sites["s00"]
    image = copy.deepcopy(s00.disk)
    first = federation.attempt().until_masked().agreements().reveals()
    s00.disk = copy.deepcopy(image)
    own = s00.join(first.facts("s00"), first.ref, "m0")
    others = [first.collection.keys[name] for name in names(4)[1:]]
    boxes = s00.share(first.facts("s00"), first.ref, [own, *others])
    assert boxes
    for name in names(4)[1:]:
        refused(
            ContributionReuseError,
            lambda name=name: federation.sites[name].share(
                first.facts(name), first.ref, [own, *others]
            ),
        )
    refused(
        BoxesRefusedError,
        lambda: s00.mask(first.facts("s00"), first.ref, first.collection.boxes_for("s00")),
    )
    assert len({facts.context for facts, _ in federation.reveals()}) == 1


def test_an_image_from_before_the_agreement_signs_no_second_one_that_opens_anything() -> None:
    federation = Federation.of(5, corrupt=["s00"])
    attempt = federation.attempt().until_masked()
    s00 = federation.sites["s00"]
    image = copy.deepcopy(s00.disk)
    every = list(attempt.collection.inputs.values())
    attempt.agreements().reveals()
    s00.disk = image
    other = s00.agree(attempt.facts("s00"), attempt.ref, every[:4])
    for name in names(5)[1:4]:
        refused(
            ContributionReuseError,
            lambda name=name: federation.sites[name].agree(
                attempt.facts(name), attempt.ref, every[:4]
            ),
        )
    refused(
        SplitViewError,
        lambda: s00.reveal(
            attempt.facts("s00"), attempt.ref, [other, *attempt.collection.agreements.values()]
        ),
    )
    assert all(len(kinds) == 1 for kinds in federation.openable().values())


def test_a_lost_or_damaged_secret_file_ends_the_attempt_at_that_site_alone() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().keys().boxes()
    s01 = federation.sites["s01"]
    s01.disk["attempt"] = s01.disk["attempt"][:-20]
    boxes = attempt.collection.boxes_for("s01")
    refused(KeyFileError, lambda: s01.mask(attempt.facts("s01"), attempt.ref, boxes))
    attempt.inputs(drop=["s01"]).agreements().reveals()
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
