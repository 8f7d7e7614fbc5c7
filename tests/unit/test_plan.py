from __future__ import annotations

import json
from typing import Any

import pytest

from fedpalm.errors import ConfigError
from fedpalm.ledger.witness import enough_witnesses
from fedpalm.plan import Plan, PlanDraft, warm_up_rounds
from fedpalm.settings import parse_settings


def values(**changes: Any) -> dict[str, Any]:
    plan: dict[str, Any] = {
        "federation": "trial",
        "draft": {"name": "p", "method": "fedavg", "rounds": 3},
        "roster": ("a", "b", "c"),
        "layout": ({"name": "open_set.w", "shape": [4]},),
        "initial_model": "0" * 64,
    }
    return {**plan, **changes}


CONTINUES = {"run": "p-1", "plan_hash": "1" * 64, "rounds_done": 2, "model": "0" * 64}


def draft(**changes: Any) -> dict[str, Any]:
    return {"draft": {**values()["draft"], **changes}}


def parse(**changes: Any) -> Plan:
    return parse_settings(Plan, values(**changes), "plan.toml")


def test_a_plan_survives_its_bytes_with_the_same_hash() -> None:
    plan = parse()
    assert Plan.from_bytes(plan.to_bytes()).hash == plan.hash


@pytest.mark.parametrize(
    "change",
    [
        {"federation": "other"},
        {"roster": ("a", "b")},
        {"layout": ({"name": "open_set.w", "shape": [2, 2]},)},
        {"initial_model": "1" * 64},
        draft(rounds=4),
        draft(seed=1),
        draft(reproducible=True),
        draft(training={"learning_rate": 0.002}),
        draft(codec={"clip_abs": 0.25}),
        draft(exchange_without_refusers=True),
        {"continues": CONTINUES},
    ],
)
def test_every_part_of_a_plan_is_in_its_hash(change: dict[str, Any]) -> None:
    assert parse(**change).hash != parse().hash


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"roster": ("b", "a")}, "sorted"),
        ({"roster": ("a", "a")}, "once"),
        ({"roster": ("a",)}, "2 to"),
        ({"layout": ()}, "open_set"),
        ({"layout": ({"name": "closed_set.expert.w", "shape": [4]},)}, "open_set"),
        ({"expert_layout": ({"name": "closed_set.expert.w", "shape": [4]},)}, "exchange"),
        ({"initial_model": "xyz"}, "initial_model"),
        ({"surprise": 1}, "surprise"),
        ({"continues": {**CONTINUES, "model": "2" * 64}}, "starts from the model"),
        ({"continues": {**CONTINUES, "rounds_done": -1}}, "rounds_done"),
        (draft(quorum=4), "quorum"),
        (draft(masking="some"), "masking"),
        (draft(privacy="some"), "privacy"),
        (draft(rounds=0), "rounds"),
        (draft(expert_exchange="deployment"), "expert"),
        (draft(expert_exchange="freeze"), "has no experts"),
        (draft(expert_exchange="sometimes"), "expert_exchange"),
        (draft(exchange_without_refusers="maybe"), "exchange_without_refusers"),
        (
            draft(
                method="fedpalm",
                expert_exchange="deployment",
                training={"expert_norm": "site"},
            ),
            "fits nowhere else",
        ),
        (draft(round_deadline_s=-1), "round_deadline_s"),
        (draft(training={"dropout": 2}), "dropout"),
        (draft(training={"privacy": []}), "privacy"),
        (draft(training={"privacy": {"unit": []}}), "unit"),
    ],
)
def test_a_wrong_plan_is_refused_and_the_key_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(ConfigError, match=names):
        parse(**change)


def test_a_method_without_experts_to_release_exchanges_none() -> None:
    def exchange(method: str, **training: Any) -> str:
        return PlanDraft(name="x", method=method, rounds=1, training=training).expert_exchange

    assert exchange("fedavg") == "never"
    assert exchange("fedpalm") == "deployment"
    assert exchange("fedpalm", expert_norm="site") == "never"


def exchanging(expert_exchange: str, rounds: int, before: int = 0) -> Plan:
    """A plan with an exchange, which goes on after so many rounds of earlier runs."""
    kept = {"continues": {**CONTINUES, "rounds_done": before}} if before else {}
    layout = () if expert_exchange == "never" else ({"name": "closed_set.expert.w", "shape": [4]},)
    return parse(
        **draft(method="fedpalm", rounds=rounds, expert_exchange=expert_exchange),
        expert_layout=layout,
        **kept,
    )


def test_experts_travel_after_the_last_round_or_when_they_are_frozen_or_never() -> None:
    assert exchanging("deployment", 9).exchange_round == 9
    assert exchanging("never", 9).exchange_round is None
    for rounds in range(1, 40):
        due = exchanging("freeze", rounds).exchange_round
        assert due == warm_up_rounds(rounds) and 1 <= due <= rounds


@pytest.mark.parametrize(
    ("before", "rounds", "due"),
    [(2, 10, 2), (1, 11, 3), (3, 9, 1), (4, 8, None), (9, 3, None), (9, 30, 4)],
)
def test_a_plan_that_continues_another_exchanges_in_its_own_run_only_if_the_freeze_falls_there(
    before: int, rounds: int, due: int | None
) -> None:
    """Rounds of both runs count: what is frozen after the first third of all was it in the run before."""
    assert exchanging("freeze", rounds, before).exchange_round == due
    assert exchanging("deployment", rounds, before).exchange_round == rounds


def test_a_refusal_ends_the_exchange_for_everybody_unless_the_plan_says_otherwise() -> None:
    assert not parse().draft.exchange_without_refusers
    assert parse(**draft(exchange_without_refusers=True)).draft.exchange_without_refusers


def test_all_errors_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(initial_model="x", federation="NO", surprise=1)
    assert all(key in str(caught.value) for key in ("initial_model", "federation", "surprise"))


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("depth", [0, 1, 300, 900])
@pytest.mark.parametrize("key", ["name", "shape", "zz"])
@pytest.mark.parametrize("layout", ["layout", "expert_layout"])
def test_a_layout_entry_has_a_name_and_a_shape_and_nothing_else(
    layout: str, key: str, depth: int
) -> None:
    entry = {"name": "open_set.w", "shape": [4], key: nested(depth) if depth else None}
    with pytest.raises(ConfigError, match=rf"{layout}\.0\.{key}"):
        parse(**{layout: (entry,)})
    text = json.dumps({**values(), layout: [entry]}).encode()
    with pytest.raises(ConfigError, match=rf"{layout}\.0\.{key}"):
        Plan.from_bytes(text)


@pytest.mark.parametrize("shape", [["4"], [4.0], [True], [-1], [2**31], [1] * 9, "4"])
def test_a_shape_is_a_few_whole_numbers(shape: object) -> None:
    with pytest.raises(ConfigError, match=r"layout\.0\.shape"):
        parse(layout=({"name": "open_set.w", "shape": shape},))


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b"null"])
def test_bytes_that_are_no_plan_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError):
        Plan.from_bytes(data)


def test_with_differential_privacy_the_quorum_is_what_makes_two_histories_impossible() -> None:
    private = {"training": {"privacy": {"unit": "subject"}}}
    for sites in range(2, 12):
        roster = tuple("abcdefghijkl"[:sites])
        for colluders in range(sites):
            plan = parse(roster=roster, **draft(**private, colluders=colluders))
            # So many have signed beside the site itself, of which one is the coordinator.
            assert enough_witnesses(plan.quorum, sites, colluders)
            assert plan.quorum == 2 or not enough_witnesses(plan.quorum - 1, sites, colluders)
        assert parse(roster=roster, **draft(colluders=1)).quorum == 2
    assert parse(**draft(**private, quorum=3)).quorum == 3
    with pytest.raises(ConfigError, match="nobody could vouch"):
        parse(**draft(**private, colluders=3))
