"""Homes with a vault for the tests: cheap passphrases, crashes at every durable step, files put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from participant.config import Home, ParticipantConfig
from participant.store import NewUpdate, SiteStore
from participant.vault_header import Argon2Cost

from .participant import FEDERATION, Crash, make_plan

RUN = "toy-1"
CHEAP = Argon2Cost(memory_kib=8, passes=1, lanes=1)
PASSPHRASE = "correct horse battery staple"
UPDATE = NewUpdate(b"m" * 32, b"l" * 32, b"\x01\x02\x03\x04" * 50)
RECORDS = {f"person-{number}": f"record {number} ".encode() * 5 for number in range(5)}


def make_home(path: Path) -> Home:
    """A home that could train: its settings, and nothing sealed."""
    home = Home(path)
    home.make()
    home.save(ParticipantConfig(federation=FEDERATION, site="north", coordinator="127.0.0.1:1"))
    return home


def open_store(
    home: Home,
    on_step: Callable[[str], None] = lambda step: None,
    passphrase: str | None = None,
) -> SiteStore:
    """A store as a process opens it; ``passphrase`` is what a person would type at every question."""
    if passphrase is None:
        return SiteStore(home, on_step=on_step, vault_cost=CHEAP)
    return SiteStore(home, on_step=on_step, vault_cost=CHEAP, ask=lambda prompt: passphrase)


def state(round_number: int) -> dict[str, np.ndarray]:
    """Private tensors of a round, each of bytes that can be searched for."""
    rng = np.random.default_rng(round_number)
    return {
        "head.open.prototypes": rng.standard_normal((5, 32)).astype(np.float32),
        "closed_set.expert.weight": rng.standard_normal((16, 8)).astype(np.float32),
    }


def fill(home: Home) -> None:
    """A private state of round 1, five records, and a recipient key under way."""
    with closing(open_store(home)) as store:
        store.add_run(RUN, make_plan())
        store.commit_round(RUN, 1, state(1), UPDATE)
        with store.transaction() as db:
            for name, data in RECORDS.items():
                store.items.put(db, "person", name, data)
            key_file = store.write_private("x-1", "key", b"k" * 96)
            db.execute(
                "INSERT INTO exchanges "
                "(exchange_id, run_id, machine, state, proposal, key_file, proposed_ms) "
                "VALUES ('x-1', ?, '{}', 'asked', x'00', ?, 1)",
                (RUN, key_file),
            )


def holds_everything(store: SiteStore) -> bool:
    """Whether all of :func:`fill` opens and is what it was."""
    (row,) = store.rows("SELECT key_file FROM exchanges")
    found = store.load_state(RUN)
    assert found is not None
    assert all(np.array_equal(found[name], one) for name, one in state(1).items())
    assert store.read_private(row["key_file"]) == b"k" * 96
    assert dict(store.items.all("person")) == RECORDS
    return True


def every_crash(
    home: Home, act: Callable[[SiteStore], None], passphrase: str | None = None
) -> Iterator[tuple[str, Home]]:
    """Let ``act`` die at each of its durable steps in turn, each time in a fresh copy of the home.

    Yields:
        the step, and the home that it left.
    """
    step_number = 0
    while True:
        copy = Home(home.path.with_name(f"{home.path.name}-{step_number}"))
        shutil.copytree(home.path, copy.path)
        seen: list[str] = []

        def dies(step: str, seen: list[str] = seen, last: int = step_number) -> None:
            seen.append(step)
            if len(seen) > last:
                raise Crash(step)

        open_store(copy).close()  # makes the database
        with closing(open_store(copy, dies, passphrase)) as store:
            try:
                act(store)
            except Crash:
                pass
            else:
                return
        yield seen[-1], copy
        step_number += 1


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def keep(home: Home, *names: str) -> Callable[[], None]:
    """Remember these files of a home as they are; returns what puts them back."""
    paths = [home.path / name for name in names]
    before = {path: path.read_bytes() for path in paths if path.exists()}

    def put_back() -> None:
        for path in paths:
            path.unlink(missing_ok=True)
        for path, data in before.items():
            path.write_bytes(data)
            path.chmod(0o600)

    return put_back
