"""``audit``: every site's newest checkpoint, who witnessed it, and who is behind."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import ConfigError
from fedpalm.ledger.checkpoint import Checkpoint

from ..checkpoint_records import CheckpointRecords
from ..config import Home
from ..standing import Standing, standings
from .local import store_of
from .view import when


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Also write each site's newest signed checkpoint into this folder, for an auditor.",
)
@home_option("the coordinator")
@json_option
@command_errors
def audit(out: Path | None, home: Path, as_json: bool) -> None:
    """List the newest checkpoint of each site's log, who witnessed it, and who is behind.

    Under differential privacy every site gives a checkpoint before each attempt, and the other sites
    countersign it. This is what the coordinator holds; `fedpalm audit verify` trusts nobody's word. Works
    without a running coordinator, too.
    """
    place = Home(home)
    with store_of(place) as store:
        found = standings(store)
        if out is not None:
            write_checkpoints(CheckpointRecords(store), [one.site for one in found], out)
    rows = [_json(one) for one in found]
    emit({"federation": place.settings().federation, "sites": rows}, as_json, _shown(found))


def write_checkpoints(records: CheckpointRecords, sites: Iterable[str], folder: Path) -> None:
    """``SITE.checkpoint`` of each site that gave one, as ``fedpalm audit verify --checkpoint`` takes it.

    Of a log that a site kept under an earlier key the newest is ``SITE-KEY.checkpoint``.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for site in sites:
            given = records.of_each_log(site)
            for one in given:
                key = f"-{Checkpoint.read(one.signed).key_id[:16]}" if one is not given[-1] else ""
                (folder / f"{site}{key}.checkpoint").write_bytes(one.signed.to_bytes())
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error


def _json(one: Standing) -> dict[str, Any]:
    witnessed = one.witnessed
    return {
        "site": one.site,
        "state": one.state,
        "newest": None if one.newest is None else _checkpoint(one.newest),
        "witnessed": None
        if witnessed is None
        else {
            **_checkpoint(witnessed.checkpoint),
            "by": list(witnessed.by),
            "of": witnessed.of,
            "enough": witnessed.enough,
        },
        "refused": [_checkpoint(refused) for refused in one.refused],
        "behind": list(one.behind),
    }


def _checkpoint(one: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": one.hash.hex(),
        "key_id": one.key_id,
        "size": one.size,
        "root": one.root,
        "run": one.run,
        "round": one.round,
        "attempt": one.attempt,
        "given_ms": one.time_ms,
    }


def _shown(found: list[Standing]) -> RenderableType:
    table = Table("site", "entries", "root", "given", "for", "witnessed by")
    remarks = []
    for one in found:
        newest, witnessed = one.newest, one.witnessed
        place = ""
        if newest is not None:
            place = f"{newest.run}, {f'{newest.round}.{newest.attempt}' if newest.round else 'end'}"
        table.add_row(
            Text(one.site),
            str(newest.size) if newest is not None else "none",
            newest.root[:16] if newest is not None else "",
            when(newest.time_ms) if newest is not None else "",
            Text(place),
            Text(
                f"{len(witnessed.by)} of {witnessed.of} ({witnessed.checkpoint.size} entries)"
                if witnessed is not None
                else "nobody"
            ),
        )
        remarks += [Text(f"{one.site}: {why}", style="bold") for why in one.behind]
    return Group(table, *remarks)
