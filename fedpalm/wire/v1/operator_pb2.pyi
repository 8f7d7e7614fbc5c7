from fedpalm.wire.v1 import federation_pb2 as _federation_pb2
from fedpalm.wire.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListSitesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SiteInfo(_message.Message):
    __slots__ = ("site_id", "certificate_fingerprint", "admitted_ms", "certificate_expires_ms", "connected", "last_seen_ms", "software_version", "state")
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_MS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    site_id: str
    certificate_fingerprint: str
    admitted_ms: int
    certificate_expires_ms: int
    connected: bool
    last_seen_ms: int
    software_version: str
    state: str
    def __init__(self, site_id: _Optional[str] = ..., certificate_fingerprint: _Optional[str] = ..., admitted_ms: _Optional[int] = ..., certificate_expires_ms: _Optional[int] = ..., connected: _Optional[bool] = ..., last_seen_ms: _Optional[int] = ..., software_version: _Optional[str] = ..., state: _Optional[str] = ...) -> None: ...

class ListSitesReply(_message.Message):
    __slots__ = ("federation_id", "sites")
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    federation_id: str
    sites: _containers.RepeatedCompositeFieldContainer[SiteInfo]
    def __init__(self, federation_id: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[SiteInfo, _Mapping]]] = ...) -> None: ...

class SubmitPlanRequest(_message.Message):
    __slots__ = ("plan", "chunk")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    chunk: _federation_pb2.Chunk
    def __init__(self, plan: _Optional[bytes] = ..., chunk: _Optional[_Union[_federation_pb2.Chunk, _Mapping]] = ...) -> None: ...

class SubmitPlanReply(_message.Message):
    __slots__ = ("run_id", "plan_hash")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    plan_hash: bytes
    def __init__(self, run_id: _Optional[str] = ..., plan_hash: _Optional[bytes] = ...) -> None: ...

class RunRef(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ProposeExchangeRequest(_message.Message):
    __slots__ = ("run_id", "purpose", "valid_ms")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    VALID_MS_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    purpose: str
    valid_ms: int
    def __init__(self, run_id: _Optional[str] = ..., purpose: _Optional[str] = ..., valid_ms: _Optional[int] = ...) -> None: ...

class AbortRunRequest(_message.Message):
    __slots__ = ("run_id", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunStatus]
    def __init__(self, runs: _Optional[_Iterable[_Union[RunStatus, _Mapping]]] = ...) -> None: ...

class RunStatus(_message.Message):
    __slots__ = ("run_id", "plan_name", "plan_hash", "state", "round", "rounds", "attempt", "round_state", "joined", "cohort", "delivered", "deadline_ms", "model_hash", "reason", "exchange", "method", "roster", "approved", "refused", "masking", "masking_step", "warnings", "lost_rounds", "caught", "spent")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_NAME_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ROUND_STATE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ROSTER_FIELD_NUMBER: _ClassVar[int]
    APPROVED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    MASKING_STEP_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    LOST_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_FIELD_NUMBER: _ClassVar[int]
    SPENT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    plan_name: str
    plan_hash: bytes
    state: str
    round: int
    rounds: int
    attempt: int
    round_state: str
    joined: _containers.RepeatedScalarFieldContainer[str]
    cohort: _containers.RepeatedScalarFieldContainer[str]
    delivered: _containers.RepeatedScalarFieldContainer[str]
    deadline_ms: int
    model_hash: bytes
    reason: str
    exchange: ExchangeStatus
    method: str
    roster: _containers.RepeatedScalarFieldContainer[str]
    approved: _containers.RepeatedScalarFieldContainer[str]
    refused: _containers.RepeatedScalarFieldContainer[str]
    masking: str
    masking_step: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    lost_rounds: _containers.RepeatedScalarFieldContainer[int]
    caught: _containers.RepeatedScalarFieldContainer[str]
    spent: bool
    def __init__(self, run_id: _Optional[str] = ..., plan_name: _Optional[str] = ..., plan_hash: _Optional[bytes] = ..., state: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., attempt: _Optional[int] = ..., round_state: _Optional[str] = ..., joined: _Optional[_Iterable[str]] = ..., cohort: _Optional[_Iterable[str]] = ..., delivered: _Optional[_Iterable[str]] = ..., deadline_ms: _Optional[int] = ..., model_hash: _Optional[bytes] = ..., reason: _Optional[str] = ..., exchange: _Optional[_Union[ExchangeStatus, _Mapping]] = ..., method: _Optional[str] = ..., roster: _Optional[_Iterable[str]] = ..., approved: _Optional[_Iterable[str]] = ..., refused: _Optional[_Iterable[str]] = ..., masking: _Optional[str] = ..., masking_step: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., lost_rounds: _Optional[_Iterable[int]] = ..., caught: _Optional[_Iterable[str]] = ..., spent: _Optional[bool] = ...) -> None: ...

class ExchangeStatus(_message.Message):
    __slots__ = ("exchange_id", "state", "consented", "delivered", "reason", "number", "purpose", "expires_ms", "refused", "sealed", "revealed", "unopened")
    EXCHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONSENTED_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    REVEALED_FIELD_NUMBER: _ClassVar[int]
    UNOPENED_FIELD_NUMBER: _ClassVar[int]
    exchange_id: str
    state: str
    consented: _containers.RepeatedScalarFieldContainer[str]
    delivered: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    number: int
    purpose: str
    expires_ms: int
    refused: _containers.RepeatedScalarFieldContainer[str]
    sealed: _containers.RepeatedScalarFieldContainer[str]
    revealed: _containers.RepeatedScalarFieldContainer[str]
    unopened: _containers.RepeatedCompositeFieldContainer[Unopened]
    def __init__(self, exchange_id: _Optional[str] = ..., state: _Optional[str] = ..., consented: _Optional[_Iterable[str]] = ..., delivered: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ..., number: _Optional[int] = ..., purpose: _Optional[str] = ..., expires_ms: _Optional[int] = ..., refused: _Optional[_Iterable[str]] = ..., sealed: _Optional[_Iterable[str]] = ..., revealed: _Optional[_Iterable[str]] = ..., unopened: _Optional[_Iterable[_Union[Unopened, _Mapping]]] = ...) -> None: ...

class Unopened(_message.Message):
    __slots__ = ("site", "senders", "reason")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    site: str
    senders: _containers.RepeatedScalarFieldContainer[str]
    reason: str
    def __init__(self, site: _Optional[str] = ..., senders: _Optional[_Iterable[str]] = ..., reason: _Optional[str] = ...) -> None: ...

class ExportModelRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class ExportHeader(_message.Message):
    __slots__ = ("run_id", "round", "plan", "model_hash", "model_bytes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_BYTES_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    plan: bytes
    model_hash: bytes
    model_bytes: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., plan: _Optional[bytes] = ..., model_hash: _Optional[bytes] = ..., model_bytes: _Optional[int] = ...) -> None: ...

class ExportModelReply(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ExportHeader
    chunk: _federation_pb2.Chunk
    def __init__(self, header: _Optional[_Union[ExportHeader, _Mapping]] = ..., chunk: _Optional[_Union[_federation_pb2.Chunk, _Mapping]] = ...) -> None: ...
