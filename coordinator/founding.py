"""Founding a federation: its settings, and what waits beside the CA while an institution signs it.

``coordinator.toml`` comes last: a folder without it is a home that was never finished.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator

from fedpalm.errors import ConfigError, StateError
from fedpalm.pki.authority import Authority, IpAddress
from fedpalm.pki.custody import ISSUING_REQUEST
from fedpalm.pki.files import write_public
from fedpalm.settings import load_toml, parse_settings

from .config import CoordinatorSettings, Home
from .own import found_own, make_own_keys
from .store import Store

_WRITTEN = ("federation", "listen", "enrol_listen", "advertise", "enrol_advertise")


def _ip(text: str) -> str:
    return str(ipaddress.ip_address(text))


class Founding(CoordinatorSettings):
    """What is settled at the founding: settings, and how sites will reach the coordinator."""

    dns: tuple[str, ...] = ()
    ip: tuple[Annotated[str, AfterValidator(_ip)], ...] = ()

    @property
    def addresses(self) -> list[IpAddress]:
        return [ipaddress.ip_address(text) for text in self.ip]


def settle(
    federation: str,
    listen: str,
    enrol_listen: str | None,
    advertise: str | None,
    enrol_advertise: str | None,
    dns: Sequence[str],
    ip: Sequence[str],
) -> Founding:
    """Fill in what was left out.

    Newcomers are listened for on the port after that of ``listen``; sites dial the first DNS name or
    address, or else ``listen``.

    Raises:
        ConfigError: every wrong value, by name.
    """
    values = {"federation": federation, "listen": listen, "dns": tuple(dns), "ip": tuple(ip)}
    given = {
        "enrol_listen": enrol_listen, "advertise": advertise, "enrol_advertise": enrol_advertise,
    }  # fmt: skip
    values |= {name: text for name, text in given.items() if text is not None}
    found = parse_settings(Founding, values, "init")
    hosts = [*found.dns, *(f"[{one}]" if ":" in one else one for one in found.ip)]
    own_host, _, own_port = found.listen.rpartition(":")
    called = found.advertise or f"{hosts[0] if hosts else own_host}:{own_port}"
    enrol_port = found.enrolment.rpartition(":")[2]
    values |= {
        "enrol_listen": found.enrolment,
        "advertise": called,
        "enrol_advertise": found.enrol_advertise or f"{called.rpartition(':')[0]}:{enrol_port}",
    }
    return parse_settings(Founding, values, "init")


def require_free(place: Home) -> None:
    """Raises StateError: the folder is a home already, or an init ended halfway in it."""
    if place.config.exists():
        raise StateError(
            f"{place.root} is the home of a coordinator already",
            safe="nothing was changed",
            next_step="fedpalm-coordinator serve, or init another --home",
        )
    if place.founding.exists():
        raise _waiting(place)
    if place.authority.exists():
        raise StateError(
            f"{place.root} has a CA but no {place.config.name}: an init did not come to its end there",
            safe="nothing was changed",
            next_step=f"move {place.root} away, then init again",
        )


def require_founded(place: Home) -> None:
    """Raises StateError: the CA of this home waits for an institution's signature."""
    if place.founding.exists() and not place.config.exists():
        raise _waiting(place)


def wait_for_institution(place: Home, founding: Founding) -> None:
    """Keep what was settled until the issuing certificate is installed."""
    names = [*_WRITTEN, "dns", "ip"]
    write_public(place.founding, _toml(founding, names))


def waiting_founding(place: Home) -> Founding | None:
    """What was settled, if this home waits for an institution. Raises ConfigError."""
    return load_toml(Founding, place.founding) if place.founding.exists() else None


def finish(place: Home, founding: Founding, authority: Authority, now: float) -> None:
    """Make the identities of the home, register them, and write its settings; may be done again.

    Raises:
        ConfigError: the CA is of another federation.
        KeyFileError, IdentityError: as :func:`found_own`.
    """
    if authority.federation != founding.federation:
        raise ConfigError(
            f"the CA is of federation {authority.federation!r}, not {founding.federation!r}"
        )
    make_own_keys(place)
    with Store.open(place.store) as store:
        found_own(place, authority, store, founding.dns, founding.addresses, now)
    write_public(place.config, _toml(founding, _WRITTEN))
    place.founding.unlink(missing_ok=True)


def _toml(founding: Founding, names: Sequence[str]) -> bytes:
    # A JSON string or list of strings is one of TOML, too.
    values = founding.model_dump(mode="json")
    return "".join(f"{name} = {json.dumps(values[name])}\n" for name in names).encode()


def _waiting(place: Home) -> StateError:
    return StateError(
        f"{place.root}: the CA waits for its institution's signature on "
        f"{place.authority / ISSUING_REQUEST}",
        safe="nothing was changed",
        next_step="fedpalm-coordinator ca install ISSUING.pem",
    )
