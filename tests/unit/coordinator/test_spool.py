"""Where large files lie, and when they go."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from coordinator.spool import SPARE_BYTES, Spool
from fedpalm.errors import HashMismatchError, NotFoundError, ResourceError
from fedpalm.rounds.events import RoundRef

A, B = "aa" * 32, "bb" * 32


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "models", tmp_path / "spool")


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_room_that_is_missing_is_named_in_figures(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": SPARE_BYTES + 3 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    spool.require_room(3 * 2**20, "round 1")
    with pytest.raises(ResourceError, match=r"round 1 needs 4\.0 MiB .*67\.0 MiB are free"):
        spool.require_room(4 * 2**20, "round 1")


def test_a_model_with_other_bytes_than_its_name_says_is_found_out(spool: Spool) -> None:
    good = hashlib.sha256(b"weights").hexdigest()
    spool.model(good).write_bytes(b"weights")
    spool.check_model(good)
    spool.model(A).write_bytes(b"weights")
    with pytest.raises(HashMismatchError):
        spool.check_model(A)
    with pytest.raises(NotFoundError):
        spool.check_model(B)


def test_a_site_that_starts_another_update_loses_the_one_it_left_unfinished(spool: Spool) -> None:
    first = spool.update("run", RoundRef(1, 1), "amber", A)
    other = spool.update("run", RoundRef(1, 1), "amber", B)
    neighbour = spool.update("run", RoundRef(1, 1), "amber-2", A)
    for path in (first, other, neighbour):
        path.with_name(path.name + ".0123.part").write_bytes(b"x")
    spool.drop_other_parts(other)
    assert _names(other.parent) == {f"{other.name}.0123.part", f"{neighbour.name}.0123.part"}


def test_a_start_keeps_what_the_store_speaks_of_and_nothing_else(spool: Spool) -> None:
    for name in (f"{A}.f32", f"{B}.f32", ".12-ab.partial", f"{B}.f32.00.part"):
        (spool.models / name).write_bytes(b"x")
    spool.keep_models_only([A])
    assert _names(spool.models) == {f"{A}.f32"}

    spool.update("run", RoundRef(1, 1), "amber", A).write_bytes(b"x")
    kept = spool.update("run", RoundRef(2, 1), "amber", A)
    kept.write_bytes(b"x")
    sealed = spool.sealed("exchange-1", "amber")
    sealed.write_bytes(b"x")
    spool.sealed("exchange-0", "amber").write_bytes(b"x")
    spool.keep_updates_only([("run", RoundRef(2, 1))])
    spool.keep_sealed_only(["exchange-1"])
    assert kept.exists() and sealed.exists()
    assert _names(spool.root / "run") == {"2-1"}
    assert _names(spool.root / "exchange") == {"exchange-1"}


def test_a_closed_attempt_leaves_no_file(spool: Spool) -> None:
    path = spool.update("run", RoundRef(1, 1), "amber", A)
    path.write_bytes(b"x")
    spool.discard("run", RoundRef(1, 1))
    spool.discard("run", RoundRef(1, 1))
    assert not path.parent.exists()


def test_a_sealed_expert_that_cannot_be_erased_is_named_in_the_log(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sealed = spool.sealed("exchange-0", "amber")
    sealed.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", refuse)
        spool.erase_sealed("exchange-0")
    assert f"{sealed}: not erased: read-only" in caplog.messages
    caplog.clear()
    spool.erase_sealed("exchange-0")
    spool.erase_sealed("exchange-0")
    assert not sealed.exists() and caplog.messages == []


def test_new_folders_of_updates_and_of_sealed_experts_are_made_durable(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("coordinator.spool.sync_folder", synced.append)
    update = spool.update("run", RoundRef(1, 1), "amber", "0" * 64)
    sealed = spool.sealed("exchange-1", "amber")
    assert update.parent.is_dir() and sealed.parent.is_dir()
    assert synced == [update.parent.parent, spool.root, sealed.parent.parent, spool.root]
