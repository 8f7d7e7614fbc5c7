"""The Merkle tree over a log (RFC 9162, section 2.1): one hash says what all of its entries are.

A leaf is an entry as it is stored (``Entry.to_bytes``). A consistency proof shows that a later tree only
adds leaves to an earlier one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ..errors import ProofError

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
"""The root of a tree without leaves."""
MAX_PROOF_HASHES = 64
"""More than a proof in a tree of 2**53 leaves has."""


def leaf_hash(leaf: bytes) -> bytes:
    """The hash of a tree with this one leaf; no inner node has it (RFC 9162, 2.1.1)."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Iterable[bytes]) -> bytes:
    """32 bytes of all leaves in their order."""
    return MerkleTree(leaves).root()


class MerkleTree:
    """A tree that grows at its end; roots and proofs of every size that it has had.

    It holds the hashes of all full subtrees, about 64 bytes a leaf.
    """

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        # _levels[k][i] is the hash of the leaves from i * 2**k to (i + 1) * 2**k.
        self._levels: list[list[bytes]] = [[]]
        for leaf in leaves:
            self.append(leaf)

    def __len__(self) -> int:
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        carried = leaf_hash(leaf)
        for level in range(len(self._levels) + 1):
            if level == len(self._levels):
                self._levels.append([])
            row = self._levels[level]
            row.append(carried)
            if len(row) % 2:
                return
            carried = _node(row[-2], row[-1])

    def root(self, size: int | None = None) -> bytes:
        """The root of the first ``size`` leaves; of all of them, if it is left out.

        Raises:
            ProofError: the tree has fewer.
        """
        size = self._checked(len(self) if size is None else size)
        return self._hash(0, size) if size else EMPTY_ROOT

    def consistency_proof(self, first: int, second: int | None = None) -> list[bytes]:
        """That the tree of size ``second`` begins with that of size ``first`` (RFC 9162, 2.1.4.1).

        From a tree without leaves there is nothing to prove.

        Raises:
            ProofError: it has fewer leaves.
        """
        second = self._checked(len(self) if second is None else second)
        if not 0 <= first <= second:
            raise ProofError(f"a tree of {second} leaves does not begin with one of {first}")
        if first in (0, second):
            return []
        proof: list[bytes] = []
        start, end, whole = 0, second, True
        # Down to the subtree that ends with the last leaf of the first tree.
        while end != first:
            middle = start + _split(end - start)
            if first <= middle:
                proof.append(self._hash(middle, end))
                end = middle
            else:
                proof.append(self._hash(start, middle))
                start, whole = middle, False
        if not whole:
            proof.append(self._hash(start, end))
        return proof[::-1]

    def _checked(self, size: int) -> int:
        if not 0 <= size <= len(self):
            raise ProofError(f"a tree of {len(self)} leaves has no size {size}")
        return size

    def _hash(self, start: int, end: int) -> bytes:
        """Of the leaves from ``start``, where a subtree of this width may begin, to ``end``."""
        width = end - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(width)
        return _node(self._hash(start, middle), self._hash(middle, end))


def _split(width: int) -> int:
    """The largest power of two below ``width``."""
    return 1 << ((width - 1).bit_length() - 1)


def verify_consistency(
    first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the second tree only adds leaves to the first (RFC 9162, 2.1.4.2).

    Raises:
        ProofError: the proof does not show it.
    """
    if not 0 <= first <= second:
        raise ProofError(f"a tree of {second} leaves does not begin with one of {first}")
    _check_form(proof)
    where = f"from {first} to {second} leaves"
    if first in (0, second):
        expected = EMPTY_ROOT if first == 0 else second_root
        if proof or first_root != expected:
            raise ProofError(f"{where}: the proof does not lead to the roots")
        return
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path:
        raise ProofError(f"{where}: the proof is empty")
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    earlier = later = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise ProofError(f"{where}: the proof is too long")
        if at & 1 or at == last:
            earlier, later = _node(sibling, earlier), _node(sibling, later)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            later = _node(later, sibling)
        at, last = at >> 1, last >> 1
    if last != 0 or earlier != first_root or later != second_root:
        raise ProofError(f"{where}: the proof does not lead to the roots")


def _check_form(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_PROOF_HASHES or any(len(part) != HASH_BYTES for part in proof):
        raise ProofError("not a proof: a list of at most 64 hashes of 32 bytes")
