"""What an exchange is about: the facts that every site says yes to, word for word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ProtocolError
from ..ids import federation_id, run_id, site_id
from ..plan import MAX_SITES, Plan


@dataclass(frozen=True)
class ExchangeTerms:
    """One exchange: every site of ``roster`` releases its expert to all the others, once.

    Args:
        plan_hash: 32 bytes, the plan whose run trained the experts.
        roster: sorted site names, at least two.
        layout_hash: 32 bytes, the layout of every expert.
    Raises:
        ProtocolError: on construction, for a malformed name, hash or roster.
    """

    federation: str
    run: str
    exchange_id: str
    plan_hash: bytes
    roster: tuple[str, ...]
    layout_hash: bytes

    def __post_init__(self) -> None:
        federation_id(self.federation)
        run_id(self.run)
        run_id(self.exchange_id)
        for site in self.roster:
            site_id(site)
        if list(self.roster) != sorted(set(self.roster)) or not 2 <= len(self.roster) <= MAX_SITES:
            raise ProtocolError(
                f"the roster of an exchange names 2 to {MAX_SITES} sites, sorted, each once"
            )
        if len(self.plan_hash) != 32 or len(self.layout_hash) != 32:
            raise ProtocolError("a hash in the terms of an exchange is not 32 bytes long")

    @classmethod
    def of(cls, plan: Plan, run: str, exchange_id: str) -> ExchangeTerms:
        """What an exchange of a run is about, from the plan that all its sites agreed to."""
        return cls(
            federation=plan.federation,
            run=run,
            exchange_id=exchange_id,
            plan_hash=plan.hash,
            roster=plan.roster,
            layout_hash=plan.released_layout.hash,
        )

    def others(self, site: str) -> tuple[str, ...]:
        """The roster without ``site``."""
        return tuple(other for other in self.roster if other != site)

    def to_json(self) -> dict[str, Any]:
        return {
            "federation": self.federation,
            "run": self.run,
            "exchange_id": self.exchange_id,
            "plan_hash": self.plan_hash.hex(),
            "roster": list(self.roster),
            "layout_hash": self.layout_hash.hex(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ExchangeTerms:
        """Inverse of :meth:`to_json`. Raises ProtocolError on anything else."""
        try:
            terms = cls(
                federation=values["federation"],
                run=values["run"],
                exchange_id=values["exchange_id"],
                plan_hash=bytes.fromhex(values["plan_hash"]),
                roster=tuple(values["roster"]),
                layout_hash=bytes.fromhex(values["layout_hash"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"malformed terms of an exchange: {error!r}") from error
        if terms.to_json() != values:
            raise ProtocolError("malformed terms of an exchange: unknown or misspelt values")
        return terms
