"""The bundle: one file with everything that an auditor of a site needs, and nothing else of the site.

JSON Lines, every line canonical (RFC 8785), so that one content has one spelling::

    header          federation, site and its certificate, version, how many lines each section has
    certificates    every certificate that a statement of the bundle is signed under, once
    plans           each plan that the site answered: its text, the coordinator's offer, the site's answer
    manifests       what the site was asked to do: the signed chain of each run
    countersignatures
    checkpoints     of the site's own log, and the newest that it saw of each other site's
    receipts        the coordinator's, for what arrived
    consents        of every site, for each exchange in which the site sealed its expert
    entries         the site's log: the exact bytes of each entry
    seal            the site's signature over the SHA-256 of all lines before it

Sections come in this order, so that a reader meets an entry when it knows all else, and keeps no entries.
There is no section, and in none a field, for a count of images or people, a metric, a tensor or a reason.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..canonical import canonical_json
from ..errors import FedPalmError, NotFoundError, ProtocolError
from ..pki.bundle import TlsIdentity
from ..pki.identity import PARSE_ERRORS, Identity, Role
from ..pki.signing import MAX_INTERMEDIATES
from ..pki.statement import MAX_STATEMENT_BYTES, HexHash, Label, SignedStatement, Statement, TimeMs

FORMAT = "fedpalm-audit-bundle"
VERSION = 1
MAX_LINE_BYTES = 4 * 1024 * 1024
LIMITS = {
    "certificates": 10_000,
    "plans": 1_000,
    "manifests": 200_000,
    "countersignatures": 2_000_000,
    "checkpoints": 200_000,
    "receipts": 500_000,
    "consents": 20_000,
    "entries": 5_000_000,
}
"""The sections in their order, and the most lines that each may have."""
STATEMENTS = ("manifests", "countersignatures", "checkpoints", "receipts")
"""Sections of nothing but signed statements."""


class BundleSeal(Statement):
    """``site`` hands out exactly these lines (their SHA-256) as its audit bundle."""

    DOMAIN: ClassVar[str] = "audit-bundle/v1"

    site: Label
    digest: HexHash
    sealed_ms: TimeMs

    @property
    def signer(self) -> Identity:
        return Identity(self.federation, Role.PARTICIPANT, self.site)


@dataclass(frozen=True)
class PlanRecord:
    """A plan of a run (its canonical JSON), the coordinator's offer and the site's newest answer."""

    run: str
    plan: bytes
    offer: SignedStatement
    answer: SignedStatement | None


@dataclass(frozen=True)
class Contents:
    """Everything but the entries."""

    plans: Sequence[PlanRecord] = ()
    manifests: Sequence[SignedStatement] = ()
    countersignatures: Sequence[SignedStatement] = ()
    checkpoints: Sequence[SignedStatement] = ()
    receipts: Sequence[SignedStatement] = ()
    consents: Sequence[bytes] = ()

    def signed(self) -> Iterator[SignedStatement]:
        """Every statement, in the order of the file."""
        for record in self.plans:
            yield record.offer
            if record.answer is not None:
                yield record.answer
        for section in STATEMENTS:
            yield from getattr(self, section)


# --- writing ----------------------------------------------------------------------------------------


def write_bundle(
    out: BinaryIO,
    contents: Contents,
    entries: Iterable[bytes],
    size: int,
    identity: TlsIdentity,
    *,
    time_ms: int,
) -> None:
    """Write and seal a bundle.

    Args:
        entries: ``size`` entries as stored.
        identity: the site; its signing key is that of the log.
    Raises:
        ProtocolError: something is larger, or there is more of it, than a bundle may hold.
    """
    places: dict[tuple[bytes, ...], list[int]] = {}
    known: dict[bytes, int] = {}
    for ders in [*(tuple(one.chain_der) for one in contents.signed()), _ders(identity.chain)]:
        if ders not in places:
            places[ders] = [known.setdefault(der, len(known)) for der in ders]

    def record(signed: SignedStatement) -> dict[str, Any]:
        return {
            "statement": signed.statement.decode(),
            "signature": signed.signature.hex(),
            "chain": places[tuple(signed.chain_der)],
        }

    sections: dict[str, Sequence[bytes]] = {
        "certificates": [_plain({"der": base64.b64encode(der).decode()}) for der in known],
        "plans": [
            canonical_json(
                {
                    "run": one.run,
                    "plan": json.loads(one.plan),
                    "offer": record(one.offer),
                    "answer": record(one.answer) if one.answer is not None else None,
                }
            )
            for one in contents.plans
        ],
        "consents": contents.consents,
        **{name: [_plain(record(one)) for one in getattr(contents, name)] for name in STATEMENTS},
    }
    counts = {name: len(sections[name]) if name != "entries" else size for name in LIMITS}
    header = {
        "bundle": FORMAT,
        "version": VERSION,
        "federation": identity.identity.federation,
        "site": identity.identity.name,
        "chain": places[_ders(identity.chain)],
        "sections": counts,
    }
    _check_counts(counts)
    digest = hashlib.sha256()

    def put(line: bytes) -> None:
        if len(line) >= MAX_LINE_BYTES:
            raise ProtocolError(f"audit bundle: a line of {len(line)} bytes")
        digest.update(line + b"\n")
        out.write(line + b"\n")

    put(canonical_json(header))
    for name in LIMITS:
        for line in entries if name == "entries" else sections[name]:
            put(line)
    seal = BundleSeal(
        federation=identity.identity.federation,
        site=identity.identity.name,
        digest=digest.hexdigest(),
        sealed_ms=time_ms,
    )
    out.write(_plain(record(seal.sign(identity))) + b"\n")


# --- reading ----------------------------------------------------------------------------------------


class BundleReader:
    """A bundle as it is read: everything but the entries at once, the entries one by one, the seal last.

    Nothing is verified but form.

    Raises:
        ProtocolError: not a bundle of this version, or not in canonical form.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest, self._line, self._used = hashlib.sha256(), 0, set[int]()
        self.federation, self.site, self._own, self._counts = self._header()
        self.certificates: list[x509.Certificate] = []
        self.certificates += [
            self._in(_certificate, "certificates") for _ in self._of("certificates")
        ]
        self.contents = Contents(
            plans=[self._in(self._plan, "plans") for _ in self._of("plans")],
            **{
                name: [self._in(self._statement, name) for _ in self._of(name)]
                for name in STATEMENTS
            },
            consents=[self._in(bytes, "consents") for _ in self._of("consents")],
        )

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """The certificate chain of the site whose log this is, as it claims."""
        return self._chain(self._own)

    def entries(self) -> Iterator[bytes]:
        """The exact bytes of each entry, in order; to be taken to the end before :meth:`seal`."""
        for _ in self._of("entries"):
            yield self._take("entries")

    def seal(self) -> tuple[SignedStatement, str]:
        """The signed seal, and the digest (hex) that it must name. Nothing may follow it."""
        digest = self._digest.hexdigest()
        sealed = self._in(self._statement, "seal")
        if self._file.read(1):
            raise ProtocolError("audit bundle: something follows the seal")
        if unused := set(range(len(self.certificates))) - self._used:
            raise ProtocolError(f"audit bundle: certificate {min(unused)} belongs to no statement")
        return sealed, digest

    # --- inside -----------------------------------------------------------------------------------

    def _header(self) -> tuple[str, str, Any, Mapping[str, int]]:
        values = _object(
            self._take("header"), {"bundle", "version", "federation", "site", "chain", "sections"}
        )
        if (values["bundle"], json.dumps(values["version"])) != (FORMAT, str(VERSION)):
            raise ProtocolError(
                f"not a {FORMAT} of version {VERSION}",
                next_step="use the program version that wrote it",
            )
        counts = values["sections"]
        if not isinstance(counts, dict) or set(counts) != set(LIMITS):
            raise ProtocolError("audit bundle: the header does not count every section")
        _check_counts(counts)
        return str(values["federation"]), str(values["site"]), values["chain"], counts

    def _of(self, section: str) -> range:
        return range(self._counts[section])

    def _in(self, parse: Callable[[bytes], Any], section: str) -> Any:
        try:
            return parse(self._take(section))
        except FedPalmError as error:
            raise ProtocolError(
                f"audit bundle, line {self._line} ({section}): {error.what}"
            ) from None

    def _take(self, section: str) -> bytes:
        line = self._file.readline(MAX_LINE_BYTES + 1)
        self._line += 1
        if len(line) > MAX_LINE_BYTES or not line.endswith(b"\n"):
            raise ProtocolError(
                f"audit bundle, line {self._line}: "
                + ("too long" if len(line) > MAX_LINE_BYTES else f"the file ends in {section}")
            )
        self._digest.update(line)
        return line[:-1]

    def _plan(self, line: bytes) -> PlanRecord:
        values = _object(line, {"run", "plan", "offer", "answer"}, canonical_json)
        return PlanRecord(
            str(values["run"]),
            canonical_json(values["plan"]),
            self._signed(values["offer"]),
            self._signed(values["answer"]) if values["answer"] is not None else None,
        )

    def _statement(self, line: bytes) -> SignedStatement:
        return self._signed(_object(line, _SIGNED_FIELDS))

    def _signed(self, values: Any) -> SignedStatement:
        if not isinstance(values, dict) or set(values) != _SIGNED_FIELDS:
            raise ProtocolError("not a signed statement")
        chain = self._chain(values["chain"])
        try:
            statement, signature = values["statement"].encode(), bytes.fromhex(values["signature"])
        except (AttributeError, TypeError, ValueError) as error:
            raise ProtocolError(f"a malformed statement: {error}") from None
        if len(statement) > MAX_STATEMENT_BYTES or signature.hex() != values["signature"]:
            raise ProtocolError("a malformed statement")
        return SignedStatement(statement, signature, chain)

    def _chain(self, places: Any) -> tuple[x509.Certificate, ...]:
        if (
            not isinstance(places, list)
            or not 1 <= len(places) <= MAX_INTERMEDIATES + 1
            or not all(type(at) is int and 0 <= at < len(self.certificates) for at in places)
        ):
            raise ProtocolError("a statement names certificates that are not there")
        self._used.update(places)
        return tuple(self.certificates[at] for at in places)


_SIGNED_FIELDS = {"statement", "signature", "chain"}


def open_bundle(path: Path) -> BinaryIO:
    """The file of a bundle, to be closed by the caller. Raises NotFoundError: it cannot be opened."""
    try:
        return path.open("rb")
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}") from error


def _object(
    line: bytes, fields: set[str], canonical: Callable[[Any], bytes] | None = None
) -> dict[str, Any]:
    """The JSON object of a line that has these fields, in canonical form."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(values, dict) or set(values) != fields:
        raise ProtocolError(f"not an object with the fields {', '.join(sorted(fields))}")
    try:
        same = (canonical or _plain)(values) == line
    except RecursionError as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not same:
        raise ProtocolError("not in canonical form")
    return values


def _certificate(line: bytes) -> x509.Certificate:
    text = _object(line, {"der"})["der"]
    try:
        der = base64.b64decode(text, validate=True)
        if base64.b64encode(der).decode() != text:
            raise ProtocolError("a certificate in another spelling")
        certificate = x509.load_der_x509_certificate(der)
    except (*PARSE_ERRORS, TypeError) as error:
        raise ProtocolError(f"not a certificate: {error}") from None
    return certificate


def _ders(chain: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    return tuple(one.public_bytes(Encoding.DER) for one in chain)


def _plain(values: Mapping[str, Any]) -> bytes:
    """RFC 8785 of texts and integers, which the standard library writes the same, and faster."""
    try:
        return json.dumps(
            values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()
    except (ValueError, UnicodeError) as error:
        raise ProtocolError(f"no canonical JSON: {error}") from None


def _check_counts(counts: Mapping[str, int]) -> None:
    for name, most in LIMITS.items():
        count = counts[name]
        if type(count) is not int or not 0 <= count <= most:
            raise ProtocolError(f"audit bundle: {str(count)[:20]} {name}, at most {most} are read")
