"""A site that trains FedMH on its signatures: what it keeps, what it measures, and what cannot leave."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageDraw

from fedpalm.data.trained_signatures import TrainedImage, TrainedSignatures
from fedpalm.errors import ConfigError, DataError, EgressRefusedError
from fedpalm.evaluation.claim_file import read_claims
from fedpalm.evaluation.signatures import evaluate_claims
from fedpalm.groups import foreign_to
from fedpalm.methods.base import RoundContext
from fedpalm.methods.site import build_site_method
from fedpalm.plan import Continues, Plan
from participant.cli import main
from participant.evaluate import ModelChoice
from participant.evaluate_signatures import evaluate_signatures
from participant.images import split_signature_records, training_signatures
from participant.trained_on import keep_trained_on, trained_on
from participant.trainer import Trainer
from tests.support.participant import FEDERATION, Site
from tests.support.rounds import RUN, Chain
from tests.unit.methods.signature_sites import fedmh_plan

BACKBONES = {"east": "signet", "north": "resnet", "south": "compnet", "west": "signet"}
METRICS = {
    "guidance.cosine", "guidance.user_weight", "guidance.opposed", "augmentation.copies",
    "probe.user_before", "probe.user_after", "probe.forged_before", "probe.forged_after",
    "eta.projection", "eta.task", "distance.projection", "distance.task",
}  # fmt: skip


def plan_of_four() -> Plan:
    """Only the signets' trunk is shared; that of north stays there."""
    made = fedmh_plan(backbones=BACKBONES, shared=["signet"], training={"batch_size": 8})
    return Plan.model_validate(made.model_dump() | {"federation": FEDERATION})


class SignatureSite(Site):
    """A site whose trainer builds what it would in the agent."""

    def __init__(self, home, on_step=lambda step: None) -> None:
        super().__init__(home, on_step)
        self.trainer = Trainer(self.config, self.store)

    def train(self, chain, number, shared):
        """Train a round and encode what leaves; nothing is stored yet."""
        manifest = self.asked(chain, number)
        update, state = self.trainer.train(RUN, chain.plan, number, shared, self.gate.budget)
        encoded = self.encode(manifest, update, shared, state)
        return update, state, encoded

    def asked(self, chain, number):
        if number > len(chain.asked):
            chain.asked.append(chain.ask(self, number, signers=("east", "west")))
        return chain.asked[number - 1]

    def encode(self, manifest, update, shared, state):
        layout = self.trainer.prepare(RUN, manifest_plan(self)).layout
        model = bytes.fromhex(manifest.model_hash)
        return self.gate.encode_update(
            RUN, manifest.round, model, layout, update, shared=shared, private=state
        )

    def commit(self, number, update, state, encoded):
        self.store.commit_round(RUN, number, state, encoded, metrics=update.metrics)
        self.trainer.committed(number)


def manifest_plan(site: Site) -> Plan:
    run = site.store.run(RUN)
    assert run is not None
    return run.plan


@pytest.fixture
def north(world, signatures):
    """The home of a site with signatures and a backbone, that takes part in a run."""
    home = world.home("north")
    home.save(home.load().model_copy(update={"data": signatures, "backbone": "resnet"}))
    site = SignatureSite(home)
    world.agreed(site, plan_of_four())
    yield site
    site.store.close()


@pytest.fixture
def chain(world):
    made = Chain(world, plan_of_four())
    made.asked = []
    return made


def keep_model(site: Site, number: int, shared: np.ndarray) -> None:
    raw = shared.astype("<f4").tobytes()
    digest = hashlib.sha256(raw).digest()
    site.store.model_path(digest).write_bytes(raw)
    site.store.add_model(RUN, number, digest, keep=3)


def test_what_a_run_trained_on_first_stays(north):
    first, later = (TrainedSignatures((TrainedImage(2 * one, one, "", True),)) for one in "ab")
    for trained in (first, later):
        keep_trained_on(north.store, RUN, trained)
    assert trained_on(north.store, RUN, manifest_plan(north)) == first


def test_a_training_that_was_killed_is_repeated_bit_for_bit_from_what_is_stored(north, chain):
    plan = chain.plan
    alone = build_site_method(plan, "north", training_signatures(north.config.data, "north"))
    shared = alone.initial_vector()
    expected = [alone.train_round(RoundContext(number, 2), shared) for number in (1, 2)]

    update, state, encoded = north.train(chain, 1, shared)
    north.commit(1, update, state, encoded)
    assert update.delta.tobytes() == expected[0].delta.tobytes()
    chain.head = replace(chain.head, model_hash=plan.initial_model)
    north.train(chain, 2, shared)
    north.store.close()

    again = SignatureSite(north.home)
    update, state, encoded = again.train(chain, 2, shared)
    assert update.delta.tobytes() == expected[1].delta.tobytes()
    assert {n: v.tobytes() for n, v in state.items()} == {
        n: v.tobytes() for n, v in alone.state().items()
    }
    again.commit(2, update, state, encoded)
    assert again.store.metrics(RUN).keys() == {1, 2}
    # What stays is sealed: neither the writers' head nor the own trunk lies in the home.
    secrets = [one.tobytes()[:256] for one in state.values() if one.nbytes >= 256]
    files = [path.read_bytes() for path in again.home.state.iterdir() if "update" not in path.name]
    assert files and not any(secret in data for secret in secrets for data in files)
    again.store.close()


@pytest.fixture
def trained(north, chain):
    shared = north.trainer.prepare(RUN, chain.plan).initial_vector()
    return north, chain, shared, *north.train(chain, 1, shared)


def with_newcomers(site: Site) -> Site:
    """The home with two more writers in its list, by whose rank others than before would train."""
    data = site.config.data
    listed, trained = Path(data.source), split_signature_records(data, "north").writers
    text, images = listed.read_text(), [listed.parent / f"new-{number}.png" for number in range(6)]
    for number, path in enumerate(images):
        image = Image.new("L", (300, 120), 255)
        ImageDraw.Draw(image).line([(20, 20 + number), (250, 90), (40, 100)], width=4)
        image.save(path)
    for number in range(50):
        lines = [f"{path}\tnew-{number}-{at // 3}\tgenuine\n" for at, path in enumerate(images)]
        listed.write_text(text + "".join(lines))
        if split_signature_records(data, "north").writers != trained:
            return SignatureSite(site.home)
    raise AssertionError("no newcomers would train")


def test_whoever_joins_the_folder_during_a_run_changes_nothing_of_what_trains(north, chain):
    data = north.config.data
    trained = split_signature_records(data, "north")
    shared = north.trainer.prepare(RUN, chain.plan).initial_vector()
    assert trained_on(north.store, RUN, chain.plan) is None
    update, state, encoded = north.train(chain, 1, shared)
    north.commit(1, update, state, encoded)
    expected, *_ = north.train(chain, 2, shared)
    north.store.close()

    again = with_newcomers(north)
    found, *_ = again.train(chain, 2, shared)
    assert found.delta.tobytes() == expected.delta.tobytes()
    keep_model(again, 1, shared)
    report = evaluate_signatures(
        again.config, again.store, run_id=RUN, choice=ModelChoice(), references=None, seed=0
    )
    assert report.closed_set.writers == 2 and report.open_set.writers == 4
    # A run that goes on from this one goes on with those who trained in it.
    first = again.store.run(RUN).plan
    after = first.model_copy(
        update={
            "continues": Continues(
                run=RUN, rounds_done=1, model=first.initial_model, plan_hash=first.hash.hex()
            )
        }
    )
    assert trained_on(again.store, "later", after) == trained_on(again.store, RUN, first)
    assert trained_on(again.store, "other", first) is None
    # What trained is not there: training says so, and no round is lost by it.
    gone = str(trained.train[0].path)
    listed = Path(data.source)
    lines = listed.read_text().splitlines()
    listed.write_text("\n".join(line for line in lines if not line.startswith(gone)) + "\n")
    again.store.close()
    missing = SignatureSite(north.home)
    with pytest.raises(DataError, match=f"{trained.train[0].writer}: 1 missing") as refused:
        missing.train(chain, 2, shared)
    assert "put them back" in refused.value.next_step
    missing.store.close()


def part(plan: Plan, tensor: str) -> slice:
    begin = 0
    for spec in plan.model_layout.tensors:
        if spec.name == tensor:
            return slice(begin, begin + spec.size)
        begin += spec.size
    raise AssertionError(tensor)


@pytest.mark.parametrize(
    ("private", "shared_as", "begin"),
    [
        ("head.user.prototypes", "open_set.trunk.signet.feature.bias", 0),
        ("head.user.prototypes", "open_set.projection.weight", 1000),
        ("private.trunk.resnet.block3.skip.weight", "open_set.task.hidden.weight", 0),
        ("private.trunk.resnet.block2.conv1.weight", "open_set.trunk.signet.conv3.weight", 0),
        ("private.trunk.resnet.block0.conv0.weight", "open_set.projection.weight", 131072 - 2304),
    ],
)
def test_no_private_tensor_leaves_under_the_name_of_a_shared_one(
    trained, private, shared_as, begin
):
    site, chain, shared, update, state, _ = trained
    at, manifest = part(chain.plan, shared_as), chain.asked[0]
    at = slice(at.start + begin, at.start + begin + state[private].size)
    for planted in (state[private].ravel(), state[private].ravel() - shared[at]):
        delta = update.delta.copy()
        delta[at] = planted
        with pytest.raises(EgressRefusedError, match=f"values of the private tensor {private}"):
            site.encode(manifest, replace(update, delta=delta), shared, state)


def test_what_leaves_is_of_the_sites_groups_and_says_nothing_of_how_it_trained(trained):
    site, chain, shared, update, state, encoded = trained
    values = np.frombuffer(bytes(encoded.payload), "<u4")
    groups = chain.plan.parameter_groups
    assert len(values) == chain.plan.model_layout.size + len(groups)
    for group in foreign_to("north", groups):
        assert not values[group.span].any()
    other = replace(update, metrics=dict.fromkeys(update.metrics, 7.0))
    assert site.encode(chain.asked[0], other, shared, state).payload == encoded.payload


def test_how_a_round_went_is_shown_at_the_site(trained):
    site, _, _, update, state, encoded = trained
    site.commit(1, update, state, encoded)
    run = json.loads(
        CliRunner().invoke(main, ["status", "--home", str(site.home.path), "--json"]).stdout
    )["run"]
    shown = run["metrics"]
    assert run["metrics_by_round"] == {"1": shown}
    assert shown == pytest.approx(dict(update.metrics)) and shown.keys() >= METRICS
    told = CliRunner().invoke(main, ["status", "--home", str(site.home.path)]).stdout
    for name in METRICS:
        assert f"{name} {update.metrics[name]:.4g}" in told


def test_a_site_measures_each_kind_of_forgery_for_its_own_and_for_open_writers(trained, tmp_path):
    site, _, shared, update, state, encoded = trained
    keep_model(site, 0, shared)
    keep_model(site, 1, shared + update.delta)
    site.commit(1, update, state, encoded)
    split = split_signature_records(site.config.data, "north")

    def evaluate(*more):
        done = CliRunner().invoke(main, ["evaluate", "--home", str(site.home.path), *more])
        return done.exit_code, done.stdout

    code, stdout = evaluate("--json")
    found = json.loads(stdout)
    assert code == 0, stdout
    assert (found["method"], found["backbone"], found["state_round"]) == ("fedmh", "resnet", 1)
    for half, trial in ((found["closed_set"], split.closed), (found["open_set"], split.open)):
        assert (half["writers"], half["references"]) == (2, 2)
        assert half["forgeries"].keys() == {"random", "skilled"}
        for kind, report in half["forgeries"].items():
            assert report["genuine"] == len(trial.genuine)
            assert report["forged"] == len(getattr(trial, kind))
            assert 0 <= report["eer_interval"][0] <= report["eer"] <= report["eer_interval"][1] <= 1
    assert json.loads(evaluate("--references", "1", "--json")[1])["open_set"]["references"] == 1
    code, stdout = evaluate("--references", "3", "--json")
    assert code == DataError.exit_code and "3 references" in json.loads(stdout)["error"]["what"]
    assert "skilled" in evaluate()[1]
    assert evaluate("--open-set", "a", "b")[0] == 2
    # Scores of claims, for whoever may pool them: the same rates follow, and no writer is named.
    path = tmp_path / "scores.json"
    assert json.loads(evaluate("--scores", str(path), "--json")[1]) == found
    for mode, claims in read_claims(path).items():
        again = {kind: one.to_json() for kind, one in evaluate_claims(claims, seed=0).items()}
        assert again == found[f"{mode}_set"]["forgeries"]
    assert not any(name in path.read_text() for name in (*split.writers, *split.open_writers))

    first, again = (
        evaluate_signatures(
            site.config, site.store, run_id=RUN, choice=ModelChoice(round=number),
            references=None, seed=0,
        )
        for number in (0, 1)
    )  # fmt: skip
    assert (first.model["round"], again.model["round"]) == (0, 1)
    assert again.to_json() == found


def test_a_run_is_not_evaluated_on_images_of_something_else(trained, tmp_path):
    site, *_ = trained
    data = site.config.data.model_copy(update={"modality": "palm", "kind": "auto"})
    with pytest.raises(ConfigError, match="trains on signatures"):
        evaluate_signatures(
            site.config.model_copy(update={"data": data}), site.store, run_id=RUN,
            choice=ModelChoice(), references=None, seed=0,
        )  # fmt: skip


def test_preflight_counts_signatures_by_use(north):
    done = CliRunner().invoke(main, ["preflight", "--home", str(north.home.path), "--json"])
    found = json.loads(done.stdout)
    assert (found["modality"], found["images"], found["forged"]) == ("signature", 28, 12)
    assert (found["training_signatures"], found["training_forgeries"]) == (4, 4)
    assert (found["closed_writers"], found["open_writers"]) == (2, 2)
    assert found["forgeries_tried"]["open"] == {"random": 4, "simple": 0, "skilled": 6}
