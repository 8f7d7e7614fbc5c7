"""What a site keeps of masked attempts, and when it is gone: looked at in the files themselves."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fedpalm.errors import (
    ContributionReuseError,
    EgressRefusedError,
    KeyFileError,
    PlanNotApprovedError,
    StaleRoundError,
)
from fedpalm.methods.contribution import masking_terms
from fedpalm.pki.keys import SigningKey
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.secagg import site as core
from fedpalm.secagg.memory import ContributionMemory
from fedpalm.secagg.site import AttemptFacts, SiteAttempt, Stage
from participant.budget import BudgetBook
from participant.cli.status import _MASKING_STEPS, status
from participant.ending import ExitAfter
from participant.ledger_mark import LEDGER_MARK
from participant.masked_store import BEFORE
from participant.masking_memory import MEMORY
from participant.outgoing import Place
from participant.plan_book import PlanState
from participant.release import refused
from tests.support.aio import in_loop
from tests.support.masked_rounds import MaskedCoordinator, masked_plan
from tests.support.participant import SITES, Site, World
from tests.support.rounds import Chain

RUN, LATER = "toy-1", "toy-2"
PLACE = Place(RUN, 1, 1)
STEPS: dict[Stage, Callable[..., Any]] = {
    Stage.KEYED: core.begin,
    Stage.SHARED: core.share,
    Stage.MASKED: core.mask,
    Stage.AGREED: core.agree,
    Stage.REVEALED: core.reveal,
}


@dataclass
class Play:
    """A masked attempt of ``north`` as its gate stores it, step by step, with two honest others."""

    world: World
    site: Site
    plan: Plan
    manifest: RoundManifest
    attempts: dict[str, SiteAttempt] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        return Place(self.manifest.run, self.manifest.round, self.manifest.attempt)

    def key(self, name: str) -> SigningKey:
        own = self.site.live.current if name == "north" else self.world.absent(name)
        return own.signing_key

    def facts(self, name: str) -> AttemptFacts:
        keys = {one: self.key(one).public_key() for one in self.manifest.cohort}
        terms = masking_terms(self.plan)
        assert terms is not None
        return AttemptFacts(terms, name, self.manifest.hash, tuple(self.manifest.cohort), keys)

    def until(self, last: Stage) -> Play:
        """Every site goes through the steps; what ``north`` does is stored."""
        said: list[Any] = []
        for stage, step in STEPS.items():
            masked = self.vector() if stage is Stage.MASKED else None
            said = [one for name in SITES for one in self.step(name, step, said, masked)]
            self.site.gate.keep_masked(self.place, self.attempts["north"], masked)
            if stage is last:
                break
        return self

    def step(
        self, name: str, step: Callable[..., Any], came: list[Any], masked: np.ndarray | None
    ) -> Sequence[Any]:
        """One site's messages; ``north`` masks ``masked`` in place, the others copies of it."""
        if step is core.begin:
            self.attempts[name], said = core.begin(self.facts(name), self.key(name))
            return [said]
        arguments: list[Any] = [came]
        if masked is not None:
            mine = [box for box in came if box.recipient == name]
            arguments = [mine, masked if name == "north" else masked.copy()]
        self.attempts[name], said = step(self.attempts[name], *arguments, self.key(name))
        return said if isinstance(said, tuple) else [said]

    def vector(self) -> np.ndarray:
        path = self.site.store.update(self.manifest.run, self.manifest.round).path
        return np.fromfile(path, "<u4").astype(np.uint32)


def _play(world: World, site: Site | None = None, run: str = RUN) -> Play:
    """``north`` has trained round 1 of a run, and all have signed its manifest."""
    plan = masked_plan()
    site = site or world.site("north")[0]
    world.agreed(site, plan, run)
    manifest = Chain(world, plan, run).ask(site, signers=("east", "west"))
    method = site.trainer.prepare(run, plan)
    shared = method.initial_vector()
    update, state = site.trainer.train(run, plan, 1, shared, site.gate.budget)
    encoded = site.gate.encode_update(
        *(run, 1, bytes.fromhex(manifest.model_hash), method.layout, update),
        shared=shared,
        private=state,
    )
    site.store.commit_round(run, 1, state, encoded)
    return Play(world, site, plan, manifest)


def _secrets(site: Site) -> list[str]:
    """Every file of ``masking/`` but what the site remembers."""
    kept = (MEMORY, LEDGER_MARK)
    return sorted(path.name for path in site.home.masking.iterdir() if path.name not in kept)


def _vectors(site: Site) -> list[Path]:
    return list(site.home.state.glob("*.masked"))


def _is_gone(site: Site, place: Place = PLACE) -> bool:
    return not _secrets(site) and not _vectors(site) and site.gate.masked.row(place).stage == "dead"


def test_a_secret_file_is_overwritten_before_its_name_goes(world, tmp_path):
    site = _play(world).until(Stage.KEYED).site
    (name,) = _secrets(site)
    kept = tmp_path / "the same file"
    kept.hardlink_to(site.home.masking / name)
    assert any(kept.read_bytes())
    site.gate.masked.kill(RUN)
    assert _is_gone(site)
    assert not any(kept.read_bytes())


def test_no_stage_of_an_attempt_is_kept_or_sent_without_the_charge_for_its_update(
    world, monkeypatch
):
    play, asked = _play(world), []

    def uncharged(book, plan, run_id, round_number, update):
        asked.append((run_id, round_number, update))
        raise refused("no charge")

    update = play.site.store.update(RUN, 1)
    with monkeypatch.context() as patch:
        patch.setattr(BudgetBook, "require_committed", uncharged)
        with pytest.raises(EgressRefusedError, match="no charge"):
            play.until(Stage.KEYED)
    assert _secrets(play.site) == [] and play.site.gate.masked.row(PLACE) is None
    play.until(Stage.MASKED)
    with monkeypatch.context() as patch:
        patch.setattr(BudgetBook, "require_committed", uncharged)
        with pytest.raises(EgressRefusedError, match="no charge"):
            play.site.gate.release_masked(PLACE)
    assert asked == [(RUN, 1, update.payload_hash)] * 2


# --- an attempt whose run goes no further here ----------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.KEYED, Stage.MASKED, Stage.AGREED])
def test_a_persons_no_in_another_process_erases_the_attempts_secrets(world, stage):
    site = _play(world).until(stage).site
    assert len(_secrets(site)) == 1 and len(_vectors(site)) == (stage is not Stage.KEYED)
    Site(site.home).desk.plans.refuse(RUN, "changed my mind")
    assert _is_gone(site)


def test_a_policy_that_forbids_the_plan_erases_them_too(world):
    site = _play(world).until(Stage.MASKED).site
    site.home.policy.write_text("min_colluders = 2\n")
    assert site.desk.plans.consider(RUN).state is PlanState.REFUSED
    assert _is_gone(site)


@in_loop
async def test_a_run_that_is_left_for_another_leaves_no_secret(world):
    site = _play(world).until(Stage.MASKED).site
    after = masked_plan()
    site.desk.plans.propose(LATER, after, world.offer(after, LATER))
    site.desk.plans.approve(LATER)

    class Link:
        async def join_run(self, run_id):
            assert run_id == LATER

    agent = site.agent(MaskedCoordinator(world, after), ExitAfter.NEVER)
    await agent._offers._join(Link(), LATER)
    assert site.store.run(RUN).state == "left"
    assert _is_gone(site)


@pytest.mark.parametrize(
    "ended", ["UPDATE runs SET state = 'left'", "UPDATE plans SET state = 'refused'"]
)
def test_at_the_start_secrets_of_runs_that_do_not_go_on_here_are_erased(world, ended):
    site = _play(world).until(Stage.MASKED).site
    with site.store.transaction() as db:
        db.execute(ended)  # as if the process had ended right after it
    assert _secrets(site)
    assert site.gate.masked.start() == []
    assert _is_gone(site)


def test_a_start_keeps_the_attempt_of_a_run_that_goes_on(world):
    site = _play(world).until(Stage.MASKED).site
    before = _secrets(site), _vectors(site)
    assert Site(site.home).gate.masked.start() == []
    assert (_secrets(site), _vectors(site)) == before


def test_a_no_to_one_run_touches_nothing_that_is_being_written_for_another(world):
    site = _play(world).until(Stage.KEYED).site
    unnamed = site.home.masking / f"{RUN}-r1-a1-{'0' * 16}.secret"
    update = site.home.state / "written-but-not-committed.update"
    for path in (unnamed, update):
        path.write_bytes(b"the agent has written this and not yet committed its row")
    after = masked_plan()
    site.desk.plans.propose(LATER, after, world.offer(after, LATER))
    Site(site.home).desk.plans.refuse(LATER)
    assert unnamed.exists() and update.exists()
    Site(site.home).desk.plans.refuse(RUN)
    assert _is_gone(site) and update.exists()


def test_a_no_between_the_writing_of_a_stage_and_its_commit_leaves_no_file(world):
    play = _play(world)
    site = play.site

    def refuse(step: str) -> None:
        if step == "masking file written":
            assert _secrets(site)
            Site(site.home).desk.plans.refuse(RUN)

    site.store.on_step = refuse
    with pytest.raises(PlanNotApprovedError):
        play.until(Stage.KEYED)
    assert _secrets(site) == []


# --- the memory, and homes that were put back -----------------------------------------------------


def test_the_memory_is_written_while_no_other_thread_of_the_site_writes_files(world):
    site = _play(world).until(Stage.KEYED).site
    path = site.home.masking / MEMORY
    empty = {"home": site.store.masking_mark(), **ContributionMemory().to_json()}
    path.write_text(json.dumps(empty))
    thread = threading.Thread(target=site.gate.masked.stored)
    with site.store.files():
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and RUN.encode() not in path.read_bytes()
    thread.join(10)
    assert RUN.encode() in path.read_bytes()


def _saved(site: Site, *, database: bool, masking: bool) -> dict[Path, bytes]:
    """A copy of these parts of a home whose processes have ended."""
    site.store.close()
    paths = [site.home.database] if database else []
    paths += site.home.masking.iterdir() if masking else []
    return {path: path.read_bytes() for path in paths}


def _put_back(site: Site, saved: dict[Path, bytes]) -> Site:
    """The home with these parts as they were, opened again."""
    site.store.close()
    if site.home.database in saved:
        for suffix in ("-wal", "-shm"):
            site.home.database.with_name(site.home.database.name + suffix).unlink(missing_ok=True)
    if any(path.parent == site.home.masking for path in saved):
        for path in site.home.masking.iterdir():
            path.unlink()
    for path, data in saved.items():
        path.write_bytes(data)
    return Site(site.home)


def _given(world: World) -> tuple[Site, dict[str, dict[Path, bytes]]]:
    """A site that gave shares, and what was saved of it before its attempt began."""
    site = _play(world).site
    site.gate.masked.stored()
    saved = {
        "database": _saved(site, database=True, masking=False),
        "masking": _saved(site, database=False, masking=True),
    }
    again = Site(site.home)
    _begins(world, again).until(Stage.REVEALED)
    return again, saved


@pytest.mark.parametrize("part", ["database", "masking"])
def test_a_database_or_a_masking_folder_of_before_the_attempt_forgets_nothing_that_was_given(
    world, part
):
    site, saved = _given(world)
    again = _put_back(site, saved[part])
    again.gate.masked.start()
    assert _secrets(again) == []
    model = masked_plan().initial_model
    assert set(again.gate.masked.memory().given) == {model}
    with pytest.raises((StaleRoundError, ContributionReuseError)):
        _begins(world, again).until(Stage.KEYED)
    assert _secrets(again) == []


def test_a_home_of_before_its_first_masked_attempt_masks_nothing_more(world):
    saved = _saved(_play(world).site, database=True, masking=False)
    site = Site(world.home("north"))
    _begins(world, site).until(Stage.MASKED)
    (site.home.masking / MEMORY).unlink()
    again = _put_back(site, saved)
    for _ in range(2):
        again.gate.masked.start()
        with pytest.raises(ContributionReuseError, match="came from a backup") as refused:
            _begins(world, again).until(Stage.KEYED)
        assert "make a new home" in refused.value.next_step
    assert again.gate.masked.row(PLACE) is None
    with again.store.transaction() as db:
        again.gate.masked.require_never_masked(db, bytes(32))


def test_a_new_database_beside_the_memory_of_another_one_masks_nothing(world):
    site = _play(world).until(Stage.MASKED).site
    said = (site.home.masking / MEMORY).read_bytes()
    site.store.close()
    # The vault's mark would be in its way, too.
    for path in (*site.home.path.glob("site.sqlite3*"), *site.home.path.glob("vault.*")):
        path.unlink()
    again = _play(world)
    assert (site.home.masking / MEMORY).read_bytes() == said
    with pytest.raises(ContributionReuseError, match="not of this database"):
        again.until(Stage.KEYED)


def test_a_home_whose_making_was_interrupted_masks_later(world):
    class Crash(Exception):
        pass

    def crash(step: str) -> None:
        if step == "masking memory begun":
            raise Crash

    with pytest.raises(Crash):
        world.site("north", crash)
    assert _play(world).until(Stage.REVEALED).site.gate.masked.row(PLACE).stage == "revealed"


def test_a_memory_that_is_damaged_is_not_begun_anew(world):
    home = world.home("north")
    (home.masking / MEMORY).write_text("{")
    with pytest.raises(KeyFileError, match="damaged"):
        _play(world).until(Stage.KEYED)


def test_a_masking_folder_of_an_earlier_stage_is_not_gone_on_with(world):
    site, early = (play := _play(world)).site, {}

    def save(step: str) -> None:
        if step == "masking memory written" and not early:
            early.update({path: path.read_bytes() for path in site.home.masking.iterdir()})

    site.store.on_step = save
    play.until(Stage.MASKED)
    again = _put_back(site, early)
    assert again.gate.masked.row(PLACE).stage == "masked"
    assert again.gate.masked.start() == [PLACE]
    assert _is_gone(again)


def test_a_whole_home_that_was_put_back_after_another_boot_begins_no_attempt_again(world):
    site = _play(world).until(Stage.KEYED).site
    saved = _saved(site, database=True, masking=True)
    site = Site(site.home)
    site.gate.masked.kill(RUN)
    again = _put_back(site, saved)
    assert again.gate.masked.row(PLACE).stage == "keyed"
    again.gate.masked._boot = lambda: "another boot"
    assert again.gate.masked.start() == [PLACE]
    assert _is_gone(again)
    with pytest.raises(StaleRoundError, match="does not come after dead"):
        _begins(world, again).until(Stage.KEYED)


# --- one contribution to a model ------------------------------------------------------------------


def test_after_shares_were_given_no_other_run_gets_a_masked_update_of_the_same_model(world):
    site = _play(world).until(Stage.REVEALED).site
    site.gate.masked.kill(RUN)
    site.store.end_run(RUN, "aborted", None, "over")
    play = _play(world, site, LATER)
    assert play.manifest.model_hash == masked_plan().initial_model
    with pytest.raises(ContributionReuseError, match="model"):
        play.until(Stage.KEYED)
    assert site.gate.masked.row(play.place) is None
    assert _secrets(site) == []


@pytest.mark.parametrize("stage", [Stage.MASKED, Stage.AGREED])
def test_a_model_that_was_masked_from_is_masked_from_in_no_other_run_though_no_shares_were_given(
    world, stage
):
    site = _play(world).until(stage).site
    site.gate.masked.kill(RUN)
    site.store.end_run(RUN, "aborted", None, "over")
    play = _play(world, site, LATER)
    with pytest.raises(ContributionReuseError, match=f"in run {RUN}") as refused:
        play.until(Stage.KEYED)
    assert "plan submit --changed" in refused.value.next_step
    with site.store.transaction() as db:
        db.execute("DELETE FROM masked_attempts")  # the copy alone remembers it, too
    with pytest.raises(ContributionReuseError, match=f"in run {RUN}"):
        play.until(Stage.KEYED)


def test_an_attempt_that_masked_nothing_does_not_keep_another_run_from_the_model(world):
    site = _play(world).until(Stage.SHARED).site
    site.gate.masked.kill(RUN)
    site.store.end_run(RUN, "aborted", None, "over")
    play = _play(world, site, LATER).until(Stage.REVEALED)
    assert site.gate.masked.row(play.place).stage == "revealed"


def _begins(world: World, site: Site) -> Play:
    """The same attempt, in a home that was opened again."""
    manifest = RoundManifest.read(site.gate.manifests.chain(RUN)[-1])
    return Play(world, site, masked_plan(), manifest)


# --- what a person sees ---------------------------------------------------------------------------


def _status(site: Site, *more: str) -> str:
    done = CliRunner().invoke(status, ["--home", str(site.home.path), *more])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (Stage.KEYED, "step 1 of 5, its keys"),
        (Stage.MASKED, "step 3 of 5, its masked update"),
        (Stage.REVEALED, "step 5 of 5, the shares that open the sum"),
    ],
)
def test_status_tells_the_step_that_a_masked_attempt_has_come_to(world, stage, told):
    site = _play(world).until(stage).site
    assert f"round 1, attempt 1: {told}" in _status(site)
    found = json.loads(_status(site, "--json"))["run"]["masking"]
    assert found == {"round": 1, "attempt": 1, "stage": stage.value}
    site.gate.masked.kill(RUN)
    assert "attempt 1" not in _status(site)
    assert json.loads(_status(site, "--json"))["run"]["masking"] is None


def test_status_has_words_for_every_stage():
    assert set(_MASKING_STEPS) == set(BEFORE)
