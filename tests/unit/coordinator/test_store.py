"""The store: durable, all or nothing, and only of this version."""

from __future__ import annotations

import re
import sqlite3
from importlib import resources
from pathlib import Path

import pytest

from coordinator.facts import UpdateRow
from coordinator.notary import Notary
from coordinator.run_records import RunRecords
from coordinator.store import SCHEMA_VERSION, Store
from fedpalm.clock import FakeClock
from fedpalm.errors import ConfigError, IntegrityError, NotFoundError, ResourceError
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.events import CloseRound, PersistCohort, PublishModel, RoundRef
from fedpalm.rounds.run import RoundOpened, Run, RunTerms, Start, advance
from tests.simulation.federation import identity, rehearsal_plan, signing_key
from tests.support.agreement import Unchanging


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite3"


def events(store: Store) -> list[str]:
    return [action for (action,) in store.query("SELECT action FROM operator_events")]


def test_a_new_store_keeps_what_was_committed_and_only_that(path: Path) -> None:
    with Store.open(path) as store:
        store.operator_event(1, "olga", "start", "r")
        with pytest.raises(RuntimeError), store.transaction("half a step") as db:
            db.execute("DELETE FROM operator_events")
            raise RuntimeError("the process thinks better of it")
    with Store.open(path) as store:
        assert events(store) == ["start"]


def test_it_waits_for_the_disk_at_every_commit(path: Path) -> None:
    with Store.open(path) as store:
        assert store.query("PRAGMA journal_mode") == [("wal",)]
        assert store.query("PRAGMA synchronous") == [(2,)]
        assert store.query("PRAGMA foreign_keys") == [(1,)]


def test_only_its_owner_can_read_it(path: Path) -> None:
    Store.open(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_store_of_a_newer_version_is_refused_and_left_alone(path: Path) -> None:
    Store.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match="newer version"):
        Store.open(path)
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION + 1,)


def test_a_store_of_the_unreleased_version_is_refused_and_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE sites (site TEXT)")
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(ConfigError, match="unreleased version") as refusal:
        Store.open(path)
    assert "init" in refusal.value.next_step
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("sites",)]


def test_a_file_that_is_no_store_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(IntegrityError):
        Store.open(path)


def test_a_store_that_cannot_be_written_names_the_step_that_failed(path: Path) -> None:
    with Store.open(path) as store:
        store.query("PRAGMA busy_timeout = 1")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ResourceError, match="operator event was not stored"):
            store.operator_event(1, "olga", "start", "r")
        other.execute("ROLLBACK")
        other.close()
        store.operator_event(1, "olga", "start", "r")
        assert events(store) == ["start"]


def test_changes_from_outside_are_told_from_ones_own(path: Path) -> None:
    with Store.open(path) as store, Store.open(path) as other:
        before = store.outside_changes()
        store.operator_event(1, "olga", "start", "r")
        assert store.outside_changes() == before
        other.operator_event(2, "olga", "abort", "r")
        changed = store.outside_changes()
        assert changed != before
        assert store.outside_changes() == changed
        other.operator_event(3, "olga", "abort", "r")
        store.operator_event(4, "olga", "start", "r")
        assert store.outside_changes() != changed


def test_every_column_of_the_schema_says_what_it_holds() -> None:
    schema = (resources.files("coordinator") / "schema.sql").read_text()
    columns = re.findall(r"^    ([a-z_]+ +(?:TEXT|INTEGER|BLOB).*)$", schema, re.M)
    assert len(columns) > 30
    assert [column for column in columns if " -- " not in column] == []


def offer_of(plan: Plan) -> SignedStatement:
    return Notary(Unchanging(identity()), FakeClock(5), signing_key).offer("r", plan)


def test_a_run_and_everything_that_happened_in_it_come_back(path: Path) -> None:
    plan = rehearsal_plan(sites=3, rounds=2)
    ref = RoundRef(1, 1)
    update = UpdateRow("r", ref, "site-000", "ab" * 32, 392, 9)
    with Store.open(path) as store:
        records = RunRecords(store)
        records.create("r", plan, offer_of(plan), 5)
        run, _ = advance(Run(RunTerms.of(plan), plan.initial_model), Start(6))
        records.save("r", run, (RoundOpened(ref), PersistCohort(ref, ("site-000",))), 6)
        records.save("r", run, (), 9, (update,))
        records.save(
            "r", run, (PublishModel(ref, "cd" * 32), CloseRound(ref, True, "cd" * 32, "")), 10
        )
    with Store.open(path) as store:
        records = RunRecords(store)
        (back,) = records.load()
        assert (back.run_id, back.plan) == ("r", plan)
        assert back.offer == offer_of(plan)
        assert back.run.to_json() == run.to_json()
        assert records.update("r", ref, "site-000") == update
        assert records.updates("r", ref) == {"site-000": update}
        assert records.update("r", ref, "site-001") is None
        assert records.models("r") == {0: plan.initial_model, 1: "cd" * 32}
        assert store.query("SELECT cohort, closed_ms, model_hash FROM attempts") == [
            ('["site-000"]', 10, "cd" * 32)
        ]
        with pytest.raises(NotFoundError, match="0 to 1"):
            records.model("r", 2)


def test_an_advance_that_cannot_be_stored_whole_is_not_stored_at_all(path: Path) -> None:
    plan = rehearsal_plan(sites=3, rounds=2)
    ref = RoundRef(1, 1)
    with Store.open(path) as store:
        records = RunRecords(store)
        records.create("r", plan, offer_of(plan), 5)
        run, _ = advance(Run(RunTerms.of(plan), plan.initial_model), Start(6))
        twice = (RoundOpened(ref), RoundOpened(ref))
        with pytest.raises(sqlite3.IntegrityError):
            records.save("r", run, twice, 6)
        (back,) = records.load()
        assert back.run.state == "created"
        assert store.query("SELECT * FROM attempts") == []


def test_a_plan_that_this_version_cannot_read_is_named_by_its_run(path: Path) -> None:
    with Store.open(path) as store:
        plan = rehearsal_plan(sites=3, rounds=2)
        RunRecords(store).create("r", plan, offer_of(plan), 5)
        with store.transaction("another version") as db:
            db.execute("UPDATE runs SET plan = ?", (b'{"version": 2}',))
        with pytest.raises(ConfigError, match="run r: "):
            RunRecords(store).load()


def test_what_the_schema_tells_an_operator_to_ask_can_be_asked(path: Path) -> None:
    schema = (resources.files("coordinator") / "schema.sql").read_text()
    questions = re.findall(r'^--   sqlite3 -readonly store.sqlite3 "(.*)"$', schema, re.M)
    assert len(questions) == 2
    with Store.open(path) as store:
        for question in questions:
            assert store.query(question) == []
