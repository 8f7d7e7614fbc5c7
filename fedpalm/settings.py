"""Edges validate: TOML files become frozen pydantic models, with every error at once."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from .errors import ConfigError

_HOST_PORT = re.compile(r"([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def _host_port(text: str) -> str:
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise ValueError("not HOST:PORT (an IPv6 address goes in brackets)")
    return text


HostPort = Annotated[str, StringConstraints(max_length=300), AfterValidator(_host_port)]
"""Where somebody listens. Port 0 lets a listener choose, and cannot be dialled."""


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


S = TypeVar("S", bound=BaseModel)


def parse_settings(model: type[S], values: dict[str, Any], origin: str) -> S:
    """Validate ``values`` as ``model``; all errors at once, each naming ``origin`` and the key.

    Raises:
        ConfigError: one line per wrong or unknown key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{origin}: {'.'.join(str(part) for part in item['loc']) or '(top level)'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines), next_step="correct the keys named above") from None


def load_toml(model: type[S], path: Path) -> S:
    """Read and validate a TOML file.

    Raises:
        ConfigError: the file is missing, is not UTF-8 TOML, or holds wrong keys (all are named).
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse_toml(model, data, str(path))


def parse_toml(model: type[S], data: bytes, origin: str) -> S:
    """Validate the bytes of a TOML file.

    Raises:
        ConfigError: not UTF-8 TOML, or wrong keys (all are named).
    """
    try:
        values = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{origin}: {error}") from error
    return parse_settings(model, values, origin)
