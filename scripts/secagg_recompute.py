"""Compute the vectors of a masked attempt from docs/PROTOCOL.md ("Byte for byte") without FedPalm's code.

    python scripts/secagg_recompute.py

A second reading of the text: if it and the code part, one of the two is wrong.
"""

from __future__ import annotations

import hashlib
import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    Suite,
)
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "secagg"
FILES = ("attempt", "shamir")
HPKE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
FIELD = 2**256 + 297
raw = bytes.fromhex


def h(domain: str, *parts: bytes | str) -> bytes:
    """H(d, x, y, ...)."""
    digest = hashlib.sha256()
    for part in ("fedpalm/" + domain, *parts):
        value = part.encode() if isinstance(part, str) else part
        digest.update(len(value).to_bytes(8, "big") + value)
    return digest.digest()


def k(secret: bytes, label: str, *parts: bytes | str, length: int = 32) -> bytes:
    """K(secret, label, parts...)."""
    return HKDF(SHA256(), length, None, h(f"secagg/{label}/v1", *parts)).derive(secret)


def sign(seed: bytes, domain: str, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(h(f"signature/{domain}", message))


def names(sites: list[str]) -> bytes:
    return h("secagg-names/v1", *sites)


def hybrid(private: bytes) -> tuple[bytes, MLKEM768X25519PrivateKey]:
    mlkem = MLKEM768PrivateKey.from_seed_bytes(private[:64])
    x25519 = X25519PrivateKey.from_private_bytes(private[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return public, MLKEM768X25519PrivateKey(mlkem, x25519)


def stream(key: bytes, length: int) -> npt.NDArray[np.uint32]:
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(4 * length)), dtype="<u4")


def chooser(roster: list[str], a: str, b: str) -> str:
    p, q = sorted((roster.index(a) + 1, roster.index(b) + 1))
    return roster[(p if (p + q) % 2 else q) - 1]


def secret_at_zero(points: dict[int, int]) -> bytes:
    value = 0
    for at, share in points.items():
        weight = 1
        for other in points:
            if other != at:
                weight = weight * other * pow(other - at, -1, FIELD) % FIELD
        value += share * weight
    return (value % FIELD).to_bytes(32, "big")


class Recomputed:
    """Everything in the file that follows from its secrets; ``check`` is told what does not."""

    def __init__(self, vectors: dict[str, Any]) -> None:
        self.vectors, self.roster = vectors, vectors["roster"]
        self.sites = {one["site"]: one for one in vectors["sites"]}
        self.wrong: list[str] = []
        self.compared = 0

    def check(self, what: str, found: bytes, stored: str) -> None:
        self.compared += 1
        if found.hex() != stored:
            self.wrong.append(what)

    def secret(self, site: str, name: str) -> bytes:
        return raw(self.sites[site][name])

    def run(self) -> None:
        self.contexts()
        for box in self.vectors["boxes"]:
            self.box(box)
        self.masks()
        self.later_signatures()

    def contexts(self) -> None:
        v, n = self.vectors, len(self.roster)
        self.check("threshold", bytes([(n + v["colluders"]) // 2 + 1]), f"{v['threshold']:02x}")
        least = max(3, v["colluders"] + 2)
        terms = {
            "roster": self.roster, "colluders": v["colluders"], "threshold": v["threshold"],
            "min_survivors": least, "groups": [],
        }  # fmt: skip
        canonical = json.dumps(terms, sort_keys=True, separators=(",", ":"))
        self.check("terms", h("secagg-terms/v1", canonical), v["terms_hash"])
        signing = {site: self.secret(site, "signing_key") for site in self.roster}
        cohort: list[bytes | str] = []
        for site, seed in signing.items():
            public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
            cohort += [site, public.public_bytes_raw()]
        context = h("secagg-attempt/v1", raw(v["manifest_hash"]), raw(v["terms_hash"]), *cohort)
        self.check("context", context, v["context"])
        every: list[bytes] = []
        for site, one in self.sites.items():
            m, b = raw(one["m"]), raw(one["b"])
            agreement = X25519PrivateKey.from_private_bytes(k(m, "agreement"))
            public = agreement.public_key().public_bytes_raw()
            escrow, _ = hybrid(k(m, "escrow", length=96))
            transport, _ = hybrid(raw(one["c"]))
            seed_hash = h("secagg/seed/v1", b)
            message = h("secagg-keys/v1", context, site, public, escrow, transport, seed_hash)
            signature = sign(signing[site], "secagg-keys/v1", message)
            for name, found in (
                ("agreement", public), ("escrow", escrow), ("transport", transport),
                ("escrow_private", k(m, "escrow", length=96)), ("seed_hash", seed_hash),
                ("own_stream", k(b, "own-mask")), ("signature", signature),
            ):  # fmt: skip
                self.check(f"{name} of {site}", found, one[name])
            every += [message, signature]
        self.context = h("secagg-all-keys/v1", context, *every)
        self.check("keys' context", self.context, v["keys_context"])

    def box(self, box: dict[str, str]) -> None:
        sender, recipient = box["sender"], box["recipient"]
        way = f"{sender} to {recipient}"
        for purpose, private in (("shares", "c"), ("pair", "escrow_private")):
            info = h("secagg-box-info/v1", self.context, sender, recipient, purpose)
            self.check(f"{purpose} info, {way}", info, box[f"{purpose}_info"])
            if box[purpose]:
                _, key = hybrid(self.secret(recipient, private))
                opened = HPKE.decrypt(raw(box[purpose]), key, info=info)
                self.check(f"{purpose}, {way}", opened, box[f"{purpose}_plain"])
        chosen = chooser(self.roster, sender, recipient) == sender
        secret = k(k(self.secret(sender, "m"), "pairs"), "pair", recipient) if chosen else b""
        self.check(f"pair secret, {way}", secret, box["pair_plain"])
        plain = raw(box["shares_plain"])
        hashes = []
        for kind, at in (("mask", 0), ("seed", 49)):
            share, salt = plain[at : at + 33], plain[at + 33 : at + 49]
            found = h("secagg-share/v1", self.context, sender, recipient, kind, share, salt)
            self.check(f"hash of the {kind} share, {way}", found, box[f"{kind}_share_hash"])
            hashes.append(found)
        message = h(
            "secagg-box/v1", self.context, sender, recipient, raw(box["shares"]), raw(box["pair"]),
            *hashes,
        )  # fmt: skip
        signature = sign(self.secret(sender, "signing_key"), "secagg-box/v1", message)
        self.check(f"signature, {way}", signature, box["signature"])

    def shares(self, shamir: dict[str, Any]) -> None:
        """Any t shares give the secret."""
        points = {at: int(share, 16) for at, share in enumerate(shamir["shares"], 1)}
        self.check("prime", FIELD.to_bytes(33, "big"), f"{int(shamir['prime']):066x}")
        for some in combinations(points, shamir["threshold"]):
            opened = secret_at_zero({at: points[at] for at in some})
            self.check(f"secret of the shares {some}", opened, shamir["secret"])

    def masks(self) -> None:
        boxes = {(box["sender"], box["recipient"]): box for box in self.vectors["boxes"]}
        streams: dict[tuple[str, str], bytes] = {}
        for pair, stored in self.vectors["pair_streams"].items():
            a, b = pair.split()
            first = chooser(self.roster, a, b)
            other = b if first == a else a
            agreement = X25519PrivateKey.from_private_bytes(k(self.secret(first, "m"), "agreement"))
            agreed = agreement.exchange(
                X25519PublicKey.from_public_bytes(self.secret(other, "agreement"))
            )
            box = boxes[first, other]
            streams[a, b] = k(
                agreed + raw(box["pair_plain"]), "pair-mask", self.context, first, other,
                self.secret(first, "agreement"), self.secret(other, "agreement"),
                self.secret(other, "escrow"), h("secagg-pair-box/v1", raw(box["pair"])),
            )  # fmt: skip
            self.check(f"pair stream {pair}", streams[a, b], stored)
        total = np.zeros(8, np.uint32)
        self.inputs: list[bytes] = []
        for one in self.vectors["inputs"]:
            site = one["site"]
            vector = np.frombuffer(raw(one["encoded"]), "<u4").astype(np.uint32)
            total += vector
            vector += stream(k(self.secret(site, "b"), "own-mask"), len(vector))
            for (earlier, later), key in streams.items():
                if site == earlier:
                    vector += stream(key, len(vector))
                elif site == later:
                    vector -= stream(key, len(vector))
            masked = vector.astype("<u4").tobytes()
            digest = hashlib.sha256(masked).digest()
            message = h("secagg-input/v1", self.context, site, names(self.roster), digest)
            signature = sign(self.secret(site, "signing_key"), "secagg-input/v1", message)
            self.check(f"masked vector of {site}", masked, one["masked"])
            self.check(f"hash of the vector of {site}", digest, one["payload_hash"])
            self.check(f"signed input of {site}", signature, one["signature"])
            self.inputs += [message, signature]
        self.check("sum", total.astype("<u4").tobytes(), self.vectors["sum"])

    def later_signatures(self) -> None:
        site = self.roster[0]
        inputs = h("secagg-inputs/v1", self.context, *self.inputs)
        shares: list[bytes | str] = []
        for owner, share, salt in self.vectors["revealed"]:
            shares += [owner, "seed", raw(share), raw(salt)]
        said: dict[str, list[bytes | str]] = {
            "complaint": [names(self.roster[1:])],
            "agreement": [names(self.roster), names(self.roster), inputs],
            "reveal": shares,
        }
        for name, parts in said.items():
            domain = f"secagg-{name}/v1"
            message = h(domain, self.context, site, *parts)
            signature = sign(self.secret(site, "signing_key"), domain, message)
            self.check(
                f"{name} of {site}", signature, self.vectors["signatures_of_the_first_site"][name]
            )


def recompute(attempt: dict[str, Any], shamir: dict[str, Any]) -> tuple[int, list[str]]:
    """How many values were compared, and the names of those that differ."""
    again = Recomputed(attempt)
    again.run()
    again.shares(shamir)
    return again.compared, again.wrong


def main() -> None:
    attempt, shamir = (json.loads((FOLDER / f"{name}.json").read_text()) for name in FILES)
    compared, wrong = recompute(attempt, shamir)
    if wrong:
        raise SystemExit("\n".join(f"differs: {what}" for what in wrong))
    sys.stdout.write(f"{compared} values of {', '.join(FILES)} follow from docs/PROTOCOL.md\n")


if __name__ == "__main__":
    main()
