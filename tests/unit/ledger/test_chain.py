from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedpalm.errors import ChainBrokenError, ProtocolError
from fedpalm.ledger.bodies import FORMS, Body, EntryKind, check_body
from fedpalm.ledger.chain import Head, append, verify_chain
from fedpalm.ledger.entries import MAX_ENTRY_BYTES, Entry
from fedpalm.pki.keys import new_signing_key

KEY, OTHER_KEY = new_signing_key(), new_signing_key()
HUB = "spiffe://palms/coordinator/hub"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def egress(number: int) -> Body:
    return {
        "payload": "update",
        "layout_hash": digest("layout"),
        "payload_hash": digest(f"payload {number}"),
        "bytes": 20_000_000,
        "recipient": HUB,
        "run": "trial-0001",
        "round": number,
        "attempt": 0,
    }


def log(size: int, key=KEY, first: int = 0) -> list[Entry]:
    head, entries = Head.genesis(key.public_key()), []
    for number in range(first, first + size):
        entry = append(
            head, EntryKind.EGRESS, egress(number), time_ms=1_700_000_000_000 + number, key=key
        )
        entries.append(entry)
        head = Head.after(entry)
    return entries


LOG = log(8)
HEAD = Head.after(LOG[-1])
PUBLIC = KEY.public_key()


# --- what a whole log proves -------------------------------------------------------------------------


def test_an_honest_log_verifies_to_its_head():
    assert verify_chain(LOG, PUBLIC) == HEAD == Head(8, LOG[-1].hash)


def test_an_empty_log_verifies_to_the_genesis_of_its_key():
    assert verify_chain([], PUBLIC) == Head.genesis(PUBLIC)
    assert Head.genesis(PUBLIC) != Head.genesis(OTHER_KEY.public_key())


def broken(entries: list[Entry], key=PUBLIC) -> str:
    with pytest.raises(ChainBrokenError) as caught:
        verify_chain(entries, key)
    return caught.value.what


@given(st.integers(0, 6))
def test_a_deleted_entry_is_named(at: int):
    assert f"entry {at}:" in broken(LOG[:at] + LOG[at + 1 :])


@given(st.integers(0, 7))
def test_a_duplicated_entry_is_named(at: int):
    assert f"entry {at + 1}:" in broken(LOG[: at + 1] + LOG[at:])


@given(st.permutations(range(8)).filter(lambda order: order != list(range(8))))
def test_entries_in_another_order_are_refused(order: list[int]):
    first_wrong = next(at for at, seq in enumerate(order) if at != seq)
    assert f"entry {first_wrong}:" in broken([LOG[at] for at in order])


@given(st.integers(1, 7))
def test_a_log_cut_at_its_end_leads_to_the_smaller_head_of_its_last_entry(size: int):
    assert verify_chain(LOG[:size], PUBLIC) == Head.after(LOG[size - 1]) != HEAD


@given(st.integers(0, 7))
def test_a_log_rewritten_and_signed_anew_leads_to_another_head_of_the_same_size(at: int):
    forged = LOG[:at]
    head = verify_chain(forged, PUBLIC)
    for number in range(at, 8):
        body = egress(number) | ({"bytes": 1} if number == at else {})
        entry = append(head, EntryKind.EGRESS, body, time_ms=LOG[number].time_ms, key=KEY)
        forged = [*forged, entry]
        head = Head.after(entry)
    assert verify_chain(forged, PUBLIC) == head
    assert head.size == HEAD.size and head.hash != HEAD.hash


def test_a_log_of_another_key_is_refused_from_its_first_entry():
    assert "entry 0:" in broken(log(2, OTHER_KEY))
    assert "entry 0:" in broken(LOG, OTHER_KEY.public_key())


def test_an_entry_that_another_key_signed_is_refused():
    forged = append(Head.after(LOG[3]), EntryKind.EGRESS, egress(4), time_ms=0, key=OTHER_KEY)
    assert "names another signing key" in broken([*LOG[:4], forged])
    assert "signature" in broken([*LOG[:4], replace(forged, key_id=LOG[0].key_id)])


@given(st.integers(1, 7))
def test_entries_of_two_logs_of_one_key_do_not_join(at: int):
    fork = log(8, first=100)
    assert verify_chain(fork, PUBLIC)
    assert f"entry {at}: it does not follow" in broken([*LOG[:at], *fork[at:]])


@pytest.mark.parametrize(
    "change",
    [
        {"time_ms": 5},
        {"body": egress(99)},
        {"signature": bytes(64)},
        {"signature": b""},
        {"key_id": bytes(32)},
        {"previous_hash": bytes(32)},
        {"seq": 7},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_field_breaks_the_chain_where_it_was_changed(change):
    assert "entry 3:" in broken([*LOG[:3], replace(LOG[3], **change), *LOG[4:]])


STORED = [entry.to_bytes() for entry in LOG]


@settings(max_examples=400)
@given(st.data())
def test_no_flipped_bit_of_a_stored_log_goes_unnoticed(data: st.DataObject):
    seq = data.draw(st.integers(0, 7))
    bit = data.draw(st.integers(0, 8 * len(STORED[seq]) - 1))
    content = bytearray(STORED[seq])
    content[bit // 8] ^= 1 << bit % 8
    stored = [*STORED[:seq], bytes(content), *STORED[seq + 1 :]]
    with pytest.raises((ChainBrokenError, ProtocolError)):
        verify_chain([Entry.from_bytes(row) for row in stored], PUBLIC)


@settings(max_examples=200)
@given(st.data())
def test_no_byte_cut_from_or_put_into_a_stored_log_goes_unnoticed(data: st.DataObject):
    seq = data.draw(st.integers(0, 7))
    row = STORED[seq]
    at = data.draw(st.integers(0, len(row) - 1))
    changed = row[:at] + data.draw(st.binary(max_size=3)) + row[at + 1 :]
    assume(changed != row)
    stored = [*STORED[:seq], changed, *STORED[seq + 1 :]]
    with pytest.raises((ChainBrokenError, ProtocolError)):
        verify_chain([Entry.from_bytes(row) for row in stored], PUBLIC)


# --- what an entry may say ---------------------------------------------------------------------------


def test_an_entry_survives_its_bytes():
    assert [Entry.from_bytes(row) for row in STORED] == LOG


@given(st.binary(max_size=400))
def test_bytes_that_are_no_entry_are_a_protocol_error(content: bytes):
    with pytest.raises(ProtocolError):
        Entry.from_bytes(content)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda row: row.replace(b'":', b'": '),
        lambda row: row.replace(b'"seq":0', b'"seq":0.0'),
        lambda row: row.replace(b'"seq":0', b'"seq":false'),
        lambda row: row.replace(b'"version":1', b'"version":true'),
        lambda row: row.replace(b'"version":1', b'"version":2'),
        lambda row: row.replace(b'"seq":0', b'"seq":0,"seq":0'),
        lambda row: row.replace(b'"seq":0', b'"seq":-1'),
        lambda row: row.replace(b'"kind":"egress"', b'"kind":"gossip"'),
        lambda row: row[:-1] + b',"note":"x"}',
        lambda row: b"[" * 5000,
        lambda row: row + b" " * MAX_ENTRY_BYTES,
    ],
)
def test_another_spelling_of_an_entry_is_refused(spelling):
    with pytest.raises(ProtocolError):
        Entry.from_bytes(spelling(STORED[0]))


def test_a_body_cannot_be_changed_behind_the_signature():
    body = egress(0)
    entry = append(Head.genesis(PUBLIC), EntryKind.EGRESS, body, time_ms=0, key=KEY)
    body["bytes"] = 1
    assert entry.body["bytes"] == 20_000_000
    with pytest.raises(TypeError):
        entry.body["bytes"] = 1


@pytest.mark.parametrize("extra", ["images", "subjects", "subject_id", "eer", "loss", "note", "n"])
def test_a_count_a_subject_or_a_metric_has_no_field_to_go_to(extra: str):
    for kind in EntryKind:
        for form in FORMS[kind]:
            assert extra not in form
    with pytest.raises(ProtocolError, match="no form"):
        check_body(EntryKind.EGRESS, {**egress(0), extra: 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("payload_hash", "ab"),
        ("payload_hash", digest("x").upper()),
        ("payload", "the update of Mrs Palmer"),
        ("recipient", "hub"),
        ("bytes", -1),
        ("bytes", 2**53),
        ("bytes", True),
        ("bytes", 1.5),
        ("bytes", "20000000"),
        ("round", None),
        ("run", ["trial"]),
    ],
)
def test_a_field_that_holds_something_else_is_refused_by_name(name: str, value: object):
    with pytest.raises(ProtocolError, match=name):
        check_body(EntryKind.EGRESS, {**egress(0), name: value})


@pytest.mark.parametrize("missing", ["payload", "payload_hash", "bytes", "recipient", "attempt"])
def test_an_egress_entry_says_what_left_and_to_whom(missing: str):
    body = {name: value for name, value in egress(0).items() if name != missing}
    with pytest.raises(ProtocolError, match="no form"):
        check_body(EntryKind.EGRESS, body)


def test_an_egress_belongs_to_a_round_an_exchange_a_run_or_none_but_not_to_two():
    base = {k: v for k, v in egress(0).items() if k not in ("run", "round", "attempt")}
    exchange = {"run": "trial-0001", "exchange": "trial-0001-x1"}
    for where in ({}, {"run": "trial-0001"}, exchange):
        check_body(EntryKind.EGRESS, {**base, **where})
    with pytest.raises(ProtocolError, match="no form"):
        check_body(EntryKind.EGRESS, {**egress(0), **exchange})
