"""The coordinator as a witness: takes sites' checkpoints before a cohort is sealed, and relays them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache

from fedpalm.errors import (
    ForkError,
    ProtocolError,
    RolledBackError,
    StaleRoundError,
    StateError,
)
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.ledger.witness import check_follows
from fedpalm.rounds.events import CheckpointGiven, RoundRef
from fedpalm.rounds.machine import Round, RoundState
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.rounds.run import InRound

from .checkpoint_records import CheckpointRow, ConflictRow
from .conducted import ConductedRun
from .notary import Notary
from .run_loop import RunLoop
from .run_records import RunRecords

log = logging.getLogger(__name__)

REMEMBERED = 1000
"""Checkpoints that stay in memory: a whole cohort asks for the same ones."""


class CheckpointDesk:
    """What sites say and ask about checkpoints; every method is a site's call.

    Every method raises NotFoundError or NotOnRosterError for a run that is not the site's.
    """

    def __init__(self, loop: RunLoop, records: RunRecords, notary: Notary) -> None:
        self._loop, self._records, self._notary = loop, records, notary
        self._checkpoints = records.checkpoints
        self._given = lru_cache(REMEMBERED)(self._checkpoints.given)

    def give(self, run_id: str, ref: RoundRef, site: str, given: Sequence[GivenCheckpoint]) -> None:
        """Store the site's checkpoint for an attempt that is open, and those before it that are not here.

        What is stored already is no news. One for another attempt is witnessed, and counts for nothing.

        Raises:
            ProtocolError, IdentityError, WrongRoleError, SenderMismatchError: not this site's checkpoints,
                of the log of its present key.
            PlanNotApprovedError: its newest answer to the plan is no, or none has come.
            StateError: the plan asks for none, or another one came for this attempt.
            StaleRoundError: none of them is for this attempt, or it waits for none (any more).
            ForkError, RolledBackError: one does not go on from the one before it; both are kept.
            ResourceError: one could not be stored.
        """
        conducted = self._loop.of_roster(run_id, site)
        if not conducted.plan.witnessed:
            raise StateError(
                f"the plan of run {run_id} has no differential privacy, and asks for no checkpoints",
                safe="nothing was stored",
            )
        conducted.require_approval(site)
        for one in given:
            self._take(conducted, ref, site, one)
        if not self._checkpoints.of_attempt(run_id, ref, site, self._notary.present_log(site)):
            raise StaleRoundError(
                f"run {run_id}, {ref}: no checkpoint of site {site} came for it",
                safe="what came counts for nothing",
                next_step="wait for the next instruction",
            )

    def fetch(
        self, run_id: str, ref: RoundRef, site: str, from_seq: int, newest: Sequence[bytes]
    ) -> Iterator[GivenCheckpoint]:
        """Of each site in the run's manifests from ``from_seq`` to this attempt's, its checkpoints.

        They begin after the one that the caller has, or with the first that these manifests name, and go
        on to the last that they name; of each log in order, without a gap.

        Args:
            newest: hashes (32 bytes) of the newest checkpoint that the caller has of each site.
        """
        self._loop.of_roster(run_id, site)
        held = dict(filter(None, (self._checkpoints.place(one.hex()) for one in newest)))
        named: dict[str, list[int]] = {}
        for signed in self._records.manifests(run_id, from_seq):
            manifest = RoundManifest.read(signed)
            if (manifest.round, manifest.attempt) > (ref.round, ref.attempt):
                break
            for checkpoint_hash in manifest.checkpoints.values():
                if place := self._checkpoints.place(checkpoint_hash):
                    named.setdefault(place[0], []).append(place[1])
        for owner, places in named.items():
            if owner != site:
                first = held.get(owner, min(places) - 1) + 1
                for seq in self._checkpoints.between(owner, first, max(places)):
                    yield self._given(seq)

    # --- inside -----------------------------------------------------------------------------------

    def _take(
        self, conducted: ConductedRun, ref: RoundRef, site: str, given: GivenCheckpoint
    ) -> None:
        said = self._notary.checkpoint(given.signed, site)
        place = RoundRef(said.round, said.attempt)
        before = self._checkpoints.of_attempt(said.run, place, site, said.key_id)
        if before == said.hash.hex():
            return
        self._witness(said, given)
        if before:
            raise StateError(
                f"site {site} has given checkpoint {before[:16]} for {place} of run {said.run}",
                safe="the first one stays",
                next_step="wait for the next instruction",
            )
        log.info("%s: %s: site %s: checkpoint of %d entries", said.run, place, site, said.size)
        row, current = CheckpointRow(said, given), conducted.run.current
        if (said.run, place) == (conducted.run_id, ref) and _is_open(current, ref):
            received = InRound(ref, CheckpointGiven(site), self._loop.now_ms())
            self._loop.feed(said.run, received, (row,))
        else:
            self._records.write(row)

    def _witness(self, said: Checkpoint, given: GivenCheckpoint) -> None:
        newest = self._checkpoints.newest(said.site, said.key_id)
        if newest is None:
            if given.proof:
                raise ProtocolError(
                    f"the first checkpoint of site {said.site} came with a proof from one that is not here",
                    safe="nothing was stored",
                    next_step="send what comes before it as well",
                )
            return
        held = Checkpoint.read(newest.signed)
        try:
            check_follows(held, said, given.proof)
        except (ForkError, RolledBackError) as error:
            log.warning("%s: %s", said.site, error.what)
            self._records.write(ConflictRow(held, said, given.signed, self._loop.now_ms()))
            raise


def _is_open(current: Round | None, ref: RoundRef) -> bool:
    return current is not None and current.ref == ref and current.state is RoundState.OPEN
