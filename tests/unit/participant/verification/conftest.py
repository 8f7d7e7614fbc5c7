from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from participant.verification.thresholds import Threshold
from tests.support.participant import World
from tests.support.verification import VerifyingSite, projecting, write_palms


@pytest.fixture(scope="session")
def palms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_palms(tmp_path_factory.mktemp("palms"))


@pytest.fixture(scope="session")
def thresholds(tmp_path_factory: pytest.TempPathFactory, palms: Path) -> list[Threshold]:
    """What a calibration at a false match rate of 0.02 finds, for every site of these tests alike."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        projecting(monkeypatch)
        site = VerifyingSite(World(tmp_path_factory.mktemp("calibrated")), palms=palms)
        site.train()
        found = site.verifier.calibrate(0.02)
        site.store.close()
    return found


@pytest.fixture
def site(tmp_path: Path, palms: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifyingSite]:
    """A site whose run is completed, and which has set no threshold yet."""
    projecting(monkeypatch)
    made = VerifyingSite(World(tmp_path), palms=palms)
    made.train()
    yield made
    made.store.close()


@pytest.fixture
def ready(site: VerifyingSite, thresholds: list[Threshold]) -> VerifyingSite:
    """The same with thresholds."""
    assert {one.model for one in thresholds} == {site.verifier.model_id.hash}
    with site.store.transaction() as db:
        site.verifier.thresholds.put(db, thresholds)
    return site
