"""A new key starts no new account: what the old log says was spent is charged in the new one."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from fedpalm.errors import (
    BudgetError,
    ChainBrokenError,
    ConfigError,
    ForkError,
    ProtocolError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.merkle import root
from fedpalm.pki.signing import key_id
from fedpalm.privacy.accounting import Charge, charged_epsilon
from participant.budget import mechanism
from participant.inheritance import read_copy, take_over, write_copy
from participant.store import NewUpdate
from tests.support.participant import Site, World, initial_vector, make_private_plan

DELTA = 1e-5
POLICY = f"auto_approve = true\ndelta = {DELTA}\npeople = 1000\nmax_epsilon = 8\n"
UPDATE = NewUpdate(b"m" * 32, b"l" * 32, b"update")


def _home(folder: Path, policy: str = POLICY) -> tuple[World, Site]:
    """A site north with keys of its own."""
    world = World(folder, policy=policy)
    return world, world.site("north")[0]


def _spend(world: World, site: Site, run_id: str, rounds: int, **privacy: object) -> None:
    plan = make_private_plan(rounds, privacy)
    world.agreed(site, plan, run_id)
    for number in range(1, rounds + 1):
        _, state = site.trainer.train(run_id, plan, number, initial_vector(), site.gate.budget)
        site.store.commit_round(
            *(run_id, number, state, UPDATE),
            pay=partial(site.gate.budget.committed, run_id, number),
        )
    site.store.end_run(run_id, "completed", None, "")


def _take_over(site: Site, path: Path):
    return take_over(site.gate.budget, site.log.public_key, read_copy(path))


@pytest.fixture
def spent(tmp_path: Path) -> tuple[Site, Path]:
    """A home that has charged two mechanisms, and a copy of its log."""
    world, site = _home(tmp_path / "old")
    _spend(world, site, "one", 2)
    _spend(world, site, "two", 1, noise_multiplier=6.0, steps=3)
    path = tmp_path / "north.log"
    write_copy(site.log, path)
    return site, path


def test_every_mechanism_is_charged_and_names_the_log_that_it_is_from(tmp_path, spent):
    old, path = spent
    _, new = _home(tmp_path / "new")
    added = _take_over(new, path)
    entries = list(old.log.entries())
    assert {(e.body["noise_multiplier"], e.body["steps"]) for e in added} == {
        ("4.0", 4),
        ("6.0", 3),
    }
    for entry in added:
        assert entry.body["key_id"] == key_id(old.log.public_key).hex()
        assert entry.body["size"] == len(entries)
        assert entry.body["root"] == root(e.to_bytes() for e in entries).hex()
    account = new.gate.budget.account("subject")
    assert account == old.gate.budget.account("subject")
    assert added[-1].body["epsilon"] == repr(account.epsilon)
    new.log.verify()


def test_what_was_spent_counts_against_the_budget_of_the_new_home(tmp_path, spent):
    old, path = spent
    limit = old.gate.budget.account("subject").epsilon + 0.01
    world, new = _home(
        tmp_path / "new", POLICY.replace("max_epsilon = 8", f"max_epsilon = {limit}")
    )
    _take_over(new, path)
    with pytest.raises(BudgetError, match=r"0\.010 left"):
        _spend(world, new, "three", 1)
    assert not new.methods[0].trained


def test_more_than_the_budget_may_be_taken_over_and_then_nothing_is_left(tmp_path, spent):
    _, path = spent
    _, new = _home(tmp_path / "new", POLICY.replace("max_epsilon = 8", "max_epsilon = 0.5"))
    _take_over(new, path)
    assert new.gate.budget.account("subject").left == 0


def test_a_log_that_inherited_itself_hands_all_of_it_on(tmp_path, spent):
    _, path = spent
    world, second = _home(tmp_path / "second")
    _take_over(second, path)
    _spend(world, second, "three", 1, noise_multiplier=6.0, steps=2)
    write_copy(second.log, tmp_path / "second.log")
    _, third = _home(tmp_path / "third")
    _take_over(third, tmp_path / "second.log")
    expected = (Charge(4.0, 1.0, 4), Charge(6.0, 1.0, 5))
    assert third.gate.budget.account("subject").charges == expected
    assert third.gate.budget.account("subject").epsilon == charged_epsilon(expected, DELTA)


def test_the_same_copy_is_charged_once_and_a_longer_one_for_the_rest(tmp_path):
    world, old = _home(tmp_path / "old")
    _spend(world, old, "one", 1)
    write_copy(old.log, tmp_path / "short")
    _spend(world, old, "two", 2)
    write_copy(old.log, tmp_path / "long")
    _, new = _home(tmp_path / "new")
    _take_over(new, tmp_path / "short")
    with pytest.raises(StateError, match="taken over already"):
        _take_over(new, tmp_path / "short")
    _take_over(new, tmp_path / "long")
    with pytest.raises(StateError, match="taken over already"):
        _take_over(new, tmp_path / "short")
    assert new.gate.budget.account("subject") == old.gate.budget.account("subject")


def test_another_history_under_the_same_key_is_refused(tmp_path):
    import shutil

    world, old = _home(tmp_path / "old")
    old.store.close()
    shutil.copytree(tmp_path / "old", tmp_path / "twin")
    old = Site(old.home)
    twin_world = World(tmp_path / "twin", authority=world.authority, policy=POLICY)
    twin = twin_world.site("north")[0]
    _spend(world, old, "one", 1)
    _spend(twin_world, twin, "two", 2)
    write_copy(old.log, tmp_path / "one")
    write_copy(twin.log, tmp_path / "two")
    _, new = _home(tmp_path / "new")
    _take_over(new, tmp_path / "one")
    with pytest.raises(ForkError, match="differs in its first"):
        _take_over(new, tmp_path / "two")


@pytest.mark.parametrize(
    "other", [{"unit": "village"}, {"mechanism": "laplace"}, {"relation": "replace-one"}]
)
def test_a_mechanism_that_is_not_known_is_not_taken_for_another(tmp_path, other):
    _, new = _home(tmp_path / "new")
    body = {**mechanism(make_private_plan()), **other}
    with pytest.raises(ProtocolError, match="not known here"):
        new.gate.budget.inherit(b"k" * 32, b"r" * 32, 1, [body])


def test_charges_are_taken_over_at_the_delta_of_those_that_are_here(tmp_path, spent):
    _, path = spent
    world, new = _home(tmp_path / "new")
    _spend(world, new, "three", 1)
    new.home.policy.write_text(POLICY.replace(f"delta = {DELTA}", "delta = 1e-6"))
    before = len(list(new.log.entries()))
    with pytest.raises(BudgetError, match="charged at 1e-05"):
        _take_over(new, path)
    assert len(list(new.log.entries())) == before


def test_a_home_does_not_inherit_itself(spent):
    old, path = spent
    with pytest.raises(StateError, match="this home's own log"):
        _take_over(old, path)


def test_an_altered_or_reordered_copy_is_refused(tmp_path, spent):
    _, path = spent
    lines = path.read_bytes().splitlines(keepends=True)
    reserved = next(n for n, line in enumerate(lines) if b"budget_reserved" in line)
    for altered in (
        [
            *lines[:reserved],
            lines[reserved].replace(b'"steps":2', b'"steps":1'),
            *lines[reserved + 1 :],
        ],
        [*lines[:reserved], *lines[reserved + 1 :]],
        [lines[0], *lines[2:]],
    ):
        path.write_bytes(b"".join(altered))
        with pytest.raises(ChainBrokenError):
            read_copy(path)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]\n", b'{"key":"00"}\n', b"\xff\n"])
def test_what_is_no_copy_of_a_log_is_refused(tmp_path, text):
    path = tmp_path / "file"
    path.write_bytes(text)
    with pytest.raises(ProtocolError, match="not a copy of a site's log"):
        read_copy(path)
    with pytest.raises(ConfigError):
        read_copy(tmp_path / "nowhere")


def test_a_crash_while_taking_over_charges_all_of_it_or_nothing(tmp_path, spent):
    from tests.support.participant import Crash

    old, path = spent
    _, made = _home(tmp_path / "new")
    made.store.close()

    def dies(step: str) -> None:
        if step == "before commit":
            raise Crash(step)

    crashing = Site(made.home, dies)
    with pytest.raises(Crash):
        _take_over(crashing, path)
    crashing.store.close()
    again = Site(made.home)
    assert not [e for e in again.log.entries() if e.kind is EntryKind.BUDGET_INHERITED]
    _take_over(again, path)
    assert again.gate.budget.account("subject") == old.gate.budget.account("subject")
