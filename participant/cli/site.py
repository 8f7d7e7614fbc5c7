"""What the site's commands share: opening a home, its settings from options, and how it reports."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from fedpalm.cli.console import err, out
from fedpalm.clock import SystemClock
from fedpalm.data.modality import Modality
from fedpalm.errors import IdentityError, StateError
from fedpalm.pki.bundle import TLS_CHAIN
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.live import LiveIdentity
from fedpalm.plan import FamilyName
from fedpalm.settings import parse_settings

from ..config import DataSettings, Home, ParticipantConfig
from ..desk import Desk
from ..log import SiteLog
from ..reporter import LiveReporter, PlainReporter, Reporter
from ..store import SiteStore
from ..vault_secret import no_terminal

F = TypeVar("F", bound=Callable[..., Any])

_DATA_OPTIONS = (
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        help="Folder or list of palms (ROI images) or signatures.",
    ),
    click.option(
        "--modality",
        type=click.Choice(get_args(Modality)),
        default="palm",
        show_default=True,
        help="What the images show.",
    ),
    click.option(
        "--kind",
        default="auto",
        help="Layout of the images, such as folder, list or signature-list; auto finds it out.",
    ),
    click.option("--cap", type=click.IntRange(2), help="Use at most so many images an identity."),
    click.option("--split-seed", type=click.IntRange(0), default=0, show_default=True),
    click.option(
        "--backbone",
        type=click.Choice(get_args(FamilyName)),
        help="This site's own, for plans in which each site has the one that it chose.",
    ),
)


def data_options(command: F) -> F:
    """``--data``, how it is read, and the backbone that is trained on it."""
    for option in reversed(_DATA_OPTIONS):
        command = option(command)
    return command


def data_option_values(
    data: Path | None, modality: str, kind: str, cap: int | None, split_seed: int
) -> DataSettings | None:
    """The section ``[data]`` that the options mean; None without ``--data``. Raises ConfigError."""
    if data is None:
        return None
    values = {
        "source": str(data.expanduser().resolve()),
        "modality": modality,
        "kind": kind,
        "cap_per_identity": cap,
        "split_seed": split_seed,
    }
    return parse_settings(DataSettings, values, "--data")


def settings_of(
    federation: str,
    site: str,
    coordinator: str,
    images: DataSettings | None,
    backbone: str | None,
    *,
    origin: str,
    known: ParticipantConfig | None,
) -> ParticipantConfig:
    """Settings of a site that asks to join; what it knows already is kept where nothing new is said.

    Raises:
        ConfigError: names every wrong key.
    """
    kept = known.model_dump() if known is not None else {}
    said: dict[str, Any] = {"federation": federation, "site": site, "coordinator": coordinator}
    if images is not None:
        said["data"] = images.model_dump()
    if backbone is not None:
        said["backbone"] = backbone
    return parse_settings(ParticipantConfig, {**kept, **said}, origin)


def look_at(data: DataSettings, site: str) -> None:
    """Fail now, not in round 1, if the images are not there. Pixels are looked at by ``preflight``."""
    from ..images import list_palms, trainable_signatures

    if data.modality == "signature":
        trainable_signatures(data, site)
    else:
        list_palms(data)


def reporter_for(as_json: bool) -> Reporter:
    """Live on a terminal, lines anywhere else; with ``--json`` on stderr."""
    if (sys.stderr if as_json else sys.stdout).isatty():
        return LiveReporter(err() if as_json else out())
    return PlainReporter(to_stderr=as_json)


def require_member(home: Home) -> ParticipantConfig:
    """The settings of a home that holds a certificate.

    Raises:
        ConfigError: it is no site's home.
        StateError: the site has asked to join, but holds no certificate yet.
    """
    config = home.load()
    if not (home.tls / TLS_CHAIN).exists():
        raise StateError(
            f"{home.path}: this site holds no certificate yet",
            next_step="go on with: fedpalm-participant join INVITATION (or, by files, install "
            f"BUNDLE) --home {home.path}",
        )
    return config


def live_identity(home: Home, config: ParticipantConfig) -> LiveIdentity:
    """The home's identity, checked against its settings.

    Raises:
        KeyFileError, IdentityError: a file is missing or damaged, a certificate has ended, or it is
            somebody else's.
    """
    live = LiveIdentity(home.tls, SystemClock())
    expected = Identity(config.federation, Role.PARTICIPANT, config.site)
    if live.current.identity != expected:
        raise IdentityError(
            f"{home.tls} is the identity of {live.current.identity}, participant.toml says {expected}"
        )
    return live


def ask_passphrase(prompt: str) -> str:
    """What a person types, unseen. Raises VaultLockedError: there is no terminal."""
    if not sys.stdin.isatty():
        return no_terminal(prompt)
    return str(click.prompt(prompt, hide_input=True, err=True))


@contextmanager
def open_site(home: Path) -> Iterator[tuple[ParticipantConfig, Desk]]:
    """Configuration, store, log and identity of a home.

    Raises:
        ConfigError, KeyFileError, IdentityError, IntegrityError: what is missing or wrong, and what
            to do.
    """
    place = Home(home)
    config = require_member(place)
    live = live_identity(place, config)
    with closing(SiteStore(place, clock=SystemClock(), ask=ask_passphrase)) as store:
        yield config, Desk(store, SiteLog(store, live.current.signing_key), live)
