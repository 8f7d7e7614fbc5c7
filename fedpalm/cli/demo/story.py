"""The whole demo, in the order it is told; a demo that was cut off goes on at its first open step."""

from __future__ import annotations

import functools
import json
from typing import Any

from ...plan import Plan
from ..narrator import Narrator
from .federation import Federation
from .figures import Report
from .in_use import verify_a_newcomer
from .page import page
from .plans import bound_plan, warm_start
from .plots import write_plots
from .results import IN_USE, build_report
from .roles import SitePerson
from .settings import DemoSettings
from .subject import Subject, subject_of
from .supervisor import Supervisor
from .workspace import Workspace, write_durably


def tell(settings: DemoSettings, workspace: Workspace, narrator: Narrator, command: str) -> Report:
    """Run or continue the demo in ``workspace``; everything it started has ended on return.

    Raises:
        FedPalmError: with what is kept and what to do next.
        KeyboardInterrupt: no process is left, and the same command continues.
    """
    subject = subject_of(settings)
    # Inputs are looked at before anything is made.
    chosen = None if workspace.begun else subject.choose(settings)
    resumed = workspace.open(settings)
    with workspace.alone():
        if workspace.done("reported"):
            narrator.note(f"{workspace.root} is finished; this is its report")
            return Report.model_validate_json(workspace.report.read_text(encoding="utf-8"))
        if resumed:
            narrator.note(f"going on with {workspace.root}")
        with workspace.timed("whole demo"):
            workspace.once("people", lambda: (chosen or subject.choose(settings))(workspace))
            with Supervisor(workspace.logs) as supervisor:
                federation = Federation(settings, workspace, supervisor, narrator)
                federation.prepare()
                plan = bound_plan(settings, warm_start(workspace, settings))
                federation.payload_bytes = 4 * (plan.model_layout.size + len(plan.groups))
                federation.start_comparisons()
                _federate(federation, subject, workspace, plan)
                with workspace.timed("waiting for comparisons"):
                    federation.finish_comparisons()
        return _write(workspace, subject, plan, command, resumed)


def _federate(federation: Federation, subject: Subject, workspace: Workspace, plan: Plan) -> None:
    """Everything that needs the coordinator, and beside it the comparisons."""
    narrator, settings = federation.narrator, federation.settings
    if workspace.done("logged"):
        return
    with workspace.timed("enrolment"):
        federation.serve()
        federation.enrol()
        federation.submit()
    if not workspace.done("exchanged"):
        federation.run_sites()
        if not workspace.done("trained"):
            with workspace.timed("approval of the plan"):
                federation.agree()
            federation.begin()
        with workspace.timed("training"):
            workspace.once("trained", federation.train)
        if plan.expert_layout:
            with workspace.timed("exchange"):
                federation.exchange()
        federation.hear()
        workspace.record("exchanged")
        federation.stop_sites()
    with workspace.timed("evaluation"):
        narrator.note("every site evaluates, with its own state, at home")
        subject.evaluate(federation, workspace, plan)
    first, second, *_ = federation.people
    with workspace.timed("verification in use"):
        narrator.note(f"{first.name} calibrates, enrols somebody new, and verifies claims")
        newcomer = functools.partial(subject.newcomer, workspace, settings, second.name)
        told = workspace.once(IN_USE, lambda: verify_a_newcomer(first, newcomer()))
        if "refused" in told:
            narrator.note(f"{first.name} sets no threshold: {told['refused']}")
    for person in federation.people:
        if settings.private:
            workspace.once(f"budget {person.name}", person.budget)
        workspace.once(f"egress {person.name}", functools.partial(_egress, person))
    workspace.record("logged")
    federation.stop_coordinator()


def _egress(person: SitePerson) -> dict[str, Any]:
    """Totals of the site's log, after every link and signature of it was checked."""
    listed = person.egress()
    return {"totals": listed["totals"], "verified_entries": listed["verified_entries"]}


def _write(
    workspace: Workspace, subject: Subject, plan: Plan, command: str, resumed: bool
) -> Report:
    settings = workspace.load()
    report = build_report(workspace, settings, subject, plan, command, resumed=resumed)
    plots = write_plots(report, workspace.plots)
    html = page(report, plots, subject.sample(workspace, settings))
    write_durably(workspace.page, html.encode())
    workspace.write_json(workspace.report, json.loads(report.model_dump_json()))
    workspace.record("reported")
    return report
