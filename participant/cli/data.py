"""``evaluate`` and ``preflight``: what can be said about the site's own images, at the site."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import ConfigError

from ..config import Home
from .site import open_site

_LIST = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--run", "run_id", help="Left out, the run joined last.")
@click.option("--round", "round_number", type=click.IntRange(0), help="A global model kept here.")
@click.option("--model", "model_file", type=_LIST, help="An exported global model (safetensors).")
@click.option(
    "--open-set",
    nargs=2,
    type=_LIST,
    metavar="GALLERY PROBE",
    help="Two `path label` lists that replace the site's own open identities.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the bootstrap intervals.")
@home_option("the site")
@json_option
@command_errors
def evaluate(
    run_id: str | None,
    round_number: int | None,
    model_file: Path | None,
    open_set: tuple[Path, Path] | None,
    seed: int,
    home: Path,
    as_json: bool,
) -> None:
    """Measure verification with this site's state and a global model; nothing leaves the site."""
    from ..evaluate import ModelChoice, evaluate_site

    if round_number is not None and model_file is not None:
        raise click.UsageError("--round and --model exclude each other")
    with open_site(home) as (config, desk):
        result = evaluate_site(
            config,
            desk.store,
            run_id=run_id,
            choice=ModelChoice(model_file, round_number),
            open_set=open_set,
            seed=seed,
        )
    table = Table("set", "EER", "95 % interval", "AUC", "rank-1", "people", "genuine", "impostor")
    for name, report in (("closed", result.closed_set), ("open", result.open_set)):
        low, high = report.eer_interval
        table.add_row(
            name,
            f"{100 * report.eer:.2f} %",
            f"{100 * low:.2f} to {100 * high:.2f} %",
            f"{report.auc:.4f}",
            f"{100 * report.rank1:.1f} %",
            str(report.identities),
            str(report.genuine_pairs),
            str(report.impostor_pairs),
        )
    emit(result.to_json(), as_json, table)


@click.command()
@home_option("the site")
@json_option
@command_errors
def preflight(home: Path, as_json: bool) -> None:
    """Look at every image once and tell whether it can be trained on.

    How many train and how many are kept open is counted as without differential privacy; with it
    everybody's own hash decides, and the two numbers differ by chance.
    """
    from fedpalm.data.roi import preflight as look

    from ..images import list_records, split_records

    config = Home(home).load()
    if config.data is None:
        raise ConfigError(f"{Home(home).config}: no [data]", next_step='add [data] source = "PATH"')
    data = config.data
    records, split = list_records(data), split_records(data, config.site, "none")
    report: dict[str, Any] = {
        "source": data.source,
        **look(records).to_json(),
        "training_images": len(split.train),
        "closed_identities": len(split.classes),
        "open_identities": len(split.open_classes),
        "split": "counted as without differential privacy; with it everybody's own hash decides",
        "input": "ROI images are expected; the palm is not searched for in a photograph",
        "assumed": "nobody here is enrolled at another site: that cannot be checked from here",
    }
    emit(report, as_json)
