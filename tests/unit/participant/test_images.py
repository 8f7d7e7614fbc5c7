"""Training and evaluation of a run use one split: that of its plan's unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from fedpalm.errors import ConfigError
from fedpalm.methods.private import units
from participant import evaluate
from participant.config import DataSettings, ParticipantConfig
from participant.images import split_records, training_images
from participant.store import SiteStore
from participant.trainer import Trainer
from tests.support.participant import make_plan, make_private_plan

PEOPLE, EACH = 12, 2


@pytest.fixture
def iitd(tmp_path: Path) -> DataSettings:
    rng = np.random.default_rng(0)
    for hand in ("Left", "Right"):
        (tmp_path / "Segmented" / hand).mkdir(parents=True)
        for person in range(1, PEOPLE + 1):
            for number in range(1, EACH + 1):
                pixels = rng.integers(20, 230, (72, 72), dtype=np.uint8)
                path = tmp_path / "Segmented" / hand / f"{person:03d}_{number}.bmp"
                Image.fromarray(pixels).save(path)
    return DataSettings(source=str(tmp_path))


def _config(data: DataSettings) -> ParticipantConfig:
    return ParticipantConfig(federation="f", site="a", coordinator="localhost:1", data=data)


def test_both_hands_of_somebody_in_the_iitd_set_train_together_and_are_one_person(iitd):
    split = split_records(iitd, "a", "subject")
    training = {name.rpartition("-")[2] for name in split.classes}
    assert len(split.classes) == 2 * len(training)
    assert not training & {name.rpartition("-")[2] for name in split.open_classes}
    images = training_images(iitd, "a", "subject")
    found = units(images, make_private_plan().draft.privacy)
    assert [len({*images.labels[one]}) for one in found] == [2] * len(training)


@pytest.mark.parametrize(
    ("plan", "unit"),
    [
        (make_plan(), "none"),
        (make_private_plan(), "subject"),
        (make_private_plan(privacy={"unit": "record"}), "record"),
    ],
)
def test_a_run_is_trained_and_evaluated_on_the_split_of_its_plan(iitd, monkeypatch, plan, unit):
    config, store = _config(iitd), cast(SiteStore, None)
    trained = Trainer(config, store)._images("run", plan)
    expected = split_records(iitd, "a", unit)
    assert len(trained.labels) == len(expected.train)
    assert trained.classes == len(expected.classes)

    class Asked(Exception):
        pass

    def split(data: DataSettings, site: str, unit: str) -> Any:
        raise Asked(site, unit)

    monkeypatch.setattr(
        evaluate, "_find_run", lambda *_: type("Run", (), {"run_id": "r", "plan": plan})
    )
    monkeypatch.setattr(evaluate, "shared_vector", lambda *_: (None, {}))
    monkeypatch.setattr(
        evaluate, "Trainer", lambda *_: type("T", (), {"resume": lambda *_: None})()
    )
    monkeypatch.setattr(evaluate, "split_records", split)
    with pytest.raises(Asked) as asked:
        evaluate.evaluate_site(
            config, store, run_id=None, choice=evaluate.ModelChoice(), open_set=None, seed=0
        )
    assert asked.value.args == ("a", unit)


def test_a_cap_is_refused_where_each_image_is_protected_alone(iitd):
    capped = iitd.model_copy(update={"cap_per_identity": 2})
    assert split_records(capped, "a", "subject") == split_records(iitd, "a", "subject")
    with pytest.raises(ConfigError, match="take cap_per_identity out") as refused:
        split_records(capped, "a", "record")
    assert refused.value.safe == "nothing was trained, and no budget spent"
