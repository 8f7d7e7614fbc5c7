"""``vault.json``: which data keys a vault has, and how the key that wraps them is made from a secret.

Nothing in it is secret. ``slots`` are the ways to unlock: one, or two while a change of passphrase or key
file is under way. Each slot's ``wrapped`` holds all keys; the rest of the header that says something
(format, vault, epoch, generations) and the slot's own parameters are its associated data. ``epoch`` counts
how often the header was written. ``sha256`` is no protection: it tells damage from a wrong passphrase.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedpalm.canonical import canonical_json
from fedpalm.errors import FedPalmError, VaultDamagedError

FORMAT = 1
KEY_BYTES = 32
SALT_BYTES = 16
MAX_HEADER_BYTES = 64 * 1024
MAX_GENERATION = 2**31

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)

SlotKind = Literal["key-file", "passphrase"]


@dataclass(frozen=True)
class Argon2Cost:
    """What one guess at a passphrase costs: memory in KiB, passes over it, lanes."""

    memory_kib: int
    passes: int
    lanes: int

    def within(self, least: Argon2Cost, most: Argon2Cost) -> bool:
        return (
            least.memory_kib <= self.memory_kib <= most.memory_kib
            and least.passes <= self.passes <= most.passes
            and least.lanes <= self.lanes <= most.lanes
        )


STANDARD_COST = Argon2Cost(memory_kib=64 * 1024, passes=3, lanes=4)
"""RFC 9106, section 4, the second recommended option. Every new passphrase gets it; a header with less is
not read."""
MOST_COST = Argon2Cost(memory_kib=1024 * 1024, passes=16, lanes=16)
"""A header that asks for more is not read: whoever edits it could have this machine run out of memory."""


@dataclass(frozen=True)
class Slot:
    """One way to unlock.

    ``check`` is made from the key that the secret gives, and tells a wrong secret from a damaged header.
    """

    kind: SlotKind
    salt: bytes
    cost: Argon2Cost | None  # None for a key file
    check: bytes = b""
    wrapped: bytes = b""

    def parameters(self) -> dict[str, Any]:
        """What the key is made with."""
        found: dict[str, Any] = {"kind": self.kind, "salt": self.salt.hex()}
        if self.cost is not None:
            found["argon2id"] = {
                "memory_kib": self.cost.memory_kib,
                "passes": self.cost.passes,
                "lanes": self.cost.lanes,
            }
        return found


@dataclass(frozen=True)
class Header:
    """The file's content; ``generations`` are the numbers of the data keys, oldest first."""

    vault_id: bytes
    epoch: int
    generations: tuple[int, ...]
    slots: tuple[Slot, ...]

    @property
    def newest(self) -> int:
        """The generation that everything new is sealed under."""
        return self.generations[-1]

    def associated(self, slot: Slot) -> bytes:
        """What goes with a slot's wrapped keys, and cannot be changed without them."""
        return canonical_json({**self._said(), "slot": slot.parameters()})

    def to_bytes(self) -> bytes:
        values = {
            **self._said(),
            "slots": [
                {**one.parameters(), "check": one.check.hex(), "wrapped": one.wrapped.hex()}
                for one in self.slots
            ],
        }
        digest = hashlib.sha256(canonical_json(values)).hexdigest()
        return canonical_json({**values, "sha256": digest})

    @classmethod
    def from_bytes(cls, raw: bytes, path: Path, least: Argon2Cost) -> Header:
        """Parse; nothing but exactly what :meth:`to_bytes` writes is a header.

        Raises:
            VaultDamagedError: it is damaged, of another format, or asks for a KDF that is weaker than
                ``least`` or costlier than any that this program writes.
        """
        try:
            header = cls._parsed(json.loads(raw))
            same = header.to_bytes() == raw
        except (*_MALFORMED, FedPalmError) as error:
            raise _damaged(path, f"not the header of a vault ({type(error).__name__})") from error
        if not same:
            raise _damaged(path, "bytes were changed")
        for slot in header.slots:
            if slot.cost is not None and not slot.cost.within(least, MOST_COST):
                raise _damaged(
                    path,
                    f"{slot.cost} is not within {least} and {MOST_COST}, so somebody edited it",
                )
        return header

    @classmethod
    def _parsed(cls, values: dict[str, Any]) -> Header:
        if values["format"] != FORMAT:
            raise ValueError("another format")
        generations = tuple(int(one) for one in values["generations"])
        slots = tuple(_slot(one) for one in values["slots"])
        vault_id = bytes.fromhex(values["vault"])
        rising = all(a < b for a, b in zip((0, *generations), generations, strict=False))
        if not (len(vault_id) == 16 and 1 <= len(slots) <= 2 and 1 <= len(generations) <= 2):
            raise ValueError("wrong counts")
        if not rising or generations[-1] > MAX_GENERATION:
            raise ValueError("wrong generations")
        return cls(vault_id, int(values["epoch"]), generations, slots)

    def _said(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "vault": self.vault_id.hex(),
            "epoch": self.epoch,
            "generations": list(self.generations),
        }


def _slot(values: dict[str, Any]) -> Slot:
    kind: SlotKind = values["kind"]
    if kind not in ("key-file", "passphrase"):
        raise ValueError("unknown kind of slot")
    cost = None
    if kind == "passphrase":
        said = values["argon2id"]
        cost = Argon2Cost(int(said["memory_kib"]), int(said["passes"]), int(said["lanes"]))
    salt = bytes.fromhex(values["salt"])
    if len(salt) != SALT_BYTES:
        raise ValueError("wrong salt")
    return Slot(kind, salt, cost, bytes.fromhex(values["check"]), bytes.fromhex(values["wrapped"]))


def _damaged(path: Path, what: str) -> VaultDamagedError:
    return VaultDamagedError(
        f"{path}: {what}",
        safe="nothing was unlocked; what is sealed is as it was",
        next_step="put the newest copy of this file in place; without one, what is sealed cannot be opened",
    )
