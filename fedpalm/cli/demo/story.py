"""The whole demo, in the order it is told; a demo that was cut off goes on at its first open step."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from ...data.palms import contact_sheet
from ...data.records import by_identity
from ...plan import Plan
from ..narrator import Narrator
from .comparison import bound_plan, checkpoints, warm_start
from .federation import Federation
from .figures import Report
from .in_use import verify_a_newcomer
from .page import page
from .people import choose_people, split_of, write_open_lists, write_people
from .plots import write_plots
from .results import IN_USE, build_report, converge, score_warm_start
from .roles import SitePerson
from .settings import SYNTHETIC, DemoSettings
from .supervisor import Supervisor
from .workspace import Workspace, write_durably

_SAMPLE_ROWS, _SAMPLE_COLUMNS, _SAMPLE_SIDE_PX = 2, 10, 96


def tell(settings: DemoSettings, workspace: Workspace, narrator: Narrator, command: str) -> Report:
    """Run or continue the demo in ``workspace``; everything it started has ended on return.

    Raises:
        FedPalmError: with what is kept and what to do next.
        KeyboardInterrupt: no process is left, and the same command continues.
    """
    # Inputs are looked at before anything is made.
    people = None if workspace.begun else choose_people(settings)
    resumed = workspace.open(settings)
    with workspace.alone():
        if workspace.done("reported"):
            narrator.note(f"{workspace.root} is finished; this is its report")
            return Report.model_validate_json(workspace.report.read_text(encoding="utf-8"))
        if resumed:
            narrator.note(f"going on with {workspace.root}")
        with workspace.timed("whole demo"):
            workspace.once(
                "people",
                lambda: write_people(workspace, settings, people or choose_people(settings)),
            )
            with Supervisor(workspace.logs) as supervisor:
                federation = Federation(settings, workspace, supervisor, narrator)
                federation.prepare()
                plan = bound_plan(settings, warm_start(workspace, settings))
                federation.start_comparisons()
                _federate(federation, settings, workspace, plan)
                with workspace.timed("waiting for comparisons"):
                    federation.finish_comparisons()
        return _write(workspace, settings, plan, command, resumed)


def _federate(
    federation: Federation, settings: DemoSettings, workspace: Workspace, plan: Plan
) -> None:
    """Everything that needs the coordinator, and beside it the comparisons."""
    narrator = federation.narrator
    if workspace.done("logged"):
        return
    with workspace.timed("enrolment"):
        federation.serve()
        federation.enrol()
        run_id = federation.submit()
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
        workspace.record("exchanged")
        federation.stop_sites()
    with workspace.timed("evaluation"):
        narrator.note("every site evaluates, with its own state, at home")
        _evaluate(federation, settings, workspace)
        federation.export(run_id, checkpoints(settings.rounds))
        workspace.once("convergence", lambda: converge(workspace, plan))
        if settings.private:
            workspace.once("warm start", lambda: score_warm_start(workspace, plan))
    first, second, *_ = federation.people
    with workspace.timed("verification in use"):
        narrator.note(f"{first.name} calibrates, enrols somebody new, and verifies two claims")
        told = workspace.once(IN_USE, lambda: verify_a_newcomer(first, workspace, second.name))
        if "refused" in told:
            narrator.note(f"{first.name} sets no threshold: {told['refused']}")
    for person in federation.people:
        if settings.private:
            workspace.once(f"budget {person.name}", person.budget)
        workspace.once(f"egress {person.name}", functools.partial(_egress, person))
    workspace.record("logged")
    federation.stop_coordinator()


def _evaluate(federation: Federation, settings: DemoSettings, workspace: Workspace) -> None:
    """Each site its closed set; the first one also scores the pooled open set of all sites.

    After the exchange all sites hold the same experts, so the open-set templates of any of them are
    those of all.
    """
    gallery, probe = workspace.images("open-gallery"), workspace.images("open-probe")
    write_open_lists([split_of(workspace, site) for site in settings.site_names], gallery, probe)
    for number, person in enumerate(federation.people):
        pooled: list[str | Path] = ["--open-set", gallery, probe] if number == 0 else []
        workspace.once(
            f"evaluated {person.name}",
            functools.partial(person.evaluate, "--seed", str(settings.seed), *pooled),
        )
        federation.narrator.track("sites evaluated", settings.sites, number + 1)
        federation.show_comparisons()


def _egress(person: SitePerson) -> dict[str, Any]:
    """Totals of the site's log, after every link and signature of it was checked."""
    listed = person.egress()
    return {"totals": listed["totals"], "verified_entries": listed["verified_entries"]}


def _write(
    workspace: Workspace, settings: DemoSettings, plan: Plan, command: str, resumed: bool
) -> Report:
    report = build_report(workspace, settings, plan, command, resumed=resumed)
    plots = write_plots(report, workspace.plots)
    html = page(report, plots, _sample(workspace, settings))
    write_durably(workspace.page, html.encode())
    workspace.write_json(workspace.report, json.loads(report.model_dump_json()))
    workspace.record("reported")
    return report


def _sample(workspace: Workspace, settings: DemoSettings) -> bytes | None:
    """A strip of training images: of synthetic palms only, for a report holds no biometric image."""
    if settings.data != SYNTHETIC:
        return None
    groups = list(by_identity(split_of(workspace, settings.site_names[0]).train).values())
    each = min(_SAMPLE_COLUMNS, *(len(group) for group in groups))
    abreast = max(1, _SAMPLE_COLUMNS // each)
    people = groups[: abreast * max(1, min(_SAMPLE_ROWS, len(groups) // abreast))]
    records = [record for group in people for record in group[:each]]
    columns = each * min(abreast, len(people))
    contact_sheet(records, workspace.sample, columns, _SAMPLE_SIDE_PX)
    return workspace.sample.read_bytes()
