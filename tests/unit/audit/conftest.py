"""Worlds that cost a second to make, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedpalm.audit.findings import Exit
from fedpalm.audit.verify import Audit, verify_bundle
from tests.support.audit import World, make_plan, written


@pytest.fixture(scope="session")
def world() -> World:
    """Three rounds by the book, with differential privacy."""
    return World().trained()


@pytest.fixture(scope="session")
def masked() -> World:
    """The same with masking and an exchange of experts."""
    return World(make_plan(masking="secagg", experts=True)).trained()


@pytest.fixture(scope="session")
def open_run() -> World:
    """Rounds and an exchange without differential privacy."""
    return World(make_plan(unit="none", experts=True)).trained()


@pytest.fixture
def audited(tmp_path: Path):
    """Verify what a world exports, with the checkpoint that its witnesses hold (``alone``: without)."""

    def verify(world: World, content: bytes | None = None, alone: bool = False, **options) -> Audit:
        path = written(tmp_path, world.bundle() if content is None else content)
        if world.newest is not None and not alone:
            held = written(tmp_path, world.newest.to_bytes(), "newest.checkpoint")
            options = {"outside": [held], **options}
        return verify_bundle(path, options.pop("trust", world.trust), **options)

    return verify


@pytest.fixture
def refused(audited):
    """The words of every finding of an audit that ends with this code."""

    def verify(expected: Exit, world: World, content: bytes | None = None, **options) -> str:
        audit = audited(world, content, **options)
        assert audit.exit is expected, [str(one) for one in audit.findings]
        return "\n".join(str(one) for one in audit.findings if one.exit is expected)

    return verify
