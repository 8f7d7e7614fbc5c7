"""``ca`` and ``renew``: custody of the federation's CA, and the certificates of this home."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509
from rich.table import Table
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import RefusedError, StateError
from fedpalm.pki.authority import ROOT_KEY, Authority, load_authority
from fedpalm.pki.custody import (
    install_issuing,
    request_issuing,
    retire_anchor,
    rotate_issuing,
    rotate_root,
)
from fedpalm.pki.files import read_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.validity import end_of

from ..config import Home
from ..founding import finish, require_founded, waiting_founding
from ..own import (
    NEW_ANCHOR,
    anchors_behind,
    follow_anchors,
    newest_anchor_since,
    renew_own,
    sites_behind,
)
from ..registry import Registry
from ..store import Store
from .local import now_ms, operator_name, store_of
from .setup import institution_must_sign


@click.group()
def ca() -> None:
    """The federation's CA: its anchors, its issuing CA, and what replaces them.

    These commands work on the home itself; a running coordinator follows.
    """


@ca.command()
@home_option("the coordinator")
@json_option
@command_errors
def show(home: Path, as_json: bool) -> None:
    """Show the trust anchors with their fingerprints, and the issuing CA."""
    place = _founded(home)
    with store_of(place) as store:
        authority = load_authority(place.authority)
        _emit(_shown(place, authority, store), as_json)


@ca.command()
@click.option("--root", is_flag=True, help="A new root, too; both are trusted until `ca retire`.")
@home_option("the coordinator")
@json_option
@command_errors
def rotate(root: bool, home: Path, as_json: bool) -> None:
    """Replace the issuing CA, and with --root the root; renew the certificates of this home.

    Needs ca/root.key. Under an institution's CA it makes the request that has to be signed instead.
    """
    place, now = _founded(home), time.time()
    with store_of(place) as store:
        authority = load_authority(place.authority)
        if authority.external:
            csr = request_issuing(place.authority, authority.federation)
            emit(institution_must_sign(place, authority.federation, fingerprint(csr)), as_json)
            return
        # An earlier run may have ended between the CA and the identities of this home.
        if not (root and authority.settled and anchors_behind(place, authority)):
            authority = (rotate_root if root else rotate_issuing)(place.authority, now)
        _record(place, store, NEW_ANCHOR if root else "rotate", fingerprint(authority.issuing))
        follow_anchors(place, authority)
        renew_own(place, authority, store, now)
        _emit({**_shown(place, authority, store), "next": _after(place, authority)}, as_json)


@ca.command()
@click.argument("issuing", type=click.Path(dir_okay=False, path_type=Path))
@home_option("the coordinator")
@json_option
@command_errors
def install(issuing: Path, home: Path, as_json: bool) -> None:
    """Put in force the ISSUING certificate that an institution's CA has signed.

    The first one finishes the founding of the federation. A later one is trusted beside the one before
    it until `ca retire`; the certificates of this home stay as they are until then, so that sites which
    have not heard of it yet go on as well.
    """
    place, now = Home(home), time.time()
    founding = waiting_founding(place)
    if founding is None:
        place.settings()
    authority = install_issuing(place.authority, read_public(issuing), now)
    if founding is not None:
        finish(place, founding, authority, now)
    with store_of(place) as store:
        if anchors_behind(place, authority):
            _record(place, store, NEW_ANCHOR, fingerprint(authority.issuing))
        follow_anchors(place, authority)
        _emit({**_shown(place, authority, store), "next": _after(place, authority)}, as_json)


@ca.command()
@click.option("--cut-off", is_flag=True, help="Even if sites have not renewed: they are shut out.")
@home_option("the coordinator")
@json_option
@command_errors
def retire(cut_off: bool, home: Path, as_json: bool) -> None:
    """End the overlap of a rotation: the older trust anchor is trusted no more.

    Refused while an active site has not called with a certificate under the newer one.
    """
    place, now = _founded(home), time.time()
    with store_of(place) as store:
        authority = load_authority(place.authority)
        if not (len(authority.anchors) == 1 and anchors_behind(place, authority)):
            if (behind := sites_behind(authority, store)) and not cut_off:
                raise RefusedError(
                    f"not renewed under the newer anchor yet: {', '.join(behind)}",
                    safe="both anchors are trusted as before",
                    next_step="let each site connect, or run fedpalm-participant renew there; --cut-off "
                    "shuts them out, and they join again by invitation",
                )
            if len(authority.anchors) > 1:
                # Under the newer anchor first: a home must not stand under one that is gone.
                since_ms = newest_anchor_since(authority, store)
                renew_own(place, authority, store, now)
                Registry(store).end_issued_before(since_ms, now_ms())
            authority = retire_anchor(place.authority)
        follow_anchors(place, authority)
        _record(place, store, "retire", "cut off" if cut_off else "")
        _emit(_shown(place, authority, store), as_json)


@click.command()
@click.option("--cut-off", is_flag=True, help="End the present ones at once, without an overlap.")
@home_option("the coordinator")
@json_option
@command_errors
def renew(cut_off: bool, home: Path, as_json: bool) -> None:
    """Renew the coordinator's and the operator's own certificates; a running coordinator follows.

    After the theft of an operator's key: --cut-off, and nobody calls with the old certificate any more.
    """
    place, now = _founded(home), time.time()
    with store_of(place) as store:
        authority = load_authority(place.authority)
        if authority.external and len(authority.anchors) > 1:
            raise StateError(
                "a new certificate would be under the newer anchor, which not every site knows yet",
                safe="the present certificates stay as they are",
                next_step="fedpalm-coordinator ca retire, which renews them, too",
            )
        follow_anchors(place, authority)
        leaves = renew_own(place, authority, store, now)
        if cut_off:
            for leaf in leaves:
                Registry(store).end_predecessors(leaf, now_ms())
        _record(place, store, "renew", ", ".join(fingerprint(leaf) for leaf in leaves))
        _emit(
            {
                role: {"fingerprint": fingerprint(leaf), "valid_until": end_of(leaf)}
                for role, leaf in zip(("coordinator", "operator"), leaves, strict=True)
            },
            as_json,
        )


def _founded(home: Path) -> Home:
    place = Home(home)
    require_founded(place)
    place.settings()
    return place


def _record(place: Home, store: Store, action: str, detail: str) -> None:
    store.operator_event(now_ms(), operator_name(place), action, "", detail)


def _shown(place: Home, authority: Authority, store: Store) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "federation": authority.federation,
        "kind": "signed by an institution" if authority.external else "own root",
        "anchors": _listed(authority.anchors),
        "issuing": _listed([authority.issuing])[0],
        "handovers": len(authority.handovers),
    }
    if not authority.external:
        root_key = place.authority / ROOT_KEY
        shown["root_key"] = (
            f"HERE, in {root_key}: move it to a medium that stays offline"
            if root_key.exists()
            else "not here, as it should be"
        )
    if len(authority.anchors) > 1:
        shown["not_renewed_yet"] = sites_behind(authority, store)
    return shown


def _emit(shown: dict[str, Any], as_json: bool) -> None:
    """As JSON, or for people with a certificate's name, end and fingerprint below each other."""
    table = Table.grid(padding=(0, 2))
    for key, value in shown.items():
        title = Text(key.replace("_", " "), style="bold")
        for line in _lines(value):
            table.add_row(title, Text(line))
            title = Text("")
    emit(shown, as_json, table)


def _lines(value: object) -> list[str]:
    if isinstance(value, dict):
        name = f"{value['subject']}, " if "subject" in value else ""
        return [f"{name}until {value['valid_until']}", str(value["fingerprint"])]
    if isinstance(value, list):
        return [line for one in value for line in _lines(one)] or ["none"]
    return [str(value)]


def _listed(certificates: Sequence[x509.Certificate]) -> list[dict[str, str]]:
    return [
        {
            "subject": one.subject.rfc4514_string(),
            "fingerprint": fingerprint(one),
            "valid_until": end_of(one),
        }
        for one in certificates
    ]


def _after(place: Home, authority: Authority) -> str:
    if len(authority.anchors) > 1:
        return (
            "sites learn of the newer anchor and renew when they connect; when `ca show` says that none "
            f"is left: fedpalm-coordinator ca retire --home {place.root}"
        )
    if authority.external:
        return f"fedpalm-coordinator serve --home {place.root}"
    return f"take {place.authority / ROOT_KEY} offline again"
