"""``fedpalm bench dp-accounting``: the two accountants against each other, over a grid."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.text import Text

from ..errors import ConfigError, IntegrityError
from .console import command_errors, emit, err, json_option
from .narrator import Narrator, ticker


@click.command("dp-accounting")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              help="Write dp-accounting.md and .json in this folder, too.")  # fmt: skip
@json_option
@command_errors
def accounting_command(out: Path | None, as_json: bool) -> None:
    """Compare PRV and PLD; ends with 10 if they are too far apart, or less than either is charged."""
    try:
        import dp_accounting  # noqa: F401
        import opacus  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"accounting needs {error.name}", next_step="install it: pip install 'fedpalm[site]'"
        ) from error
    from ..benchmark import accountants

    with Narrator(err()) as narrator:
        figures = accountants.compare_accountants(ticker(narrator))
    page, data = accountants.report(figures), accountants.as_json(figures)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "dp-accounting.md").write_text(page, encoding="utf-8")
        (out / "dp-accounting.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    emit(data, as_json, Text(page))
    if figures["largest"].apart > figures["limit"]:
        raise IntegrityError(
            f"the accountants are {figures['largest'].apart:.4f} apart, the limit is "
            f"{figures['limit']:g}",
            next_step="compare the versions of opacus and dp-accounting with those of constraints.txt",
        )
