"""A site's part in masked attempts: fetch what the others said, compute, store, and then send.

    trained --keys--> keyed --boxes--> shared --inputs--> masked --agreements--> agreed
            --reveals--> revealed

A site to which boxes do not open sends a complaint in place of its input, and is out of the attempt. A step
that is asked for again sends the stored bytes again. Whatever the core finds wrong ends the
attempt at this site for good; nothing more of it is sent, and the site waits for the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedpalm.errors import (
    BoxesRefusedError,
    ConfigError,
    FedPalmError,
    HashMismatchError,
    IntegrityError,
    KeyFileError,
    MaskingError,
    MaskingMessageError,
    NotFoundError,
    NotOnRosterError,
    ProtocolError,
    StaleRoundError,
    StateError,
)
from fedpalm.methods.contribution import masking_terms
from fedpalm.pki.keys import VerifyingKey
from fedpalm.pki.live import LiveIdentity
from fedpalm.pki.signing import key_id
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg.codec import Encoded
from fedpalm.secagg.messages import Agreement, Box, MaskedInput, Signed, SiteKeys
from fedpalm.secagg.site import (
    AttemptFacts,
    SiteAttempt,
    Stage,
    agree,
    begin,
    complain,
    mask,
    reveal,
    share,
)
from fedpalm.secagg.unmasking import Step
from fedpalm.wire.masking import step_from_wire
from fedpalm.wire.v1 import federation_pb2 as wire

from .egress import EgressGate
from .link import Link
from .outgoing import OutgoingPayload, PayloadKind, Place
from .peers import Peer, PeerBook
from .plan_words import listed
from .reporter import Reporter
from .store import SiteStore, StoredUpdate

M = TypeVar("M", SiteKeys, Box, MaskedInput, Agreement)

_FAILS = (
    *(MaskingError, KeyFileError, ProtocolError, ConfigError, NotOnRosterError),
    HashMismatchError,
)
"""What the core finds wrong with an attempt, or with what others said in it."""

_NEEDS = {
    Step.BOXES: (Stage.KEYED, Step.KEYS),
    Step.INPUTS: (Stage.SHARED, Step.BOXES),
    Step.AGREEMENTS: (Stage.MASKED, Step.INPUTS),
    Step.REVEALS: (Stage.AGREED, Step.AGREEMENTS),
}
"""The stage that a step goes on from, and the step whose messages it takes."""

_GIVES = {
    Step.KEYS: Stage.KEYED,
    Step.BOXES: Stage.SHARED,
    Step.INPUTS: Stage.MASKED,
    Step.AGREEMENTS: Stage.AGREED,
    Step.REVEALS: Stage.REVEALED,
}
"""The stage that a step leads to, unless the site complains."""


class MaskingWorker:
    """Drives the core through the steps of the attempts that this site takes part in.

    Args:
        live: whose signing key signs every step.
    """

    def __init__(
        self, store: SiteStore, gate: EgressGate, live: LiveIdentity, report: Reporter
    ) -> None:
        self._store, self._gate, self._live, self._report = store, gate, live, report
        self._peers = PeerBook(store)
        self._told: set[str] = set()

    def start(self) -> None:
        """On starting: attempts whose secrets are gone, or of another boot, are dead.

        Raises:
            KeyFileError: the memory of contributions is damaged.
        """
        for place in self._gate.masked.start():
            self._report.line(
                f"round {place.round}, attempt {place.attempt} of {place.run}: its secrets are gone or of "
                "another boot; this site drops out of it and joins the next"
            )

    # --- keys -------------------------------------------------------------------------------------

    def signing_keys(self, manifest: RoundManifest) -> dict[str, VerifyingKey] | None:
        """The signing key of each site of a cohort, as the manifest names it; None while one is no good.

        That is another one than the one known here, or, under the policy "confirmed", one that nobody has
        compared: it is told of, once. A first key becomes the known one once its site has countersigned
        with it: the manifest alone is the coordinator's word.

        Raises:
            PolicyError: the policy cannot be used.
        """
        keys = manifest.verifying_keys
        known = self._known_peers(manifest)
        others = [peer for peer in known.values() if peer.key != keys[peer.site]]
        for peer in others:
            self._tell_once(
                f"{peer.site} goes by another signing key ({key_id(keys[peer.site]).hex()[:16]}) than the "
                f"one known here ({peer.key_id[:16]}). Safe: nothing is masked with it. Next: ask that "
                f"site by telephone, then: fedpalm-participant peers accept {peer.site} KEY_ID"
            )
        unconfirmed = [
            site
            for site in manifest.cohort
            if site != self._gate.site and (site not in known or known[site].confirmed_ms is None)
        ]
        if unconfirmed and self._gate.manifests.policy.current.peers == "confirmed":
            self._tell_once(
                f"{manifest.ref}: nobody here has compared the signing keys of "
                f"{listed(unconfirmed, 5, 'fedpalm-participant peers lists all')}, and this site's policy "
                f"asks for that. Safe: nothing is masked. Next: fedpalm-participant peers --run "
                f"{manifest.run}, compare by telephone, then peers confirm"
            )
            return None
        return None if others else keys

    def _known_peers(self, manifest: RoundManifest) -> dict[str, Peer]:
        """What is known of the sites of a cohort, after the keys that came with a countersignature.

        Another key than the known one is kept beside it, proved or not, for a person to look at.
        """
        keys, signed = manifest.verifying_keys, self._gate.manifests.countersigned_by(manifest)
        before = {peer.site for peer in self._peers.all()}
        return self._peers.pin(
            {
                site: key
                for site, key in keys.items()
                if site != self._gate.site and (site in before or site in signed)
            }
        )

    async def send_keys(
        self, link: Link, plan: Plan, place: Place, manifest: RoundManifest
    ) -> None:
        """Begin the attempt with fresh secrets, or say again what was said at its beginning.

        Raises:
            StateError: a key of the cohort may not be used.
            PlanNotApprovedError, PolicyError, ForkError: the run goes no further here.
        """
        row = self._gate.masked.row(place)
        if row is None:
            await self._guarded(place, self._begin, plan, place, manifest)
        elif row.stage != Stage.KEYED.value:
            return  # The coordinator says which later step it waits for.
        if await self._send(link, place) is not None:
            self._report.line(f"round {place.round}, attempt {place.attempt}: masking keys sent")

    def _begin(self, plan: Plan, place: Place, manifest: RoundManifest) -> OutgoingPayload:
        keys, terms = self.signing_keys(manifest), masking_terms(plan)
        if keys is None or terms is None:
            raise StateError(f"{place}: a signing key of the cohort may not be used")
        facts = AttemptFacts(terms, self._gate.site, manifest.hash, tuple(manifest.cohort), keys)
        attempt, _ = begin(facts, self._live.current.signing_key)
        return self._gate.keep_masked(place, attempt)

    # --- the later steps --------------------------------------------------------------------------

    async def follow(self, link: Link, order: wire.MaskingStepOpen) -> None:
        """Give what a step needs of this site.

        Raises:
            StaleRoundError, StateError: not an attempt of this site, or not its next step.
            PlanNotApprovedError, PolicyError, ForkError: the run goes no further here.
        """
        place = Place(order.ref.run_id, order.ref.round, order.ref.attempt)
        step = step_from_wire(order.step)
        row = self._gate.masked.row(place)
        if row is None or step not in _NEEDS:
            raise StaleRoundError(
                f"{place}: no masked attempt of this site is at step {step.value}"
            )
        needed, source = _NEEDS[step]
        if row.stage == needed.value:
            where = f"round {place.round}: masking, step {step.value}"
            self._report.working(where)
            said = await self._fetched(link, place, source)
            if said is None:
                return
            if step is Step.BOXES:
                await self._fetch_missing_countersignatures(link, place, said)
            if await self._guarded(place, self._advance, place, step, said) is None:
                return
        elif row.stage != _GIVES[step].value and (
            (row.stage, step) != (Stage.COMPLAINED.value, Step.INPUTS)
        ):
            raise StateError(f"{place}: step {step.value} does not go on from {row.stage}")
        sent = await self._send(link, place)
        if sent is not None and sent.kind is PayloadKind.MASKING_COMPLAINT:
            self._report.line(
                f"round {place.round}, attempt {place.attempt}: masking: complaint sent; this site is out "
                "of this attempt, keeps its update and joins the next"
            )
        elif sent is not None:
            self._report.line(
                f"round {place.round}, attempt {place.attempt}: masking, step {step.value} done"
            )

    async def _fetched(self, link: Link, place: Place, step: Step) -> list[Signed] | None:
        try:
            return await link.fetch_masking(place, step)
        except MaskingMessageError as error:
            # Malformed, or the coordinator's word that this site is not in that step any more.
            self._report.line(_in_words(place, error))
            return None

    def _advance(self, place: Place, step: Step, said: Sequence[Signed]) -> OutgoingPayload:
        key = self._live.current.signing_key
        attempt, vector = self._load(place), None
        match step:
            case Step.BOXES:
                self._require_countersigned(place, said)
                after, _ = share(attempt, _only(SiteKeys, said), key)
            case Step.INPUTS:
                vector = self._encoded(place, attempt)
                after, _ = mask(attempt, _only(Box, said), vector, key)
            case Step.AGREEMENTS:
                after, _ = agree(attempt, _only(MaskedInput, said), key)
            case _:
                after, _ = reveal(attempt, _only(Agreement, said), key)
        return self._gate.keep_masked(place, after, vector)

    def _complain(self, place: Place, accused: Sequence[str]) -> OutgoingPayload:
        after, _ = complain(self._load(place), accused, self._live.current.signing_key)
        return self._gate.keep_masked(place, after)

    async def _fetch_missing_countersignatures(
        self, link: Link, place: Place, said: Sequence[Signed]
    ) -> None:
        manifests = self._gate.manifests
        manifest = manifests.newest_accepted(place)
        if _speakers(said) - set(manifests.countersigned_by(manifest)):
            for signed in await link.fetch_countersignatures(place):
                manifests.take_countersignature(manifest, signed)

    def _require_countersigned(self, place: Place, said: Sequence[Signed]) -> None:
        """Every site whose masking keys came has countersigned: by then the CA vouches for its signing key.

        The manifest alone is the coordinator's word. Whoever takes part has countersigned before.

        Raises:
            MaskingMessageError: one has not.
        """
        manifests = self._gate.manifests
        manifest = manifests.newest_accepted(place)
        missing = sorted(_speakers(said) - set(manifests.countersigned_by(manifest)))
        if missing:
            raise MaskingMessageError(
                f"{listed(missing, 5, 'of the cohort')} gave masking keys without having countersigned the "
                "manifest",
                safe="nothing is masked with them",
            )
        self._known_peers(manifest)

    def _load(self, place: Place) -> SiteAttempt:
        _, attempt = self._gate.release_masked(place)
        return attempt

    def _encoded(self, place: Place, attempt: SiteAttempt) -> Encoded:
        """A copy of the stored update, to be masked in place: four bytes a value."""
        update = self._store.update(place.run, place.round or 0)
        if update is None or update.path is None:
            raise NotFoundError(f"{place}: its update is not there any more")
        return _read(update, update.path)

    async def _send(self, link: Link, place: Place) -> OutgoingPayload | None:
        """Send what the attempt's stage says; None if it is dead."""
        row = self._gate.masked.row(place)
        if row is None or row.stage == "dead":
            return None
        payload, attempt = await asyncio.to_thread(self._gate.release_masked, place)
        if attempt.stage is Stage.MASKED:
            await link.upload_update(payload, attempt.masked)
        else:
            await link.send_masking(payload)
        return payload

    # --- ends -------------------------------------------------------------------------------------

    def round_closed(self, run_id: str, round_number: int, attempt: int, committed: bool) -> None:
        """An attempt, or with it its round, is over: its secrets are erased."""
        self._gate.masked.kill(run_id, round_number, None if committed else attempt)

    def run_ended(self, run_id: str) -> None:
        """All attempts of the run are over."""
        self._gate.masked.kill(run_id)

    async def _guarded(
        self,
        place: Place,
        work: Callable[..., OutgoingPayload],
        *arguments: object,
    ) -> OutgoingPayload | None:
        """``work`` in a thread, or the complaint that it led to; None if it ended the attempt: told."""
        try:
            return await asyncio.to_thread(work, *arguments)
        except BoxesRefusedError as error:
            self._report.line(_in_words(place, error))
            return await self._guarded(place, self._complain, place, error.accused)
        except _FAILS as error:
            await asyncio.to_thread(self._gate.masked.kill, place.run, place.round, place.attempt)
            self._report.line(_in_words(place, error))
            return None

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._report.line(text)


def _read(update: StoredUpdate, path: Path) -> Encoded:
    """(L,) uint32. Raises IntegrityError: the file is missing or damaged."""
    try:
        vector = np.fromfile(path, dtype="<u4")
    except OSError as error:
        raise IntegrityError(
            f"{path}: {error.strerror}", next_step="restore the site's home from a backup"
        ) from error
    if hashlib.sha256(vector.data).digest() != update.payload_hash:
        raise IntegrityError(
            f"{path}: the bytes are not those that were stored",
            safe="nothing was masked or sent",
            next_step="restore the site's home from a backup",
        )
    return vector.astype(np.uint32, copy=False)


def _speakers(said: Sequence[Signed]) -> set[str]:
    return {one.site for one in said if isinstance(one, SiteKeys)}


def _only(kind: type[M], said: Sequence[Signed]) -> list[M]:
    """Raises MaskingMessageError: messages of another step are among them."""
    found = [one for one in said if isinstance(one, kind)]
    if len(found) != len(said):
        raise MaskingMessageError(
            "messages of another step came", safe="nothing was revealed; the update stays masked"
        )
    return found


def _in_words(place: Place, error: FedPalmError) -> str:
    return (
        f"round {place.round}, attempt {place.attempt}: masking: {error.what}. Safe: "
        f"{error.safe or 'nothing was revealed'}. Next: "
        f"{error.next_step or 'this site sends nothing more in this attempt and joins the next'}"
    )
