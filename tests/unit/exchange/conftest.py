"""Three sites that have all said yes to one exchange, and what north has sealed under it."""

from __future__ import annotations

import pytest

from fedpalm.exchange.consent import Sanction
from fedpalm.exchange.sealing import SealedExpert
from tests.support.exchange import Group, Spies


@pytest.fixture(scope="session")
def group() -> Group:
    return Group()


@pytest.fixture(scope="session")
def sanction(group: Group) -> Sanction:
    return group.sanction()


@pytest.fixture(scope="session")
def sent(group: Group, sanction: Sanction) -> tuple[SealedExpert, dict[str, bytes]]:
    """North's sealed expert, and its wrapped keys."""
    return group.seal(sanction)


@pytest.fixture(scope="session")
def sealed(sent: tuple[SealedExpert, dict[str, bytes]]) -> SealedExpert:
    return sent[0]


@pytest.fixture(scope="session")
def wrapped(sent: tuple[SealedExpert, dict[str, bytes]]) -> bytes:
    """What north wrapped for east."""
    return sent[1]["east"]


@pytest.fixture
def spies(monkeypatch: pytest.MonkeyPatch) -> Spies:
    return Spies(monkeypatch)
