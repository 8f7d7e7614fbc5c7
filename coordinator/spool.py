"""Files that are large: global models and uploaded updates, where they lie and when they go.

    models/<sha256>.f32                            (P,) little-endian float32
    spool/<run>/<round>-<attempt>/<site>.<hash16>  (P + k,) little-endian uint32, complete once named so
    spool/exchange/<exchange>/<sender>             sealed bytes

A file under its final name is whole and durable; whatever no row of the store speaks of is deleted at
the next start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedpalm.errors import HashMismatchError, NotFoundError, ResourceError
from fedpalm.rounds.events import RoundRef

log = logging.getLogger(__name__)

SPARE_BYTES = 64 * 1024 * 1024
"""Free space that stays free: for the store and its log."""
EXCHANGE = "exchange"
_READ_BYTES = 1 << 20


class Spool:
    """The folders ``models`` and ``spool`` of a coordinator's home; makes them."""

    def __init__(self, models: Path, spool: Path) -> None:
        self.models, self.root = models, spool
        for folder in (models, spool):
            folder.mkdir(mode=0o700, exist_ok=True)

    def model(self, model_hash: str) -> Path:
        return self.models / f"{model_hash}.f32"

    def existing_model(self, model_hash: str) -> Path:
        """Raises NotFoundError for a model that was deleted."""
        path = self.model(model_hash)
        if not path.exists():
            raise NotFoundError(
                f"model {model_hash[:16]} is not kept any more",
                next_step="choose the newest round, or set keep_models = 'all' for further runs",
            )
        return path

    def check_model(self, model_hash: str) -> None:
        """Read a model file through. Raises HashMismatchError, NotFoundError."""
        digest = hashlib.sha256()
        with self.existing_model(model_hash).open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
        if digest.hexdigest() != model_hash:
            raise HashMismatchError(
                f"{self.model(model_hash)}: its bytes are not those of its name",
                safe="the run is where it was",
                next_step="restore the file from a backup, then: fedpalm-coordinator resume",
            )

    def update(self, run_id: str, ref: RoundRef, site: str, payload_hash: str) -> Path:
        """Where an update belongs; its folder exists."""
        return self._made(self._attempt(run_id, ref)) / f"{site}.{payload_hash[:16]}"

    def drop_other_parts(self, path: Path) -> None:
        """One site has one unfinished update at a time: delete what it began before this one."""
        for other in path.parent.glob(f"{path.name.split('.')[0]}.*"):
            if not other.name.startswith(path.name):
                other.unlink(missing_ok=True)

    def discard(self, run_id: str, ref: RoundRef) -> None:
        """Delete all updates of an attempt that is over; what resists goes at the next start."""
        _erase(self._attempt(run_id, ref))

    def sealed(self, exchange_id: str, sender: str) -> Path:
        """Where a sealed expert belongs; its folder exists."""
        return self._made(self.root / EXCHANGE / exchange_id) / sender

    def erase_sealed(self, exchange_id: str) -> None:
        """Delete the sealed experts of an exchange that is over; what resists goes at the next start."""
        _erase(self.root / EXCHANGE / exchange_id)

    def require_room(self, needed_bytes: int, what: str) -> None:
        """Raises ResourceError if the disk has less than ``needed_bytes`` and some spare."""
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes + SPARE_BYTES:
            raise ResourceError(
                f"{what} needs {_mib(needed_bytes)} on the disk and {_mib(SPARE_BYTES)} to spare; "
                f"{_mib(free)} are free",
                safe="everything committed is kept",
                next_step="free some space, then: fedpalm-coordinator resume",
            )

    def drop_models(self, hashes: Iterable[str]) -> None:
        """Delete these model files; who reads one at the moment reads on."""
        for model_hash in hashes:
            self.model(model_hash).unlink(missing_ok=True)

    def keep_models_only(self, hashes: Iterable[str]) -> None:
        """Delete every other model file, and what was left half written. Only at the start."""
        kept = {self.model(model_hash).name for model_hash in hashes}
        for path in self.models.iterdir():
            if path.name not in kept:
                path.unlink()

    def keep_updates_only(self, attempts: Iterable[tuple[str, RoundRef]]) -> None:
        """Delete the updates of every other attempt."""
        kept = {self._attempt(run_id, ref) for run_id, ref in attempts}
        for run in self.root.iterdir():
            if run.name == EXCHANGE:
                continue
            for folder in run.iterdir():
                if folder not in kept:
                    shutil.rmtree(folder)

    def keep_sealed_only(self, exchange_ids: Iterable[str]) -> None:
        """Delete the sealed experts of every other exchange."""
        kept = set(exchange_ids)
        folder = self.root / EXCHANGE
        for exchange in folder.iterdir() if folder.exists() else ():
            if exchange.name not in kept:
                shutil.rmtree(exchange)

    def _made(self, folder: Path) -> Path:
        """The folder, two levels below the root, durable."""
        if not folder.exists():
            folder.mkdir(mode=0o700, parents=True)
            sync_folder(folder.parent)
            sync_folder(self.root)
        return folder

    def _attempt(self, run_id: str, ref: RoundRef) -> Path:
        return self.root / run_id / f"{ref.round}-{ref.attempt}"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _erase(folder: Path) -> None:
    """Delete a folder and all in it, as far as that goes; the log names what stays."""

    def stays(_: object, path: str, error: tuple[Any, BaseException, Any]) -> None:
        if not isinstance(error[1], FileNotFoundError):
            log.warning("%s: not erased: %s", path, error[1])

    shutil.rmtree(folder, onerror=stays)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
