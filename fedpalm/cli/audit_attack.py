"""``fedpalm audit attack``: try to refute what private training claims, on the installed software."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from .console import command_errors, emit, err, json_option
from .narrator import Narrator

if TYPE_CHECKING:
    from ..attack.findings import Finding
    from ..attack.runner import Report

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("attack")
@click.option(
    "--thorough", is_flag=True, help="20,000 canaries, every method, both backbones; ten minutes."
)
@click.option("--bundle", type=_FILE, help="A site's exported bundle, whose account is recomputed.")
@click.option("--trust", type=_FILE, help="With --bundle: your pinned trust, as for `verify`.")
@click.option("--seed", type=click.IntRange(0), help="Of the auditor's coins; else drawn.")
@json_option
@command_errors
def attack_command(
    thorough: bool, bundle: Path | None, trust: Path | None, seed: int | None, as_json: bool
) -> None:
    """Try to refute what private training claims: canaries, direct tests, and a log's account.

    Trains on this machine, on people that are made up here; no site's images are read. Exit codes: 0
    nothing was refuted, 27 a claim was refuted. An honest path is accused in at most one of fifty audits.
    """
    try:
        from ..attack.probe import TrainingPath
        from ..attack.runner import REFUTED_EXIT, audit, standard
        from ..attack.runner import thorough as every
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"an empirical audit trains, and needs {error.name}",
            next_step="install it: pip install 'fedpalm[site]'",
        ) from error
    drawn = secrets.randbelow(2**31) if seed is None else seed
    ledger = recomputed(bundle, trust)
    with Narrator(err()) as narrator:
        report = audit(
            TrainingPath(),
            every() if thorough else standard(),
            drawn,
            ledger=ledger,
            say=narrator.note,
        )
    emit({"seed": drawn, "thorough": thorough, **report.to_json()}, as_json, verdict(report))
    raise SystemExit(0 if report.passed else REFUTED_EXIT)


def recomputed(bundle: Path | None, trust: Path | None) -> list[Finding]:
    """What recomputing a bundle's account finds; nothing without a bundle.

    Raises:
        ConfigError: a bundle without trust, or the other way round.
    """
    if bundle is None and trust is None:
        return []
    if bundle is None or trust is None:
        raise ConfigError(
            "--bundle and --trust go together",
            next_step="name both, or neither and the ledger is not looked at",
        )
    from ..attack.account import of_findings
    from ..audit.trust import read_trust
    from ..audit.verify import verify_bundle

    return of_findings(verify_bundle(bundle, read_trust(trust)).findings)


def verdict(report: Report) -> Group:
    """For people: every test, then the membership figures."""
    tests = Table("detector", "test", "found", "expected", "p", "")
    for one in report.findings:
        refuted = one in report.refuted
        tests.add_row(
            one.detector,
            one.test,
            one.figure,
            one.expected,
            f"{one.p_value:.2g}",
            Text("refuted" if refuted else "holds", style="bold red" if refuted else "green"),
        )
    members = Table("membership inference", "epsilon", "AUC (standard error)", "TPR at FPR")
    for trial in report.membership:
        epsilon = "none" if trial["epsilon"] is None else f"{trial['epsilon']:.2f}"
        for name, figures in trial["attacks"].items():
            members.add_row(
                name,
                epsilon,
                f"{figures['auc']:.2f} ({figures['auc_error']:.2f})",
                f"{figures['tpr']:.2f} at {figures['fpr']:.2f}",
            )
    notes = [f"False alarms: at most {report.false_alarm:.0%} of audits of an honest path."]
    if not any(one.detector == "ledger" for one in report.findings):
        notes.append("No log was looked at: name a site's bundle with --bundle and --trust.")
    result = (
        Text("nothing was refuted", style="bold green")
        if report.passed
        else Text(f"refuted: {', '.join(one.test for one in report.refuted)}", style="bold red")
    )
    return Group(tests, members, Text("\n".join(notes)), result)
