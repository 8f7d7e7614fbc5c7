"""The engine and the store are tried with jobs of the palm benchmark."""

from __future__ import annotations

from tests.unit.benchmark.palm.conftest import cache, palms, store

__all__ = ["cache", "palms", "store"]
