"""Boxes that do not open: who says so, who is believed, and that nothing more is told than before."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest

from fedpalm.errors import (
    BadShareError,
    BoxesRefusedError,
    ContributionReuseError,
    IllegalTransitionError,
    MaskingMessageError,
    StaleRoundError,
    TooFewSurvivorsError,
)
from fedpalm.secagg.messages import Box, Complaint, signed
from fedpalm.secagg.site import Stage, mask
from fedpalm.secagg.stored import attempt_from_bytes
from tests.support.masking import Attempt, Federation, Site, names, refused, signing_key


def junk(sender: str, recipients: Iterable[str], field: str = "shares") -> Callable[[Box], Box]:
    """What a malicious sender does: the right form, and nothing in it that opens or fits."""
    spoilt = set(recipients)

    def change(box: Box) -> Box:
        if box.sender != sender or box.recipient not in spoilt:
            return box
        return replace(box, **{field: bytes(len(getattr(box, field)))})

    return change


def complaint(attempt: Attempt, site: str, *accused: str) -> Complaint:
    return signed(Complaint(site, accused), attempt.collection.context, signing_key(site))


def with_junk(count: int = 6, recipients: Iterable[str] = ("s01",), colluders: int = 1) -> Attempt:
    federation = Federation.of(count, colluders, corrupt=["s00"])
    return federation.attempt().keys().boxes(junk=junk("s00", recipients))


# --- the site --------------------------------------------------------------------------------------


def test_every_sender_of_a_junk_box_is_accused_at_once_and_nobody_else() -> None:
    federation = Federation.of(6)

    def change(box: Box) -> Box:
        first = junk("s00", ["s03"], "seed_share_hash")(
            junk("s05", ["s03"], "mask_share_hash")(box)
        )
        return junk("s02", ["s03"])(first)

    attempt = federation.attempt().keys().boxes(junk=change)
    s03, facts = federation.sites["s03"], attempt.facts("s03")
    error = refused(
        BoxesRefusedError,
        lambda: s03.mask(facts, attempt.ref, attempt.collection.boxes_for("s03")),
        "the box of s00 holds another share.*s02.*the box of s05 holds another share",
    )
    assert error.accused == ("s00", "s02", "s05")
    assert s03.disk.get("masked") is None


@pytest.mark.parametrize("sender", ["s00", "s02"])
def test_a_pair_secret_that_does_not_open_is_its_choosers_fault_on_either_side(sender: str) -> None:
    """s00 and s01 stand in odd sum, s00 and s02 in even: the first chooses, then the last."""
    federation = Federation.of(6)
    to = {"s00": "s01", "s02": "s00"}[sender]
    attempt = federation.attempt().keys().boxes(junk=junk(sender, [to], "pair"))
    error = refused(
        BoxesRefusedError,
        lambda: federation.sites[to].mask(
            attempt.facts(to), attempt.ref, attempt.collection.boxes_for(to)
        ),
        f"the pair secret that {sender} gave {to} does not open",
    )
    assert error.accused == (sender,)


def test_a_refused_vector_is_left_as_it_was() -> None:
    attempt = with_junk()
    state = attempt_from_bytes(
        attempt.federation.sites["s01"].disk["attempt"], attempt.facts("s01")
    )
    vector = np.arange(37, dtype=np.uint32)
    refused(
        BoxesRefusedError,
        lambda: mask(state, attempt.collection.boxes_for("s01"), vector, signing_key("s01")),
    )
    np.testing.assert_array_equal(vector, np.arange(37))


def test_a_site_that_complained_has_no_secret_left_and_does_nothing_more() -> None:
    attempt = with_junk().inputs_or_complaints().close()
    s01, facts, ref = attempt.federation.sites["s01"], attempt.facts("s01"), attempt.ref
    state = attempt_from_bytes(s01.disk["attempt"], facts)
    assert state.stage is Stage.COMPLAINED
    assert (state.secrets, state.own_shares, state.held, state.masked) == (None, None, {}, None)
    assert state.complaint == attempt.collection.complaints["s01"]
    again = Site("s01", disk=dict(s01.disk))
    honest = attempt.collection.boxes_for("s01")
    inputs = list(attempt.collection.inputs.values())
    assert again.complain(facts, ref, ["s00"]) == state.complaint
    for step in (
        lambda: again.mask(facts, ref, honest),
        lambda: again.complain(facts, ref, ["s02"]),
        lambda: again.agree(facts, ref, inputs),
        lambda: again.reveal(facts, ref, []),
    ):
        refused(ContributionReuseError, step)


def test_a_site_complains_of_peers_and_before_it_masks() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys()
    s00, facts = federation.sites["s00"], attempt.facts("s00")
    refused(ContributionReuseError, lambda: s00.complain(facts, attempt.ref, ["s01"]))
    attempt.boxes()
    for accused in ([], ["s00"], ["s01", "s00"], ["s09"]):
        refused(
            MaskingMessageError,
            lambda accused=accused: s00.complain(facts, attempt.ref, accused),
        )
    attempt.inputs()
    refused(ContributionReuseError, lambda: s00.complain(facts, attempt.ref, ["s01"]))


def test_after_a_complaint_the_site_joins_the_next_attempt() -> None:
    attempt = with_junk(4, ["s01", "s02"]).inputs_or_complaints()
    refused(TooFewSurvivorsError, attempt.close)
    federation = attempt.federation
    again = federation.attempt(attempt=2).until_masked().agreements().reveals()
    np.testing.assert_array_equal(again.sum(), again.expected_sum())
    refused(
        StaleRoundError,
        lambda: federation.sites["s01"].complain(attempt.facts("s01"), attempt.ref, ["s00"]),
    )


# --- the coordinator -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["shares", "mask_share_hash", "seed_share_hash"])
@pytest.mark.parametrize("recipients", [["s01"], ["s01", "s04"]])
def test_who_complains_counts_as_dropped_and_the_sum_of_the_others_is_exact(
    field: str, recipients: list[str]
) -> None:
    federation = Federation.of(7, corrupt=["s00"])
    attempt = federation.attempt().keys().boxes(junk=junk("s00", recipients, field))
    attempt.inputs_or_complaints()
    assert not attempt.collection.waiting_for
    assert {
        name: said.accused for name, said in attempt.collection.complaints.items()
    } == dict.fromkeys(recipients, ("s00",))
    attempt.close().agreements().reveals()
    assert set(attempt.collection.survivors) == set(names(7)) - set(recipients)
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
    assert all(len(kinds) == 1 for kinds in federation.openable().values())


@pytest.mark.parametrize("colluders", [0, 1, 2])
def test_a_sender_is_caught_when_more_complain_of_it_than_there_may_be_liars(
    colluders: int,
) -> None:
    attempt = with_junk(9, ["s01", "s02", "s03"], colluders)
    for complainers, name in enumerate(("s01", "s02", "s03"), 1):
        attempt.collection = attempt.collection.take_complaint(complaint(attempt, name, "s00"))
        assert attempt.collection.caught == (("s00",) if complainers > max(1, colluders) else ())


def test_one_complaint_gets_nobody_caught_where_no_liar_is_expected() -> None:
    attempt = with_junk(5, ["s01"], 0)
    said = complaint(attempt, "s04", *names(4))
    attempt.collection = attempt.collection.take_complaint(said)
    assert attempt.collection.caught == ()


def test_as_many_liars_as_there_may_be_get_no_honest_site_caught() -> None:
    federation = Federation.of(9, colluders=3, corrupt=names(3))
    attempt = federation.attempt().keys().boxes(junk=junk("s00", ["s07"]))
    honest = names(9)[3:]
    for liar in names(3):
        said = complaint(attempt, liar, *honest)
        attempt.collection = attempt.collection.take_complaint(said)
    attempt.inputs_or_complaints(drop=names(3))
    assert set(attempt.collection.complaints) == {*names(3), "s07"}
    assert attempt.collection.caught == ()


def test_a_step_that_ends_for_too_few_says_who_complains_of_whom() -> None:
    attempt = with_junk(4, ["s01", "s02"]).inputs_or_complaints()
    error = refused(TooFewSurvivorsError, attempt.close)
    assert "s01 cannot open what s00 sent; s02 cannot open what s00 sent" in error.what
    assert attempt.collection.caught == ("s00",)
    attempt.federation.assert_nothing_was_revealed()


def test_the_coordinator_takes_a_complaint_once_in_its_step_and_from_its_site() -> None:
    attempt = with_junk(6)
    before = attempt.collection
    honest = complaint(attempt, "s01", "s00")
    for wrong in (
        complaint(attempt, "s01"),
        complaint(attempt, "s01", "s01"),
        complaint(attempt, "s01", "s09"),
        complaint(attempt, "s01", "s03", "s02"),
        complaint(attempt, "s01", "s02", "s02"),
        replace(honest, accused=("s02",)),
        replace(honest, site="s02"),
        replace(honest, site="s09"),
        signed(Complaint("s01", ("s00",)), bytes(32), signing_key("s01")),
    ):
        refused(MaskingMessageError, lambda wrong=wrong: before.take_complaint(wrong))
    taken = before.take_complaint(honest)
    assert taken.take_complaint(honest) is taken
    refused(ContributionReuseError, lambda: taken.take_complaint(complaint(attempt, "s01", "s02")))
    attempt.inputs_or_complaints()
    said = attempt.collection.inputs["s02"]
    refused(
        ContributionReuseError,
        lambda: attempt.collection.take_complaint(complaint(attempt, "s02", "s00")),
    )
    taken = before.take_complaint(complaint(attempt, "s02", "s00"))
    refused(ContributionReuseError, lambda: taken.take_input(said))
    attempt.close()
    late = complaint(attempt, "s05", "s00")
    without = replace(attempt.collection, inputs={})
    refused(IllegalTransitionError, lambda: without.take_complaint(late))
    # The same again, late, changes nothing.
    attempt.collection.take_complaint(attempt.collection.complaints["s01"])


def test_a_pair_secret_that_was_complained_of_is_its_senders_fault_at_the_end() -> None:
    """One complaint is not believed; the shares of the site that dropped show who told the truth."""
    federation = Federation.of(6, corrupt=["s00"])
    attempt = federation.attempt().keys().boxes(junk=junk("s00", ["s01"], "pair"))
    attempt.inputs_or_complaints().close()
    assert attempt.collection.caught == ()
    attempt.agreements().reveals()
    assert refused(BadShareError, attempt.sum, "s00 gave s01").caught == "s00"
