"""Verification in daily use: what the training was for.

In a notebook::

    from participant.verification import open_verifier

    with open_verifier("site-a") as verifier:
        print(verifier.verify("anna", "probe.png").match)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..vault_secret import Ask, no_terminal

if TYPE_CHECKING:
    from .verifier import Verifier

__all__ = ["open_verifier"]


@contextmanager
def open_verifier(
    home: str | Path, run: str | None = None, *, ask: Ask = no_terminal
) -> Iterator[Verifier]:
    """The verifier of a site's home; torch is loaded at the first image.

    Args:
        run: whose model to use; None takes the run that was completed last.
        ask: asks for the vault's passphrase, where it is one that a person types (``getpass.getpass``).
    Raises:
        ConfigError, IntegrityError, KeyFileError: the home cannot be used.
    """
    from ..config import Home
    from ..store import SiteStore
    from .verifier import Verifier

    place = Home(Path(home))
    config = place.load()
    with closing(SiteStore(place, ask=ask)) as store:
        yield Verifier(config, store, run)
