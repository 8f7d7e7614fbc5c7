"""No byte of a sealed expert or of its wrapped key can be another one.

``make fuzz-sealed`` tries at least 10,000 mutations of one byte, no two the same, and prints how many of
each region were refused, and as what.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from fedpalm.errors import FedPalmError
from fedpalm.exchange.sealing import SealedExpert
from tests.support.exchange import Spies, expert_of

MUTATIONS = int(os.environ.get("FEDPALM_SEALED_MUTATIONS", "800"))
REGIONS = (
    *("magic", "header length", "header", "key hashes", "ciphertext length", "ciphertext"),
    *("signature", "wrapped key"),
)
EACH = -(-MUTATIONS // len(REGIONS))


def places(sealed: SealedExpert, wrapped: bytes) -> dict[str, range]:
    """Where each region lies in the sealed expert with the wrapped key behind it."""
    lengths = {
        "magic": 4,
        "header length": 4,
        "header": len(sealed.header.encoded),
        "key hashes": 32 * len(sealed.key_hashes),
        "ciphertext length": 8,
        "ciphertext": len(sealed.ciphertext),
        "signature": 64,
        "wrapped key": len(wrapped),
    }
    found, at = {}, 0
    for name in REGIONS:
        found[name] = range(at, at + lengths[name])
        at += lengths[name]
    assert at == len(sealed.to_bytes()) + len(wrapped)
    return found


@pytest.mark.parametrize("region", REGIONS)
def test_every_mutation_of_one_byte_is_refused_before_anything_is_opened(
    region: str, group, sanction, sent, spies: Spies, capsys
):
    sealed, wrapped = sent[0], sent[1]["east"]
    whole, split = sealed.to_bytes() + wrapped, len(sealed.to_bytes())
    rng = random.Random(region)
    span = places(sealed, wrapped)[region]
    every = len(span) * 255
    tally: Counter[str] = Counter()
    for choice in rng.sample(range(every), min(EACH, every)):
        at, flip = span[choice // 255], choice % 255 + 1
        mutated = bytearray(whole)
        mutated[at] ^= flip
        try:
            group.open(
                sanction, SealedExpert.from_bytes(bytes(mutated[:split])), bytes(mutated[split:])
            )
        except FedPalmError as error:
            tally[error.code] += 1
        else:
            pytest.fail(f"{region}: byte {at} was changed by {flip:#04x}, and it opened")
    # No key was opened, nothing decrypted, nothing parsed: there was no plaintext to release.
    assert spies.total == 0 and not spies.released
    assert set(tally) == {"wrong_recipient" if region == "wrapped key" else "sealed_expert"}
    if "FEDPALM_SEALED_MUTATIONS" in os.environ:
        refused = ", ".join(f"{count} as {code}" for code, count in sorted(tally.items()))
        with capsys.disabled():
            print(f"\n{region:<18} {len(span):>5} bytes: {refused}, plaintexts released: 0", end="")


def test_unchanged_it_opens(group, sanction, sealed, wrapped, spies: Spies):
    again = SealedExpert.from_bytes(sealed.to_bytes())
    assert (group.open(sanction, again, wrapped) == expert_of("north")).all()
    assert spies.calls == {"key opened": 1, "decrypted": 1, "parsed": 1}
