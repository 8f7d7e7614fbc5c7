"""A model of signatures that was really trained: its own hand, another hand, the same name by another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fedpalm.data.records import by_identity
from fedpalm.data.signature_image import read_signature, standardise_ink
from fedpalm.data.signature_splits import split_signatures
from fedpalm.data.splits import write_signature_list
from fedpalm.data.synthetic_signatures import synthetic_signatures
from fedpalm.errors import ConfigError, DataError, NotFoundError, QualityError
from participant.cli import main
from participant.cli.verification import NO_MATCH
from participant.config import DataSettings, ParticipantConfig
from participant.ending import ExitAfter
from participant.images import split_signature_records
from participant.rounds import RunWorker
from participant.trained_on import trained_on
from participant.trainer import Trainer
from participant.verification.calibrate import development_pairs
from participant.verification.gallery import IMAGES
from participant.verification.looks import FAILURES_TO_ACQUIRE
from participant.verification.model import find_model, training_identities
from participant.verification.settled import SETTLED, load_settled
from participant.verification.subjects import forget, list_subjects
from participant.verification.thresholds import Threshold
from tests.support.participant import SITES, Site, World, make_plan
from tests.support.verification import VerifyingSite, palm, train_alone
from tests.unit.methods.signature_sites import fedmh_plan

RUN = "signatures-1"
WRITERS, NAMES = 10, 4
"""Of the site's own: five train, five do not, and of each five two have the same name."""
DIFFICULTY = 0.3
"""Of the signatures: three short rounds on five writers do not learn to tell unsteady hands."""


class Signed(NamedTuple):
    """A site that trained on half of its writers, and signatures of three whom it never saw."""

    site: VerifyingSite
    strangers: list[list[Path]]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    folder = tmp_path_factory.mktemp("signed")
    (records,) = synthetic_signatures(folder / "cache", 1, WRITERS + 3, 6, 2, 3, DIFFICULTY)
    groups = list(by_identity(records).values())
    own = [one for group in groups[3:] for one in group]
    split = split_signatures(own, 0, "north")
    names = {
        writer: f"name {at % NAMES}"
        for half in (split.writers, split.open_writers)
        for at, writer in enumerate(half)
    }
    known = [replace(one, text=names[one.writer]) for one in own]
    write_signature_list(known, folder / "known.txt")
    site = VerifyingSite(World(folder))
    data = DataSettings(source=str(folder / "known.txt"), modality="signature")
    site.home.save(site.home.load().model_copy(update={"data": data, "backbone": "signet"}))
    site.set(subject_attempts_per_minute=100, max_failures=50)
    plan = fedmh_plan(
        rounds=3,
        backbones=dict.fromkeys(SITES, "signet"),
        training={"local_epochs": 6, "learning_rate": 1e-3},
        augmentation="off",
    )
    train_alone(site, RUN, plan)
    yield Signed(site, [[one.path for one in group if one.genuine] for group in groups[:3]])
    site.store.close()


@pytest.fixture(scope="module")
def thresholds(signed: Signed) -> list[Threshold]:
    return signed.site.verifier.calibrate(0.1)


def test_a_genuine_signature_matches_and_those_of_others_do_not(
    signed: Signed, thresholds: list[Threshold]
):
    """Of people who are strangers to the model."""
    verifier, (anna, bert, cleo) = signed.site.verifier, signed.strangers
    done = verifier.enrol("anna", anna[:3])
    assert (done.mode, done.images, done.warnings) == ("open", 3, ())
    genuine = [verifier.verify("anna", one) for one in anna[3:]]
    others = [verifier.verify("anna", one) for one in (*bert[:2], *cleo[:2])]
    assert all(one.match for one in genuine) and not any(one.match for one in others)
    assert min(one.score for one in genuine) > max(one.score for one in others)
    assert genuine[0].to_json()["against"] == "random"
    assert verifier.identify(anna[4]).subject == "anna"
    assert verifier.identify(bert[4]).subject is None


def test_the_same_name_by_another_writer_is_told_from_the_writer(
    signed: Signed, thresholds: list[Threshold]
):
    site = signed.site
    pairs = development_pairs(site.config, site.verifier.stored_model, "closed")
    person, name = pairs.subjects[0]
    references = [one.path for one in pairs.gallery if one.identity == person]
    genuine = [one.path for one in pairs.probes if one.identity == person and not one.skilled]
    namesakes = [
        one.path
        for one in pairs.probes
        if one.identity != person and one.name == name and not one.skilled
    ]
    assert site.verifier.enrol(person, references).mode == "closed"
    assert all(site.verifier.verify(person, one).match for one in genuine)
    assert namesakes and not any(site.verifier.verify(person, one).match for one in namesakes)


def test_a_threshold_says_what_part_of_each_kind_of_forgery_would_pass(
    signed: Signed, thresholds: list[Threshold]
):
    site = signed.site
    for one in thresholds:
        pairs = development_pairs(site.config, site.verifier.stored_model, one.mode)
        rates = {kind.kind: kind for kind in one.passing}
        assert set(rates) == {"random", "simple", "skilled"} and one.against == "random"
        assert rates["random"].rate == one.fmr <= 0.1
        assert rates["random"].interval == one.fmr_interval
        for kind, rate in rates.items():
            assert rate.claims == pairs.claims(kind)
            assert rate.interval[0] <= rate.rate <= rate.interval[1]
        assert rates["random"].claims == one.impostor_pairs
        # Drawn forgeries follow the plan of whom they claim to be.
        assert rates["skilled"].rate > 5 * rates["random"].rate
        assert Threshold.from_json(json.loads(json.dumps(one.to_json()))) == one
        # Whoever is not enrolled claims no name: of identification the rate of random claims is told.
        upper = rates["random"].interval[1]
        assert replace(one, fmr_interval=(0.0, 0.9)).fpir_bound(2) == pytest.approx(2 * upper)
    listed = list_subjects(site.config, site.store)["thresholds"]
    assert [[one["kind"] for one in each["passing"]] for each in listed] == 2 * [
        ["random", "simple", "skilled"]
    ]


def test_a_threshold_against_skilled_forgeries_is_stricter(
    signed: Signed, thresholds: list[Threshold]
):
    """Ten practised claims can show 0.3 at the least, which has to be asked for on purpose."""
    verifier = signed.site.verifier
    with pytest.raises(DataError, match=r"skilled forgeries: \d+ are needed"):
        verifier.calibrate(0.1, against="skilled")
    before = verifier.thresholds.all()
    (found,) = verifier.calibrate(0.3, against="skilled", accept_weak=True, modes=["open"])
    try:
        assert found.against == "skilled" and found.fmr <= 0.3
        assert found.fmr == next(one.rate for one in found.passing if one.kind == "skilled")
        assert found.impostor_pairs == 10
        assert found.target_fmr == 0.3
    finally:
        with signed.site.store.transaction() as db:
            verifier.thresholds.put(db, before)


def test_palms_are_forged_at_random_alone(site: VerifyingSite):
    with pytest.raises(ConfigError, match="no skilled forgeries of a palm"):
        site.verifier.calibrate(0.05, against="skilled")
    assert [one.passing for one in site.verifier.calibrate(0.05)] == [(), ()]


def test_claims_are_of_the_kind_that_their_names_say(signed: Signed):
    """By a plain loop over all comparisons."""
    for mode in ("closed", "open"):
        pairs = development_pairs(signed.site.config, signed.site.verifier.stored_model, mode)
        assert {name for _, name in pairs.subjects} <= {f"name {at}" for at in range(NAMES)}
        for row, (person, name) in enumerate(pairs.subjects):
            for column, probe in enumerate(pairs.probes):
                own = probe.identity == person
                expected = {
                    "genuine": own and not probe.skilled,
                    "skilled": own and probe.skilled,
                    "simple": not own and not probe.skilled and probe.name == name,
                    "random": not own and not probe.skilled and probe.name != name,
                }
                found = {
                    "genuine": pairs.genuine[row, column],
                    **{k: pairs.forged(k)[row, column] for k in ("random", "simple", "skilled")},
                }
                assert found == expected


def test_somebody_with_several_names_has_a_reference_of_each(signed: Signed):
    pairs = development_pairs(signed.site.config, signed.site.verifier.stored_model, "open")
    first = pairs.people[0]
    changed = [
        replace(one, name=f"name {at % 2}") if one.identity == first else one
        for at, one in enumerate(pairs.gallery)
    ]
    several = replace(pairs, gallery=tuple(changed))
    assert [name for person, name in several.subjects if person == first] == ["name 0", "name 1"]
    probe = next(at for at, one in enumerate(pairs.probes) if one.identity == first)
    # Her own signature with another name of hers is neither genuine nor forged.
    rows = several.owners == several.people.index(first)
    told = several.genuine | np.any([several.forged(k) for k in ("random", "simple")], axis=0)
    assert told[rows, probe].sum() == 1 and told[~rows, probe].all()


def test_templates_stay_when_signatures_come_and_go(signed: Signed, monkeypatch):
    """The last receipt is judged once; without the data folder the model still makes the same."""
    site, (_, bert, _) = signed.site, signed.strangers
    inks = np.stack([read_signature(one).ink for one in bert[:3]])
    before = site.verifier.stored_model
    made = before.build(site.store).templates("open", inks)
    method = Trainer(site.config, site.store).resume(RUN, before.run.plan)
    shared = site.store.load_model(before.shared_hash, before.run.plan.model_layout)
    inputs = np.stack([standardise_ink(one)[None] for one in inks])
    np.testing.assert_array_equal(made, method.open_templates(inputs, shared))
    without = site.config.model_copy(update={"data": None})
    after = find_model(without, site.store, RUN)
    assert after.id == before.id
    for mode in ("open", "closed"):
        np.testing.assert_array_equal(after.build(site.store).templates(mode, inks), made)


def test_what_the_agent_settles_when_the_run_ends_is_what_a_command_would(signed: Signed):
    site = signed.site
    stored = site.verifier.stored_model
    stored.build(site.store)
    kept = site.store.items.get(SETTLED, stored.id.hash)
    with site.store.transaction() as db:
        site.store.items.delete(db, SETTLED, stored.id.hash)
    agent = Site(site.home)

    def run_ended(config: ParticipantConfig) -> None:
        trainer = Trainer(config, agent.store)
        worker = RunWorker(config, agent.store, agent.gate, trainer, agent, ExitAfter.NEVER)
        worker._settle(stored.run)

    run_ended(site.config.model_copy(update={"data": None}))
    assert site.store.items.get(SETTLED, stored.id.hash) is None
    assert "is not settled" in agent.lines[-1] and "no [data]" in agent.lines[-1]
    run_ended(site.config)
    agent.store.close()
    assert site.store.items.get(SETTLED, stored.id.hash) == kept


def test_whoever_joins_the_folder_makes_nobody_open_who_trained(signed: Signed, tmp_path: Path):
    """By rank alone, two newcomers would move somebody who trained."""
    site, (_, *strangers) = signed.site, signed.strangers
    stored = site.verifier.stored_model
    kept = trained_on(site.store, RUN, stored.run.plan)
    closed = split_signature_records(site.config.data, "north").writers
    assert kept is not None and kept.writers == closed
    stored.build(site.store)
    settled = site.store.items.get(SETTLED, stored.id.hash)
    listed = Path(site.config.data.source).read_text()
    for number in range(50):
        more = [
            f"{path}\tnew-{number}-{at}\tgenuine\tname"
            for at, paths in enumerate(strangers)
            for path in paths[:4]
        ]
        (tmp_path / "more.txt").write_text("\n".join([listed.rstrip(), *more]) + "\n")
        data = site.config.data.model_copy(update={"source": str(tmp_path / "more.txt")})
        if set(split_signature_records(data, "north").open_writers) & set(closed):
            break
    else:
        pytest.fail("no newcomers move anybody, so nothing is shown")
    later = site.config.model_copy(update={"data": data})
    model = find_model(later, site.store, RUN)
    assert training_identities(later, site.store, model.run) == closed
    pairs = development_pairs(later, model, "open")
    assert not {one.identity for one in (*pairs.gallery, *pairs.probes)} & set(closed)
    again = development_pairs(later, model, "closed")
    before = development_pairs(site.config, stored, "closed")
    assert set(again.gallery) == set(before.gallery) and set(again.probes) == set(before.probes)
    # A late settling judges by those who trained, and comes to the same model.
    with site.store.transaction() as db:
        site.store.items.delete(db, SETTLED, stored.id.hash)
    model.build(site.store)
    assert site.store.items.get(SETTLED, stored.id.hash) == settled


def test_what_is_settled_first_stays(signed: Signed):
    """A receipt that comes out otherwise, with other signatures to judge by, changes nothing."""
    site = signed.site
    stored = site.verifier.stored_model
    stored.build(site.store)
    kept, first = (
        site.store.items.get(SETTLED, stored.id.hash),
        load_settled(site.store, stored.id.hash),
    )

    class Otherwise:
        def settled(self, shared):
            return {name: np.zeros_like(tensor) for name, tensor in first.items()}

    again = stored.settle(site.store, Otherwise())
    assert kept == site.store.items.get(SETTLED, stored.id.hash)
    assert again.keys() == first.keys() and any(tensor.any() for tensor in first.values())
    for name, tensor in first.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_a_model_that_cannot_be_settled_says_what_is_missing(signed: Signed, tmp_path: Path):
    site = signed.site
    stored = replace(site.verifier.stored_model, id=replace(site.verifier.model_id, hash="00"))
    without = replace(stored, config=site.config.model_copy(update={"data": None}))
    with pytest.raises(ConfigError, match=r"not settled yet.*no \[data\]"):
        without.build(site.store)
    gone = site.config.data.model_copy(update={"source": str(tmp_path / "gone")})
    with pytest.raises(DataError, match=r"not settled yet.*no such file"):
        replace(stored, config=site.config.model_copy(update={"data": gone})).build(site.store)
    palms = DataSettings(source=str(tmp_path), modality="palm")
    with pytest.raises(ConfigError, match=r"not settled yet.*names palms"):
        replace(stored, config=site.config.model_copy(update={"data": palms})).build(site.store)
    fewer = tmp_path / "fewer.txt"
    lines = Path(site.config.data.source).read_text().splitlines()
    fewer.write_text("\n".join(lines[: 8 * 6]))
    data = site.config.data.model_copy(update={"source": str(fewer)})
    with pytest.raises(
        DataError, match=r"not settled yet.*signatures that this run trains on"
    ) as refused:
        replace(stored, config=site.config.model_copy(update={"data": data})).build(site.store)
    assert "put them back" in refused.value.next_step


def test_renewal_is_of_kept_images_and_forgetting_erases_them(
    signed: Signed, thresholds: list[Threshold]
):
    site, (_, bert, _) = signed.site, signed.strangers
    verifier = site.verifier
    verifier.enrol("bert", bert[:3])
    kept = verifier.gallery.images("bert")
    assert kept.dtype == np.uint8 and kept.shape == (3, 128, 128)
    np.testing.assert_array_equal(kept[0], read_signature(bert[0]).ink)
    before = verifier.gallery.get("bert")
    assert verifier.renew(["bert"]).renewed == ("bert",)
    after = verifier.gallery.get("bert")
    assert (after.protected != before.protected).any() and after.length == 256
    assert verifier.verify("bert", bert[4]).match
    assert forget(site.config, site.desk, "bert").in_training_data is False
    assert site.store.items.get(IMAGES, "bert") is None
    with pytest.raises(NotFoundError):
        verifier.verify("bert", bert[4])


def test_kept_palms_are_made_no_templates_of_signatures_from(
    signed: Signed, thresholds: list[Threshold]
):
    """Somebody was enrolled by an earlier run, of palms; the run in use is of signatures."""
    site = signed.site
    site.store.add_run("palms-0", make_plan())
    site.verifier.enrol("dora", signed.strangers[2][:3])
    known = replace(site.verifier.gallery.get("dora"), run_id="palms-0", model="00")
    with site.store.transaction() as db:
        site.verifier.gallery.put(db, known, bytes(32), palm(1)[None])
    assert "dora" in site.verifier.renew().without_images
    with pytest.raises(NotFoundError, match="that show a signature"):
        site.verifier.renew(["dora"])
    assert site.verifier.gallery.get("dora").to_bytes() == known.to_bytes()


def test_no_error_about_a_signature_speaks_of_palms(signed: Signed, thresholds: list[Threshold]):
    verifier, (anna, _, _) = signed.site.verifier, signed.strangers
    blot = np.full((200, 300), 255, np.uint8)
    blot[60:140, 90:220] = 20
    blank = np.full((200, 300), 255, np.uint8)
    tiny = np.asarray(_shrunk(anna[0], 10))
    before = verifier.attempts.counts().get(FAILURES_TO_ACQUIRE, 0)
    for image in (blot, blank, tiny, b"nothing"):
        with pytest.raises((DataError, QualityError)) as refused:
            verifier.enrol("nobody", [image])
        said = " ".join((refused.value.what, refused.value.safe, refused.value.next_step))
        assert "palm" not in said and "signature" in said
    assert verifier.attempts.counts()[FAILURES_TO_ACQUIRE] == before + 4


def test_a_signature_of_another_writer_among_those_of_one_is_told(
    signed: Signed, thresholds: list[Threshold]
):
    anna, bert, _ = signed.strangers
    done = signed.site.verifier.enrol("eve", [*anna[:3], bert[0]], mode="open")
    assert "image 4 does not match the others: another writer?" in done.warnings


def _shrunk(path: Path, factor: int):
    from PIL import Image

    with Image.open(path) as image:
        return image.resize((image.width // factor, image.height // factor))


def test_the_commands_say_it_in_words_and_in_json(signed: Signed):
    site, (anna, bert, _) = signed.site, signed.strangers
    home = ["--home", str(site.home.path)]

    def run(*args: str) -> Result:
        site.store.close()
        try:
            return CliRunner().invoke(main, [*args, *home])
        finally:
            site.reopen()

    done = run("calibrate", "--fmr", "0.1", "--json")
    assert done.exit_code == 0, done.output
    first = json.loads(done.stdout)["thresholds"][0]
    assert {one["kind"] for one in first["passing"]} == {"random", "simple", "skilled"}
    assert run("enrol", "bert", *map(str, bert[:3])).exit_code == 0
    assert run("verify", "bert", str(bert[4])).exit_code == 0
    refused = run("verify", "bert", str(anna[4]))
    assert refused.exit_code == NO_MATCH and "0.1 of random claims" in refused.stdout
    listed = run("subjects").stdout
    assert "of simple forgeries pass" in " ".join(listed.split())
    weak = run("calibrate", "--fmr", "0.3", "--against", "skilled", "--mode", "open")
    assert weak.exit_code == ConfigError.exit_code and "30% of skilled forgeries" in weak.stderr
