"""Every forged bundle is caught, with the exit code that says what it is.

``make fuzz-audit`` makes at least 10,000 of them and prints how many of each kind were caught as what.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from fedpalm.audit.findings import Exit
from fedpalm.audit.verify import verify_bundle
from tests.support.audit import World, written
from tests.support.forgeries import FORGERIES, KEYLESS, SEALED, Forgery

EACH = -(-int(os.environ.get("FEDPALM_AUDIT_FORGERIES", "140")) // len(FORGERIES))


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda one: one.__name__)
def test_every_forgery_of_a_kind_is_caught_as_what_it_is(
    forgery: Forgery,
    world: World,
    masked: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    worlds = [world, masked] if forgery in (*KEYLESS, *SEALED) else [world]
    tally: Counter[str] = Counter()
    for seed in range(EACH):
        source = worlds[seed % len(worlds)]
        source.held = source.newest
        content, expected = forgery(random.Random(f"{forgery.__name__} {seed}"), source)
        path = written(tmp_path, content, "forged.bundle")
        outside = []
        if source.held is not None:
            outside.append(written(tmp_path, source.held.to_bytes(), "held.checkpoint"))
        if Exit.FORKED not in expected:
            outside = []  # caught without any help
        audit = verify_bundle(path, source.trust, outside=outside)
        assert audit.exit in expected, (seed, [str(one) for one in audit.findings])
        tally[audit.exit.name.lower()] += 1
    with capsys.disabled():
        if "FEDPALM_AUDIT_FORGERIES" in os.environ:
            caught = ", ".join(f"{name} {count}" for name, count in sorted(tally.items()))
            print(f"\n{forgery.__name__:<36} {EACH:>5} forged, caught: {caught}", end="")
