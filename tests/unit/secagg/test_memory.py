"""What a site remembers: one sum for each round and model, whatever it is asked and in which order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import ContributionReuseError, MaskingError, ProtocolError, StaleRoundError
from fedpalm.secagg.memory import AttemptRef, ContributionMemory

EMPTY = ContributionMemory()
FIRST = AttemptRef("r", 1, 1)


def revealed(ref: AttemptRef = FIRST, model: str = "m0", vector: str = "x") -> ContributionMemory:
    return EMPTY.begin_attempt(ref, model).note_masked(ref, vector).note_revealed(ref)


def test_rounds_follow_each_other() -> None:
    memory = revealed()
    second = AttemptRef("r", 2, 1)
    memory = memory.begin_attempt(second, "m1").note_masked(second, "y").note_revealed(second)
    assert {model: gave.encoded_hash for model, gave in memory.given.items()} == {
        "m0": "x",
        "m1": "y",
    }


@pytest.mark.parametrize("ref", [FIRST, AttemptRef("r", 1, 0), AttemptRef("r", 0, 9)], ids=str)
def test_an_attempt_that_is_not_newer_is_not_begun(ref: AttemptRef) -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0")
    with pytest.raises(StaleRoundError):
        memory.begin_attempt(ref, "m0")


def test_a_retry_kills_the_attempt_before_it() -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0").note_masked(FIRST, "x")
    memory = memory.begin_attempt(AttemptRef("r", 1, 2), "m0", "x")
    for step in (
        lambda: memory.require_live(FIRST),
        lambda: memory.note_masked(FIRST, "x"),
        lambda: memory.note_revealed(FIRST),
    ):
        with pytest.raises(StaleRoundError):
            step()


def test_a_retry_masks_the_vector_that_was_encoded() -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0").note_masked(FIRST, "x")
    retry = AttemptRef("r", 1, 2)
    with pytest.raises(ContributionReuseError, match="another vector"):
        memory.begin_attempt(retry, "m0", "y")
    begun = memory.begin_attempt(retry, "m0")
    with pytest.raises(ContributionReuseError, match="another vector"):
        begun.note_masked(retry, "y")
    assert begun.note_masked(retry, "x").note_revealed(retry).given["m0"].encoded_hash == "x"


def test_a_vector_that_was_encoded_and_never_masked_binds_the_retry_too() -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0", "x")
    with pytest.raises(ContributionReuseError):
        memory.begin_attempt(AttemptRef("r", 1, 2), "m0", "y")


def test_a_retry_is_of_the_same_model() -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0")
    with pytest.raises(ContributionReuseError, match="another model"):
        memory.begin_attempt(AttemptRef("r", 1, 2), "m1")


@pytest.mark.parametrize("vector", ["x", "y", ""])
@pytest.mark.parametrize("attempt", [2, 3, 99])
def test_after_shares_were_given_the_round_has_no_further_attempt(
    attempt: int, vector: str
) -> None:
    with pytest.raises(ContributionReuseError, match="gave shares"):
        revealed().begin_attempt(AttemptRef("r", 1, attempt), "m0", vector)


@pytest.mark.parametrize("vector", ["x", "y", ""])
@pytest.mark.parametrize("ref", [AttemptRef("r", 2, 1), AttemptRef("q", 1, 1)], ids=str)
def test_a_model_is_contributed_to_once_in_any_round_and_run(ref: AttemptRef, vector: str) -> None:
    """The same vector as well: two sums over it and different peers would tell one of them."""
    with pytest.raises(ContributionReuseError, match="contributed to that model"):
        revealed().begin_attempt(ref, "m0", vector)


def test_two_runs_from_one_model_side_by_side_mask_in_one() -> None:
    """If both masked, some sites could open the sum of the one run, and others that of the other."""
    other = AttemptRef("q", 1, 1)
    both = EMPTY.begin_attempt(FIRST, "m0", "x").begin_attempt(other, "m0", "y")
    memory = both.note_masked(FIRST, "x")
    with pytest.raises(ContributionReuseError, match="masked an update from that model in run r"):
        memory.note_masked(other, "y")
    assert memory.note_revealed(FIRST).given.keys() == {"m0"}
    retried = memory.begin_attempt(AttemptRef("r", 1, 2), "m0")
    for later in (memory, retried, retried.begin_attempt(AttemptRef("r", 2, 1), "m1")):
        with pytest.raises(ContributionReuseError, match="in run r") as refused:
            later.begin_attempt(AttemptRef("s", 1, 1), "m0", "x")
        assert "plan submit --changed" in refused.value.next_step
    learned = both.merge(memory)
    with pytest.raises(ContributionReuseError):
        learned.note_masked(other, "y")


def test_an_attempt_that_masked_nothing_leaves_the_model_to_another_run() -> None:
    memory = EMPTY.begin_attempt(FIRST, "m0", "x").begin_attempt(AttemptRef("r", 1, 2), "m0")
    other = AttemptRef("q", 1, 1)
    assert memory.begin_attempt(other, "m0").note_masked(other, "y").masked == {"m0": "q"}


def test_nothing_is_revealed_before_it_is_masked() -> None:
    with pytest.raises(ContributionReuseError, match="no vector"):
        EMPTY.begin_attempt(FIRST, "m0").note_revealed(FIRST)
    with pytest.raises(StaleRoundError):
        EMPTY.note_revealed(FIRST)
    with pytest.raises(ValueError, match="hash"):
        EMPTY.begin_attempt(FIRST, "m0").note_masked(FIRST, "")


def test_what_was_noted_is_no_news_when_it_is_noted_again() -> None:
    memory = revealed()
    assert memory.note_revealed(FIRST) == memory
    assert memory.note_masked(FIRST, "x") == memory
    with pytest.raises(ContributionReuseError):
        memory.note_masked(FIRST, "y")


def test_a_restored_memory_learns_what_the_copy_knows() -> None:
    backup = EMPTY.begin_attempt(FIRST, "m0")
    kept = revealed()
    for merged in (backup.merge(kept), kept.merge(backup)):
        assert merged == kept
        with pytest.raises(ContributionReuseError):
            merged.begin_attempt(AttemptRef("r", 1, 2), "m0")
    assert EMPTY.merge(kept) == kept == kept.merge(EMPTY)


@pytest.mark.parametrize(
    "values",
    [{}, {"version": 1, "newest": {}, "given": {}}, {"version": 2, "newest": {}, "given": {}},
     {"version": 2, "newest": {"r": [1]}, "given": {}, "masked": {}},
     {"version": 2, "newest": [], "given": {}, "masked": {}}],
    ids=str,
)  # fmt: skip
def test_a_memory_that_cannot_be_read_is_no_empty_memory(values: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        ContributionMemory.from_json(values)


refs = st.builds(AttemptRef, st.sampled_from("rq"), st.integers(1, 3), st.integers(1, 3))
asks = st.lists(
    st.tuples(
        st.sampled_from(["begin", "begin", "mask", "reveal", "restart", "restore"]),
        refs,
        st.sampled_from(["m0", "m1", "m2"]),
        st.sampled_from(["", "x", "y"]),
    ),
    max_size=60,
)


@given(asks)
def test_in_any_order_there_is_one_reveal_for_each_round_and_for_each_model(
    asked: list[tuple[str, AttemptRef, str, str]],
) -> None:
    memory, backup = EMPTY, EMPTY
    masked: dict[str, str] = {}
    begun: list[AttemptRef] = []
    models: dict[AttemptRef, str] = {}
    vectors: dict[tuple[str, int], str] = {}
    reveals: set[AttemptRef] = set()
    for what, ref, model, vector in asked:
        try:
            match what:
                case "begin":
                    memory = memory.begin_attempt(ref, model, vector)
                    assert ref not in begun
                    assert all(
                        (one.round, one.attempt) < (ref.round, ref.attempt)
                        for one in begun if one.run == ref.run
                    )  # fmt: skip
                    begun.append(ref)
                    models[ref] = model
                case "mask" if vector:
                    memory = memory.note_masked(ref, vector)
                    assert vectors.setdefault((ref.run, ref.round), vector) == vector
                    assert masked.setdefault(models[ref], ref.run) == ref.run
                case "reveal":
                    memory = memory.note_revealed(ref)
                    reveals.add(ref)
                case "restart":
                    memory = ContributionMemory.from_json(json.loads(json.dumps(memory.to_json())))
                case "restore":
                    memory, backup = backup.merge(memory), memory
        except (StaleRoundError, MaskingError):
            continue
    assert len({(ref.run, ref.round) for ref in reveals}) == len(reveals)
    assert len({models[ref] for ref in reveals}) == len(reveals)
    assert set(memory.given) == {models[ref] for ref in reveals}


@given(asks)
def test_a_memory_survives_json(asked: list[tuple[str, AttemptRef, str, str]]) -> None:
    memory = EMPTY
    for what, ref, model, vector in asked:
        try:
            if what == "begin":
                memory = memory.begin_attempt(ref, model, vector)
            elif vector:
                memory = memory.note_masked(ref, vector).note_revealed(ref)
        except (StaleRoundError, MaskingError):
            continue
    assert ContributionMemory.from_json(json.loads(json.dumps(memory.to_json()))) == memory
