"""Names of things: validated once at the edge, passed as plain strings inside."""

from __future__ import annotations

import re
import secrets

from .errors import ProtocolError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def _name(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise ProtocolError(
            f"{text[:80]!r} is not a {what}: 1 to 63 of a-z, 0-9 and '-', no '-' at the ends",
            next_step=f"choose another {what}",
        )
    return text


def site_id(text: str) -> str:
    """Validate a site name (a DNS label, so that it fits a SAN URI unescaped)."""
    return _name(text, "site name")


def federation_id(text: str) -> str:
    """Validate a federation name (a DNS label)."""
    return _name(text, "federation name")


def run_id(text: str) -> str:
    """Validate a run name (a DNS label)."""
    return _name(text, "run name")


def new_run_id(name: str) -> str:
    """A fresh run name: the plan's name and 32 random bits."""
    return run_id(f"{name[:54]}-{secrets.token_hex(4)}")
