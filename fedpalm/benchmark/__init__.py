"""Measurements: of the federation against bare streams, and of methods against each other."""

# Before anything imports grpc: this rules out TLS 1.2.
from .. import transport as _transport  # noqa: F401
