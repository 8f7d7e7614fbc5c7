"""What a series of DP-SGD steps costs: epsilon at a given delta, by two accountants that must agree.

A step releases a sum over a Poisson sample, clipped to C, with Gaussian noise of sigma C (ADR 13). Two
data sets are neighbours if one has a person (or record) that the other lacks: add/remove, which is not
replace-one. Both accountants give upper bounds; what is charged is the larger one.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from math import isfinite, log
from typing import Any

import numpy as np

from ..errors import AccountingError, ConfigError, ProtocolError
from ..plan import Plan, PrivacySettings

RELATION = "add-remove"
SAMPLER = "poisson"
MECHANISM = "dp-sgd"
RNG = "chacha20"
"""Where a site's noise and draws come from (:mod:`.randomness`)."""
UNITS = ("subject", "record")
PLD_INTERVAL = 1e-4
"""Width of a cell of privacy loss; its error grows with the steps, and always upwards."""
PRV_EPSILON_ERROR = 0.01
"""Added to the PRV figure, so that it is an upper bound (Gopi et al. 2021, arXiv:2106.02848)."""
MAX_PRV_CELLS = 2**25
"""Of the discretised loss; about 3 GiB of memory."""
MAX_PRV_TERMS = 20_000
"""Of Opacus's series for Renyi divergences, some sigma^2 log(1/q): about a quarter of a minute."""
MAX_STEPS = 1_000_000
"""Of an account: with ten times as many neither accountant comes to an end in minutes."""
MAX_MECHANISMS = 200
"""Of an account: each that differs in noise or sampling rate costs the accountants much of a second."""
MAX_EPSILON = 200.0
"""By Renyi divergences, which are cheap: above it nothing is promised, and nothing accounted for."""
MAX_AGREED_EPSILON = 50.0
"""Up to here the two are held to 0.02 of each other (docs/results/dp-accounting.md)."""


def mechanism(plan: Plan) -> dict[str, str | int]:
    """The fields of a ledger entry that say what a round of a plan is charged for."""
    privacy = plan.draft.privacy
    return {
        "mechanism": MECHANISM,
        "rng": RNG,
        "unit": privacy.unit,
        "relation": RELATION,
        "sampler": SAMPLER,
        "noise_multiplier": repr(privacy.noise_multiplier),
        "clip_norm": repr(privacy.clip_norm),
        "sampling_rate": repr(privacy.sampling_rate),
        "steps": privacy.steps,
    }


def paying_runs(plan: Plan, run_id: str) -> set[str]:
    """Whose charges pay for an expert: of the run's rounds, and of the run that it goes on from."""
    return {run_id} if plan.continues is None else {run_id, plan.continues.run}


@dataclass(frozen=True, order=True)
class Charge:
    """``steps`` steps of one mechanism: noise of ``noise_multiplier`` C, a draw with ``sampling_rate``.

    Raises:
        ConfigError: a value that no mechanism has.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (isfinite(self.noise_multiplier) and self.noise_multiplier > 0):
            raise ConfigError(f"noise multiplier {self.noise_multiplier}: it must be above 0")
        if not 0 < self.sampling_rate <= 1:
            raise ConfigError(
                f"sampling rate {self.sampling_rate}: it must be above 0 and at most 1"
            )
        if type(self.steps) is not int or self.steps < 1:
            raise ConfigError(f"{self.steps} steps: a charge has at least 1")

    @classmethod
    def of(cls, privacy: PrivacySettings, rounds: int = 1) -> Charge:
        """So many rounds of a plan."""
        return cls(privacy.noise_multiplier, privacy.sampling_rate, rounds * privacy.steps)

    @classmethod
    def in_body(cls, body: Mapping[str, Any]) -> Charge:
        """What a ledger entry that charges says.

        Raises:
            ProtocolError: of a mechanism or by a unit that is not known here.
        """
        known = (body["mechanism"], body["relation"], body["sampler"])
        if known != (MECHANISM, RELATION, SAMPLER) or body["unit"] not in UNITS:
            raise ProtocolError(
                f"the log charges {body['mechanism']} by {body['unit']}, which is not known here",
                safe="nothing was charged",
                next_step="use the program version that wrote it, or a newer one",
            )
        return cls(
            float(body["noise_multiplier"]), float(body["sampling_rate"]), int(body["steps"])
        )


Charges = tuple[Charge, ...]


def coalesce(charges: Iterable[Charge]) -> Charges:
    """The same charges, one for each (sigma, q), sorted: an account does not depend on their order."""
    steps: dict[tuple[float, float], int] = defaultdict(int)
    for charge in charges:
        steps[charge.noise_multiplier, charge.sampling_rate] += charge.steps
    return tuple(sorted(Charge(sigma, rate, count) for (sigma, rate), count in steps.items()))


def charged_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """What is charged for all of ``charges`` together: the larger figure; 0 for none.

    Raises:
        ConfigError: delta is not between 0 and 1.
        AccountingError: one of the accountants cannot say; nothing is then charged by the other alone.
    """
    every = coalesce(charges)
    return max(epsilon_pld(every, delta), epsilon_prv(every, delta))


def accountant_name() -> str:
    """Which programs make :func:`charged_epsilon`, as the ledger has it."""
    return f"prv+pld opacus {version('opacus')}, dp-accounting {version('dp-accounting')}"


def epsilon_pld(charges: Iterable[Charge], delta: float) -> float:
    """By privacy loss distributions, the worse of adding and removing (dp-accounting). Needs no torch.

    Raises:
        ConfigError: delta is not between 0 and 1.
        AccountingError: no finite epsilon comes out.
    """
    return _pld(coalesce(charges), _checked(delta))


def epsilon_prv(charges: Iterable[Charge], delta: float) -> float:
    """By privacy loss random variables (Opacus's accountant): its upper bound. Imports opacus and torch.

    Raises:
        ConfigError: delta is not between 0 and 1.
        AccountingError: no finite epsilon comes out, or it would take too much memory.
    """
    return _prv(coalesce(charges), _checked(delta))


@lru_cache(maxsize=1024)
def _pld(charges: Charges, delta: float) -> float:
    if not charges:
        return 0.0
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    _require_bounded(charges, delta)
    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=PLD_INTERVAL,
    )
    try:
        with np.errstate(all="ignore"):
            found = accountant.compose(_event(charges)).get_epsilon(delta)
    except (ArithmeticError, ValueError) as error:
        raise _unknown("dp-accounting", charges, delta, str(error)) from error
    return _finite("dp-accounting", found, charges, delta)


@lru_cache(maxsize=1024)
def _prv(charges: Charges, delta: float) -> float:
    if not charges:
        return 0.0
    _require_bounded(charges, delta)
    for one in charges:
        if one.noise_multiplier**2 * -log(one.sampling_rate) > MAX_PRV_TERMS:
            raise _unknown(
                "opacus",
                charges,
                delta,
                "with so much noise on so few it takes hours; use less of it",
            )
    from opacus.accountants import PRVAccountant

    class Bounded(PRVAccountant):  # type: ignore[misc, unused-ignore]
        def _get_domain(self, **known: Any) -> Any:
            domain = super()._get_domain(**known)
            if domain.size > MAX_PRV_CELLS:
                raise ValueError(f"{domain.size:,} cells, the limit is {MAX_PRV_CELLS:,}")
            return domain

    accountant: Any = Bounded()
    accountant.history = [(one.noise_multiplier, one.sampling_rate, one.steps) for one in charges]
    try:
        # Warnings of logarithms of 0 at q = 1, where the loss has no lower end.
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = accountant.get_epsilon(delta, eps_error=PRV_EPSILON_ERROR)
    except (ArithmeticError, IndexError, RuntimeError, ValueError) as error:
        raise _unknown("opacus", charges, delta, str(error)) from error
    return _finite("opacus", found, charges, delta)


def _event(charges: Charges) -> Any:
    """The charges as data, in dp-accounting's words."""
    from dp_accounting import (
        ComposedDpEvent,
        GaussianDpEvent,
        PoissonSampledDpEvent,
        SelfComposedDpEvent,
    )

    return ComposedDpEvent(
        [
            SelfComposedDpEvent(
                PoissonSampledDpEvent(one.sampling_rate, GaussianDpEvent(one.noise_multiplier)),
                one.steps,
            )
            for one in charges
        ]
    )


def _require_bounded(charges: Charges, delta: float) -> None:
    """Raises AccountingError, before anything costly, for what has no epsilon worth the name."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant

    if sum(one.steps for one in charges) > MAX_STEPS:
        raise _unknown("fedpalm", charges, delta, f"an account has at most {MAX_STEPS:,} steps")
    if len(charges) > MAX_MECHANISMS:
        raise _unknown("fedpalm", charges, delta, f"{len(charges)} mechanisms are too many")
    accountant = RdpAccountant(range(2, 65), NeighboringRelation.ADD_OR_REMOVE_ONE)
    try:
        with np.errstate(all="ignore"):
            epsilon = accountant.compose(_event(charges)).get_epsilon(delta)
    except (ArithmeticError, ValueError) as error:
        raise _unknown("dp-accounting", charges, delta, str(error)) from error
    if not epsilon <= MAX_EPSILON:
        raise _unknown("fedpalm", charges, delta, f"epsilon is far above {MAX_EPSILON:g}")


def _checked(delta: float) -> float:
    if not 0 < delta < 1:
        raise ConfigError(
            f"delta {delta}: it must be above 0 and below 1",
            next_step="set delta in policy.toml, below 1 / people",
        )
    return delta


def _finite(accountant: str, epsilon: float, charges: Charges, delta: float) -> float:
    if not isfinite(epsilon):
        raise _unknown(accountant, charges, delta, f"it says {epsilon}")
    return max(0.0, float(epsilon))


def _unknown(accountant: str, charges: Charges, delta: float, why: str) -> AccountingError:
    made_of = "; ".join(
        f"{one.steps} steps of sigma {one.noise_multiplier:g}, q {one.sampling_rate:g}"
        for one in charges[:5]
    )
    return AccountingError(
        f"{accountant} cannot account for {made_of} at delta {delta:g}: {why}",
        safe="nothing was trained or charged",
        next_step="use more noise, fewer steps, or a larger delta",
    )


def noise_for(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The least noise multiplier, rounded up to 1/1000, that ``steps`` steps may have for ``epsilon``.

    What is charged for it (:func:`charged_epsilon`) is at most ``epsilon``; with 1/1000 less it is more.

    Raises:
        ConfigError: delta is not between 0 and 1, or epsilon is not a number above 0.
        AccountingError: no noise below 1000 is enough.
    """
    if not (isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon {epsilon}: it must be a number above 0")
    _checked(delta)

    def enough(account: Callable[[Charges, float], float], thousandths: int) -> bool:
        try:
            return account((Charge(thousandths / 1000, sampling_rate, steps),), delta) <= epsilon
        except AccountingError:  # so little noise that no accountant can say
            return False

    low, high = 0, 500
    while not enough(epsilon_prv, high):
        low, high = high, 2 * high
        if high > 1_000_000:
            raise AccountingError(
                f"{steps} steps with q {sampling_rate:g} cannot be had for epsilon {epsilon:g} at "
                f"delta {delta:g}",
                safe="nothing was trained or charged",
                next_step="take fewer steps, a lower sampling rate, or a larger epsilon",
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(epsilon_prv, middle) else (middle, high)
    # The charge is never below the PRV figure, so the least that is enough is not below this one.
    while not enough(charged_epsilon, high):
        high += 1
    return high / 1000
