"""The limits that the contract declares, checked before anybody looks at a message."""

from __future__ import annotations

from google.protobuf.message import Message


def check_limits(message: Message) -> None:
    """Check every field that is set against ``max_len``, ``exact_len`` and ``max_items``.

    Raises:
        MessageTooLargeError: a field is longer, or has more elements, than its limit.
        ProtocolError: a field does not have its exact length.
    """
    raise NotImplementedError
