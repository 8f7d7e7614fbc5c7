from fedpalm.wire.v1 import limits_pb2 as _limits_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MaskingStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MASKING_STEP_UNSPECIFIED: _ClassVar[MaskingStep]
    MASKING_STEP_KEYS: _ClassVar[MaskingStep]
    MASKING_STEP_BOXES: _ClassVar[MaskingStep]
    MASKING_STEP_INPUTS: _ClassVar[MaskingStep]
    MASKING_STEP_AGREEMENTS: _ClassVar[MaskingStep]
    MASKING_STEP_REVEALS: _ClassVar[MaskingStep]
MASKING_STEP_UNSPECIFIED: MaskingStep
MASKING_STEP_KEYS: MaskingStep
MASKING_STEP_BOXES: MaskingStep
MASKING_STEP_INPUTS: MaskingStep
MASKING_STEP_AGREEMENTS: MaskingStep
MASKING_STEP_REVEALS: MaskingStep

class MaskingKeys(_message.Message):
    __slots__ = ("site", "agreement", "escrow", "transport", "seed_hash", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ESCROW_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    SEED_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    agreement: bytes
    escrow: bytes
    transport: bytes
    seed_hash: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., agreement: _Optional[bytes] = ..., escrow: _Optional[bytes] = ..., transport: _Optional[bytes] = ..., seed_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskingBox(_message.Message):
    __slots__ = ("sender", "recipient", "shares", "pair", "mask_share_hash", "seed_share_hash", "signature")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    MASK_SHARE_HASH_FIELD_NUMBER: _ClassVar[int]
    SEED_SHARE_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sender: str
    recipient: str
    shares: bytes
    pair: bytes
    mask_share_hash: bytes
    seed_share_hash: bytes
    signature: bytes
    def __init__(self, sender: _Optional[str] = ..., recipient: _Optional[str] = ..., shares: _Optional[bytes] = ..., pair: _Optional[bytes] = ..., mask_share_hash: _Optional[bytes] = ..., seed_share_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskedInput(_message.Message):
    __slots__ = ("site", "masked_with", "payload_hash", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    MASKED_WITH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    masked_with: _containers.RepeatedScalarFieldContainer[str]
    payload_hash: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., masked_with: _Optional[_Iterable[str]] = ..., payload_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskingComplaint(_message.Message):
    __slots__ = ("site", "accused", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    ACCUSED_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    accused: _containers.RepeatedScalarFieldContainer[str]
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., accused: _Optional[_Iterable[str]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskingAgreement(_message.Message):
    __slots__ = ("site", "masked_with", "survivors", "inputs_hash", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    MASKED_WITH_FIELD_NUMBER: _ClassVar[int]
    SURVIVORS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    masked_with: _containers.RepeatedScalarFieldContainer[str]
    survivors: _containers.RepeatedScalarFieldContainer[str]
    inputs_hash: bytes
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., masked_with: _Optional[_Iterable[str]] = ..., survivors: _Optional[_Iterable[str]] = ..., inputs_hash: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskingShare(_message.Message):
    __slots__ = ("owner", "of_mask", "share", "salt")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    OF_MASK_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    owner: str
    of_mask: bool
    share: bytes
    salt: bytes
    def __init__(self, owner: _Optional[str] = ..., of_mask: _Optional[bool] = ..., share: _Optional[bytes] = ..., salt: _Optional[bytes] = ...) -> None: ...

class MaskingReveal(_message.Message):
    __slots__ = ("site", "shares", "signature")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    site: str
    shares: _containers.RepeatedCompositeFieldContainer[MaskingShare]
    signature: bytes
    def __init__(self, site: _Optional[str] = ..., shares: _Optional[_Iterable[_Union[MaskingShare, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...

class MaskingMessage(_message.Message):
    __slots__ = ("keys", "box", "input", "agreement", "reveal", "complaint")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    BOX_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    REVEAL_FIELD_NUMBER: _ClassVar[int]
    COMPLAINT_FIELD_NUMBER: _ClassVar[int]
    keys: MaskingKeys
    box: MaskingBox
    input: MaskedInput
    agreement: MaskingAgreement
    reveal: MaskingReveal
    complaint: MaskingComplaint
    def __init__(self, keys: _Optional[_Union[MaskingKeys, _Mapping]] = ..., box: _Optional[_Union[MaskingBox, _Mapping]] = ..., input: _Optional[_Union[MaskedInput, _Mapping]] = ..., agreement: _Optional[_Union[MaskingAgreement, _Mapping]] = ..., reveal: _Optional[_Union[MaskingReveal, _Mapping]] = ..., complaint: _Optional[_Union[MaskingComplaint, _Mapping]] = ...) -> None: ...
