from fedpalm.wire.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VerifyRequest(_message.Message):
    __slots__ = ("subject", "image")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    subject: str
    image: bytes
    def __init__(self, subject: _Optional[str] = ..., image: _Optional[bytes] = ...) -> None: ...

class VerifyReply(_message.Message):
    __slots__ = ("match", "score", "threshold", "mode", "model_hash", "warnings")
    MATCH_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    match: bool
    score: float
    threshold: float
    mode: str
    model_hash: bytes
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, match: _Optional[bool] = ..., score: _Optional[float] = ..., threshold: _Optional[float] = ..., mode: _Optional[str] = ..., model_hash: _Optional[bytes] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class IdentifyRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    def __init__(self, image: _Optional[bytes] = ...) -> None: ...

class IdentifyReply(_message.Message):
    __slots__ = ("subject", "score", "comparisons", "fpir_bound", "model_hash", "warnings")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    COMPARISONS_FIELD_NUMBER: _ClassVar[int]
    FPIR_BOUND_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    score: float
    comparisons: int
    fpir_bound: float
    model_hash: bytes
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, subject: _Optional[str] = ..., score: _Optional[float] = ..., comparisons: _Optional[int] = ..., fpir_bound: _Optional[float] = ..., model_hash: _Optional[bytes] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class EnrolSubjectRequest(_message.Message):
    __slots__ = ("header", "image")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    header: EnrolSubjectHeader
    image: bytes
    def __init__(self, header: _Optional[_Union[EnrolSubjectHeader, _Mapping]] = ..., image: _Optional[bytes] = ...) -> None: ...

class EnrolSubjectHeader(_message.Message):
    __slots__ = ("subject",)
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    subject: str
    def __init__(self, subject: _Optional[str] = ...) -> None: ...

class EnrolSubjectReply(_message.Message):
    __slots__ = ("mode", "images", "model_hash", "warnings")
    MODE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    mode: str
    images: int
    model_hash: bytes
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, mode: _Optional[str] = ..., images: _Optional[int] = ..., model_hash: _Optional[bytes] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeVerifierRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CalibratedMode(_message.Message):
    __slots__ = ("mode", "threshold", "target_fmr", "fmr_upper", "calibrated_ms", "against")
    MODE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FMR_FIELD_NUMBER: _ClassVar[int]
    FMR_UPPER_FIELD_NUMBER: _ClassVar[int]
    CALIBRATED_MS_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    mode: str
    threshold: float
    target_fmr: float
    fmr_upper: float
    calibrated_ms: int
    against: str
    def __init__(self, mode: _Optional[str] = ..., threshold: _Optional[float] = ..., target_fmr: _Optional[float] = ..., fmr_upper: _Optional[float] = ..., calibrated_ms: _Optional[int] = ..., against: _Optional[str] = ...) -> None: ...

class DescribeVerifierReply(_message.Message):
    __slots__ = ("site", "run_id", "model_hash", "modes", "enrolment")
    SITE_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_HASH_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    ENROLMENT_FIELD_NUMBER: _ClassVar[int]
    site: str
    run_id: str
    model_hash: bytes
    modes: _containers.RepeatedCompositeFieldContainer[CalibratedMode]
    enrolment: bool
    def __init__(self, site: _Optional[str] = ..., run_id: _Optional[str] = ..., model_hash: _Optional[bytes] = ..., modes: _Optional[_Iterable[_Union[CalibratedMode, _Mapping]]] = ..., enrolment: _Optional[bool] = ...) -> None: ...
