"""``export``: a global model as a safetensors file that says what it is."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import click
import numpy as np
import safetensors.numpy

from fedpalm.canonical import canonical_json
from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import HashMismatchError, MessageTooLargeError, ProtocolError
from fedpalm.plan import Plan
from fedpalm.transport.channel import Connection
from fedpalm.wire.v1 import operator_pb2 as pb

from ..spool import sync_folder
from .link import coordinator_option, run_option, with_operator

IDLE_S = 60.0


async def fetch_model(
    connection: Connection, run_id: str, round_number: int = 0
) -> tuple[pb.ExportHeader, bytes]:
    """A committed global model and what the coordinator says of it; round 0 is the newest.

    Raises:
        ProtocolError, MessageTooLargeError, HashMismatchError: not the model that was announced.
    """
    request = pb.ExportModelRequest(run_id=run_id, round=round_number)
    header, data = None, bytearray()
    async for reply in connection.stream(connection.operator.ExportModel, request, idle_s=IDLE_S):
        if reply.WhichOneof("part") == "header":
            header = reply.header
        elif header is None or reply.chunk.offset != len(data):
            raise ProtocolError("the coordinator sent a model out of order")
        else:
            data += reply.chunk.data
            if len(data) > header.model_bytes:
                raise MessageTooLargeError("the coordinator sent more than it declared")
    if header is None:
        raise ProtocolError("the coordinator sent no model")
    if hashlib.sha256(data).digest() != header.model_hash:
        raise HashMismatchError(
            "the model that arrived is not the one announced", safe="nothing was done with it"
        )
    return header, bytes(data)


@click.command()
@home_option("the coordinator")
@run_option
@click.option("--round", "round_number", type=click.IntRange(0), default=0, help="0: the newest.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@coordinator_option
@json_option
@command_errors
def export(
    home: Path, run_id: str, round_number: int, out: Path, address: str | None, as_json: bool
) -> None:
    """Write a committed global model as safetensors, with its layout, plan and hash.

    `plan submit --model` takes the file: a new run goes on from it, with fresh state at the sites.
    """
    header, data = with_operator(
        home, address, lambda connection: fetch_model(connection, run_id, round_number)
    )
    bound = Plan.from_bytes(header.plan)
    tensors = bound.model_layout.unflatten(np.frombuffer(data, dtype="<f4"))
    metadata = {
        "layout": canonical_json(bound.model_layout.to_json()).decode(),
        "expert_layout": canonical_json(bound.released_layout.to_json()).decode(),
        "plan_hash": bound.hash.hex(),
        "model_hash": header.model_hash.hex(),
        "run_id": header.run_id,
        "round": str(header.round),
        "method": bound.draft.method,
    }
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("wb") as stream:
        stream.write(safetensors.numpy.save(tensors, metadata))
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(out)
    sync_folder(out.parent)
    emit(
        {
            "out": str(out),
            "run_id": header.run_id,
            "round": header.round,
            "parameters": bound.model_layout.size,
            "layout_hash": bound.model_layout.hash.hex(),
            "model_hash": header.model_hash.hex(),
        },
        as_json,
    )
