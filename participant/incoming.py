"""What the coordinator says, before anything here uses it: names that are names, text that is text."""

from __future__ import annotations

from fedpalm.ids import run_id
from fedpalm.text import one_line
from fedpalm.wire.v1 import federation_pb2 as wire


def checked(instruction: wire.Instruction) -> wire.Instruction:
    """The instruction with valid names, and a reason that moves no terminal and fakes no line.

    Names become parts of file names, reasons are shown and stored.

    Raises:
        ProtocolError: it names a run or an exchange in a form that no run or exchange has.
    """
    kind = instruction.WhichOneof("kind")
    if kind is None or kind == "heartbeat":
        return instruction
    safe = wire.Instruction()
    safe.CopyFrom(instruction)
    message = getattr(safe, kind)
    fields = message.DESCRIPTOR.fields_by_name
    named = message.ref if "ref" in fields else message
    run_id(named.run_id)
    if "exchange_id" in named.DESCRIPTOR.fields_by_name:
        run_id(named.exchange_id)
    if "reason" in fields:
        message.reason = one_line(message.reason)
    return safe
