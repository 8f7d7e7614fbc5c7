"""A federation's CA and the people in it, made once for each test session."""

from __future__ import annotations

import ipaddress
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from cryptography import x509

from fedpalm.pki.authority import Authority, create_authority
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import SigningKey, TlsKey, new_signing_key, new_tls_key
from fedpalm.pki.request import create_request

NOW = 1_700_000_000.0


@dataclass(frozen=True)
class Person:
    identity: Identity
    tls_key: TlsKey
    signing_key: SigningKey
    leaf: x509.Certificate


@dataclass(frozen=True)
class Federation:
    authority: Authority
    root_key: TlsKey
    now: float = NOW

    def enrol(self, role: Role, name: str, lifetime: timedelta = timedelta(days=30)) -> Person:
        identity = Identity(self.authority.federation, role, name)
        tls_key, signing_key = new_tls_key(), new_signing_key()
        hosts = ["hub.example"] if role is Role.COORDINATOR else []
        leaf = self.authority.issue(
            create_request(identity, tls_key, signing_key),
            identity,
            now=self.now,
            lifetime=lifetime,
            dns_names=hosts,
            ip_addresses=[ipaddress.ip_address("127.0.0.1")] if hosts else [],
        )
        return Person(identity, tls_key, signing_key, leaf)


class Crash(BaseException):
    """The process is gone: no handler of errors may run on it."""


def crashes(folder: Path, work: Callable[[Path], object], scratch: Path) -> Iterator[Path]:
    """Copies of ``folder``, each with ``work`` cut off before or after another of its changes.

    A change is what gives a file its name: a link or a replacement. Ends when ``work`` has come to its
    end undisturbed.
    """
    link, replace = os.link, Path.replace
    for number in range(100):
        place = scratch / f"crash-{number}"
        shutil.copytree(folder, place)
        left = number

        def cut(change: Callable[..., object]) -> Callable[..., object]:
            def doing(*arguments: object, **options: object) -> object:
                nonlocal left
                left -= 1
                if left == -1:
                    raise Crash
                done = change(*arguments, **options)
                left -= 1
                if left == -1:
                    raise Crash
                return done

            return doing

        with mock.patch("os.link", cut(link)), mock.patch.object(Path, "replace", cut(replace)):
            try:
                work(place)
            except Crash:
                pass
            else:
                assert number > 1, "nothing was changed"
                return
        yield place
    raise AssertionError("the work never comes to its end")


@pytest.fixture(scope="session")
def federation() -> Federation:
    return Federation(*create_authority("palms", NOW))


@pytest.fixture(scope="session")
def living_federation() -> Federation:
    """For what reads the machine's own clock."""
    now = time.time()
    return Federation(*create_authority("palms", now), now)


@pytest.fixture(scope="session")
def stranger() -> Federation:
    """Another CA that claims the same federation name."""
    return Federation(*create_authority("palms", NOW))


@pytest.fixture(scope="session")
def site(federation: Federation) -> Person:
    return federation.enrol(Role.PARTICIPANT, "north")
