"""What a running coordinator needs of the CA in its home: to renew certificates, to say whom to trust."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from fedpalm.errors import KeyFileError, StateError
from fedpalm.pki.authority import Authority, load_authority, load_trust
from fedpalm.pki.trust import TrustBundle


class IssuingDesk:
    """The CA of a folder as it is at each call, so that a rotation needs no restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def authority(self) -> Authority:
        """Raises StateError: the issuing key cannot be used on this machine."""
        try:
            return load_authority(self._folder)
        except KeyFileError as error:
            raise StateError(
                "the coordinator cannot issue certificates: its issuing key is not there",
                safe="the present certificates go on until they end",
                next_step="the operator signs a request as a file: fedpalm-coordinator sites sign",
            ) from error

    def trust(self) -> TrustBundle:
        """The federation's trust anchors at present, and what leads from each to the next."""
        return load_trust(self._folder)


def chain_of(leaf: x509.Certificate, authority: Authority) -> tuple[x509.Certificate, ...]:
    """The leaf and what lies between it and an anchor; an external CA's issuing certificate is one."""
    if authority.issuing in authority.anchors:
        return (leaf,)
    return (leaf, authority.issuing)
