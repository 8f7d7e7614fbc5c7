"""Bundles of sites whose account is right, or wrong in one way each, as such a site would export them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedpalm.attack.account import of_findings
from fedpalm.attack.findings import Finding
from fedpalm.audit.verify import verify_bundle
from tests.support.audit import World, make_plan, written

ROUNDS = 5


def ledgers() -> dict[str, Callable[[], World]]:
    """By name; the first is honest."""
    return {
        "honest": lambda: World(make_plan(experts=True, rounds=ROUNDS)).trained(),
        "accountant reset each round": _forgetful,
        "charged at half q": lambda: _trained(mechanism={"sampling_rate": "0.025"}),
        "uncharged round": lambda: _trained(charge=False),
        "uncharged expert": _expert_of_no_round,
    }


def findings_of(name: str, folder: Path) -> list[Finding]:
    """What verifying the bundle says of the account."""
    world = ledgers()[name]()
    path = written(folder, world.bundle())
    return of_findings(verify_bundle(path, world.trust).findings)


def _trained(**last: object) -> World:
    """Every round by the book but the last one."""
    world = World(make_plan(rounds=ROUNDS))
    world.join()
    for number in range(1, ROUNDS):
        world.round(number)
    world.round(ROUNDS, **last)  # type: ignore[arg-type]
    world.close()
    return world


def _forgetful() -> World:
    """The account begins anew with every round."""
    world = World(make_plan(rounds=ROUNDS))
    world.join()
    for number in range(1, ROUNDS + 1):
        world.round(number)
        world.charges.clear()
    world.close()
    return world


def _expert_of_no_round() -> World:
    """An expert leaves, of a run of which no round was charged."""
    world = World(make_plan(experts=True, rounds=ROUNDS))
    world.join()
    world.exchange()
    return world
