"""``vault.mark``: which set of records the database must hold, so that an old database shows.

It lies beside the database and names the root record by its hash: the one that is ``confirmed``, and while
a transaction commits the one that is ``prepared``. It is written before the commit and again after it, so
whatever a crash leaves is one of the two. The vault authenticates it: nobody else can make one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any

from fedpalm.canonical import canonical_json
from fedpalm.errors import VaultDamagedError, VaultRolledBackError

from .config import Home
from .files import write_durably
from .vault import Vault

NO_ROOT = ""
"""In place of a hash: the database has no root record yet."""


@dataclass(frozen=True)
class Mark:
    """Hashes of root records, hex; ``prepared`` is None when no commit was under way."""

    confirmed: str
    prepared: str | None = None

    def allows(self, root: str) -> bool:
        return root in (self.confirmed, self.prepared)


def root_hash(sealed: bytes) -> str:
    return hashlib.sha256(sealed).hexdigest()


def write_mark(home: Home, vault: Vault, mark: Mark) -> None:
    """Durably."""
    said = {"confirmed": mark.confirmed, "prepared": mark.prepared}
    write_durably(home.vault_mark, canonical_json({**said, "mac": _mac(vault, said)}))


def read_mark(home: Home, vault: Vault) -> Mark | None:
    """None: there is no such file.

    Raises:
        VaultDamagedError: it is not one that this vault wrote.
    """
    try:
        raw = home.vault_mark.read_bytes()
    except FileNotFoundError:
        return None
    try:
        values: dict[str, Any] = json.loads(raw)
        mac = str(values.pop("mac"))
        mark = Mark(values["confirmed"], values["prepared"])
        genuine = hmac.compare_digest(mac.encode(), _mac(vault, values).encode())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(home) from error
    if not genuine:
        raise _damaged(home)
    return mark


def require_allowed(home: Home, mark: Mark | None, root: str) -> None:
    """Raise VaultRolledBackError if the mark is of another state than the database."""
    if mark is None and root == NO_ROOT:
        return
    if mark is None or not mark.allows(root):
        what = f"{home.vault_mark} is gone" if mark is None else "it is not what was stored last"
        raise VaultRolledBackError(
            f"{home.database}: an old copy of it, or of {home.vault_mark.name}, was put back: {what}",
            safe="nothing was read from it, and nothing was changed",
            next_step="put the newest copy of the whole home in place: both files are of one moment there. "
            "Where this is the newest: fedpalm-participant vault accept",
        )


def _mac(vault: Vault, said: dict[str, Any]) -> str:
    return hmac.digest(vault.derive("items/mark"), canonical_json(said), "sha256").hex()


def _damaged(home: Home) -> VaultDamagedError:
    return VaultDamagedError(
        f"{home.vault_mark}: not as this vault wrote it",
        safe="nothing was read from the database's records, and nothing was changed",
        next_step="put the newest copy of the whole home in place",
    )
