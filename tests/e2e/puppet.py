"""A site that does what a test says, when it says so: a real certificate over real TLS, and no agent."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from fedpalm.errors import FedPalmError
from fedpalm.pki.bundle import TlsIdentity, load_tls_identity
from fedpalm.pki.identity import coordinator_dns_name
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.agreement import PlanAnswer
from fedpalm.rounds.manifest import Countersignature, RoundManifest
from fedpalm.transport.channel import Connection
from fedpalm.transport.limits import CHUNK_BYTES
from fedpalm.transport.status import error_of
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as wire

from .background import PATIENCE_S, Background, wait_until
from .rehearsals import encoded_update


@dataclass
class Stream:
    """What came on an open call so far, and how and when (monotonic seconds) it ended."""

    came: list[Any] = field(default_factory=list)
    ended_at: float | None = None
    error: FedPalmError | None = None

    def manifests(self) -> list[RoundManifest]:
        orders = [one.train for one in self.came if one.WhichOneof("kind") == "train"]
        return [RoundManifest.read(from_wire(order.manifest)) for order in orders]


class Puppet:
    """A context manager; every method is one step that an agent would take by itself.

    Args:
        identity: left out, that of the home at each connection.
    """

    def __init__(self, home: Path, address: str, identity: TlsIdentity | None = None) -> None:
        self.home, self._address, self._given = home, address, identity
        self.number = 0

    def __enter__(self) -> Puppet:
        self._background = Background().__enter__()
        self.identity = self._given or load_tls_identity(self.home / "tls", now=time.time())
        self.name = self.identity.identity.name
        self._connection = self._background.run(
            Connection(self._address, self.identity).__aenter__()
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._background.run(self._connection.__aexit__(None, None, None))
        self._background.__exit__()

    def reconnect(self) -> None:
        """Dial in anew with what the home holds now."""
        self.__exit__()
        self.__enter__()

    # --- calls ------------------------------------------------------------------------------------

    def call(self, method: str, request: Any, service: str = "federation") -> Any:
        stub = getattr(self._connection, service)
        return self._background.run(
            self._connection.unary(getattr(stub, method), request, deadline_s=PATIENCE_S)
        )

    def raw(self, path: str, message: bytes) -> bytes:
        """A unary call of any name with any bytes, past our own checks and limits."""
        tls = self.identity
        name = ("grpc.ssl_target_name_override", coordinator_dns_name(tls.identity.federation))
        credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.chain_pem)

        async def call() -> bytes:
            async with grpc.aio.secure_channel(
                self._address, credentials, options=[name]
            ) as channel:
                try:
                    reply = await channel.unary_unary(path)(message, timeout=PATIENCE_S)
                except grpc.aio.AioRpcError as error:
                    raise error_of(error, self._address, "") from error
                return bytes(reply)

        return self._background.run(call())

    def stream(self, method: str, request: Any) -> list[Any]:
        """A call of many replies, to its end."""

        async def collect() -> list[Any]:
            stub = getattr(self._connection.federation, method)
            return [one async for one in self._connection.stream(stub, request, idle_s=PATIENCE_S)]

        return self._background.run(collect())

    def upload(self, parts: Iterable[Any], method: str = "UploadUpdate") -> Any:
        async def sent() -> AsyncIterator[Any]:
            for part in parts:
                yield part

        stub = getattr(self._connection.federation, method)
        return self._background.run(self._connection.upload(stub, sent(), deadline_s=PATIENCE_S))

    def open_upload(self, first: Iterable[Any] = (), method: str = "UploadUpdate") -> Stream:
        """An upload that says ``first``, then nothing, and stays open."""

        async def sent() -> AsyncIterator[Any]:
            for part in first:
                yield part
            await asyncio.Event().wait()

        async def hold(stream: Stream) -> None:
            # The call itself, not Connection.upload: that one looks at the status only after it wrote.
            call = getattr(self._connection.federation, method).call(sent())
            try:
                stream.came.append(await call)
            except Exception as error:
                stream.error = _as_ours(error, self._address)
            finally:
                stream.ended_at = time.monotonic()

        stream = Stream()
        self._background.start(hold(stream))
        return stream

    def listen(self) -> Stream:
        """Open Instructions, as an agent does after Hello."""

        async def follow(stream: Stream) -> None:
            request = wire.InstructionsRequest(site_id=self.name)
            instructions = self._connection.federation.Instructions
            try:
                async for one in self._connection.stream(instructions, request, idle_s=PATIENCE_S):
                    if one.WhichOneof("kind") != "heartbeat":
                        stream.came.append(one)
            except FedPalmError as error:
                stream.error = error
            finally:
                stream.ended_at = time.monotonic()

        self.hello()
        stream = Stream()
        self._background.start(follow(stream))
        return stream

    # --- steps of a run ---------------------------------------------------------------------------

    def hello(self) -> Any:
        return self.call("Hello", wire.HelloRequest(protocol_versions=[1], site_id=self.name))

    def plan(self, run_id: str) -> Plan:
        document = self.call("FetchPlan", wire.FetchPlanRequest(run_id=run_id))
        return Plan.from_bytes(document.plan)

    def answer(
        self, run_id: str, plan: Plan, said: str, number: int | None = None
    ) -> SignedStatement:
        """Sign and send ``approve`` or ``refuse``; gives back what was sent."""
        signed = self.signed_answer(run_id, plan.hash.hex(), said, number)
        self.send_answer(run_id, signed)
        return signed

    def signed_answer(
        self, run_id: str, plan_hash: str, said: Any, number: int | None = None
    ) -> SignedStatement:
        if number is None:
            self.number = number = self.number + 1
        return PlanAnswer(
            federation=self.identity.identity.federation,
            run=run_id,
            plan_hash=plan_hash,
            site=self.name,
            answer=said,
            by="person",
            number=number,
            answered_ms=round(time.time() * 1000),
        ).sign(self.identity)

    def send_answer(self, run_id: str, signed: SignedStatement, name: str | None = None) -> None:
        request = wire.AnswerPlanRequest(
            run_id=run_id, site_id=name or self.name, answer=to_wire(signed)
        )
        self.call("AnswerPlan", request)

    def join(self, run_id: str, plan: Plan) -> None:
        self.call(
            "JoinRun",
            wire.JoinRunRequest(
                run_id=run_id,
                site_id=self.name,
                plan_hash=plan.hash,
                layout_hash=plan.model_layout.hash,
            ),
        )

    def take_part(self, run_id: str) -> tuple[Plan, Stream]:
        """Approve the plan, listen and join."""
        plan = self.plan(run_id)
        self.answer(run_id, plan, "approve")
        stream = self.listen()
        wait_until(lambda: stream.came, "the first instruction")
        self.join(run_id, plan)
        return plan, stream

    def told_to_train(self, stream: Stream, number: int, attempt: int = 1) -> RoundManifest:
        """Wait for the manifest of an attempt."""

        def newest() -> RoundManifest | None:
            assert stream.error is None, stream.error
            found = [
                one for one in stream.manifests() if (one.round, one.attempt) == (number, attempt)
            ]
            return found[-1] if found else None

        return wait_until(newest, f"round {number}, attempt {attempt}") or _never()

    def countersign(self, manifest: RoundManifest, **changes: Any) -> SignedStatement:
        signed = self.signed_countersignature(manifest, **changes)
        self.send_countersignature(manifest, signed)
        return signed

    def signed_countersignature(self, manifest: RoundManifest, **changes: Any) -> SignedStatement:
        values = {
            "federation": manifest.federation,
            "run": manifest.run,
            "round": manifest.round,
            "attempt": manifest.attempt,
            "manifest_hash": manifest.hash.hex(),
            "site": self.name,
        }
        return Countersignature(**{**values, **changes}).sign(self.identity)

    def send_countersignature(
        self, manifest: RoundManifest, signed: SignedStatement, name: str | None = None
    ) -> None:
        request = wire.CountersignRequest(
            ref=ref_of(manifest), site_id=name or self.name, countersignature=to_wire(signed)
        )
        self.call("Countersign", request)

    def download(self, run_id: str, model_hash: str) -> bytes:
        request = wire.DownloadModelRequest(run_id=run_id, model_hash=bytes.fromhex(model_hash))
        return b"".join(chunk.data for chunk in self.stream("DownloadModel", request))

    def update(self, plan: Plan, manifest: RoundManifest) -> bytes:
        """What this site has to deliver."""
        shared = np.frombuffer(self.download(manifest.run, manifest.model_hash), "<f4")
        return encoded_update(plan, self.name, manifest.round, shared)

    def header(self, manifest: RoundManifest, payload: bytes, **changes: Any) -> wire.UpdateHeader:
        values: dict[str, Any] = {
            "ref": ref_of(manifest),
            "site_id": self.name,
            "plan_hash": bytes.fromhex(manifest.plan_hash),
            "model_hash": bytes.fromhex(manifest.model_hash),
            "payload_hash": hashlib.sha256(payload).digest(),
            "payload_bytes": len(payload),
        }
        return wire.UpdateHeader(**{**values, **changes})

    def deliver(self, plan: Plan, manifest: RoundManifest) -> bytes:
        """Countersign and deliver, as an honest site does; gives back the payload."""
        self.countersign(manifest)
        payload = self.update(plan, manifest)
        self.upload(parts(self.header(manifest, payload), payload))
        return payload


def ref_of(manifest: RoundManifest) -> wire.RoundRef:
    return wire.RoundRef(run_id=manifest.run, round=manifest.round, attempt=manifest.attempt)


def parts(header: wire.UpdateHeader, payload: bytes) -> list[wire.UploadRequest]:
    """An upload in order: the header, then chunks."""
    chunks = [
        wire.Chunk(offset=at, data=payload[at : at + CHUNK_BYTES])
        for at in range(0, len(payload), CHUNK_BYTES)
    ]
    return [
        wire.UploadRequest(header=header),
        *(wire.UploadRequest(chunk=chunk) for chunk in chunks),
    ]


def _as_ours(error: Exception, address: str) -> FedPalmError:
    if isinstance(error, grpc.aio.AioRpcError):
        return error_of(error, address, "")
    return FedPalmError(repr(error))


def _never() -> Any:
    raise AssertionError("unreachable")
