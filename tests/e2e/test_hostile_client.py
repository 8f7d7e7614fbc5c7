"""What an enrolled site, a newcomer or a stranger can try against a coordinator that conducts a run.

Two honest sites have delivered in the present attempt and wait; the third, whose certificate is as good
as theirs, tries everything. Each attempt is refused with its status and a line in the log, and changes
nothing in the store; afterwards the run ends with the model that honest sites make.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from fedpalm.errors import FedPalmError, error_codes
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.invitation import Invitation, read_invitation
from fedpalm.pki.keys import new_signing_key, new_tls_key
from fedpalm.pki.request import create_request
from fedpalm.pki.statement import SignedStatement
from fedpalm.plan import Plan
from fedpalm.rounds.manifest import RoundManifest
from fedpalm.transport.channel import EnrolmentConnection
from fedpalm.wire.statements import from_wire, to_wire
from fedpalm.wire.v1 import federation_pb2 as wire
from fedpalm.wire.v1.membership_pb2 import EnrolRequest, RenewRequest

from .background import wait_until
from .harness import RealFederation, run_json
from .members import enrol_together, store_of, stored_run, submit_rehearsal, wait_for_run
from .puppet import Puppet, parts, ref_of
from .rehearsals import expected_model
from .secrets import found_in, keys_below, spellings

HALF_OPEN_S = float(os.environ.get("FEDPALM_HALF_OPEN_S", "8"))
PARAMETERS = 100_001
CEDAR = "spiffe://trial/participant/cedar"


@dataclass
class Stage:
    """The coordinator and everybody around it; round 2 is in its second attempt and lacks cedar alone."""

    federation: RealFederation
    cedar: Puppet
    run_id: str
    other_run: str
    plan: Plan
    past: RoundManifest
    aborted: RoundManifest
    present: RoundManifest
    past_payload: bytes
    payload: bytes
    answers: dict[int, SignedStatement]
    invitations: dict[str, Invitation]

    @property
    def log(self) -> Path:
        return self.federation.root / "coordinator.log"

    def rows(self) -> list[str]:
        """Every row of the store, but for when a site was last seen."""
        store = store_of(self.federation)
        with (
            closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as db,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            db.backup(copy)  # of one moment, whoever writes meanwhile
            copy.execute("UPDATE sites SET last_seen_ms = 0")
            return list(copy.iterdump())

    def secrets(self) -> set[bytes]:
        """Private keys of everybody, and the tokens of all invitations."""
        found = set().union(*keys_below(self.federation.root).values())
        return found.union(*(spellings(one.token) for one in self.invitations.values()))

    def variant(self, number: int) -> bytes:
        """Another good payload: of other bytes, within the bounds."""
        values = np.frombuffer(self.payload, "<u4").copy()
        values[number] ^= 1
        return values.tobytes()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("hostile")
    federation = RealFederation(root, ("amber", "birch", "cedar"))
    with ExitStack() as stack:
        stack.callback(federation.stop)
        federation.found()
        federation.serve()
        enrol_together(federation, *federation.sites)
        run_id = submit_rehearsal(federation, "main", rounds=2, quorum=3, parameters=PARAMETERS)
        other_run = submit_rehearsal(
            federation, "other", "amber", "birch", rounds=9000, quorum=2, parameters=PARAMETERS
        )
        for site in ("amber", "birch"):
            federation.run_site(site)
        cedar = stack.enter_context(Puppet(federation.site_home("cedar"), federation.address))
        federation.operator("start", "--run", run_id)
        plan, stream = cedar.take_part(run_id)
        past = cedar.told_to_train(stream, 1)
        past_payload = cedar.deliver(plan, past)
        aborted = cedar.told_to_train(stream, 2)
        cedar.countersign(aborted)
        wait_for_run(federation, run_id, delivered=["amber", "birch"])
        first = cedar.signed_answer(run_id, plan.hash.hex(), "approve", 1)
        second = cedar.answer(run_id, plan, "refuse")
        with pytest.raises(FedPalmError) as caught:
            cedar.join(run_id, plan)
        assert caught.value.code == "plan_not_approved"
        third = cedar.answer(run_id, plan, "approve")
        cedar.join(run_id, plan)
        present = cedar.told_to_train(stream, 2, attempt=2)
        cedar.countersign(present)
        payload = cedar.update(plan, present)
        for name in ("dora", "eve"):
            federation.invite(name)
        wait_for_run(federation, run_id, delivered=["amber", "birch"])
        yield Stage(
            federation, cedar, run_id, other_run, plan, past, aborted, present, past_payload, payload,
            {1: first, 2: second, 3: third},
            {name: read_invitation(root / f"{name}.invitation") for name in ("cedar", "dora", "eve")},
        )  # fmt: skip


@contextmanager
def refused(
    stage: Stage, code: str, who: str = CEDAR, *, status: str = "", logged: bool = True
) -> Iterator[None]:
    """What happens inside is refused with ``code``, is in the log, and changes nothing.

    Args:
        status: of gRPC, if it is not the one that stands for the code.
    """
    before, log_at = stage.rows(), stage.log.stat().st_size
    with pytest.raises(FedPalmError) as caught:
        yield
    error = caught.value
    assert error.code == code, f"{error.code}: {error}"
    if isinstance(error.__cause__, grpc.aio.AioRpcError):
        # INTERNAL is what gRPC's client makes of its own writing to a call that was refused before.
        wanted = status or error_codes()[code].grpc_status
        assert error.__cause__.code().name in (wanted, "INTERNAL")
    assert "Traceback" not in str(error) and ".py" not in str(error)
    written = stage.log.read_bytes()[log_at:]
    if logged:
        lines = [line for line in written.decode().splitlines() if "refused" in line]
        assert any(who in line and code in line for line in lines), written.decode()
    assert not found_in(stage.secrets(), written)
    assert stage.rows() == before


@pytest.fixture(autouse=True)
def the_honest_are_served(stage: Stage) -> Iterator[None]:
    """Whatever happened: the next honest call is answered."""
    yield
    stage.cedar.hello()


# --- one site in the name of another --------------------------------------------------------------

METHODS = wire.DESCRIPTOR.services_by_name["Federation"].methods_by_name
AS_BIRCH: dict[str, Callable[[Stage], Any]] = {
    "Hello": lambda s: wire.HelloRequest(protocol_versions=[1], site_id="birch"),
    "AnswerPlan": lambda s: wire.AnswerPlanRequest(
        run_id=s.run_id, site_id="birch", answer=to_wire(s.answers[3])
    ),
    "JoinRun": lambda s: wire.JoinRunRequest(
        run_id=s.run_id,
        site_id="birch",
        plan_hash=s.plan.hash,
        layout_hash=s.plan.model_layout.hash,
    ),
    "Instructions": lambda s: wire.InstructionsRequest(site_id="birch"),
    "UpdateOffset": lambda s: s.cedar.header(s.present, s.payload, site_id="birch"),
    "UploadUpdate": lambda s: wire.UploadRequest(
        header=s.cedar.header(s.present, s.payload, site_id="birch")
    ),
    "Countersign": lambda s: wire.CountersignRequest(
        ref=ref_of(s.present),
        site_id="birch",
        countersignature=to_wire(s.cedar.signed_countersignature(s.present)),
    ),
    "GiveCheckpoint": lambda s: wire.GiveCheckpointRequest(ref=ref_of(s.present), site_id="birch"),
    "FetchCheckpoints": lambda s: wire.FetchCheckpointsRequest(
        ref=ref_of(s.present), site_id="birch"
    ),
    "SendMasking": lambda s: wire.SendMaskingRequest(
        header=wire.MaskingHeader(ref=ref_of(s.present), site_id="birch", step=1)
    ),
    "FetchMasking": lambda s: wire.FetchMaskingRequest(
        ref=ref_of(s.present), site_id="birch", step=1
    ),
    "SendConsent": lambda s: wire.ConsentRequest(ref=_exchange(s), site_id="birch", refusal="no"),
    "UploadSealedExpert": lambda s: wire.UploadExpertRequest(
        header=wire.SealedExpertHeader(
            ref=wire.SealedExpertRef(exchange=_exchange(s), sender="birch"),
            payload_hash=bytes(32),
            payload_bytes=64,
        )
    ),
    "SendExpertKeys": lambda s: wire.ExpertKeysRequest(ref=_exchange(s), site_id="birch"),
    "ConfirmExperts": lambda s: wire.ConfirmExpertsRequest(ref=_exchange(s), site_id="birch"),
}
ASKS_FOR = {"DownloadSealedExpert"}
"""Calls whose message names another site, since they ask for what is of that site."""


def _exchange(stage: Stage) -> wire.ExchangeRef:
    return wire.ExchangeRef(run_id=stage.run_id, exchange_id="e")


def _names_a_site(kind: Any, depth: int = 0) -> bool:
    return any(
        spec.name in ("site_id", "sender", "recipient")
        or (
            spec.message_type is not None
            and depth < 4
            and spec.message_type.name != "SignedStatement"
            and _names_a_site(spec.message_type, depth + 1)
        )
        for spec in kind.fields
    )


def test_the_table_has_every_call_whose_message_names_a_site() -> None:
    named = {name for name, method in METHODS.items() if _names_a_site(method.input_type)}
    assert named == {*AS_BIRCH, *ASKS_FOR}


@pytest.mark.parametrize("method", AS_BIRCH)
def test_a_certificate_speaks_for_nobody_else(stage: Stage, method: str) -> None:
    message = AS_BIRCH[method](stage)
    with refused(stage, "sender_mismatch"):
        if METHODS[method].client_streaming:
            stage.cedar.upload([message], method)
        elif METHODS[method].server_streaming:
            stage.cedar.stream(method, message)
        else:
            stage.cedar.call(method, message)


def test_another_sites_signature_is_not_ones_own(stage: Stage) -> None:
    signed = stage.cedar.stream("FetchCountersignatures", ref_of(stage.present))
    (ambers,) = [one for one in map(from_wire, signed) if b'"site":"amber"' in one.statement]
    with refused(stage, "sender_mismatch"):
        stage.cedar.send_countersignature(stage.present, ambers)


def test_a_statement_in_anothers_name_is_not_believed(stage: Stage) -> None:
    forged = replace(
        stage.answers[3],
        statement=stage.answers[3].statement.replace(b'"cedar"', b'"amber"'),
    )
    with refused(stage, "identity"):
        stage.cedar.send_answer(stage.run_id, forged)


def test_a_renewal_is_for_ones_own_name_and_signing_key(stage: Stage) -> None:
    own = stage.cedar.identity
    for name, signing_key, code in (
        ("birch", own.signing_key, "sender_mismatch"),
        ("cedar", new_signing_key(), "refused"),
    ):
        request = create_request(
            Identity("trial", Role.PARTICIPANT, name), new_tls_key(), signing_key
        )
        message = RenewRequest(request=request.public_bytes(Encoding.PEM))
        with refused(stage, code):
            stage.cedar.call("Renew", message, "membership")


# --- what was said before, or differently ---------------------------------------------------------


def test_an_earlier_answer_sent_again_changes_nothing(stage: Stage) -> None:
    for number in (1, 2):
        with refused(stage, "state"):
            stage.cedar.send_answer(stage.run_id, stage.answers[number])


def test_the_answer_in_force_sent_again_is_no_news(stage: Stage) -> None:
    before = stage.rows()
    stage.cedar.send_answer(stage.run_id, stage.answers[3])
    assert stage.rows() == before


def test_an_approval_of_another_plan_or_run_is_refused(stage: Stage) -> None:
    cedar = stage.cedar
    for signed in (
        cedar.signed_answer(stage.run_id, "00" * 32, "approve", 9),
        cedar.signed_answer(stage.other_run, stage.plan.hash.hex(), "approve", 9),
    ):
        with refused(stage, "hash_mismatch"):
            cedar.send_answer(stage.run_id, signed)


def test_an_answer_that_was_altered_after_it_was_signed_is_refused(stage: Stage) -> None:
    said = stage.answers[2]
    altered = said.statement.replace(b'"refuse"', b'"approve"').replace(
        b'"number":2', b'"number":9'
    )
    with refused(stage, "identity"):
        stage.cedar.send_answer(stage.run_id, replace(said, statement=altered))


def test_whoever_joins_must_mean_the_same_plan_and_layout(stage: Stage) -> None:
    good = AS_BIRCH["JoinRun"](stage)
    good.site_id = "cedar"
    for field, code in (("plan_hash", "hash_mismatch"), ("layout_hash", "layout_mismatch")):
        altered = wire.JoinRunRequest.FromString(good.SerializeToString())
        setattr(altered, field, bytes(32))
        with refused(stage, code):
            stage.cedar.call("JoinRun", altered)


def test_a_run_of_others_is_closed(stage: Stage) -> None:
    with refused(stage, "not_on_roster"):
        stage.cedar.plan(stage.other_run)
    with refused(stage, "not_found"):
        stage.cedar.plan("no-such-run")


def test_an_altered_manifest_cannot_be_countersigned(stage: Stage) -> None:
    altered = RoundManifest.model_validate(
        {
            **stage.present.model_dump(),
            "cohort": ["amber"],
            "signing_keys": {"amber": stage.present.signing_keys["amber"]},
        }
    )
    signed = stage.cedar.signed_countersignature(altered)
    with refused(stage, "hash_mismatch"):
        stage.cedar.send_countersignature(stage.present, signed)


def test_a_round_that_is_past_cannot_be_countersigned_otherwise(stage: Stage) -> None:
    for old in (stage.past, stage.aborted):
        signed = stage.cedar.signed_countersignature(old, manifest_hash="00" * 32)
        with refused(stage, "hash_mismatch"):
            stage.cedar.send_countersignature(old, signed)


def test_an_update_of_a_past_round_gets_its_old_receipt_and_counts_no_more(stage: Stage) -> None:
    before = stage.rows()
    header = stage.cedar.header(stage.past, stage.past_payload)
    again = [stage.cedar.upload(parts(header, stage.past_payload)).receipt for _ in range(2)]
    assert again[0] == again[1] and stage.rows() == before


def test_another_update_for_a_past_round_or_attempt_is_refused(stage: Stage) -> None:
    for old, code in ((stage.past, "state"), (stage.aborted, "stale_round")):
        with refused(stage, code):
            stage.cedar.upload(parts(stage.cedar.header(old, stage.payload), stage.payload))
    future = wire.RoundRef(run_id=stage.run_id, round=3, attempt=1)
    header = stage.cedar.header(stage.present, stage.payload, ref=future)
    with refused(stage, "stale_round"):
        stage.cedar.upload(parts(header, stage.payload))


# --- uploads that are not what they should be -----------------------------------------------------


def _beyond(stage: Stage) -> list[Any]:
    wild = np.full(len(stage.payload) // 4, 0x7FFF_FFFF, "<u4").tobytes()
    return parts(stage.cedar.header(stage.present, wild), wild)


def _upload(number: int, change: Callable[[list[Any], bytes], list[Any]], **header: Any) -> Any:
    """An upload of a payload of its own, so that no part of an earlier one is taken up."""

    def make(stage: Stage) -> list[Any]:
        payload = stage.variant(number)
        return change(parts(stage.cedar.header(stage.present, payload, **header), payload), payload)

    return make


def _chunk(offset: int, data: bytes) -> wire.UploadRequest:
    return wire.UploadRequest(chunk=wire.Chunk(offset=offset, data=data))


BAD_UPLOADS: dict[str, tuple[str, Callable[[Stage], list[Any]]]] = {
    "nothing": ("protocol", lambda s: []),
    "no header": ("protocol", _upload(1, lambda p, _: p[1:])),
    "two headers": ("protocol", _upload(2, lambda p, _: [p[0], *p])),
    "truncated": ("protocol", _upload(3, lambda p, _: p[:-1])),
    "longer than announced": (
        "message_too_large",
        _upload(4, lambda p, payload: [*p, _chunk(len(payload), b"more")]),
    ),
    "chunks swapped": ("protocol", _upload(5, lambda p, _: [p[0], *p[:0:-1]])),
    "a chunk twice": ("protocol", _upload(6, lambda p, _: [p[0], p[1], *p[1:]])),
    "a gap": ("protocol", _upload(7, lambda p, _: [p[0], *p[2:]])),
    "a chunk beyond the limit": (
        "message_too_large",
        _upload(8, lambda p, _: [p[0], _chunk(0, bytes(1024 * 1024 + 1))]),
    ),
    "other bytes than announced": (
        "hash_mismatch",
        _upload(9, lambda p, _: p, payload_hash=bytes(32)),
    ),
    "a shorter layout": ("protocol", _upload(10, lambda p, _: p[:1], payload_bytes=4 * PARAMETERS)),
    "a longer layout": ("protocol", _upload(11, lambda p, _: p[:1], payload_bytes=1 << 40)),
    "another plan": ("hash_mismatch", _upload(12, lambda p, _: p[:1], plan_hash=bytes(32))),
    "another model": ("hash_mismatch", _upload(13, lambda p, _: p[:1], model_hash=bytes(32))),
    "a hash of no length": ("protocol", _upload(14, lambda p, _: p[:1], payload_hash=b"")),
    "values that no site can make": ("protocol", _beyond),
}


@pytest.mark.parametrize("what", BAD_UPLOADS)
def test_an_upload_that_is_not_the_announced_update_is_refused(stage: Stage, what: str) -> None:
    code, make = BAD_UPLOADS[what]
    requests = make(stage)
    with refused(stage, code):
        stage.cedar.upload(requests)
    assert stored_run(stage.federation, stage.run_id)["delivered"] == ["amber", "birch"]


# --- other contracts ------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [[], [2, 3], [0], [2**32 - 1]])
def test_a_site_that_speaks_no_common_version_is_told_so(stage: Stage, versions: list[int]) -> None:
    request = wire.HelloRequest(protocol_versions=versions, site_id="cedar")
    with refused(stage, "version_mismatch"):
        stage.cedar.call("Hello", request)


def test_bytes_that_are_no_message_are_a_protocol_error(stage: Stage) -> None:
    for method in ("Hello", "JoinRun", "UpdateOffset", "AnswerPlan", "Countersign"):
        with refused(stage, "protocol"):
            stage.cedar.raw(f"/fedpalm.wire.v1.Federation/{method}", b"\xff" * 40)


def test_a_call_that_nobody_knows_is_unimplemented(stage: Stage) -> None:
    for path in ("/fedpalm.wire.v1.Federation/Shutdown", "/fedpalm.wire.v2.Federation/Hello"):
        with refused(stage, "version_mismatch", status="UNIMPLEMENTED", logged=False):
            stage.cedar.raw(path, b"")


def test_a_message_beyond_every_limit_is_not_even_read(stage: Stage) -> None:
    with refused(stage, "message_too_large", status="RESOURCE_EXHAUSTED", logged=False):
        stage.cedar.raw("/fedpalm.wire.v1.Federation/Hello", bytes(3 * 1024 * 1024))


# --- newcomers ------------------------------------------------------------------------------------


def _enrol(invitation: Invitation, token: bytes, request: bytes, name: str | None = None) -> Any:
    async def call() -> Any:
        connection = EnrolmentConnection(
            invitation.enrol_address, invitation.federation, invitation.anchors
        )
        async with connection:
            message = EnrolRequest(
                invitation_id=name or invitation.invitation_id, token=token, request=request
            )
            return await connection.unary(connection.enrolment.Enrol, message, deadline_s=20)

    return asyncio.run(call())


def _request(name: str, role: Role = Role.PARTICIPANT, federation: str = "trial") -> bytes:
    request = create_request(Identity(federation, role, name), new_tls_key(), new_signing_key())
    return request.public_bytes(Encoding.PEM)


def test_an_invitation_lets_in_one_request_of_one_name_and_says_nothing_else(stage: Stage) -> None:
    used, open_ = stage.invitations["cedar"], stage.invitations["eve"]
    guess, other = bytes(32), stage.invitations["dora"].token
    words = set()
    for invitation, token, request, name in (
        (used, used.token, _request("cedar"), None),
        (used, used.token, _request("eve"), None),
        (open_, guess, _request("eve"), None),
        (open_, other, _request("eve"), None),
        (open_, open_.token, _request("amber"), None),
        (open_, open_.token, _request("eve", Role.OPERATOR), None),
        (open_, open_.token, _request("eve", federation="others"), None),
        (open_, open_.token, _request("eve"), "ff" * 16),
    ):
        with refused(stage, "invitation", "127.0.0.1", logged=False):
            try:
                _enrol(invitation, token, request, name)
            except FedPalmError as error:
                words.add(str(error))
                raise
    assert len(words) == 1
    (line,) = {
        line.partition("refused ")[2]
        for line in stage.log.read_text().splitlines()
        if "enrolment: refused" in line and "the token is wrong" in line
    }
    assert line.startswith("127.0.0.1: ")


# --- a certificate that was good ------------------------------------------------------------------


def test_a_revoked_certificate_is_told_so(stage: Stage) -> None:
    stage.federation.enrol("fir", None)
    with Puppet(stage.federation.site_home("fir"), stage.federation.address) as fir:
        fir.hello()
        stage.federation.operator("sites", "revoke", "fir", "--reason", "left")
        wait_until(lambda: _is_revoked(fir), "the revocation to be in force")
        with refused(stage, "revoked", "spiffe://trial/participant/fir"):
            fir.hello()


def _is_revoked(puppet: Puppet) -> bool:
    try:
        puppet.hello()
    except FedPalmError as error:
        assert error.code == "revoked", error
        return True
    return False


# --- and then -------------------------------------------------------------------------------------


def test_at_the_end_the_model_is_what_honest_sites_make(stage: Stage) -> None:
    federation = stage.federation
    header = stage.cedar.header(stage.present, stage.payload)
    stage.cedar.upload(parts(header, stage.payload))
    status = federation.wait_for(
        lambda: (
            (s := federation.operator("status", "--run", stage.run_id))["state"] == "completed"
            and s
        ),
        "the end of the run",
    )
    assert status["model_hash"] == expected_model(stage.plan)
    for site in ("amber", "birch"):
        told = run_json("participant", "egress", "--verify", "--home", federation.site_home(site))
        assert told, told
        assert federation.processes[site].poll() is None
    assert not found_in(stage.secrets(), stage.log.read_bytes())


# --- connections that come to nothing -------------------------------------------------------------


def _half_open(stage: Stage, stack: ExitStack) -> list[socket.socket]:
    """TCP and nothing; half a TLS hello; a whole hello and no answer to the server's."""
    host, _, port = stage.federation.address.rpartition(":")
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hello = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    greeting = outgoing.read()
    held = []
    for number in range(60):
        connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        connection.sendall((b"", greeting[: len(greeting) // 2], greeting)[number % 3])
        held.append(connection)
    return held


def test_half_open_connections_do_not_stop_honest_sites(stage: Stage) -> None:
    """For minutes: ``make soak-hostile``."""
    federation, cedar = stage.federation, stage.cedar

    def round_now() -> int:
        return int(stored_run(federation, stage.other_run)["round"])

    # A site takes part in one run at a time: the other one is over by now, here or in a test before.
    if stored_run(federation, stage.run_id)["state"] == "running":
        federation.operator("abort", "--run", stage.run_id)
    federation.operator("start", "--run", stage.other_run)
    federation.wait_for(lambda: round_now() >= 2, "the honest sites' round 2")
    with ExitStack() as stack:
        silent = [cedar.open_upload() for _ in range(10)]
        until, reached, renewals = time.monotonic() + HALF_OPEN_S, [round_now()], 0
        while time.monotonic() < until:
            _half_open(stage, stack)
            renewals += 1
            federation.wait_for(lambda: round_now() > reached[-1], "one more round of the honest")
            reached.append(round_now())
            time.sleep(min(5.0, HALF_OPEN_S / 4))
        print(f"\n{60 * renewals} half-open connections in {HALF_OPEN_S:g} s; rounds {reached}")
    assert len(silent) == 10
    federation.operator("abort", "--run", stage.other_run, "--reason", "seen enough")
