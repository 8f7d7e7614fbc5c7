"""What really travels: every message of a whole run, read in the clear by a tap, and searched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import load, load_file

from fedpalm.plan import CodecSettings
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.wire.v1.federation_pb2 import UploadRequest
from participant.config import Home
from participant.store import file_purpose
from participant.vault import Vault
from participant.vault_secret import KeyFile

from .harness import RealFederation, run_cli, run_json
from .wire_tap import WireTap

NEEDLE_VALUES = 6
STRIDE = 499
PROBE = 256
BLOCK = 4096
STEP = BLOCK - PROBE + 1
ROUNDS = 3


def _needles(values: np.ndarray) -> set[bytes]:
    """Runs of six neighbouring float32 values from all over a tensor; constant runs tell nothing."""
    flat = values.astype("<f4").reshape(-1)
    runs = (flat[at : at + NEEDLE_VALUES] for at in range(0, flat.size, STRIDE))
    return {run.tobytes() for run in runs if run.size == NEEDLE_VALUES and np.unique(run).size > 2}


def _found(needles: set[bytes], messages: list[bytes]) -> set[bytes]:
    """The needles that occur anywhere in the messages, at any byte offset."""
    prefixes = np.array([int.from_bytes(n[:8], "little") for n in needles], np.uint64)
    possible = np.zeros(1 << 22, bool)
    possible[_slot(prefixes)] = True
    hits: set[bytes] = set()
    for message in messages:
        for shift in range(min(8, len(message) // 8)):
            words = np.frombuffer(message, "<u8", (len(message) - shift) // 8, shift)
            for word in np.flatnonzero(possible[_slot(words)]):
                at = shift + 8 * int(word)
                hits.add(message[at : at + 4 * NEEDLE_VALUES])
    return hits & needles


def _slot(words: np.ndarray) -> np.ndarray:
    """22 mixed bits of each word: a table lookup that leaves few words to compare in full."""
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(42)


def _updates(tap: WireTap, sites: int, model: Path) -> list[np.ndarray]:
    """The delta of every update that the site sent, as whoever holds the plan can read it."""
    parameters = sum(tensor.size for tensor in load_file(model).values())
    codec = FixedPointCodec(sites, parameters, CodecSettings().clip_abs, CodecSettings().max_weight)
    deltas = []
    for method, parts in tap.calls:
        if method.endswith("/UploadUpdate"):
            requests = [UploadRequest.FromString(part) for part in parts[1:]]
            encoded = np.frombuffer(b"".join(r.chunk.data for r in requests), "<u4")
            weight = codec.decode_stats(encoded[parameters:])["weight"]
            deltas.append(codec.decode_deltas(encoded[:parameters]) / weight)
    return deltas


def _resembles(update: np.ndarray, probes: list[np.ndarray]) -> bool:
    """Whether a probe, scaled and rounded, lies anywhere in the update (correlation above 0.99).

    Overlap-save: correlations with blocks that share all but their first STEP values with the next.
    """
    places = update.size - PROBE + 1
    padded = np.zeros(-(-places // STEP) * STEP + PROBE - 1)
    padded[: update.size] = update
    sums = np.concatenate([[0.0], np.cumsum(padded**2)])
    norms = np.sqrt(np.maximum(sums[PROBE:] - sums[:-PROBE], 1e-30)).reshape(-1, STEP)
    spectra = np.fft.rfft(sliding_window_view(padded, BLOCK)[::STEP])
    for probe in probes:
        turned = np.fft.rfft(probe.astype(np.float64), BLOCK).conj()
        match = np.fft.irfft(spectra * turned, BLOCK)[:, :STEP]
        if (np.abs(match) > 0.99 * norms * np.linalg.norm(probe)).any():
            return True
    return False


class PrivateTensors:
    """Every private tensor that a site persisted while somebody looked."""

    def __init__(self, home: Path) -> None:
        self._home = Home(home)
        self._vault: Vault | None = None
        self._seen: set[str] = set()
        self.tensors: dict[str, np.ndarray] = {}
        self.needles: set[bytes] = set()

    def look(self) -> None:
        if not self._home.vault_header.exists():
            return
        if self._vault is None:
            self._vault = Vault(self._home, KeyFile(self._home.vault_key), in_use=True)
        for path in self._home.state.glob("*.safetensors"):
            # A state that was replaced between the listing and the reading is seen next time.
            with contextlib.suppress(OSError):
                if str(path) not in self._seen:
                    data = self._vault.open(file_purpose(path.name), path.read_bytes())
                    for name, tensor in load(data).items():
                        self.tensors[name] = tensor
                        self.needles |= _needles(tensor)
                    self._seen.add(str(path))


@pytest.mark.timeout(900)
def test_no_head_no_closed_set_tensor_and_no_expert_in_the_clear_ever_travels(
    federation: Callable[..., RealFederation],
    plan_and_model: Callable[..., tuple[Path, Path]],
    palm_lists: list[Path],
    request: pytest.FixtureRequest,
) -> None:
    plan, model = plan_and_model("fedpalm", ROUNDS)
    run = federation("tapped", "site-1", "site-2")
    run.found()
    run.serve()
    taps: dict[str, WireTap] = {}
    watching = ExitStack()
    request.addfinalizer(watching.close)
    private = {site: PrivateTensors(run.site_home(site)) for site in run.sites}
    for site, images in zip(run.sites, palm_lists, strict=True):
        run.enrol(site, images)
        tap = WireTap(run.site_home(site) / "tls", run.coordinator_home / "tls", run.address)
        taps[site] = watching.enter_context(tap)
        config = run.site_home(site) / "participant.toml"
        config.write_text(config.read_text().replace(run.address, taps[site].address))
    run.submit(plan, model)
    for site in run.sites:
        run.run_site(site)
    run.operator("start")

    def look_until(state: str, *path: str) -> Callable[[], bool]:
        def check() -> bool:
            for one in private.values():
                one.look()
            status = run.status_or_none()
            for key in path:
                status = status[key]
            return bool(status["state"] == state)

        return check

    run.wait_for(look_until("completed"), "the run")
    run.operator("exchange", "start")
    for site in run.sites:
        run.wait_for(
            lambda site=site: (
                run_cli(
                    "participant", "exchange", "approve", "--home", run.site_home(site), ok=False
                ).returncode
                == 0
            ),
            f"{site}'s yes",
        )
    run.wait_for(look_until("completed", "exchange"), "the exchange")
    # Opacus and every other way to run a model here would bring libtorch into the process.
    maps = Path(f"/proc/{run.processes['coordinator'].pid}/maps").read_text()
    assert "grpc" in maps and "torch" not in maps
    run.stop()

    public = [path.read_bytes() for path in (run.coordinator_home / "models").glob("*.f32")]
    model_needles = _needles(load_file(model)["open_set.embedding.weight"])
    for site in run.sites:
        sent, received = taps[site].sent, taps[site].received
        assert len(_found(model_needles, received)) > len(model_needles) // 2, "the tap is blind"

        hidden = {n: t for n, t in private[site].tensors.items() if "head" in n or "closed" in n}
        assert any("head" in n for n in hidden) and any("closed" in n for n in hidden)
        needles = private[site].needles - _found(private[site].needles, public)
        assert len(needles) > 10_000
        at_rest = [
            path.read_bytes()
            for path in run.site_home(site).rglob("*")
            if path.is_file() and path.suffix not in (".f32", ".update")
        ]
        assert not _found(needles, at_rest), "a private tensor lies in the clear"
        assert not _found(needles, sent), "a private tensor travelled"
        assert not _found(needles, received), "a private tensor came back in the clear"

        updates = _updates(taps[site], len(run.sites), model)
        assert len(updates) == ROUNDS
        probes = [t.reshape(-1)[:PROBE] for t in hidden.values() if t.size >= PROBE]
        smuggled = updates[-1].copy()
        smuggled[1_000_000 : 1_000_000 + PROBE] = probes[0]
        assert _resembles(smuggled, probes[:1]), "the search is blind"
        assert not _resembles(updates[-1], probes), "a private tensor hides in an update"

        log = run_json("participant", "egress", "--home", run.site_home(site))
        logged = sum(entry["bytes"] for entry in log["entries"])
        spent = taps[site].encrypted_bytes_sent
        # TLS and HTTP/2 frames cost below 1 %; pings and acknowledgements a little per second.
        assert logged <= spent <= logged * 1.01 + 128_000, "bytes beside the log"
