"""What a run starts from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from click.testing import CliRunner, Result
from PIL import Image

from fedpalm.cli.app import commands
from fedpalm.data.synthetic_signatures import synthetic_signatures
from fedpalm.errors import ConfigError
from fedpalm.layout import Layout


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(commands, [str(part) for part in arguments])


def plan(folder: Path, **values: Any) -> Path:
    path = folder / "plan.toml"
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_same_plan_makes_the_same_model_file(tmp_path: Path):
    draft = plan(tmp_path, name="p", method="fedpalm", rounds=3, seed=5)
    files = [tmp_path / "a.safetensors", tmp_path / "b" / "b.safetensors"]
    for path in files:
        assert run("model", "init", draft, "--out", path).exit_code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_file_says_its_layouts_in_the_order_of_the_vector(tmp_path: Path):
    draft = plan(tmp_path, name="p", method="fedpalm", rounds=3)
    out = tmp_path / "m.safetensors"
    reply = json.loads(run("model", "init", draft, "--out", out, "--json").stdout)
    with safetensors.safe_open(str(out), framework="numpy") as file:
        metadata = file.metadata()
        layout = Layout.from_json(json.loads(metadata["layout"]))
        vector = layout.flatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    assert layout.only("open_set.") and layout.size == vector.size == reply["parameters"]
    assert layout.hash.hex() == reply["layout_hash"]
    expert = Layout.from_json(json.loads(metadata["expert_layout"]))
    assert expert.only("closed_set.expert.") and expert.size < layout.size / 100
    assert metadata["method"] == "fedpalm" and metadata["seed"] == "0"


def test_a_rehearsal_may_have_any_length(tmp_path: Path):
    draft = tmp_path / "plan.toml"
    draft.write_text('name = "p"\nmethod = "rehearsal"\nrounds = 1\n')
    out = tmp_path / "m.safetensors"
    assert run("model", "init", draft, "--out", out, "--parameters", "1000").exit_code == 0
    with safetensors.safe_open(str(out), framework="numpy") as file:
        assert sum(file.get_tensor(name).size for name in file.keys()) == 1000  # noqa: SIM118


@pytest.mark.parametrize(
    ("masking", "trunks"), [("none", ["resnet", "signet"]), ("secagg", ["signet"])]
)
def test_a_rehearsal_of_several_backbones_has_a_vector_in_every_group_that_can_be_averaged(
    tmp_path: Path, masking: str, trunks: list[str]
):
    draft, out = tmp_path / "plan.toml", tmp_path / "m.safetensors"
    backbones = {
        "a": "signet",
        "b": "resnet",
        "c": "signet",
        "d": "signet",
        "e": "resnet",
        "f": "compnet",
    }
    draft.write_text(
        f'name = "p"\nmethod = "rehearsal"\nrounds = 1\nmasking = "{masking}"\n[backbones]\n'
        + "".join(f'{site} = "{name}"\n' for site, name in backbones.items())
    )
    assert run("model", "init", draft, "--out", out).exit_code == ConfigError.exit_code
    assert run("model", "init", draft, "--out", out, "--parameters", "3").exit_code == (
        ConfigError.exit_code if masking == "none" else 0
    )
    assert run("model", "init", draft, "--out", out, "--parameters", "1001").exit_code == 0
    with safetensors.safe_open(str(out), framework="numpy") as file:
        layout = Layout.from_json(json.loads(file.metadata()["layout"]))
    names = [*(f"trunk.{name}" for name in trunks), "projection", "task"]
    assert [spec.name for spec in layout.tensors] == [f"open_set.{name}.vector" for name in names]
    assert layout.size == 1001


def test_a_real_model_has_the_length_it_has(tmp_path: Path):
    draft = plan(tmp_path, name="p", method="fedpalm", rounds=1)
    done = run("model", "init", draft, "--out", tmp_path / "m", "--parameters", "10", "--json")
    assert done.exit_code == 3 and json.loads(done.stdout)["error"]["code"] == "config"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for person in "ab":
        (tmp_path / "palms" / person).mkdir(parents=True)
        for shot in range(3):
            pixels = rng.integers(1, 255, (80, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "palms" / person / f"{shot}.png")
    return tmp_path / "palms"


def test_preflight_counts_what_can_be_used(folder: Path):
    report = json.loads(run("data", "preflight", folder, "--json").stdout)
    assert (report["images"], report["identities"]) == (6, 2)


def test_preflight_of_a_useless_folder_names_the_file_and_ends_with_4(folder: Path):
    Image.new("L", (80, 80), 7).save(folder / "a" / "blank.png")
    done = run("data", "preflight", folder)
    assert done.exit_code == 4 and "blank.png" in done.stderr.replace("\n", "")


def test_a_sheet_has_an_identity_a_row(folder: Path, tmp_path: Path):
    out = tmp_path / "sheet.png"
    done = run("data", "sheet", folder, "--out", out, "--images", "2", "--identities", "2")
    assert done.exit_code == 0
    assert Image.open(out).size == (2 * 128, 2 * 128)


def test_a_sample_page_has_a_site_a_row_and_sets_people_apart(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "page.png"
    size = ["--sites", "2", "--identities", "2", "--images", "2", "--tile-px", "32"]
    pages = []
    for more in ([], ["--preset", "default"], ["--site-spread", "0"], ["--difficulty", "0"]):
        assert run("data", "sample", "--out", out, *size, *more).exit_code == 0
        page = Image.open(out)
        assert page.size == (4 * 32 + 8, 2 * 32)
        pages.append(page.tobytes())
    assert len(set(pages)) == 4


def test_a_sample_page_of_a_folder_deals_its_people_to_the_sites(folder: Path, tmp_path: Path):
    for person in "cdefgh":
        shutil.copytree(folder / "a", folder / person)
    size = ["--sites", "2", "--identities", "3", "--tile-px", "16"]
    out = tmp_path / "page.png"
    assert run("data", "sample", folder, "--out", out, *size).exit_code == 0
    assert Image.open(out).size == (9 * 16 + 2 * 8, 2 * 16)
    done = run("data", "sample", folder, "--out", out, *size, "--images", "4")
    assert done.exit_code == 4 and "has 3 images" in done.stderr


def test_preflight_says_of_whole_hands_what_it_expected(tmp_path: Path):
    (tmp_path / "IITD" / "Left Hand").mkdir(parents=True)
    (tmp_path / "IITD" / "Right Hand").mkdir()
    done = run("data", "preflight", tmp_path / "IITD")
    said = " ".join(done.stderr.split())
    assert done.exit_code == 4 and "whole hands, not segmented palms" in said
    assert "Segmented/Left/" in said


@pytest.fixture
def signatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One site's folder of synthetic signatures: four writers, three genuine and two forged each."""
    monkeypatch.setenv("FEDPALM_CACHE", str(tmp_path / "cache"))
    site = synthetic_signatures(tmp_path / "cache", 1, 4, 3, 2, seed=0)[0]
    return site[0].path.parents[2]


def test_preflight_of_signatures_counts_the_forged_ones(signatures: Path):
    report = json.loads(run("data", "signatures", "preflight", signatures, "--json").stdout)
    assert (report["images"], report["identities"], report["forged"]) == (20, 4, 8)


def test_preflight_of_palms_as_signatures_ends_with_4_and_names_the_layouts(folder: Path):
    done = run("data", "signatures", "preflight", folder)
    assert done.exit_code == 4 and "full_org/" in " ".join(done.stderr.split())


def test_a_page_of_signatures_has_a_writer_a_row_and_forgeries_apart(
    signatures: Path, tmp_path: Path
):
    out = tmp_path / "page.png"
    size = ["--genuine", "2", "--forged", "2", "--writers", "2", "--tile-px", "32"]
    for source in ([], [signatures, "--sites", "1"]):
        done = run("data", "signatures", "sample", *source, "--out", out, *size, "--json")
        rows = 2 * json.loads(done.stdout)["sites"]
        page = np.asarray(Image.open(out))
        assert page.shape == (rows * (16 + 8) - 8, 5 * 32)
        assert (page[:, 64:96] == 255).all() and page[:16, 96:].min() < 255


def test_a_page_of_copies_says_what_each_subset_is_given(signatures: Path, tmp_path: Path):
    out = tmp_path / "page.png"
    options = ["--out", out, "--writers", "2", "--copies", "3", "--strength-max", "0.6", "--json"]
    subsets = json.loads(run("data", "signatures", "augmented", signatures, *options).stdout)
    given = [(s["samples"], s["copies"], round(s["strength"], 6)) for s in subsets["subsets"]]
    assert given == [(3, 3, 0.3), (2, 4, 0.4), (1, 5, 0.5), (1, 5, 0.5)]
    assert Image.open(out).size == (5 * 128, 4 * 136 - 8)
    done = run("data", "signatures", "augmented", signatures, *options, "--times", "11")
    assert done.exit_code == 2
