"""``join``: make this site's keys and its request, then install what the operator signed."""

from __future__ import annotations

import time
from pathlib import Path

import click
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import IdentityError, StateError
from fedpalm.pki.authority import federation_of
from fedpalm.pki.bundle import chain_from_pem, create_keys, install_certificates
from fedpalm.pki.files import read_public, write_public
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.identity import Identity, Role, identity_of
from fedpalm.pki.keys import read_signing_key, read_tls_key
from fedpalm.pki.request import create_request
from fedpalm.settings import parse_settings

from ..config import DataSettings, Home, ParticipantConfig


@click.command()
@click.argument("site", required=False)
@click.option("--federation", help="Name of the federation, as its operator gave it.")
@click.option("--coordinator", metavar="HOST:PORT", help="Where the coordinator is dialled.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder or list of ROI images.")
@click.option("--kind", default="auto", help="auto, folder, list or cross-media-signatures.")
@click.option("--cap", type=click.IntRange(2), help="Use at most so many images an identity.")
@click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--install",
    "bundle",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The bundle that came back from the operator.",
)
@home_option("the site")
@json_option
@command_errors
def join(
    site: str | None,
    federation: str | None,
    coordinator: str | None,
    data: Path | None,
    kind: str,
    cap: int | None,
    split_seed: int,
    bundle: Path | None,
    home: Path,
    as_json: bool,
) -> None:
    """Ask to join as SITE, or install the operator's answer.

    The first form makes the site's keys, participant.toml and request.pem; send the request to the
    operator and read its fingerprint to them over another channel. The second form (--install) takes
    the bundle that comes back.
    """
    if bundle is not None:
        emit(_install(Home(home), bundle), as_json)
        return
    if not (site and federation and coordinator):
        raise click.UsageError("name SITE, --federation and --coordinator (or --install BUNDLE)")
    images = (
        {
            "source": str(data.expanduser().resolve()),
            "kind": kind,
            "cap_per_identity": cap,
            "split_seed": split_seed,
        }
        if data is not None
        else None
    )
    config = parse_settings(
        ParticipantConfig,
        {"federation": federation, "site": site, "coordinator": coordinator, "data": images},
        "join",
    )
    if config.data is not None:
        _look_at(config.data)
    emit(_ask(Home(home), config), as_json)


def _look_at(data: DataSettings) -> None:
    """Fail now, not in round 1, if the images are not there. Pixels are looked at by ``preflight``."""
    from ..images import list_records

    list_records(data)


def _ask(home: Home, config: ParticipantConfig) -> dict[str, str]:
    if home.request.exists():
        raise StateError(
            f"{home.path} belongs to a site already",
            safe="nothing was changed",
            next_step="use another --home, or go on with: fedpalm-participant join --install BUNDLE",
        )
    home.make()
    if (home.tls / "signing.key").exists():
        # An earlier try ended between the keys and the request: the keys are good.
        tls_key = read_tls_key(home.tls / "tls.key")
        signing_key = read_signing_key(home.tls / "signing.key")
    else:
        (home.tls / "tls.key").unlink(missing_ok=True)
        tls_key, signing_key = create_keys(home.tls)
    home.save(config)
    identity = Identity(config.federation, Role.PARTICIPANT, config.site)
    request = create_request(identity, tls_key, signing_key)
    write_public(home.request, request.public_bytes(Encoding.PEM))
    return {
        "site": config.site,
        "federation": config.federation,
        "request": str(home.request),
        "fingerprint": fingerprint(request),
        "next": f"send the request to the operator (fedpalm-coordinator sites admit REQUEST --out "
        f"BUNDLE), compare fingerprints, then: fedpalm-participant join --install BUNDLE "
        f"--home {home.path}",
    }


def _install(home: Home, bundle: Path) -> dict[str, str]:
    config = home.load()
    certificates = chain_from_pem(read_public(bundle), str(bundle))
    if len(certificates) < 2:
        raise IdentityError(
            f"{bundle}: a bundle holds the certificate, the issuing CA and the root"
        )
    *chain, root = certificates
    expected = Identity(config.federation, Role.PARTICIPANT, config.site)
    if identity_of(chain[0]) != expected:
        raise IdentityError(
            f"{bundle}: the certificate is for {identity_of(chain[0])}, this site is {expected}",
            safe="nothing was installed",
        )
    if federation_of(root) != config.federation:
        raise IdentityError(f"{bundle}: the root is not the CA of {config.federation!r}")
    identity = install_certificates(home.tls, chain, root, now=time.time())
    return {
        "site": config.site,
        "federation": config.federation,
        "certificate_fingerprint": fingerprint(identity.leaf),
        "root_fingerprint": fingerprint(identity.root),
        "valid_until": f"{identity.leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
        "next": f"compare the root fingerprint with the operator's, then: fedpalm-participant run "
        f"--home {home.path}",
    }
