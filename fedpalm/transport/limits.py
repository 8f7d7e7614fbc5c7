"""Figures that both ends of a connection hold to, and what gRPC calls them."""

from __future__ import annotations

# What is sent. gRPC keeps about one message's worth of buffers for each connection that brought one:
# 64 sites with chunks of 1 MiB cost 60 MiB more than with these, for a tenth of the time of a round.
CHUNK_BYTES = 256 * 1024
# What the contract allows.
MAX_CHUNK_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = MAX_CHUNK_BYTES + 64 * 1024
# A unary call that the server works on for longer is ended; a stream on which nothing moves, too.
UNARY_DEADLINE_S = 60.0
STREAM_IDLE_S = 60.0
# Certificate dates and the caller's own rules are looked at again this often for every open call.
RECHECK_S = 1.0
# A caller that takes nothing off the line does not take its last status either.
CUT_PATIENCE_S = 1.0
MAX_CONCURRENT_CALLS = 4096
# Of one certificate name; a participant needs about ten.
MAX_CALLS_PER_CALLER = 64
# Those who have no certificate yet make one short call after the other.
ENROLMENT_CONCURRENT_CALLS = 16
ENROLMENT_CALLS_PER_CALLER = 4
ENROLMENT_MESSAGE_BYTES = 32 * 1024
ENROLMENT_DEADLINE_S = 10.0

_SECOND_MS = 1000
_KEEPALIVE_S = 20
_PING_INTERVAL_S = 10

Option = tuple[str, int | str]

_COMMON: tuple[Option, ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", _KEEPALIVE_S * _SECOND_MS),
    ("grpc.keepalive_timeout_ms", 10 * _SECOND_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    *_COMMON,
    # Two processes on one port would each have half of the truth.
    ("grpc.so_reuseport", 0),
    # Bytes that one upload may have on the way. gRPC's own estimate grows with a loaded machine's
    # delays to many times that, on each connection.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", MAX_CHUNK_BYTES),
    ("grpc.max_concurrent_streams", 64),
    ("grpc.server_handshake_timeout_ms", 10 * _SECOND_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", _PING_INTERVAL_S * _SECOND_MS),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 5 * 60 * _SECOND_MS),
    # A connection is made anew every hour, and its certificate verified with it; what is open then
    # has ten minutes to end, and both uploads and downloads can be resumed.
    ("grpc.max_connection_age_ms", 60 * 60 * _SECOND_MS),
    ("grpc.max_connection_age_grace_ms", 10 * 60 * _SECOND_MS),
)

_ENROLMENT_OWN: dict[str, int | str] = {
    "grpc.max_receive_message_length": ENROLMENT_MESSAGE_BYTES,
    "grpc.max_metadata_size": 4096,
    "grpc.absolute_max_metadata_size": 8192,
    "grpc.max_concurrent_streams": 2,
    "grpc.server_handshake_timeout_ms": 5 * _SECOND_MS,
    "grpc.max_connection_idle_ms": 30 * _SECOND_MS,
    "grpc.max_connection_age_ms": 60 * _SECOND_MS,
    "grpc.max_connection_age_grace_ms": 10 * _SECOND_MS,
}
ENROLMENT_OPTIONS: tuple[Option, ...] = (
    *(option for option in SERVER_OPTIONS if option[0] not in _ENROLMENT_OWN),
    *_ENROLMENT_OWN.items(),
)


def client_options(server_name: str, *, proxy: bool) -> tuple[Option, ...]:
    """Channel options of a site or an operator.

    Args:
        server_name: the DNS name that the certificate must carry, whatever address is dialled.
        proxy: obey ``https_proxy`` of the environment.
    """
    return (
        *_COMMON,
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.enable_http_proxy", int(proxy)),
        # Trying again is the caller's decision: it knows what may be repeated.
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        # gRPC answers from its last failure until this has passed; the caller has a back-off already.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 10 * _SECOND_MS),
        ("grpc.max_reconnect_backoff_ms", 1 * _SECOND_MS),
    )
