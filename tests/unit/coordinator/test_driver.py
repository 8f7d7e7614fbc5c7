"""What the driver does beside the event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from coordinator.driver import Driver
from coordinator.notary import Notary
from coordinator.run_records import RunRecords
from coordinator.spool import Spool
from coordinator.store import Store
from fedpalm.clock import FakeClock
from fedpalm.errors import ResourceError
from fedpalm.methods.contribution import codec_for
from fedpalm.rounds.events import Aggregate, RoundRef
from tests.simulation.federation import identity, rehearsal_plan, signing_key
from tests.support.agreement import Unchanging
from tests.support.aio import in_loop


class BrokenSpool(Spool):
    def discard(self, run_id: str, ref: RoundRef) -> None:
        raise OSError(f"no way to discard {ref} of {run_id}")


@in_loop
async def test_work_in_the_background_that_fails_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool, clock = BrokenSpool(tmp_path / "models", tmp_path / "spool"), FakeClock()
    with Store.open(tmp_path / "store.sqlite3") as store:
        notary = Notary(Unchanging(identity()), clock, signing_key)
        driver = Driver(RunRecords(store), spool, clock, notary, "all")
        driver.round_closed("run", RoundRef(3, 1))
        await driver.stop()
    (record,) = caplog.records
    assert record.levelname == "ERROR" and record.exc_info is not None
    assert str(record.exc_info[1]) in record.getMessage()
    assert "of run" in record.getMessage()


@in_loop
async def test_what_is_looked_after_is_looked_after_again_and_again_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for pause in ("LOOK_S", "RETRY_S"):
        monkeypatch.setattr(f"coordinator.driver.{pause}", 0.001)
    looks, enough = 0, asyncio.Event()

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ResourceError("the disk is full")
        if looks == 3:
            enough.set()

    spool, clock = Spool(tmp_path / "models", tmp_path / "spool"), FakeClock()
    with Store.open(tmp_path / "store.sqlite3") as store:
        notary = Notary(Unchanging(identity()), clock, signing_key)
        driver = Driver(RunRecords(store), spool, clock, notary, "all")
        driver.keep_looking(look)
        await asyncio.wait_for(enough.wait(), 20)
        await driver.stop()
        seen = looks
        await asyncio.sleep(0.01)
    assert looks == seen and "the disk is full" in caplog.text


@in_loop
async def test_the_changed_model_of_a_lost_round_is_none_that_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, clock, plan = (
        Spool(tmp_path / "models", tmp_path / "spool"),
        FakeClock(),
        rehearsal_plan(3, 1),
    )
    with Store.open(tmp_path / "store.sqlite3") as store:
        records = RunRecords(store)
        notary = Notary(Unchanging(identity()), clock, signing_key)
        driver = Driver(records, spool, clock, notary, "all")
        run = SimpleNamespace(
            plan=lambda _: plan, codec=lambda _: codec_for(plan), manifest_hash=lambda _: bytes(32)
        )
        monkeypatch.setattr(driver, "conductor", run)
        spool.model("ab").write_bytes(bytes(plan.model_layout.size * 4))
        lost = Aggregate(RoundRef(1, 1), (), "ab")
        usual = await driver._new_model("run", lost)
        monkeypatch.setattr(records.masking, "spent_models", lambda: frozenset({usual}))
        assert await driver._new_model("run", lost) != usual
        await driver.stop()
