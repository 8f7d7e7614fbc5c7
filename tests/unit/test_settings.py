"""What an address in a settings file may be."""

from __future__ import annotations

import pytest

from fedpalm.errors import ConfigError
from fedpalm.settings import HostPort, Settings, parse_settings


class Where(Settings):
    address: HostPort


@pytest.mark.parametrize(
    "address", ["127.0.0.1:7443", "hub.example:0", "my_hub:65535", "[::1]:7443", "[2001:db8::7]:1"]
)
def test_a_host_and_a_port_are_an_address(address: str) -> None:
    assert parse_settings(Where, {"address": address}, "here").address == address


@pytest.mark.parametrize(
    "address",
    ["hub.example", "hub.example:", ":7443", "::1:7443", "hub:65536", "hub:7443/x", "a hub:7443",
     "https://hub:7443", "hub:-1", "hub:7443\n", f"{'h' * 300}:1"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_key_that_is_wrong(address: str) -> None:
    with pytest.raises(ConfigError, match="here: address"):
        parse_settings(Where, {"address": address}, "here")
