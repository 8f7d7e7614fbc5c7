"""A site that verifies people: a completed run, a projection for a method, patterns for palms."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedpalm.clock import FakeClock
from fedpalm.methods.base import SiteMethod, Tensors
from fedpalm.pki.live import LiveIdentity
from fedpalm.plan import Plan
from participant.config import DataSettings, VerificationSettings
from participant.desk import Desk
from participant.log import SiteLog
from participant.store import NewUpdate, SiteStore
from participant.trainer import Trainer
from participant.verification.verifier import Verifier
from tests.support.participant import LAYOUT, World, make_plan

RUN = "toy-1"


class ProjectingMethod:
    """Templates are what a coarse look at an image gives; closed ones look at it from another side, too."""

    def __init__(self, plan: Plan, site: str, images: object) -> None:
        self.images = images

    def load_state(self, tensors: object) -> None:
        """Nothing is learned."""

    def open_templates(self, images: np.ndarray, shared: np.ndarray) -> np.ndarray:
        coarse = images[:, 0].reshape(-1, 16, 8, 16, 8).mean(axis=(2, 4)).reshape(len(images), -1)
        return (coarse / np.linalg.norm(coarse, axis=1, keepdims=True)).astype(np.float32)

    def closed_templates(self, images: np.ndarray, shared: np.ndarray) -> np.ndarray:
        pair = self.open_templates(images, shared), self.open_templates(images**2, shared)
        return np.concatenate(pair, axis=1) / np.float32(np.sqrt(2))


def palm(person: int, touch: int = 0) -> np.ndarray:
    """(128, 128) uint8: a pattern of the person's own, and what differs from touch to touch."""
    own = np.random.default_rng(person).normal(128, 40, (16, 16))
    noise = np.random.default_rng([person, touch]).normal(0, 12, (128, 128))
    return np.clip(np.kron(own, np.ones((8, 8))) + noise, 1, 255).astype(np.uint8)


def write_palms(folder: Path, people: int = 24, touches: int = 4) -> Path:
    """A data folder of ``p00``, ``p01``, ...: half of them train."""
    for person in range(people):
        (folder / f"p{person:02}").mkdir(parents=True)
        for touch in range(touches):
            Image.fromarray(palm(person, touch)).save(folder / f"p{person:02}" / f"{touch}.png")
    return folder


def palm_file(folder: Path, person: int, touch: int = 0) -> Path:
    path = folder / f"palm-{person}-{touch}.png"
    Image.fromarray(palm(person, touch)).save(path)
    return path


class VerifyingSite:
    """Home, store (on a clock that a test moves), log and verifier of a site whose run is completed."""

    def __init__(self, world: World, name: str = "north", palms: Path | None = None) -> None:
        self.world, self.home = world, world.home(name)
        config = self.home.load()
        if palms is not None:
            self.home.save(config.model_copy(update={"data": DataSettings(source=str(palms))}))
        self.clock = FakeClock(time.time())
        self.reopen()

    def reopen(self) -> None:
        """As a new process would see the home."""
        self.config = self.home.load()
        self.store = SiteStore(self.home, clock=self.clock)
        live = LiveIdentity(self.home.tls, self.clock)
        self.desk = Desk(self.store, SiteLog(self.store, live.current.signing_key), live)
        self.verifier = Verifier(self.config, self.store)

    def set(self, **values: object) -> None:
        """Change ``[verification]``, as a person does between two commands."""
        settings = VerificationSettings(**values)
        self.home.save(self.home.load().model_copy(update={"verification": settings}))
        self.store.close()
        self.reopen()

    def train(self, run_id: str = RUN, weight: float = 1.0) -> None:
        """A run to its end; ``weight`` tells its model from another."""
        self.store.add_run(run_id, make_plan())
        vector = np.full(LAYOUT.size, weight, dtype="<f4")
        digest = hashlib.sha256(vector.tobytes()).digest()
        self.store.model_path(digest).write_bytes(vector.tobytes())
        state = {"head.open.prototypes": np.full((12, 32), weight, dtype=np.float32)}
        self.store.commit_round(run_id, 1, state, NewUpdate(digest, LAYOUT.hash, b"update"))
        self.store.add_model(run_id, 1, digest, keep=3)
        self.store.end_run(run_id, "completed", digest, "")
        self.clock.advance(1)
        self.verifier = Verifier(self.config, self.store)

    def bytes_at_rest(self) -> bytes:
        """Of every file in the home."""
        return b"\n".join(
            path.read_bytes() for path in sorted(self.home.path.rglob("*")) if path.is_file()
        )


def train_alone(
    site: VerifyingSite,
    run_id: str,
    plan: Plan,
    finish: Callable[[SiteMethod], Tensors] = lambda method: method.state(),
) -> Trainer:
    """All rounds of a plan at this site alone, and the run over.

    Args:
        finish: gives the state that is stored after the last round.
    """
    store, trainer = site.store, Trainer(site.config, site.store)
    store.add_run(run_id, plan)
    shared, digest = trainer.prepare(run_id, plan).initial_vector(), b""
    for number in range(1, plan.draft.rounds + 1):
        update, state = trainer.train(run_id, plan, number, shared, budget=None)  # type: ignore[arg-type]
        if number == plan.draft.rounds:
            state = finish(trainer.prepare(run_id, plan))
        update_of = NewUpdate(bytes(32), plan.model_layout.hash, b"encoded")
        store.commit_round(run_id, number, state, update_of)
        trainer.forget()
        shared = shared + update.delta
        raw = shared.astype("<f4").tobytes()
        digest = hashlib.sha256(raw).digest()
        store.model_path(digest).write_bytes(raw)
        store.add_model(run_id, number, digest, keep=3)
    store.end_run(run_id, "completed", digest, "")
    site.verifier = Verifier(site.config, store)
    return trainer


def projecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every model built from :class:`ProjectingMethod`."""
    monkeypatch.setattr("fedpalm.methods.site.build_site_method", ProjectingMethod)
