"""A site has palms or signatures: its settings say which, and a plan of the other trains nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner

from fedpalm.data.signatures import by_claim
from fedpalm.errors import ConfigError
from fedpalm.settings import load_toml, parse_settings
from participant.cli import main
from participant.config import DataSettings, Home, ParticipantConfig, to_toml
from participant.images import (
    list_palms,
    list_signatures,
    split_records,
    split_signature_records,
    training_signatures,
)
from participant.store import SiteStore
from participant.trainer import Trainer
from tests.support.participant import make_plan
from tests.unit.methods.signature_sites import fedmh_plan


def settings(**values: Any) -> DataSettings:
    return parse_settings(DataSettings, {"source": "x", **values}, "[data]")


def config(data: DataSettings | None, site: str = "amber") -> ParticipantConfig:
    return ParticipantConfig(
        federation="unit", site=site, coordinator="h:1", data=data, backbone="signet"
    )


def test_palms_are_meant_where_nothing_is_said_and_settings_read_back(tmp_path: Path):
    assert settings().modality == "palm"
    said = config(settings(modality="signature", kind="cedar", split_seed=3))
    (tmp_path / "participant.toml").write_text(to_toml(said))
    assert load_toml(ParticipantConfig, tmp_path / "participant.toml") == said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modality": "signature", "kind": "folder"}, "no layout of a signature source"),
        ({"modality": "palm", "kind": "cedar"}, "no layout of a palm source"),
        ({"kind": "signature-list"}, "no layout of a palm source"),
        ({"modality": "signature", "cap_per_identity": 3}, "cap_per_identity is for palms"),
        ({"modality": "face"}, "modality"),
        ({"kind": "zip"}, "kind"),
    ],
)
def test_a_key_that_does_not_belong_to_the_modality_is_an_error(values, message):
    with pytest.raises(ConfigError, match=message):
        settings(**values)


def test_both_modalities_have_a_layout_of_cross_media_signatures():
    for modality in ("palm", "signature"):
        assert settings(modality=modality, kind="cross-media-signatures").kind


def test_signatures_are_split_and_read_alike_by_whoever_needs_them(signatures):
    split = split_signature_records(signatures, "amber")
    assert len(list_signatures(signatures)) == 28
    read = training_signatures(signatures, "amber")
    assert len(read.images) == len(split.train) == 2 * (2 + 2)
    order = list(by_claim(split.train))
    claims = [order[number] for number in read.writers]
    assert claims == [record.claimed for record in split.train]
    assert not set(split.writers) & set(split.open_writers)


@pytest.mark.parametrize("ask", [list_palms, lambda data: split_records(data, "amber", "none")])
def test_signatures_are_not_taken_for_palms(signatures, ask: Callable[[DataSettings], object]):
    with pytest.raises(ConfigError, match="names signatures"):
        ask(signatures)


def test_palms_are_not_taken_for_signatures(tmp_path: Path):
    with pytest.raises(ConfigError, match="names palms"):
        list_signatures(settings(source=str(tmp_path)))


def test_a_plan_of_the_other_modality_trains_nothing_and_says_what_to_do(signatures, tmp_path):
    store = cast(SiteStore, None)
    palms = settings(source=str(tmp_path))
    for plan, data, wanted in (
        (fedmh_plan(), palms, "signature"),
        (make_plan(), signatures, "palm"),
        (fedmh_plan(), None, "signature"),
    ):
        with pytest.raises(ConfigError) as refused:
            Trainer(config(data), store).prepare("run", plan)
        assert refused.value.safe == "nothing was read, trained or sent"
        assert f'modality = "{wanted}"' in refused.value.next_step


def test_a_site_joins_with_signatures_by_one_option(signatures, tmp_path: Path):
    def ask(home: Path, *more: str) -> Any:
        arguments = (
            "request", "north", "--home", str(home), "--federation", "f", "--coordinator", "h:1",
            "--data", signatures.source, *more, "--json",
        )  # fmt: skip
        return CliRunner().invoke(main, arguments)

    signatures_of = ("--modality", "signature", "--kind", "signature-list")
    done = ask(tmp_path / "home", *signatures_of, "--backbone", "resnet")
    assert done.exit_code == 0, done.output
    found = Home(tmp_path / "home").load()
    assert found.data is not None and found.backbone == "resnet"
    assert (found.data.modality, found.data.kind) == ("signature", "signature-list")
    lines = Path(signatures.source).read_text().splitlines(keepends=True)
    few = tmp_path / "few.txt"
    few.write_text("".join(line for line in lines if "w0003" not in line))
    pairs, seen = tmp_path / "pairs.txt", Counter[str]()
    for line in lines:
        writer, truth = line.split("\t")[1:3]
        seen[writer] += truth.strip() == "genuine"
        if truth.strip() == "genuine" and seen[writer] <= 2:
            pairs.write_text((pairs.read_text() if pairs.exists() else "") + line)
    for more in (
        ("--modality", "signature", "--cap", "3"),
        ("--modality", "signature", "--data", str(pairs)),
        ("--modality", "palm"),
        ("--modality", "signature", "--data", str(few)),
    ):
        refused = ask(tmp_path / "other", *more)
        assert refused.exit_code and (what := json.loads(refused.stdout)["error"]["what"])
        assert (str(pairs) in more) == ("of no name do two genuine signatures train" in what)
        assert not (tmp_path / "other").exists()
