"""``init`` and ``serve``."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import StateError
from fedpalm.pki.authority import Authority, IpAddress, create_authority, save_authority
from fedpalm.pki.bundle import create_keys, install_certificates
from fedpalm.pki.files import write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.request import create_request
from fedpalm.settings import parse_settings

from ..config import CoordinatorSettings, Home

LISTEN = "127.0.0.1:7443"


@click.command()
@home_option("the coordinator")
@click.option("--federation", required=True, help="Name of the federation, a DNS label.")
@click.option("--listen", default=LISTEN, show_default=True, metavar="HOST:PORT")
@click.option("--dns", "dns_names", multiple=True, help="A DNS name that sites will dial.")
@click.option("--ip", "ip_addresses", multiple=True, help="An IP address that sites will dial.")
@json_option
@command_errors
def init(
    home: Path,
    federation: str,
    listen: str,
    dns_names: tuple[str, ...],
    ip_addresses: tuple[str, ...],
    as_json: bool,
) -> None:
    """Found a federation: make its CA, the coordinator's and the operator's identity."""
    place = Home(home)
    settings = parse_settings(
        CoordinatorSettings, {"federation": federation, "listen": listen}, "init"
    )
    if place.config.exists():
        raise StateError(
            f"{home} is the home of a coordinator already",
            safe="nothing was changed",
            next_step="fedpalm-coordinator serve, or init another --home",
        )
    if place.authority.exists():
        raise StateError(
            f"{home} has a CA but no {place.config.name}: an init did not come to its end there",
            safe="nothing was changed",
            next_step=f"move {home} away, then init again",
        )
    addresses = [_ip(text) for text in ip_addresses]
    now = time.time()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority, root_key = create_authority(federation, now)
    save_authority(place.authority, authority, root_key)
    for folder, role in ((place.tls, Role.COORDINATOR), (place.operator, Role.OPERATOR)):
        hosts = (dns_names, addresses) if role is Role.COORDINATOR else ((), [])
        _install(folder, Identity(federation, role, role.value), authority, *hosts, now)
    # Last: a home without it is one that was never finished.
    config = f'federation = "{settings.federation}"\nlisten = "{settings.listen}"\n'
    write_public(place.config, config.encode())
    emit(
        {
            "home": str(home),
            "federation": federation,
            "root_fingerprint": fingerprint(authority.root),
            "offline": f"move {place.authority / 'root.key'} to a medium that stays offline",
            "next": f"fedpalm-coordinator serve --home {home}",
        },
        as_json,
    )


def _ip(text: str) -> IpAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ip") from None


def _install(
    folder: Path,
    identity: Identity,
    authority: Authority,
    dns_names: tuple[str, ...],
    addresses: list[IpAddress],
    now: float,
) -> None:
    tls_key, signing_key = create_keys(folder)
    request = create_request(identity, tls_key, signing_key)
    leaf = authority.issue(request, identity, now=now, dns_names=dns_names, ip_addresses=addresses)
    install_certificates(folder, (leaf, authority.issuing), authority.root, now=now)


@click.command()
@home_option("the coordinator")
@command_errors
def serve(home: Path) -> None:
    """Serve until SIGTERM or Ctrl-C; a killed coordinator goes on where it stood."""
    from ..server import serve as run_server

    run_server(Home(home))
