"""Attacks on a masked attempt: each ends in a named error before anything is revealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedpalm.errors import (
    BadShareError,
    BoxesRefusedError,
    CodecOverflowError,
    ConfigError,
    ContributionReuseError,
    IllegalTransitionError,
    MaskingMessageError,
    NotOnRosterError,
    SplitViewError,
    TooFewSurvivorsError,
)
from fedpalm.pki.hybrid import seal
from fedpalm.secagg import site as core
from fedpalm.secagg.boxes import HeldShares, box_info, seal_box
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.secagg.memory import AttemptRef
from fedpalm.secagg.messages import (
    Agreement,
    MaskedInput,
    ShareKind,
    SiteKeys,
    inputs_hash,
    share_hash,
    signed,
)
from fedpalm.secagg.secrets import AttemptSecrets
from fedpalm.secagg.site import AttemptFacts
from fedpalm.secagg.terms import SecAggTerms
from fedpalm.secagg.unmasking import Step
from tests.support.masking import (
    Attempt,
    Federation,
    Site,
    manifest_hash,
    names,
    refused,
    signing_key,
)


def foreign_keys(attempt: Attempt, name: str) -> tuple[SiteKeys, AttemptSecrets]:
    """Keys in the name of ``name`` whose secrets the coordinator has, signed with a key of its own."""
    made = AttemptSecrets.generate()
    forged = replace(
        attempt.collection.keys[name],
        agreement=made.pairs.agreement.public_key().public_bytes_raw(),
        escrow=made.pairs.escrow.public_bytes,
        transport=made.transport.public_bytes,
    )
    return signed(forged, attempt.facts(name).context, signing_key("the coordinator")), made


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("re_signed", [True, False])
@pytest.mark.parametrize("victim", ["s00", "s03"])
def test_substituted_keys_are_refused(victim: str, re_signed: bool) -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().keys()
    forged, _ = foreign_keys(attempt, "s01")
    if not re_signed:
        forged = replace(forged, signature=attempt.collection.keys["s01"].signature)
    attempt.show = lambda step, site, keys: [
        forged if (site, one.site) == (victim, "s01") else one for one in keys
    ]
    refused(MaskingMessageError, attempt.boxes)
    federation.assert_nothing_was_revealed()


def test_a_site_whose_own_keys_were_replaced_sees_it() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys()
    forged, _ = foreign_keys(attempt, "s02")
    attempt.show = lambda step, site, keys: [forged if one.site == "s02" else one for one in keys]
    refused(SplitViewError, lambda: federation.sites["s02"].share(
        attempt.facts("s02"), attempt.ref, attempt.show("keys", "s02", attempt.collection.keys.values())
    ))  # fmt: skip
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("field", ["agreement", "escrow", "transport", "seed_hash"])
def test_one_key_for_two_sites_is_refused_by_sites_and_coordinator(field: str) -> None:
    federation = Federation.of(4, corrupt=["s03"])
    attempt = federation.attempt()
    first = federation.sites["s00"].join(attempt.facts("s00"), attempt.ref, "m0")
    own = federation.sites["s03"].join(attempt.facts("s03"), attempt.ref, "m0")
    copied = replace(own, **{field: getattr(first, field)})
    copied = signed(copied, attempt.facts("s03").context, signing_key("s03"))
    taken = attempt.collection.take_keys(first)
    refused(MaskingMessageError, lambda: taken.take_keys(copied), "twice")
    attempt.keys()
    attempt.show = lambda step, site, keys: [copied if one.site == "s03" else one for one in keys]
    refused(MaskingMessageError, attempt.boxes, "twice")
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize(
    "change",
    [
        {"agreement": bytes(32)},
        {"agreement": b"\x01" + bytes(31)},
        {"agreement": b"\xff" * 32},
        {"agreement": b""},
        {"escrow": b""},
        {"transport": b"\xff" * 1216},
        {"seed_hash": b"short"},
    ],
    ids=str,
)
def test_a_sites_unusable_keys_cost_it_its_place_and_nobody_else(change: dict[str, bytes]) -> None:
    federation = Federation.of(5, corrupt=["s04"])
    attempt = federation.attempt()
    own = federation.sites["s04"].join(attempt.facts("s04"), attempt.ref, "m0")
    junk = signed(replace(own, **change), attempt.facts("s04").context, signing_key("s04"))
    refused(MaskingMessageError, lambda: attempt.collection.take_keys(junk))
    # A coordinator that passes them on all the same gets no box from anybody.
    attempt.keys(drop=["s04"])
    attempt.show = lambda step, site, keys: [*keys, junk]
    refused(MaskingMessageError, attempt.boxes)
    federation.assert_nothing_was_revealed()
    # Without them the round goes on.
    fresh = Federation.of(5).attempt().keys(drop=["s04"]).boxes().inputs().agreements().reveals()
    np.testing.assert_array_equal(fresh.sum(), fresh.expected_sum())


def test_keys_of_another_attempt_are_refused() -> None:
    federation = Federation.of(4)
    old = federation.attempt(attempt=1).keys()
    attempt = federation.attempt(attempt=2).keys()
    attempt.show = lambda step, site, keys: [
        old.collection.keys["s01"] if one.site == "s01" and site != "s01" else one for one in keys
    ]
    refused(MaskingMessageError, attempt.boxes)
    refused(MaskingMessageError, lambda: replace(attempt.collection, keys={}, step=Step.KEYS).take_keys(
        old.collection.keys["s01"]
    ))  # fmt: skip
    federation.assert_nothing_was_revealed()


# --- split views ----------------------------------------------------------------------------------


def test_sites_that_were_shown_different_keys_accept_no_box_of_each_other() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().keys()
    full = tuple(attempt.collection.keys.values())
    s00 = federation.sites["s00"]
    boxes = s00.share(attempt.facts("s00"), attempt.ref, full[:4])
    refused(MaskingMessageError, lambda: attempt.collection.take_boxes("s00", boxes))
    theirs = {
        name: federation.sites[name].share(attempt.facts(name), attempt.ref, full)
        for name in ("s01", "s02", "s03", "s04")
    }
    to_s01 = [
        next(one for one in given if one.recipient == "s01")
        for given in (boxes, theirs["s02"], theirs["s03"], theirs["s04"])
    ]
    refused(
        BoxesRefusedError,
        lambda: federation.sites["s01"].mask(attempt.facts("s01"), attempt.ref, to_s01),
    )
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize(
    "what", ["roster", "model", "colluders", "groups", "smallest sum", "signing key"]
)
def test_sites_that_were_told_different_terms_accept_no_key_of_each_other(what: str) -> None:
    federation = Federation.of(5)
    ref = AttemptRef("r", 1, 1)
    attempt = federation.attempt()
    for name in names(5):
        if name != "s00":
            federation.sites[name].join(attempt.facts(name), ref, "m0")
    terms, manifest, cohort = federation.terms, attempt.manifests["s00"], names(5)
    keys = {name: signing_key(name).public_key() for name in cohort}
    match what:
        case "roster":
            terms = SecAggTerms((*names(5), "s05"))
        case "model":
            manifest = manifest_hash(ref, "m1", cohort)
        case "colluders":
            terms = SecAggTerms(names(5), 0)
        case "groups":
            terms = SecAggTerms(names(5), groups=(("left", names(3)),))
        case "smallest sum":
            terms = SecAggTerms(names(5), smallest_sum=5)
        case _:
            keys["s04"] = signing_key("the coordinator").public_key()
    facts = AttemptFacts(terms, "s00", manifest, cohort, keys)
    said = federation.sites["s00"].join(facts, ref, "m0")
    refused(MaskingMessageError, lambda: attempt.collection.take_keys(said))
    others = [federation.sites[name].join(attempt.facts(name), ref, "m0") for name in names(5)[1:]]
    refused(MaskingMessageError, lambda: federation.sites["s00"].share(facts, ref, [said, *others]))
    refused(
        MaskingMessageError,
        lambda: federation.sites["s01"].share(attempt.facts("s01"), ref, [said, *others]),
    )
    federation.assert_nothing_was_revealed()


def test_sites_that_were_given_boxes_of_different_peers_see_it_before_they_agree() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().keys().boxes()
    said = []
    for name in names(5):
        peers = [b for b in attempt.collection.boxes_for(name) if (name, b.sender) not in
                 (("s00", "s04"), ("s01", "s04"), ("s02", "s04"), ("s04", "s04"))]  # fmt: skip
        said.append(federation.sites[name].mask(attempt.facts(name), attempt.ref, peers)[0])
    assert {one.masked_with for one in said} == {names(4), names(5)}
    refused(MaskingMessageError, lambda: attempt.collection.take_input(said[0]))
    for name in names(5):
        refused(
            SplitViewError,
            lambda name=name: federation.sites[name].agree(attempt.facts(name), attempt.ref, said),
        )
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("corrupt", [(), ("s04",)])
def test_two_different_survivor_sets_open_neither(corrupt: tuple[str, ...]) -> None:
    """The coordinator wants sums over s00-s03 and over all; a corrupt site signs both."""
    federation = Federation.of(5, corrupt=corrupt)
    attempt = federation.attempt().until_masked()
    inputs = dict(attempt.collection.inputs)
    some = [inputs[name] for name in names(4)] if corrupt else [inputs[n] for n in names(5)[1:]]
    every = list(inputs.values())
    views = {"s00": some if corrupt else every, "s01": some, "s02": every, "s03": every}
    if not corrupt:
        views["s04"] = some
    agreements = [
        federation.sites[name].agree(attempt.facts(name), attempt.ref, shown)
        for name, shown in views.items()
    ]
    for name in corrupt:
        for one in (agreements[0], agreements[-1]):
            agreements.append(
                signed(replace(one, site=name), attempt.collection.context, signing_key(name))
            )
    for name in views:
        refused(
            SplitViewError,
            lambda name=name: federation.sites[name].reveal(
                attempt.facts(name), attempt.ref, agreements
            ),
        )
    federation.assert_nothing_was_revealed()


def test_signatures_of_sites_that_do_not_survive_do_not_count_towards_the_threshold() -> None:
    federation = Federation.of(5, corrupt=["s04"])
    attempt = federation.attempt().until_masked(drop=["s04"])
    shown = list(attempt.collection.inputs.values())
    given = [federation.sites[n].agree(attempt.facts(n), attempt.ref, shown) for n in names(3)]
    dropped = signed(replace(given[0], site="s04"), attempt.collection.context, signing_key("s04"))
    refused(
        TooFewSurvivorsError,
        lambda: federation.sites["s00"].reveal(
            attempt.facts("s00"), attempt.ref, [*given, dropped]
        ),
    )
    refused(MaskingMessageError, lambda: attempt.collection.take_agreement(dropped), "dropped")
    # One signature many times is one signature.
    refused(
        TooFewSurvivorsError,
        lambda: federation.sites["s00"].reveal(attempt.facts("s00"), attempt.ref, given * 5),
    )
    federation.assert_nothing_was_revealed()


def test_a_site_signs_one_survivor_set_only() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().until_masked()
    every = list(attempt.collection.inputs.values())
    s00 = federation.sites["s00"]
    first = s00.agree(attempt.facts("s00"), attempt.ref, every)
    assert s00.agree(attempt.facts("s00"), attempt.ref, reversed(every)) == first
    refused(ContributionReuseError, lambda: s00.agree(attempt.facts("s00"), attempt.ref, every[:4]))
    federation.assert_nothing_was_revealed()


# --- both lists, and lists that are taken ---------------------------------------------------------


def test_no_peer_is_in_both_lists_of_one_site() -> None:
    """Lists are derived from what was agreed: one share of each peer, and asked again the same ones."""
    federation = Federation.of(5)
    attempt = federation.attempt().until_masked(drop=["s02"]).agreements().reveals()
    for name, said in attempt.collection.reveals.items():
        assert [one.owner for one in said.shares] == list(names(5))
        assert {one.owner for one in said.shares if one.kind is ShareKind.MASK} == {"s02"}
        again = federation.sites[name].reveal(attempt.facts(name), attempt.ref, [])
        assert again == said
    assert all(len(kinds) == 1 for kinds in federation.openable().values())
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())


def test_a_site_that_gave_shares_has_no_others_left() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().until_masked().agreements().reveals()
    stored = json.loads(federation.sites["s00"].disk["attempt"])
    assert stored["held"] == {} and stored["secrets"] is None and stored["own_shares"] is None
    assert attempt.collection.reveals["s00"].signature.hex() == stored["reveal"]["signature"]


def test_a_site_never_holds_a_share_of_its_own_mask_secret_once_it_has_masked() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().until_masked()
    for name in names(4):
        own = json.loads(federation.sites[name].disk["attempt"])["held"][name]
        assert own.startswith("00" * 49) and own[98:].strip("0")
    attempt.agreements().reveals()
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())


# --- boxes ----------------------------------------------------------------------------------------


def reboxed(attempt: Attempt, sender: str, recipient: str, **changes: Any) -> Callable[..., Any]:
    """Show ``recipient`` a box of ``sender`` with other contents, signed by ``sender``."""

    def show(step: str, site: str, messages: Any) -> Any:
        if step != "boxes" or site != recipient:
            return messages
        return [
            signed(replace(box, **changes), attempt.collection.context, signing_key(sender))
            if box.sender == sender
            else box
            for box in messages
        ]

    return show


@pytest.mark.parametrize("sealed", [b"", b"x", bytes(1136), bytes(1168)], ids=len)
@pytest.mark.parametrize("field", ["pair", "shares"])
def test_a_missing_or_junk_box_makes_no_mask_without_it(field: str, sealed: bytes) -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys().boxes()
    attempt.show = reboxed(attempt, "s00", "s03", **{field: sealed})
    refused(BoxesRefusedError, lambda: federation.sites["s03"].mask(
        attempt.facts("s03"), attempt.ref,
        attempt.show("boxes", "s03", attempt.collection.boxes_for("s03")),
    ), "s00")  # fmt: skip
    assert federation.sites["s03"].disk.get("masked") is None
    federation.assert_nothing_was_revealed()


def test_a_pair_secret_where_none_belongs_is_refused() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys().boxes()
    pair = attempt.collection.boxes["s00"]["s01"].pair
    attempt.show = reboxed(attempt, "s02", "s01", pair=pair)
    refused(BoxesRefusedError, attempt.inputs)
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("field", ["pair", "shares"])
@pytest.mark.parametrize("taken_from", [("s00", "s01"), ("s01", "s02")])
def test_a_box_for_another_pair_opens_for_nobody_else(
    field: str, taken_from: tuple[str, str]
) -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys().boxes()
    sender, recipient = taken_from
    other = getattr(attempt.collection.boxes[sender][recipient], field)
    attempt.show = reboxed(attempt, "s00", "s03", **{field: other})
    refused(BoxesRefusedError, attempt.inputs)
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("signer", ["the coordinator", "s01"])
def test_a_box_that_another_made_in_a_sites_name_is_refused(signer: str) -> None:
    """It opens and holds what its hashes say: only the signature is not the sender's."""
    federation = Federation.of(5)
    attempt = federation.attempt().keys().boxes()
    context, to = attempt.collection.context, attempt.collection.keys["s03"]
    held = HeldShares(bytes(33), bytes(16), bytes(33), bytes(16))
    forged = seal_box(context, "s00", to, held, bytes(32), signing_key(signer))
    attempt.show = lambda step, site, boxes: [
        forged if (box.sender, box.recipient) == ("s00", "s03") else box for box in boxes
    ]
    assert refused(BoxesRefusedError, attempt.inputs, "not its own").accused == ("s00",)
    federation.assert_nothing_was_revealed()


def test_whole_boxes_that_are_swapped_repeated_left_out_or_of_oneself_are_refused() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys().boxes()
    honest = attempt.collection.boxes_for("s02")
    s02, facts = federation.sites["s02"], attempt.facts("s02")
    for shown in (
        [*honest[:2], attempt.collection.boxes["s03"]["s00"]],
        [*honest, honest[0]],
        [*honest[:2], attempt.collection.boxes["s02"]["s03"]],
        [*honest[:2], replace(honest[2], sender="s09")],
    ):
        refused(MaskingMessageError, lambda shown=shown: s02.mask(facts, attempt.ref, shown))
    refused(TooFewSurvivorsError, lambda: s02.mask(facts, attempt.ref, honest[:1]))
    federation.assert_nothing_was_revealed()


def test_boxes_of_another_attempt_are_refused() -> None:
    federation = Federation.of(4)
    old = federation.attempt(attempt=1).keys().boxes()
    attempt = federation.attempt(attempt=2).keys().boxes()
    attempt.show = lambda step, site, boxes: [
        old.collection.boxes["s01"][site] if box.sender == "s01" else box for box in boxes
    ]
    refused(BoxesRefusedError, attempt.inputs)
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("wrong", ["another share", "no element of the field", "too short"])
def test_a_share_that_does_not_match_its_hash_is_refused_by_the_one_that_gets_it(
    wrong: str,
) -> None:
    federation = Federation.of(4, corrupt=["s00"])
    attempt = federation.attempt().keys().boxes()
    context = attempt.collection.context
    held = HeldShares(bytes(33), bytes(16), bytes(33), bytes(16))
    changes: dict[str, Any] = {}
    if wrong == "no element of the field":
        held = HeldShares(b"\xff" * 33, bytes(16), bytes(33), bytes(16))
        changes["mask_share_hash"] = share_hash(
            context, "s00", "s02", ShareKind.MASK, held.mask_share, held.mask_salt
        )
        changes["seed_share_hash"] = share_hash(
            context, "s00", "s02", ShareKind.SEED, held.seed_share, held.seed_salt
        )
    raw = held.to_bytes()[:-1] if wrong == "too short" else held.to_bytes()
    transport = attempt.collection.keys["s02"].transport
    changes["shares"] = seal(raw, transport, box_info(context, "s00", "s02", "shares"))
    attempt.show = reboxed(attempt, "s00", "s02", **changes)
    refused(BoxesRefusedError, attempt.inputs, "s00")
    federation.assert_nothing_was_revealed()


def test_the_coordinator_takes_no_boxes_that_are_not_one_for_each() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().keys()
    listed = tuple(attempt.collection.keys.values())
    s00 = federation.sites["s00"].share(attempt.facts("s00"), attempt.ref, listed)
    s01 = federation.sites["s01"].share(attempt.facts("s01"), attempt.ref, listed)
    for boxes in (
        s00[:2],
        (*s00, s00[0]),
        (*s00[:2], s01[1]),
        (),
        (*s00[:2], replace(s00[2], pair=b"")),
    ):
        refused(
            MaskingMessageError,
            lambda boxes=boxes: attempt.collection.take_boxes("s00", boxes),
        )


# --- shares and secrets at the end ------------------------------------------------------------------


def test_a_share_that_does_not_match_its_hash_costs_its_giver_its_place() -> None:
    federation = Federation.of(5, corrupt=["s04"])
    attempt = federation.attempt().until_masked(drop=["s01"]).agreements()
    listed = list(attempt.collection.agreements.values())
    said = federation.sites["s04"].reveal(attempt.facts("s04"), attempt.ref, listed)
    context = attempt.collection.context
    for at in range(4):
        lied = replace(said.shares[at], share=bytes(33))
        shares = (*said.shares[:at], lied, *said.shares[at + 1 :])
        wrong = signed(replace(said, shares=shares), context, signing_key("s04"))
        error = refused(BadShareError, lambda wrong=wrong: attempt.collection.take_reveal(wrong))
        assert error.caught == "s04"
    both = (*said.shares, replace(said.shares[0], kind=ShareKind.MASK))
    swapped = (replace(said.shares[0], kind=ShareKind.MASK), *said.shares[1:])
    for shares in (both, swapped, said.shares[1:], ()):
        wrong = signed(replace(said, shares=shares), context, signing_key("s04"))
        error = refused(BadShareError, lambda wrong=wrong: attempt.collection.take_reveal(wrong))
        assert error.caught == "s04"
    for name in names(4):
        if name != "s01":
            given = federation.sites[name].reveal(attempt.facts(name), attempt.ref, listed)
            attempt.collection = attempt.collection.take_reveal(given)
    # Without it there are three of the four that are needed: no sum.
    refused(TooFewSurvivorsError, lambda: attempt.collection.close_step())
    refused(IllegalTransitionError, attempt.collection.corrections)


@pytest.mark.parametrize("dropped", [False, True])
def test_shares_of_another_secret_than_the_published_one_are_named_and_open_nothing(
    dropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dealer commits to shares of rubbish: all hashes fit, the secret does not."""
    federation = Federation.of(5, corrupt=["s04"])
    attempt = federation.attempt().keys()
    listed = tuple(attempt.collection.keys.values())
    honest = core.split
    for name in names(5):
        if name == "s04":
            monkeypatch.setattr(core, "split", lambda secret, t, n: honest(bytes(32), t, n))
        boxes = federation.sites[name].share(attempt.facts(name), attempt.ref, listed)
        monkeypatch.setattr(core, "split", honest)
        attempt.collection = attempt.collection.take_boxes(name, boxes)
    attempt.collection = attempt.collection.close_step()
    attempt.inputs(drop=["s04"] if dropped else []).agreements().reveals()
    assert refused(BadShareError, attempt.sum, "s04").caught == "s04"


def test_the_share_that_nobody_can_check_opens_nothing_wrong() -> None:
    """A site lies about its share of its own seed: the sum comes without it, or ends in a named error."""
    federation = Federation.of(5, corrupt=["s02"])
    attempt = federation.attempt().until_masked().agreements()
    listed = list(attempt.collection.agreements.values())

    def lie(name: str) -> Any:
        said = federation.sites[name].reveal(attempt.facts(name), attempt.ref, listed)
        if name != "s02":
            return said
        shares = tuple(
            replace(one, share=bytes(33)) if one.owner == "s02" else one for one in said.shares
        )
        return signed(replace(said, shares=shares), attempt.collection.context, signing_key("s02"))

    before = attempt.collection
    for name in names(5):
        attempt.collection = attempt.collection.take_reveal(lie(name))
    attempt.collection = attempt.collection.close_step()
    np.testing.assert_array_equal(attempt.sum(), attempt.expected_sum())
    attempt.collection = before
    for name in names(4):
        attempt.collection = attempt.collection.take_reveal(lie(name))
    attempt.collection = attempt.collection.close_step()
    assert refused(BadShareError, attempt.sum, "s02").caught == "s02"


def test_a_junk_pair_secret_for_a_site_that_then_drops_ends_in_a_named_error() -> None:
    federation = Federation.of(5, corrupt=["s00"])
    attempt = federation.attempt().keys()
    listed = tuple(attempt.collection.keys.values())
    for name in names(5):
        boxes = list(federation.sites[name].share(attempt.facts(name), attempt.ref, listed))
        if name == "s00":
            # Its own state must know the same box, or its mask would be another one still.
            boxes = [
                signed(replace(box, pair=bytes(1168)), attempt.collection.context, signing_key("s00"))
                if box.recipient == "s03" else box for box in boxes
            ]  # fmt: skip
        attempt.collection = attempt.collection.take_boxes(name, boxes)
    attempt.collection = attempt.collection.close_step()
    refused(
        BoxesRefusedError,
        lambda: federation.sites["s03"].mask(
            attempt.facts("s03"), attempt.ref, attempt.collection.boxes_for("s03")
        ),
        "s00",
    )
    attempt.inputs(drop=["s03"]).agreements().reveals()
    assert refused(BadShareError, attempt.sum, "s00 gave s03").caught == "s00"


# --- who takes part -------------------------------------------------------------------------------


def test_a_sybil_that_is_not_on_the_roster_makes_no_attempt() -> None:
    federation = Federation.of(4)
    refused(NotOnRosterError, lambda: federation.attempt(cohort=(*names(4), "sybil")))
    attempt = federation.attempt().keys()
    stranger = Site("sybil")
    forged = replace(attempt.collection.keys["s03"], site="sybil")
    forged = signed(forged, attempt.facts("s00").context, stranger.key)
    attempt.show = lambda step, site, keys: [*keys, forged]
    refused(MaskingMessageError, attempt.boxes)
    refused(
        MaskingMessageError,
        lambda: replace(attempt.collection, step=Step.KEYS).take_keys(forged),
    )
    federation.assert_nothing_was_revealed()


def test_one_signing_key_under_two_names_makes_no_attempt() -> None:
    keys = {name: signing_key(name).public_key() for name in names(4)}
    keys["s03"] = keys["s02"]
    refused(
        MaskingMessageError,
        lambda: AttemptFacts(SecAggTerms(names(4)), "s00", bytes(32), names(4), keys),
    )


@pytest.mark.parametrize("others", [("s01",), ("s01", "s02"), ()])
def test_a_cohort_shrunk_to_isolate_one_site_gets_no_keys(others: tuple[str, ...]) -> None:
    federation = Federation.of(5)
    attempt = federation.attempt(cohort=("s00", *others))
    refused(
        TooFewSurvivorsError,
        lambda: federation.sites["s00"].join(attempt.facts("s00"), attempt.ref, "m0"),
    )
    federation.assert_nothing_was_revealed()


def test_survivors_shrunk_to_isolate_one_site_get_no_agreement() -> None:
    federation = Federation.of(5)
    attempt = federation.attempt().until_masked()
    every = list(attempt.collection.inputs.values())
    for count in (1, 2, 3):
        refused(
            TooFewSurvivorsError,
            lambda count=count: federation.sites["s00"].agree(
                attempt.facts("s00"), attempt.ref, every[:count]
            ),
        )
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("count", [0, 1, 2, 201])
def test_fewer_than_three_sites_or_more_than_two_hundred_are_not_masked(count: int) -> None:
    refused(ConfigError, lambda: SecAggTerms(names(count)))


def grouped() -> Federation:
    return Federation.of(6, groups=(("left", names(3)), ("right", names(6)[2:])))


def test_a_group_with_one_survivor_is_refused_by_every_site() -> None:
    """Enough sites in all, but only one contributed to the group's parameters."""
    federation = grouped()
    attempt = federation.attempt().until_masked()
    inputs = attempt.collection.inputs
    shown = [inputs[name] for name in ("s02", "s03", "s04", "s05")]
    for name in ("s02", "s03", "s04", "s05"):
        refused(
            TooFewSurvivorsError,
            lambda name=name: federation.sites[name].agree(attempt.facts(name), attempt.ref, shown),
            "group left",
        )
    federation.assert_nothing_was_revealed()


def test_colluders_who_agree_to_one_survivor_of_a_group_get_no_share_of_an_honest_site() -> None:
    """The coordinator shows the honest sites what they accept, and then signatures over the other view."""
    federation = grouped()
    attempt = federation.attempt().until_masked()
    inputs, context = attempt.collection.inputs, attempt.collection.context
    shown = [inputs[name] for name in ("s02", "s03", "s04", "s05")]
    lie = Agreement(
        "s05", inputs["s05"].masked_with, ("s02", "s03", "s04", "s05"), inputs_hash(context, shown)
    )
    forged = signed(lie, context, federation.sites["s05"].key)
    refused(
        ContributionReuseError,
        lambda: federation.sites["s03"].reveal(attempt.facts("s03"), attempt.ref, [forged]),
        "agreed to no survivors",
    )
    attempt.agreements()
    for name in names(5):
        refused(
            SplitViewError,
            lambda name=name: federation.sites[name].reveal(
                attempt.facts(name), attempt.ref, [attempt.collection.agreements[name], forged]
            ),
        )
    federation.assert_nothing_was_revealed()


@pytest.mark.parametrize("step", ["keys", "boxes", "inputs"])
def test_a_group_that_lost_a_site_ends_the_attempt_at_an_honest_coordinator(step: str) -> None:
    federation = grouped()
    attempt = federation.attempt()
    for name in ("keys", "boxes", "inputs"):
        if name == step:
            refused(TooFewSurvivorsError, lambda n=name: getattr(attempt, n)(drop=["s00"]), "group")
            break
        getattr(attempt, name)()
    federation.assert_nothing_was_revealed()


def test_a_group_too_small_to_hide_a_member_makes_no_terms() -> None:
    refused(ConfigError, lambda: SecAggTerms(names(6), groups=(("left", names(2)),)))
    refused(ConfigError, lambda: SecAggTerms(names(6), 2, groups=(("left", names(3)),)))
    refused(ConfigError, lambda: SecAggTerms(names(4), groups=(("left", ("s00", "s01", "x")),)))


# --- numbers --------------------------------------------------------------------------------------


def test_what_could_overflow_the_sum_is_refused_before_a_mask_is_made() -> None:
    codec = FixedPointCodec(5, 3, 0.5, 100)
    refused(
        CodecOverflowError,
        lambda: codec.encode(np.zeros(3, np.float32), 100.5, {}, bytes(32)),
    )
    refused(CodecOverflowError, lambda: FixedPointCodec(2**25, 3, 0.5, 100))


# --- replayed signatures ----------------------------------------------------------------------------


def test_nothing_that_is_signed_for_one_step_or_view_passes_for_another() -> None:
    federation = Federation.of(4)
    attempt = federation.attempt().until_masked(drop=["s03"]).agreements()
    context = attempt.collection.context
    inputs = attempt.collection.inputs
    agreement = attempt.collection.agreements["s00"]
    as_input = MaskedInput("s00", agreement.masked_with, agreement.inputs_hash, agreement.signature)
    earlier = replace(attempt.collection, step=Step.INPUTS, inputs={})
    refused(MaskingMessageError, lambda: earlier.take_input(as_input))
    as_agreement = Agreement(
        "s00",
        agreement.masked_with,
        agreement.survivors,
        inputs_hash(context, inputs.values()),
        inputs["s00"].signature,
    )
    later = replace(attempt.collection, step=Step.AGREEMENTS, agreements={})
    refused(MaskingMessageError, lambda: later.take_agreement(as_agreement))
    others = [attempt.collection.agreements["s01"], attempt.collection.agreements["s02"]]
    refused(
        MaskingMessageError,
        lambda: federation.sites["s00"].reveal(
            attempt.facts("s00"), attempt.ref, [as_agreement, *others]
        ),
    )
    federation.assert_nothing_was_revealed()
