"""What the coordinator signs, and what it takes a site's word for.

Offers, terms of exchanges, manifests and receipts are signed with the identity as it is at that moment.
What sites sign counts only if the site that it names has signed it under the federation's trust anchors
with the key of its admission, and if it is about what it came for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from cryptography import x509

from fedpalm.clock import Clock
from fedpalm.errors import HashMismatchError, IdentityError, ResourceError, SenderMismatchError
from fedpalm.exchange.receipt import ExpertReceipt
from fedpalm.exchange.terms import ExchangeTerms
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.request import signing_key_of
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer, PlanOffer
from fedpalm.rounds.events import RoundRef
from fedpalm.rounds.manifest import Countersignature, ManifestHead, RoundManifest, follow
from fedpalm.rounds.receipt import PayloadReceipt


class CurrentIdentity(Protocol):
    """An identity that may be another one tomorrow: :class:`fedpalm.pki.live.LiveIdentity`."""

    @property
    def current(self) -> TlsIdentity: ...


class Notary:
    """Signs in the coordinator's name and verifies what sites have signed.

    Every method that signs raises ResourceError while the identity's files are not whole: whoever wanted
    it tries again, as for a full disk.

    Args:
        signing_key: a site's present key, raw; None for one that is not a member. A certificate of an
            earlier admission may be valid for months, and its signing key is no longer the site's.
    """

    def __init__(
        self,
        identity: CurrentIdentity,
        clock: Clock,
        signing_key: Callable[[str], bytes | None],
    ) -> None:
        self._identity, self._clock, self._signing_key = identity, clock, signing_key

    @property
    def anchors(self) -> Sequence[x509.Certificate]:
        """The trust anchors of this moment."""
        return self._identity.current.anchors

    @property
    def record_anchors(self) -> Sequence[x509.Certificate]:
        """For statements that were verified on arrival and are read back: present and past anchors."""
        return self._identity.current.record_anchors

    # --- what the coordinator says ----------------------------------------------------------------

    def offer(self, run_id: str, plan: Plan) -> SignedStatement:
        """The roster is asked to run ``plan``."""
        return PlanOffer(
            federation=plan.federation,
            run=run_id,
            plan_hash=plan.hash.hex(),
            offered_ms=self._now_ms(),
        ).sign(self._signer())

    def exchange_terms(self, terms: ExchangeTerms) -> SignedStatement:
        """The roster is asked to exchange experts on these terms."""
        return terms.sign(self._signer())

    def manifest(
        self,
        run_id: str,
        plan: Plan,
        head: ManifestHead,
        ref: RoundRef,
        cohort: Sequence[str],
        model_hash: str,
        checkpoints: Mapping[str, str],
    ) -> SignedStatement:
        """The manifest that follows ``head``; nothing is signed that a site would have to refuse.

        Raises:
            ProtocolError, StaleRoundError, ForkError, NotOnRosterError: it does not follow.
            ResourceError: a site of the cohort is not a member at this moment.
        """
        manifest = RoundManifest(
            federation=plan.federation,
            run=run_id,
            plan_hash=plan.hash.hex(),
            seq=head.size,
            previous=head.hash.hex(),
            round=ref.round,
            attempt=ref.attempt,
            cohort=list(cohort),
            signing_keys={site: self._present_key(site) for site in cohort},
            model_hash=model_hash,
            checkpoints=dict(checkpoints),
            sealed_ms=self._now_ms(),
        )
        follow(head, manifest, plan, run_id)
        return manifest.sign(self._signer())

    def receipt(
        self,
        *,
        site: str,
        payload: Literal["update", "sealed_expert"],
        place: str,
        payload_hash: str,
        payload_bytes: int,
        received_ms: int,
    ) -> SignedStatement:
        """The site's payload is durably stored."""
        current = self._signer()
        return PayloadReceipt(
            federation=current.identity.federation,
            site=site,
            payload=payload,
            place=place,
            payload_hash=payload_hash,
            payload_bytes=payload_bytes,
            received_ms=received_ms,
        ).sign(current)

    # --- what sites say ---------------------------------------------------------------------------

    def answer(self, signed: SignedStatement, run_id: str, plan: Plan, site: str) -> PlanAnswer:
        """The site's answer to this plan.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not an answer that the site it names signed, with
                its present key.
            SenderMismatchError: of another site than the one that sent it.
            HashMismatchError: to another run or plan.
        """
        answer = PlanAnswer.open(signed, self.anchors, now=self._clock.now())
        _check_sender(answer.site, site, "answer")
        self.require_present_key(site, signing_key_of(signed.chain[0]))
        if (answer.run, answer.plan_hash) != (run_id, plan.hash.hex()):
            raise HashMismatchError(
                f"the answer of site {site} is about run {answer.run}, plan "
                f"{answer.plan_hash[:16]}; run {run_id} has plan {plan.hash.hex()[:16]}",
                safe="nothing was stored",
                next_step="fetch the plan of this run and answer that one",
            )
        return answer

    def countersignature(
        self, signed: SignedStatement, run_id: str, manifest: SignedStatement, site: str
    ) -> Countersignature:
        """The site's signature over ``manifest``.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not one that the site it names has signed, with
                its present key.
            SenderMismatchError: of another site than the one that sent it.
            HashMismatchError: over another manifest.
        """
        found = Countersignature.open(signed, self.anchors, now=self._clock.now())
        _check_sender(found.site, site, "countersignature")
        self.require_present_key(site, signing_key_of(signed.chain[0]))
        sealed = RoundManifest.read(manifest)
        about = (found.run, found.round, found.attempt, found.manifest_hash)
        if about != (run_id, sealed.round, sealed.attempt, manifest.hash.hex()):
            raise HashMismatchError(
                f"run {run_id}, {sealed.ref}: site {site} countersigned another manifest",
                safe="nothing was stored",
                next_step="compare what the sites hold: fedpalm-participant manifests",
            )
        return found

    def checkpoint(self, signed: SignedStatement, site: str) -> Checkpoint:
        """The site's checkpoint of its log, for whatever attempt.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not one that the site it names has signed, with
                its present key, of the log of that key.
            SenderMismatchError: of another site than the one that sent it.
        """
        found = Checkpoint.open(signed, self.anchors, now=self._clock.now())
        _check_sender(found.site, site, "checkpoint")
        self.require_present_key(site, signing_key_of(signed.chain[0]))
        return found

    def expert_receipt(self, signed: SignedStatement, site: str) -> ExpertReceipt:
        """The site's word that it has opened what was sealed to it, of whatever exchange.

        Raises:
            ProtocolError, IdentityError, WrongRoleError: not one that the site it names has signed, with
                its present key.
            SenderMismatchError: of another site than the one that sent it.
        """
        found = ExpertReceipt.open(signed, self.anchors, now=self._clock.now())
        _check_sender(found.site, site, "receipt")
        self.require_present_key(site, signing_key_of(signed.chain[0]))
        return found

    def present_log(self, site: str) -> str:
        """The key id, in hex, that the site's log goes by now; empty for one that is not a member."""
        raw = self._signing_key(site)
        return key_id(VerifyingKey.from_public_bytes(raw)).hex() if raw is not None else ""

    def require_present_key(self, site: str, key: VerifyingKey) -> None:
        """Raises IdentityError unless this is the key that the site was last admitted with."""
        if self._signing_key(site) != key.public_bytes_raw():
            raise IdentityError(
                f"signed with a key that is not that of site {site}, or not any more",
                safe="nothing was stored",
                next_step="sign anew with the present key: start the site's agent again, or join anew",
            )

    def _present_key(self, site: str) -> str:
        key = self._signing_key(site)
        if key is None:
            raise ResourceError(
                f"no cohort with site {site} can be signed: it is not a member now",
                safe="no site was asked to train",
                next_step="wait: it is about to leave its runs",
            )
        return key.hex()

    def _signer(self) -> TlsIdentity:
        try:
            return self._identity.current
        except IdentityError as error:
            raise ResourceError(
                f"nothing can be signed: {error.what}", safe=error.safe, next_step=error.next_step
            ) from error

    def _now_ms(self) -> int:
        return round(self._clock.now() * 1000)


def _check_sender(named: str, sender: str, what: str) -> None:
    if named != sender:
        raise SenderMismatchError(
            f"site {sender} sent the {what} of site {named}", safe="nothing was stored"
        )
