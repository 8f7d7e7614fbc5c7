"""This project's masking of one vector, timed from inside: the counterpart of ``flower_secagg``.

``core`` is what the other side times too: from the update to the masked integers, given the seeds (256
bits here), on all cores and on one. ``step`` is a site's whole third step with real peers: also opening
the boxes, key agreement, hash and signature, none of which the other side's time holds.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time

import numpy as np

from ...layout import FloatVector
from ...secagg import site
from ...secagg.codec import FixedPointCodec
from ...secagg.masks import apply_masks
from ..masking import Attempt, Load

WEIGHT = 5_000.0


def core_seconds(
    codec: FixedPointCodec, vector: FloatVector, peers: int, threads: int | None
) -> dict[str, float]:
    """Encode, then mask with a stream of this site's own and one for each peer."""
    keys = [secrets.token_bytes(32) for _ in range(1 + peers)]
    half = 1 + peers // 2
    cpu, begun = time.process_time(), time.perf_counter()
    values = codec.encode(vector, WEIGHT, {}, secrets.token_bytes(32))
    encoded = time.perf_counter()
    apply_masks(values, keys[:half], keys[half:], threads=threads)
    return _seconds(begun, encoded, cpu)


class WholeStep:
    """A site in the middle of a roster, ready to mask."""

    def __init__(self, vector: FloatVector, peers: int) -> None:
        load = Load(peers + 1, vector.size, 0.0, seed=0)
        attempt = Attempt(load, lambda what, done, total: None)
        attempt.share_keys()
        name = attempt.terms.roster[load.sites // 2]
        self._state, self._signer = attempt.states[name], attempt.signers[name]
        self._boxes = attempt.collection.boxes_for(name)
        self._codec, self._vector, self._rounding = load.codec, vector, secrets.token_bytes(32)

    def seconds(self) -> dict[str, float]:
        """Always the same integers: one key masks one payload, also here."""
        cpu, begun = time.process_time(), time.perf_counter()
        values = self._codec.encode(self._vector, WEIGHT, {}, self._rounding)
        encoded = time.perf_counter()
        site.mask(self._state, self._boxes, values, self._signer)
        return _seconds(begun, encoded, cpu)


def _seconds(begun: float, encoded: float, cpu: float) -> dict[str, float]:
    """Until now; ``cpu_s`` is of all threads together."""
    return {
        "encode_s": encoded - begun,
        "mask_s": time.perf_counter() - encoded,
        "cpu_s": time.process_time() - cpu,
    }


def main() -> None:
    """Arguments: the vector (.npy) and the peers. One line of JSON for each line of stdin."""
    vector, peers = np.load(sys.argv[1]), int(sys.argv[2])
    codec, whole = Load(peers + 1, vector.size, 0.0, seed=0).codec, WholeStep(vector, peers)
    for _ in sys.stdin:
        answer = {
            "core": core_seconds(codec, vector, peers, None),
            "core_one_thread": core_seconds(codec, vector, peers, 1),
            "step": whole.seconds(),
            "cores": len(os.sched_getaffinity(0)),
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
