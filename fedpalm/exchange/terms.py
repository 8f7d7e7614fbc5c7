"""What an exchange is about: what the coordinator proposes and every site says yes to, word for word."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from ..errors import SanctionExpiredError
from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.statement import HexHash, Label, Statement, TimeMs
from ..plan import MAX_SITES, Plan
from ..text import one_line

Purpose = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ExchangeTerms(Statement):
    """One exchange: every site that signs releases its expert to all others that sign, once.

    ``number`` counts the exchanges that were proposed for a plan, from 1; ``roster`` is the plan's, and
    ``without_refusers`` what the plan says of a site that refuses: the exchange ends, or goes on among the
    others. ``purpose`` is the operator's words, one line; ``expires_ms`` ends it for everybody, by the
    clock of whoever looks.
    """

    DOMAIN: ClassVar[str] = "exchange-terms/v1"

    run: Label
    exchange_id: Label
    number: Annotated[int, Field(ge=1, lt=2**31)]
    plan_hash: HexHash
    roster: tuple[Label, ...]
    layout_hash: HexHash
    without_refusers: bool
    purpose: Purpose
    expires_ms: TimeMs

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if list(self.roster) != sorted(set(self.roster)) or not 2 <= len(self.roster) <= MAX_SITES:
            raise ValueError(f"the roster names 2 to {MAX_SITES} sites, sorted, each once")
        if one_line(self.purpose) != self.purpose:
            raise ValueError("the purpose is one line of text")
        return self

    @classmethod
    def of(
        cls, plan: Plan, run: str, exchange_id: str, *, number: int, purpose: str, expires_ms: int
    ) -> ExchangeTerms:
        """The terms of an exchange of a run, from the plan that all its sites agreed to."""
        return cls(
            federation=plan.federation,
            run=run,
            exchange_id=exchange_id,
            number=number,
            plan_hash=plan.hash.hex(),
            roster=plan.roster,
            layout_hash=plan.released_layout.hash.hex(),
            without_refusers=plan.draft.exchange_without_refusers,
            purpose=purpose,
            expires_ms=expires_ms,
        )

    def are_of(self, plan: Plan, run: str) -> bool:
        """Whether everything in them that a plan decides is as this plan has it."""
        return self == ExchangeTerms.of(
            plan,
            run,
            self.exchange_id,
            number=self.number,
            purpose=self.purpose,
            expires_ms=self.expires_ms,
        )

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME)

    def require_alive(self, now: float) -> None:
        """Raises SanctionExpiredError: it is too late; ``now`` in seconds since the Unix epoch."""
        if round(now * 1000) > self.expires_ms:
            raise SanctionExpiredError(
                f"exchange {self.exchange_id} has expired",
                safe="nothing was sealed, sent or opened after that",
                next_step="the operator proposes a new one: fedpalm-coordinator exchange propose",
            )
