"""Who agreed to which plan: the coordinator's offer, and each site's signed yes or no."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.statement import HexHash, Label, Statement, TimeMs


class PlanOffer(Statement):
    """The coordinator asks its roster to run this plan."""

    DOMAIN: ClassVar[str] = "plan-offer/v1"

    run: Label
    plan_hash: HexHash
    offered_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME)


class PlanAnswer(Statement):
    """A site's answer to an offer.

    ``number`` counts the site's answers to this plan from 1: a later one replaces an earlier one, and an
    earlier one that is sent again changes nothing. ``by`` says whether a person decided or the limits of
    the site's own policy.
    """

    DOMAIN: ClassVar[str] = "plan-answer/v1"

    run: Label
    plan_hash: HexHash
    site: Label
    answer: Literal["approve", "refuse"]
    by: Literal["person", "policy"]
    number: int = Field(ge=1, lt=2**31)
    answered_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)
