"""``coordinator.toml`` and the folders of a coordinator's home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedpalm.plan import Name
from fedpalm.settings import Settings, load_toml


class CoordinatorSettings(Settings):
    """The keys of ``coordinator.toml``."""

    federation: Name
    listen: str = "0.0.0.0:7443"
    """``host:port``; port 0 lets the system choose, and ``<home>/listen`` tells which it is."""
    max_transfers: int = Field(4, ge=1, le=64)
    """Models and updates in flight at once; further ones wait their turn."""
    heartbeat_s: float = Field(5.0, gt=0, le=300)
    keep_models: Literal["all", "latest"] = "all"
    """Global models kept after a commit: every round's, or the initial and the newest two."""


@dataclass(frozen=True)
class Home:
    """Where a coordinator keeps what."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "coordinator.toml"

    @property
    def authority(self) -> Path:
        return self.root / "ca"

    @property
    def tls(self) -> Path:
        return self.root / "tls"

    @property
    def operator(self) -> Path:
        return self.root / "operator"

    @property
    def store(self) -> Path:
        return self.root / "store.sqlite3"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def listen(self) -> Path:
        """Address that the running coordinator bound; the operator's commands dial it."""
        return self.root / "listen"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def settings(self) -> CoordinatorSettings:
        """Read ``coordinator.toml``. Raises ConfigError naming every wrong key."""
        return load_toml(CoordinatorSettings, self.config)
