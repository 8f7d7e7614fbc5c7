"""gRPC over mutual TLS 1.3: channels, the server, error mapping and chunked streams.

grpcio has no switch for the TLS version. With P-256 leaves no TLS 1.2 suite is left by the one below,
which needs an RSA certificate, while TLS 1.3 suites are not affected: 1.2 becomes impossible and 1.3
stays. gRPC reads the variable when it is imported, so this package comes first.
"""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError

_CIPHERS_VARIABLE, _CIPHERS = "GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384"
_IN_TIME = "grpc" not in sys.modules or os.environ.get(_CIPHERS_VARIABLE) == _CIPHERS
os.environ[_CIPHERS_VARIABLE] = _CIPHERS


def require_tls_1_3() -> None:
    """Raises ConfigError if gRPC was imported before TLS 1.2 could be ruled out."""
    if not _IN_TIME:
        raise ConfigError(
            "grpc was imported before fedpalm.transport: this process might speak TLS 1.2",
            safe="nothing was opened",
            next_step="import fedpalm.transport before grpc",
        )
