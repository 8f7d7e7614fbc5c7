"""What a witness takes of checkpoints, and that a checkpoint is its site's own word about its own log."""

from __future__ import annotations

import time

import pytest
from pydantic import ValidationError

from fedpalm.errors import ForkError, IdentityError, ProtocolError, RolledBackError
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.merkle import MerkleTree
from fedpalm.ledger.witness import check_follows, enough_witnesses
from fedpalm.pki.identity import Role
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from tests.support.pki import TestAuthority

AUTHORITY = TestAuthority("palms")
NORTH = AUTHORITY.enrol(Role.PARTICIPANT, "north")
LOG = [f"entry {number}".encode() for number in range(40)]


def checkpoint(tree: MerkleTree, size: int | None = None, round: int = 1, **changes) -> Checkpoint:
    size = len(tree) if size is None else size
    values = {
        "federation": "palms",
        "site": "north",
        "key_id": key_id(NORTH.signing_key.public_key()).hex(),
        "size": size,
        "root": tree.root(size).hex(),
        "run": "run-1",
        "round": round,
        "attempt": 1,
        "time_ms": 1,
    }
    return Checkpoint.model_validate({**values, **changes})


TREE = MerkleTree(LOG)
FORKED = MerkleTree([*LOG[:10], b"another", *LOG[11:]])


def test_a_checkpoint_is_believed_of_the_key_that_signs_it():
    said = checkpoint(TREE)
    signed = SignedStatement.from_bytes(said.sign(NORTH).to_bytes())
    assert Checkpoint.open(signed, NORTH.anchors, now=time.time()) == said
    of_another_log = checkpoint(TREE, key_id="0" * 64).sign(NORTH)
    with pytest.raises(IdentityError, match="another signing key"):
        Checkpoint.open(of_another_log, NORTH.anchors, now=time.time())


def test_nobody_signs_a_checkpoint_of_another_site():
    with pytest.raises(IdentityError):
        checkpoint(TREE, site="south").sign(NORTH)
    own = checkpoint(TREE).sign(NORTH)
    forged = SignedStatement(checkpoint(TREE, site="south").to_bytes(), own.signature, own.chain)
    with pytest.raises(IdentityError):
        Checkpoint.open(forged, NORTH.anchors, now=time.time())


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"root": "0"}, {"run": ""}, {"round": -1}, {"more": 1}]
)
def test_a_checkpoint_has_its_form(wrong):
    with pytest.raises((ValidationError, ProtocolError)):
        checkpoint(TREE, **wrong)


def test_a_log_that_grows_or_stays_is_followed():
    held = checkpoint(TREE, 5)
    check_follows(held, checkpoint(TREE, 12, round=2), TREE.consistency_proof(5, 12))
    check_follows(held, checkpoint(TREE, 5, round=3), [])


def test_an_older_checkpoint_is_told_with_both():
    held, old = checkpoint(TREE, 12), checkpoint(TREE, 5, round=2)
    with pytest.raises(RolledBackError) as error:
        check_follows(held, old, TREE.consistency_proof(5, 12))
    assert str(held) in error.value.what
    assert str(old) in error.value.what
    assert "backup" in error.value.next_step


def test_two_roots_of_one_size_are_a_fork():
    with pytest.raises(ForkError, match="two histories"):
        check_follows(checkpoint(TREE, 12), checkpoint(FORKED, 12), [])


def test_a_longer_log_with_another_past_is_a_fork():
    for proof in (
        FORKED.consistency_proof(12, 20),
        TREE.consistency_proof(12, 20),
        [],
        [bytes(32)],
        [b"short"],
    ):
        with pytest.raises(ForkError, match="not shown to go on"):
            check_follows(checkpoint(TREE, 12), checkpoint(FORKED, 20), proof)


@pytest.mark.parametrize("witnesses", range(1, 12))
def test_two_groups_that_are_enough_share_an_honest_witness(witnesses):
    for faulty in range(witnesses):
        for signed in range(witnesses + 1):
            shared = 2 * signed - witnesses
            assert enough_witnesses(signed, witnesses, faulty) == (shared > faulty)
