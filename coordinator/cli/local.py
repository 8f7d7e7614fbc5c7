"""What commands that work on the home itself have in common; they need no running coordinator."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import click

from fedpalm.cli.console import err
from fedpalm.errors import IdentityError, RefusedError
from fedpalm.pki.bundle import TLS_CHAIN, read_certificates
from fedpalm.pki.fingerprint import same_fingerprint
from fedpalm.pki.identity import identity_of

from ..config import Home
from ..store import Store


@contextmanager
def store_of(place: Home) -> Iterator[Store]:
    """The store of a home. Raises ConfigError: it is no home of a coordinator."""
    place.settings()
    with Store.open(place.store) as store:
        yield store


def operator_name(place: Home) -> str:
    """Whose name stands in the record of what was ordered here.

    Raises:
        KeyFileError, IdentityError: this home has no operator.
    """
    return identity_of(read_certificates(place.operator / TLS_CHAIN)[0]).name


def now_ms() -> int:
    return round(time.time() * 1000)


def require_fingerprint(site: str, given: str, found: str) -> None:
    """Raises IdentityError: the operator was told another fingerprint."""
    if not same_fingerprint(found, given):
        raise IdentityError(
            f"the request for site {site} has the fingerprint {found}, not the one that was given",
            safe="nothing was issued",
            next_step="ask the site which fingerprint it shows; if it is another one, somebody else "
            f"has used the invitation: fedpalm-coordinator sites reject {site} --reason ...",
        )


def confirm_fingerprint(site: str, found: str) -> None:
    """Let the operator compare. Raises RefusedError: they did not say yes."""
    err().print(f"request for site [bold]{site}[/]:\n{found}")
    try:
        agreed = click.confirm("Does the site show the same fingerprint?", err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise RefusedError(
            f"the fingerprint of the request for site {site} was not confirmed",
            safe="nothing was issued, and the request is as it was",
            next_step="compare it with what the site shows, over another channel; "
            "--fingerprint FP says it without a question",
        )
