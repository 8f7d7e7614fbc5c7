"""The coordinator's word that a payload is durably stored: what a site's egress log is held against."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from ..pki.identity import COORDINATOR_NAME, Identity, Role
from ..pki.statement import HexHash, Label, Statement, TimeMs

Place = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9-]{1,63}/[a-z0-9-]{1,63}(/[0-9]{1,10})?$")
]
"""``run/round/attempt`` of an update, ``run/exchange`` of a sealed expert."""


class PayloadReceipt(Statement):
    """``site``'s payload of this SHA-256 and length came whole."""

    DOMAIN: ClassVar[str] = "payload-receipt/v2"

    site: Label
    payload: Literal["update", "sealed_expert"]
    place: Place
    payload_hash: HexHash
    payload_bytes: int = Field(ge=0, lt=2**53)
    received_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.COORDINATOR, COORDINATOR_NAME)
