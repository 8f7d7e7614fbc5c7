"""Before any test module imports grpc: TLS 1.2 is ruled out when it is imported."""

from __future__ import annotations

import signal

from hypothesis import settings

import fedpalm.transport  # noqa: F401

# A shell starts what runs in the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A test asserts behaviour, never a duration.
settings.register_profile("fedpalm", deadline=None)
settings.load_profile("fedpalm")
