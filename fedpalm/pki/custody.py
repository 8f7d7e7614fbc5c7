"""What is done with a CA's folder over the years: new issuing CAs, a new root, an institution's signature.

Every function takes up its own work where a crash has left it, and until its last step the CA goes on as it
was. Trust that is added comes before what needs it: anchors, then the issuing CA under them. The files are
those of ``authority.py``.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import IdentityError, KeyFileError, StateError
from .authority import (
    ANCHORS,
    HANDOVERS,
    ISSUING,
    ISSUING_KEY,
    ROOT_KEY,
    Authority,
    load_locked,
)
from .bundle import chain_from_pem, pem_of
from .files import locked, make_private_folder, read_public, write_public
from .identity import COORDINATOR_NAME, PARSE_ERRORS, Identity, Role
from .keys import (
    TlsKey,
    key_of,
    new_signing_key,
    new_tls_key,
    next_key_path,
    prepare_next_key,
    read_tls_key,
    take_key_of,
    write_private_key,
)
from .profile import (
    ISSUING_DEPTH,
    certificate_hash,
    check_ca,
    federation_of,
    handed_to,
    handover_certificate,
    issuing_certificate,
    issuing_request,
    root_certificate,
)
from .request import create_request, parse_request
from .signing import verify_chain
from .trust import MAX_HANDOVERS

ISSUING_REQUEST = "issuing.csr"


def rotate_issuing(folder: Path, now: float) -> Authority:
    """A new issuing CA under the same root; nobody else has to do anything.

    Leaves of the one before stay good until they end: to shut them out, replace the root.

    Raises:
        StateError: the CA is an institution's, which has to sign the next one.
        KeyFileError: the root key is not here; says where it has to be.
    """
    with locked(folder):
        authority = load_locked(folder)
        if authority.external:
            raise _no_root()
        root_key = _root_key(folder, authority.anchors[-1])
        return _put_issuing_in_force(folder, authority.anchors[-1], root_key, now)


def rotate_root(folder: Path, now: float) -> Authority:
    """A new root that the present one hands over to, and a new issuing CA under it.

    Both roots are anchors until :func:`retire_anchor`. The new root's key replaces ``root.key``.

    Raises:
        StateError: the CA is an institution's, or an earlier rotation has not come to its end.
        KeyFileError: the present root's key is not here; says where it has to be.
    """
    with locked(folder):
        authority = load_locked(folder)
        if authority.external:
            raise _no_root()
        root_path = folder / ROOT_KEY
        root = authority.anchors[-1]
        if not authority.settled:
            return _put_issuing_in_force(folder, root, _root_key(folder, root), now)
        _require_one_anchor(authority)
        earlier_key = _root_key(folder, root)
        key = prepare_next_key(root_path)
        later = root_certificate(authority.federation, key, now)
        handover = handover_certificate(authority.federation, later, root, earlier_key, now)
        _add_anchor(folder, authority, later, handover)
        renewed = _put_issuing_in_force(folder, later, key, now)
        take_key_of(root_path, later.public_key())
        return renewed


def retire_anchor(folder: Path) -> Authority:
    """End the overlap: only the newest anchor is left. Handovers stay, for sites that come late.

    Raises:
        StateError: there is but one anchor, or the issuing CA is not under the newest one yet.
    """
    with locked(folder):
        authority = load_locked(folder)
        newest = authority.anchors[-1]
        if len(authority.anchors) == 1:
            raise StateError(
                "there is one trust anchor, and it cannot be retired",
                safe="nothing was changed",
                next_step="replace it first: fedpalm-coordinator ca rotate --root",
            )
        if not authority.settled:
            raise StateError(
                "the rotation has not come to its end: the issuing CA is under the older anchor",
                safe="nothing was changed",
                next_step="run it again: fedpalm-coordinator ca rotate --root (or ca install)",
            )
        write_public(folder / ANCHORS, pem_of([newest]))
        return load_locked(folder)


def request_issuing(folder: Path, federation: str) -> x509.CertificateSigningRequest:
    """Make the key of an issuing CA, the first or the next, and ask an institution's CA to sign it.

    The request is also written to ``issuing.csr``. Asked again it is for the same key.

    Raises:
        StateError: an earlier rotation has not come to its end, or the CA has a root of its own.
        KeyFileError: the folder is open to others or not writable.
    """
    make_private_folder(folder)
    with locked(folder):
        if (folder / ISSUING).exists():
            authority = load_locked(folder)
            if not authority.external:
                raise StateError("this CA has a root of its own, and asks nobody to sign")
            _require_one_anchor(authority)
            key = prepare_next_key(folder / ISSUING_KEY)
        else:
            if not (folder / ISSUING_KEY).exists():
                write_private_key(folder / ISSUING_KEY, new_tls_key())
            key = read_tls_key(folder / ISSUING_KEY)
        csr = issuing_request(federation, key)
        write_public(folder / ISSUING_REQUEST, csr.public_bytes(Encoding.PEM))
        return csr


def install_issuing(folder: Path, pem: bytes, now: float) -> Authority:
    """Put in force the issuing CA that an institution has signed: it is the trust anchor.

    If another is in force, that one hands over to it, and both are anchors until
    :func:`retire_anchor`.

    Args:
        pem: the certificate; what follows it (the institution's own chain) is left aside.
    Raises:
        KeyFileError: nothing was asked for, or no key of this folder fits.
        IdentityError: not a certificate as it was asked for; the sentence says what differs.
        StateError: an earlier rotation has not come to its end.
    """
    with locked(folder):
        asked = parse_request(read_public(folder / ISSUING_REQUEST))
        federation = federation_of(asked)
        issuing = chain_from_pem(pem, "the issuing certificate")[0]
        key = _key_for(folder, issuing)
        _check_external(issuing, federation, now)
        authority = Authority(federation, (issuing,), (), issuing, key)
        _check_it_issues(authority, now)
        if (folder / ISSUING).exists():
            before = load_locked(folder)
            if before.issuing == issuing:
                return before
            if issuing not in before.anchors:
                _require_one_anchor(before)
                handover = handover_certificate(
                    federation, issuing, before.issuing, before.issuing_key, now
                )
                _add_anchor(folder, before, issuing, handover)
        else:
            write_public(folder / ANCHORS, pem_of([issuing]))
        write_public(folder / ISSUING, pem_of([issuing]))
        return load_locked(folder)


def _put_issuing_in_force(
    folder: Path, root: x509.Certificate, root_key: TlsKey, now: float
) -> Authority:
    key = prepare_next_key(folder / ISSUING_KEY)
    issuing = issuing_certificate(federation_of(root), key.public_key(), root, root_key, now)
    write_public(folder / ISSUING, pem_of([issuing]))
    return load_locked(folder)


def _add_anchor(
    folder: Path, authority: Authority, later: x509.Certificate, handover: x509.Certificate
) -> None:
    # The handover first: an anchor without one would be refused by every site.
    kept = [one for one in authority.handovers if handed_to(one) != certificate_hash(later)]
    write_public(folder / HANDOVERS, pem_of([*kept, handover][-MAX_HANDOVERS:]))
    write_public(folder / ANCHORS, pem_of([*authority.anchors, later]))


def _root_key(folder: Path, root: x509.Certificate) -> TlsKey:
    """The key of the newest root; one that was made by a rotation gets its name here at the latest."""
    path = folder / ROOT_KEY
    if not path.exists() and not next_key_path(path).exists():
        raise _root_key_missing(folder)
    key = take_key_of(path, root.public_key())
    if key is None:
        raise IdentityError(
            f"{folder / ROOT_KEY} is not the key of the root in {ANCHORS}",
            safe="nothing was changed",
            next_step="bring the key of the newest root",
        )
    return key


def _root_key_missing(folder: Path) -> KeyFileError:
    path = folder / ROOT_KEY
    return KeyFileError(
        f"{path}: the root key is not here; it signs every issuing CA and every new root",
        safe="nothing was changed",
        next_step=f"copy it from the medium where it is kept to {path}, chmod 600 {path}, run this "
        "again, then take the file away",
    )


def _no_root() -> StateError:
    return StateError(
        "the CA is an institution's: there is no root here that could sign",
        safe="nothing was changed",
        next_step="fedpalm-coordinator ca rotate makes the request that the institution has to sign",
    )


def _require_one_anchor(authority: Authority) -> None:
    if len(authority.anchors) > 1:
        raise StateError(
            f"there are {len(authority.anchors)} trust anchors: the last rotation is not over",
            safe="nothing was changed",
            next_step="when every site has renewed: fedpalm-coordinator ca retire",
        )


def _key_for(folder: Path, issuing: x509.Certificate) -> TlsKey:
    path = folder / ISSUING_KEY
    key = key_of(path, issuing.public_key())
    if key is None:
        raise KeyFileError(
            f"the certificate is for another key than {path} or {next_key_path(path).name}",
            safe="nothing was changed",
            next_step=f"have {folder / ISSUING_REQUEST} signed as it is",
        )
    return key


def _check_external(issuing: x509.Certificate, federation: str, now: float) -> None:
    """Raises IdentityError: the institution signed something else than what it was asked for."""
    try:
        check_ca(issuing, federation, now)
        depth = issuing.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    except (*PARSE_ERRORS, IdentityError) as error:
        raise _not_as_asked(str(error)) from error
    if depth != ISSUING_DEPTH:
        raise _not_as_asked(f"its path length is {depth}, where {ISSUING_DEPTH} was asked for")


def _check_it_issues(authority: Authority, now: float) -> None:
    """Issue a leaf to nobody and verify it: the institution may have added what does not work here."""
    nobody = Identity(authority.federation, Role.COORDINATOR, COORDINATOR_NAME)
    leaf = authority.issue(
        create_request(nobody, new_tls_key(), new_signing_key()), nobody, now=now
    )
    try:
        verify_chain(
            leaf, authority.chain(leaf)[1:], authority.anchors,
            now=now, role=nobody.role, federation=authority.federation,
        )  # fmt: skip
    except IdentityError as error:
        raise _not_as_asked(f"what it issues does not verify: {error.what}") from error


def _not_as_asked(why: str) -> IdentityError:
    return IdentityError(
        f"this issuing certificate cannot be used: {why}",
        safe="nothing was changed",
        next_step=f"have {ISSUING_REQUEST} signed with the extensions that it asks for",
    )
