"""Flower's masking of one vector, timed from inside; runs in Flower's own environment, as a script.

The same functions in the same order as ``_collect_masked_vectors`` of its SecAgg+ client mod, with the
defaults of its workflow (clipping 8.0, quantisation to 2**22, modulus 2**32, weights up to 1,000), from
the multiplication by the weight to the masked integers. Left out, as on the other side: key agreement,
opening the shares, and turning arrays into messages.

Reads the vector (.npy) and the number of peers from its arguments; each line on stdin is one repetition,
answered by its seconds as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np
from flwr.common.secure_aggregation.ndarrays_arithmetic import (  # type: ignore[import-not-found,unused-ignore]
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_multiply,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import (  # type: ignore[import-not-found,unused-ignore]
    quantize,
)
from flwr.common.secure_aggregation.secaggplus_utils import (  # type: ignore[import-not-found,unused-ignore]
    pseudo_rand_gen,
)

CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE, MAX_WEIGHT = 8.0, 2**22, 2**32, 1000.0
WEIGHT = 500
KEY_BYTES = 44
"""A shared key there is 32 bytes in base64; pseudo_rand_gen folds it to 32 bits."""


def main() -> None:
    """One line of JSON for each line of stdin."""
    vector = np.load(sys.argv[1])
    peers = int(sys.argv[2])
    for _ in sys.stdin:
        rd_seed = os.urandom(32)
        keys = [os.urandom(KEY_BYTES) for _ in range(peers)]
        cpu, begun = time.process_time(), time.perf_counter()
        q_ratio = round(WEIGHT / MAX_WEIGHT * TARGET_RANGE)
        parameters = parameters_multiply([vector], q_ratio / TARGET_RANGE)
        quantized = quantize(parameters, CLIPPING_RANGE, TARGET_RANGE)
        quantized = factor_combine(q_ratio, quantized)
        dimensions = [array.shape for array in quantized]
        encoded = time.perf_counter()
        quantized = parameters_addition(quantized, pseudo_rand_gen(rd_seed, MOD_RANGE, dimensions))
        for number, key in enumerate(keys):
            mask = pseudo_rand_gen(key, MOD_RANGE, dimensions)
            combine = parameters_addition if number % 2 else parameters_subtraction
            quantized = combine(quantized, mask)
        quantized = parameters_mod(quantized, MOD_RANGE)
        ended = time.perf_counter()
        answer = {
            "encode_s": encoded - begun,
            "mask_s": ended - encoded,
            "cpu_s": time.process_time() - cpu,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
