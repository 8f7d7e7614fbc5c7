"""Programs of the system that some tests need; without one they say so and are left out."""

from __future__ import annotations

import shutil

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the openssl program is not installed"
)
