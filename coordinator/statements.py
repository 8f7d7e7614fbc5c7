"""What sites may read of a run's statements, and the countersignatures that they bring."""

from __future__ import annotations

from collections.abc import Iterator

from fedpalm.errors import NotOnRosterError, StaleRoundError
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.manifest import RoundManifest

from .conductor import Conductor
from .facts import CountersignatureRow
from .notary import Notary
from .run_records import RunRecords


class StatementDesk:
    """Manifests, countersignatures and receipts of all runs; every method is a site's call.

    Every method raises NotFoundError or NotOnRosterError for a run that is not the site's.
    """

    def __init__(self, records: RunRecords, conductor: Conductor, notary: Notary) -> None:
        self._records, self._conductor, self._notary = records, conductor, notary
        self._newest: dict[str, tuple[RoundRef, list[SignedStatement]]] = {}

    def countersign(self, run_id: str, ref: RoundRef, site: str, signed: SignedStatement) -> None:
        """Store the site's signature over the manifest of an attempt; again changes nothing.

        Raises:
            StaleRoundError: no cohort of this attempt was sealed.
            NotOnRosterError: the site is not in the cohort.
            ProtocolError, IdentityError, WrongRoleError, SenderMismatchError, HashMismatchError: not
                this site's signature over this manifest.
        """
        self._conductor.require_on_roster(run_id, site)
        manifest = self._records.manifest(run_id, ref)
        if manifest is None:
            raise StaleRoundError(
                f"run {run_id} has no manifest of {ref}",
                safe="nothing was stored",
                next_step="wait for the next instruction",
            )
        if site not in RoundManifest.read(manifest).cohort:
            raise NotOnRosterError(
                f"site {site} is not in the cohort of {ref}", safe="nothing was stored"
            )
        self._notary.countersignature(signed, run_id, manifest, site)
        self._records.write(CountersignatureRow(run_id, ref, site, signed))
        self._newest.pop(run_id, None)

    def manifests(self, run_id: str, site: str, from_seq: int) -> Iterator[SignedStatement]:
        """The run's chain from a position on."""
        self._conductor.require_on_roster(run_id, site)
        return self._records.manifests(run_id, from_seq)

    def countersignatures(self, run_id: str, site: str, ref: RoundRef) -> list[SignedStatement]:
        """Those of an attempt, as far as they have come."""
        self._conductor.require_on_roster(run_id, site)
        # A whole cohort asks for the same ones, again and again while some are missing.
        known = self._newest.get(run_id)
        if known is None or known[0] != ref:
            known = self._newest[run_id] = (ref, self._records.countersignatures(run_id, ref))
        return known[1]

    def receipts(self, run_id: str, site: str) -> Iterator[SignedStatement]:
        """Every receipt that this site was given in the run."""
        self._conductor.require_on_roster(run_id, site)
        return self._records.receipts(run_id, site)
