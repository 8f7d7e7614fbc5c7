"""An identity that follows its files: renewed certificates and new trust anchors without a restart."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from ..clock import Clock
from .bundle import CA, TLS_CHAIN, TlsIdentity, load_tls_identity


class LiveIdentity:
    """The identity of a folder as it is now.

    Whoever replaces the files does it so that every moment between shows a whole identity
    (``bundle.py``). For several threads: gRPC asks in its own when a connection is made.

    Raises:
        KeyFileError, IdentityError: on construction, as :func:`load_tls_identity`.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.folder, self._clock, self._lock = folder, clock, threading.Lock()
        self._seen = self._stamp()
        self._identity = load_tls_identity(folder, now=clock.now())

    @property
    def current(self) -> TlsIdentity:
        """The identity, read anew if a file has changed.

        Raises:
            KeyFileError, IdentityError: the new files are not whole or not valid; it is tried again at
                the next call.
        """
        with self._lock:
            stamp = self._stamp()
            if stamp != self._seen:
                self._identity = load_tls_identity(self.folder, now=self._clock.now())
                self._seen = stamp
            return self._identity

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_stamp(self.folder / name) for name in (TLS_CHAIN, CA))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Device-independent mark of a file's content; every replacement is another inode."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)
