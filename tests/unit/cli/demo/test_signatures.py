"""A demo of signatures: who gets which backbone and writers, and a report that speaks of signatures."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedpalm.cli.demo.claims import estimates_of, learning, mean_of_sites, rounds_of
from fedpalm.cli.demo.command import default_folder, resolve
from fedpalm.cli.demo.figures import LearningPoint, Report
from fedpalm.cli.demo.page import page
from fedpalm.cli.demo.people import choose_people
from fedpalm.cli.demo.plans import bound_plan
from fedpalm.cli.demo.plots import write_plots
from fedpalm.cli.demo.settings import (
    SIGNATURE_SIZES,
    SYNTHETIC,
    SYNTHETIC_SIGNATURES,
    DemoSettings,
    plan_toml,
)
from fedpalm.cli.demo.signatures import CONTENDERS, Signatures
from fedpalm.cli.demo.terminal import summary
from fedpalm.cli.demo.wording import finding
from fedpalm.cli.demo.workspace import Workspace
from fedpalm.cli.demo.writers import (
    capped,
    choose_writers,
    largest_fit,
    references_of,
    write_writers,
    writers_split,
)
from fedpalm.data.signatures import SignatureRecord
from fedpalm.data.splits import write_signature_list
from fedpalm.errors import ConfigError, DataError
from fedpalm.evaluation.signatures import ClaimScores, Forged, pool_claims
from fedpalm.methods.contribution import masking_terms
from fedpalm.plan import PlanDraft
from fedpalm.settings import load_toml
from participant.config import DataSettings
from participant.images import split_signature_records

from .conftest import canned_signatures

MIXED = DemoSettings(method="fedmh", data=SYNTHETIC_SIGNATURES, **SIGNATURE_SIZES)
EERS = {
    "random": {"fedmh": 0.121, "fedavg": 0.138, "local": 0.162},
    "skilled": {"fedmh": 0.223, "fedavg": 0.234, "local": 0.245},
}


def asked(
    data: str | None = None, method: str = "fedmh", privacy: str = "none", **said: int
) -> DemoSettings:
    sizes = [said.get(key) for key in ("sites", "identities", "images", "rounds")]
    return resolve(data, *sizes, method, 0, "secagg", privacy)


def records(folder: Path, writers: int, names: int, each: int) -> list[SignatureRecord]:
    """Genuine signatures, ``each`` of every name."""
    made = []
    for writer in range(writers):
        for name in range(names):
            for sample in range(each):
                path = folder / f"w{writer:02d}" / f"{name}-{sample}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                made.append(
                    SignatureRecord(
                        path, f"w{writer:02d}", text=f"n{name}", author=f"w{writer:02d}"
                    )
                )
    return made


def test_nothing_said_six_sites_have_three_kinds_of_backbones():
    settings = asked()
    assert settings == MIXED
    assert Counter(settings.backbones.values()) == {"signet": 3, "resnet": 2, "compnet": 1}
    assert default_folder(settings) == Path("runs/fedmh-synthetic-seed0")


@pytest.mark.parametrize("sites", [3, 5, 6, 8, 12, 17, 20])
def test_however_many_sites_there_are_masking_finds_no_sum_too_small(sites: int):
    settings = MIXED.model_copy(update={"sites": sites})
    assert tuple(settings.backbones) == settings.site_names
    plan = bound_plan(settings)
    terms = masking_terms(plan)
    assert terms is not None
    assert "trunk.signet" in plan.groups and len(plan.groups["trunk.signet"]) >= 3
    assert set(settings.backbones.values()) == (
        {"signet"} if sites < 6 else {"signet", "resnet", "compnet"}
    )


def test_the_written_plan_reads_back_as_the_same_draft(tmp_path: Path):
    path = tmp_path / "plan.toml"
    path.write_text(plan_toml(MIXED.draft()))
    assert load_toml(PlanDraft, path) == MIXED.draft()


def test_contenders_differ_from_the_plan_in_what_a_site_does_alone():
    ours = bound_plan(MIXED)
    for fedmh in CONTENDERS.values():
        other = bound_plan(MIXED, fedmh=fedmh)
        assert (other.layout, other.initial_model) == (ours.layout, ours.initial_model)
        changed = other.draft.model_copy(update={"fedmh": ours.draft.fedmh})
        assert changed == ours.draft != other.draft
    assert set(CONTENDERS) == set(MIXED.contenders[1:])


def test_differential_privacy_is_refused_at_once():
    with pytest.raises(ConfigError, match=r"FedMH promises no differential privacy.*not noised"):
        asked(privacy="subject")


@pytest.mark.parametrize(
    ("data", "method"), [(SYNTHETIC, "fedmh"), (SYNTHETIC_SIGNATURES, "fedpalm")]
)
def test_drawn_images_of_the_other_kind_are_refused(data: str, method: str):
    with pytest.raises(ConfigError, match=r"take another --data or --method"):
        asked(data, method)


def test_a_folder_of_palms_is_refused_where_signatures_are_needed(tmp_path: Path):
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    with pytest.raises(DataError, match="not laid out as a set of signatures") as error:
        asked(str(tmp_path))
    assert "--method fedpalm" in str(error.value.next_step)


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_signatures_are_refused_where_palms_are_needed(tmp_path: Path, kind: str):
    made = records(tmp_path / "bin", 12, 1, 4)
    source = tmp_path
    if kind == "list":
        source = tmp_path / "list.txt"
        source.write_text("".join(f"{r.path}\t{r.writer}\tgenuine\n" for r in made))
    for refused in (
        lambda: asked(str(source), "fedpalm"),
        lambda: choose_people(DemoSettings(data=str(source), identities=2, sites=3)),
    ):
        with pytest.raises(DataError, match="laid out as signatures") as error:
            refused()
        assert "--method fedmh" in str(error.value.next_step)


def test_a_folder_of_36_writers_gives_each_of_six_sites_three_that_train(tmp_path: Path):
    for record in records(tmp_path, 36, 1, 2):
        genuine = record.path.parent / "genuine"
        genuine.mkdir(exist_ok=True)
        record.path.rename(genuine / record.path.name)
    assert largest_fit(str(tmp_path), 6) == 3
    assert asked(str(tmp_path)).identities == 3
    with pytest.raises(DataError, match="36 writers are too few for 10 sites"):
        largest_fit(str(tmp_path), 10)


def test_a_cap_takes_whole_names_the_same_of_every_writer_and_forgeries_apart(tmp_path: Path):
    genuine = records(tmp_path, 2, 3, 4)
    forged = [
        SignatureRecord(tmp_path / f"f{n}.png", "w00", kind="skilled", text=f"n{n % 3}")
        for n in range(9)
    ]
    for most, names in ((6, 1), (8, 2), (100, 3), (3, 1)):
        kept = capped([*genuine, *forged], most, 0)
        own = {
            w: Counter(r.text for r in kept if r.genuine and r.writer == w) for w in ("w00", "w01")
        }
        assert own["w00"] == own["w01"] and list(own["w00"].values()) == [min(4, most)] * names
        known = {record.claimed for record in kept if record.genuine}
        assert {record.claimed for record in kept} == known
        assert sum(not record.genuine for record in kept) == 3 * names


def test_the_demo_looks_at_the_split_that_its_sites_make(tmp_path: Path):
    settings = MIXED.model_copy(update={"sites": 3, "identities": 2, "images": 4})
    workspace = Workspace(tmp_path / "demo")
    workspace.open(settings)
    dealt = choose_writers(settings)
    write_writers(workspace, settings, dealt)
    seen: set[str] = set()
    for site, own in zip(settings.site_names, dealt, strict=True):
        # What `join --data --modality signature` means.
        data = DataSettings(source=str(workspace.images(site)), modality="signature")
        split = writers_split(workspace, site)
        assert split == split_signature_records(data, site)
        assert len(split.writers) == len(split.open_writers) == 2
        assert references_of([split]) == 2
        writers = {record.writer for record in own}
        assert not writers & seen
        seen |= writers


def test_a_set_of_one_name_alone_is_refused_before_anything_trains(tmp_path: Path):
    made = [replace(one, text="the same") for one in records(tmp_path, 12, 1, 4)]
    write_signature_list(made, tmp_path / "list.txt")
    settings = MIXED.model_copy(
        update={"sites": 3, "identities": 2, "images": 4, "data": str(tmp_path / "list.txt")}
    )
    with pytest.raises(DataError, match="all write the same name"):
        choose_writers(settings)


@pytest.mark.parametrize("kind", ["skilled", "simple", ""])
def test_a_newcomer_is_claimed_by_themselves_by_another_and_by_a_forger(tmp_path: Path, kind: str):
    made = records(tmp_path, 6, 2 if kind == "simple" else 1, 4)
    if kind != "simple":
        made = [replace(record, text=None) for record in made]
    if kind == "skilled":
        for writer in {record.writer for record in made}:
            path = tmp_path / writer / "forged.png"
            path.touch()
            made.append(SignatureRecord(path, writer, kind="skilled"))
    workspace = Workspace(tmp_path / "demo")
    workspace.open(MIXED)
    write_signature_list(made, workspace.images("site-2"))
    newcomer = Signatures().newcomer(workspace, MIXED, "site-2")
    split = writers_split(workspace, "site-2")
    of = {record.path: record for record in (*split.open.references, *split.open.genuine)}
    (writer,) = {of[path].writer for path in newcomer.enrolled}
    assert writer in split.open_writers
    assert of[newcomer.claims["genuine"]].writer == writer
    assert newcomer.claims["genuine"] not in newcomer.enrolled
    assert of[newcomer.claims["impostor"]].writer != writer
    assert newcomer.forgery_kind == kind and ("forgery" in newcomer.claims) == bool(kind)
    if kind == "simple":
        forgery = of[newcomer.claims["forgery"]]
        assert forgery.writer != writer and forgery.text in {
            record.text for record in of.values() if record.writer == writer
        }


def test_losses_are_averaged_in_rounds_that_every_site_tells_and_of_detection_where_it_is_judged():
    def told(user: float | None, forged: float | None = 0.5) -> dict[str, float | None]:
        found = {"probe.user_after": user, "eta.task": 0.25}
        return found if forged is None else found | {"probe.forged_after": forged}

    one = rounds_of({"1": told(3.0), "2": told(2.0), "10": told(1.0)})
    other = rounds_of({"1": told(5.0), "2": told(None)})
    assert [r.round for r in one] == [1, 2, 10] and one[0].etas == {"task": 0.25}
    (point,) = learning([one, other])
    assert (point.round, point.user, point.forged) == (1, 4.0, 0.5)
    blind = rounds_of({"1": told(8.0, None)})
    assert learning([one, blind]) == (LearningPoint(round=1, user=5.5, forged=0.5),)
    assert learning([blind]) == (LearningPoint(round=1, user=8.0, forged=None),)


def test_losses_of_a_task_that_no_site_judges_are_not_drawn_as_0(tmp_path: Path):
    report = canned_signatures(EERS)
    points = {"fedmh": (LearningPoint(round=1, user=8.0, forged=None),)}
    blind = report.model_copy(
        update={"open_set": report.open_set.model_copy(update={"learning": points})}
    )
    assert "no site keeps a forgery aside" in write_plots(blind, tmp_path)["forgeries"]
    assert "no site keeps a forgery aside" not in write_plots(report, tmp_path)["forgeries"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Page and terminal of a report."""
    report, folder = canned_signatures(EERS), tmp_path_factory.mktemp("shown")
    stream = io.StringIO()
    Console(file=stream, width=2000).print(summary(report, Workspace(folder)))
    html = page(report, write_plots(report, folder), b"\x89PNG")
    return html.replace("\u00a0", " "), stream.getvalue()


def test_page_and_terminal_speak_of_signatures_and_never_of_palms(shown: tuple[str, str]):
    for text in shown:
        for word in (r"\bpalms?\b", r"\bhand\b", r"\bexperts?\b", r"\btextural\b"):
            assert not re.search(word, text, re.IGNORECASE), word
        assert "FedMH" in text and "FedAvg by group" in text


def test_every_rate_is_shown_by_kind_of_forgery_with_its_interval(shown: tuple[str, str]):
    for text in shown:
        for own in EERS.values():
            for eer in own.values():
                assert f"{100 * eer:.2f} %" in text
                assert f"{80 * eer:.2f} to {120 * eer:.2f} %" in text


def test_what_one_threshold_for_all_sites_gives_is_shown_too(shown: tuple[str, str]):
    for text in shown:
        for own in EERS.values():
            for eer in own.values():
                assert f"{100 * (eer + 0.05):.2f} %" in text


def claims(genuine: list[float], random: list[float]) -> ClaimScores:
    """One claim of either kind by each writer."""
    writers = np.arange(len(genuine), dtype=np.int32)
    forged = {"random": Forged(np.array(random), writers)}
    return ClaimScores(np.array(genuine), writers, forged, len(genuine))


def test_sites_with_scores_of_their_own_scale_are_judged_at_their_own_thresholds():
    sites = {"a": claims([0.9, 0.8], [0.7, 0.6]), "b": claims([0.5, 0.4], [0.1, 0.2])}
    mean = mean_of_sites(sites, 0)["random"]
    assert (mean.eer, mean.low, mean.genuine, mean.impostor) == (0.0, 0.0, 4, 4)
    assert mean.high == 3 / 4  # no error of four claims: the rule of three
    assert estimates_of(pool_claims(list(sites.values())), 0)["random"].eer == 0.5
    worse = mean_of_sites({**sites, "b": claims([0.5, 0.1], [0.4, 0.2])}, 0)["random"]
    assert 0 < worse.eer < 0.5 and worse.low <= worse.eer <= worse.high
    assert worse == mean_of_sites({**sites, "b": claims([0.5, 0.1], [0.4, 0.2])}, 0)["random"]


def test_the_page_says_who_shares_what_and_what_stayed(shown: tuple[str, str]):
    html, _ = shown
    assert "The trunk of compnet and that of resnet stayed at its sites" in html
    assert "<td>signet</td><td>trunk.signet, projection</td>" in html
    assert "<td>compnet</td><td>projection</td>" in html
    assert "<td>-0.12</td>" in html and "projection 0.75" in html


def test_the_finding_names_every_kind_and_claims_nothing_inside_an_interval():
    said = finding(canned_signatures(EERS)).replace("\u00a0", " ")
    assert (
        "36 writers that no site trained on with an equal error rate of 12.1 % against random"
        in said
    )
    assert "does not show that training together pays" in said
    assert "Against skilled forgeries it is 22.3 % (FedAvg by group 23.4 %, No feder" in said
    assert "; its interval overlaps that of FedAvg by group and that of No federation." in said
    clear = {"fedmh": 0.1, "fedavg": 0.11, "local": 0.3}
    simple = finding(canned_signatures({**EERS, "simple": clear})).replace("\u00a0", " ")
    assert "Against simple forgeries it is 10.0 %" in simple
    assert simple.endswith("; its interval overlaps that of FedAvg by group.")


def test_three_claims_are_told_as_they_went(shown: tuple[str, str]):
    for text in shown:
        assert "Another signature of them scores 0.712 and matches" in text
        assert (
            "a signature of somebody else under that name scores 0.531 and does not match" in text
        )
        assert "a skilled forgery scores 0.654 and matches" in text


def test_a_report_of_signatures_survives_json():
    report = canned_signatures(EERS)
    assert Report.model_validate_json(report.model_dump_json()) == report
