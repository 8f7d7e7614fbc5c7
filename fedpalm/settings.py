"""Edges validate: TOML files become frozen pydantic models, with every error at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import ConfigError


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
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return parse_settings(model, values, str(path))
