"""Masked attempts in the store: what sites said in each step, and the step that an attempt has come to.

Columns are explained in ``schema.sql``. All rows of an attempt go in the transaction that ends it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from fedpalm.errors import FedPalmError, IntegrityError
from fedpalm.rounds.events import RoundRef
from fedpalm.secagg.messages import Box, Signed
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.limits import parse_message
from fedpalm.wire.masking import from_wire, to_wire
from fedpalm.wire.v1 import masking_pb2 as wire

from .store import Store

RELAYED = (Step.KEYS, Step.BOXES, Step.INPUTS, Step.AGREEMENTS, Step.REVEALS)
"""The steps in which sites say something."""


@dataclass(frozen=True)
class MaskingMessages:
    """All that a site said in a step; see table ``masking_messages``."""

    run_id: str
    ref: RoundRef
    step: Step
    site: str
    said: tuple[Signed, ...]

    def write(self, db: sqlite3.Connection) -> None:
        db.executemany(
            "INSERT INTO masking_messages VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    self.run_id, self.ref.round, self.ref.attempt, self.step.value, self.site,
                    one.recipient if isinstance(one, Box) else "",
                    to_wire(one).SerializeToString(),
                )
                for one in self.said
            ],
        )  # fmt: skip


@dataclass(frozen=True)
class MaskingStep:
    """An attempt goes on to this step; see table ``masking_steps``, and ``attempts``."""

    run_id: str
    ref: RoundRef
    step: Step
    deadline_ms: int

    def write(self, db: sqlite3.Connection) -> None:
        place = (self.run_id, self.ref.round, self.ref.attempt)
        db.execute(
            "INSERT OR REPLACE INTO masking_steps VALUES (?, ?, ?, ?, ?)",
            (*place, self.step.value, self.deadline_ms),
        )
        db.execute(
            "UPDATE attempts SET masking_step = ? WHERE (run_id, round, attempt) = (?, ?, ?)",
            (self.step.value, *place),
        )


@dataclass(frozen=True)
class SpentModel:
    """Sites are asked for shares of a sum that starts from this model; see table ``spent_models``."""

    model_hash: str
    run_id: str
    ref: RoundRef

    def write(self, db: sqlite3.Connection) -> None:
        """Again changes nothing: what is spent is spent."""
        db.execute(
            "INSERT OR IGNORE INTO spent_models VALUES (?, ?, ?)",
            (self.model_hash, self.run_id, self.ref.round),
        )


def forget(db: sqlite3.Connection, run_id: str, ref: RoundRef) -> None:
    """Delete what sites said in an attempt, inside the transaction that ends it."""
    for table in ("masking_messages", "masking_steps"):
        db.execute(
            f"DELETE FROM {table} WHERE (run_id, round, attempt) = (?, ?, ?)",  # noqa: S608
            (run_id, ref.round, ref.attempt),
        )


class MaskingRecords:
    """The tables masking_messages, masking_steps and spent_models."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def step(self, run_id: str, ref: RoundRef) -> tuple[Step, int] | None:
        """The step that an attempt has come to and its deadline in ms; None before its first one ended.

        Raises:
            IntegrityError: there is no such step.
        """
        rows = self._store.query(
            "SELECT step, deadline_ms FROM masking_steps WHERE (run_id, round, attempt) = (?, ?, ?)",
            run_id, ref.round, ref.attempt,
        )  # fmt: skip
        if not rows:
            return None
        name, deadline_ms = rows[0]
        try:
            return Step(name), deadline_ms
        except ValueError:
            raise IntegrityError(f"masking has no step {name!r}") from None

    def spent(self, model_hash: str) -> tuple[str, int] | None:
        """Run and round that asked sites for shares of a sum that starts from this model."""
        rows = self._store.query(
            "SELECT run_id, round FROM spent_models WHERE model_hash = ?", model_hash
        )
        return rows[0] if rows else None

    def spent_models(self) -> frozenset[str]:
        """Hex SHA-256 of every model that sites were asked for shares of."""
        return frozenset(
            model_hash for (model_hash,) in self._store.query("SELECT model_hash FROM spent_models")
        )

    def messages(
        self, run_id: str, ref: RoundRef, step: Step
    ) -> Iterator[tuple[str, tuple[Signed, ...]]]:
        """Each site and all that it said in a step, by site.

        Raises:
            IntegrityError: a row that is no message.
        """
        rows = self._store.query(
            "SELECT site, message FROM masking_messages "
            "WHERE (run_id, round, attempt, step) = (?, ?, ?, ?) ORDER BY site, recipient",
            run_id, ref.round, ref.attempt, step.value,
        )  # fmt: skip
        for site, of_site in groupby(rows, key=lambda row: row[0]):
            try:
                said = tuple(
                    from_wire(parse_message(wire.MaskingMessage.FromString, message))
                    for _, message in of_site
                )
            except FedPalmError as error:
                raise IntegrityError(f"the {step.value} of {site}: {error.what}") from error
            yield site, said

    def sites_heard(self, run_id: str, ref: RoundRef) -> int:
        """In how many steps and by how many sites something was said, all steps together."""
        ((count,),) = self._store.query(
            "SELECT count(*) FROM (SELECT DISTINCT step, site FROM masking_messages "
            "WHERE (run_id, round, attempt) = (?, ?, ?))",
            run_id, ref.round, ref.attempt,
        )  # fmt: skip
        return int(count)
