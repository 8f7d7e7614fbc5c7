"""gRPC over mutual TLS 1.3: channels, the server, error mapping and chunked streams.

grpcio has no switch for the TLS version. With P-256 leaves no TLS 1.2 suite is left by the one below,
which needs an RSA certificate, while TLS 1.3 suites are not affected: 1.2 becomes impossible and 1.3
stays. gRPC reads the variable once, so it is set before anything here imports ``grpc``.
"""

from __future__ import annotations

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
