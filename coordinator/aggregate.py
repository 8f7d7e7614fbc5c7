"""The one thing the coordinator computes: the exact sum of the survivors' integers, and the step.

Block by block from the spooled files, so that memory does not grow with the model or the number of
sites; addition modulo 2**32, so that order does not matter; the result is on disk before its hash is
told. Files are read with ``preadv`` into one buffer: mapped pages would count as memory in use.

Of masked updates only the sum is ever opened: the masks that are left in it are taken off each block as it
is summed, and what a single file says stays masked. So the plan's bounds are held against the sum, block by
block as it is formed. A round that gives no sum changes its model instead.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from fedpalm.canonical import domain_hash
from fedpalm.errors import (
    FedPalmError,
    IntegrityError,
    NonFiniteUpdateError,
    ResourceError,
    UnavailableError,
)
from fedpalm.layout import FloatVector
from fedpalm.methods.rules import ServerRule, stepped
from fedpalm.secagg.codec import BYTES_PER_VALUE, Encoded, FixedPointCodec, add_into
from fedpalm.secagg.masks import mask_block

from .spool import sync_folder

Corrections = tuple[Sequence[bytes], Sequence[bytes]]
BLOCK_VALUES = 1 << 16
"""Values added at a time: three blocks of 256 KiB stay in a core's cache."""


def aggregate(
    codec: FixedPointCodec,
    rule: ServerRule,
    model: Path,
    updates: Mapping[str, Path],
    result: Callable[[str], Path],
    corrections: Corrections = ((), ()),
) -> str:
    """Step a global model by the sum of ``updates`` and store the new one.

    Args:
        model: (P,) little-endian float32, the global model that the updates start from.
        updates: (P + k,) little-endian uint32 each, by survivor.
        result: where a model of this hex SHA-256 belongs.
        corrections: of masked updates: stream keys to add to their sum, and to subtract from it.

    Returns:
        Hex SHA-256 of the new model, which is durable then.

    Raises:
        IntegrityError: a file does not have the size that the plan gives it, or an update is gone.
        NonFiniteUpdateError: the step leaves the range of float32.
        MaskingError: a masked sum is beyond what so many updates within the plan's bounds can add up to.
        ResourceError: the disk is full.
        UnavailableError: too many files are open at the moment.
    """
    try:
        with ExitStack() as stack:
            base = _open(stack, model, codec.parameters * BYTES_PER_VALUE)
            parts = [_open_update(stack, path, codec.payload_bytes) for path in updates.values()]
            tail = _sum_block(parts, codec.parameters, codec.length, corrections)
            stats, masked = codec.decode_stats(tail), any(corrections)
            if masked:
                codec.check_sum_stats(tail, updates)

            def block_of(begin: int, end: int) -> FloatVector:
                params = _read(base, begin, end).view("<f4")
                summed = _sum_block(parts, begin, end, corrections)
                for group in codec.parts if masked else ():
                    weight = codec.stats_of(stats, group)["weight"]
                    part = summed[group.within(begin, end)]
                    codec.check_sum_deltas(part, group, updates, weight)
                block = stepped(codec, rule, params, summed, begin, stats)
                if not np.isfinite(block).all():
                    raise NonFiniteUpdateError("the step makes a parameter NaN or infinite")
                return block

            return _write_model(stack, model, codec.parameters, block_of, result)
    except OSError as error:
        raise _not_formed(error) from error


def change(
    codec: FixedPointCodec,
    model: Path,
    manifest_hash: bytes,
    result: Callable[[str], Path],
    spent: Collection[str] = (),
) -> str:
    """Store a global model that differs from ``model`` in the last bit of one value: the next one up.

    Values only ever grow so, and changes alone never lead back to a model that was there before.

    Args:
        model: (P,) little-endian float32.
        manifest_hash: 32 bytes of the lost attempt's manifest; they choose the value. It is the one after,
            and so on, where it is the largest float32 or the model would be one of ``spent``.
        result: where a model of this hex SHA-256 belongs.
        spent: hex SHA-256 of models that it must not be.

    Returns, raises: as :func:`aggregate`, the same for the same arguments; IntegrityError if no value can
        be moved.
    """
    parameters = codec.parameters
    first = int.from_bytes(domain_hash("lost-round/v1", manifest_hash)) % parameters
    try:
        with ExitStack() as stack:
            base = _open(stack, model, parameters * BYTES_PER_VALUE)
            for chosen in chain(range(first, parameters), range(first)):
                value = _read(base, chosen, chosen + 1).view("<f4")
                if next_value(value)[0] == value[0]:
                    continue
                changed = partial(_changed_block, base, chosen)
                new_hash = _write_model(stack, model, parameters, changed, result, spent)
                if new_hash not in spent:
                    return new_hash
    except OSError as error:
        raise _not_formed(error) from error
    raise IntegrityError("no value of the model can be moved up", safe="the model is unchanged")


def next_value(value: FloatVector) -> FloatVector:
    """The next float32 above each; the largest one stays, since what is finite stays finite."""
    return np.nextafter(value, np.finfo(np.float32).max)


def _changed_block(base: int, chosen: int, begin: int, end: int) -> FloatVector:
    block = _read(base, begin, end).view("<f4")
    if begin <= chosen < end:
        value = block[chosen - begin : chosen - begin + 1]
        value[:] = next_value(value)
    return block


def _write_model(
    stack: ExitStack,
    model: Path,
    parameters: int,
    block_of: Callable[[int, int], FloatVector],
    result: Callable[[str], Path],
    unwanted: Collection[str] = (),
) -> str:
    """Write a model beside another one, block by block, and give its hash.

    It is durable then, unless it is ``unwanted``: of such a one nothing stays.
    """
    written = model.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.partial")
    stack.callback(written.unlink, missing_ok=True)
    digest = hashlib.sha256()
    with written.open("wb") as out:
        for begin, end in _blocks(parameters):
            block = block_of(begin, end).astype("<f4", copy=False)
            digest.update(block.data)
            out.write(block.data)
        out.flush()
        os.fsync(out.fileno())
    new_hash = digest.hexdigest()
    if new_hash not in unwanted:
        written.replace(result(new_hash))
        sync_folder(model.parent)
    return new_hash


def _not_formed(error: OSError) -> FedPalmError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return UnavailableError(f"the sum could not be formed: {error}")
    return ResourceError(
        f"the sum could not be formed: {error}",
        safe="every accepted update is kept",
        next_step="look at free space and permissions, then: fedpalm-coordinator resume",
    )


def check_values(codec: FixedPointCodec, update: Path, site: str) -> None:
    """Hold a spooled update to the plan's bounds, and to its site's groups, before it counts.

    Raises:
        ProtocolError: the codec cannot have made it.
        IntegrityError: it does not have the size that the plan gives it, or is gone.
        ResourceError: it cannot be read.
    """
    try:
        with ExitStack() as stack:
            part = _open_update(stack, update, codec.payload_bytes)
            for begin, end in _blocks(codec.length):
                codec.check_encoded(_read(part, begin, end), begin, site)
    except OSError as error:
        raise ResourceError(
            f"{update.name} cannot be read: {error.strerror}",
            safe="it does not count",
            next_step="look at the disk, then let the site send it again",
        ) from error


def _open(stack: ExitStack, path: Path, size: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    found = os.fstat(descriptor).st_size
    if found != size:
        raise IntegrityError(
            f"{path.name}: {found} bytes where the plan needs {size}", safe="nothing was summed"
        )
    return descriptor


def _open_update(stack: ExitStack, path: Path, size: int) -> int:
    """An update that is gone will not come back: its attempt fails, and the run goes on."""
    try:
        return _open(stack, path, size)
    except FileNotFoundError:
        raise IntegrityError(
            f"the update of site {path.name.split('.')[0]} is gone", safe="nothing was summed"
        ) from None


def _sum_block(parts: Sequence[int], begin: int, end: int, corrections: Corrections) -> Encoded:
    total = np.zeros(end - begin, dtype=np.uint32)
    buffer = np.empty(end - begin, dtype="<u4")
    for descriptor in parts:
        _read_into(descriptor, buffer, begin)
        add_into(total, buffer)
    if any(corrections):
        mask_block(total, begin, *corrections)
    return total


def _read(descriptor: int, begin: int, end: int) -> Encoded:
    buffer = np.empty(end - begin, dtype="<u4")
    _read_into(descriptor, buffer, begin)
    return buffer


def _read_into(descriptor: int, buffer: Encoded, begin: int) -> None:
    view = buffer.data.cast("B")
    offset = begin * BYTES_PER_VALUE
    while view:
        got = os.preadv(descriptor, [view], offset)
        if got == 0:
            raise IntegrityError("a spooled file ended early", safe="nothing was committed")
        view, offset = view[got:], offset + got


def _blocks(length: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, length, BLOCK_VALUES):
        yield begin, min(begin + BLOCK_VALUES, length)
