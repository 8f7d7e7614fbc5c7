"""The stored test vectors: the code still makes them, and they hold together on their own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedpalm.pki.hybrid import HybridKey
from fedpalm.pki.keys import SigningKey
from fedpalm.secagg.masks import apply_masks
from fedpalm.secagg.messages import MaskedInput, SiteKeys, check_signature
from fedpalm.secagg.shamir import Interpolation
from fedpalm.secagg.terms import SecAggTerms

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "tests" / "vectors" / "secagg"


def stored(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return loaded("secagg_vectors")


@pytest.mark.parametrize(
    "name", ["attempt.json", "codec.json", "domain_hash.json", "masks.json", "shamir.json"]
)
def test_the_code_makes_the_stored_vectors(name: str, script: ModuleType) -> None:
    assert json.loads(json.dumps(script.all_vectors()[name])) == stored(name)
    assert {path.name for path in FOLDER.glob("*.json")} == set(script.all_vectors())


def test_the_stored_vectors_follow_from_the_text_of_the_protocol_alone() -> None:
    recompute = loaded("secagg_recompute")
    assert "fedpalm." not in Path(str(recompute.__file__)).read_text()
    attempt = stored("attempt.json")
    compared, wrong = recompute.recompute(attempt, stored("shamir.json"))
    assert compared > 90 and not wrong
    attempt["pair_streams"]["north west"] = attempt["pair_streams"]["north south"]
    attempt["signatures_of_the_first_site"]["complaint"] = "00" * 64
    _, wrong = recompute.recompute(attempt, stored("shamir.json"))
    assert wrong == ["pair stream north west", "complaint of north"]


def test_the_stored_boxes_open_to_what_stands_beside_them() -> None:
    attempt = stored("attempt.json")
    sites = {one["site"]: one for one in attempt["sites"]}
    terms = SecAggTerms(tuple(attempt["roster"]))
    for box in attempt["boxes"]:
        to = sites[box["recipient"]]
        for key, purpose in (("c", "shares"), ("escrow_private", "pair")):
            if not box[purpose]:
                assert purpose == "pair"
                assert terms.chooser(box["sender"], box["recipient"]) == box["recipient"]
                continue
            opened = HybridKey.from_private_bytes(bytes.fromhex(to[key])).open(
                bytes.fromhex(box[purpose]), bytes.fromhex(box[f"{purpose}_info"])
            )
            assert opened.hex() == box[f"{purpose}_plain"]


def test_the_stored_signatures_hold() -> None:
    attempt = stored("attempt.json")
    keys = {
        one["site"]: SigningKey.from_private_bytes(bytes.fromhex(one["signing_key"])).public_key()
        for one in attempt["sites"]
    }
    for one in attempt["sites"]:
        fields = ("agreement", "escrow", "transport", "seed_hash", "signature")
        said = SiteKeys(one["site"], *(bytes.fromhex(one[name]) for name in fields))
        check_signature(said, one["site"], bytes.fromhex(attempt["context"]), keys)
    for one in attempt["inputs"]:
        given = MaskedInput(
            one["site"],
            tuple(attempt["roster"]),
            bytes.fromhex(one["payload_hash"]),
            bytes.fromhex(one["signature"]),
        )
        check_signature(given, one["site"], bytes.fromhex(attempt["keys_context"]), keys)


def test_the_stored_masked_vectors_add_up_to_the_stored_sum() -> None:
    attempt = stored("attempt.json")
    total = np.zeros(8, dtype=np.uint32)
    for one in attempt["inputs"]:
        masked = bytes.fromhex(one["masked"])
        assert hashlib.sha256(masked).hexdigest() == one["payload_hash"]
        total += np.frombuffer(masked, dtype="<u4")
    apply_masks(total, [], [bytes.fromhex(one["own_stream"]) for one in attempt["sites"]])
    assert total.astype("<u4").tobytes().hex() == attempt["sum"]


def test_the_stored_shares_open_the_stored_secrets() -> None:
    shamir = stored("shamir.json")
    shares = {at: bytes.fromhex(one) for at, one in enumerate(shamir["shares"], start=1)}
    for positions in ([1, 2, 3], [5, 3, 1]):
        assert Interpolation(positions).open(shares).hex() == shamir["secret"]
    # In the attempt of three all shares are needed; a site's share of its own secret is not in a box.
    attempt = stored("attempt.json")
    terms = SecAggTerms(tuple(attempt["roster"]), attempt["colluders"])
    assert (terms.threshold, terms.min_survivors) == (3, 3)
    assert (attempt["threshold"], attempt["min_survivors"]) == (3, 3)
