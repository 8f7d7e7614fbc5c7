"""The egress gate: the one way out of a site.

Whatever leaves is built here from an allow-list and written to the site's log before the first byte of
it can be sent: in rounds the delta of exactly the plan's ``open_set.*`` layout (under a masked plan its
masked integers and nothing else of it), in an exchange that this site's person approved and every signer
consented to its expert, sealed (``expert_gate.py``); beside them messages of names, hashes and offsets that
the gate composes itself (``messages.py``). A head, a closed-set embedding or an expert outside an
exchange has no way to become an :class:`OutgoingPayload`, and the link sends nothing else.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping

import numpy as np
from google.protobuf.message import Message

from fedpalm.errors import FedPalmError, NotFoundError, StaleRoundError
from fedpalm.groups import foreign_to
from fedpalm.layout import OPEN_SET, FloatVector, Layout, TensorSpec
from fedpalm.methods.base import SiteUpdate
from fedpalm.methods.contribution import codec_for, masking_terms, rounding_key
from fedpalm.pki.live import LiveIdentity
from fedpalm.secagg.codec import Encoded
from fedpalm.secagg.messages import Signed
from fedpalm.secagg.site import SiteAttempt, Stage
from fedpalm.wire.masking import to_wire as masking_to_wire

from .expert_gate import ExpertGate
from .log import SiteLog
from .manifests import ManifestBook
from .outgoing import OutgoingPayload, PayloadKind, Place, message_bytes, messages_hash
from .policy import PolicyFile
from .private_content import refuse_private_content
from .release import refused
from .store import NewUpdate, SiteStore, StoredUpdate


class EgressGate(ExpertGate):
    """Makes every :class:`OutgoingPayload` of a site; here the updates of rounds.

    Whenever weights are encoded or released, the plan is approved here with the hash that was offered,
    the policy of this moment allows it, and for an update the manifest of its attempt was accepted.
    """

    def __init__(
        self, store: SiteStore, log: SiteLog, live: LiveIdentity, policy: PolicyFile
    ) -> None:
        super().__init__(store, log, live, policy)
        self.manifests = ManifestBook(store, log, live, policy)

    # --- rounds -----------------------------------------------------------------------------------

    def encode_update(
        self,
        run_id: str,
        round_number: int,
        model_hash: bytes,
        layout: Layout,
        update: SiteUpdate,
        *,
        shared: FloatVector,
        private: Mapping[str, np.ndarray],
    ) -> NewUpdate:
        """The wire bytes of a round's update, if it is one; nothing is stored or sent yet.

        The plan is read back from the store, as it was approved: an altered plan or layout in memory
        changes nothing.

        Args:
            layout: the layout that the method says its delta has.
            shared: (P,) the global vector it was trained from.
            private: the site's private state, to compare with what would leave.
        Raises:
            EgressRefusedError: no accepted manifest asks for this round from this model; another layout
                than the plan's, a tensor that is not ``open_set.*``, foreign types, values that are a
                private tensor's, or any but zeros in a group that this site is not of.
            PlanNotApprovedError, PolicyError, ForkError: the run goes no further at this site.
            NonFiniteUpdateError, CodecOverflowError: as in the codec.
        """
        plan = self._agreed_plan(run_id)
        self.manifests.refuse_forked(run_id)
        if not self.manifests.trains_from(run_id, round_number, model_hash):
            raise refused(
                f"no accepted manifest of {run_id} asks for round {round_number} from this model"
            )
        agreed = plan.model_layout
        if not agreed.only(OPEN_SET) or _specs(layout) != agreed.tensors:
            raise refused("the update's layout is not the open_set.* layout of the plan")
        if type(update) is not SiteUpdate or type(update.delta) is not np.ndarray:
            raise refused(f"{type(update).__name__} is not a site's update")
        if update.delta.shape != (agreed.size,) or update.delta.dtype != np.float32:
            raise refused(
                f"the delta is {update.delta.dtype} {update.delta.shape}, the plan's float32 "
                f"({agreed.size},)"
            )
        codec = codec_for(plan)
        if set(update.stats) != set(codec.stats[1:]):
            raise refused(f"statistics {sorted(update.stats)[:5]} are not those of the method")
        delta = update.delta.copy()
        refuse_private_content(agreed, delta, shared, private)
        for group in foreign_to(self.site, plan.parameter_groups):
            if delta[group.span].any():
                raise refused(
                    f"the delta has values in group {group.name}, which this site is not of: it "
                    "contributes zeros there"
                )
        encoded = codec.encode(
            delta,
            update.weight,
            update.stats,
            rounding_key(plan, self.site, round_number),
            self.site,
        )
        return NewUpdate(model_hash, agreed.hash, encoded.astype("<u4", copy=False).data)

    def release_update(self, run_id: str, round_number: int, attempt: int) -> OutgoingPayload:
        """The stored update of a round, for this attempt: the same bytes as in every other one.

        The link compares the file with the logged hash as it opens it.

        Raises:
            NotFoundError: nothing is stored for this round.
            EgressRefusedError: the plan masks updates: this one has no way out as it is.
            StaleRoundError: the round is past, its bytes are gone; or a later manifest was accepted.
            EgressRefusedError: the attempt's manifest was not accepted, names another model, or fewer
                sites than the plan's quorum have signed it; or the plan has differential privacy and
                the log holds no charge for this very update.
            PlanNotApprovedError, PolicyError, NotOnRosterError, ForkError: the run goes no further here.
            ContributionReuseError: an update from the same model was masked before.
        """
        place = Place(run_id, round_number, attempt)
        # All in one transaction: what a person or another process changes comes before or after it.
        with self._store.transaction() as db:
            plan = self._agreed_plan(run_id)
            if plan.draft.masking != "none":
                raise refused(f"the plan of {run_id} masks updates; unmasked, none leaves")
            update = self._store.update(run_id, round_number)
            if update is None:
                raise NotFoundError(f"{run_id}: nothing was trained for round {round_number}")
            manifest = self.manifests.agreed(place, plan)
            if manifest.model_hash != update.model_hash.hex():
                raise refused(f"the update of {place} was trained from another model")
            if update.path is None:
                raise StaleRoundError(f"{run_id}: round {round_number} is past")
            self.budget.require_committed(plan, run_id, round_number, update.payload_hash)
            self.masked.require_never_masked(db, update.model_hash)
            return self._outgoing(
                db,
                PayloadKind.UPDATE,
                place,
                payload_hash=update.payload_hash,
                size=update.payload_bytes,
                path=update.path,
                layout_hash=update.layout_hash,
                known_seq=_known(db, place, PayloadKind.UPDATE, update.payload_hash),
            )

    # --- masked attempts ----------------------------------------------------------------------------

    def keep_masked(
        self, place: Place, attempt: SiteAttempt, vector: Encoded | None = None
    ) -> OutgoingPayload:
        """Store the next stage of a masked attempt with the log entry of what it lets out; then release it.

        Args:
            attempt: the new stage, which nothing has been sent of.
            vector: (L,) uint32, masked; with the stage that signs its hash, and with no other.
        Raises:
            NotFoundError: nothing was trained for the round.
            EgressRefusedError: another attempt than the accepted and countersigned manifest's, or another
                vector than the signed one.
            StaleRoundError: the attempt, or this stage of it, is over.
            ContributionReuseError: it would be a second contribution to a model, or to a round.
            PlanNotApprovedError, PolicyError, ForkError: the run goes no further here.
        """
        if (vector is not None) != (attempt.stage is Stage.MASKED):
            raise refused(f"a vector does not belong to stage {attempt.stage.value}")
        with self._store.files():
            written = self.masked.write(place, attempt)
            name = None
            if vector is not None:
                data = vector.astype("<u4", copy=False).data
                if attempt.masked is None or (
                    hashlib.sha256(data).digest() != attempt.masked.payload_hash
                ):
                    raise refused("the masked vector is not the one that was signed")
                name = self._store.write_outgoing(f"{place.run}-r{place.round}", "masked", data)
            try:
                with self._store.transaction() as db:
                    update = self._masked_update(place, attempt)
                    self.masked.put(
                        db,
                        place,
                        attempt,
                        written,
                        model_hash=update.model_hash,
                        encoded_hash=update.payload_hash,
                        masked_file=name,
                    )
                    payload = self._masked_payload(db, place, attempt, update)
            except FedPalmError:
                self.masked.sweep(place.run)  # No row names the new file, and none will.
                raise
        self.masked.stored()
        return payload

    def release_masked(self, place: Place) -> tuple[OutgoingPayload, SiteAttempt]:
        """What the stored stage of a masked attempt lets out, once more: the same bytes.

        Raises:
            StaleRoundError: the attempt is over at this site.
            Others: as :meth:`keep_masked`.
        """
        plan = self._agreed_plan(place.run)
        terms = masking_terms(plan)
        attempt = self.masked.load(place, terms, self.site) if terms is not None else None
        if attempt is None:
            raise StaleRoundError(f"{place}: no masked attempt goes on here")
        with self._store.transaction() as db:
            update = self._masked_update(place, attempt)
            return self._masked_payload(db, place, attempt, update), attempt

    def _masked_update(self, place: Place, attempt: SiteAttempt) -> StoredUpdate:
        """The stored update that an attempt masks, if the attempt is the agreed one of this moment."""
        plan = self._agreed_plan(place.run)
        if masking_terms(plan) != attempt.facts.terms or attempt.facts.site != self.site:
            raise refused(f"{place}: masked on other terms than the plan's")
        manifest = self.manifests.agreed(place, plan)
        if manifest.hash != attempt.facts.manifest_hash or (
            tuple(manifest.cohort) != attempt.facts.cohort
        ):
            raise refused(f"{place}: masked under another manifest than the accepted one")
        update = self._store.update(place.run, manifest.round)
        if update is None:
            raise NotFoundError(f"{place.run}: nothing was trained for round {manifest.round}")
        if manifest.model_hash != update.model_hash.hex():
            raise refused(f"the update of {place} was trained from another model")
        if attempt.masked is not None and attempt.masked.payload_hash == update.payload_hash:
            raise refused(f"{place}: the masked vector is the update itself")
        self.budget.require_committed(plan, place.run, manifest.round, update.payload_hash)
        return update

    def _masked_payload(
        self, db: sqlite3.Connection, place: Place, attempt: SiteAttempt, update: StoredUpdate
    ) -> OutgoingPayload:
        """The payload of the stage that the row has come to, with its log entry: made once."""
        row = self.masked.row(place)
        if row is None or row.stage != attempt.stage.value:
            raise StaleRoundError(f"{place}: the masked attempt is over, or at another stage")
        if attempt.stage is Stage.MASKED:
            if attempt.masked is None or row.masked_hash != attempt.masked.payload_hash:
                raise refused(f"{place}: the masked vector is not the stored one")
            if row.path is None:
                raise StaleRoundError(f"{place} is past")
            return self._outgoing(
                db,
                PayloadKind.UPDATE,
                place,
                payload_hash=row.masked_hash,
                size=update.payload_bytes,
                path=row.path,
                layout_hash=update.layout_hash,
                known_seq=_known(db, place, PayloadKind.UPDATE, row.masked_hash),
            )
        kind, said = _said(attempt)
        messages: tuple[Message, ...] = tuple(masking_to_wire(one) for one in said)
        digest = messages_hash(messages)
        return self._outgoing(
            db,
            kind,
            place,
            payload_hash=digest,
            size=sum(len(message_bytes(one)) for one in messages),
            messages=messages,
            known_seq=_known(db, place, kind, digest),
        )


def _said(attempt: SiteAttempt) -> tuple[PayloadKind, tuple[Signed, ...]]:
    """What an attempt says at its stage; a masked vector is no message."""
    match attempt.stage:
        case Stage.KEYED:
            return PayloadKind.MASKING_KEYS, (attempt.own_keys,)
        case Stage.SHARED:
            return PayloadKind.MASKING_BOXES, attempt.own_boxes
        case Stage.COMPLAINED if attempt.complaint is not None:
            return PayloadKind.MASKING_COMPLAINT, (attempt.complaint,)
        case Stage.AGREED if attempt.agreement is not None:
            return PayloadKind.MASKING_AGREEMENT, (attempt.agreement,)
        case Stage.REVEALED if attempt.reveal is not None:
            return PayloadKind.MASKING_REVEAL, (attempt.reveal,)
    raise refused(f"a masked attempt that is {attempt.stage.value} says nothing")


def _known(
    db: sqlite3.Connection, place: Place, kind: PayloadKind, payload_hash: bytes
) -> int | None:
    """The log entry of the same bytes for the same place, if they were released before."""
    row = db.execute(
        "SELECT seq FROM releases WHERE place = ? AND payload = ? AND payload_hash = ?",
        (str(place), kind.value, payload_hash),
    ).fetchone()
    return int(row["seq"]) if row else None


def _specs(layout: Layout) -> tuple[TensorSpec, ...]:
    """Names and shapes as they are now, whatever the object says of its own hash."""
    if type(layout) is not Layout or any(type(spec) is not TensorSpec for spec in layout.tensors):
        raise refused(f"{type(layout).__name__} is not a layout")
    return tuple(TensorSpec(spec.name, tuple(spec.shape)) for spec in layout.tensors)
