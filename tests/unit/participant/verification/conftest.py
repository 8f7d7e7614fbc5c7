from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.participant import World
from tests.support.verification import VerifyingSite, projecting, write_palms


@pytest.fixture(scope="session")
def palms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_palms(tmp_path_factory.mktemp("palms"))


@pytest.fixture
def site(
    tmp_path: Path, palms: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VerifyingSite]:
    """A site whose run is completed, and which has set no threshold yet."""
    projecting(monkeypatch)
    made = VerifyingSite(World(tmp_path), palms=palms)
    made.train()
    yield made
    made.store.close()


@pytest.fixture
def ready(site: VerifyingSite) -> VerifyingSite:
    """The same with thresholds."""
    site.verifier.calibrate(0.02)
    return site
