"""The guide from end to end, with real processes: train privately, sanction, exchange, and verify people.

Four sites, masked and with differential privacy; what the guides for operators, sites and verification tell
their readers to type, in that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpalm.data.palms import synthetic_palms
from fedpalm.data.records import by_identity
from fedpalm.data.splits import split_site, write_list

from .harness import RealFederation, run_cli, run_json

SITES = ("amber", "birch", "cedar", "dogwood")
PEOPLE, IMAGES = 16, 4
NO_MATCH = 17
PURPOSE = "to verify people at every site"
PLAN = """
name = "deployment"
method = "fedpalm"
rounds = 1
quorum = 3
masking = "secagg"
join_deadline_s = 60
round_deadline_s = 300

[training.privacy]
unit = "subject"
noise_multiplier = 1.0
sampling_rate = 0.2
steps = 1
records = 1
trains = "expert"
population = 16
"""
POLICY = """
auto_approve = true
masking = "required"
privacy = "required"
max_epsilon = 20
delta = 1e-3
people = 16
"""


@pytest.mark.timeout(900)
def test_from_training_to_the_verification_of_somebody_whom_nobody_trained_on(
    federation: Callable[..., RealFederation], tmp_path: Path
) -> None:
    palms = synthetic_palms(
        tmp_path / "palms", sites=4, identities_per_site=PEOPLE, images_per_identity=IMAGES, seed=5
    )
    run = federation("deployment", *SITES)
    run.found()
    run.serve()
    for site, records in zip(SITES, palms, strict=True):
        write_list(records, tmp_path / f"{site}.txt")
        run.enrol(site, tmp_path / f"{site}.txt", POLICY)
    plan, model = tmp_path / "plan.toml", tmp_path / "initial.safetensors"
    plan.write_text(PLAN)
    run_cli("fedpalm", "model", "init", plan, "--out", model)
    run_id = run.submit(plan, model)
    for site in SITES:
        run.run_site(site)
    run.operator("start")
    run.wait_for(lambda: (run.status_or_none() or {})["state"] == "completed", "the run")

    # The sanction: nothing leaves before every site's person has said yes.
    run.operator("exchange", "propose", "--purpose", PURPOSE)
    homes = {site: run.site_home(site) for site in SITES}
    for site, home in homes.items():
        run.wait_for(lambda h=home: _asked(h), f"{site} to be asked")
        shown = run_json("participant", "exchange", "review", run_id, "--home", home)
        assert shown["purpose"] == PURPOSE and shown["releases"]["privacy_unit"] == "subject"
        assert run.operator("exchange", "status")["exchange"]["state"] == "proposed"
        answered = run_json("participant", "exchange", "approve", run_id, "--home", home)
        assert answered["consent"]["privacy"]["unit"] == "subject"
        assert float(answered["consent"]["privacy"]["epsilon"]) > 0
    run.wait_for(
        lambda: (run.status_or_none() or {})["exchange"]["state"] == "completed", "the exchange"
    )
    run.stop()
    for site, home in homes.items():
        (one,) = run_json("participant", "exchange", "status", "--home", home)["exchanges"]
        assert set(one["received"]) == set(SITES) - {site}
        bundle = tmp_path / f"{site}.bundle"
        run_cli("participant", "audit", "export", "--home", home, "--out", bundle)
        trust = run.coordinator_home / "tls" / "ca.pem"
        run_cli("fedpalm", "audit", "verify", bundle, "--trust", trust)

    # Daily use at one site: somebody of another site, whom nobody trained on.
    home = homes["amber"]
    split = split_site(palms[1], 0, "birch", "subject")
    newcomer, other, *_ = by_identity([*split.open_gallery, *split.open_probe]).values()
    first = newcomer[0].path
    refused = run_cli("participant", "verify", "newcomer", first, "--home", home, ok=False)
    assert refused.returncode not in (0, NO_MATCH)
    (threshold,) = run_json(
        "participant", "calibrate", "--mode", "open", "--fmr", "0.1", "--home", home
    )["thresholds"]
    assert threshold["fmr"] <= 0.1 and threshold["impostor_pairs"] >= 30
    images = [record.path for record in newcomer[: IMAGES - 1]]
    run_cli("participant", "enrol", "newcomer", *images, "--home", home)
    genuine = _verify(home, images[0])
    impostors = [_verify(home, record.path) for record in other]
    assert genuine["match"] and genuine["score"] > max(one["score"] for one in impostors)
    assert not all(one["match"] for one in impostors)
    run_cli("participant", "forget", "newcomer", "--home", home)
    assert run_json("participant", "subjects", "--home", home)["subjects"] == []


def _asked(home: Path) -> bool:
    return bool(run_json("participant", "exchange", "status", "--home", home)["exchanges"])


def _verify(home: Path, image: Path) -> dict[str, object]:
    done = run_cli("participant", "verify", "newcomer", image, "--home", home, "--json", ok=False)
    said: dict[str, object] = json.loads(done.stdout)
    assert done.returncode == (0 if said["match"] else NO_MATCH), done.stderr
    return said
