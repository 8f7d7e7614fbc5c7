"""The bytes of an entry are RFC 8785, whichever encoder writes them."""

from __future__ import annotations

import json

import pytest

from fedpalm.canonical import canonical_json
from fedpalm.ledger.bodies import FORMS, EntryKind
from fedpalm.ledger.chain import Head, append
from fedpalm.ledger.entries import Entry
from fedpalm.pki.keys import new_signing_key

KEY = new_signing_key()
SAMPLES = (
    "a" * 64,
    "name-1_x",
    "spiffe://palms/participant/site-a",
    2**53 - 1,
    "1e-05",
    "a +1.0, b",
)


@pytest.mark.parametrize("kind", EntryKind)
def test_every_form_of_every_kind_is_written_as_rfc_8785_writes_it(kind: EntryKind):
    for form in FORMS[kind]:
        body = {
            field: next(value for value in SAMPLES if rule(value)) for field, rule in form.items()
        }
        entry = append(Head.genesis(KEY.public_key()), kind, body, time_ms=1, key=KEY)
        data = entry.to_bytes()
        assert data == canonical_json(json.loads(data))
        without = {k: v for k, v in json.loads(data).items() if k != "signature"}
        assert entry.signed_bytes == canonical_json(without)
        assert Entry.from_bytes(data).signed_bytes == entry.signed_bytes
        assert Entry.from_bytes(data) == entry
