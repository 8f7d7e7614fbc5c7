"""What an operator hands to a newcomer: where to call, whom to trust there, and a secret for one call.

The file holds the secret, so it is 0600 from the first byte and refused if others can read it. The
coordinator keeps the secret's hash alone.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import IdentityError, InvitationError
from ..settings import HostPort
from .bundle import chain_from_pem, pem_of
from .files import read_secret, write_secret_once
from .profile import federation_of
from .statement import Label, TimeMs
from .trust import MAX_ANCHORS

TOKEN_BYTES = 32
_Hex = StringConstraints(pattern=r"^[0-9a-f]+$")


@dataclass(frozen=True)
class Invitation:
    """An invitation for one site, good for one request until ``expires_ms``.

    Args:
        invitation_id: 32 hex digits, not secret.
        token: 32 bytes, secret.
        enrol_address, coordinator_address: ``host:port`` for the enrolment, and for ever after.
        anchors: the federation's trust anchors; whoever answers must be under one of them.
        expires_ms: Unix milliseconds.
    """

    federation: str
    site: str
    invitation_id: str
    token: bytes = field(repr=False)
    enrol_address: str
    coordinator_address: str
    anchors: tuple[x509.Certificate, ...] = field(repr=False)
    expires_ms: int


class _File(BaseModel):
    """The file, JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["fedpalm invitation v1"] = "fedpalm invitation v1"
    federation: Label
    site: Label
    invitation_id: Annotated[str, _Hex, Field(min_length=32, max_length=32)]
    token: Annotated[str, _Hex, Field(min_length=2 * TOKEN_BYTES, max_length=2 * TOKEN_BYTES)]
    enrol_address: HostPort
    coordinator_address: HostPort
    anchors: Annotated[str, StringConstraints(max_length=64 * 1024)]
    expires_ms: TimeMs


def new_invitation(
    federation: str,
    site: str,
    *,
    enrol_address: str,
    coordinator_address: str,
    anchors: Sequence[x509.Certificate],
    expires_ms: int,
) -> Invitation:
    """An invitation with a fresh name and secret."""
    return Invitation(
        federation=federation,
        site=site,
        invitation_id=secrets.token_hex(16),
        token=secrets.token_bytes(TOKEN_BYTES),
        enrol_address=enrol_address,
        coordinator_address=coordinator_address,
        anchors=tuple(anchors),
        expires_ms=expires_ms,
    )


def token_hash(token: bytes) -> bytes:
    """What the coordinator keeps: SHA-256; a token of 32 random bytes needs no salt."""
    return hashlib.sha256(token).digest()


def write_invitation(path: Path, invitation: Invitation) -> None:
    """Write the file, mode 0600.

    Raises:
        KeyFileError: the file exists, or the folder is missing or not writable.
    """
    values = _File(
        federation=invitation.federation,
        site=invitation.site,
        invitation_id=invitation.invitation_id,
        token=invitation.token.hex(),
        enrol_address=invitation.enrol_address,
        coordinator_address=invitation.coordinator_address,
        anchors=pem_of(invitation.anchors).decode(),
        expires_ms=invitation.expires_ms,
    )
    text = json.dumps(values.model_dump(), indent=2) + "\n"
    write_secret_once(path, text.encode(), "invitation")


def read_invitation(path: Path) -> Invitation:
    """Read the file; whether it is still good is for the coordinator to say.

    Raises:
        KeyFileError: missing, a link, or open to group or others.
        InvitationError: not an invitation, or damaged.
    """
    content = read_secret(path, "invitation")
    try:
        # The error's own text would repeat the values, and one of them is secret.
        found = _File.model_validate_json(content)
    except ValidationError as error:
        keys = sorted({".".join(map(str, item["loc"])) or "the file" for item in error.errors()})
        raise _damaged(path, f"wrong or missing: {', '.join(keys)[:200]}") from None
    try:
        anchors = chain_from_pem(found.anchors.encode(), "anchors")
        if len(anchors) > MAX_ANCHORS or {federation_of(a) for a in anchors} != {found.federation}:
            raise _damaged(path, "its trust anchors are not of its federation")
    except IdentityError as error:
        raise _damaged(path, error.what) from None
    return Invitation(
        federation=found.federation,
        site=found.site,
        invitation_id=found.invitation_id,
        token=bytes.fromhex(found.token),
        enrol_address=found.enrol_address,
        coordinator_address=found.coordinator_address,
        anchors=anchors,
        expires_ms=found.expires_ms,
    )


def _damaged(path: Path, why: str) -> InvitationError:
    return InvitationError(
        f"{path} is not an invitation of fedpalm: {why}",
        safe="nothing was made or sent",
        next_step="copy the file again as it is, or ask the operator for a new one",
    )
