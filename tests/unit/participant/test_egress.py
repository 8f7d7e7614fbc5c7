"""The gate: every way of getting something private out, and none of them works."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

import participant
from fedpalm.clock import FakeClock
from fedpalm.errors import (
    CodecOverflowError,
    ContributionReuseError,
    EgressRefusedError,
    ForkError,
    HashMismatchError,
    NonFiniteUpdateError,
    NotFoundError,
    PlanNotApprovedError,
    PolicyError,
    StaleRoundError,
    UnavailableError,
)
from fedpalm.layout import Layout, TensorSpec
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.base import SiteUpdate
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.link import Link
from participant.outgoing import OutgoingPayload, PayloadKind, Place, require_outgoing
from participant.private_content import refuse_private_content
from participant.store import NewUpdate
from tests.support.agreement import answer, countersignature
from tests.support.fake_coordinator import exchange_terms
from tests.support.participant import EXPERT, LAYOUT, ToyMethod, initial_vector, make_plan
from tests.support.rounds import RUN, Chain

MODEL = bytes.fromhex(make_plan().initial_model)


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    world.agreed(made, make_plan())
    yield made
    made.store.close()


@pytest.fixture
def chain(world, site):
    """The coordinator's manifests; the first attempt is accepted and signed by a quorum."""
    made = Chain(world, make_plan())
    made.ask(site)
    return made


def _sent(site):
    """The log's entries of payloads."""
    return [entry for entry in site.log.entries() if entry.kind is EntryKind.EGRESS]


def _private():
    return ToyMethod(make_plan(), "north").state()


def _delta():
    rng = np.random.default_rng(3)
    return (0.01 * rng.standard_normal(LAYOUT.size)).astype(np.float32)


def _encode(site, update=None, layout=LAYOUT, private=None, round_number=1, model=MODEL):
    return site.gate.encode_update(
        RUN,
        round_number,
        model,
        layout,
        SiteUpdate(_delta(), 3.0) if update is None else update,
        shared=initial_vector(),
        private=_private() if private is None else private,
    )


def _released(site, attempt=1):
    site.store.commit_round(RUN, 1, _private(), _encode(site))
    return site.gate.release_update(RUN, 1, attempt)


def _nothing_left(site):
    return not _sent(site) and not list(site.home.state.iterdir())


pytestmark = pytest.mark.usefixtures("chain")


# --- what is meant to leave --------------------------------------------------------------------------


def test_an_update_is_encoded_with_the_plans_codec_and_key(site):
    update = _encode(site)
    plan = make_plan()
    expected = codec_for(plan).encode(_delta(), 3.0, {}, rounding_key(plan, "north", 1))
    assert bytes(update.payload) == expected.astype("<u4").tobytes()
    assert update.layout_hash == LAYOUT.hash
    assert update.model_hash == MODEL


def test_a_release_is_in_the_log_on_disk_before_anybody_has_the_payload(site, world):
    payload = _released(site)
    reader, _ = world.site("north")
    (entry,) = _sent(reader)
    reader.store.close()
    assert dict(entry.body) == {
        "payload": "update",
        "payload_hash": payload.payload_hash.hex(),
        "bytes": codec_for(make_plan()).payload_bytes,
        "recipient": "spiffe://unit/coordinator/coordinator",
        "layout_hash": LAYOUT.hash.hex(),
        "run": RUN,
        "round": 1,
        "attempt": 1,
    }


def test_the_same_attempt_is_logged_once_and_another_attempt_again(site, chain):
    first = _released(site)
    assert site.gate.release_update(RUN, 1, 1).seq == first.seq
    chain.ask(site, 1, 2)
    second = site.gate.release_update(RUN, 1, 2)
    assert second.seq != first.seq
    assert second.payload_hash == first.payload_hash
    assert len(_sent(site)) == 2


def test_messages_of_names_hashes_and_signatures_are_logged_too(site, chain):
    gate, place = site.gate, Place(RUN, 1, 1)
    stored = site.desk.plans.book.get(RUN)
    (manifest,) = gate.manifests.chain(RUN)
    request = create_request(site.identity.identity, new_tls_key(), site.identity.signing_key)
    gate.release_hello()
    gate.release_fetch_plan(RUN)
    gate.release_answer_plan(RUN, stored.answer)
    gate.release_join(RUN)
    gate.release_instructions()
    gate.release_fetch_manifests(RUN, 1)
    gate.release_countersign(place, gate.manifests.countersign(RoundManifest.read(manifest)))
    gate.release_fetch_countersignatures(place)
    gate.release_download(RUN, MODEL, 12)
    gate.release_list_receipts(RUN)
    gate.release_fetch_trust()
    gate.release_renew(request.public_bytes(Encoding.PEM))
    assert [entry.body["payload"] for entry in _sent(site)] == [
        *("hello", "fetch_plan", "answer_plan", "join_run", "instructions", "fetch_manifests"),
        *("countersign", "fetch_countersignatures", "download_model", "list_receipts"),
        *("fetch_trust", "renew"),
    ]
    rows = site.store.rows("SELECT payload_bytes, released_ms FROM releases ORDER BY seq")
    assert [row["payload_bytes"] for row in rows] == [e.body["bytes"] for e in _sent(site)]
    assert [row["released_ms"] for row in rows] == [e.time_ms for e in _sent(site)]


# --- what is not -------------------------------------------------------------------------------------

HEAD = TensorSpec("open_set.head.prototypes", (5, 32))
OTHER_LAYOUTS = {
    "the expert": EXPERT,
    "the expert beside the model": Layout((*LAYOUT.tensors, *EXPERT.tensors)),
    "a head under a shared name": Layout((*LAYOUT.tensors, HEAD)),
    "a head in the place of a shared tensor": Layout((HEAD, *LAYOUT.tensors[1:])),
    "a closed-set tensor under a shared name with its own shape": Layout(
        (
            TensorSpec("open_set.expert.weight", (32, 128)),
            TensorSpec("open_set.embedding.weight", (16, 8)),
            LAYOUT.tensors[2],
        )
    ),
    "one tensor more": Layout((*LAYOUT.tensors, TensorSpec("open_set.extra", (3,)))),
    "one tensor less": Layout(LAYOUT.tensors[:-1]),
    "another order": Layout(LAYOUT.tensors[::-1]),
    "nothing": Layout(()),
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
def test_no_layout_but_the_plans_can_be_encoded(site, layout):
    update = SiteUpdate(np.full(layout.size, 0.01, dtype=np.float32), 3.0)
    with pytest.raises(EgressRefusedError):
        _encode(site, update, layout)
    assert _nothing_left(site)


def test_a_layout_that_lies_about_itself_is_refused(site):
    class Posing(Layout):
        """A subclass that says it is the plan's."""

        @property
        def hash(self) -> bytes:
            return LAYOUT.hash

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    with pytest.raises(EgressRefusedError):
        _encode(site, layout=Posing(OTHER_LAYOUTS["a head under a shared name"].tensors))

    class PosingSpec(TensorSpec):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    spec = PosingSpec("open_set.head.prototypes", (16, 8))
    with pytest.raises(EgressRefusedError):
        _encode(site, layout=Layout((spec, *LAYOUT.tensors[1:])))

    patched = Layout((HEAD, *LAYOUT.tensors[1:]))
    for name, value in (
        ("hash", LAYOUT.hash),
        ("size", LAYOUT.size),
        ("only", lambda prefix: True),
        ("to_json", LAYOUT.to_json),
    ):
        object.__setattr__(patched, name, value)
    with pytest.raises(EgressRefusedError):
        _encode(site, layout=patched)
    assert _nothing_left(site)


def test_a_plan_that_was_altered_in_memory_widens_nothing(site):
    plan = site.desk.plans.book.approved(RUN)
    wide = OTHER_LAYOUTS["a head under a shared name"]
    plan.__dict__["model_layout"] = wide
    plan.__dict__["hash"] = make_plan().hash
    with pytest.raises(EgressRefusedError):
        _encode(site, SiteUpdate(np.zeros(wide.size, np.float32), 1.0), wide)


@pytest.mark.parametrize(
    ("name", "target"),
    [("closed_set.embedding.weight", 1), ("closed_set.expert.weight", 0)],
)
@pytest.mark.parametrize("as_model", [True, False], ids=["as the local model", "as the delta"])
def test_private_values_under_a_shared_name_and_shape_are_refused(site, name, target, as_model):
    private = _private()
    delta, shared = _delta(), initial_vector()
    begin = sum(spec.size for spec in LAYOUT.tensors[:target])
    part = slice(begin, begin + LAYOUT.tensors[target].size)
    secret = private[name].reshape(-1)
    delta[part] = secret - shared[part] if as_model else secret
    with pytest.raises(EgressRefusedError, match=name.replace(".", r"\.")):
        _encode(site, SiteUpdate(delta, 3.0))
    assert _nothing_left(site)


@pytest.mark.parametrize("larger", [1.0, 1e3, 1e5])
def test_a_private_tensor_is_found_however_large_the_model_is_that_it_is_taken_from(larger):
    layout = Layout((TensorSpec("open_set.a", (80,)), TensorSpec("open_set.b", (40, 10))))
    rng = np.random.default_rng(2)
    shared = (larger * rng.standard_normal(layout.size)).astype(np.float32)
    secret = rng.standard_normal((8, 10)).astype(np.float32)
    delta = rng.standard_normal(layout.size).astype(np.float32)
    private = {"private.tensor": secret}
    refuse_private_content(layout, delta, shared, private)
    delta[100:180] = secret.reshape(-1) - shared[100:180]
    with pytest.raises(EgressRefusedError, match=r"open_set\.b .* private\.tensor"):
        refuse_private_content(layout, delta, shared, private)


def test_rows_are_secrets_of_heads_alone_and_only_where_the_model_moved():
    layout = Layout((TensorSpec("open_set.a", (2, 80)), TensorSpec("open_set.b", (80,))))
    rows = np.random.default_rng(2).standard_normal((2, 80)).astype(np.float32)
    shared = np.concatenate([rows[0], np.zeros(80), rows[1]]).astype(np.float32)
    delta = np.zeros(layout.size, dtype=np.float32)
    # The coordinator sent b itself, and two trunks drawn alike may agree in a row that did not learn.
    delta[80:160] = 0.5
    refuse_private_content(layout, delta, shared, {"private.weight": rows})
    refuse_private_content(layout, delta, shared, {"head.user.prototypes": rows[1:]})
    with pytest.raises(EgressRefusedError, match=r"open_set\.a .* head\.user"):
        refuse_private_content(layout, delta, shared, {"head.user.prototypes": rows})


def test_equal_constants_are_no_private_values(site):
    delta = np.zeros(LAYOUT.size, dtype=np.float32)
    private = {"closed_set.embedding.bias": np.zeros((32, 128), dtype=np.float32)}
    assert _encode(site, SiteUpdate(delta, 3.0), private=private).payload


def test_only_a_plain_update_of_plain_float32_is_encoded(site):
    @dataclasses.dataclass(frozen=True)
    class Wide(SiteUpdate):
        head: object = None

    class Array(np.ndarray):
        pass

    delta = _delta()
    for update in (
        Wide(delta, 3.0),
        SiteUpdate(delta.view(Array), 3.0),
        SiteUpdate(delta.astype(np.float64), 3.0),
        SiteUpdate(delta.reshape(1, -1), 3.0),
        SiteUpdate(np.concatenate([delta, delta]), 3.0),
        SiteUpdate(delta, 3.0, stats={"accuracy": 1.0}),
        {"delta": delta},
    ):
        with pytest.raises(EgressRefusedError):
            _encode(site, update)
    assert _nothing_left(site)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), 1e9])
def test_a_weight_outside_the_plans_bounds_is_not_encoded(site, weight):
    with pytest.raises(CodecOverflowError):
        _encode(site, SiteUpdate(_delta(), weight))


def test_an_update_that_is_not_finite_is_not_encoded(site):
    delta = _delta()
    delta[7] = np.nan
    with pytest.raises(NonFiniteUpdateError):
        _encode(site, SiteUpdate(delta, 3.0))


def test_a_plain_update_of_a_model_whose_update_was_masked_before_is_not_released(site):
    site.store.commit_round(RUN, 1, _private(), _encode(site))
    with site.store.transaction() as db:
        db.execute(
            "INSERT INTO masked_attempts (run_id, round, attempt, stage, model_hash, encoded_hash, "
            "masked_hash) VALUES (?, 1, 1, 'dead', ?, ?, ?)",
            (RUN, MODEL, bytes(32), bytes(32)),
        )
    with pytest.raises(ContributionReuseError, match="unmasked, none leaves any more"):
        site.gate.release_update(RUN, 1, 1)
    assert not _sent(site)


def test_what_is_not_stored_cannot_be_released(site, chain):
    with pytest.raises(NotFoundError):
        site.gate.release_update(RUN, 1, 1)
    with pytest.raises(PlanNotApprovedError):
        site.gate.release_join("toy-9")
    _released(site)
    chain.ask(site, 2, model_hash="22" * 32)
    second = _encode(site, round_number=2, model=b"\x22" * 32)
    site.store.commit_round(RUN, 2, _private(), second)
    with pytest.raises(StaleRoundError):
        site.gate.release_update(RUN, 1, 1)


# --- only what was agreed ----------------------------------------------------------------------------


def test_nothing_is_encoded_that_no_accepted_manifest_asks_for(site, chain):
    for round_number, model in ((2, MODEL), (1, b"x" * 32)):
        with pytest.raises(EgressRefusedError, match="no accepted manifest"):
            _encode(site, round_number=round_number, model=model)
    assert _nothing_left(site)


def test_an_update_leaves_only_for_an_attempt_whose_manifest_was_accepted_and_signed(site, chain):
    _released(site)
    with pytest.raises(EgressRefusedError, match="no manifest"):
        site.gate.release_update(RUN, 1, 2)
    chain.ask(site, 1, 2, signers=())
    with pytest.raises(EgressRefusedError, match="1 sites have signed"):
        site.gate.release_update(RUN, 1, 2)
    with pytest.raises(StaleRoundError, match="later manifest"):
        site.gate.release_update(RUN, 1, 1)
    assert len(_sent(site)) == 1


def test_an_update_of_another_model_than_the_manifests_does_not_leave(site):
    site.store.commit_round(RUN, 1, _private(), NewUpdate(b"x" * 32, LAYOUT.hash, b"1234"))
    with pytest.raises(EgressRefusedError, match="another model"):
        site.gate.release_update(RUN, 1, 1)
    assert _sent(site) == []


def test_nothing_leaves_after_the_approval_was_taken_back(site):
    payload = _released(site)
    site.desk.plans.refuse(RUN, "changed my mind")
    for release in (
        lambda: _encode(site),
        lambda: site.gate.release_update(RUN, 1, 1),
        lambda: site.gate.release_join(RUN),
        lambda: site.gate.update_header(payload),
    ):
        with pytest.raises(PlanNotApprovedError):
            release()
    connection = _Uploads()
    with pytest.raises(PlanNotApprovedError):
        asyncio.run(Link(connection, site.gate).upload_update(payload))
    assert connection.sent == []


def test_nothing_leaves_after_a_fork_was_seen(site, chain):
    _released(site)
    (held,) = site.gate.manifests.chain(RUN)
    contradicting = chain.say(seq=0, previous=RoundManifest.read(held).previous, sealed_ms=9)
    with pytest.raises(ForkError):
        site.gate.manifests.accept(contradicting)
    for release in (lambda: _encode(site), lambda: site.gate.release_update(RUN, 1, 1)):
        with pytest.raises(ForkError):
            release()


@pytest.mark.parametrize(
    "policy",
    [
        'methods = ["fedavg"]',
        'masking = "required"',
        'privacy = "required"',
        "max_rounds = 2",
        "min_cohort = 4",
        "max_payload_mb = 0.001",
        "not toml",
    ],
)
def test_the_policy_of_the_moment_holds_whatever_was_approved(site, policy):
    _released(site)
    before = len(_sent(site))
    site.home.policy.write_text(policy + "\n")
    for release in (lambda: _encode(site), lambda: site.gate.release_update(RUN, 1, 1)):
        with pytest.raises(PolicyError):
            release()
    assert len(_sent(site)) == before


def test_one_byte_more_than_the_largest_payload_does_not_leave(site):
    size = codec_for(make_plan()).payload_bytes
    site.home.policy.write_text(f"max_payload_mb = {(size - 1) / 1e6}\n")
    with pytest.raises(PolicyError, match="max_payload_mb"):
        _encode(site)
    site.home.policy.write_text(f"max_payload_mb = {size / 1e6}\n")
    assert _released(site).size == size


def _day_limit(site, size):
    site.home.policy.write_text(f"max_mb_per_day = {size / 1e6}\n")


def test_one_byte_more_than_a_days_ceiling_does_not_leave(site):
    size = codec_for(make_plan()).payload_bytes
    hello = site.gate.release_hello().size
    site.store.commit_round(RUN, 1, _private(), _encode(site))
    _day_limit(site, hello + size - 1)
    with pytest.raises(PolicyError, match="last 24 hours"):
        site.gate.release_update(RUN, 1, 1)
    assert len(_sent(site)) == 1
    _day_limit(site, hello + size)
    first = site.gate.release_update(RUN, 1, 1)
    with pytest.raises(PolicyError, match="last 24 hours"):
        site.gate.release_hello()
    assert site.gate.release_update(RUN, 1, 1).seq == first.seq


def test_what_left_a_day_ago_does_not_count_any_more(site):
    clock = site.store.clock = FakeClock(site.store.clock.now())
    hello = site.gate.release_hello().size
    _day_limit(site, codec_for(make_plan()).payload_bytes)
    ceiling = site.desk.policy.current.max_bytes_per_day
    with site.store.transaction() as db:
        db.execute("UPDATE releases SET payload_bytes = ?", (ceiling,))
    clock.advance(24 * 3600 - 1)
    with pytest.raises(PolicyError):
        site.gate.release_hello()
    clock.advance(1)
    assert site.gate.release_hello().size == hello


def test_only_this_sites_own_stored_words_leave(world, site, chain):
    gate, place = site.gate, Place(RUN, 1, 1)
    (manifest,) = gate.manifests.chain(RUN)
    stored = site.desk.plans.book.get(RUN)
    other_answer = answer(site.identity, RUN, make_plan(), "refuse", 2)
    foreign = countersignature(world.absent("west"), manifest)
    own_but_not_stored = countersignature(site.identity, chain.say(1, 2))
    site.desk.plans.refuse(RUN)
    with pytest.raises(EgressRefusedError, match="not the answer"):
        gate.release_answer_plan(RUN, stored.answer)
    site.desk.plans.approve(RUN)
    for refused in (
        lambda: gate.release_answer_plan(RUN, other_answer),
        lambda: gate.release_answer_plan("toy-9", stored.answer),
        lambda: gate.release_countersign(place, foreign),
        lambda: gate.release_countersign(place, own_but_not_stored),
        lambda: gate.release_countersign(Place(RUN, 1, 2), own_but_not_stored),
    ):
        with pytest.raises(EgressRefusedError, match="this is not"):
            refused()
    assert _sent(site) == []


def test_a_renewal_asks_for_this_identity_and_this_signing_key_only(world, site):
    own = site.identity
    for identity, key in (
        (own.identity, new_signing_key()),
        (world.absent("west").identity, own.signing_key),
        (Identity("unit", Role.OPERATOR, "north"), own.signing_key),
    ):
        request = create_request(identity, new_tls_key(), key)
        with pytest.raises(EgressRefusedError, match="somebody else"):
            site.gate.release_renew(request.public_bytes(Encoding.PEM))
    with pytest.raises(EgressRefusedError, match="not a certificate request"):
        site.gate.release_renew(b"the contents of a head")
    assert _sent(site) == []


# --- what is sent is what was logged -----------------------------------------------------------------


class _Uploads:
    """A connection that keeps what would have been sent of an update, and meddles first."""

    class federation:
        UpdateOffset, UploadUpdate = "UpdateOffset", "UploadUpdate"

    def __init__(self, meddle_before=lambda: None, meddle_after_header=lambda: None):
        self.sent, self._before, self._after_header = [], meddle_before, meddle_after_header

    async def unary(self, method, request, *, deadline_s):
        self._before()
        return wire.OffsetReply(offset=0)

    async def upload(self, method, requests, *, deadline_s):
        async for request in requests:
            if not self.sent:
                self._after_header()
            self.sent.append(request)
        raise UnavailableError("the line was cut on purpose")

    @property
    def data(self):
        return b"".join(request.chunk.data for request in self.sent)


@pytest.mark.parametrize("how", ["overwritten", "replaced", "linked", "gone"])
def test_an_update_that_was_swapped_after_its_release_does_not_leave(site, tmp_path, how):
    payload = _released(site)
    other = tmp_path / "head"
    other.write_bytes((_private()["head.open.prototypes"].tobytes() * 100)[: payload.size])

    def swap():
        if how == "overwritten":
            payload.path.write_bytes(other.read_bytes())
            return
        payload.path.unlink()
        if how == "replaced":
            other.rename(payload.path)
        elif how == "linked":
            payload.path.symlink_to(other)

    connection = _Uploads(meddle_before=swap)
    with pytest.raises(HashMismatchError):
        asyncio.run(Link(connection, site.gate).upload_update(payload))
    assert connection.sent == []


def test_an_update_is_read_once_to_be_compared_and_once_to_be_sent(site, monkeypatch):
    payload = _released(site)
    opened = []
    monkeypatch.setattr(hashlib, "file_digest", _counted(hashlib.file_digest, opened))
    with pytest.raises(UnavailableError):
        asyncio.run(Link(_Uploads(), site.gate).upload_update(payload))
    site.gate.release_update(RUN, 1, 1)
    assert len(opened) == 1


def _counted(function, calls):
    def counting(*args):
        calls.append(args)
        return function(*args)

    return counting


def test_an_update_that_is_replaced_while_it_is_sent_leaves_as_it_was_logged(site, tmp_path):
    payload = _released(site)
    other = tmp_path / "head"
    other.write_bytes(bytes(payload.size))
    connection = _Uploads(meddle_after_header=lambda: other.rename(payload.path))
    with pytest.raises(UnavailableError):
        asyncio.run(Link(connection, site.gate).upload_update(payload))
    assert hashlib.sha256(connection.data).digest() == payload.payload_hash


def test_an_expert_outside_an_approved_exchange_is_refused(site, world):
    for _ in ("unknown", "asked"):
        with pytest.raises(EgressRefusedError, match="not approved"):
            site.gate.release_sealed_expert("x-1", [])
        with pytest.raises(EgressRefusedError, match="are not all here"):
            site.gate.release_keys("x-1")
        with pytest.raises(EgressRefusedError, match="answered"):
            site.gate.release_answer("x-1")
        with pytest.raises(EgressRefusedError, match="not opened"):
            site.gate.release_confirm("x-1")
        site.store.end_run(RUN, "completed", None, "")
        run = site.store.run(RUN)
        site.desk.propose(run, exchange_terms(world, run.plan, RUN, "x-1"))
    assert _nothing_left(site)


# --- nobody else makes a payload ---------------------------------------------------------------------


def test_a_payload_cannot_be_made_changed_or_subclassed_outside_the_gate(site):
    values = {
        "kind": PayloadKind.UPDATE,
        "place": Place(RUN, 1, 1),
        "recipient": "spiffe://unit/coordinator/coordinator",
        "payload_hash": bytes(32),
        "size": 3,
        "seq": 0,
        "message": None,
        "path": None,
    }
    with pytest.raises(EgressRefusedError):
        OutgoingPayload(object(), **values)
    with pytest.raises(TypeError):
        type("Mine", (OutgoingPayload,), {})
    payload = _released(site)
    with pytest.raises(AttributeError):
        payload.path = Path("head.safetensors")


def test_the_link_takes_nothing_but_a_payload_of_the_right_kind(site):
    class Duck:
        kind = PayloadKind.UPDATE

    hello = site.gate.release_hello()
    for wrong in (Duck(), b"bytes", None, hello):
        with pytest.raises(EgressRefusedError):
            require_outgoing(wrong, PayloadKind.UPDATE)
    hello.message.software_version = "x" * 60
    with pytest.raises(EgressRefusedError, match="not the one that was logged"):
        require_outgoing(hello, PayloadKind.HELLO)


def _uses(name: str) -> set[str]:
    found = set()
    for path in Path(participant.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (isinstance(node, ast.Name) and node.id == name) or (
                isinstance(node, ast.Attribute) and node.attr == name
            ):
                found.add(path.name)
    return found


def test_only_the_gate_holds_the_passport_and_only_the_link_the_connection():
    assert _uses("PASSPORT") == {"outgoing.py", "release.py"}
    # A site that has no certificate yet sends its one request for one, which has no link to go by.
    assert _uses("unary") == {"claim.py", "link.py"}
    assert _uses("upload") == {"link.py"}
    called = {
        path
        for path, tree in _sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("unary", "upload", "stream")
    }
    assert called == {"claim.py", "link.py"}


# What can open a line to somewhere else, or start a program that can.
LINES_OUT = {
    *("aiohttp", "ctypes", "ftplib", "grpc", "http", "httpx", "imaplib", "multiprocessing"),
    *("poplib", "requests", "smtplib", "socket", "socketserver", "ssl", "subprocess", "telnetlib"),
    *("urllib", "urllib3", "webbrowser", "websockets", "xmlrpc"),
}
LINES_OUT_BY_CALL = {
    *("create_connection", "create_datagram_endpoint", "create_subprocess_exec"),
    *(
        "create_subprocess_shell",
        "create_unix_connection",
        "fork",
        "import_module",
        "open_connection",
    ),
    *("open_unix_connection", "popen", "posix_spawn", "system", "__import__"),
}
TRANSPORT_USED_BY = {
    "__init__.py": {"fedpalm.transport"},
    "agent.py": {"fedpalm.transport.backoff"},
    "cli/run.py": {"fedpalm.transport.channel"},
    "cli/egress.py": {"fedpalm.transport.channel"},
    "cli/join.py": {"fedpalm.transport.channel"},
    "cli/renew.py": {"fedpalm.transport.channel"},
    "claim.py": {"fedpalm.transport.backoff"},
    "link.py": {"fedpalm.transport.chunks"},
    # It listens, to applications of the site; it dials nobody.
    "verification/service.py": {"fedpalm.transport.peer", "fedpalm.transport.server"},
}


def _sources() -> dict[str, ast.Module]:
    root = Path(participant.__file__).parent
    return {
        path.relative_to(root).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in root.rglob("*.py")
    }


def _imports(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
            if node.module in ("fedpalm", "asyncio"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_a_site_has_no_line_out_but_the_connection_that_the_agent_opens():
    for path, tree in _sources().items():
        imports = _imports(tree)
        assert not {name.split(".")[0] for name in imports} & LINES_OUT, path
        used = {name for name in imports if name.startswith("fedpalm.transport")}
        assert used == TRANSPORT_USED_BY.get(path, set()), path
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {name.rpartition(".")[2] for name in imports}
        assert not names & LINES_OUT_BY_CALL, path


@pytest.mark.parametrize(
    "line",
    [
        "import urllib.request",
        "from http import client",
        "def f():\n    import socket as s",
        "from fedpalm.transport.channel import Connection",
        "from fedpalm import transport",
    ],
)
def test_the_look_at_the_imports_sees_every_way_of_writing_one(line):
    imports = _imports(ast.parse(line))
    assert {name.split(".")[0] for name in imports} & LINES_OUT or any(
        name.startswith("fedpalm.transport") for name in imports
    )
