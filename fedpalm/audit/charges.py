"""The account: what was charged, whether it is the plan's mechanism, and what it adds up to.

Nothing of the log's figures is believed. Epsilon is computed again by privacy loss distributions alone. The
ledger charges the larger of two accountants: its figure is never below ours, and at most TOLERANCE above.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from ..errors import FedPalmError
from ..ledger.bodies import EntryKind
from ..ledger.entries import Entry
from ..privacy.accounting import Charge, Charges, coalesce, epsilon_pld, mechanism
from .findings import Exit, Finding
from .log import Log
from .plans import Plans

TOLERANCE = 0.02
ROUNDING = 1e-6
"""Two machines' floating point; far below what any accountant claims to know."""
EXACT_FIGURES = 12
"""In a longer account as many figures, evenly spread, are computed again; the others must lie between."""
MAX_BUDGET_CHANGES = 100
"""Before each the figure is computed again."""


@dataclass
class Spent:
    """One charge of the account: what the ledger says was spent up to here, and what we say.

    ``charge`` is this one alone; ``recomputed`` is None where the figure was held between its neighbours.
    """

    seq: int
    run: str
    round: int
    unit: str
    delta: float
    claimed: float
    budget: float
    charge: Charge
    recomputed: float | None = None


@dataclass
class Account:
    """Every charge in order, what is paid for, and what is wrong.

    Rounds count on over the runs that a plan continues, as in the entries. ``reserved`` has the seq of
    each reservation of (run, round) that is what the plan asks; ``paid`` has the commits of these: seq,
    reservation, update hash.
    """

    spent: list[Spent] = field(default_factory=list)
    reserved: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))
    paid: dict[tuple[str, int], list[tuple[int, int, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    findings: list[Finding] = field(default_factory=list)

    def of(self, unit: str) -> list[Spent]:
        return [one for one in self.spent if one.unit == unit]

    @property
    def units(self) -> list[str]:
        return sorted({one.unit for one in self.spent})


def read_account(log: Log, plans: Plans, *, exact: int = EXACT_FIGURES) -> Account:
    """The whole account, with everything that is wrong with it.

    Args:
        exact: how many figures of each unit are computed again at least.
    """
    account = Account()
    sound = _reservations(account, log, plans)
    _commits(account, log, sound)
    for unit in account.units:
        _recompute(account, account.of(unit), max(2, exact))
    return account


def _reservations(account: Account, log: Log, plans: Plans) -> dict[int, Entry]:
    """Note every charge; return the reservations that are what their plan asks."""
    sound: dict[int, Entry] = {}
    for entry in log.of(EntryKind.BUDGET_INHERITED, EntryKind.BUDGET_RESERVED):
        body, where = entry.body, f"log, entry {entry.seq}"
        try:
            charge = Charge.in_body(body)
        except FedPalmError as error:
            account.findings.append(Finding(Exit.UNCHARGED, where, error.what))
            continue
        account.spent.append(
            Spent(
                entry.seq,
                str(body.get("run", "")),
                int(body.get("round", 0)),
                str(body["unit"]),
                float(body["delta"]),
                float(body["epsilon"]),
                float(body["budget"]),
                charge,
            )
        )
        if entry.kind is EntryKind.BUDGET_INHERITED:
            continue
        if wrong := _not_of_the_plan(entry, plans):
            account.findings.append(Finding(Exit.UNCHARGED, where, wrong))
        else:
            sound[entry.seq] = entry
            account.reserved[str(body["run"]), int(body["round"])].append(entry.seq)
    return sound


def _not_of_the_plan(entry: Entry, plans: Plans) -> str:
    """Why a reservation does not pay for a round of its plan; empty if it does."""
    body = entry.body
    known = plans.get(str(body["run"]))
    if known is None or body["plan_hash"] != known.plan.hash.hex():
        return "it is charged under a plan that is not the run's"
    if not known.approved_at(entry.seq):
        return "it is charged under a plan that the site had not approved"
    number = int(body["round"]) - known.plan.rounds_before
    if not 1 <= number <= known.plan.draft.rounds:
        return f"it is charged for round {number}, which the plan does not have"
    if float(body["delta"]) * known.plan.draft.privacy.population >= 1:
        return (
            f"delta {body['delta']} is not below 1 / {known.plan.draft.privacy.population} people"
        )
    differing = [
        f"{name} {body[name]}, the plan's is {value}"
        for name, value in mechanism(known.plan).items()
        if body[name] != value
    ]
    return f"it is not charged what the plan asks: {'; '.join(differing)}" if differing else ""


def _commits(account: Account, log: Log, sound: dict[int, Entry]) -> None:
    """Each commit takes one reservation of its round, which no other commit and no abort has taken."""
    taken: set[int] = set()
    for entry in log.of(EntryKind.BUDGET_COMMITTED, EntryKind.BUDGET_ABORTED):
        body = entry.body
        seq = int(body["reservation"])
        reserved = sound.get(seq)
        if (
            reserved is None
            or seq in taken
            or seq > entry.seq
            or (reserved.body["run"], reserved.body["round"]) != (body["run"], body["round"])
        ):
            account.findings.append(
                Finding(
                    Exit.UNCHARGED,
                    f"log, entry {entry.seq}",
                    f"it spends reservation {seq}, which is not this round's to spend",
                )
            )
            continue
        taken.add(seq)
        if entry.kind is EntryKind.BUDGET_COMMITTED:
            place = (str(body["run"]), int(body["round"]))
            account.paid[place].append((entry.seq, seq, str(body["update_hash"])))


def _recompute(account: Account, spent: list[Spent], exact: int) -> None:
    """Epsilon of one unit again, and the budget.

    The first and the last figure always exactly, and the last before each change of the budget: epsilon
    only grows, so what is within the budget there was within it before.
    """
    if len({one.delta for one in spent}) > 1:
        account.findings.append(
            _epsilon(
                spent[-1], "delta changes within the account; epsilon means nothing without it"
            )
        )
    last = len(spent) - 1
    count = min(exact, len(spent))
    changes = [at for at in range(last) if spent[at].budget != spent[at + 1].budget]
    if len(changes) > MAX_BUDGET_CHANGES:
        account.findings.append(
            Finding(
                Exit.OVER_BUDGET,
                f"log, entry {spent[-1].seq}",
                f"the budget changed {len(changes)} times: it bounds nothing",
            )
        )
        changes = []
    chosen = sorted({round(at * last / max(1, count - 1)) for at in range(count)} | set(changes))
    together: Charges = ()
    for before, at in pairwise((-1, *chosen)):
        one = spent[at]
        together = coalesce((*together, *(other.charge for other in spent[before + 1 : at + 1])))
        try:
            one.recomputed = epsilon_pld(together, one.delta)
        except FedPalmError as error:
            account.findings.append(_epsilon(one, error.what))
    for one, low, high in _bounds(spent, chosen):
        if low is None or high is None:
            continue  # a figure that cannot be computed was found already
        if not low - ROUNDING <= one.claimed <= high + TOLERANCE:
            what = f"{high:.4f}" if low == high else f"between {low:.4f} and {high:.4f}"
            account.findings.append(
                _epsilon(one, f"epsilon {one.claimed:.4f} is claimed, recomputed it is {what}")
            )
        if max(one.claimed, low) > one.budget:
            account.findings.append(
                Finding(
                    Exit.OVER_BUDGET,
                    f"log, entry {one.seq}",
                    f"epsilon {max(one.claimed, low):.4f} is spent of a budget of {one.budget:g}",
                )
            )


def _bounds(
    spent: list[Spent], chosen: list[int]
) -> list[tuple[Spent, float | None, float | None]]:
    """For each charge the recomputed figures around it: epsilon only grows with what is charged."""
    found = []
    after = 0
    for at, one in enumerate(spent):
        if chosen[after] < at:
            after += 1
        high = spent[chosen[after]].recomputed
        low = high if chosen[after] == at else spent[chosen[after - 1]].recomputed
        found.append((one, low, high))
    return found


def _epsilon(one: Spent, what: str) -> Finding:
    return Finding(Exit.EPSILON, f"log, entry {one.seq}", what)
