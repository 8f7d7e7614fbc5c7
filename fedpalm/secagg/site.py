"""A site's part in a masked attempt: five steps, each a pure function of what is stored.

    fresh --keys--> keyed --shares--> shared --mask--> masked --agree--> agreed --reveal--> revealed
                                      shared --complain--> complained

Whoever drives this stores the new state *before* it sends what a step returns. A step that is asked for
again with the same input returns the same output; with another input it raises, and nothing leaves. Lists
of survivors and of dropped sites are derived here from what this site itself verified, never taken.

Source: Bonawitz et al. 2017 (active adversary), with pair secrets that are hybrid post-quantum, shares
committed by salted hashes, and each step signed under the manifest.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property

from ..errors import (
    BoxesRefusedError,
    ContributionReuseError,
    MaskingMessageError,
    NotOnRosterError,
    SplitViewError,
    TooFewSurvivorsError,
)
from ..pki.keys import SigningKey, VerifyingKey
from .boxes import HeldShares, open_pair, open_shares, pair_stream, seal_box
from .codec import Encoded
from .masks import apply_masks
from .messages import (
    SALT_BYTES,
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    OpenedShare,
    Reveal,
    ShareKind,
    SiteKeys,
    attempt_context,
    check_box,
    check_keys,
    check_no_key_twice,
    check_signature,
    inputs_hash,
    keys_context,
    signed,
)
from .secrets import AttemptSecrets, own_stream, seed_hash
from .shamir import split
from .terms import SecAggTerms

_SAFE = "nothing was revealed; this site's update stays masked"


class Stage(StrEnum):
    KEYED = "keyed"
    SHARED = "shared"
    MASKED = "masked"
    COMPLAINED = "complained"
    AGREED = "agreed"
    REVEALED = "revealed"


@dataclass(frozen=True)
class AttemptFacts:
    """What this site knows of an attempt before it begins, from the manifest that it accepted.

    Args:
        manifest_hash: 32 bytes; every countersignature was over the same.
        site: this site's name; the coordinator's facts name nobody.
        cohort: sites present at the start, sorted; a subset of the roster.
        signing_keys: of each site of the cohort, verified against the trust anchors.
    Raises:
        NotOnRosterError: a site of the cohort is not one of the plan.
        MaskingMessageError: a cohort that is not sorted, or a signing key that is missing or shared.
    """

    terms: SecAggTerms
    site: str
    manifest_hash: bytes
    cohort: tuple[str, ...]
    signing_keys: Mapping[str, VerifyingKey] = field(repr=False)

    def __post_init__(self) -> None:
        if strangers := sorted(set(self.cohort) - set(self.terms.roster)):
            raise NotOnRosterError(
                f"not on the roster: {', '.join(site[:63] for site in strangers[:5])}", safe=_SAFE
            )
        if list(self.cohort) != sorted(set(self.cohort)):
            raise MaskingMessageError("a cohort is sorted and names each site once", safe=_SAFE)
        raw = [
            self.signing_keys[s].public_bytes_raw() for s in self.cohort if s in self.signing_keys
        ]
        if len(set(raw)) < len(self.cohort):
            raise MaskingMessageError(
                "a site of the cohort has no signing key, or that of another", safe=_SAFE
            )

    @cached_property
    def context(self) -> bytes:
        """What the first step is signed under; sites that were told different things share none."""
        keys = [(site, self.signing_keys[site].public_bytes_raw()) for site in self.cohort]
        return attempt_context(self.manifest_hash, self.terms.hash, keys)

    def require(self, sites: Iterable[str], what: str) -> tuple[str, ...]:
        """``sites``, sorted, if they are distinct, of the cohort, and enough, in every group too.

        Raises:
            TooFewSurvivorsError, MaskingMessageError
        """
        listed = sorted(sites)
        if len(set(listed)) != len(listed) or not set(listed) <= set(self.cohort):
            raise MaskingMessageError(f"{what}: a site twice, or none of the cohort", safe=_SAFE)
        if lacking := self.terms.lacks(listed):
            raise TooFewSurvivorsError(f"{what}: {lacking}", safe=_SAFE)
        return tuple(listed)


@dataclass(frozen=True)
class SiteAttempt:
    """State of a site in one attempt; ``secrets`` is gone once the vector is masked, or never will be."""

    facts: AttemptFacts
    stage: Stage
    own_keys: SiteKeys
    secrets: AttemptSecrets | None = field(repr=False)
    keys: tuple[SiteKeys, ...] = ()
    own_boxes: tuple[Box, ...] = ()
    own_shares: HeldShares | None = field(default=None, repr=False)
    held: Mapping[str, HeldShares] = field(default_factory=dict, repr=False)
    masked: MaskedInput | None = None
    complaint: Complaint | None = None
    agreement: Agreement | None = None
    reveal: Reveal | None = field(default=None, repr=False)

    @cached_property
    def context(self) -> bytes:
        """What everything after step 1 is signed under."""
        return keys_context(self.facts.context, self.keys)

    def keys_of(self, site: str) -> SiteKeys:
        return next(one for one in self.keys if one.site == site)


# --- step 1 ---------------------------------------------------------------------------------------


def begin(
    facts: AttemptFacts, key: SigningKey, fresh: AttemptSecrets | None = None
) -> tuple[SiteAttempt, SiteKeys]:
    """Fresh secrets for this attempt, and the keys that follow from them.

    Args:
        fresh: made here if left out; never those of another attempt.
    Raises:
        TooFewSurvivorsError: a cohort that masking cannot work with.
        MaskingMessageError: this site is not of the cohort, or ``key`` not the one it is known by.
    """
    facts.require(facts.cohort, "the cohort")
    known = facts.signing_keys.get(facts.site)
    if facts.site not in facts.cohort or known != key.public_key():
        raise MaskingMessageError(
            f"{facts.site} is not of the cohort, or is known there by another key", safe=_SAFE
        )
    made = fresh or AttemptSecrets.generate()
    keys = SiteKeys(
        site=facts.site,
        agreement=made.pairs.agreement.public_key().public_bytes_raw(),
        escrow=made.pairs.escrow.public_bytes,
        transport=made.transport.public_bytes,
        seed_hash=seed_hash(made.seed_secret),
    )
    own = signed(keys, facts.context, key)
    return SiteAttempt(facts, Stage.KEYED, own, made), own


# --- step 2 ---------------------------------------------------------------------------------------


def share(
    attempt: SiteAttempt, keys: Iterable[SiteKeys], key: SigningKey
) -> tuple[SiteAttempt, tuple[Box, ...]]:
    """Check everybody's keys; split m and b; one box for each other site that has keys.

    Raises:
        MaskingMessageError: keys that are not their site's own, or used twice, or unusable.
        TooFewSurvivorsError: of too few sites.
        ContributionReuseError: other keys than the first time.
    """
    listed = tuple(sorted(keys, key=lambda one: one.site))
    if attempt.stage is not Stage.KEYED:
        if listed != attempt.keys:
            raise ContributionReuseError("another set of keys for the same attempt", safe=_SAFE)
        return attempt, attempt.own_boxes
    facts, made = attempt.facts, _secrets(attempt)
    sites = facts.require((one.site for one in listed), "keys")
    _check_keys(attempt, listed)
    keyed = replace(attempt, keys=listed)
    mask_shares = split(made.pairs.mask_secret, facts.terms.threshold, facts.terms.sites)
    seed_shares = split(made.seed_secret, facts.terms.threshold, facts.terms.sites)
    boxes = []
    own = None
    for recipient in sites:
        at = facts.terms.position(recipient) - 1
        held = HeldShares(
            mask_shares[at],
            secrets.token_bytes(SALT_BYTES),
            seed_shares[at],
            secrets.token_bytes(SALT_BYTES),
        )
        if recipient == facts.site:
            own = held
            continue
        boxes.append(_box(keyed, recipient, held, key))
    shared = replace(keyed, stage=Stage.SHARED, own_boxes=tuple(boxes), own_shares=own)
    return shared, shared.own_boxes


def _check_keys(attempt: SiteAttempt, keys: tuple[SiteKeys, ...]) -> None:
    facts = attempt.facts
    if attempt.own_keys not in keys:
        raise SplitViewError("this site's own keys are not among the keys that came", safe=_SAFE)
    for one in keys:
        check_signature(one, one.site, facts.context, facts.signing_keys)
        check_keys(one)
    check_no_key_twice(keys)


def _box(attempt: SiteAttempt, recipient: str, held: HeldShares, key: SigningKey) -> Box:
    me, terms = attempt.facts.site, attempt.facts.terms
    chosen = terms.chooser(me, recipient) == me
    secret = _secrets(attempt).pairs.pair_secret(recipient) if chosen else None
    return seal_box(attempt.context, me, attempt.keys_of(recipient), held, secret, key)


# --- step 3 ---------------------------------------------------------------------------------------


def mask(
    attempt: SiteAttempt, boxes: Iterable[Box], encoded: Encoded, key: SigningKey
) -> tuple[SiteAttempt, MaskedInput]:
    """Open every box that came, then mask ``encoded`` **in place** with exactly those peers.

    From here on m, b and c of this site are gone: what is stored is the masked vector.

    Args:
        boxes: of every peer that the coordinator counts in.
        encoded: (L,) uint32, the stored contribution; a copy of it. Untouched if anything is raised.
    Raises:
        BoxesRefusedError: boxes that are not as their senders owed them; :func:`complain` is all that
            this site has left in this attempt.
        MaskingMessageError: a box of a wrong peer, for another site, or two of one peer.
        TooFewSurvivorsError: too few peers, in all or in a group of parameters.
        ContributionReuseError: the vector of this attempt is masked already, or never will be.
    """
    if attempt.stage is not Stage.SHARED:
        raise ContributionReuseError(
            f"an attempt that is {attempt.stage.value} masks no vector",
            safe=_SAFE,
            next_step="what was said instead, or the stored masked vector, is sent again",
        )
    facts, made = attempt.facts, _secrets(attempt)
    came: dict[str, Box] = {}
    for box in boxes:
        if box.sender in came or box.sender == facts.site:
            raise MaskingMessageError(f"two boxes of {box.sender[:63]}", safe=_SAFE)
        if box.recipient != facts.site:
            raise MaskingMessageError(
                f"a box of {box.sender[:63]} for {box.recipient[:63]}", safe=_SAFE
            )
        came[box.sender] = box
    with_sites = facts.require((*came, facts.site), "boxes")
    if not set(with_sites) <= {one.site for one in attempt.keys}:
        raise MaskingMessageError("a box of a site that gave no keys", safe=_SAFE)
    opened = _open_boxes(attempt, came)
    held = {facts.site: _own_shares(attempt).without_mask_share()}
    add: list[bytes] = [own_stream(made.seed_secret)]
    subtract: list[bytes] = []
    for peer, (shares, stream) in opened.items():
        held[peer] = shares
        (add if facts.site < peer else subtract).append(stream)
    apply_masks(encoded, add, subtract)
    said = MaskedInput(
        facts.site, with_sites, hashlib.sha256(encoded.astype("<u4", copy=False).data).digest()
    )
    masked = signed(said, attempt.context, key)
    return (
        replace(
            attempt, stage=Stage.MASKED, secrets=None, own_shares=None, held=held, masked=masked
        ),
        masked,
    )


def _open_boxes(
    attempt: SiteAttempt, came: Mapping[str, Box]
) -> dict[str, tuple[HeldShares, bytes]]:
    """By peer: its shares, and the key of the mask that this site shares with it.

    All boxes are tried, so that one complaint names everybody who is to blame.
    """
    opened: dict[str, tuple[HeldShares, bytes]] = {}
    refused: dict[str, str] = {}
    for peer, box in sorted(came.items()):
        try:
            opened[peer] = _open_box(attempt, box)
        except MaskingMessageError as error:
            refused[peer] = error.what
    if refused:
        raise BoxesRefusedError(
            "; ".join(list(refused.values())[:5]), safe=_SAFE, accused=tuple(refused),
            next_step="this site says so to the coordinator and joins the next attempt",
        )  # fmt: skip
    return opened


def _open_box(attempt: SiteAttempt, box: Box) -> tuple[HeldShares, bytes]:
    facts, context, pairs = attempt.facts, attempt.context, _secrets(attempt).pairs
    peer, me = attempt.keys_of(box.sender), attempt.own_keys
    check_signature(box, peer.site, context, facts.signing_keys)
    check_box(box, facts.terms)
    held = open_shares(context, box, _secrets(attempt).transport)
    agreed = pairs.agree(peer.agreement)
    if facts.terms.chooser(me.site, peer.site) == me.site:
        ours = next(one for one in attempt.own_boxes if one.recipient == peer.site)
        secret = pairs.pair_secret(peer.site)
        return held, pair_stream(context, me, peer, agreed, secret, ours)
    secret = open_pair(context, box, pairs.escrow)
    return held, pair_stream(context, peer, me, agreed, secret, box)


def complain(
    attempt: SiteAttempt, accused: Iterable[str], key: SigningKey
) -> tuple[SiteAttempt, Complaint]:
    """Say whose boxes :func:`mask` refused, in place of a masked vector; this attempt ends here.

    From here on m, b and c of this site are gone: it masks nothing and reveals nothing in this attempt.

    Args:
        accused: :attr:`BoxesRefusedError.accused`.
    Raises:
        MaskingMessageError: nobody, this site itself, or one that gave no keys.
        ContributionReuseError: a vector is masked in this attempt, or another complaint was made.
    """
    facts = attempt.facts
    said = Complaint(facts.site, tuple(sorted(set(accused))))
    if attempt.complaint is not None:
        if attempt.complaint.accused != said.accused:
            raise ContributionReuseError(
                "this site has complained of others in this attempt", safe=_SAFE
            )
        return attempt, attempt.complaint
    if attempt.stage is not Stage.SHARED:
        raise ContributionReuseError(
            f"an attempt that is {attempt.stage.value} complains of no box", safe=_SAFE
        )
    peers = {one.site for one in attempt.keys} - {facts.site}
    if not said.accused or not set(said.accused) <= peers:
        raise MaskingMessageError("a complaint names peers whose boxes came", safe=_SAFE)
    complaint = signed(said, attempt.context, key)
    ended = replace(
        attempt, stage=Stage.COMPLAINED, secrets=None, own_shares=None, complaint=complaint
    )
    return ended, complaint


# --- step 4 ---------------------------------------------------------------------------------------


def agree(
    attempt: SiteAttempt, inputs: Iterable[MaskedInput], key: SigningKey
) -> tuple[SiteAttempt, Agreement]:
    """Sign, once, whose masked vectors came.

    Raises:
        SplitViewError: an input is masked with other sites than this one's, or this site's is missing.
        TooFewSurvivorsError: too few of them, in all or in a group of parameters.
        MaskingMessageError: an input that is not its site's own.
        ContributionReuseError: other inputs than those that were signed.
    """
    listed = tuple(sorted(inputs, key=lambda one: one.site))
    facts = attempt.facts
    if attempt.masked is None:
        raise ContributionReuseError("nothing is masked in this attempt", safe=_SAFE)
    survivors = facts.require((one.site for one in listed), "masked inputs")
    for one in listed:
        check_signature(one, one.site, attempt.context, facts.signing_keys)
        if one.masked_with != attempt.masked.masked_with:
            raise SplitViewError(f"{one.site} was told of other peers than this site", safe=_SAFE)
    if attempt.masked not in listed or not set(survivors) <= set(attempt.masked.masked_with):
        raise SplitViewError("this site's masked vector is not among those that came", safe=_SAFE)
    said = Agreement(
        facts.site, attempt.masked.masked_with, survivors, inputs_hash(attempt.context, listed)
    )
    if attempt.agreement is not None:
        if attempt.agreement.view != said.view:
            raise ContributionReuseError(
                "this site has signed other survivors in this attempt", safe=_SAFE
            )
        return attempt, attempt.agreement
    agreement = signed(said, attempt.context, key)
    return replace(attempt, stage=Stage.AGREED, agreement=agreement), agreement


# --- step 5 ---------------------------------------------------------------------------------------


def reveal(
    attempt: SiteAttempt, agreements: Iterable[Agreement], key: SigningKey
) -> tuple[SiteAttempt, Reveal]:
    """One share of each peer: of b if it survived, of m if it dropped; never of both.

    Raises:
        SplitViewError: fewer than t sites signed this view, and some signed another.
        TooFewSurvivorsError: fewer than t signatures.
        MaskingMessageError, ContributionReuseError
    """
    if attempt.reveal is not None:
        return attempt, attempt.reveal
    own = attempt.agreement
    if own is None:
        raise ContributionReuseError("this site has agreed to no survivors", safe=_SAFE)
    facts = attempt.facts
    signers: set[str] = set()
    others: set[str] = set()
    for one in agreements:
        check_signature(one, one.site, attempt.context, facts.signing_keys)
        (signers if one.view == own.view else others).add(one.site)
    if len(signers & set(own.survivors)) < facts.terms.threshold:
        # t is above half of all honest sites and colluders: no two views can both have it.
        what = f"{len(signers)} sites agree with this one, the threshold is {facts.terms.threshold}"
        if others:
            raise SplitViewError(f"{what}; {', '.join(sorted(others)[:5])} saw others", safe=_SAFE)
        raise TooFewSurvivorsError(what, safe=_SAFE)
    shares = tuple(
        OpenedShare(peer, ShareKind.SEED, held.seed_share, held.seed_salt)
        if peer in own.survivors
        else OpenedShare(peer, ShareKind.MASK, held.mask_share, held.mask_salt)
        for peer, held in sorted(attempt.held.items())
    )
    given = signed(Reveal(facts.site, shares), attempt.context, key)
    # The other share of each peer goes now, so that no later step could give it.
    return replace(attempt, stage=Stage.REVEALED, held={}, reveal=given), given


def _secrets(attempt: SiteAttempt) -> AttemptSecrets:
    if attempt.secrets is None:
        raise ContributionReuseError("the secrets of this attempt are erased", safe=_SAFE)
    return attempt.secrets


def _own_shares(attempt: SiteAttempt) -> HeldShares:
    if attempt.own_shares is None:
        raise ContributionReuseError("this site has shared nothing in this attempt", safe=_SAFE)
    return attempt.own_shares
