"""What masking costs one site: encode and mask one large vector, as a site of a real roster does.

The peers take part as far as they must, up to their boxes. What is timed as masking is all of the
site's third step: opening the boxes, key agreement, every stream, the hash and the signature. Memory
is what the process holds beyond the update and the encoded vector themselves.
"""

from __future__ import annotations

import gc
import secrets
import statistics
import time
from typing import Any

from ..secagg import site
from .masking import Attempt, Load, Tick
from .resident import peak_resident_bytes, reset_peak, resident_bytes


def measure_client(
    parameters: int, peers: int, seed: int, repeats: int, tick: Tick
) -> dict[str, Any]:
    """Seconds and memory of one site among ``peers`` others.

    Args:
        parameters: P of the update.
        peers: sites that it masks with; it stands in the middle of the roster.
        repeats: counted ones, after one that is not. They mask the same integers with the same
            streams, so no stream is used for two payloads; nothing leaves the process anyway.
    Raises:
        ConfigError: no such roster can be masked.
    """
    load = Load(peers + 1, parameters, 0.0, seed)
    attempt = Attempt(load, tick)
    attempt.share_keys()
    name = attempt.terms.roster[load.sites // 2]
    state, signer = attempt.states[name], attempt.signers[name]
    boxes = attempt.collection.boxes_for(name)
    codec, rounding = load.codec, secrets.token_bytes(32)
    delta, weight = load.update(0)
    del attempt
    gc.collect()
    encode_s, mask_s, cpu_s, over = [], [], [], []
    for number in range(1 + repeats):
        tick("encode and mask", number, 1 + repeats)
        reset_peak()
        idle, cpu, begun = resident_bytes(), time.process_time(), time.perf_counter()
        encoded = codec.encode(delta, weight, {}, rounding)
        between = time.perf_counter()
        site.mask(state, boxes, encoded, signer)
        mask_s.append(time.perf_counter() - between)
        encode_s.append(between - begun)
        cpu_s.append(time.process_time() - cpu)
        over.append(peak_resident_bytes() - idle - encoded.nbytes)
        del encoded
    tick("encode and mask", 1 + repeats, 1 + repeats)
    encode_s, mask_s = encode_s[1:], mask_s[1:]
    both = [one + other for one, other in zip(encode_s, mask_s, strict=True)]
    return {
        "parameters": parameters,
        "peers": peers,
        "repeats": repeats,
        "encode_s": _spread(encode_s),
        "mask_s": _spread(mask_s),
        "encode_and_mask_s": _spread(both),
        "cpu_s": _spread(cpu_s[1:]),
        "peak_over_vectors_bytes": max(over),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
