from __future__ import annotations

import pytest

from fedpalm.errors import ProtocolError
from fedpalm.ledger.checkpoint import GivenCheckpoint
from fedpalm.wire import checkpoints
from fedpalm.wire.limits import check_limits, parse_message
from fedpalm.wire.v1 import federation_pb2 as wire
from tests.fuzz import samples

GIVEN = GivenCheckpoint(samples.checkpoint(), (bytes(32), b"\x01" * 32))


def test_a_checkpoint_survives_the_wire():
    message = checkpoints.to_wire(GIVEN)
    check_limits(message)
    data = message.SerializeToString()
    assert checkpoints.from_wire(parse_message(wire.GivenCheckpoint.FromString, data)) == GIVEN


@pytest.mark.parametrize("proof", [[b"short"], [bytes(32)] * 65])
def test_a_proof_of_another_form_is_refused(proof):
    message = checkpoints.to_wire(GIVEN)
    del message.proof[:]
    message.proof.extend(proof)
    with pytest.raises(ProtocolError):
        check_limits(message)


def test_no_statement_is_no_checkpoint():
    with pytest.raises(ProtocolError):
        checkpoints.from_wire(wire.GivenCheckpoint())


def test_as_many_as_may_be_given_fit_a_message():
    request = wire.GiveCheckpointRequest(site_id="north")
    whole = GivenCheckpoint(GIVEN.signed, (bytes(32),) * 64)
    request.given.extend([checkpoints.to_wire(whole)] * 200)
    request.ref.run_id = "run-1"
    check_limits(request)
    assert request.ByteSize() < 1 << 20
