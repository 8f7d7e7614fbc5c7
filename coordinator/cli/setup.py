"""``init`` and ``serve``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.pki.authority import ROOT_KEY, create_authority, save_authority
from fedpalm.pki.custody import ISSUING_REQUEST, request_issuing
from fedpalm.pki.fingerprint import fingerprint

from ..config import Home
from ..founding import (
    Founding,
    finish,
    require_founded,
    require_free,
    settle,
    wait_for_institution,
)
from ..own import make_own_keys

LISTEN = "127.0.0.1:7443"


@click.command()
@home_option("the coordinator")
@click.option("--federation", required=True, help="Name of the federation, a DNS label.")
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT")
@click.option(
    "--enrol-listen",
    metavar="HOST:PORT",
    help="For newcomers, bound while an invitation is open; left out, the port after --listen's.",
)
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    help="What sites dial; left out, the first --dns or --ip, or else --listen.",
)
@click.option(
    "--enrol-advertise",
    metavar="HOST:PORT",
    help="What newcomers dial; left out, --advertise's host.",
)
@click.option("--dns", "dns_names", multiple=True, help="A DNS name that sites will dial.")
@click.option("--ip", "ip_addresses", multiple=True, help="An IP address that sites will dial.")
@click.option(
    "--external-ca",
    is_flag=True,
    help="An institution's CA signs this one: make the request for it.",
)
@json_option
@command_errors
def init(
    home: Path,
    federation: str,
    listen: str,
    enrol_listen: str | None,
    advertise: str | None,
    enrol_advertise: str | None,
    dns_names: tuple[str, ...],
    ip_addresses: tuple[str, ...],
    external_ca: bool,
    as_json: bool,
) -> None:
    """Found a federation: make its CA, the coordinator's and the operator's identity."""
    place = Home(home)
    founding = settle(
        federation, listen, enrol_listen, advertise, enrol_advertise, dns_names, ip_addresses
    )
    require_free(place)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if external_ca:
        emit(_ask_institution(place, founding), as_json)
        return
    now = time.time()
    authority, root_key = create_authority(founding.federation, now)
    save_authority(place.authority, authority, root_key)
    finish(place, founding, authority, now)
    emit(
        {
            "home": str(home),
            "federation": founding.federation,
            "root_fingerprint": fingerprint(authority.anchors[0]),
            "sites_dial": founding.advertise,
            "newcomers_dial": founding.enrol_advertise,
            "offline": f"move {place.authority / ROOT_KEY} to a medium that stays offline",
            "next": f"fedpalm-coordinator serve --home {home}",
        },
        as_json,
    )


def _ask_institution(place: Home, founding: Founding) -> dict[str, str]:
    csr = request_issuing(place.authority, founding.federation)
    make_own_keys(place)
    wait_for_institution(place, founding)
    return {
        "home": str(place.root),
        "federation": founding.federation,
        **institution_must_sign(place, founding.federation, fingerprint(csr)),
    }


def institution_must_sign(place: Home, federation: str, mark: str) -> dict[str, str]:
    """What to tell whoever runs the institution's CA."""
    return {
        "request": str(place.authority / ISSUING_REQUEST),
        "request_fingerprint": mark,
        "must_be_signed_as": "basic constraints (critical): CA, path length 0; key usage (critical): "
        f"certificate sign; subject alternative name: URI spiffe://{federation}; with a subject "
        "key identifier",
        "next": f"fedpalm-coordinator ca install ISSUING.pem --home {place.root}",
    }


@click.command()
@home_option("the coordinator")
@command_errors
def serve(home: Path) -> None:
    """Serve until SIGTERM or Ctrl-C; a killed coordinator goes on where it stood."""
    from ..server import serve as run_server

    require_founded(Home(home))
    run_server(Home(home))
