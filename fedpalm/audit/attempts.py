"""What the site was asked to do, who was asked the same, and whose signature stands for a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import FedPalmError, ProtocolError
from ..ledger.bodies import EntryKind
from ..ledger.checkpoint import Checkpoint
from ..ledger.entries import Entry
from ..ledger.witness import enough_witnesses
from ..pki.identity import COORDINATOR_NAME
from ..pki.statement import SignedStatement
from ..rounds.manifest import Countersignature, ManifestHead, RoundManifest, follow
from .findings import AuditStopped, Exit, Finding
from .log import Log
from .plans import Plans
from .trust import Signer, Signers

Place = tuple[str, int, int]
"""Run, round, attempt."""


@dataclass
class Attempt:
    """A manifest that the site accepted, in entry ``accepted``, and the sites that signed it."""

    manifest: RoundManifest
    accepted: int = -1
    signers: set[str] = field(default_factory=set)

    @property
    def place(self) -> Place:
        return self.manifest.run, self.manifest.round, self.manifest.attempt

    def __str__(self) -> str:
        return f"run {self.manifest.run}, {self.manifest.ref}"


Attempts = dict[Place, Attempt]


def read_attempts(
    manifests: Sequence[SignedStatement],
    countersignatures: Sequence[SignedStatement],
    plans: Plans,
    signers: Signers,
) -> Attempts:
    """Every run's chain of manifests, and the signatures of its sites, each under its own key.

    Raises:
        AuditStopped: a chain with a gap or a contradiction, or a signature that is nobody's of its cohort.
    """
    attempts: Attempts = {}
    heads: dict[str, ManifestHead] = {}
    by_hash: dict[str, Attempt] = {}
    for at, signed in enumerate(manifests):
        where = f"manifest {at}"
        manifest = signers.open(RoundManifest, signed, where)
        known = plans.get(manifest.run)
        if known is None:
            raise AuditStopped(Exit.MALFORMED, where, f"the plan of run {manifest.run} is missing")
        head = heads.get(manifest.run) or ManifestHead.start(known.plan, manifest.run)
        try:
            heads[manifest.run] = follow(head, manifest, known.plan, manifest.run)
        except ProtocolError as error:
            raise AuditStopped(Exit.MALFORMED, where, error.what) from None
        except FedPalmError as error:
            raise AuditStopped(Exit.TAMPERED, where, error.what) from None
        attempt = Attempt(manifest)
        attempts[attempt.place] = by_hash[manifest.hash.hex()] = attempt
    for at, signed in enumerate(countersignatures):
        where = f"countersignature {at}"
        said = signers.open(Countersignature, signed, where)
        found = by_hash.get(said.manifest_hash)
        if found is None or found.place != (said.run, said.round, said.attempt):
            raise AuditStopped(Exit.MALFORMED, where, "it belongs to no manifest of the bundle")
        if said.site in found.signers:
            raise AuditStopped(Exit.MALFORMED, where, f"{said.site} has signed {found} twice")
        raw = signers.signer(signed.chain, where).key.public_bytes_raw().hex()
        if found.manifest.signing_keys.get(said.site) != raw:
            raise AuditStopped(
                Exit.TAMPERED, where, f"{said.site} is not in the cohort of {found} with this key"
            )
        found.signers.add(said.site)
    return attempts


def note_accepted(attempts: Attempts, log: Log) -> list[Finding]:
    """Hold the manifests against the log's entries for them, one for one.

    Raises:
        AuditStopped: the log names a manifest that is missing, or another one.
    """
    for entry in log.of(EntryKind.MANIFEST_ACCEPTED):
        body, where = entry.body, f"log, entry {entry.seq}"
        found = attempts.get((str(body["run"]), int(body["round"]), int(body["attempt"])))
        if found is None:
            raise AuditStopped(Exit.MALFORMED, where, "the manifest that it accepts is missing")
        if found.manifest.hash.hex() != body["manifest_hash"] or found.accepted >= 0:
            raise AuditStopped(Exit.TAMPERED, where, f"it accepts another manifest of {found}")
        found.accepted = entry.seq
    return [
        Finding(Exit.FORKED, str(one), "the log has no entry for this manifest: it was cut")
        for one in attempts.values()
        if one.accepted < 0
    ]


@dataclass
class Checkpoints:
    """Checkpoints of the site's own log by hash, and what is wrong with them.

    ``earlier`` has the newest of each log that the site kept under a key that it had before, by that key.
    """

    own: dict[str, Checkpoint] = field(default_factory=dict)
    earlier: dict[str, Checkpoint] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def read_checkpoints(
    signed: Iterable[SignedStatement],
    outside: Iterable[tuple[Checkpoint, Signer]],
    log: Log,
    owner: Signer,
    signers: Signers,
) -> Checkpoints:
    """Hold every checkpoint of this log against its tree.

    Args:
        outside: verified checkpoints that the auditor has from somewhere else.
    Raises:
        AuditStopped: a checkpoint that its site has not signed.
    """
    found = Checkpoints()
    every = []
    for at, one in enumerate(signed):
        where = f"checkpoint {at}"
        said, signer = signers.open(Checkpoint, one, where), signers.signer(one.chain, where)
        if signer.key_id != said.key_id:
            raise AuditStopped(Exit.TAMPERED, where, "it names the log of another signing key")
        every.append((where, said, signer))
    every += [("your checkpoint", said, signer) for said, signer in outside]
    for where, said, signer in every:
        if said.log == (owner.identity.name, owner.key_id):
            found.own[said.hash.hex()] = said
            found.findings += _held_against(said.size, said.root, log, where)
        elif said.site == owner.identity.name and signer.issued < owner.issued:
            newest = found.earlier.get(said.key_id)
            if newest is None or newest.size < said.size:
                found.earlier[said.key_id] = said
    for entry in log.of(EntryKind.CHECKPOINT):
        where = f"log, entry {entry.seq}"
        size, root = int(entry.body["size"]), str(entry.body["root"])
        if size > entry.seq:
            found.findings.append(
                Finding(Exit.FORKED, where, f"it names a tree of {size} entries, itself included")
            )
        else:
            found.findings += _held_against(size, root, log, where)
    found.findings += _inherited(log, found.earlier)
    return found


def _inherited(log: Log, earlier: Mapping[str, Checkpoint]) -> Iterator[Finding]:
    """What the site took over of its logs under other keys, held against checkpoints of these.

    A log of which there is a checkpoint has charges: a site gives one after it has reserved a round.
    """
    newest: dict[str, Entry] = {}
    for entry in log.of(EntryKind.BUDGET_INHERITED):
        held = newest.get(str(entry.body["key_id"]))
        if held is None or int(held.body["size"]) <= int(entry.body["size"]):
            newest[str(entry.body["key_id"])] = entry
    for key, checkpoint in earlier.items():
        if key not in newest and not newest:
            yield Finding(
                Exit.FORKED,
                "log",
                f"{checkpoint.size} entries of an earlier log of the site (key {key[:16]}), which has "
                "charges, are not inherited",
            )
        if key not in newest:
            continue  # Perhaps by a log between them, which was inherited: a note says so.
        where, body = f"log, entry {newest[key].seq}", newest[key].body
        size = int(body["size"])
        if checkpoint.size > size:
            yield Finding(
                Exit.FORKED,
                where,
                f"it inherits {size} entries of the earlier log, of which there is a checkpoint of "
                f"{checkpoint.size}",
            )
        elif checkpoint.size == size and checkpoint.root != body["root"]:
            yield Finding(
                Exit.FORKED, where, "it inherits another history than the earlier log's checkpoint"
            )


def _held_against(size: int, root: str, log: Log, where: str) -> list[Finding]:
    if size > log.size:
        what = (
            f"the log ends after {log.size} entries, its signed checkpoint has {size}: it was cut"
        )
    elif log.root(size) != root:
        what = f"the first {size} entries are not those of the signed checkpoint: another history"
    else:
        return []
    return [Finding(Exit.FORKED, where, what)]


@dataclass(frozen=True)
class Witnessed:
    """How many entries of the log a manifest's signatures stand for, and who the witnesses are."""

    size: int
    by: tuple[str, ...]
    needed: int


def witnesses_of(
    attempt: Attempt, plans: Plans, checkpoints: Checkpoints, site: str, faulty: int
) -> Witnessed:
    """Whose signatures stand for the checkpoint that a manifest names for this site.

    Witnesses are the other sites of the plan's whole roster, whatever the cohort was, and the coordinator,
    who signed the manifest: so two groups that are large enough share an honest one, in any two attempts.
    """
    manifest = attempt.manifest
    roster = plans[manifest.run].plan.roster
    possible = len(roster)  # the other sites, and the coordinator
    needed = (possible + faulty) // 2 + 1
    held = checkpoints.own.get(manifest.checkpoints.get(site, ""))
    by = (COORDINATOR_NAME, *sorted(attempt.signers & set(roster) - {site}))
    if held is None or (held.run, held.round, held.attempt) != attempt.place:
        return Witnessed(0, (), needed)
    enough = enough_witnesses(len(by), possible, faulty)
    return Witnessed(held.size if enough else 0, by, needed)
