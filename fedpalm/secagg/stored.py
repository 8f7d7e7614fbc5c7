"""A site's masked attempt as bytes, for a secret file that lies outside every backup.

The whole state is one blob on purpose. A backup of the store then holds no share and no secret, and no
restored backup can put an old state beside newer secrets: the file is replaced as a whole at each step,
and erased when the attempt closes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..canonical import canonical_json
from ..errors import FedPalmError, KeyFileError, StaleRoundError
from .boxes import HeldShares
from .messages import (
    Agreement,
    Box,
    Complaint,
    MaskedInput,
    OpenedShare,
    Reveal,
    ShareKind,
    SiteKeys,
)
from .secrets import AttemptSecrets
from .site import AttemptFacts, SiteAttempt, Stage

M = TypeVar("M", SiteKeys, Box, MaskedInput, Complaint, Agreement)
T = TypeVar("T", AttemptSecrets, HeldShares)


def attempt_to_bytes(attempt: SiteAttempt) -> bytes:
    """Canonical JSON with every secret that the attempt still needs: for a 0600 file, nothing else."""
    reveal = attempt.reveal
    return canonical_json(
        {
            "version": 1,
            "context": attempt.facts.context.hex(),
            "site": attempt.facts.site,
            "stage": attempt.stage.value,
            "own_keys": _plain(attempt.own_keys),
            "secrets": attempt.secrets.to_bytes().hex() if attempt.secrets else None,
            "keys": [_plain(one) for one in attempt.keys],
            "own_boxes": [_plain(one) for one in attempt.own_boxes],
            "own_shares": attempt.own_shares.to_bytes().hex() if attempt.own_shares else None,
            "held": {peer: held.to_bytes().hex() for peer, held in attempt.held.items()},
            "masked": _plain(attempt.masked) if attempt.masked else None,
            "complaint": _plain(attempt.complaint) if attempt.complaint else None,
            "agreement": _plain(attempt.agreement) if attempt.agreement else None,
            "reveal": None if reveal is None else {
                "shares": [
                    [one.owner, one.kind.value, one.share.hex(), one.salt.hex()]
                    for one in reveal.shares
                ],
                "signature": reveal.signature.hex(),
            },
        }
    )  # fmt: skip


def attempt_from_bytes(raw: bytes, facts: AttemptFacts) -> SiteAttempt:
    """Inverse of :func:`attempt_to_bytes`.

    Raises:
        KeyFileError: damaged.
        StaleRoundError: the state of another attempt or site.
    """
    try:
        values = json.loads(raw)
        context, site = bytes.fromhex(values["context"]), values["site"]
        if values["version"] != 1:
            raise ValueError(f"version {values['version']}")
        made = _attempt(values, facts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FedPalmError) as error:
        # The values are secrets: only the kind of damage is told.
        raise KeyFileError(
            f"the state of a masked attempt is damaged ({type(error).__name__})",
            safe="nothing is revealed from it",
            next_step="this site drops out of the attempt and joins the next",
        ) from None
    if (context, site) != (facts.context, facts.site):
        raise StaleRoundError("the stored masked attempt is another one", safe="nothing was used")
    return made


def _attempt(values: Mapping[str, Any], facts: AttemptFacts) -> SiteAttempt:
    reveal = values["reveal"]
    return SiteAttempt(
        facts=facts,
        stage=Stage(values["stage"]),
        own_keys=_message(SiteKeys, values["own_keys"]),
        secrets=_optional(values["secrets"], AttemptSecrets.from_bytes),
        keys=tuple(_message(SiteKeys, one) for one in values["keys"]),
        own_boxes=tuple(_message(Box, one) for one in values["own_boxes"]),
        own_shares=_optional(values["own_shares"], HeldShares.from_bytes),
        held={
            peer: HeldShares.from_bytes(bytes.fromhex(held))
            for peer, held in values["held"].items()
        },
        masked=_message(MaskedInput, values["masked"]) if values["masked"] else None,
        complaint=_message(Complaint, values["complaint"]) if values["complaint"] else None,
        agreement=_message(Agreement, values["agreement"]) if values["agreement"] else None,
        reveal=None if reveal is None else Reveal(
            values["site"],
            tuple(
                OpenedShare(owner, ShareKind(kind), bytes.fromhex(share), bytes.fromhex(salt))
                for owner, kind, share, salt in reveal["shares"]
            ),
            bytes.fromhex(reveal["signature"]),
        ),
    )  # fmt: skip


def _plain(said: SiteKeys | Box | MaskedInput | Complaint | Agreement) -> dict[str, Any]:
    values = {f.name: getattr(said, f.name) for f in fields(said)}
    return {
        name: value.hex() if isinstance(value, bytes)
        else list(value) if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }  # fmt: skip


def _message(kind: type[M], values: Mapping[str, Any]) -> M:
    of_type = {f.name: f.type for f in fields(kind)}
    if set(values) != set(of_type):
        raise ValueError("other fields")
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if of_type[name] == "bytes":
            arguments[name] = bytes.fromhex(value)
        else:
            arguments[name] = tuple(value) if isinstance(value, list) else value
    return kind(**arguments)


def _optional(text: str | None, read: Callable[[bytes], T]) -> T | None:
    return None if text is None else read(bytes.fromhex(text))
