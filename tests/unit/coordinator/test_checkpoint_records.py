"""Checkpoints as the coordinator keeps them, and as it hands them to an auditor."""

from __future__ import annotations

from pathlib import Path

from coordinator.checkpoint_records import CheckpointRecords, CheckpointRow
from coordinator.cli.audit import write_checkpoints
from coordinator.store import Store
from fedpalm.ledger.checkpoint import Checkpoint, GivenCheckpoint
from fedpalm.pki.bundle import TlsIdentity
from fedpalm.pki.identity import Role
from fedpalm.pki.signing import key_id
from fedpalm.pki.statement import SignedStatement
from tests.support.pki import TestAuthority

AUTHORITY = TestAuthority("palms")


def _row(identity: TlsIdentity, size: int, round_number: int) -> CheckpointRow:
    said = Checkpoint(
        federation="palms",
        site="north",
        key_id=key_id(identity.signing_key.public_key()).hex(),
        size=size,
        root="0" * 64,
        run="run-1",
        round=round_number,
        attempt=1,
        time_ms=1,
    )
    return CheckpointRow(said, GivenCheckpoint(said.sign(identity), (b"a" * 32, b"b" * 32)))


def test_an_auditor_gets_the_newest_of_each_log_that_a_site_has_kept(tmp_path: Path):
    before, now = (AUTHORITY.enrol(Role.PARTICIPANT, "north") for _ in range(2))
    rows = [_row(before, 5, 1), _row(before, 9, 2), _row(now, 3, 3), _row(now, 7, 4)]
    with Store.open(tmp_path / "store.sqlite3") as store:
        with store.transaction("checkpoints") as db:
            for row in rows:
                row.write(db)
        records = CheckpointRecords(store)
        assert records.of_each_log("north") == [rows[1].given, rows[3].given]
        write_checkpoints(records, ["north", "south"], tmp_path / "out")
    written = {
        path.name: Checkpoint.read(SignedStatement.from_bytes(path.read_bytes())).size
        for path in (tmp_path / "out").iterdir()
    }
    earlier = key_id(before.signing_key.public_key()).hex()[:16]
    assert written == {"north.checkpoint": 7, f"north-{earlier}.checkpoint": 9}
