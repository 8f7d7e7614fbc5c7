"""``fedpalm-participant``: join a federation, train with it, and see what left the site."""

from __future__ import annotations

import click

from fedpalm import __version__

from .audit import audit
from .budget import budget
from .data import evaluate, preflight
from .egress import egress
from .exchange import exchange
from .install import install
from .join import join
from .manifests import manifests
from .peers import peers
from .plans import approve, policy, refuse, review
from .renew import renew
from .request import request
from .run import run
from .serve import serve
from .status import status
from .subjects import forget, subjects, unlock
from .vault import vault
from .verification import calibrate, enrol, identify, verify


@click.group()
@click.version_option(__version__, prog_name="fedpalm-participant")
def main() -> None:
    """Take part in a federation as a site; images, heads and closed-set models stay here."""


for _command in (
    *(join, request, install, renew),
    *(run, status),
    *(review, approve, refuse, policy),
    *(manifests, egress, exchange, peers, budget, audit),
    *(evaluate, preflight, vault),
    *(calibrate, enrol, verify, identify, subjects, forget, unlock, serve),
):
    main.add_command(_command)
