"""What is said in an attempt: signatures over every field, one purpose each, and forms that hold."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fedpalm.errors import MaskingMessageError
from fedpalm.pki.hybrid import SEAL_BYTES, HybridKey
from fedpalm.pki.keys import new_signing_key
from fedpalm.secagg.messages import (
    HELD_BYTES,
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
    share_hash,
    signed,
)
from fedpalm.secagg.secrets import AttemptSecrets
from fedpalm.secagg.terms import SecAggTerms

KEY = new_signing_key()
CONTEXT = bytes(range(32))
KEYS = {"a": KEY.public_key()}
SHARE = OpenedShare("b", ShareKind.SEED, bytes(33), bytes(16))
MESSAGES: list[Any] = [
    SiteKeys("a", b"1" * 32, b"2" * 1216, b"3" * 1216, b"4" * 32),
    Box("a", "b", b"1" * 100, b"2" * 100, b"3" * 32, b"4" * 32),
    MaskedInput("a", ("a", "b", "c"), b"1" * 32),
    Complaint("a", ("b", "c")),
    Agreement("a", ("a", "b", "c"), ("a", "b"), b"1" * 32),
    Reveal("a", (SHARE, replace(SHARE, owner="c"))),
]
OTHERS: dict[type, list[Any]] = {
    str: ["c", "", "ab"],
    bytes: [b"", b"other", b"1" * 31, b"1" * 33],
    tuple: [(), ("a",), ("a", "c"), ("a\nb", "c"), ("b", "a")],
}


def verify(said: Any, by: str = "a", context: bytes = CONTEXT) -> None:
    check_signature(said, by, context, KEYS)


def cases() -> list[Any]:
    found = []
    for said in MESSAGES:
        for f in fields(said):
            value = getattr(said, f.name)
            if f.name == "signature":
                continue
            if isinstance(said, Reveal) and f.name == "shares":
                changes = [
                    value[:1], (), value[::-1], (*value, SHARE),
                    (replace(value[0], owner="x"), value[1]),
                    (replace(value[0], kind=ShareKind.MASK), value[1]),
                    (replace(value[0], share=b"\1" * 33), value[1]),
                    (replace(value[0], salt=b"\1" * 16), value[1]),
                ]  # fmt: skip
            else:
                changes = [one for one in OTHERS[type(value)] if one != value]
            for number, changed in enumerate(changes):
                name = f"{type(said).__name__}.{f.name} {number}"
                found.append(pytest.param(said, {f.name: changed}, id=name))
    return found


@pytest.mark.parametrize(("said", "change"), cases())
def test_every_field_is_under_the_signature(said: Any, change: dict[str, Any]) -> None:
    good = signed(said, CONTEXT, KEY)
    verify(good)
    with pytest.raises(MaskingMessageError):
        verify(replace(good, **change))


@pytest.mark.parametrize("said", MESSAGES, ids=lambda said: type(said).__name__)
def test_a_signature_is_for_one_attempt_one_site_and_one_purpose(said: Any) -> None:
    good = signed(said, CONTEXT, KEY)
    for by, context, keys in (
        ("a", bytes(32), KEYS),
        ("b", CONTEXT, KEYS),
        ("a", CONTEXT, {}),
        ("a", CONTEXT, {"a": new_signing_key().public_key()}),
    ):
        with pytest.raises(MaskingMessageError):
            check_signature(good, by, context, keys)
    for signature in (b"", bytes(64), good.signature[:-1], good.signature + b"\0"):
        with pytest.raises(MaskingMessageError):
            verify(replace(good, signature=signature))


def test_no_two_kinds_of_message_share_a_domain_or_bytes() -> None:
    assert len({one.DOMAIN for one in MESSAGES}) == len(MESSAGES)
    assert len({one.message(CONTEXT) for one in MESSAGES}) == len(MESSAGES)


def test_lists_of_names_are_not_run_together() -> None:
    listed = [("a", "b"), ("a\nb",), ("ab",), ("a", "b", ""), ("", "a", "b"), ("b", "a")]
    messages = {replace(MESSAGES[2], masked_with=names).message(CONTEXT) for names in listed}
    assert len(messages) == len(listed)


def test_the_context_of_an_attempt_is_of_manifest_terms_and_signing_keys() -> None:
    base = (bytes(32), bytes(32), (("a", bytes(32)), ("b", bytes(32))))
    contexts = {
        attempt_context(*base),
        attempt_context(b"1" * 32, *base[1:]),
        attempt_context(base[0], b"1" * 32, base[2]),
        attempt_context(*base[:2], (("a", bytes(32)),)),
        attempt_context(*base[:2], (("a", bytes(32)), ("c", bytes(32)))),
        attempt_context(*base[:2], (("a", bytes(32)), ("b", b"1" * 32))),
    }
    assert len(contexts) == 6


def test_the_later_context_is_of_all_keys_with_their_signatures_in_any_order() -> None:
    one = signed(MESSAGES[0], CONTEXT, KEY)
    other = replace(one, site="b")
    assert keys_context(CONTEXT, [one, other]) == keys_context(CONTEXT, [other, one])
    different = {
        keys_context(CONTEXT, listed)
        for listed in ([one], [one, other], [replace(one, signature=b"x"), other], [])
    } | {keys_context(bytes(32), [one, other])}
    assert len(different) == 5


def test_the_hash_of_inputs_is_of_every_signed_input() -> None:
    one = signed(MESSAGES[2], CONTEXT, KEY)
    other = replace(one, site="b")
    assert inputs_hash(CONTEXT, [one, other]) == inputs_hash(CONTEXT, [other, one])
    different = {
        inputs_hash(CONTEXT, listed)
        for listed in ([one], [one, other], [replace(one, payload_hash=b"x"), other])
    } | {inputs_hash(CONTEXT, [replace(one, signature=b"x"), other])}
    assert len(different) == 4


def test_the_hash_of_a_share_is_of_its_place_and_salt() -> None:
    base = (CONTEXT, "a", "b", ShareKind.MASK, bytes(33), bytes(16))
    changes = [(0, bytes(32)), (1, "b"), (2, "a"), (3, ShareKind.SEED), (4, b"\1" * 33), (5, b"\1")]
    hashes = {share_hash(*base)}
    for at, value in changes:
        hashes.add(share_hash(*base[:at], value, *base[at + 1 :]))  # type: ignore[arg-type]
    assert len(hashes) == 7


# --- forms ----------------------------------------------------------------------------------------


def real_keys(site: str) -> SiteKeys:
    made = AttemptSecrets.generate()
    return SiteKeys(
        site,
        made.pairs.agreement.public_key().public_bytes_raw(),
        made.pairs.escrow.public_bytes,
        made.transport.public_bytes,
        bytes(32),
    )


@pytest.mark.parametrize("field", ["agreement", "escrow", "transport", "seed_hash"])
@pytest.mark.parametrize("value", [b"", bytes(31), bytes(1216), b"\xff" * 1216], ids=len)
def test_keys_that_nobody_can_use_are_refused(field: str, value: bytes) -> None:
    keys = real_keys("a")
    check_keys(keys)
    with pytest.raises(MaskingMessageError):
        check_keys(replace(keys, **{field: value}))


def test_no_key_and_no_half_of_one_stands_for_two() -> None:
    one, other = replace(real_keys("a"), seed_hash=b"1" * 32), real_keys("b")
    check_no_key_twice([one, other])
    half = one.escrow[:-32] + HybridKey.generate().public_bytes[-32:]
    for field, value in (
        ("agreement", one.agreement),
        ("escrow", one.escrow),
        ("escrow", half),
        ("transport", one.escrow),
        ("transport", other.escrow),
        ("transport", other.transport[:-32] + other.agreement),
        ("seed_hash", one.seed_hash),
    ):
        with pytest.raises(MaskingMessageError, match="b are used twice"):
            check_no_key_twice([one, replace(other, **{field: value})])


FORWARD = Box(
    "a", "b", bytes(SEAL_BYTES + HELD_BYTES), bytes(SEAL_BYTES + 32), bytes(32), bytes(32)
)
TERMS = SecAggTerms(("a", "b", "c"))
BACKWARD = replace(FORWARD, sender="b", recipient="a", pair=b"")


@pytest.mark.parametrize("box", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_a_box_has_one_form_in_each_direction(box: Box) -> None:
    check_box(box, TERMS)
    changes: list[dict[str, Any]] = [
        {"shares": b""}, {"shares": box.shares[1:]}, {"shares": box.shares + b"x"},
        {"pair": b"" if box.pair else bytes(SEAL_BYTES + 32)}, {"pair": b"x"},
        {"mask_share_hash": b""}, {"seed_share_hash": bytes(31)}, {"recipient": box.sender},
        {"recipient": "z"}, {"sender": "z"},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(MaskingMessageError):
            check_box(replace(box, **change), TERMS)


def test_no_share_is_shown() -> None:
    shown = repr(Reveal("a", (OpenedShare("b", ShareKind.SEED, b"SECRETSHARE", b"SECRETSALT"),)))
    assert "SECRET" not in shown and "owner='b'" in shown
