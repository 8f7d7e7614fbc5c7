"""What tests of exchanges at the coordinator begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.exchange_world import (
    ExchangeWorld,
    after_round_1,
    exchange_plan,
)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[ExchangeWorld]:
    made = ExchangeWorld(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def lenient(tmp_path: Path) -> Iterator[ExchangeWorld]:
    """A plan whose exchange goes on without those who refuse."""
    made = ExchangeWorld(tmp_path, plan=exchange_plan(exchange_without_refusers=True))
    yield made
    made.store.close()


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[ExchangeWorld]:
    """A run of three rounds that waits for its exchange after the first."""
    plan = exchange_plan(rounds=3, expert_exchange="freeze")
    made = ExchangeWorld(tmp_path, plan=plan, run=after_round_1(plan))
    yield made
    made.store.close()
