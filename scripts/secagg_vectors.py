"""Write the test vectors of secure aggregation: fixed secrets in, keys, streams and sums out.

    python scripts/secagg_vectors.py            # writes tests/vectors/secagg/*.json
    python scripts/secagg_vectors.py --check    # fails if they differ
    python scripts/secagg_recompute.py          # checks them without FedPalm's code

Everything that is random in an attempt is fixed here: m, b and c of three sites, the coefficients of their
polynomials and the salts. A sealed box is random in itself, so boxes are kept as they are in the file and
made anew only with ``--fresh-boxes``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from fedpalm.canonical import domain_hash
from fedpalm.pki.hybrid import PRIVATE_BYTES, HybridKey, seal
from fedpalm.pki.keys import SigningKey
from fedpalm.secagg.boxes import box_info, pair_stream
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.secagg.masks import apply_masks
from fedpalm.secagg.messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    OpenedShare,
    Reveal,
    ShareKind,
    SiteKeys,
    attempt_context,
    inputs_hash,
    keys_context,
    share_hash,
    signed,
)
from fedpalm.secagg.secrets import AttemptSecrets, PairSecrets, own_stream, seed_hash
from fedpalm.secagg.shamir import PRIME, split
from fedpalm.secagg.terms import SecAggTerms

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "secagg"
SITES = ("north", "south", "west")


def fixed(label: str, length: int = 32) -> bytes:
    """Bytes that a label stands for: SHA-256 of the label and a counter, as many as are needed."""
    blocks = (hashlib.sha256(f"{label} {at}".encode()).digest() for at in range(-(-length // 32)))
    return b"".join(blocks)[:length]


def secrets_of(site: str) -> AttemptSecrets:
    return AttemptSecrets(
        PairSecrets(fixed(f"m of {site}")),
        fixed(f"b of {site}"),
        HybridKey.from_private_bytes(fixed(f"c of {site}", PRIVATE_BYTES)),
    )


def signing_key_of(site: str) -> SigningKey:
    return SigningKey.from_private_bytes(fixed(f"signing key of {site}"))


def coefficients(label: str) -> Any:
    """A source of field elements for :func:`split`, fixed by a label."""
    count = 0

    def below(bound: int) -> int:
        nonlocal count
        count += 1
        return int.from_bytes(fixed(f"{label} {count}", 48), "big") % bound

    return below


def attempt_vectors(sealed_before: dict[str, str]) -> dict[str, Any]:
    """One attempt of three sites, of which none drops."""
    terms = SecAggTerms(SITES)
    manifest = fixed("manifest")
    made = {site: secrets_of(site) for site in SITES}
    signers = {site: signing_key_of(site) for site in SITES}
    raw = [(site, signers[site].public_key().public_bytes_raw()) for site in SITES]
    context = attempt_context(manifest, terms.hash, raw)
    keys = {
        site: signed(
            SiteKeys(
                site,
                made[site].pairs.agreement.public_key().public_bytes_raw(),
                made[site].pairs.escrow.public_bytes,
                made[site].transport.public_bytes,
                seed_hash(made[site].seed_secret),
            ),
            context,
            signers[site],
        )
        for site in SITES
    }
    later = keys_context(context, keys.values())
    boxes, box_vectors = {}, []
    for sender in SITES:
        shares = {
            kind: split(
                secret, terms.threshold, terms.sites, below=coefficients(f"{kind} {sender}")
            )
            for kind, secret in (
                (ShareKind.MASK, made[sender].pairs.mask_secret),
                (ShareKind.SEED, made[sender].seed_secret),
            )
        }
        for at, recipient in enumerate(SITES):
            if recipient == sender:
                continue
            way = f"{sender} to {recipient}"
            salts = {kind: fixed(f"salt {kind} {way}", 16) for kind in ShareKind}
            held = b"".join(shares[kind][at] + salts[kind] for kind in ShareKind)
            hashes = {
                kind: share_hash(later, sender, recipient, kind, shares[kind][at], salts[kind])
                for kind in ShareKind
            }
            chosen = terms.chooser(sender, recipient) == sender
            pair_secret = made[sender].pairs.pair_secret(recipient) if chosen else b""
            sealed = {}
            for purpose, plain, public in (
                ("shares", held, keys[recipient].transport),
                ("pair", pair_secret, keys[recipient].escrow),
            ):
                name = f"{way} {purpose}"
                info = box_info(later, sender, recipient, purpose)
                fresh = seal(plain, public, info) if plain else b""
                sealed[purpose] = bytes.fromhex(sealed_before.get(name, fresh.hex()))
            box = Box(
                sender,
                recipient,
                sealed["shares"],
                sealed["pair"],
                hashes[ShareKind.MASK],
                hashes[ShareKind.SEED],
            )
            boxes[sender, recipient] = signed(box, later, signers[sender])
            box_vectors.append(
                {
                    "sender": sender,
                    "recipient": recipient,
                    "shares_plain": held.hex(),
                    "shares_info": box_info(later, sender, recipient, "shares").hex(),
                    "shares": box.shares.hex(),
                    "pair_plain": pair_secret.hex(),
                    "pair_info": box_info(later, sender, recipient, "pair").hex(),
                    "pair": box.pair.hex(),
                    "mask_share_hash": box.mask_share_hash.hex(),
                    "seed_share_hash": box.seed_share_hash.hex(),
                    "signature": boxes[sender, recipient].signature.hex(),
                }
            )
    streams = {}
    for first, second in combinations(SITES, 2):
        chooser = terms.chooser(first, second)
        other = second if chooser == first else first
        streams[f"{first} {second}"] = pair_stream(
            later,
            keys[chooser],
            keys[other],
            made[chooser].pairs.agree(keys[other].agreement),
            made[chooser].pairs.pair_secret(other),
            boxes[chooser, other],
        )
    total = np.zeros(8, dtype=np.uint32)
    inputs, said_inputs = [], []
    for site in SITES:
        encoded = np.frombuffer(fixed(f"encoded of {site}"), dtype="<u4").astype(np.uint32)
        total += encoded
        masked = encoded.copy()
        add = [stream for pair, stream in streams.items() if pair.split()[0] == site]
        subtract = [stream for pair, stream in streams.items() if pair.split()[1] == site]
        apply_masks(masked, [own_stream(made[site].seed_secret), *add], subtract)
        digest = hashlib.sha256(masked.astype("<u4").tobytes()).digest()
        said = signed(MaskedInput(site, SITES, digest), later, signers[site])
        said_inputs.append(said)
        inputs.append(
            {
                "site": site,
                "encoded": encoded.astype("<u4").tobytes().hex(),
                "masked": masked.astype("<u4").tobytes().hex(),
                "payload_hash": digest.hex(),
                "signature": said.signature.hex(),
            }
        )
    first = SITES[0]
    others = tuple(
        OpenedShare(site, ShareKind.SEED, fixed(f"share {site}", 33), fixed(f"salt {site}", 16))
        for site in SITES
    )
    agreed = Agreement(first, SITES, SITES, inputs_hash(later, said_inputs))
    later_messages = {
        "complaint": Complaint(first, SITES[1:]), "agreement": agreed, "reveal": Reveal(first, others)
    }  # fmt: skip
    return {
        "roster": list(SITES),
        "colluders": terms.colluders,
        "threshold": terms.threshold,
        "min_survivors": terms.min_survivors,
        "terms_hash": terms.hash.hex(),
        "manifest_hash": manifest.hex(),
        "context": context.hex(),
        "keys_context": later.hex(),
        "sites": [
            {
                "site": site,
                "signing_key": signers[site].private_bytes_raw().hex(),
                "m": made[site].pairs.mask_secret.hex(),
                "b": made[site].seed_secret.hex(),
                "c": made[site].transport.private_bytes().hex(),
                "agreement": keys[site].agreement.hex(),
                "escrow_private": made[site].pairs.escrow.private_bytes().hex(),
                "escrow": keys[site].escrow.hex(),
                "transport": keys[site].transport.hex(),
                "seed_hash": keys[site].seed_hash.hex(),
                "own_stream": own_stream(made[site].seed_secret).hex(),
                "signature": keys[site].signature.hex(),
            }
            for site in SITES
        ],
        "boxes": box_vectors,
        "pair_streams": {pair: stream.hex() for pair, stream in streams.items()},
        "inputs": inputs,
        "signatures_of_the_first_site": {
            name: signed(one, later, signers[first]).signature.hex()
            for name, one in later_messages.items()
        },
        "revealed": [[one.owner, one.share.hex(), one.salt.hex()] for one in others],
        "sum": total.astype("<u4").tobytes().hex(),
    }


def mask_vectors() -> dict[str, Any]:
    """Streams, and a longer vector that goes over several pieces of them."""
    key, other = fixed("stream key"), fixed("another stream key")
    first = np.zeros(16, dtype=np.uint32)
    apply_masks(first, [key], [])
    long = np.arange(100_003, dtype=np.uint32)
    apply_masks(long, [key], [other])
    return {
        "add": key.hex(),
        "subtract": other.hex(),
        "first_64_bytes_of_add": first.astype("<u4").tobytes().hex(),
        "vector": "0, 1, 2, ... 100002 as uint32",
        "masked_sha256": hashlib.sha256(long.astype("<u4").tobytes()).hexdigest(),
        "masked_last_4_values": long[-4:].tolist(),
    }


def shamir_vectors() -> dict[str, Any]:
    secret = fixed("shared secret")
    return {
        "prime": str(PRIME),
        "secret": secret.hex(),
        "threshold": 3,
        "shares": [one.hex() for one in split(secret, 3, 5, below=coefficients("polynomial"))],
        "coefficients_of_x2_x1": [
            str(int.from_bytes(fixed(f"polynomial {at}", 48), "big") % PRIME) for at in (1, 2)
        ],
    }


def codec_vectors() -> dict[str, Any]:
    codec = FixedPointCodec(5, 6, 0.5, 100)
    delta = np.array([0.0, 0.25, -0.25, 0.5, -9.0, 1e-7], dtype=np.float32)
    encoded = codec.encode(delta, 37.5, {}, fixed("rounding key"))
    return {
        "sites": 5,
        "clip_abs": 0.5,
        "max_weight": 100,
        "delta_scale": codec.delta_scale,
        "stat_scale": codec.stat_scale,
        "delta": [float(value) for value in delta],
        "weight": 37.5,
        "rounding_key": fixed("rounding key").hex(),
        "encoded": encoded.view(np.int32).tolist(),
    }


def domain_vectors() -> list[dict[str, Any]]:
    """The hash that everything is signed and derived under."""
    cases: list[tuple[str, list[bytes]]] = [
        ("secagg-keys/v1", []),
        ("secagg-keys/v1", [b""]),
        ("secagg-keys/v1", [b"a", b"bc"]),
        ("secagg-keys/v1", [b"ab", b"c"]),
    ]
    return [
        {"domain": domain, "parts": [part.hex() for part in parts],
         "hash": domain_hash(domain, *parts).hex()}
        for domain, parts in cases
    ]  # fmt: skip


def all_vectors(fresh_boxes: bool = False) -> dict[str, Any]:
    """By file name, with the boxes that are stored already."""
    path, before = FOLDER / "attempt.json", {}
    if path.exists() and not fresh_boxes:
        for box in json.loads(path.read_text())["boxes"]:
            for purpose in ("shares", "pair"):
                before[f"{box['sender']} to {box['recipient']} {purpose}"] = box[purpose]
    return {
        "attempt.json": attempt_vectors(before),
        "codec.json": codec_vectors(),
        "domain_hash.json": domain_vectors(),
        "masks.json": mask_vectors(),
        "shamir.json": shamir_vectors(),
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--check", action="store_true")
    parse.add_argument("--fresh-boxes", action="store_true")
    ask = parse.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, values in all_vectors(ask.fresh_boxes).items():
        text = json.dumps(values, indent=1) + "\n"
        path = FOLDER / name
        if ask.check and (not path.exists() or path.read_text() != text):
            sys.exit(f"{path.name} differs: run scripts/secagg_vectors.py and look at what changed")
        path.write_text(text)


if __name__ == "__main__":
    main()
