"""What a sealed expert is, and that it opens for nobody, nowhere and never but as it was sanctioned."""

from __future__ import annotations

import secrets
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import (
    DuplicateExpertError,
    EgressRefusedError,
    FedPalmError,
    LayoutMismatchError,
    NonFiniteUpdateError,
    NotOnRosterError,
    ReplayedExpertError,
    SanctionExpiredError,
    SealedExpertError,
    SwappedExpertError,
    WrongRecipientError,
)
from fedpalm.exchange import sealing
from fedpalm.exchange.consent import Sanction, new_salt
from fedpalm.exchange.sealing import (
    MAX_EXPERT_BYTES,
    SealedExpert,
    expert_hash,
    max_sealed_bytes,
    refuse_duplicates,
    seal_expert,
    sealed_bytes,
    verify_sealed,
    verify_wrapped,
)
from fedpalm.layout import Layout, TensorSpec
from fedpalm.pki.hybrid import HybridKey
from fedpalm.plan import MAX_SITES
from tests.support.crafted import opens_with_two_keys
from tests.support.exchange import (
    EXPIRES_MS,
    LAYOUT,
    NOW,
    ROSTER,
    Group,
    Spies,
    changed_in,
    expert_of,
    make_terms,
    plaintext_of,
)

TOO_LATE = EXPIRES_MS / 1000 + 1
TENSORS = LAYOUT.unflatten(expert_of("north"))


# --- what it is --------------------------------------------------------------------------------------


def test_each_recipient_gets_the_experts_exact_bits(group, sanction, sent):
    sealed, wrapped = sent
    again = SealedExpert.from_bytes(sealed.to_bytes())
    assert again == sealed and set(wrapped) == {"east", "west"}
    for recipient, key in wrapped.items():
        verify_wrapped(again, recipient, key)
        opened = group.open(sanction, again, key, recipient=recipient)
        assert opened.dtype == np.float32
        assert opened.tobytes() == expert_of("north").tobytes()


def test_no_part_of_the_expert_is_in_the_sealed_bytes(sealed: SealedExpert):
    content, plain = sealed.to_bytes(), expert_of("north").tobytes()
    assert not any(plain[at : at + 8] in content for at in range(0, len(plain) - 8, 4))


def test_its_length_follows_from_names_and_shapes(group, sanction, sealed):
    others = sanction.others("north")
    assert sealed_bytes(LAYOUT, group.terms, sender="north", recipients=others) == len(
        sealed.to_bytes()
    )
    free = group.other(without_refusers=True)
    fewer = free.sanction(free.consents("north", "west"))
    made, _ = free.seal(fewer)
    assert sealed_bytes(LAYOUT, free.terms, sender="north", recipients=["west"]) == len(
        made.to_bytes()
    )


def test_the_longest_names_on_the_longest_roster_fit_what_a_sealed_expert_may_weigh():
    names = [f"{at:03}".rjust(63, "x") for at in range(MAX_SITES)]
    longest = make_terms(
        federation="f" * 63, run="r" * 63, exchange_id="e" * 63, roster=tuple(names)
    )
    for roster in (names, names[:2]):
        size = sealed_bytes(LAYOUT, longest, sender=roster[0], recipients=roster[1:])
        assert size <= max_sealed_bytes(LAYOUT, len(roster))


def test_sealing_again_shares_no_secret_with_the_first_time(group, sanction, sent):
    """As after a crash that lost what was sealed: the same expert, salt and recipients."""
    first, wrapped = sent
    second, again = group.seal(sanction)
    assert first.header.salt == second.header.salt
    assert first.header.expert_hash == second.header.expert_hash
    assert first.header.key_commitment != second.header.key_commitment
    assert first.ciphertext != second.ciphertext
    assert not set(wrapped.values()) & set(again.values())
    with pytest.raises(WrongRecipientError):
        group.open(sanction, second, wrapped["east"])
    with pytest.raises(WrongRecipientError):
        group.open(sanction, first, again["east"])


def test_a_content_key_is_used_once(group, sanction, spies):
    """The nonce is zero: two messages under one key would give both away."""
    for sender in ROSTER * 3:
        group.seal(sanction, sender)
    assert len(set(spies.used)) == len(spies.used) == 9


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 100, 1000, -1])
def test_truncated_and_extended_bytes_are_refused(sealed, cut: int):
    with pytest.raises(SealedExpertError):
        SealedExpert.from_bytes(sealed.to_bytes()[:cut])
    with pytest.raises(SealedExpertError):
        SealedExpert.from_bytes(sealed.to_bytes() + b"\0")


@given(st.binary(max_size=300))
def test_bytes_that_are_no_sealed_expert_are_refused(content: bytes):
    for data in (content, b"FPX1" + content, b"FPX2" + content):
        with pytest.raises(SealedExpertError):
            SealedExpert.from_bytes(data)


# --- replay, rollback --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", "trial-2"),
        ("exchange_id", "trial-1-x2"),
        ("number", 2),
        ("number", 7),
        ("plan_hash", "00" * 32),
        ("purpose", "another purpose"),
        ("expires_ms", EXPIRES_MS + 1),
    ],
)
def test_it_is_not_replayed_into_another_run_exchange_plan_or_sanction(
    group: Group, sealed: SealedExpert, wrapped: bytes, spies: Spies, name: str, value: object
):
    other = group.other(**{name: value}).sanction()
    with pytest.raises(ReplayedExpertError, match="than this exchange"):
        group.open(other, sealed, wrapped)
    assert spies.total == 0


def test_what_was_sealed_under_the_older_of_two_sanctions_does_not_open_in_the_newer(
    group, sealed, wrapped, spies
):
    """Same terms and signers; only west has said yes again, with another key."""
    renewed = group.other(replace(group.members["west"], key=HybridKey.generate()))
    with pytest.raises(ReplayedExpertError, match="another sanction"):
        renewed.open(renewed.sanction(), sealed, wrapped)
    assert spies.total == 0


def test_a_recipient_that_renewed_its_key_is_another_recipient(group, sealed, wrapped, spies):
    renewed = group.other(replace(group.members["east"], key=HybridKey.generate()))
    with pytest.raises(ReplayedExpertError):
        renewed.open(renewed.sanction(), sealed, wrapped)
    signed = group.signed_anew(sealed, sanction=renewed.sanction().hash.hex())
    with pytest.raises(WrongRecipientError, match="another recipients"):
        renewed.open(renewed.sanction(), signed, wrapped)
    assert spies.total == 0


def test_too_late_nothing_opens_and_nothing_is_verified(group, sanction, sealed, wrapped, spies):
    with pytest.raises(SanctionExpiredError):
        group.open(sanction, sealed, wrapped, now=TOO_LATE)
    with pytest.raises(SanctionExpiredError):
        verify_sealed(sealed, LAYOUT, sanction, sender="north", now=TOO_LATE)
    assert spies.total == 0


# --- swaps -------------------------------------------------------------------------------------------


def test_it_is_not_taken_for_another_senders(group, sanction, sealed, wrapped, spies):
    with pytest.raises(SealedExpertError, match="not signed by west"):
        group.open(sanction, sealed, wrapped, sender="west")
    theirs, keys = group.seal(sanction, "west")
    with pytest.raises(SealedExpertError, match="not signed by north"):
        group.open(sanction, theirs, keys["east"])
    with pytest.raises(SwappedExpertError, match="another sender"):
        group.open(sanction, group.signed_anew(theirs), keys["east"])
    assert spies.total == 0


def test_a_site_cannot_pass_on_anothers_sealed_expert_as_its_own(
    group, sanction, sealed, wrapped, spies
):
    """West signs what north sealed, with its own name and north's salt and hash."""
    recipients = sealing._expected(sanction, "west")["recipients"]
    copied = group.signed_anew(sealed, "west", sender="west", recipients=recipients)
    with pytest.raises(SwappedExpertError, match="committed to"):
        group.open(sanction, copied, wrapped, sender="west")
    assert spies.total == 0


def test_the_parts_of_two_sealed_experts_do_not_mix(group, sanction, sealed, wrapped, spies):
    again, keys = group.seal(sanction)
    for part in ("header", "ciphertext", "key_hashes", "signature"):
        mixed = replace(sealed, **{part: getattr(again, part)})
        for key in (wrapped, keys["east"]):
            with pytest.raises(SealedExpertError, match="not signed by north"):
                group.open(sanction, mixed, key)
    assert spies.total == 0


def test_wrapped_keys_do_not_change_hands(group, sanction, sent, spies):
    sealed, wrapped = sent
    _, keys = group.seal(sanction, "west")
    for recipient, key in (("east", wrapped["west"]), ("east", keys["east"]), ("east", b"")):
        with pytest.raises(WrongRecipientError, match="not the one that north signed"):
            verify_wrapped(sealed, recipient, key)
        with pytest.raises(WrongRecipientError, match="not the one that north signed"):
            group.open(sanction, sealed, key, recipient=recipient)
    assert spies.total == 0


def test_a_sender_that_swapped_the_keys_itself_is_found_by_the_recipient(
    group, sanction, sent, spies
):
    sealed, wrapped = sent
    swapped = group.signed_anew(replace(sealed, key_hashes=sealed.key_hashes[::-1]))
    verify_wrapped(swapped, "east", wrapped["west"])
    with pytest.raises(WrongRecipientError, match="cannot be opened"):
        group.open(sanction, swapped, wrapped["west"])
    assert spies.calls == {"key opened": 1, "decrypted": 0, "parsed": 0}


# --- the wrong recipient -----------------------------------------------------------------------------


def test_another_site_cannot_open_it(group, sanction, sealed, wrapped, spies):
    west = group.members["west"].key
    with pytest.raises(WrongRecipientError, match="cannot be opened"):
        group.open(sanction, sealed, wrapped, key=west)
    with pytest.raises(WrongRecipientError):
        group.open(sanction, sealed, wrapped, recipient="west")
    with pytest.raises(WrongRecipientError, match="not sealed to south"):
        group.open(sanction, sealed, wrapped, recipient="south", key=west)
    with pytest.raises(WrongRecipientError, match="not sealed to north"):
        group.open(sanction, sealed, wrapped, recipient="north")
    assert spies.calls["decrypted"] == 0


def test_a_site_that_refused_receives_nothing(group):
    free = group.other(without_refusers=True)
    sanction = free.sanction(free.consents("east", "north"))
    sealed, wrapped = free.seal(sanction)
    assert set(wrapped) == {"east"}
    with pytest.raises(WrongRecipientError, match="not sealed to west"):
        free.open(sanction, sealed, wrapped["east"], recipient="west")
    with pytest.raises(NotOnRosterError, match="west has not signed"):
        free.seal(sanction, "west")


# --- what was committed to ---------------------------------------------------------------------------


def test_another_expert_than_the_committed_one_is_not_sealed(group, sanction):
    with pytest.raises(SwappedExpertError, match="committed to"):
        group.seal(sanction, expert=expert_of("other"))
    with pytest.raises(SwappedExpertError, match="committed to"):
        group.seal(sanction, salt=new_salt())


@pytest.mark.parametrize("change", [{"expert_hash": "00" * 32}, {"salt": "00" * 32}], ids=str)
def test_another_expert_than_the_committed_one_does_not_open(
    group, sanction, sealed, wrapped, spies, change
):
    with pytest.raises(SwappedExpertError, match="committed to"):
        group.open(sanction, group.signed_anew(sealed, **change), wrapped)
    assert spies.total == 0


def test_a_committed_hash_with_another_content_is_refused(group, sanction, spies):
    """The header announces the committed expert; what is encrypted is another one that fits."""
    other = plaintext_of(LAYOUT.unflatten(expert_of("other")))
    sealed, wrapped = group.sealed_content(sanction, other)
    with pytest.raises(SwappedExpertError, match="not the one that its header announces"):
        group.open(sanction, sealed, wrapped["east"])
    assert spies.calls["parsed"] == 1


def test_a_copied_expert_is_found_whoever_copied(group):
    """West commits to north's expert, under its own name and with a salt of its own: it knows the hash."""
    known = expert_hash(LAYOUT, expert_of("north"))
    copying = group.other(replace(group.members["west"], announced=known))
    sanction = copying.sanction()
    north, _ = copying.seal(sanction)
    west, _ = copying.seal(sanction, "west", expert=expert_of("north"))
    east, _ = copying.seal(sanction, "east")
    refuse_duplicates([north, east])
    refuse_duplicates([north, north])
    with pytest.raises(DuplicateExpertError, match="north and west announce the same"):
        refuse_duplicates([north, east, west])


# --- the content key ---------------------------------------------------------------------------------


def test_a_content_key_that_is_not_the_committed_one_opens_nothing(group, sanction, sealed, spies):
    keys = {to: secrets.token_bytes(32) for to in sanction.others("north")}
    other, wrapped = group.with_keys(sanction, sealed.header, sealed.ciphertext, keys)
    verify_sealed(other, LAYOUT, sanction, sender="north", now=NOW)
    with pytest.raises(SealedExpertError, match="not the one that it committed to"):
        group.open(sanction, other, wrapped["east"])
    assert spies.calls == {"key opened": 1, "decrypted": 0, "parsed": 0}


def test_one_ciphertext_does_not_open_to_two_experts(group, sanction, sealed, spies):
    """AES-GCM binds no key: north crafts a ciphertext that two keys open, and gives each site its own."""
    keys = {to: secrets.token_bytes(32) for to in ("east", "west")}
    header = changed_in(sealed.header, key_commitment=sealing._key_commitment(keys["east"]))
    length = header.plaintext_bytes + 16
    ciphertext = opens_with_two_keys(*keys.values(), header.encoded, length)
    one, two = (AESGCM(k).decrypt(bytes(12), ciphertext, header.encoded) for k in keys.values())
    assert one != two
    crafted, wrapped = group.with_keys(sanction, header, ciphertext, keys)
    assert SealedExpert.from_bytes(crafted.to_bytes()) == crafted
    with pytest.raises(SealedExpertError, match="not the one that it committed to"):
        group.open(sanction, crafted, wrapped["west"], recipient="west")
    assert spies.calls["decrypted"] == 0


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_content_key_of_another_size_opens_nothing(group, sanction, sealed, spies, size):
    keys = dict.fromkeys(sanction.others("north"), bytes(size))
    commitment = sealing._key_commitment(bytes(size))
    header = changed_in(sealed.header, key_commitment=commitment)
    other, wrapped = group.with_keys(sanction, header, sealed.ciphertext, keys)
    with pytest.raises(SealedExpertError):
        group.open(sanction, other, wrapped["east"])
    assert spies.total == 0


def test_an_altered_ciphertext_that_its_sender_signed_is_never_parsed(
    group, sanction, sealed, wrapped, spies
):
    flipped = bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:]
    signed = group.signed_anew(replace(sealed, ciphertext=flipped))
    with pytest.raises(SealedExpertError, match="does not open"):
        group.open(sanction, signed, wrapped)
    assert spies.calls["parsed"] == 0 and not spies.released


# --- content -----------------------------------------------------------------------------------------


def _table(table: bytes) -> bytes:
    """The head of a safetensors file."""
    return len(table).to_bytes(8, "little") + table


def _contents() -> dict[str, bytes]:
    names = [spec.name for spec in LAYOUT.tensors]
    conv = np.asarray(TENSORS[names[1]])
    good = plaintext_of(TENSORS)
    header = int.from_bytes(good[:8], "little")
    table = good[8 : 8 + header]
    return {
        "empty": b"",
        "not safetensors": bytes(len(good)),
        "cut short": good[:-4],
        "extra tensor": plaintext_of({**TENSORS, "closed_set.expert.more": conv}),
        "another name": plaintext_of({names[0]: TENSORS[names[0]], "closed_set.head": conv}),
        "missing tensor": plaintext_of({names[1]: conv}),
        "another shape": plaintext_of({**TENSORS, names[1]: conv.reshape(5, 8)}),
        "float64": plaintext_of({**TENSORS, names[1]: conv.astype(np.float64)}),
        "float16": plaintext_of({**TENSORS, names[1]: conv.astype(np.float16)}),
        "bfloat16": _table(
            table.replace(b'"F32","shape":[]', b'"BF16","shape":[2]').replace(
                b'"F32","shape":[8,5]', b'"BF16","shape":[8,10]'
            )
        )
        + good[8 + header :],
        "int32": plaintext_of({**TENSORS, names[1]: conv.astype(np.int32)}),
        "bool": plaintext_of({**TENSORS, names[1]: conv > 0}),
        "NaN": plaintext_of({**TENSORS, names[1]: np.full((8, 5), np.nan, np.float32)}),
        "infinite": plaintext_of({**TENSORS, names[1]: np.full((8, 5), -np.inf, np.float32)}),
        "metadata": plaintext_of(TENSORS, {"note": "one more thing"}),
        "padded header": _table(table + b" " * 8) + good[8 + header :],
        "unknown type": good.replace(b"F32", b"F99"),
        "trailing bytes": good + bytes(4),
        "nested without end": _table(b"[" * 60_000),
        "endless header": (2**63).to_bytes(8, "little") + bytes(16),
    }


@pytest.mark.parametrize("name", _contents())
def test_a_content_that_is_not_the_plain_expert_is_refused(group, name: str):
    """Committed to, announced, sealed and signed by the book: only its form is wrong."""
    content = _contents()[name]
    if not content:
        with pytest.raises(ValueError, match="plaintext_bytes"):
            group.sealed_content(group.sanction(), content)
        return
    sealed, wrapped = group.sealed_content(group.sanction(), content)
    with pytest.raises(SealedExpertError, match=r"does not fit|carries more"):
        group.open(group.sanction(), sealed, wrapped["east"])


def test_the_plain_expert_sealed_by_another_program_opens(group, sanction):
    sealed, wrapped = group.sealed_content(sanction, plaintext_of(TENSORS))
    assert (group.open(sanction, sealed, wrapped["east"]) == expert_of("north")).all()


# --- order of the checks -----------------------------------------------------------------------------


def test_the_signature_is_checked_before_the_key_is_used(group, sanction, sealed, wrapped, spies):
    with pytest.raises(SealedExpertError, match="not signed"):
        group.open(sanction, replace(sealed, signature=bytes(64)), wrapped)
    with pytest.raises(SealedExpertError, match="not signed"):
        group.open(sanction, group.signed_anew(sealed, "west"), wrapped)
    assert spies.total == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("federation", "prints", ReplayedExpertError),
        ("run", "trial-2", ReplayedExpertError),
        ("exchange_id", "trial-1-x2", ReplayedExpertError),
        ("sanction", "00" * 32, ReplayedExpertError),
        ("plan_hash", "00" * 32, ReplayedExpertError),
        ("layout_hash", "00" * 32, ReplayedExpertError),
        ("sender", "west", SwappedExpertError),
        ("recipients", (), WrongRecipientError),
    ],
)
def test_a_header_that_departs_from_the_sanction_is_refused_even_if_signed(
    group, sanction, sealed, wrapped, spies, name: str, value: object, error: type[FedPalmError]
):
    if name == "recipients":
        value = sealed.header.recipients[:1]
    with pytest.raises(error, match=f"another {name}"):
        group.open(sanction, group.signed_anew(sealed, **{name: value}), wrapped)
    assert spies.total == 0


def test_a_relay_without_any_key_refuses_what_the_recipients_would(group, sanction, sent):
    sealed, wrapped = sent
    verify_sealed(sealed, LAYOUT, sanction, sender="north", now=NOW)
    for recipient, key in wrapped.items():
        verify_wrapped(sealed, recipient, key)
    flipped = replace(sealed, ciphertext=bytes(len(sealed.ciphertext)))
    with pytest.raises(SealedExpertError, match="not signed by north"):
        verify_sealed(flipped, LAYOUT, sanction, sender="north", now=NOW)
    with pytest.raises(SealedExpertError, match="not signed by west"):
        verify_sealed(sealed, LAYOUT, sanction, sender="west", now=NOW)
    with pytest.raises(NotOnRosterError):
        verify_sealed(sealed, LAYOUT, sanction, sender="south", now=NOW)


# --- what may be sealed ------------------------------------------------------------------------------


def _of_layout(group: Group, layout: Layout) -> tuple[Group, Sanction]:
    other = group.other(layout_hash=layout.hash.hex())
    return other, other.sanction()


@pytest.mark.parametrize(
    "name", ["open_set.expert.conv", "open_set.embedding.weight", "open_set.teim.alpha"]
)
def test_nothing_but_an_expert_can_be_sealed_or_opened(group, sealed, wrapped, name: str):
    layout = Layout((*LAYOUT.tensors, TensorSpec(name, (2,))))
    other, sanction = _of_layout(group, layout)
    with pytest.raises(EgressRefusedError):
        other.seal(sanction, expert=np.zeros(layout.size, np.float32), layout=layout)
    with pytest.raises(EgressRefusedError):
        other.open(sanction, sealed, wrapped, layout=layout)


def test_an_empty_layout_is_no_expert(group):
    other, sanction = _of_layout(group, Layout(()))
    with pytest.raises(EgressRefusedError):
        other.seal(sanction, expert=np.zeros(0, np.float32), layout=Layout(()))


def test_an_expert_of_another_layout_than_agreed_is_not_sealed(group, sanction):
    layout = Layout((TensorSpec("closed_set.expert.conv", (8, 5)),))
    with pytest.raises(EgressRefusedError, match="another expert layout"):
        group.seal(sanction, expert=np.zeros(40, np.float32), layout=layout)


def test_a_vector_that_is_not_of_the_layout_is_not_sealed(group, sanction):
    expert = expert_of("north")
    for vector in (expert[:-1], expert.astype(np.float64), expert.reshape(1, -1)):
        with pytest.raises(LayoutMismatchError):
            group.seal(sanction, expert=vector)
    with pytest.raises(NonFiniteUpdateError):
        group.seal(sanction, expert=np.full(LAYOUT.size, np.nan, np.float32))


def test_an_expert_over_the_cap_is_neither_sealed_nor_read(group, sanction, sealed, monkeypatch):
    content = sealed.to_bytes()
    monkeypatch.setattr(sealing, "MAX_EXPERT_BYTES", 4 * LAYOUT.size - 1)
    with pytest.raises(SealedExpertError, match="at most"):
        group.seal(sanction)
    monkeypatch.setattr(sealing, "_MOST_BYTES", len(content) - 1)
    with pytest.raises(SealedExpertError, match="too long"):
        SealedExpert.from_bytes(content)


def test_no_header_announces_more_than_the_cap(sealed):
    announced = sealed.header.encoded.replace(
        f'"plaintext_bytes":{sealed.header.plaintext_bytes}'.encode(),
        f'"plaintext_bytes":{MAX_EXPERT_BYTES + 1}'.encode(),
    )
    content = sealing.MAGIC + len(announced).to_bytes(4, "big") + announced
    with pytest.raises(SealedExpertError, match="malformed"):
        SealedExpert.from_bytes(content)


def test_nobody_seals_in_anothers_name_or_without_having_signed(group, sanction):
    west = group.members["west"]
    with pytest.raises(SealedExpertError, match="not the one that north consented with"):
        group.seal(sanction, signing_key=west.identity.signing_key)
    one = group.members["north"]
    with pytest.raises(NotOnRosterError):
        seal_expert(
            one.expert,
            LAYOUT,
            sanction,
            sender="south",
            salt=one.salt,
            signing_key=one.identity.signing_key,
        )
