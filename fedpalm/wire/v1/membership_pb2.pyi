from fedpalm.wire.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("invitation_id", "token", "request")
    INVITATION_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    invitation_id: str
    token: bytes
    request: bytes
    def __init__(self, invitation_id: _Optional[str] = ..., token: _Optional[bytes] = ..., request: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("retry_after_ms", "issued", "rejected")
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    ISSUED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    retry_after_ms: int
    issued: IssuedCertificate
    rejected: str
    def __init__(self, retry_after_ms: _Optional[int] = ..., issued: _Optional[_Union[IssuedCertificate, _Mapping]] = ..., rejected: _Optional[str] = ...) -> None: ...

class IssuedCertificate(_message.Message):
    __slots__ = ("chain", "trust")
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    chain: _containers.RepeatedScalarFieldContainer[bytes]
    trust: TrustBundle
    def __init__(self, chain: _Optional[_Iterable[bytes]] = ..., trust: _Optional[_Union[TrustBundle, _Mapping]] = ...) -> None: ...

class TrustBundle(_message.Message):
    __slots__ = ("anchors", "handovers")
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    HANDOVERS_FIELD_NUMBER: _ClassVar[int]
    anchors: _containers.RepeatedScalarFieldContainer[bytes]
    handovers: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, anchors: _Optional[_Iterable[bytes]] = ..., handovers: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    def __init__(self, request: _Optional[bytes] = ...) -> None: ...

class FetchTrustRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
