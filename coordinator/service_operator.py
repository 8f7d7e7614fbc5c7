"""What the operator's CLI may call. Every order is recorded before it is carried out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import numpy as np

from fedpalm.errors import ConfigError, NotFoundError, ProtocolError, StateError
from fedpalm.ids import new_run_id
from fedpalm.layout import check_finite
from fedpalm.methods.contribution import codec_for, masking_terms
from fedpalm.plan import Plan
from fedpalm.rounds.run import AbortRun, Resume, RunInput, Start
from fedpalm.secagg.codec import BYTES_PER_VALUE
from fedpalm.text import one_line
from fedpalm.transport.chunks import CHUNK_BYTES, SpoolWriter, send_file
from fedpalm.transport.peer import Context, current_peer
from fedpalm.wire.v1 import operator_pb2 as pb
from fedpalm.wire.v1.federation_pb2 import Chunk
from fedpalm.wire.v1.operator_pb2_grpc import OperatorServicer

from .proposal import check_words
from .state import Coordinator
from .status import run_status

WATCH_EVERY_S = 5.0
MAX_RUNS_LISTED = 1000


class OperatorService(OperatorServicer):
    """The service ``fedpalm.wire.v1.Operator``."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._c = coordinator

    async def ListSites(self, request: pb.ListSitesRequest, context: Context) -> pb.ListSitesReply:
        connected = self._c.driver.sessions.connected()
        return pb.ListSitesReply(
            federation_id=self._c.settings.federation,
            sites=[
                pb.SiteInfo(
                    site_id=row.site,
                    certificate_fingerprint=row.fingerprint,
                    admitted_ms=row.admitted_ms,
                    certificate_expires_ms=row.expires_ms,
                    connected=row.site in connected,
                    last_seen_ms=row.last_seen_ms,
                    software_version=row.software_version,
                    state=row.state,
                )
                for row in self._c.registry.sites()
            ],
        )

    async def SubmitPlan(
        self, requests: AsyncIterator[pb.SubmitPlanRequest], context: Context
    ) -> pb.SubmitPlanReply:
        plan = self._checked_plan(await _first_plan(requests))
        run_id = new_run_id(plan.draft.name)
        self._c.conductor.check_start(plan)
        self._record(context, "submit", run_id, plan.hash.hex())
        await self._c.takeover.run(
            ("model", plan.initial_model), self._receive_model(plan, requests)
        )
        self._c.conductor.create(run_id, plan)
        return pb.SubmitPlanReply(run_id=run_id, plan_hash=plan.hash)

    async def StartRun(self, request: pb.RunRef, context: Context) -> pb.RunStatus:
        await self._require_model(request.run_id)
        return self._order(context, "start", request.run_id, Start(self._c.now_ms()))

    async def ResumeRun(self, request: pb.RunRef, context: Context) -> pb.RunStatus:
        await self._require_model(request.run_id)
        run_id = self._resolve(request.run_id)
        exchanged = self._c.exchanges.completed(run_id)
        return self._order(context, "resume", run_id, Resume(self._c.now_ms(), exchanged))

    async def AbortRun(self, request: pb.AbortRunRequest, context: Context) -> pb.RunStatus:
        reason = one_line(request.reason) or "aborted by the operator"
        return self._order(context, "abort", request.run_id, AbortRun(reason), reason)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsReply:
        newest_first = self._c.conductor.run_ids()[::-1][:MAX_RUNS_LISTED]
        return pb.ListRunsReply(runs=[self._status(run_id) for run_id in newest_first])

    async def WatchRun(self, request: pb.RunRef, context: Context) -> AsyncIterator[pb.RunStatus]:
        run_id = self._resolve(request.run_id)
        plan = self._c.conductor.plan(run_id)
        changes = self._c.driver.status_changes(run_id, WATCH_EVERY_S)
        async with aclosing(changes):
            async for _ in changes:
                status = self._status(run_id)
                yield status
                exchanged = status.exchange.state in ("completed", "cancelled")
                may_exchange = plan.exchange_round is not None and not exchanged
                if status.state == "aborted" or (status.state == "completed" and not may_exchange):
                    return

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelReply]:
        run_id = self._resolve(request.run_id)
        plan = self._c.conductor.plan(run_id)
        round_number = request.round or max(self._c.runs.models(run_id))
        model_hash = self._c.runs.model(run_id, round_number)
        path = self._c.spool.existing_model(model_hash)
        size = plan.model_layout.size * BYTES_PER_VALUE
        yield pb.ExportModelReply(
            header=pb.ExportHeader(
                run_id=run_id,
                round=round_number,
                plan=plan.to_bytes(),
                model_hash=bytes.fromhex(model_hash),
                model_bytes=size,
            )
        )
        chunks = send_file(path, 0, size)
        async with aclosing(chunks):  # type: ignore[type-var]  # it is a generator
            async for chunk in chunks:
                yield pb.ExportModelReply(chunk=chunk)

    async def ProposeExchange(
        self, request: pb.ProposeExchangeRequest, context: Context
    ) -> pb.RunStatus:
        run_id = self._resolve(request.run_id, for_exchange=True)
        purpose, operator = request.purpose, current_peer(context).identity.name
        check_words(purpose, request.valid_ms)
        self._record(context, "exchange propose", run_id, purpose)
        self._c.exchanges.propose(run_id, operator, purpose, request.valid_ms)
        return self._status(run_id)

    async def CloseAnswers(self, request: pb.RunRef, context: Context) -> pb.RunStatus:
        run_id = self._resolve(request.run_id, for_exchange=True)
        self._record(context, "exchange close-answers", run_id)
        self._c.exchanges.close_answers(run_id, current_peer(context).identity.name)
        return self._status(run_id)

    async def CancelExchange(self, request: pb.RunRef, context: Context) -> pb.RunStatus:
        run_id = self._resolve(request.run_id, for_exchange=True)
        self._record(context, "exchange cancel", run_id)
        self._c.exchanges.cancel(run_id, current_peer(context).identity.name)
        return self._status(run_id)

    # --- inside -----------------------------------------------------------------------------------

    def _order(
        self, context: Context, action: str, asked: str, received: RunInput, detail: str = ""
    ) -> pb.RunStatus:
        run_id = self._resolve(asked)
        self._record(context, action, run_id, detail)
        self._c.conductor.feed(run_id, received)
        return self._status(run_id)

    async def _require_model(self, asked: str) -> None:
        """Raises HashMismatchError, NotFoundError: the run's global model is damaged or gone."""
        model_hash = self._c.conductor.run(self._resolve(asked)).model_hash
        await asyncio.to_thread(self._c.spool.check_model, model_hash)

    def _record(self, context: Context, action: str, run_id: str, detail: str = "") -> None:
        operator = current_peer(context).identity.name
        self._c.store.operator_event(self._c.now_ms(), operator, action, run_id, detail)

    def _status(self, run_id: str) -> pb.RunStatus:
        return run_status(run_id, self._c.conductor, self._c.exchanges)

    def _resolve(self, run_id: str, *, for_exchange: bool = False) -> str:
        """The named run; unnamed, the one that is not over, or else the newest.

        Raises:
            NotFoundError: there is none.
            StateError: several are not over.
        """
        conductor = self._c.conductor
        if run_id:
            conductor.run(run_id)
            return run_id
        if not conductor.run_ids():
            raise NotFoundError(
                "there is no run yet",
                next_step="fedpalm-coordinator plan submit plan.toml --model FILE",
            )
        going_on = [one for one in conductor.run_ids() if not conductor.run(one).over]
        if for_exchange or not going_on:
            return conductor.run_ids()[-1]
        if len(going_on) > 1:
            raise StateError(
                f"several runs are not over: {', '.join(going_on[:5])}", next_step="name one: --run"
            )
        return going_on[0]

    def _checked_plan(self, plan_bytes: bytes) -> Plan:
        plan = Plan.from_bytes(plan_bytes)
        if plan.to_bytes() != plan_bytes:
            raise ProtocolError("the plan is not in canonical form")
        if plan.federation != self._c.settings.federation:
            raise ConfigError(f"the plan is for federation {plan.federation!r}")
        if unknown := sorted(set(plan.roster) - self._c.registry.active_sites()):
            raise NotFoundError(
                f"on the roster, but not admitted: {', '.join(unknown[:5])}",
                next_step="fedpalm-coordinator invite",
            )
        codec_for(plan)
        masking_terms(plan)
        return plan

    async def _receive_model(
        self, plan: Plan, requests: AsyncIterator[pb.SubmitPlanRequest]
    ) -> None:
        """Store the initial model; it must be the one that the plan names."""
        path = self._c.spool.model(plan.initial_model)
        if path.exists():
            return
        size = plan.model_layout.size * BYTES_PER_VALUE
        self._c.spool.require_room(size, "the initial model")
        for part in path.parent.glob(f"{path.name}.*.part"):
            part.unlink()
        async with SpoolWriter(path, size, bytes.fromhex(plan.initial_model)) as writer:
            await writer.receive(_chunks(requests))
        try:
            await asyncio.to_thread(_check_finite, path)
        except BaseException:
            path.unlink()
            raise


def _check_finite(path: Path) -> None:
    """Raises NonFiniteUpdateError for a (P,) float32 file with NaN or infinity; reads it in blocks."""
    with path.open("rb") as file:
        while data := file.read(CHUNK_BYTES):
            check_finite(np.frombuffer(data, dtype="<f4"))


async def _first_plan(requests: AsyncIterator[pb.SubmitPlanRequest]) -> bytes:
    async for first in requests:
        if first.WhichOneof("part") == "plan":
            return bytes(first.plan)
        break
    raise ProtocolError("a submission begins with its plan")


async def _chunks(requests: AsyncIterator[pb.SubmitPlanRequest]) -> AsyncIterator[Chunk]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise ProtocolError("a submission has one plan, then chunks of the initial model")
        yield request.chunk
