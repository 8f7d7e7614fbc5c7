"""The federation's story, step by step, by its real commands; each step can be taken up again."""

from __future__ import annotations

import functools
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

from ...errors import ChildFailedError, NotFoundError, RoundAbortedError, StateError
from ..narrator import Narrator
from .roles import Argv, Operator, SitePerson
from .settings import WARM_START, DemoSettings, plan_toml
from .supervisor import Supervisor
from .tail import Tail
from .wording import size
from .words import words_of
from .workspace import Workspace, write_durably

_POLL_S = 0.25
_READY_S = 60.0
_CONSENT_S = 120.0
_MODEL_S = 1200.0
_BACKGROUND_NICE = 10


class Federation:
    """One coordinator and its sites as processes, and the demo in everybody's chair."""

    def __init__(
        self,
        settings: DemoSettings,
        workspace: Workspace,
        supervisor: Supervisor,
        narrator: Narrator,
    ) -> None:
        self.settings, self.workspace = settings, workspace
        self.supervisor, self.narrator = supervisor, narrator
        self.operator = Operator(workspace.coordinator, supervisor)
        self.people = [
            SitePerson(name, workspace.site(name), supervisor) for name in settings.site_names
        ]
        self._comparisons: dict[str, Tail] = {}
        self.run_id: str = ""
        self.payload_bytes = 0
        """Of an update: its values, and a weight for each group of them."""

    # -- before the first round --

    def prepare(self) -> None:
        """Plan, initial model, and the coordinator's home with its CA."""
        workspace, note = self.workspace, self.narrator.note
        if not workspace.done("plan"):
            write_durably(workspace.plan, plan_toml(self.settings.draft()).encode())
        if self.settings.private and not workspace.done("plan"):
            write_durably(workspace.policy, self.settings.policy_toml().encode())
            note("the operator trains a warm start on drawn palms of nobody: it costs no privacy")
        with workspace.timed("initial model"):
            workspace.once("plan", self._initial_model)
        if not workspace.done("found"):
            note("the operator founds the federation: its CA, coordinator and operator identity")
        workspace.once("found", self._found)

    def serve(self) -> None:
        """Start the coordinator and wait until it answers the operator."""
        self.operator.serve()
        self._wait(self.operator.listening, _READY_S, "the coordinator does not answer")

    def enrol(self) -> None:
        """The operator invites; each site makes its keys and asks; the operator approves what it shows."""
        self.workspace.once("invited", self._invite)
        for person in self.people:
            step = f"enrolled {person.name}"
            if self.workspace.done(step):
                continue
            invitation = self.workspace.invitation(person.name)
            images = self.workspace.images(person.name)
            policy = self.workspace.policy if self.settings.private else None
            backbone = self.settings.backbones.get(person.name)
            join = functools.partial(
                person.join, invitation, images, self.settings.modality, backbone, policy
            )
            joined = join()
            if joined["state"] == "waiting":
                shown = str(joined["fingerprint"])
                self.narrator.note(f"{person.name} made its keys and asks with {shown[:9]} \u2026")
                self.operator.approve(person.name, shown)
                joined = join()
            if joined["state"] != "member":
                raise StateError(f"{person.name} is not a member after its approval: {joined}")
            self.workspace.record(step)
            self.narrator.note(
                f"the operator saw the same fingerprint and approved: {person.name} is a member"
                + (f", with {backbone}" if backbone else "")
            )

    def _invite(self) -> bool:
        names = [person.name for person in self.people]
        self.workspace.invitations.mkdir(parents=True, exist_ok=True)
        for name in names:
            # What an interrupted try left; nobody has used it.
            self.workspace.invitation(name).unlink(missing_ok=True)
        self.operator.invite(names, self.workspace.invitations)
        self.narrator.note("the operator invites every site: a one-time token each, for 72 hours")
        return True

    def _initial_model(self) -> Any:
        plan, out = self.workspace.plan, self.workspace.initial_model
        made = ["init"]
        if self.settings.private:
            sizes = [part for key, size in WARM_START.items() for part in (f"--{key}", str(size))]
            made = ["pretrain", *sizes]
        argv: Argv = [sys.executable, "-m", "fedpalm", "model", *made, plan, "--out", out]
        return self.supervisor.run_json("model", argv, timeout_s=_MODEL_S)

    def _found(self) -> bool:
        if not (self.workspace.coordinator / "coordinator.toml").exists():
            # What an interrupted foundation left: nobody holds a certificate of it.
            shutil.rmtree(self.workspace.coordinator, ignore_errors=True)
            self.operator.found()
        return True

    # -- rounds --

    def submit(self) -> str:
        """Submit the plan, or find the run that this demo began."""
        self.run_id = str(self.workspace.once("run_id", self._submit))
        return self.run_id

    def _submit(self) -> str:
        run_id = self.operator.submit(self.workspace.plan, self.workspace.initial_model)
        self.narrator.note(f"the operator submitted the plan: run {run_id}")
        return run_id

    def run_sites(self) -> None:
        """Start every site's agent; it dials out and does what its log and the plan allow."""
        for person in self.people:
            person.run()

    def agree(self) -> None:
        """Every site's person reviews the plan that was offered, and approves it."""
        for person in self.people:
            step = f"approved {person.name}"
            if self.workspace.done(step):
                continue
            self._wait(
                functools.partial(self._reviewed, person),
                _CONSENT_S,
                f"{person.name} was never offered the plan",
            )
            person.approve_plan(self.run_id)
            self.workspace.record(step)
            self.narrator.note(
                f"the demo, as {person.name}\u2019s person, reviews and approves the plan"
            )

    def _reviewed(self, person: SitePerson) -> bool:
        try:
            person.review_plan(self.run_id)
        except NotFoundError:
            return False  # the offer is still on its way to the site
        return True

    def begin(self) -> None:
        """Start the run, or let a paused one go on."""
        state = self.operator.status(self.run_id)["state"]
        if state == "created":
            self.operator.start(self.run_id)
        elif state == "paused":
            self.operator.resume(self.run_id)

    def train(self) -> dict[str, Any]:
        """Follow the rounds to the end; returns the last status.

        Raises:
            RoundAbortedError, ChildFailedError: with what to do next.
        """
        status = self._follow(
            exchange=False, over=lambda s: s["state"] not in ("created", "running")
        )
        if status["state"] == "completed":
            return status
        raise RoundAbortedError(
            f"run {self.run_id} is {status['state']}: {status['reason']}",
            safe="the newest committed model is kept by the coordinator",
            next_step=f"look into {self.workspace.logs}; the same command goes on if it can",
        )

    def exchange(self) -> None:
        """The one release of experts: the operator proposes it, every site's person says yes."""
        state = self.operator.status(self.run_id)["exchange"]["state"]
        if state == "completed":
            return
        if state in ("", "cancelled"):
            self.operator.propose_exchange(self.run_id, "to verify with the experts of all sites")
            self.narrator.note("the operator proposes the exchange; now every site is asked")
        for person in self.people:
            self._consent(person)
        status = self._follow(
            exchange=True, over=lambda s: s["exchange"]["state"] in ("completed", "cancelled")
        )
        if status["exchange"]["state"] != "completed":
            raise StateError(
                f"the exchange was cancelled: {status['exchange']['reason']}",
                safe="no expert was released in the clear",
                next_step="run the same command again",
            )

    def _consent(self, person: SitePerson) -> None:
        if person.name in self.operator.status(self.run_id)["exchange"]["consented"]:
            return
        self._wait(
            lambda: self._said_yes(person), _CONSENT_S, f"{person.name} was never asked for consent"
        )
        self.narrator.note(f"the demo, as {person.name}\u2019s person, approves the exchange")

    def _said_yes(self, person: SitePerson) -> bool:
        try:
            person.approve_exchange(self.run_id)
        except (StateError, NotFoundError):
            return False  # the proposal is still on its way to the site
        return True

    def _follow(self, *, exchange: bool, over: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Show the run as it goes; the last status once ``over`` holds."""
        tail = Tail(self.supervisor.log_of("watch"))
        watch = self.operator.watch(self.run_id, exchange=exchange)
        while True:
            ended = not watch.running
            for status in tail.objects():
                if "state" not in status:
                    continue
                self._show(status, exchange)
                if over(status):
                    self.supervisor.end("watch")
                    return status
            if ended:
                raise self.supervisor.failure(watch, "ended before the run did")
            self.show_comparisons()
            self.supervisor.check()
            time.sleep(_POLL_S)

    def _show(self, status: dict[str, Any], exchange: bool) -> None:
        sites = self.settings.sites
        if exchange:
            done = len(status["exchange"]["delivered"])
            self.narrator.track("experts exchanged", sites, done, status["exchange"]["state"])
            return
        number, completed = status["round"], status["state"] == "completed"
        rounds_done = number if completed else max(0, number - 1)
        sent = (rounds_done * sites + (0 if completed else len(status["delivered"]))) * (
            self.payload_bytes
        )
        state = f"round {number}: {len(status['delivered'])} of {sites} sites delivered, "
        detail = ("" if completed or not number else state) + f"{size(sent)} of updates"
        self.narrator.track("rounds", self.settings.rounds, rounds_done, detail)

    # -- what it is compared with --

    def start_comparisons(self) -> None:
        """Train the comparisons in processes of their own, behind the real ones."""
        for method in self.settings.contenders[1:]:
            if self.workspace.result(method).exists():
                continue
            self._comparisons[method] = Tail(self.supervisor.log_of(f"compare-{method}"))
            argv: Argv = [
                sys.executable,
                "-m",
                "fedpalm.cli.demo.comparison",
                self.workspace.root,
                method,
            ]
            self.supervisor.start(f"compare-{method}", argv, nice=_BACKGROUND_NICE)

    def show_comparisons(self) -> None:
        for method, tail in self._comparisons.items():
            for line in tail.objects():
                if "round" in line:
                    label = f"compared with {words_of(self.settings).labels[method]}"
                    self.narrator.track(label, line["rounds"], line["round"])

    def finish_comparisons(self) -> None:
        """Wait for the comparisons' results."""
        names = [f"compare-{method}" for method in self._comparisons]
        while any(child.name in names for child in self.supervisor.running()):
            self.show_comparisons()
            self.supervisor.check()
            time.sleep(_POLL_S)
        self.show_comparisons()
        self.supervisor.check()

    # -- afterwards --

    def hear(self) -> None:
        """Wait until every site was told that the run is over: then its model is one to verify with."""
        for person in self.people:
            self._wait(
                functools.partial(_heard, person),
                _CONSENT_S,
                f"{person.name} was not told that the run is over",
            )

    def stop_sites(self) -> None:
        for person in self.people:
            self.supervisor.end(person.name)

    def stop_coordinator(self) -> None:
        self.supervisor.end("coordinator")

    def evaluate(self, options: Callable[[str], Argv]) -> None:
        """Every site evaluates at home, with ``options`` of its name; steps ``evaluated SITE``."""
        seed = ("--seed", str(self.settings.seed))
        for number, person in enumerate(self.people):
            told = functools.partial(person.evaluate, *seed, *options(person.name))
            self.workspace.once(f"evaluated {person.name}", told)
            self.narrator.track("sites evaluated", self.settings.sites, number + 1)
            self.show_comparisons()

    def export(self, rounds: list[int]) -> None:
        """The coordinator's stored global models as files."""
        for number in rounds:
            if not self.workspace.model(number).exists():
                self.operator.export(self.run_id, number, self.workspace.model(number))

    def _wait(self, ready: Callable[[], bool], patience_s: float, what: str) -> None:
        until = time.monotonic() + patience_s
        while not ready():
            self.supervisor.check()
            if time.monotonic() > until:
                raise ChildFailedError(
                    f"{what} (waited {patience_s:.0f} s)",
                    safe="every finished step is kept",
                    next_step=f"look into {self.workspace.logs}, then run the same command again",
                )
            time.sleep(_POLL_S)


def _heard(person: SitePerson) -> bool:
    return bool(person.status()["run"]["state"] == "completed")
