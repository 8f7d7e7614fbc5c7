"""The tree against the vectors of certificate-transparency, the RFC's recursion, and altered proofs."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpalm.errors import ProofError
from fedpalm.ledger.merkle import (
    EMPTY_ROOT,
    MAX_PROOF_HASHES,
    MerkleTree,
    leaf_hash,
    root,
    verify_consistency,
)

# google/certificate-transparency, cpp/merkletree/merkle_tree_test.cc; also in RFC 9162 implementations.
LEAVES = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
CONSISTENCY = {
    (1, 1): (),
    (1, 8): ("96a296d2", "5f083f0a", "6b47aaf2"),
    (6, 8): ("0ebc5d34", "ca854ea1", "d37ee418"),
    (2, 5): ("5f083f0a", "bc1a0643"),
}


def recursive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(
        b"\x01" + recursive_root(leaves[:k]) + recursive_root(leaves[k:])
    ).digest()


def leaves(size: int) -> list[bytes]:
    return [f"entry {number}".encode() for number in range(size)]


TREE = MerkleTree(leaves(300))


def test_roots_of_the_reference_tree():
    tree = MerkleTree()
    assert tree.root() == EMPTY_ROOT == recursive_root([])
    for size, (leaf, expected) in enumerate(zip(LEAVES, ROOTS, strict=True), 1):
        tree.append(leaf)
        assert (len(tree), tree.root().hex()) == (size, expected)
    assert [tree.root(size).hex() for size in range(1, 9)] == list(ROOTS)
    assert root(LEAVES).hex() == ROOTS[-1]


@pytest.mark.parametrize("sizes", CONSISTENCY)
def test_consistency_proofs_of_the_reference_tree(sizes):
    proof = MerkleTree(LEAVES).consistency_proof(*sizes)
    assert tuple(part.hex()[:8] for part in proof) == CONSISTENCY[sizes]


def test_a_leaf_is_no_inner_node():
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert root([b"a", b"b"]) != leaf_hash(left + right)


def test_every_small_tree_is_the_recursive_one():
    for size in range(70):
        assert TREE.root(size) == root(leaves(size)) == recursive_root(leaves(size))


def test_every_proof_of_small_trees_holds():
    for size in range(1, 40):
        for first in range(size + 1):
            proof = TREE.consistency_proof(first, size)
            verify_consistency(first, TREE.root(first), size, TREE.root(size), proof)


sizes = st.integers(1, 300).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size)))
alterations = st.tuples(
    st.sampled_from(["flip", "drop", "repeat", "add", "swap", "shorten", "none"]),
    st.integers(0, 2**16),
)


def altered(proof: list[bytes], how: tuple[str, int]) -> list[bytes]:
    kind, at = how
    parts = list(proof)
    if kind == "add" or not parts:
        return [*parts, hashlib.sha256(str(at).encode()).digest()]
    place = at % len(parts)
    match kind:
        case "flip":
            part = bytearray(parts[place])
            part[at % 32] ^= 1 << at % 8
            parts[place] = bytes(part)
        case "drop":
            del parts[place]
        case "repeat":
            parts.insert(place, parts[place])
        case "swap":
            parts[place], parts[-1] = parts[-1], parts[place]
        case "shorten":
            parts[place] = parts[place][:-1]
        case "none":
            return []
    return parts


@given(sizes, alterations)
@settings(max_examples=300)
def test_an_altered_consistency_proof_fails(place, how):
    first, size = place
    proof = TREE.consistency_proof(first, size)
    roots = TREE.root(first), TREE.root(size)
    verify_consistency(first, roots[0], size, roots[1], proof)
    wrong = altered(proof, how)
    if wrong != proof:
        with pytest.raises(ProofError):
            verify_consistency(first, roots[0], size, roots[1], wrong)
    other = hashlib.sha256(roots[0]).digest()
    with pytest.raises(ProofError):
        verify_consistency(first, other, size, roots[1], proof)
    if first:
        with pytest.raises(ProofError):
            verify_consistency(first, roots[0], size, other, proof)


@given(st.integers(2, 120), st.data())
@settings(max_examples=100)
def test_a_rewritten_tree_has_no_consistency_proof_at_all(size, data):
    """Whatever is forged from both trees: the entry that was changed shows."""
    changed = data.draw(st.integers(0, size - 1))
    forged = MerkleTree(
        f"entry {number}{'!' if number == changed else ''}".encode() for number in range(size + 20)
    )
    for proof in (
        forged.consistency_proof(size, size + 20),
        TREE.consistency_proof(size, size + 20),
    ):
        with pytest.raises(ProofError):
            verify_consistency(size, TREE.root(size), size + 20, forged.root(), proof)


def test_sizes_that_a_tree_does_not_have_are_refused():
    tree = MerkleTree(leaves(3))
    for wrong in (
        lambda: tree.root(4),
        lambda: tree.consistency_proof(4),
        lambda: tree.consistency_proof(2, 1),
        lambda: verify_consistency(3, tree.root(), 2, tree.root(2), []),
        lambda: verify_consistency(
            1, tree.root(1), 3, tree.root(), [bytes(32)] * (MAX_PROOF_HASHES + 1)
        ),
    ):
        with pytest.raises(ProofError):
            wrong()
