"""The host institution's process and its commands."""

# Before anything imports grpc: this rules out TLS 1.2.
from fedpalm import transport as _transport  # noqa: F401
