"""What really travels: every byte of a whole run, read in the clear by a tap, and searched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from .harness import RealFederation, run_cli, run_json
from .wire_tap import WireTap

NEEDLE_BYTES = 24
STRIDE = 97


def _needles(values: np.ndarray) -> list[bytes]:
    """Runs of six neighbouring float32 values from all over a tensor; constant runs tell nothing."""
    flat = values.astype("<f4").reshape(-1)
    runs = (flat[at : at + 6] for at in range(0, max(1, flat.size - 6), STRIDE))
    return [run.tobytes() for run in runs if run.size == 6 and np.unique(run).size > 2][:4000]


def _found(needles: list[bytes], haystack: bytes) -> int:
    return sum(needle in haystack for needle in needles)


def _private_tensors(home: Path) -> dict[str, np.ndarray]:
    """Every private tensor that the site ever persisted, from its state folder."""
    files = sorted((home / "state").glob("**/*.safetensors"))
    assert files, f"no private state below {home}"
    return {f"{f.name}:{k}": v for f in files for k, v in load_file(f).items()}


@pytest.mark.timeout(900)
def test_no_head_no_closed_set_tensor_and_no_expert_in_the_clear_ever_travels(
    federation: Callable[..., RealFederation],
    plan_and_model: Callable[..., tuple[Path, Path]],
    palm_lists: list[Path],
) -> None:
    plan, model = plan_and_model("fedpalm", 3)
    run = federation("tapped", "site-1", "site-2")
    run.found()
    run.serve()
    taps: dict[str, WireTap] = {}
    for site, images in zip(run.sites, palm_lists, strict=True):
        run.enrol(site, images)
        taps[site] = WireTap(
            run.site_home(site) / "tls", run.coordinator_home / "tls", run.address
        )
        config = run.site_home(site) / "participant.toml"
        config.write_text(config.read_text().replace(run.address, taps[site].address))
    run.submit(plan, model)
    for site in run.sites:
        run.run_site(site)
    run.operator("start")
    run.wait_for(lambda: run.status_or_none()["state"] == "completed", "the run")
    run.operator("exchange", "start")
    for site in run.sites:
        run.wait_for(
            lambda site=site: run_cli(
                "participant", "exchange", "approve", "--home", run.site_home(site), ok=False
            ).returncode
            == 0,
            f"{site}'s yes",
        )
    run.wait_for(
        lambda: run.status_or_none()["exchange"]["state"] == "completed", "the exchange"
    )
    run.stop()

    exported = run.coordinator_home / "models"
    shared = b"".join(path.read_bytes() for path in exported.glob("*.f32"))
    for site in run.sites:
        taps[site].close()
        sent = b"\n".join(m for r in taps[site].sent for m in r.messages().values())
        received = b"\n".join(m for r in taps[site].received for m in r.messages().values())
        model_needles = _needles(load_file(model)["open_set.embedding.weight"])
        assert _found(model_needles, received) > len(model_needles) // 2, "the tap is blind"

        private = _private_tensors(run.site_home(site))
        assert any("head" in name for name in private)
        assert any("closed" in name for name in private)
        searched = 0
        for name, tensor in private.items():
            needles = [n for n in _needles(tensor) if n not in shared]
            searched += len(needles)
            assert _found(needles, sent) == 0, f"{name} of {site} travelled"
            assert _found(needles, received) == 0, f"{name} reached {site} in the clear"
        assert searched > 1000

        log = run_json("participant", "egress", "--home", run.site_home(site))
        logged = sum(entry["bytes"] for entry in log["entries"])
        assert logged <= len(sent) <= logged * 1.01 + 64_000, "bytes beside the log"
