"""Every error FedPalm raises, a sentence each.

An error says what happened, what is still safe, and what to do next. It carries a stable ``code``
(crosses the wire, appears in ``--json``), the ``exit_code`` of a CLI that ends on it, and the name of
the gRPC status that stands for it. Families fix the last two; a concrete error adds only its code.
"""

from __future__ import annotations

from typing import ClassVar

_REGISTRY: dict[str, type[FedPalmError]] = {}


class FedPalmError(Exception):
    """Base of all errors. Source of the text: ``what``, then ``safe``, then ``next_step``."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, what: str, *, safe: str = "", next_step: str = "") -> None:
        self.what, self.safe, self.next_step = what, safe, next_step
        super().__init__(what)

    def __init_subclass__(cls) -> None:
        if "code" in cls.__dict__:
            if cls.code in _REGISTRY:
                raise TypeError(
                    f"error code {cls.code!r} is taken by {_REGISTRY[cls.code].__name__}"
                )
            _REGISTRY[cls.code] = cls

    def __str__(self) -> str:
        parts = [self.what]
        if self.safe:
            parts.append(f"Safe: {self.safe}")
        if self.next_step:
            parts.append(f"Next: {self.next_step}")
        return "\n".join(parts)


def error_from_code(code: str, what: str, *, safe: str = "", next_step: str = "") -> FedPalmError:
    """Rebuild an error that crossed the wire; an unknown code becomes a plain :class:`FedPalmError`."""
    return _REGISTRY.get(code, FedPalmError)(what, safe=safe, next_step=next_step)


def error_codes() -> dict[str, type[FedPalmError]]:
    """All concrete errors by code (for the documentation and its test)."""
    return dict(_REGISTRY)


# --- families: one exit code and one gRPC status each ---------------------------------------------


class ConfigError(FedPalmError):
    """A settings file, plan or option is wrong."""

    code, exit_code, grpc_status = "config", 3, "INVALID_ARGUMENT"


class DataError(FedPalmError):
    """A data folder, list or image cannot be used."""

    code, exit_code, grpc_status = "data", 4, "INVALID_ARGUMENT"


class UnavailableError(FedPalmError):
    """The other side cannot be reached, or is busy; trying again may help."""

    code, exit_code, grpc_status = "unavailable", 5, "UNAVAILABLE"


class IdentityError(FedPalmError):
    """A certificate, key or name does not prove who its bearer is."""

    code, exit_code, grpc_status = "identity", 6, "UNAUTHENTICATED"


class RefusedError(FedPalmError):
    """The request is understood and not allowed."""

    code, exit_code, grpc_status = "refused", 7, "PERMISSION_DENIED"


class StateError(FedPalmError):
    """The request does not fit the present state."""

    code, exit_code, grpc_status = "state", 8, "FAILED_PRECONDITION"


class ProtocolError(FedPalmError):
    """A message breaks the wire contract."""

    code, exit_code, grpc_status = "protocol", 9, "INVALID_ARGUMENT"


class IntegrityError(FedPalmError):
    """Stored or received bytes are not what their hash, chain or signature says."""

    code, exit_code, grpc_status = "integrity", 10, "DATA_LOSS"


class RoundAbortedError(FedPalmError):
    """A round or run ended without a new global model."""

    code, exit_code, grpc_status = "round_aborted", 11, "ABORTED"


class ResourceError(FedPalmError):
    """Disk, memory or an admission limit is used up."""

    code, exit_code, grpc_status = "resource", 12, "RESOURCE_EXHAUSTED"


class NotFoundError(FedPalmError):
    """The named thing does not exist."""

    code, exit_code, grpc_status = "not_found", 13, "NOT_FOUND"


class DeadlineError(FedPalmError):
    """A deadline passed before the answer came."""

    code, exit_code, grpc_status = "deadline", 14, "DEADLINE_EXCEEDED"


class VaultError(FedPalmError):
    """The site's vault cannot be opened, or holds something else than was put into it."""

    code, exit_code, grpc_status = "vault", 16, "FAILED_PRECONDITION"


# --- concrete errors ------------------------------------------------------------------------------


class TemplateError(DataError):
    """A biometric template, or the key that protects it, cannot be used."""

    code = "template"


class LayoutMismatchError(ProtocolError):
    """A vector or tensor set does not have the declared layout."""

    code = "layout_mismatch"


class NonFiniteUpdateError(ProtocolError):
    """A tensor holds NaN or infinity."""

    code = "non_finite"


class MessageTooLargeError(ProtocolError):
    """A field, message or stream is larger than its limit."""

    code = "message_too_large"


class VersionMismatchError(ProtocolError):
    """The two sides speak no common version of the wire contract."""

    code = "version_mismatch"


class HashMismatchError(IntegrityError):
    """Bytes do not hash to the declared value."""

    code = "hash_mismatch"


class ForkError(IntegrityError):
    """Two signed statements about one chain or log contradict each other."""

    code = "fork"


class RolledBackError(IntegrityError):
    """A log is behind a checkpoint of it that somebody holds: it was cut, or is a restored copy."""

    code = "rolled_back"


class ProofError(IntegrityError):
    """A Merkle proof does not show what it should."""

    code = "proof"


class ChainBrokenError(IntegrityError):
    """A hash-chained log was altered, reordered or cut."""

    code = "chain_broken"


class EgressRefusedError(RefusedError):
    """The egress gate has no way to encode this payload."""

    code = "egress_refused"


class WrongRoleError(RefusedError):
    """The certificate's role may not make this call."""

    code = "wrong_role"


class SenderMismatchError(RefusedError):
    """A message names another sender than the certificate it came with."""

    code = "sender_mismatch"


class NotOnRosterError(RefusedError):
    """The site is not on the roster of this run."""

    code = "not_on_roster"


class PlanNotApprovedError(RefusedError):
    """The site has not approved this plan, or has taken its approval back."""

    code = "plan_not_approved"


class UnwitnessedError(RefusedError):
    """A manifest lacks the fresh checkpoint of a site of its cohort."""

    code = "unwitnessed"


class PolicyError(RefusedError):
    """The site's own policy does not allow it, whatever a plan or a person says."""

    code = "policy"


class InvitationError(RefusedError):
    """An invitation is unknown, used, expired, cancelled, or for another name."""

    code = "invitation"


class RevokedError(RefusedError):
    """The certificate or the site was revoked by the operator."""

    code = "revoked"


class BudgetError(PolicyError):
    """The site's privacy budget does not allow it, or what was spent is not known."""

    code = "budget"


class AccountingError(PolicyError):
    """What training with differential privacy would cost cannot be computed: so it is not allowed."""

    code = "accounting"


class MaskingError(RoundAbortedError):
    """A masked attempt ended before anything was revealed that should not be."""

    code = "masking"


class MaskingMessageError(MaskingError):
    """A message of a masked attempt is malformed, not its sender's, or of another attempt."""

    code = "masking_message"


class SplitViewError(MaskingError):
    """Sites of a masked attempt were told different things."""

    code = "split_view"


class TooFewSurvivorsError(MaskingError):
    """A masked attempt has fewer sites left than its threshold or its smallest sum."""

    code = "too_few_survivors"


class ContributionReuseError(MaskingError):
    """A site was asked for a second contribution, or for both secrets of a peer."""

    code = "contribution_reuse"


class BoxesRefusedError(MaskingError):
    """Boxes that came to a site of a masked attempt do not open, by the fault of ``accused``, sorted."""

    code = "boxes_refused"

    def __init__(
        self, what: str, *, safe: str = "", next_step: str = "", accused: tuple[str, ...] = ()
    ) -> None:
        super().__init__(what, safe=safe, next_step=next_step)
        self.accused = accused


class BadShareError(MaskingError):
    """A share or a secret is not the one that its owner committed to.

    ``caught`` is the site whose fault that is, empty where nobody's can be shown.
    """

    code = "bad_share"

    def __init__(self, what: str, *, safe: str = "", next_step: str = "", caught: str = "") -> None:
        super().__init__(what, safe=safe, next_step=next_step)
        self.caught = caught


class QualityError(DataError):
    """An image is not good enough to make a template from: a failure to acquire."""

    code = "quality"


class EnrolledError(StateError):
    """Somebody of this name is enrolled already."""

    code = "enrolled"


class NotCalibratedError(StateError):
    """There is no threshold for this mode and model, so nothing can be decided."""

    code = "not_calibrated"


class StaleReferenceError(StateError):
    """A reference was made by another model than the one in use."""

    code = "stale_reference"


class LockedOutError(RefusedError):
    """Too many attempts for this person failed; the next ones are not looked at."""

    code = "locked_out"


class TooManyAttemptsError(ResourceError):
    """More attempts within a minute than the site allows."""

    code = "too_many_attempts"


class ConsentError(RefusedError):
    """An exchange lacks a site's yes, or the yes is for other terms."""

    code = "consent"


class SanctionExpiredError(RefusedError):
    """The time that an exchange was sanctioned for is over."""

    code = "sanction_expired"


class SanctionRolledBackError(RefusedError):
    """An exchange that is older than, or not, the one that this plan has here."""

    code = "sanction_rolled_back"


class KeyFileError(IdentityError):
    """A private key file is missing, damaged, or readable by others."""

    code = "key_file"


class SealedExpertError(IntegrityError):
    """A sealed expert is malformed, altered, or does not open."""

    code = "sealed_expert"


class ReplayedExpertError(SealedExpertError):
    """A sealed expert of another sanction: of another exchange, run or plan, or of other consents."""

    code = "replayed_expert"


class SwappedExpertError(SealedExpertError):
    """A sealed expert under another sender's name, or another expert than its site committed to."""

    code = "swapped_expert"


class WrongRecipientError(SealedExpertError):
    """A sealed expert, or its key, is sealed to somebody else."""

    code = "wrong_recipient"


class DuplicateExpertError(SealedExpertError):
    """Two sites announce the same expert."""

    code = "duplicate_expert"


class VaultLockedError(VaultError):
    """The passphrase or key file is not there, or is not the one that the vault was locked with."""

    code = "vault_locked"


class VaultDamagedError(VaultError):
    """A header, file or record of the vault is not what was stored: altered, swapped or gone."""

    code = "vault_damaged"


class VaultRolledBackError(VaultError):
    """A header, record or database of the vault is an old one that was put back."""

    code = "vault_rolled_back"


class CodecOverflowError(ConfigError):
    """Fixed-point parameters leave no headroom for the sum."""

    code = "codec_overflow"


class IllegalTransitionError(StateError):
    """An input that this state does not know."""

    code = "illegal_transition"


class StaleRoundError(StateError):
    """The message belongs to a round or attempt that is over, or is not the current one."""

    code = "stale_round"


class ChildFailedError(FedPalmError):
    """A process that this one started ended, or never became ready."""

    code, exit_code, grpc_status = "child_failed", 15, "INTERNAL"


class InterruptedError_(FedPalmError):
    """The operator pressed Ctrl-C."""

    code, exit_code, grpc_status = "interrupted", 130, "CANCELLED"
