"""``install``: take the operator's answer to a request that went by files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from cryptography import x509

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.clock import SystemClock
from fedpalm.errors import IdentityError, RefusedError, StateError
from fedpalm.pki.bundle import CA, TLS_CHAIN, read_certificates
from fedpalm.pki.fingerprint import fingerprint, same_fingerprint
from fedpalm.pki.profile import federation_of
from fedpalm.pki.validity import end_of

from ..config import Home
from ..enrolment import install_member


@click.command()
@click.argument("bundle", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--root-fingerprint",
    "told",
    multiple=True,
    metavar="FP",
    help="The root's fingerprint, as the operator told it; once for each anchor in the bundle.",
)
@home_option("the site")
@json_option
@command_errors
def install(bundle: Path, told: tuple[str, ...], home: Path, as_json: bool) -> None:
    """Install the BUNDLE that came back from the operator.

    Whom this site trusts from here on hangs on its root: compare the fingerprint with the one that
    the operator tells over another channel. On a terminal the command asks; elsewhere
    --root-fingerprint must name it.
    """
    place, clock = Home(home), SystemClock()
    config = place.load()
    chain, anchors = split_bundle(read_certificates(bundle))
    if not anchors:
        raise IdentityError(
            f"{bundle}: a bundle holds the certificate, what lies above it, and the trust anchors",
            safe="nothing was installed",
            next_step="install the file that `fedpalm-coordinator sites sign` wrote",
        )
    for anchor in anchors:
        if federation_of(anchor) != config.federation:
            raise IdentityError(
                f"{bundle}: a trust anchor is not of the CA of {config.federation!r}",
                safe="nothing was installed",
            )
    _require_known(anchors, told)
    install_member(place, config, chain, anchors, clock)
    emit(
        {**member_summary(place), "next": f"fedpalm-participant run --home {home}"},
        as_json,
    )


def split_bundle(
    certificates: Sequence[x509.Certificate],
) -> tuple[Sequence[x509.Certificate], Sequence[x509.Certificate]]:
    """The chain and the trust anchors of a bundle: leaf, what lies between, anchors.

    Own anchors are roots, the first self-signed certificates there; an institution's CA stays at the
    institution, and then everything behind the leaf is an anchor.
    """
    roots = [at for at, one in enumerate(certificates) if one.issuer == one.subject]
    start = roots[0] if roots else 1
    return certificates[:start], certificates[start:]


def member_summary(home: Home) -> dict[str, Any]:
    """What a home that holds a certificate has."""
    config = home.load()
    chain, anchors = (read_certificates(home.tls / name) for name in (TLS_CHAIN, CA))
    return {
        "site": config.site,
        "federation": config.federation,
        "state": "member",
        "coordinator": config.coordinator,
        "certificate_fingerprint": fingerprint(chain[0]),
        "root_fingerprints": [fingerprint(anchor) for anchor in anchors],
        "valid_until": end_of(chain[0]),
    }


def _require_known(anchors: Sequence[x509.Certificate], told: Sequence[str]) -> None:
    """Every anchor is one that a person has compared.

    Raises:
        StateError: nobody is there to be asked.
        RefusedError: they said no.
        IdentityError: a fingerprint is not the one that was told; the bundle may be forged.
    """
    if told:
        for anchor in anchors:
            shown = fingerprint(anchor)
            if not any(same_fingerprint(shown, one) for one in told):
                raise IdentityError(
                    f"a trust anchor of the bundle has the fingerprint\n{shown}\n"
                    "which is not what --root-fingerprint says",
                    safe="nothing was installed",
                    next_step="ask the operator for the fingerprints (fedpalm-coordinator ca show); "
                    "if they differ, the bundle is not theirs",
                )
        return
    if not somebody_is_there():
        raise StateError(
            f"the bundle's trust anchors have to be compared: {_listed(anchors)}",
            safe="nothing was installed",
            next_step="ask the operator (fedpalm-coordinator ca show), then add --root-fingerprint FP",
        )
    click.echo(
        "This site will trust whoever these anchors vouch for. Ask the operator for the "
        "fingerprint over another channel (fedpalm-coordinator ca show) and compare:",
        err=True,
    )
    for anchor in anchors:
        who = _described(anchor)
        click.echo(f"\n  {who}\n  {fingerprint(anchor)}\n", err=True)
        if not click.confirm("Is it the same?", default=False, err=True):
            raise RefusedError(
                "the fingerprint was not confirmed",
                safe="nothing was installed",
                next_step="ask the operator for the bundle again",
            )


def somebody_is_there() -> bool:
    """Whether a person sits at this terminal."""
    return sys.stdin.isatty()


def _described(anchor: x509.Certificate) -> str:
    return f"{anchor.subject.rfc4514_string()}, until {anchor.not_valid_after_utc:%Y-%m-%d}"


def _listed(anchors: Sequence[x509.Certificate]) -> str:
    return "; ".join(fingerprint(anchor) for anchor in anchors)
