from __future__ import annotations

from pathlib import Path

import pytest

from fedpalm.data.signatures import SignatureRecord
from fedpalm.data.splits import write_signature_list
from fedpalm.data.synthetic_signatures import synthetic_signatures
from participant.config import DataSettings
from tests.support.participant import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(scope="session")
def drawn_signatures(tmp_path_factory: pytest.TempPathFactory) -> list[SignatureRecord]:
    """Four writers, two of whom train: four genuine signatures and three skilled forgeries each."""
    return synthetic_signatures(tmp_path_factory.mktemp("signatures"), 1, 4, 4, 3, seed=3)[0]


@pytest.fixture
def signatures(drawn_signatures: list[SignatureRecord], tmp_path: Path) -> DataSettings:
    """The same as a site's own."""
    write_signature_list(drawn_signatures, tmp_path / "signatures.txt")
    return DataSettings(source=str(tmp_path / "signatures.txt"), modality="signature")
