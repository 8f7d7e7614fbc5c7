"""``fedpalm-coordinator``: found a federation, serve it, and operate it."""

from __future__ import annotations

import click

from fedpalm import __version__

from .amend import amend
from .audit import audit
from .ca import ca, renew
from .exchange import exchange
from .export import export
from .invite import invite
from .plans import plan
from .runs import abort, resume, start, status, watch
from .setup import init, serve
from .sites import sites


@click.group()
@click.version_option(__version__, prog_name="fedpalm-coordinator")
def main() -> None:
    """Coordinate a federation: found it, admit sites, run plans.

    Membership (init, ca, renew, invite, sites approve and the like) works on the home folder, and a
    running coordinator follows. The others talk to it over mutual TLS, with the operator's
    certificate in the home folder.
    """


plan.add_command(amend)
for _command in (
    init, serve, ca, renew, invite, sites, plan, start, status, watch, abort, resume, export,
    exchange, audit,
):  # fmt: skip
    main.add_command(_command)
