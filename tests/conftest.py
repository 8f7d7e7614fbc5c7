"""Before any test module imports grpc: TLS 1.2 is ruled out when it is imported."""

from __future__ import annotations

import fedpalm.transport  # noqa: F401
