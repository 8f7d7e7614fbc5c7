"""A canned result with the shape of a real one; what is built from it runs through the real code."""

from __future__ import annotations

import math

import pytest

from fedpalm.cli.demo.figures import (
    Claim,
    Curve,
    Egress,
    Estimate,
    InUse,
    LearningPoint,
    OpenReport,
    Point,
    Report,
    SiteReport,
    SiteRound,
)
from fedpalm.cli.demo.settings import SIGNATURE_SIZES, SYNTHETIC_SIGNATURES, DemoSettings


def estimate(eer: float, pairs: int = 1000) -> Estimate:
    return Estimate(
        eer=eer, low=eer * 0.8, high=min(1.0, eer * 1.2), genuine=pairs, impostor=39 * pairs
    )


def curve(eer: float) -> Curve:
    power = math.log(1 - eer) / math.log(eer)
    fmr = tuple(10 ** (-4 + 4 * k / 60) for k in range(61))
    return Curve(fmr=fmr, fnmr=tuple(1 - x**power for x in fmr))


def canned_report(eers: dict[str, float], method: str = "fedpalm", rounds: int = 12) -> Report:
    settings = DemoSettings(method=method, rounds=rounds)
    names = settings.contenders
    update = Egress(kind="update", count=rounds, bytes=rounds * 19_975_640)
    masking = tuple(
        Egress(kind=f"masking_{step}", count=rounds, bytes=rounds * 4_000)
        for step in ("keys", "boxes", "agreement", "reveal")
    )
    exchange = (
        (
            Egress(kind="consent", count=1, bytes=1_200),
            Egress(kind="sealed_expert", count=3, bytes=3 * 92_000),
        )
        if method == "fedpalm"
        else ()
    )
    return Report(
        name="canned",
        created="2026-01-02 03:04 UTC",
        command="fedpalm demo --seed 0",
        settings=settings,
        versions={"fedpalm": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
        machine={"cpus": 2, "platform": "Linux x86_64"},
        run_id="demo-0a1b2c3d",
        plan_hash="ab" * 32,
        model_hash="cd" * 32,
        parameters=4_993_909,
        expert_parameters=22_899 if method == "fedpalm" else 0,
        confidence=0.95,
        sites=tuple(
            SiteReport(
                site=site,
                training_identities=10,
                open_identities=10,
                images=200,
                closed={name: estimate(eers[name] / 10, 250) for name in names},
                egress=(update, *masking, *exchange),
            )
            for site in settings.site_names
        ),
        open_set=OpenReport(
            identities=40,
            images=400,
            estimates={name: estimate(eers[name]) for name in names},
            local_by_site={site: estimate(eers["local"]) for site in settings.site_names},
            curves={name: curve(eers[name]) for name in names},
            convergence={
                name: tuple(
                    Point(round=r, eer=eers[name] + 0.25 * math.exp(-r / 4))
                    for r in range(0, rounds + 1, 2)
                )
                for name in names
            },
        ),
        in_use=InUse(
            site="site-1",
            threshold=0.6125,
            target_fmr=0.05,
            fmr=0.046,
            fmr_interval=(0.02, 0.09),
            fnmr=0.125,
            fnmr_interval=(0.05, 0.2),
            impostor_pairs=270,
            genuine=Claim(score=0.7123, match=True),
            impostor=Claim(score=0.5311, match=False),
        ),
        timings_s={"training": 151.0, "exchange": 6.2, "comparisons": 80.0, "whole demo": 243.0},
        files={"figures": "report.json", "global models": "models/round-12.safetensors"},
    )


def canned_signatures(
    eers: dict[str, dict[str, float]], data: str = SYNTHETIC_SIGNATURES
) -> Report:
    """``eers`` by kind of forgery, then contender."""
    plain = canned_report({"fedpalm": 0.1, "fedavg": 0.1, "local": 0.1})
    settings = DemoSettings(method="fedmh", data=data, **SIGNATURE_SIZES)
    rates = {
        kind: {name: estimate(eer, 200) for name, eer in own.items()} for kind, own in eers.items()
    }
    others = {kind: own for kind, own in rates.items() if kind != "random"}
    groups = {"trunk.signet": settings.site_names[:3], "projection": settings.site_names}
    rounds = tuple(
        SiteRound(
            round=number,
            user_loss=20.0 - number,
            forged_loss=0.7,
            etas={"projection": 0.75},
            cosine=-0.125,
            user_weight=0.375,
            opposed=0.5,
        )
        for number in range(1, settings.rounds + 1)
    )
    sites = tuple(
        SiteReport(
            site=site,
            backbone=settings.backbones[site],
            training_identities=6,
            open_identities=6,
            images=288,
            closed=rates["random"],
            closed_forgeries=others,
            open=rates["random"],
            open_forgeries=others,
            rounds=rounds,
            egress=plain.sites[0].egress[:5],
        )
        for site in settings.site_names
    )
    learning = tuple(
        LearningPoint(round=one.round, user=20.0 - one.round, forged=0.7) for one in rounds
    )
    open_set = OpenReport(
        identities=36,
        images=864,
        references=3,
        estimates=rates["random"],
        forgeries=others,
        one_threshold={
            kind: {name: estimate(eer + 0.05, 200) for name, eer in own.items()}
            for kind, own in eers.items()
        },
        learning=dict.fromkeys(settings.contenders, learning),
    )
    assert plain.in_use is not None
    forgery = {"forgery": Claim(score=0.6543, match=True), "forgery_kind": list(eers)[-1]}
    return plain.model_copy(
        update={
            "settings": settings,
            "parameters": 655_945,
            "expert_parameters": 0,
            "groups": groups,
            "sites": sites,
            "open_set": open_set,
            "in_use": plain.in_use.model_copy(update=forgery),
        }
    )


@pytest.fixture
def report() -> Report:
    return canned_report({"fedpalm": 0.121, "fedavg": 0.138, "local": 0.262})
