"""Verify a bundle offline: everything in it held against everything else, and against the auditor's trust.

In this order, each step believing only what the steps before it showed: form, certificates, plans,
manifests and who signed them, the log's chain, its seal, its checkpoints, charges, updates, experts,
receipts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, FedPalmError, ProtocolError
from ..ledger.bodies import EntryKind
from ..ledger.checkpoint import Checkpoint
from ..pki.identity import Identity, Role
from ..pki.profile import certificate_hash
from ..pki.statement import SignedStatement
from .attempts import Attempts, Checkpoints, note_accepted, read_attempts, read_checkpoints
from .bundle import FORMAT, BundleReader, BundleSeal, open_bundle
from .charges import EXACT_FIGURES, Account, read_account
from .experts import check_experts
from .findings import AuditStopped, Exit, Finding, exit_of
from .log import SEALED_EXPERT, UPDATE, Log, read_log
from .plans import Plans, note_answers, read_plans
from .releases import Releases, check_control, check_receipts, check_updates
from .trust import Signer, Signers, Trust

NO_PRIVACY = "no differential privacy: nothing bounds what the updates tell"


@dataclass
class Audit:
    """What an audit found, and all that a report on it needs.

    What was not reached, because the audit stopped before, is empty. ``outside`` is how many checkpoints
    the auditor gave, ``vouching`` the sizes of this very log that they vouch for.
    """

    federation: str = ""
    site: str = ""
    key_id: str = ""
    faulty: int = 1
    outside: int = 0
    vouching: tuple[int, ...] = ()
    unpinned: tuple[str, ...] = ()
    sealed_ms: int = 0
    log: Log = field(default_factory=Log)
    plans: Plans = field(default_factory=dict)
    attempts: Attempts = field(default_factory=dict)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    account: Account = field(default_factory=Account)
    releases: Releases = field(default_factory=Releases)
    notes: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def exit(self) -> Exit:
        return exit_of(self.findings)

    @property
    def vouched(self) -> int:
        """So many entries, from the first on, are under a checkpoint that others than the site hold."""
        sizes = [one.size for one in self.releases.witnessed.values()]
        return max([*sizes, *self.vouching], default=0)

    def to_json(self) -> dict[str, Any]:
        """The verdict, as ``--json`` prints it."""
        return {
            "result": self.exit.name.lower(),
            "exit_code": int(self.exit),
            "federation": self.federation,
            "site": self.site,
            "key_id": self.key_id,
            "entries": self.log.size,
            "root": self.log.root(self.log.size) if self.log.size else "",
            "sealed_ms": self.sealed_ms,
            "vouched_entries": self.vouched,
            "faulty_witnesses": self.faulty,
            "keys_not_pinned": list(self.unpinned),
            "runs": [
                {
                    "run": one.run,
                    "plan_hash": one.plan.hash.hex(),
                    "approved": one.approved,
                    "privacy_unit": one.plan.draft.privacy.unit,
                    "masking": one.plan.draft.masking,
                }
                for one in self.plans.values()
            ],
            "accounts": [
                {
                    "unit": unit,
                    "charges": len(spent),
                    "recomputed_exactly": sum(one.recomputed is not None for one in spent),
                    "epsilon": spent[-1].claimed,
                    "epsilon_recomputed": spent[-1].recomputed,
                    "delta": spent[-1].delta,
                    "budget": spent[-1].budget,
                }
                for unit in self.account.units
                if (spent := self.account.of(unit))
            ],
            "released": {
                payload: sum(one.entry.body["payload"] == payload for one in self.releases.released)
                for payload in (UPDATE, SEALED_EXPERT)
            },
            "notes": self.notes,
            "findings": [finding.to_json() for finding in self.findings],
        }


class _OwnFileError(Exception):
    """A file of the auditor's own cannot be used; the cause says why. The bundle is not to blame."""


def verify_bundle(
    path: Path,
    trust: Trust,
    *,
    faulty: int = 1,
    outside: Sequence[Path] = (),
    exact: int = EXACT_FIGURES,
) -> Audit:
    """Audit one bundle.

    Args:
        faulty: how many witnesses may lie or work together with the site.
        outside: checkpoints from somebody else: files of one signed checkpoint, or other sites' bundles.
        exact: figures of epsilon that are computed again at least; in between, bounds are.
    Raises:
        ConfigError: the auditor's own files cannot be used.
        NotFoundError: there is no bundle.
    """
    audit = Audit(faulty=faulty)
    with open_bundle(path) as file:
        try:
            _audit(audit, file, trust, outside, exact)
        except AuditStopped as stopped:
            audit.findings.append(stopped.finding)
        except _OwnFileError as error:
            assert error.__cause__ is not None
            raise error.__cause__ from None
        except FedPalmError as error:
            audit.findings.append(Finding(Exit.MALFORMED, "bundle", error.what))
    return audit


def _audit(audit: Audit, file: Any, trust: Trust, outside: Sequence[Path], exact: int) -> None:
    bundle = BundleReader(file)
    audit.federation, audit.site = bundle.federation, bundle.site
    signers = Signers(trust, bundle.federation)
    contents = bundle.contents
    audit.plans = read_plans(contents.plans, bundle.site, signers)
    audit.attempts = read_attempts(
        contents.manifests, contents.countersignatures, audit.plans, signers
    )
    owner = _owner(bundle, signers)
    audit.key_id = owner.key_id
    try:
        held = _outside(outside, trust, owner)
    except FedPalmError as error:
        raise _OwnFileError from error
    audit.outside = len(held)
    audit.log = log = read_log(bundle.entries(), owner.key)
    _seal(audit, bundle, owner, signers)
    note_answers(audit.plans, log)
    audit.findings += note_accepted(audit.attempts, log)
    audit.checkpoints = read_checkpoints(contents.checkpoints, held, log, owner, signers)
    audit.findings += audit.checkpoints.findings
    audit.vouching = tuple(
        said.size for said, _ in held if said.key_id == owner.key_id and said.size <= log.size
    )
    audit.account = read_account(log, audit.plans, exact=exact)
    audit.findings += audit.account.findings
    audit.releases = check_updates(
        log,
        audit.plans,
        audit.attempts,
        audit.account,
        audit.checkpoints,
        owner,
        faulty=audit.faulty,
    )
    check_experts(
        audit.releases,
        log,
        audit.plans,
        audit.account,
        contents.consents,
        owner.identity,
        signers,
    )
    check_control(audit.releases, log)
    check_receipts(audit.releases, log, contents.receipts, owner.identity, signers)
    audit.findings += audit.releases.findings
    audit.unpinned = tuple(sorted(signers.unpinned))
    audit.notes = list(_notes(audit, bundle))


def _owner(bundle: BundleReader, signers: Signers) -> Signer:
    """Whose log this is: of the one key that the site's certificate binds."""
    owner = signers.signer(bundle.chain, "header")
    if owner.identity != Identity(bundle.federation, Role.PARTICIPANT, bundle.site):
        raise AuditStopped(Exit.TAMPERED, "header", f"the certificate is {owner.identity}'s")
    return owner


def _seal(audit: Audit, bundle: BundleReader, owner: Signer, signers: Signers) -> None:
    sealed, digest = bundle.seal()
    said = signers.open(BundleSeal, sealed, "seal")
    audit.sealed_ms = said.sealed_ms
    if (said.federation, said.site) != (bundle.federation, bundle.site) or (
        signers.signer(sealed.chain, "seal").key_id != owner.key_id
    ):
        raise AuditStopped(Exit.TAMPERED, "seal", f"it is not {bundle.site}'s")
    if said.digest != digest:
        raise AuditStopped(
            Exit.TAMPERED, "seal", "the bundle is not the one that the site has sealed"
        )


def _outside(paths: Iterable[Path], trust: Trust, owner: Signer) -> list[tuple[Checkpoint, Signer]]:
    """Checkpoints of the audited site from elsewhere, verified under the same trust, and their signers."""
    found: list[tuple[Checkpoint, Signer]] = []
    for path in paths:
        signers = Signers(trust, owner.identity.federation)
        try:
            signed = _checkpoints_in(path)
            said = [signers.open(Checkpoint, one, str(path)) for one in signed]
            by = [signers.signer(one.chain, str(path)) for one in signed]
        except (AuditStopped, ProtocolError) as error:
            raise ConfigError(f"{path}: no checkpoint that holds: {error}") from error
        mine = [
            (one, signer)
            for one, signer in zip(said, by, strict=True)
            if one.site == owner.identity.name and signer.key_id == one.key_id
        ]
        if not mine:
            raise ConfigError(f"{path}: it holds no checkpoint of site {owner.identity.name}")
        found += mine
    return found


def _checkpoints_in(path: Path) -> Sequence[SignedStatement]:
    with open_bundle(path) as file:
        begin = file.read(4096)
        file.seek(0)
        if f'"{FORMAT}"'.encode() in begin.split(b"\n")[0]:
            return BundleReader(file).contents.checkpoints
        return [SignedStatement.from_bytes(file.read(1024 * 1024).strip())]


def _notes(audit: Audit, bundle: BundleReader) -> Iterable[str]:
    """What is no fault, and still to be known."""
    log, plans = audit.log, [one for one in audit.plans.values() if one.approved]
    for known in plans:
        if known.plan.draft.privacy.unit == "none":
            yield f"run {known.run}: {NO_PRIVACY}"
        if known.plan.draft.privacy.unit == "record":
            yield f"run {known.run}: the unit is one image; a person with many is protected less"
        if known.plan.draft.masking == "none":
            yield f"run {known.run}: no masking, so the coordinator saw this site's update"
    if audit.unpinned:
        yield (
            f"keys that you did not pin, so that the CA alone says whose they are: "
            f"{', '.join(audit.unpinned)}"
        )
    if audit.vouched < log.size:
        yield (
            f"entries {audit.vouched} to {log.size - 1} are under no witnessed checkpoint: nobody but the "
            "site vouches that they are all, or that they will stay"
        )
    if not audit.vouching:
        given = "no checkpoint from elsewhere was given"
        if audit.outside:
            given = "none of the checkpoints that you gave vouches for this log"
        yield (
            f"{given}: a bundle that ends early, with everything of later removed, looks like this one"
        )
    inherited = {str(e.body["key_id"]) for e in log.of(EntryKind.BUDGET_INHERITED)}
    for key in sorted(set(audit.checkpoints.earlier) - inherited):
        yield (
            f"there is a checkpoint of an earlier log of the site (key {key[:16]}) that this one does not "
            "inherit itself: verify that a log which it inherits does"
        )
    leaves = {certificate_hash(one).hex() for one in bundle.certificates}
    if gone := [
        e for e in log.of(EntryKind.CERTIFICATE) if e.body["certificate_hash"] not in leaves
    ]:
        yield f"{len(gone)} earlier certificates of the site are in the log, but not in the bundle"
    for entry in log.of(EntryKind.FORK_SEEN):
        about = (
            f"run {entry.body['run']}" if "run" in entry.body else f"log of {entry.body['site']}"
        )
        yield f"entry {entry.seq}: the site was shown two signed histories of the {about}"
    for entry in log.of(EntryKind.SUBJECT_ERASED):
        runs = str(entry.body["runs"]).replace(" ", ", ") or "no run"
        earlier = f" and {entry.body['earlier']} before" if entry.body["earlier"] else ""
        yield (
            f"entry {entry.seq}: a person's data were erased here; whether they were among those whom the "
            f"site trained on, the log does not tell. Its models: {runs}{earlier}"
        )
    for entry in log.of(EntryKind.VAULT_ACCEPTED):
        yield (
            f"entry {entry.seq}: the site's database was not the one that its vault had stored last, and a "
            "person accepted it: models, gallery and this log may be older than what the site once had"
        )
    for entry in log.of(EntryKind.BUDGET_INHERITED):
        yield (
            f"entry {entry.seq}: charges of an earlier log (key {str(entry.body['key_id'])[:16]}, "
            f"{entry.body['size']} entries, root {str(entry.body['root'])[:16]}) are inherited; that log "
            "is not in this bundle: ask for its own, and verify that"
        )
    budgets = [one.budget for one in audit.account.spent]
    if len(set(budgets)) > 1:
        yield f"the site changed its budget, from epsilon {min(budgets):g} to {max(budgets):g}"
    unconfirmed = [one.entry.seq for one in audit.releases.released if not one.receipt]
    if unconfirmed:
        yield f"{len(unconfirmed)} payloads of weights have no receipt; the first is entry {unconfirmed[0]}"
