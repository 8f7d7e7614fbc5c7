"""What a running coordinator needs of the CA in its home: to renew certificates, to say whom to trust."""

from __future__ import annotations

import logging
from pathlib import Path

from fedpalm.errors import IdentityError, StateError
from fedpalm.pki.authority import Authority, load_authority, load_trust
from fedpalm.pki.trust import TrustBundle

log = logging.getLogger(__name__)


class IssuingDesk:
    """The CA of a folder as it is at each call, so that a rotation needs no restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def authority(self) -> Authority:
        """Raises StateError: the issuing key is not on this machine, or cannot be used."""
        try:
            return load_authority(self._folder)
        except IdentityError as error:
            # Its words name files, which are nobody's business at the other end.
            log.error("no certificate can be issued: %s", error.what)
            raise StateError(
                "the coordinator cannot issue certificates: its issuing key is not in use there",
                safe="the present certificates go on until they end",
                next_step="the operator signs a request as a file: fedpalm-coordinator sites sign",
            ) from error

    def trust(self) -> TrustBundle:
        """The federation's trust anchors at present, and what leads from each to the next.

        Raises:
            StateError: they cannot be read.
        """
        try:
            return load_trust(self._folder)
        except IdentityError as error:
            log.error("the trust anchors cannot be told: %s", error.what)
            raise StateError(
                "the coordinator cannot read its trust anchors",
                safe="whoever has pinned them goes on with them",
                next_step="the coordinator's log says what is wrong with its files",
            ) from error
