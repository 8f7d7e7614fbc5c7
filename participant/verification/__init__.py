"""Verification in daily use: what the training was for.

In a notebook::

    from participant.verification import open_verifier

    with open_verifier("site-a") as verifier:
        print(verifier.verify("anna", "probe.png").match)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .verifier import Verifier

__all__ = ["open_verifier"]


@contextmanager
def open_verifier(home: str | Path, run: str | None = None) -> Iterator[Verifier]:
    """The verifier of a site's home; torch is loaded at the first image.

    Args:
        run: whose model to use; None takes the run that was completed last.
    Raises:
        ConfigError, IntegrityError, KeyFileError: the home cannot be used.
    """
    from contextlib import closing

    from ..config import Home
    from ..store import SiteStore
    from .verifier import Verifier

    place = Home(Path(home))
    config = place.load()
    with closing(SiteStore(place)) as store:
        yield Verifier(config, store, run)
