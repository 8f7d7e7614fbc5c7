"""A database that is of another moment than its mark, accepted by a person who can unlock the vault.

It happens without any attack: a backup was taken while something wrote. From the files alone it cannot be
told from an old database that somebody put back, so a person decides, and the site's log keeps it for
whoever audits. What is damaged is not accepted: every file and record must open.
"""

from __future__ import annotations

from fedpalm.errors import StateError, VaultDamagedError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.entries import Entry

from .log import SiteLog
from .store import SiteStore
from .vault_mark import NO_ROOT
from .vault_rotation import Tick, check

Found = tuple[str, str]
"""Hashes of the root record that is here, and of the one that the mark names; NO_ROOT for none."""


def look(store: SiteStore, tick: Tick) -> Found:
    """What differs, once everything here has opened.

    Raises:
        StateError: database and mark agree.
        VaultDamagedError: something does not open; the mark stays.
        VaultError, KeyFileError: the vault cannot be unlocked, or its header or mark is damaged.
    """
    found = store.items.try_without_mark()
    if found is None:
        raise StateError(
            f"{store.home.database}: it is what the vault stored last, so there is nothing to accept",
            next_step="fedpalm-participant vault check opens all of it",
        )
    wrong = check(store, tick)
    if wrong:
        raise VaultDamagedError(
            f"{len(wrong)} of the vault's files and records are damaged, first: {wrong[0].what}",
            safe="nothing was accepted, and nothing was changed",
            next_step="put another backup of the whole home in place (docs/guides/SITE.md, The vault)",
        )
    return found


def accept(store: SiteStore, log: SiteLog, found: Found) -> Entry:
    """Go on with the database that :func:`look` found, and say so in the log, which comes first.

    Raises:
        VaultRolledBackError: the database has changed since.
    """
    database, mark = (one if one != NO_ROOT else "none" for one in found)
    with store.transaction() as db:
        entry = log.append(db, EntryKind.VAULT_ACCEPTED, {"database": database, "mark": mark})
    store.items.accept()
    return entry
