"""The budget: charged before a batch is drawn, once for each training, and never given back."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpalm.errors import (
    BudgetError,
    EgressRefusedError,
    PlanNotApprovedError,
    PolicyError,
    StateError,
)
from fedpalm.ledger.bodies import EntryKind
from fedpalm.plan import Continues, Plan
from fedpalm.privacy.accounting import RNG, Charge, charged_epsilon, mechanism
from participant.budget import BudgetBook
from participant.config import Home
from participant.manifests import ManifestBook
from participant.store import NewUpdate
from tests.support.participant import (
    Crash,
    Site,
    ToyMethod,
    World,
    initial_vector,
    make_plan,
    make_private_plan,
)

RUN = "toy-1"
DELTA = 1e-5
POLICY = f"auto_approve = true\ndelta = {DELTA}\npeople = 1000\nmax_epsilon = 8\n"
ROUND = Charge(4.0, 1.0, 2)
UPDATE = NewUpdate(b"m" * 32, b"l" * 32, b"update")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, policy=POLICY)


def _agreed(world: World, plan: Plan | None = None, run_id: str = RUN) -> Site:
    site, _ = world.site("north")
    world.agreed(site, plan or make_private_plan(), run_id)
    return site


def _train(site: Site, plan: Plan, round_number: int = 1, run_id: str = RUN) -> None:
    """What the agent does for a round, without the manifest and the encoding."""
    try:
        site.trainer.resume(run_id, plan)
        _, state = site.trainer.train(
            run_id, plan, round_number, initial_vector(), site.gate.budget
        )
        site.store.commit_round(
            *(run_id, round_number, state, UPDATE),
            pay=partial(site.gate.budget.committed, run_id, round_number),
        )
        site.trainer.committed(round_number)
    except Exception:
        site.gate.budget.aborted(run_id, round_number)
        raise


def _kinds(site: Site) -> list[str]:
    """The budget entries of the log, in order."""
    return [e.kind.value for e in site.log.entries() if e.kind.value.startswith("budget_")]


def _epsilon(rounds: int) -> float:
    return charged_epsilon([ROUND] * rounds, DELTA)


# --- one round ------------------------------------------------------------------------------------


def test_a_round_is_reserved_trained_and_committed_and_the_log_says_what_it_cost(world):
    site, plan = _agreed(world), make_private_plan()
    seq = site.gate.budget.reserve(RUN, plan, 1)
    _train(site, plan)
    assert _kinds(site) == ["budget_reserved", "budget_committed"]
    reserved, committed = (e for e in site.log.entries() if e.kind.value.startswith("budget_"))
    assert reserved.seq == seq
    body = dict(reserved.body)
    assert body["accountant"].startswith("prv+pld opacus ")
    del body["accountant"]
    assert body == {
        "run": RUN,
        "round": 1,
        "plan_hash": plan.hash.hex(),
        "rng": "chacha20",
        "mechanism": "dp-sgd",
        "unit": "subject",
        "relation": "add-remove",
        "sampler": "poisson",
        "noise_multiplier": "4.0",
        "clip_norm": "1.0",
        "sampling_rate": "1.0",
        "steps": 2,
        "delta": repr(DELTA),
        "epsilon": repr(_epsilon(1)),
        "budget": "8.0",
    }
    assert dict(committed.body) == {
        "run": RUN,
        "round": 1,
        "reservation": seq,
        "update_hash": UPDATE.payload_hash.hex(),
    }


def test_an_account_keeps_the_delta_of_its_first_charge(world):
    site, plan = _agreed(world), make_private_plan()
    site.gate.budget.reserve(RUN, plan, 1)
    site.home.policy.write_text(POLICY.replace(f"delta = {DELTA}", "delta = 1e-6"))
    with pytest.raises(BudgetError, match=r"delta 1e-06, .* charged at 1e-05") as error:
        site.gate.budget.reserve(RUN, plan, 2)
    assert "set delta = 1e-05 in policy.toml again" in error.value.next_step
    assert _kinds(site) == ["budget_reserved"]
    with pytest.raises(BudgetError, match=r"charged at 1e-05"):
        site.gate.budget.begin(RUN, plan, 1)
    site.home.policy.write_text(POLICY)
    site.gate.budget.begin(RUN, plan, 1)
    site.gate.budget.reserve(RUN, plan, 2)


def test_the_log_names_the_random_source_that_trains():
    from fedpalm.privacy.randomness import SecretRandom

    assert SecretRandom().name == RNG


def test_a_reservation_is_made_once_while_nobody_has_used_it(world):
    site, plan = _agreed(world), make_private_plan()
    budget = site.gate.budget
    assert budget.reserve(RUN, plan, 1) == budget.reserve(RUN, plan, 1)
    assert budget.begin(RUN, plan, 1) == budget.reserve(RUN, plan, 1)
    assert _kinds(site) == ["budget_reserved"]
    _, other = budget.aborted(RUN, 1), budget.reserve(RUN, plan, 1)
    assert _kinds(site) == ["budget_reserved", "budget_aborted", "budget_reserved"]
    assert budget.reserve(RUN, plan, 2) != other


def test_a_round_that_is_trained_costs_nothing_more_in_another_attempt(world):
    site, plan = _agreed(world), make_private_plan()
    _train(site, plan)
    before = site.gate.budget.account("subject").epsilon
    site.gate.budget.reserve(RUN, plan, 1)
    assert BudgetBook(site.store, site.log, site.desk.policy).reserve(RUN, plan, 1)
    assert site.gate.budget.account("subject").epsilon == before == _epsilon(1)
    with pytest.raises(StateError, match="trained already"):
        site.gate.budget.begin(RUN, plan, 1)


def test_a_training_that_is_begun_again_is_charged_again(world):
    site, plan = _agreed(world), make_private_plan()
    first = site.gate.budget.begin(RUN, plan, 1)
    site.store.close()
    again = Site(site.home)
    assert again.gate.budget.begin(RUN, plan, 1) > first
    assert again.gate.budget.account("subject").epsilon == _epsilon(2)


def test_a_training_that_fails_stays_charged(world):
    site, plan = _agreed(world), make_private_plan()

    class Failing(ToyMethod):
        def train_round(self, context, shared):
            raise ValueError("an image is gone")

    site.trainer._build = lambda plan, name, images: Failing(plan, name)
    with pytest.raises(ValueError, match="an image is gone"):
        _train(site, plan)
    assert _kinds(site) == ["budget_reserved", "budget_aborted"]
    assert site.gate.budget.account("subject").epsilon == _epsilon(1)


def test_rounds_count_on_over_the_runs_that_are_continued(world):
    first = make_private_plan(rounds=2)
    site = _agreed(world, first)
    _train(site, first, 1)
    site.store.end_run(RUN, "aborted", None, "amended")
    plan = make_private_plan(
        continues=Continues(
            run=RUN, plan_hash=first.hash.hex(), rounds_done=1, model=first.initial_model
        )
    )
    world.agreed(site, plan, "toy-2")
    _train(site, plan, 1, "toy-2")
    bodies = [e.body for e in site.log.entries() if e.kind.value.startswith("budget_")]
    assert [(b["run"], b["round"]) for b in bodies] == [(RUN, 1)] * 2 + [("toy-2", 2)] * 2
    site.gate.budget.require_committed(plan, "toy-2", 1, UPDATE.payload_hash)
    assert site.gate.budget.account("subject").epsilon == _epsilon(2)


def test_private_state_that_no_noise_covers_is_not_gone_on_from(world):
    """A run without differential privacy, then one by image, then one by person: each starts afresh."""
    world.policy = POLICY + 'privacy_unit = "record"\n'
    plans = [make_plan(), make_private_plan(privacy={"unit": "record"}), make_private_plan()]
    again = make_private_plan(rounds=2)
    site, _ = world.site("north")
    before, found = None, []
    for number, plan in enumerate([*plans, again], 1):
        run_id = f"toy-{number}"
        if before is not None:
            continues = Continues(
                run=f"toy-{number - 1}",
                plan_hash=before.hash.hex(),
                rounds_done=number - 1,
                model=before.initial_model,
            )
            plan = plan.model_copy(update={"continues": continues})
        world.agreed(site, plan, run_id)
        found.append(site.store.load_continued_state(plan) is not None)
        if plan.draft.privacy.unit == "none":
            site.trainer.resume(run_id, plan)
            _, state = site.trainer.train(run_id, plan, 1, initial_vector(), site.gate.budget)
            site.store.commit_round(run_id, 1, state, UPDATE)
        else:
            _train(site, plan, 1, run_id)
        site.store.end_run(run_id, "aborted", None, "amended")
        before = plan
    assert found == [False, False, False, True]


# --- the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reserved_first", [True, False])
def test_over_budget_is_refused_before_the_method_is_called_and_says_why(world, reserved_first):
    budget = _epsilon(2) + 0.001
    world.policy = POLICY.replace("max_epsilon = 8", f"max_epsilon = {budget}")
    site, plan = _agreed(world), make_private_plan()
    for number in (1, 2):
        _train(site, plan, number)
    before = list(site.log.entries())
    with pytest.raises(BudgetError) as error:
        if reserved_first:
            site.gate.budget.reserve(RUN, plan, 3)
        _train(site, plan, 3)
    assert site.methods[0].trained == [1, 2]
    assert list(site.log.entries()) == before
    assert f"round 3 would bring epsilon to {_epsilon(3):.3f}" in error.value.what
    assert f"budget is {budget:g}" in error.value.what
    assert f"{_epsilon(2):.3f} of it is spent and 0.001 left" in error.value.what
    assert "no further round of this plan fits" in error.value.what
    assert "noise_multiplier" in error.value.next_step
    assert site.gate.budget.rounds_that_fit(plan, 10) == 0


def test_a_budget_that_was_lowered_since_the_reservation_holds(world):
    site, plan = _agreed(world), make_private_plan()
    site.gate.budget.reserve(RUN, plan, 1)
    site.home.policy.write_text(POLICY.replace("max_epsilon = 8", "max_epsilon = 0.1"))
    with pytest.raises(BudgetError, match=r"this site's budget is 0\.1"):
        _train(site, plan)
    assert not site.methods[0].trained


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        ("people = 1000\n", "delta"),
        ("delta = 1e-5\n", "people"),
        ("delta = 1e-3\npeople = 1000\n", "delta"),
    ],
)
def test_without_a_delta_and_the_number_of_people_nothing_is_charged_or_trained(world, policy, key):
    site, plan = _agreed(world), make_private_plan()
    site.home.policy.write_text(policy)
    with pytest.raises(PolicyError, match=rf"\n{key}: "):
        _train(site, plan)
    assert not _kinds(site)
    assert not site.methods[0].trained


def test_nothing_is_charged_or_trained_under_a_plan_that_is_not_approved_any_more(world):
    site, plan = _agreed(world), make_private_plan()
    site.gate.budget.reserve(RUN, plan, 1)
    site.desk.plans.refuse(RUN, "changed our mind")
    for number in (1, 2):
        with pytest.raises(PlanNotApprovedError):
            _train(site, plan, number)
    assert _kinds(site) == ["budget_reserved"]
    assert not site.methods[0].trained


def test_how_many_rounds_fit_is_what_the_guard_then_allows(world):
    world.policy = POLICY.replace("max_epsilon = 8", "max_epsilon = 3")
    plan = make_private_plan(rounds=10)
    site = _agreed(world, plan)
    budget = site.gate.budget
    fits = budget.rounds_that_fit(plan, 10)
    assert 2 < fits < 10
    assert budget.forecast(plan, fits) <= 3 < budget.forecast(plan, fits + 1)
    for number in range(1, fits + 1):
        _train(site, plan, number)
        assert budget.rounds_that_fit(plan, 10) == fits - number
        assert budget.rounds_to_charge(RUN, plan) == 10 - number
    with pytest.raises(BudgetError):
        _train(site, plan, fits + 1)
    assert site.methods[0].trained == list(range(1, fits + 1))


def test_every_run_is_on_one_account_and_units_have_one_each(world):
    world.policy = POLICY + 'privacy_unit = "record"\n'
    site = _agreed(world)
    other = make_private_plan(privacy={"unit": "record"})
    _train(site, make_private_plan())
    site.store.end_run(RUN, "completed", None, "")
    world.agreed(site, other, "toy-2")
    _train(site, other, 1, "toy-2")
    site.store.end_run("toy-2", "completed", None, "")
    world.agreed(site, make_private_plan(rounds=1), "toy-3")
    _train(site, make_private_plan(rounds=1), 1, "toy-3")
    assert site.gate.budget.account("subject").charges == (Charge(4.0, 1.0, 4),)
    assert site.gate.budget.account("record").charges == (ROUND,)


def test_a_charge_that_another_process_makes_meanwhile_is_counted(world, monkeypatch):
    """Two reservations that each fit alone: the second one sees the first, however they interleave."""
    world.policy = POLICY.replace("max_epsilon = 8", f"max_epsilon = {_epsilon(1) + 0.001}")
    site, plan = _agreed(world), make_private_plan()
    other = Site(site.home)
    budget, real = site.gate.budget, BudgetBook._require_within

    def interleaved(self, *given):
        found = real(self, *given)
        if self is budget:
            monkeypatch.setattr(BudgetBook, "_require_within", real)
            other.gate.budget.reserve(RUN, plan, 2)
        return found

    monkeypatch.setattr(BudgetBook, "_require_within", interleaved)
    with pytest.raises(BudgetError):
        budget.reserve(RUN, plan, 1)
    assert _kinds(site) == ["budget_reserved"]


# --- no update without its charge -----------------------------------------------------------------


def test_an_update_without_a_charge_is_not_stored(world):
    site = _agreed(world)
    with pytest.raises(StateError, match="nothing was charged for this update"):
        site.store.commit_round(RUN, 1, {}, UPDATE)
    assert site.store.update(RUN, 1) is None


def test_a_charge_that_was_only_reserved_or_belongs_to_another_round_pays_for_nothing(world):
    site, plan = _agreed(world), make_private_plan()
    site.gate.budget.reserve(RUN, plan, 1)
    site.gate.budget.begin(RUN, plan, 2)
    with pytest.raises(StateError, match="no charge was begun"):
        site.store.commit_round(RUN, 1, {}, UPDATE, pay=partial(site.gate.budget.committed, RUN, 1))
    with pytest.raises(StateError, match="nothing was charged for this update"):
        site.store.commit_round(RUN, 1, {}, UPDATE, pay=partial(site.gate.budget.committed, RUN, 2))
    assert site.store.update(RUN, 1) is None
    assert "budget_committed" not in _kinds(site)


def test_an_update_that_came_to_be_stored_without_its_charge_stays_here(world, monkeypatch):
    site, plan = _agreed(world), make_private_plan()
    _train(site, plan)
    asked = SimpleNamespace(model_hash=UPDATE.model_hash.hex())
    monkeypatch.setattr(ManifestBook, "agreed", lambda book, place, plan: asked)
    with site.store.transaction() as db:
        db.execute("UPDATE updates SET payload_hash = ?", (b"x" * 32,))
    with pytest.raises(EgressRefusedError, match="no charge in the log"):
        site.gate.release_update(RUN, 1, 1)
    assert EntryKind.EGRESS not in {entry.kind for entry in site.log.entries()}
    with site.store.transaction() as db:
        db.execute("UPDATE updates SET payload_hash = ?", (UPDATE.payload_hash,))
    assert site.gate.release_update(RUN, 1, 1).payload_hash == UPDATE.payload_hash


def test_under_differential_privacy_an_expert_that_no_round_paid_for_stays_here(world):
    site, plan = _agreed(world), make_private_plan()
    with pytest.raises(EgressRefusedError, match="pays for an expert of toy-1"):
        site.gate.budget.require_trained(plan, RUN)
    site.gate.budget.reserve(RUN, plan, 1)
    with pytest.raises(EgressRefusedError):
        site.gate.budget.require_trained(plan, RUN)
    _train(site, plan)
    site.gate.budget.require_trained(plan, RUN)
    with pytest.raises(EgressRefusedError):
        site.gate.budget.require_trained(plan, "toy-2")


def test_the_gate_lets_out_the_update_that_was_paid_for_and_no_other(world):
    site, plan = _agreed(world), make_private_plan()
    _train(site, plan)
    budget, paid = site.gate.budget, UPDATE.payload_hash
    budget.require_committed(plan, RUN, 1, paid)
    for other in (
        (plan, RUN, 1, b"x" * 32),
        (plan, RUN, 2, paid),
        (plan, "toy-2", 1, paid),
        (make_private_plan(rounds=9), RUN, 1, paid),
    ):
        with pytest.raises(EgressRefusedError, match="no charge in the log pays"):
            budget.require_committed(*other)


def test_a_plan_without_differential_privacy_is_not_charged(world):
    plan = make_plan()
    site = _agreed(world, plan)
    site.trainer.resume(RUN, plan)
    _, state = site.trainer.train(RUN, plan, 1, initial_vector(), site.gate.budget)
    site.store.commit_round(RUN, 1, state, UPDATE)
    site.gate.budget.require_committed(plan, RUN, 1, UPDATE.payload_hash)
    assert not _kinds(site)


# --- backups --------------------------------------------------------------------------------------


def _copy(home: Home, to: Path, *, without_masking: bool) -> Path:
    shutil.copytree(home.path, to)
    if without_masking:
        shutil.rmtree(to / "masking")
    return to


def _restore(home: Home, backup: Path) -> None:
    """The backup in place of the home; what the backup lacks stays as it is."""
    for path in home.path.glob("site.sqlite3*"):
        path.unlink()
    shutil.copytree(backup, home.path, dirs_exist_ok=True)


def test_a_database_that_came_from_a_backup_regains_no_budget(world, tmp_path):
    site, plan = _agreed(world), make_private_plan()
    _train(site, plan, 1)
    backup = _copy(site.home, tmp_path / "backup", without_masking=True)
    _train(site, plan, 2)
    site.store.close()
    _restore(site.home, backup)
    again = Site(site.home)
    assert again.gate.budget.account("subject").epsilon == _epsilon(1), "less than was spent"
    with pytest.raises(BudgetError, match="came from a backup") as error:
        _train(again, plan, 2)
    assert not again.methods[0].trained
    assert "newest copy of the whole home" in error.value.next_step


def test_a_home_restored_without_its_mark_trains_nothing(world, tmp_path):
    site, plan = _agreed(world), make_private_plan()
    backup = _copy(site.home, tmp_path / "backup", without_masking=True)
    _train(site, plan, 1)
    site.store.close()
    shutil.rmtree(site.home.path)
    _restore(site.home, backup)
    again = Site(site.home)
    with pytest.raises(BudgetError, match=r"ledger\.json is gone"):
        _train(again, plan, 1)
    assert not again.methods[0].trained


def test_a_mark_of_another_database_or_damaged_counts_as_none(world, tmp_path):
    site, plan = _agreed(world), make_private_plan()
    mark = site.home.masking / "ledger.json"
    other = World(tmp_path / "other", policy=POLICY).site("north")[1].masking / "ledger.json"
    for text, why in ((other.read_text(), "not of this database"), ("{", "damaged")):
        mark.write_text(text)
        with pytest.raises(BudgetError, match=why):
            site.gate.budget.reserve(RUN, plan, 1)
    assert not _kinds(site)


# --- kill -9 --------------------------------------------------------------------------------------


def test_kill_9_at_any_step_of_a_round_never_leaves_a_training_uncharged(world):
    """Every durable step, and every moment of the training itself, dies once.

    Each call of the method must find a charge of its own on disk, in a log that other processes see.
    """
    plan, site = make_private_plan(rounds=2), _agreed(world, make_private_plan(rounds=2))
    site.store.close()
    homes, seen = world.root / "crashes", set()
    for crash_at in range(1, 200):
        home, steps, trainings = Home(homes / str(crash_at)), [], []
        shutil.copytree(site.home.path, home.path)

        def dies(step: str, steps: list[str] = steps, at: int = crash_at) -> None:
            steps.append(step)
            if len(steps) == at:
                raise Crash(step)

        finished = False
        try:
            _rounds(Site(home, dies), plan, dies, trainings)
            finished = True
        except Crash:
            _rounds(Site(home), plan, lambda step: None, trainings)
        seen |= set(steps)
        _never_undercharged(home, trainings)
        if finished:
            assert len(trainings) == 2, "without a crash every round is trained and charged once"
            break
    assert finished
    assert crash_at > 30
    assert {
        *("before commit", "committed", "ledger mark written", "drawn", "trained"),
        *("state file written", "update file written"),
    } <= seen


def _rounds(site: Site, plan: Plan, step, trainings: list[int]) -> None:
    class Watched(ToyMethod):
        def train_round(self, context, shared):
            # On a connection of its own: what is not committed is not seen.
            other = Site(site.home)
            charged = [e for e in other.log.entries() if e.kind is EntryKind.BUDGET_RESERVED]
            other.store.close()
            trainings.append(context.round)
            assert len(charged) >= len(trainings), "a batch is drawn that nobody has paid for"
            step("drawn")
            update = super().train_round(context, shared)
            step("trained")
            return update

    site.trainer._build = lambda plan, name, images: Watched(plan, name)
    try:
        for number in (1, 2):
            if site.store.update(RUN, number) is None:
                site.gate.budget.reserve(RUN, plan, number)
                _train(site, plan, number)
    finally:
        site.store.close()


def _never_undercharged(home: Home, trainings: list[int]) -> None:
    site = Site(home)
    site.log.verify()
    reserved = [e for e in site.log.entries() if e.kind is EntryKind.BUDGET_RESERVED]
    committed = [e for e in site.log.entries() if e.kind is EntryKind.BUDGET_COMMITTED]
    assert len(reserved) >= len(trainings)
    for number in (1, 2):
        paid = [e for e in reserved if e.body["round"] == number]
        assert len(paid) >= trainings.count(number)
    # Each of the two updates is paid for by a charge of its own.
    assert len({e.body["reservation"] for e in committed}) == len(committed) == 2
    assert site.gate.budget.account("subject").charges == (Charge(4.0, 1.0, 2 * len(reserved)),)
    site.store.close()


def test_what_a_plan_charges_is_its_own_mechanism():
    plan = make_private_plan(privacy={"noise_multiplier": 1, "clip_norm": 0.5, "steps": 7})
    assert Charge.of(plan.draft.privacy) == Charge(1.0, 1.0, 7)
    assert mechanism(plan)["noise_multiplier"] == "1.0"
    assert mechanism(plan)["clip_norm"] == "0.5"
