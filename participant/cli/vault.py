"""``vault``: how what is private here is locked, whether all of it opens, and other keys for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, err, home_option, json_option
from fedpalm.cli.narrator import Narrator, ticker
from fedpalm.clock import SystemClock
from fedpalm.errors import IntegrityError, RefusedError, StateError, VaultDamagedError

from ..config import Home
from ..store import SiteStore
from ..vault import read_header
from ..vault_accept import accept as accept_database
from ..vault_accept import look
from ..vault_header import Slot
from ..vault_lock import lock_with_key, lock_with_passphrase
from ..vault_rotation import SealedFile, file_generation, sealed_files
from ..vault_rotation import check as check_all
from ..vault_rotation import rotate as rotate_all
from .install import somebody_is_there
from .run import only_agent
from .site import ask_passphrase, open_site


@click.group()
def vault() -> None:
    """The vault: this site's models, heads, received experts and gallery, encrypted on the disk."""


@vault.command()
@home_option("the site")
@json_option
@command_errors
def status(home: Path, as_json: bool) -> None:
    """Tell how the vault is locked and what is in it. Unlocks nothing."""
    with _open(home) as store:
        found = _describe(store)
        emit(found, as_json, _words(found))


@vault.command()
@home_option("the site")
@json_option
@command_errors
def check(home: Path, as_json: bool) -> None:
    """Open every file and record. Ends with 16 if one is not what was stored, and names each."""
    with _open(home) as store:
        _require_made(store)
        _ = store.vault
        with Narrator(err()) as narrator:
            wrong = check_all(store, ticker(narrator))
        found: dict[str, Any] = {
            "files": len(sealed_files(store)),
            "records": store.items.count(),
            "damaged": [{"code": one.code, "what": one.what} for one in wrong],
        }
    lines = [f"DAMAGED  {one.what}" for one in wrong] or ["all of it opens"]
    counts = f"{found['files']} files and {found['records']} records were opened"
    emit(found, as_json, Text("\n".join([counts, *lines])))
    if wrong:
        raise SystemExit(VaultDamagedError.exit_code)


@vault.command()
@home_option("the site")
@json_option
@command_errors
def rotate(home: Path, as_json: bool) -> None:
    """Seal everything under a new data key, and forget the one before.

    What was erased before can then be opened by nobody without an older vault.json and its secret. The
    agent must not run. Interrupted, it loses nothing: run it again.
    """
    with only_agent(Home(home)), _open(home) as store:
        _require_made(store)
        _ = store.vault
        with Narrator(err()) as narrator:
            done = rotate_all(store, ticker(narrator))
        emit({"data_key": done.generation, "files": done.files, "records": done.records}, as_json)


@vault.command()
@click.option("--file", metavar="PATH", help="A file (0600) that holds it, for unattended agents.")
@home_option("the site")
@json_option
@command_errors
def passphrase(file: str | None, home: Path, as_json: bool) -> None:
    """Lock the vault with a passphrase, or with another one.

    A person types it, twice, and again whenever the vault is unlocked; or --file names where it is read.
    The key file that opened the vault before is erased. The agent must not run.
    """
    with only_agent(Home(home)), _open(home) as store:
        lock_with_passphrase(store, file)
        _changed(store, as_json)


@vault.command()
@click.option("--file", metavar="PATH", help="Where the key file shall lie, best another medium.")
@home_option("the site")
@json_option
@command_errors
def key(file: str | None, home: Path, as_json: bool) -> None:
    """Lock the vault with a new key file: in the place of the present one, or at PATH.

    The file that opened the vault before is erased. The agent must not run.
    """
    with only_agent(Home(home)), _open(home) as store:
        lock_with_key(store, file)
        _changed(store, as_json)


@vault.command()
@click.option("--yes", is_flag=True, help="Ask nothing.")
@home_option("the site")
@json_option
@command_errors
def accept(yes: bool, home: Path, as_json: bool) -> None:
    """Go on with a database that vault.mark does not name: a backup taken while something wrote.

    Everything must open. The site's log notes it, and an audit tells it. The agent must not run.
    """
    place = Home(home)
    with only_agent(place), open_site(home) as (_, desk):
        _require_made(desk.store)
        with Narrator(err()) as narrator:
            found = look(desk.store, ticker(narrator))
        if not yes:
            _confirm(place)
        entry = accept_database(desk.store, desk.log, found)
    emit(
        {"database": entry.body["database"], "mark": entry.body["mark"], "entry": entry.seq},
        as_json,
        Text(f"accepted; entry {entry.seq} of the log says so. {_OLDER}"),
    )


_OLDER = (
    "What was stored since this database is not in it: forget again whoever was erased since, enrol again "
    "whoever was enrolled since, and lock-outs and this log are as they were then"
)


def _confirm(home: Home) -> None:
    """Raises StateError: nobody is there to be asked. RefusedError: they said no."""
    what = (
        f"{home.database}: all of it opens, but it is not what {home.vault_mark.name} names. Either a "
        "backup was taken while something wrote, or somebody put an old database in place"
    )
    if not somebody_is_there():
        raise StateError(what, safe="nothing was accepted", next_step="to accept it: add --yes")
    click.echo(f"{what}. {_OLDER}.", err=True)
    if not click.confirm("Go on with this database?", default=False, err=True):
        raise RefusedError(
            "the database was not accepted",
            safe="nothing was changed",
            next_step="put the newest copy of the whole home in place",
        )


@contextmanager
def _open(home: Path) -> Iterator[SiteStore]:
    place = Home(home)
    place.load()
    with closing(SiteStore(place, clock=SystemClock(), ask=ask_passphrase)) as store:
        yield store


def _require_made(store: SiteStore) -> None:
    if not store.home.vault_header.exists() and not store.has_sealed():
        raise StateError(
            f"{store.home.path}: nothing was ever sealed here, so there is no vault yet",
            next_step="it is made when the agent first runs",
        )


def _changed(store: SiteStore, as_json: bool) -> None:
    found = _describe(store)
    emit(
        {"unlocked_by": found["unlocked_by"], "next": _AFTER},
        as_json,
        Text(f"locked with: {found['unlocked_by'][0]['kind']}\n{_AFTER}"),
    )


_AFTER = (
    "an earlier copy of vault.json still opens with the earlier secret; if that may be known to somebody: "
    "fedpalm-participant vault rotate"
)


def _describe(store: SiteStore) -> dict[str, Any]:
    if not store.home.vault_header.exists() and not store.has_sealed():
        return {"made": False, "unlocked_by": [], "files": [], "records": {}}
    header = read_header(store.home)
    files = [_file(one) for one in sealed_files(store)]
    rows = store.rows(
        "SELECT kind, COUNT(*) AS count, SUM(LENGTH(sealed)) AS bytes FROM vault_items "
        "GROUP BY kind ORDER BY kind"
    )
    return {
        "made": True,
        "vault_id": header.vault_id.hex(),
        "unlocked_by": [_slot(store, one) for one in header.slots],
        "unfinished": _unfinished(len(header.slots), len(header.generations)),
        "header_written": header.epoch,
        "data_keys": list(header.generations),
        "files": files,
        "records": {row["kind"]: {"count": row["count"], "bytes": row["bytes"]} for row in rows},
    }


def _file(one: SealedFile) -> dict[str, Any]:
    """``bytes`` and ``data_key`` are null for a file that is gone."""
    found: dict[str, Any] = {"kind": one.kind, "of": one.owner, "file": one.path.name}
    try:
        return {
            **found,
            "bytes": one.path.stat().st_size,
            "data_key": file_generation(one.path),
        }
    except (FileNotFoundError, IntegrityError):
        return {**found, "bytes": None, "data_key": None}


def _slot(store: SiteStore, slot: Slot) -> dict[str, Any]:
    found = slot.parameters()
    found.pop("salt")
    settings = store.home.load().vault
    if slot.kind == "key-file":
        named = settings.key_file if settings is not None else None
        found["path"] = str(
            store.home.path / Path(named).expanduser() if named else store.home.vault_key
        )
    return found


def _unfinished(slots: int, generations: int) -> str:
    if generations > 1:
        return "a rotation: run it again (fedpalm-participant vault rotate)"
    if slots > 1:
        return "a change of the lock: both open; run it again (vault passphrase, or vault key)"
    return ""


def _words(found: dict[str, Any]) -> Text:
    if not found["made"]:
        return Text("nothing was sealed here yet; the vault is made when the agent first runs")
    lines = [
        f"vault        {found['vault_id']}, data key {', '.join(map(str, found['data_keys']))}"
    ]
    for one in found["unlocked_by"]:
        cost = one.get("argon2id")
        how = (
            f"Argon2id, {cost['memory_kib'] // 1024} MiB, {cost['passes']} passes, {cost['lanes']} lanes"
            if cost
            else one["path"]
        )
        lines.append(f"unlocked by  {one['kind']} ({how})")
    if found["unfinished"]:
        lines.append(f"unfinished   {found['unfinished']}")
    for one in found["files"]:
        size = "GONE" if one["bytes"] is None else f"{one['bytes']} bytes"
        lines.append(f"file         {one['file']}, {size}, {one['kind']} of {one['of']}")
    for kind, one in found["records"].items():
        lines.append(f"records      {kind}: {one['count']}, {one['bytes']} bytes")
    return Text("\n".join(lines))
