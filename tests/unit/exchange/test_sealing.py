from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import (
    EgressRefusedError,
    LayoutMismatchError,
    NonFiniteUpdateError,
    NotOnRosterError,
    SealedExpertError,
)
from fedpalm.exchange import sealing
from fedpalm.exchange.consent import Agreement
from fedpalm.exchange.sealing import SealedExpert, open_expert, seal_expert, verify_sealed
from fedpalm.layout import Layout, TensorSpec
from fedpalm.pki import hybrid
from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.signing import sign

from .conftest import EXPERT, LAYOUT, World


@pytest.fixture(scope="module")
def sealed(world: World, agreement: Agreement) -> SealedExpert:
    return seal(world, agreement)


def seal(world: World, agreement: Agreement, expert=EXPERT, layout=LAYOUT, **changes):
    ends = {"sender": "north", "recipient": "east"} | changes
    ends.setdefault("signing_key", world.sites["north"].signing_key)
    return seal_expert(expert, layout, agreement, **ends)


def unseal(world: World, agreement: Agreement, sealed: SealedExpert, layout=LAYOUT, **changes):
    ends = {"sender": "north", "recipient": "east"} | changes
    ends.setdefault("key", world.sites["east"].recipient_key)
    return open_expert(sealed, layout, agreement, **ends)


def resigned(world: World, sealed: SealedExpert, **changes) -> SealedExpert:
    """What a dishonest sender makes: a header of its choice, properly signed."""
    header = replace(sealed.header, **changes)
    key = world.sites["north"].signing_key
    message = sealing._signed_bytes(header, sealed.ciphertext)
    return replace(sealed, header=header, signature=sign(key, sealing.SIGNATURE_DOMAIN, message))


def test_the_recipient_gets_the_experts_exact_bits(world, agreement, sealed):
    opened = unseal(world, agreement, SealedExpert.from_bytes(sealed.to_bytes()))
    assert opened.dtype == np.float32
    assert opened.tobytes() == EXPERT.tobytes()


def test_no_part_of_the_expert_is_in_the_sealed_bytes(sealed):
    content, plain = sealed.to_bytes(), EXPERT.tobytes()
    assert not any(plain[at : at + 8] in content for at in range(0, len(plain) - 8, 4))


def test_sealing_twice_never_makes_the_same_ciphertext(world, agreement, sealed):
    assert seal(world, agreement).ciphertext != sealed.ciphertext


def test_five_hundred_mutations_of_one_byte_are_all_refused(world, agreement, sealed):
    content = sealed.to_bytes()
    header_end = 8 + len(sealed.header.encoded)
    structure = [*range(8), *range(header_end, header_end + 8)]
    generator = random.Random(2)
    places = {*structure, *range(len(content) - 64, len(content))}
    places |= set(generator.sample(range(8, header_end), 200))
    places |= set(generator.sample(range(header_end + 8, len(content) - 64), 500))
    assert len(places) >= 700
    for at in places:
        mutated = bytearray(content)
        mutated[at] ^= generator.randint(1, 255)
        with pytest.raises(SealedExpertError):
            unseal(world, agreement, SealedExpert.from_bytes(bytes(mutated)))


def test_a_relay_notices_every_mutation_that_the_recipient_would(world, agreement, sealed):
    verify_sealed(sealed, LAYOUT, agreement, sender="north", recipient="east")
    flipped = bytes([sealed.ciphertext[0] ^ 1]) + sealed.ciphertext[1:]
    with pytest.raises(SealedExpertError, match="not signed by north"):
        verify_sealed(
            replace(sealed, ciphertext=flipped), LAYOUT, agreement, sender="north", recipient="east"
        )
    with pytest.raises(SealedExpertError, match="recipient"):
        verify_sealed(sealed, LAYOUT, agreement, sender="north", recipient="west")


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 100, 1000, -1])
def test_truncated_and_extended_bytes_are_refused(sealed, cut: int):
    with pytest.raises(SealedExpertError):
        SealedExpert.from_bytes(sealed.to_bytes()[:cut])
    with pytest.raises(SealedExpertError):
        SealedExpert.from_bytes(sealed.to_bytes() + b"\0")


@given(st.binary(max_size=300))
def test_bytes_that_are_no_sealed_expert_are_refused(content: bytes):
    for data in (content, b"FPX1" + content):
        with pytest.raises(SealedExpertError):
            SealedExpert.from_bytes(data)


# --- who, for whom, in which exchange ----------------------------------------------------------------


def test_another_site_cannot_open_it(world, agreement, sealed):
    west = world.sites["west"].recipient_key
    with pytest.raises(SealedExpertError, match="recipient"):
        unseal(world, agreement, sealed, recipient="west", key=west)
    with pytest.raises(SealedExpertError, match="cannot be opened"):
        unseal(world, agreement, sealed, key=west)


def test_it_is_not_taken_for_another_senders(world, agreement, sealed):
    with pytest.raises(SealedExpertError, match="not signed by west"):
        unseal(world, agreement, sealed, sender="west")


def test_the_key_of_an_earlier_exchange_does_not_open_it(world, agreement, sealed):
    with pytest.raises(SealedExpertError, match="cannot be opened"):
        unseal(world, agreement, sealed, key=HybridKey.generate())


@pytest.mark.parametrize(
    ("field", "value"),
    [("run", "trial-0002"), ("exchange_id", "trial-0001-x2"), ("plan_hash", bytes(32))],
)
def test_it_is_not_replayed_into_another_run_exchange_or_plan(
    world: World, sealed: SealedExpert, field: str, value: object
):
    with pytest.raises(SealedExpertError, match=f"another {field}"):
        unseal(world, world.variant(**{field: value}), sealed)


def test_a_fresh_recipient_key_in_the_same_terms_is_another_recipient(world, sealed):
    renewed = replace(world.sites["east"], recipient_key=HybridKey.generate())
    agreement = world.agree(
        [renewed.consent(world.terms), *(c for c in world.consents() if c.consent.site != "east")]
    )
    with pytest.raises(SealedExpertError, match="recipient_key_id"):
        unseal(world, agreement, sealed, key=renewed.recipient_key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("federation", "prints"),
        ("run", "trial-0002"),
        ("exchange_id", "trial-0001-x2"),
        ("plan_hash", "00" * 32),
        ("sender", "west"),
        ("recipient", "west"),
        ("recipient_key_id", "00" * 32),
        ("layout_hash", "00" * 32),
        ("expert_bytes", 4),
    ],
)
def test_a_header_that_departs_from_the_agreement_is_refused_even_if_signed(
    world, agreement, sealed, name: str, value: object
):
    with pytest.raises(SealedExpertError, match=f"another {name}"):
        unseal(world, agreement, resigned(world, sealed, **{name: value}))


def test_a_signed_header_with_another_expert_hash_does_not_open(world, agreement, sealed):
    with pytest.raises(SealedExpertError, match="cannot be opened"):
        unseal(world, agreement, resigned(world, sealed, expert_hash="00" * 32))


def reencrypted(world: World, sealed: SealedExpert, plaintext: bytes, **changes) -> SealedExpert:
    """A dishonest sender's proper ciphertext of a content of its choice."""
    header = replace(sealed.header, **changes)
    public = world.sites["east"].recipient_key.public_bytes
    ciphertext = hybrid.seal(plaintext, public, sealing._INFO_LABEL + header.encoded)
    other = replace(sealed, header=header, ciphertext=ciphertext)
    return resigned(world, other)


def test_content_that_is_not_the_announced_expert_is_refused(world, agreement, sealed):
    forged = reencrypted(world, sealed, bytes(4 * LAYOUT.size))
    with pytest.raises(SealedExpertError, match="not the one that its header announces"):
        unseal(world, agreement, forged)


@pytest.mark.parametrize(
    "content",
    [b"", bytes(3), bytes(4 * LAYOUT.size - 4), b"\xff" * (4 * LAYOUT.size)],
    ids=["empty", "no float", "too short", "not a number"],
)
def test_announced_content_that_does_not_fit_the_layout_is_refused(
    world, agreement, sealed, content: bytes
):
    announced = sealing.expert_hash(LAYOUT, content).hex()
    forged = reencrypted(world, sealed, content, expert_hash=announced)
    with pytest.raises(SealedExpertError, match="does not fit its layout"):
        unseal(world, agreement, forged)


def test_the_signature_is_checked_before_the_key_is_used(world, agreement, sealed):
    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("the recipient key was used")

    forged = replace(sealed, signature=bytes(64))
    with pytest.raises(SealedExpertError, match="not signed"):
        unseal(world, agreement, forged, key=Untouchable())
    with pytest.raises(SealedExpertError, match="another run"):
        unseal(world, agreement, resigned(world, sealed, run="trial-0002"), key=Untouchable())


# --- what may be sealed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["open_set.expert.conv", "open_set.embedding.weight", "open_set.teim.alpha"]
)
def test_nothing_but_an_expert_can_be_sealed(world, name: str):
    layout = Layout((*LAYOUT.tensors, TensorSpec(name, (2,))))
    agreement = world.variant(layout_hash=layout.hash)
    with pytest.raises(EgressRefusedError):
        seal(world, agreement, np.zeros(layout.size, np.float32), layout)


def test_an_empty_layout_is_no_expert(world):
    layout = Layout(())
    with pytest.raises(EgressRefusedError):
        seal(world, world.variant(layout_hash=layout.hash), np.zeros(0, np.float32), layout)


def test_an_expert_of_another_layout_than_agreed_is_not_sealed(world, agreement):
    layout = Layout((TensorSpec("closed_set.expert.conv", (8, 5)),))
    with pytest.raises(EgressRefusedError, match="another expert layout"):
        seal(world, agreement, np.zeros(40, np.float32), layout)


def test_a_vector_that_is_not_of_the_layout_is_not_sealed(world, agreement):
    for vector in (EXPERT[:-1], EXPERT.astype(np.float64), EXPERT.reshape(1, -1)):
        with pytest.raises(LayoutMismatchError):
            seal(world, agreement, vector)
    with pytest.raises(NonFiniteUpdateError):
        seal(world, agreement, np.full(LAYOUT.size, np.nan, np.float32))


def test_an_expert_over_the_cap_is_not_sealed(world, agreement, monkeypatch):
    monkeypatch.setattr(sealing, "MAX_EXPERT_BYTES", 4 * LAYOUT.size - 1)
    with pytest.raises(SealedExpertError, match="at most"):
        seal(world, agreement)


def test_nobody_seals_to_itself_to_a_stranger_or_in_anothers_name(world, agreement):
    with pytest.raises(SealedExpertError, match="its own expert"):
        seal(world, agreement, recipient="north")
    with pytest.raises(NotOnRosterError):
        seal(world, agreement, recipient="south")
    with pytest.raises(SealedExpertError, match="not the one that west consented with"):
        seal(world, agreement, sender="west")
