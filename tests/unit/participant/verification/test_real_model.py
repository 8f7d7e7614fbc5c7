"""A model that was really trained, on synthetic palms: strangers to it are enrolled, and verified by it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedpalm.data.loading import load_images
from fedpalm.data.palms import synthetic_palms
from fedpalm.data.records import by_identity
from fedpalm.data.roi import read_roi, standardise
from fedpalm.data.splits import write_list
from fedpalm.methods.base import SiteImages, SiteMethod, Tensors
from fedpalm.methods.site import build_site_method
from fedpalm.methods.template import model_template
from fedpalm.pki.bundle import load_tls_identity
from fedpalm.plan import Plan, PlanDraft
from fedpalm.transport.verification import VerificationConnection
from fedpalm.wire.v1.verification_pb2 import VerifyRequest
from participant.images import split_records
from participant.store import StoredRun
from participant.trainer import Trainer
from participant.verification.applications import Applications
from participant.verification.model import ModelId, StoredModel
from participant.verification.verifier import Verifier
from tests.support.aio import in_loop
from tests.support.participant import FEDERATION, SITES, World
from tests.support.verification import VerifyingSite, train_alone

RUN = "palms-1"
PEOPLE, TOUCHES = 19, 4
STRANGERS = (0, 6, 7)
"""Who of these people are kept out: three whose palms differ clearly, as most do."""
DIFFICULTY = 0.3
"""Of the palms: two short rounds on eight people do not learn to tell hard ones."""


def _plan(rounds: int = 2, **training: object) -> Plan:
    draft = PlanDraft(
        name="palms",
        method="fedpalm",
        rounds=rounds,
        expert_exchange="deployment",
        training={"local_epochs": 6, "batch_size": 8, "learning_rate": 3e-3, **training},
    )
    template = model_template("fedpalm", draft.training, draft.seed)
    return Plan(
        federation=FEDERATION,
        draft=draft,
        roster=SITES,
        layout=tuple(template.layout.to_json()),
        expert_layout=tuple(template.expert_layout.to_json()),
        initial_model=hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
    )


def _with_another_sites_expert(method: SiteMethod) -> Tensors:
    expert = {name: one * np.float32(1.01) for name, one in method.expert().items()}
    method.receive_expert("west", expert)
    return method.state()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """A site that trained on half of its people, and images of people whom it never saw."""
    folder = tmp_path_factory.mktemp("real")
    (records,) = synthetic_palms(folder / "cache", 1, PEOPLE, TOUCHES, 3, DIFFICULTY, 0.0)
    groups = list(by_identity(records).values())
    known = [record for at, group in enumerate(groups) if at not in STRANGERS for record in group]
    write_list(known, folder / "known.txt")
    site = VerifyingSite(World(folder), palms=folder / "known.txt")
    train_alone(site, RUN, _plan(), _with_another_sites_expert)
    yield site, [[record.path for record in groups[at]] for at in STRANGERS]
    site.store.close()


@pytest.fixture(scope="module")
def calibrated(trained):
    """The same, with a threshold for each mode."""
    site, _ = trained
    assert [one.mode for one in site.verifier.calibrate(0.03)] == ["closed", "open"]
    return trained


def test_somebody_nobody_trained_on_is_enrolled_and_told_from_others(calibrated):
    site, (anna, bert, cleo) = calibrated
    done = site.verifier.enrol("anna", anna[:3])
    assert done.mode == "open" and done.images == 3
    genuine = site.verifier.verify("anna", anna[3])
    impostors = [site.verifier.verify("anna", path) for path in (bert[0], cleo[0])]
    assert genuine.match
    assert not any(one.match for one in impostors)
    assert genuine.score > max(one.score for one in impostors)
    assert site.verifier.identify(anna[3]).subject == "anna"
    assert site.verifier.identify(bert[0]).subject is None


def test_templates_are_those_of_the_trainers_own_method(trained):
    """Built without one training image, the method gives bit for bit what training's own gives."""
    site, _ = trained
    model = site.verifier.stored_model
    built = model.build(site.store)
    assert built._method.images.images.shape[0] == 0  # type: ignore[attr-defined]
    split = split_records(site.config.data, site.config.site, "none")
    probes = split.open_probe[:3]
    images = load_images(probes).images
    method = Trainer(site.config, site.store).resume(RUN, model.run.plan)
    shared = site.store.load_model(model.shared_hash, model.run.plan.model_layout)
    greys = np.stack([read_roi(record.path).grey for record in probes])
    for mode, make in (("closed", method.closed_templates), ("open", method.open_templates)):
        np.testing.assert_array_equal(built.templates(mode, greys), make(images, shared))
    assert set(method._received) == {"west"}


def test_a_model_that_was_trained_privately_is_built_without_images_too(trained):
    """Its head is a public code: how many people have places in it is all that the state needs."""
    site, _ = trained
    plan = _plan(privacy={"unit": "subject", "steps": 1, "sampling_rate": 1.0, "population": 5})
    nobody = SiteImages(np.empty((0, 1, 128, 128), np.float32), np.empty(0, np.int64), 5)
    shared = model_template("fedpalm", plan.draft.training, plan.draft.seed).initial
    method = build_site_method(plan, "north", nobody)
    raw = shared.astype("<f4").tobytes()
    digest = hashlib.sha256(raw).digest()
    site.store.model_path(digest).write_bytes(raw)
    run = StoredRun("private-1", plan, "completed", digest, "")
    model_id = ModelId("private-1", 1, "00")
    stored = StoredModel(model_id, run, digest, method.state(), site.config)
    greys = np.full((2, 128, 128), 9, dtype=np.uint8)
    greys[:, ::2] = 200
    images = np.stack([standardise(one) for one in greys])
    made = stored.build(site.store).templates("closed", greys)
    np.testing.assert_array_equal(made, method.closed_templates(images, shared))


@in_loop
async def test_the_service_is_a_process_that_an_application_calls(calibrated, tmp_path: Path):
    site, (_, bert, cleo) = calibrated
    site.verifier.enrol("bert", bert[:3])
    Applications(site.config, site.store).allow("door", tmp_path / "door")
    tls = load_tls_identity(tmp_path / "door", now=time.time())
    service = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "participant", "serve", "--listen", "127.0.0.1:0"),
        *("--home", str(site.home.path), "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert service.stdout is not None
        address = json.loads(await service.stdout.readline())["listening"]
        async with VerificationConnection(address, tls) as connection:
            call = connection.verification.Verify

            async def asked(path: Path) -> bool:
                request = VerifyRequest(subject="bert", image=path.read_bytes())
                return (await connection.unary(call, request, deadline_s=60.0)).match

            assert await asked(bert[3])
            assert not await asked(cleo[0])
        service.send_signal(signal.SIGTERM)
        assert await service.wait() == 0
    finally:
        if service.returncode is None:
            service.kill()
            await service.wait()


def test_where_templates_need_the_training_images_they_belong_to_the_model(tmp_path: Path):
    (records,) = synthetic_palms(tmp_path / "cache", 1, 4, 4, seed=4)
    write_list(records, tmp_path / "known.txt")
    site = VerifyingSite(World(tmp_path), palms=tmp_path / "known.txt")
    train_alone(site, RUN, _plan(1, template_normaliser="site", local_epochs=1))
    before = site.verifier
    before.load()
    assert before.looks._built._method.images.images.shape[0] > 0
    split = split_records(site.config.data, site.config.site, "none")
    other = next(r for r in split.open_gallery)
    split.train[0].path.write_bytes(other.path.read_bytes())
    assert Verifier(site.config, site.store).model_id.hash != before.model_id.hash
    site.store.close()
