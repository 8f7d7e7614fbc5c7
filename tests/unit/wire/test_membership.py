from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.errors import ProtocolError
from fedpalm.pki.authority import create_authority, save_authority
from fedpalm.pki.custody import rotate_root
from fedpalm.pki.identity import Role
from fedpalm.pki.trust import TrustBundle
from fedpalm.wire.limits import check_limits
from fedpalm.wire.membership import (
    issued_from_wire,
    issued_to_wire,
    trust_from_wire,
    trust_to_wire,
)
from fedpalm.wire.v1 import membership_pb2 as wire
from tests.support.pki import TestAuthority


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> TestAuthority:
    folder: Path = tmp_path_factory.mktemp("rotated") / "ca"
    save_authority(folder, *create_authority("palms", time.time()))
    return TestAuthority.of(rotate_root(folder, time.time()))


def test_trust_comes_back_from_the_wire(rotated: TestAuthority) -> None:
    trust = rotated.authority.trust
    assert len(trust.anchors) == 2 and len(trust.handovers) == 1
    assert trust_from_wire(trust_to_wire(trust)) == trust


def test_an_issued_certificate_comes_back_from_the_wire(rotated: TestAuthority) -> None:
    north = rotated.enrol(Role.PARTICIPANT, "north")
    message = issued_to_wire(north.chain, rotated.authority.trust)
    assert issued_from_wire(message) == (north.chain, rotated.authority.trust)


def test_the_longest_chain_and_bundle_are_within_the_limits_of_the_contract(
    rotated: TestAuthority,
) -> None:
    north = rotated.enrol(Role.PARTICIPANT, "north")
    assert len(north.chain) == 3
    trust = rotated.authority.trust
    check_limits(issued_to_wire(north.chain, TrustBundle(trust.anchors * 2, trust.handovers * 4)))


def test_an_answer_without_a_certificate_is_refused(rotated: TestAuthority) -> None:
    with pytest.raises(ProtocolError, match="without the certificate"):
        issued_from_wire(issued_to_wire((), rotated.authority.trust))


@given(st.binary(max_size=64))
def test_bytes_that_are_no_certificate_are_a_protocol_error(junk: bytes) -> None:
    for bundle in (wire.TrustBundle(anchors=[junk]), wire.TrustBundle(handovers=[junk])):
        with pytest.raises(ProtocolError, match="malformed"):
            trust_from_wire(bundle)
    with pytest.raises(ProtocolError, match="malformed"):
        issued_from_wire(wire.IssuedCertificate(chain=[junk]))
