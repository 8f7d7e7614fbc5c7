"""``coordinator.toml`` and the folders of a coordinator's home."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedpalm.errors import ConfigError
from fedpalm.plan import Name
from fedpalm.settings import HostPort, Settings, load_toml


class CoordinatorSettings(Settings):
    """The keys of ``coordinator.toml``."""

    federation: Name
    listen: HostPort = "0.0.0.0:7443"
    """``host:port``; port 0 lets the system choose, and ``<home>/listen`` tells which it is."""
    enrol_listen: HostPort = ""
    """``host:port`` for newcomers, bound while an invitation waits for one; left out, the port after
    that of ``listen``. Port 0 is chosen once, and ``<home>/enrol_listen`` tells which it is."""
    advertise: HostPort = ""
    """``host:port`` that sites dial, behind a NAT for example; left out, ``listen``. Port 0 stands for
    the port that is bound."""
    enrol_advertise: HostPort = ""
    """The same for newcomers; left out, the host of ``advertise`` and the port that is bound."""
    max_transfers: int = Field(4, ge=1, le=64)
    """Models and updates in flight at once; further ones wait their turn."""
    heartbeat_s: float = Field(5.0, gt=0, le=300)
    keep_models: Literal["all", "latest"] = "all"
    """Global models kept after a commit: every round's, or the initial and the newest two."""

    @property
    def enrolment(self) -> str:
        """Where to listen for newcomers."""
        if self.enrol_listen:
            return self.enrol_listen
        host, _, port = self.listen.rpartition(":")
        return f"{host}:{int(port) + 1 if port != '0' else 0}"


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
    def founding(self) -> Path:
        """What ``init`` settled, while the CA waits for an institution's signature."""
        return self.authority / "founding.toml"

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
    def enrol_listen(self) -> Path:
        """The same of the listener for newcomers, whether it is open now or not."""
        return self.root / "enrol_listen"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    def settings(self) -> CoordinatorSettings:
        """Read ``coordinator.toml``. Raises ConfigError naming every wrong key."""
        return load_toml(CoordinatorSettings, self.config)

    def advertised(self, settings: CoordinatorSettings) -> tuple[str, str]:
        """The addresses that a newcomer is told: the coordinator's, and that of the enrolment.

        Raises:
            ConfigError: nobody elsewhere can dial them, or a port is not chosen yet.
        """
        own = settings.advertise or settings.listen
        enrol = settings.enrol_advertise or f"{own.rpartition(':')[0]}:{_port(settings.enrolment)}"
        return self._dialled(own, self.listen), self._dialled(enrol, self.enrol_listen)

    def _dialled(self, address: str, bound: Path) -> str:
        host, _, port = address.rpartition(":")
        if host in _EVERYWHERE:
            raise ConfigError(
                f"{self.config}: sites cannot dial {host}",
                safe="nothing was written",
                next_step='say where they reach this coordinator: advertise = "HOST:PORT"',
            )
        if port != "0":
            return address
        try:
            return f"{host}:{_port(bound.read_text(encoding='utf-8').strip())}"
        except FileNotFoundError:
            raise ConfigError(
                f"{self.config}: the port is chosen by the first start, and there was none yet",
                safe="nothing was written",
                next_step="fedpalm-coordinator serve, then again; or name a port",
            ) from None


def _port(address: str) -> str:
    return address.rpartition(":")[2]


_EVERYWHERE = {"0.0.0.0", "[::]"}  # noqa: S104  (refused, not bound)
