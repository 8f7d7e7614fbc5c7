"""Logs that the real budget book wrote, and such as a faulty one would have written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from fedpalm.attack.account import of_log
from fedpalm.attack.findings import Finding
from fedpalm.audit.log import read_log
from fedpalm.audit.plans import KnownPlan
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.identity import Identity
from fedpalm.plan import Plan
from fedpalm.privacy.accounting import Charge
from participant import budget as budget_module
from participant.budget import BudgetBook
from tests.support.participant import Site, World, make_private_plan

RUN, ROUNDS = "toy-1", 5
POLICY = "auto_approve = true\ndelta = 1e-5\npeople = 1000\nmax_epsilon = 8\n"
PRIVACY = {"noise_multiplier": 2.0, "sampling_rate": 0.2, "steps": 10}


class _Forgetful(BudgetBook):
    """The account begins anew with every round."""

    def charges(self, unit: str) -> tuple[Charge, ...]:
        return ()


@dataclass(frozen=True)
class Ledger:
    """How a log came about: by which book, what left without being charged."""

    book: type[BudgetBook] = BudgetBook
    rate: float | None = None
    """Charged instead of the plan's."""
    charged: int = ROUNDS
    """Rounds that are charged before their update leaves."""
    expert: bool = False
    """An expert leaves, of a run of which no round was charged."""


def ledgers() -> dict[str, Ledger]:
    """By name; the first is honest."""
    return {
        "honest": Ledger(),
        "accountant reset each round": Ledger(book=_Forgetful),
        "charged at half q": Ledger(rate=0.1),
        "uncharged round": Ledger(charged=ROUNDS - 1),
        "uncharged expert": Ledger(expert=True),
    }


def findings_of(ledger: Ledger, folder: Path) -> list[Finding]:
    """Have the site's book charge ROUNDS rounds, and recompute what its log says."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(folder, policy=POLICY)
    site, _ = world.site("north")
    plan = make_private_plan(ROUNDS, privacy=PRIVACY)
    world.agreed(site, plan, RUN)
    book = ledger.book(site.store, site.log, site.desk.policy)
    with _charging(ledger.rate):
        for number in range(1, ROUNDS + 1):
            _round(site, book, plan, number, charged=number <= ledger.charged)
    plans = {RUN: KnownPlan(RUN, plan, [(0, True)])}
    if ledger.expert:
        other = make_private_plan(ROUNDS, privacy={**PRIVACY, "steps": 11})
        plans["toy-2"] = KnownPlan("toy-2", other, [(0, True)])
        _release_expert(site, other)
    lines = [entry.to_bytes() for entry in site.log.entries()]
    return of_log(read_log(lines, site.log.public_key), plans)


def _round(site: Site, book: BudgetBook, plan: Plan, number: int, *, charged: bool) -> None:
    update = hashlib.sha256(str(number).encode()).digest()
    if charged:
        book.reserve(RUN, plan, number)
        book.begin(RUN, plan, number)
    with site.store.transaction() as db:
        if charged:
            book.committed(RUN, number, db, update)
        site.log.append(
            db,
            EntryKind.EGRESS,
            {
                "payload": "update",
                "payload_hash": update.hex(),
                "bytes": 1000,
                "layout_hash": plan.model_layout.hash.hex(),
                "recipient": _uri(site, "coordinator", "coordinator"),
                "run": RUN,
                "round": number,
                "attempt": 1,
            },
        )


def _release_expert(site: Site, plan: Plan) -> None:
    some = hashlib.sha256(b"expert").hexdigest()
    with site.store.transaction() as db:
        site.log.append(
            db,
            EntryKind.EXPERT_RELEASED,
            {
                "run": "toy-2",
                "exchange": "exchange-1",
                "plan_hash": plan.hash.hex(),
                "expert_hash": some,
                "sealed_hash": some,
                "recipient": _uri(site, "participant", "south"),
            },
        )


def _uri(site: Site, role: str, name: str) -> str:
    own: Identity = site.identity.identity
    return own.uri.rsplit("/", 2)[0] + f"/{role}/{name}"


@contextmanager
def _charging(rate: float | None) -> Iterator[None]:
    """Charges and entries name this sampling rate."""
    if rate is None:
        yield
        return
    charge_of: Callable[[Plan], Charge] = budget_module.charge_of
    mechanism = budget_module.mechanism

    def cheaper(plan: Plan) -> Charge:
        whole = charge_of(plan)
        return Charge(whole.noise_multiplier, rate, whole.steps)

    with (
        patch.object(budget_module, "charge_of", cheaper),
        patch.object(
            budget_module,
            "mechanism",
            lambda plan: {**mechanism(plan), "sampling_rate": repr(rate)},
        ),
    ):
        yield
