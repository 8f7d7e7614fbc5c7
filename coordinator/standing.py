"""How the logs of sites stand with their witnesses, as far as this coordinator has seen."""

from __future__ import annotations

from dataclasses import dataclass

from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.witness import enough_witnesses
from fedpalm.pki.identity import COORDINATOR_NAME
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import Countersignature, RoundManifest

from .registry import Registry
from .run_records import RunRecords
from .store import Store


@dataclass(frozen=True)
class Witnessed:
    """A checkpoint that a manifest names, and who has countersigned that; the site itself does not count.

    Args:
        of: how many witnesses there are: the other sites of the roster and the coordinator.
        enough: more than half of them and of those that may be faulty, which are the plan's ``colluders``.
    """

    checkpoint: Checkpoint
    by: tuple[str, ...]
    of: int
    enough: bool


@dataclass(frozen=True)
class Standing:
    """A site's newest checkpoint, the newest that a manifest names, and why it is behind, if it is."""

    site: str
    state: str
    newest: Checkpoint | None
    witnessed: Witnessed | None
    refused: tuple[Checkpoint, ...]
    behind: tuple[str, ...]


@dataclass(frozen=True)
class _Sealed:
    """The newest manifest of a run under differential privacy that names a site."""

    plan: Plan
    manifest: RoundManifest
    signers: frozenset[str]


def standings(store: Store) -> list[Standing]:
    """Of every site that was ever admitted, by name."""
    records = RunRecords(store)
    sealed: dict[str, _Sealed] = {}
    last: dict[str, RoundManifest] = {}
    for run in records.load():
        if not run.plan.witnessed:
            continue
        for signed in records.manifests(run.run_id, 0):
            manifest = RoundManifest.read(signed)
            said = records.countersignatures(run.run_id, manifest.ref)
            signers = frozenset(Countersignature.read(one).site for one in said)
            for site in manifest.cohort:
                sealed[site] = _Sealed(run.plan, manifest, signers)
            for site in run.plan.roster:
                last[site] = manifest
    return [
        _standing(records, one.site, one.state, sealed.get(one.site), last.get(one.site))
        for one in Registry(store).sites()
    ]


def _standing(
    records: RunRecords, site: str, state: str, sealed: _Sealed | None, last: RoundManifest | None
) -> Standing:
    given = records.checkpoints.newest_of(site)
    newest = Checkpoint.read(given.signed) if given is not None else None
    refused = tuple(Checkpoint.read(one) for one in records.checkpoints.conflicts(site))
    behind = [f"a checkpoint of {one.size} entries was refused" for one in refused]
    if last is not None and site not in last.cohort:
        behind.append(f"gave no checkpoint in time for {last.ref} of run {last.run}")
    elif sealed is not None and site not in sealed.signers:
        behind.append(f"has not countersigned {sealed.manifest.ref} of run {sealed.manifest.run}")
    witnessed = _witnessed(records, site, sealed) if sealed is not None else None
    if witnessed is not None and not witnessed.enough:
        behind.append(f"witnessed by {len(witnessed.by)} of {witnessed.of}, too few")
    return Standing(site, state, newest, witnessed, refused, tuple(behind))


def _witnessed(records: RunRecords, site: str, sealed: _Sealed) -> Witnessed | None:
    place = records.checkpoints.place(sealed.manifest.checkpoints[site])
    if place is None:
        return None
    by = (COORDINATOR_NAME, *sorted(sealed.signers - {site}))
    of = len(sealed.plan.roster)
    return Witnessed(
        Checkpoint.read(records.checkpoints.given(place[1]).signed),
        by,
        of,
        enough_witnesses(len(by), of, sealed.plan.draft.colluders),
    )
