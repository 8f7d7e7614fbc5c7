"""A site's signed word of what its log was, before a round: so many entries, under this root.

Whoever holds it can tell later that the log was cut, rewritten, or put back from a backup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from cryptography import x509
from pydantic import Field

from ..errors import IdentityError
from ..pki.identity import Identity, Role
from ..pki.request import signing_key_of
from ..pki.signing import key_id
from ..pki.statement import HexHash, Label, SignedStatement, Statement, TimeMs
from .merkle import HASH_BYTES


class Checkpoint(Statement):
    """The first ``size`` entries of the log of ``site`` have this Merkle root.

    ``key_id`` names the log: a site that is admitted anew, with another signing key, begins another one.
    ``round`` and ``attempt`` are those that it was given for; both are 0 in the one that closes a run.
    """

    DOMAIN: ClassVar[str] = "ledger-checkpoint/v1"

    site: Label
    key_id: HexHash
    size: int = Field(ge=1, lt=2**53)
    root: HexHash
    run: Label
    round: int = Field(ge=0, lt=2**31)
    attempt: int = Field(ge=0, lt=2**31)
    time_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)

    @property
    def log(self) -> tuple[str, str]:
        """Site and key: what one log is known by."""
        return self.site, self.key_id

    @property
    def root_bytes(self) -> bytes:
        return bytes.fromhex(self.root)

    def __str__(self) -> str:
        where = f"round {self.round}, attempt {self.attempt}" if self.round else "the end"
        return (
            f"{self.size} entries, root {self.root[:16]}, given for {where} of run {self.run} "
            f"(checkpoint {self.hash.hex()[:16]})"
        )

    @classmethod
    def open(
        cls, signed: SignedStatement, anchors: Sequence[x509.Certificate], *, now: float
    ) -> Self:
        """As :meth:`Statement.open`; and it is of the log of the very key that signed it."""
        found = super().open(signed, anchors, now=now)
        if key_id(signing_key_of(signed.chain[0])).hex() != found.key_id:
            raise IdentityError(
                f"a checkpoint of site {found.site} names the log of another signing key"
            )
        return found


@dataclass(frozen=True)
class GivenCheckpoint:
    """A checkpoint as it is given and relayed.

    ``proof`` shows consistency with the one of the same log before it; of the first there is none.
    """

    signed: SignedStatement
    proof: tuple[bytes, ...] = ()

    @classmethod
    def stored(cls, signed: bytes, proof: bytes) -> GivenCheckpoint:
        """From what a database keeps: ``signed.to_bytes()`` and :attr:`proof_bytes`."""
        parts = (proof[at : at + HASH_BYTES] for at in range(0, len(proof), HASH_BYTES))
        return cls(SignedStatement.from_bytes(signed), tuple(parts))

    @property
    def proof_bytes(self) -> bytes:
        """The hashes of the proof, one after the other."""
        return b"".join(self.proof)
