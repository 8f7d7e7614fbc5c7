"""The gate: every way of getting something private out, and none of them works."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

import participant
from fedpalm.errors import (
    CodecOverflowError,
    EgressRefusedError,
    HashMismatchError,
    NonFiniteUpdateError,
    NotFoundError,
    StaleRoundError,
)
from fedpalm.layout import Layout, TensorSpec
from fedpalm.ledger.bodies import EntryKind
from fedpalm.methods.base import SiteUpdate
from fedpalm.methods.contribution import codec_for, rounding_key
from fedpalm.wire.v1 import federation_pb2 as wire
from participant.link import Link
from participant.outgoing import OutgoingPayload, PayloadKind, Place, require_outgoing
from tests.support.participant import EXPERT, LAYOUT, ToyMethod, initial_vector, make_plan

RUN = "toy-1"
MODEL = b"m" * 32


@pytest.fixture
def site(world):
    made, _ = world.site("north")
    made.store.add_run(RUN, make_plan())
    yield made
    made.store.close()


def _private():
    return ToyMethod(make_plan(), "north").state()


def _delta():
    rng = np.random.default_rng(3)
    return (0.01 * rng.standard_normal(LAYOUT.size)).astype(np.float32)


def _encode(site, update=None, layout=LAYOUT, private=None, round_number=1):
    return site.gate.encode_update(
        RUN,
        round_number,
        MODEL,
        layout,
        SiteUpdate(_delta(), 3.0) if update is None else update,
        shared=initial_vector(),
        private=_private() if private is None else private,
    )


def _released(site, attempt=1):
    site.store.commit_round(
        RUN, 1, _private(), _encode(site), lambda db, u: site.gate.log_update(db, u, attempt)
    )
    return site.gate.release_update(RUN, 1, attempt)


def _nothing_left(site):
    return not list(site.log.entries()) and not list(site.home.state.iterdir())


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
    (entry,) = reader.log.entries()
    reader.store.close()
    assert entry.kind is EntryKind.EGRESS
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


def test_the_same_attempt_is_logged_once_and_another_attempt_again(site):
    first = _released(site)
    assert site.gate.release_update(RUN, 1, 1).seq == first.seq
    second = site.gate.release_update(RUN, 1, 2)
    assert second.seq != first.seq
    assert second.payload_hash == first.payload_hash
    assert len(list(site.log.entries())) == 2


def test_a_receipt_is_logged_once_and_only_for_what_was_sent(site):
    payload = _released(site)
    wrong = wire.Receipt(payload_hash=b"x" * 32, payload_bytes=payload.size)
    short = wire.Receipt(payload_hash=payload.payload_hash, payload_bytes=payload.size - 1)
    for receipt in (wrong, short):
        with pytest.raises(HashMismatchError, match="receipt"):
            site.gate.record_receipt(payload, receipt)
    right = wire.Receipt(payload_hash=payload.payload_hash, payload_bytes=payload.size)
    site.gate.record_receipt(payload, right)
    site.gate.record_receipt(payload, right)
    assert [e.kind for e in site.log.entries()] == [EntryKind.EGRESS, EntryKind.RECEIPT]
    assert site.log.verify().size == 2


def test_messages_of_names_and_hashes_are_logged_too(site):
    site.gate.release_hello()
    site.gate.release_fetch_plan(RUN)
    site.gate.release_join(RUN)
    site.gate.release_instructions()
    site.gate.release_download(RUN, MODEL, 12)
    kinds = [entry.body["payload"] for entry in site.log.entries()]
    assert kinds == ["hello", "fetch_plan", "join_run", "instructions", "download_model"]


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
    plan = site.store.run(RUN).plan
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


def test_what_is_not_stored_cannot_be_released(site):
    with pytest.raises(NotFoundError):
        site.gate.release_update(RUN, 1, 1)
    with pytest.raises(NotFoundError):
        site.gate.release_join("toy-9")
    _released(site)
    second = _encode(site, round_number=2)
    site.store.commit_round(RUN, 2, _private(), second, lambda db, stored: None)
    with pytest.raises(StaleRoundError):
        site.gate.release_update(RUN, 1, 2)


def test_a_stored_update_that_was_swapped_on_disk_is_not_released(site):
    payload = _released(site)
    head = _private()["head.open.prototypes"].tobytes()
    payload.path.write_bytes((head * 100)[: payload.size])
    with pytest.raises(HashMismatchError, match="not those that were stored"):
        site.gate.release_update(RUN, 1, 1)


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
        data = b"".join(request.chunk.data for request in self.sent)
        return wire.Receipt(payload_hash=hashlib.sha256(data).digest(), payload_bytes=len(data))


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


def test_an_update_that_is_replaced_while_it_is_sent_leaves_as_it_was_logged(site, tmp_path):
    payload = _released(site)
    other = tmp_path / "head"
    other.write_bytes(bytes(payload.size))
    connection = _Uploads(meddle_after_header=lambda: other.rename(payload.path))
    receipt = asyncio.run(Link(connection, site.gate).upload_update(payload))
    assert receipt.payload_hash == payload.payload_hash


def test_an_expert_outside_an_approved_exchange_is_refused(site):
    expert = ToyMethod(make_plan(), "north").expert()
    with pytest.raises(EgressRefusedError, match="not approved"):
        site.gate.release_sealed_experts("x-1", [], EXPERT, expert)
    run = site.store.run(RUN)
    site.desk.propose(run, "x-1", run.plan.hash)
    with pytest.raises(EgressRefusedError, match="not approved"):
        site.gate.release_sealed_experts("x-1", [], EXPERT, expert)
    with pytest.raises(EgressRefusedError, match="answered"):
        site.gate.release_answer("x-1")
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
    assert _uses("unary") | _uses("upload") == {"link.py"}
    called = {
        path
        for path, tree in _sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("unary", "upload", "stream")
    }
    assert called == {"link.py"}


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
    "incoming.py": {"fedpalm.transport.status"},
    "link.py": {"fedpalm.transport.chunks"},
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
