"""A recipient's word for what it has opened of what was sealed to it: what ends an exchange."""

from __future__ import annotations

from typing import ClassVar

from ..pki.identity import Identity, Role
from ..pki.statement import HexHash, Label, Statement


class ExpertReceipt(Statement):
    """``site`` verified, opened and keeps these experts of other signers; hash by sender.

    A sender whose expert did not open is not named. One at least is: else the site refuses.
    """

    DOMAIN: ClassVar[str] = "expert-receipt/v1"

    site: Label
    run: Label
    exchange_id: Label
    sanction: HexHash
    experts: dict[Label, HexHash]

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)
