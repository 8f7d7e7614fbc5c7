from fedpalm.wire.v1 import limits_pb2 as _limits_pb2
from fedpalm.wire.v1 import masking_pb2 as _masking_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("protocol_versions", "site_id", "software_version")
    PROTOCOL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol_versions: _containers.RepeatedScalarFieldContainer[int]
    site_id: str
    software_version: str
    def __init__(self, protocol_versions: _Optional[_Iterable[int]] = ..., site_id: _Optional[str] = ..., software_version: _Optional[str] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol_version", "federation_id", "software_version", "heartbeat_ms")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    federation_id: str
    software_version: str
    heartbeat_ms: int
    def __init__(self, protocol_version: _Optional[int] = ..., federation_id: _Optional[str] = ..., software_version: _Optional[str] = ..., heartbeat_ms: _Optional[int] = ...) -> None: ...

class FetchPlanRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class SignedStatement(_message.Message):
    __slots__ = ("statement", "signature", "chain")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    signature: bytes
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., chain: _Optional[_Iterable[bytes]] = ...) -> None: ...

class PlanDocument(_message.Message):
    __slots__ = ("plan", "offer")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    offer: SignedStatement
    def __init__(self, plan: _Optional[bytes] = ..., offer: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class AnswerPlanRequest(_message.Message):
    __slots__ = ("run_id", "site_id", "answer")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    site_id: str
    answer: SignedStatement
    def __init__(self, run_id: _Optional[str] = ..., site_id: _Optional[str] = ..., answer: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class AnswerPlanReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinRunRequest(_message.Message):
    __slots__ = ("run_id", "site_id", "plan_hash", "layout_hash")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_HASH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    site_id: str
    plan_hash: bytes
    layout_hash: bytes
    def __init__(self, run_id: _Optional[str] = ..., site_id: _Optional[str] = ..., plan_hash: _Optional[bytes] = ..., layout_hash: _Optional[bytes] = ...) -> None: ...

class JoinRunReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InstructionsRequest(_message.Message):
    __slots__ = ("site_id",)
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    site_id: str
    def __init__(self, site_id: _Optional[str] = ...) -> None: ...

class Instruction(_message.Message):
    __slots__ = ("heartbeat", "run_offer", "train", "round_closed", "run_ended", "exchange_proposed", "seal_experts", "open_experts", "exchange_closed", "masking", "prepare", "reveal_keys")
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    RUN_OFFER_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    ROUND_CLOSED_FIELD_NUMBER: _ClassVar[int]
    RUN_ENDED_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_PROPOSED_FIELD_NUMBER: _ClassVar[int]
    SEAL_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    OPEN_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_CLOSED_FIELD_NUMBER: _ClassVar[int]
    MASKING_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    REVEAL_KEYS_FIELD_NUMBER: _ClassVar[int]
    heartbeat: Heartbeat
    run_offer: RunOffer
    train: TrainRound
    round_closed: RoundClosed
    run_ended: RunEnded
    exchange_proposed: ExchangeProposed
    seal_experts: SealExperts
    open_experts: OpenExperts
    exchange_closed: ExchangeClosed
    masking: MaskingStepOpen
    prepare: PrepareRound
    reveal_keys: RevealKeys
    def __init__(self, heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., run_offer: _Optional[_Union[RunOffer, _Mapping]] = ..., train: _Optional[_Union[TrainRound, _Mapping]] = ..., round_closed: _Optional[_Union[RoundClosed, _Mapping]] = ..., run_ended: _Optional[_Union[RunEnded, _Mapping]] = ..., exchange_proposed: _Optional[_Union[ExchangeProposed, _Mapping]] = ..., seal_experts: _Optional[_Union[SealExperts, _Mapping]] = ..., open_experts: _Optional[_Union[OpenExperts, _Mapping]] = ..., exchange_closed: _Optional[_Union[ExchangeClosed, _Mapping]] = ..., masking: _Optional[_Union[MaskingStepOpen, _Mapping]] = ..., prepare: _Optional[_Union[PrepareRound, _Mapping]] = ..., reveal_keys: _Optional[_Union[RevealKeys, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RunOffer(_message.Message):
    __slots__ = ("run_id", "plan_hash")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    plan_hash: bytes
    def __init__(self, run_id: _Optional[str] = ..., plan_hash: _Optional[bytes] = ...) -> None: ...

class RoundRef(_message.Message):
    __slots__ = ("run_id", "round", "attempt")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    round: int
    attempt: int
    def __init__(self, run_id: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class TrainRound(_message.Message):
    __slots__ = ("ref", "manifest")
    REF_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    manifest: SignedStatement
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., manifest: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class PrepareRound(_message.Message):
    __slots__ = ("ref", "newest")
    REF_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    newest: SignedStatement
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., newest: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class GiveCheckpointRequest(_message.Message):
    __slots__ = ("ref", "site_id", "given")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    given: _containers.RepeatedCompositeFieldContainer[GivenCheckpoint]
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., given: _Optional[_Iterable[_Union[GivenCheckpoint, _Mapping]]] = ...) -> None: ...

class GiveCheckpointReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GivenCheckpoint(_message.Message):
    __slots__ = ("checkpoint", "proof")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    checkpoint: SignedStatement
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, checkpoint: _Optional[_Union[SignedStatement, _Mapping]] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FetchCheckpointsRequest(_message.Message):
    __slots__ = ("ref", "site_id", "from_seq", "newest")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    from_seq: int
    newest: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., from_seq: _Optional[int] = ..., newest: _Optional[_Iterable[bytes]] = ...) -> None: ...

class FetchManifestsRequest(_message.Message):
    __slots__ = ("run_id", "from_seq")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_SEQ_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    from_seq: int
    def __init__(self, run_id: _Optional[str] = ..., from_seq: _Optional[int] = ...) -> None: ...

class CountersignRequest(_message.Message):
    __slots__ = ("ref", "site_id", "countersignature")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    COUNTERSIGNATURE_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    countersignature: SignedStatement
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., countersignature: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class CountersignReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReceiptsRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class MaskingStepOpen(_message.Message):
    __slots__ = ("ref", "step")
    REF_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    step: _masking_pb2.MaskingStep
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., step: _Optional[_Union[_masking_pb2.MaskingStep, str]] = ...) -> None: ...

class MaskingHeader(_message.Message):
    __slots__ = ("ref", "site_id", "step")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    step: _masking_pb2.MaskingStep
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., step: _Optional[_Union[_masking_pb2.MaskingStep, str]] = ...) -> None: ...

class SendMaskingRequest(_message.Message):
    __slots__ = ("header", "message")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    header: MaskingHeader
    message: _masking_pb2.MaskingMessage
    def __init__(self, header: _Optional[_Union[MaskingHeader, _Mapping]] = ..., message: _Optional[_Union[_masking_pb2.MaskingMessage, _Mapping]] = ...) -> None: ...

class SendMaskingReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FetchMaskingRequest(_message.Message):
    __slots__ = ("ref", "site_id", "step")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    step: _masking_pb2.MaskingStep
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., step: _Optional[_Union[_masking_pb2.MaskingStep, str]] = ...) -> None: ...

class RoundClosed(_message.Message):
    __slots__ = ("ref", "committed", "model_hash", "reason")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    committed: bool
    model_hash: bytes
    reason: str
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., committed: _Optional[bool] = ..., model_hash: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class RunEnded(_message.Message):
    __slots__ = ("run_id", "completed", "model_hash", "reason")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    completed: bool
    model_hash: bytes
    reason: str
    def __init__(self, run_id: _Optional[str] = ..., completed: _Optional[bool] = ..., model_hash: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class DownloadModelRequest(_message.Message):
    __slots__ = ("run_id", "model_hash", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    model_hash: bytes
    offset: int
    def __init__(self, run_id: _Optional[str] = ..., model_hash: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("ref", "site_id", "plan_hash", "model_hash", "payload_hash", "payload_bytes", "masked")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_HASH_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    ref: RoundRef
    site_id: str
    plan_hash: bytes
    model_hash: bytes
    payload_hash: bytes
    payload_bytes: int
    masked: _masking_pb2.MaskedInput
    def __init__(self, ref: _Optional[_Union[RoundRef, _Mapping]] = ..., site_id: _Optional[str] = ..., plan_hash: _Optional[bytes] = ..., model_hash: _Optional[bytes] = ..., payload_hash: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., masked: _Optional[_Union[_masking_pb2.MaskedInput, _Mapping]] = ...) -> None: ...

class OffsetReply(_message.Message):
    __slots__ = ("offset", "receipt")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    offset: int
    receipt: Receipt
    def __init__(self, offset: _Optional[int] = ..., receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: SignedStatement
    def __init__(self, receipt: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class ExchangeRef(_message.Message):
    __slots__ = ("run_id", "exchange_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    exchange_id: str
    def __init__(self, run_id: _Optional[str] = ..., exchange_id: _Optional[str] = ...) -> None: ...

class ExchangeProposed(_message.Message):
    __slots__ = ("ref", "terms")
    REF_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    terms: SignedStatement
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ..., terms: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class SealExperts(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ...) -> None: ...

class RevealKeys(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ...) -> None: ...

class OpenExperts(_message.Message):
    __slots__ = ("ref",)
    REF_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ...) -> None: ...

class ExchangeClosed(_message.Message):
    __slots__ = ("ref", "completed", "reason")
    REF_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    completed: bool
    reason: str
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ..., completed: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class ConsentRequest(_message.Message):
    __slots__ = ("ref", "site_id", "consent", "refusal")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    site_id: str
    consent: SignedStatement
    refusal: str
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ..., site_id: _Optional[str] = ..., consent: _Optional[_Union[SignedStatement, _Mapping]] = ..., refusal: _Optional[str] = ...) -> None: ...

class ConsentReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SealedExpertRef(_message.Message):
    __slots__ = ("exchange", "sender")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    exchange: ExchangeRef
    sender: str
    def __init__(self, exchange: _Optional[_Union[ExchangeRef, _Mapping]] = ..., sender: _Optional[str] = ...) -> None: ...

class SealedExpertHeader(_message.Message):
    __slots__ = ("ref", "payload_hash", "payload_bytes")
    REF_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    ref: SealedExpertRef
    payload_hash: bytes
    payload_bytes: int
    def __init__(self, ref: _Optional[_Union[SealedExpertRef, _Mapping]] = ..., payload_hash: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class UploadExpertRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: SealedExpertHeader
    chunk: Chunk
    def __init__(self, header: _Optional[_Union[SealedExpertHeader, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ...) -> None: ...

class WrappedKey(_message.Message):
    __slots__ = ("sender", "recipient", "wrapped")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    sender: str
    recipient: str
    wrapped: bytes
    def __init__(self, sender: _Optional[str] = ..., recipient: _Optional[str] = ..., wrapped: _Optional[bytes] = ...) -> None: ...

class ExpertKeysRequest(_message.Message):
    __slots__ = ("ref", "site_id", "keys")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    site_id: str
    keys: _containers.RepeatedCompositeFieldContainer[WrappedKey]
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ..., site_id: _Optional[str] = ..., keys: _Optional[_Iterable[_Union[WrappedKey, _Mapping]]] = ...) -> None: ...

class ExpertKeysReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConfirmExpertsRequest(_message.Message):
    __slots__ = ("ref", "site_id", "receipt")
    REF_FIELD_NUMBER: _ClassVar[int]
    SITE_ID_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    ref: ExchangeRef
    site_id: str
    receipt: SignedStatement
    def __init__(self, ref: _Optional[_Union[ExchangeRef, _Mapping]] = ..., site_id: _Optional[str] = ..., receipt: _Optional[_Union[SignedStatement, _Mapping]] = ...) -> None: ...

class ConfirmExpertsReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
