"""``join``: become a member by invitation."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.clock import Clock, SystemClock
from fedpalm.errors import InterruptedError_, StateError
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.trust import accept_trust
from fedpalm.pki.validity import end_of
from fedpalm.settings import load_toml

from ..config import DataSettings, Home, ParticipantConfig
from ..ending import ExitAfter
from ..enrolment import (
    Progress,
    check_invitation,
    install_member,
    prepare_request,
    record_request,
    trusted_anchors,
)
from ..files import write_durably
from ..policy import Policy
from ..reporter import Reporter
from .run import run_agent
from .site import data_option_values, data_options, look_at, reporter_for, settings_of

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("invitation", type=_FILE)
@data_options
@click.option("--policy", type=_FILE, help="Limits of this site; copied to policy.toml.")
@click.option("--no-wait", is_flag=True, help="End when the operator has been asked (exit code 8).")
@click.option("--run", "go_on", is_flag=True, help="Once a member, go on as `run` does.")
@home_option("the site")
@json_option
@command_errors
def join(
    invitation: Path,
    data: Path | None,
    modality: str,
    kind: str,
    cap: int | None,
    split_seed: int,
    backbone: str | None,
    policy: Path | None,
    no_wait: bool,
    go_on: bool,
    home: Path,
    as_json: bool,
) -> None:
    """Become a member with the INVITATION that the operator sent.

    Makes this site's keys, which never leave the home, and asks for a certificate. Read the fingerprint
    that is shown to the operator over another channel: they approve if it is the same on both ends.
    The command waits for that; interrupted, the same command goes on where it stood.
    """
    if no_wait and go_on:
        raise click.UsageError("--no-wait and --run exclude each other")
    place, clock = Home(home), SystemClock()
    images = data_option_values(data, modality, kind, cap, split_seed)
    reporter = reporter_for(as_json)
    try:
        result = _join(
            place, invitation, images, policy, reporter, clock, wait=not no_wait, backbone=backbone
        )
    except KeyboardInterrupt:
        raise InterruptedError_(
            "interrupted before the operator's decision had come",
            safe="keys and request are kept, and the operator can still approve",
            next_step=f"go on with: fedpalm-participant join {invitation} --home {home}",
        ) from None
    finally:
        reporter.close()
    if result["state"] != "member":
        emit(result, as_json)
        raise SystemExit(StateError.exit_code)
    if not go_on:
        emit(result, as_json)
        return
    raise SystemExit(run_agent(place, ExitAfter.NEVER, as_json))


def _join(
    home: Home,
    invitation_file: Path,
    images: DataSettings | None,
    policy_file: Path | None,
    reporter: Reporter,
    clock: Clock,
    *,
    wait: bool,
    backbone: str | None = None,
) -> dict[str, Any]:
    # The network parts bring grpc, which most commands do without.
    from fedpalm.pki.invitation import read_invitation
    from fedpalm.transport.channel import EnrolmentConnection

    from ..claim import claim

    invitation = read_invitation(invitation_file)
    progress = Progress.load(home)
    if progress == Progress(invitation.invitation_id, answered=True):
        _keep_policy(home, policy_file)
        reporter.line(f"{invitation.site} is a member already")
        return _member(home)
    check_invitation(home, invitation, clock.now())
    known = home.load() if home.config.exists() else None
    config = settings_of(
        invitation.federation,
        invitation.site,
        invitation.coordinator_address,
        images,
        backbone,
        origin=str(invitation_file),
        known=known,
    )
    if images is not None:
        look_at(images, invitation.site)
    policy = _read_policy(policy_file)

    home.make()
    # Where an invitation says that the coordinator is counts once whoever is there has proved to be it.
    kept = {"coordinator": known.coordinator} if known is not None else {}
    home.save(config.model_copy(update=kept))
    if policy is not None:
        write_durably(home.policy, policy)
    Progress(invitation.invitation_id, answered=False).save(home)
    request = prepare_request(home, config)
    record_request(home, config, request, clock)
    shown = fingerprint(request)
    reporter.line(f"asking {invitation.enrol_address} to let {config.site} join")
    reporter.line(f"fingerprint of this site's request: {shown}")
    reporter.line("read it to the operator over another channel, a telephone for example")
    issued = asyncio.run(
        claim(
            invitation,
            request,
            lambda: EnrolmentConnection(
                invitation.enrol_address,
                invitation.federation,
                trusted_anchors(home, invitation),
            ),
            reporter,
            clock,
            wait=wait,
        )
    )
    if issued is None:
        return _waiting(config, shown, invitation_file, home)
    chain, trust = issued
    pinned = trusted_anchors(home, invitation)
    anchors = accept_trust(pinned, trust, config.federation, clock.now())
    identity = install_member(home, config, chain, anchors, clock)
    Progress(invitation.invitation_id, answered=True).save(home)
    reporter.line(
        f"{config.site} is a member of {config.federation}, its certificate lasts until "
        f"{end_of(identity.leaf)}"
    )
    return _member(home)


def _read_policy(source: Path | None) -> bytes | None:
    """The file's bytes, once they are seen to be a policy. Raises ConfigError."""
    if source is None:
        return None
    load_toml(Policy, source)
    return source.read_bytes()


def _keep_policy(home: Home, source: Path | None) -> None:
    policy = _read_policy(source)
    if policy is not None:
        write_durably(home.policy, policy)


def _waiting(config: ParticipantConfig, shown: str, invitation: Path, home: Home) -> dict[str, Any]:
    return {
        "site": config.site,
        "federation": config.federation,
        "state": "waiting",
        "fingerprint": shown,
        "next": "read the fingerprint to the operator (fedpalm-coordinator sites approve "
        f"{config.site}), then: fedpalm-participant join {invitation} --home {home.path}",
    }


def _member(home: Home) -> dict[str, Any]:
    from .install import member_summary

    return {
        **member_summary(home),
        "next": f"fedpalm-participant run --home {home.path}",
    }
