"""What an honest bundle shows, and what each lie of a site, a coordinator or a witness is caught as."""

from __future__ import annotations

import pytest

from fedpalm.audit.bundle import Contents
from fedpalm.audit.findings import SEVERITY, Exit, Finding, exit_of
from fedpalm.audit.releases import CONTROL_BYTES
from fedpalm.audit.trust import Trust, read_trust
from fedpalm.audit.verify import NO_PRIVACY
from fedpalm.cli.audit import verdict
from fedpalm.errors import ConfigError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.ledger.checkpoint import Checkpoint
from fedpalm.ledger.merkle import root as merkle_root
from fedpalm.pki.bundle import pem_of
from fedpalm.pki.identity import Identity, Role
from fedpalm.pki.signing import key_id
from fedpalm.privacy.accounting import epsilon_pld
from participant.outgoing import DATA_KINDS, PayloadKind
from tests.support.audit import (
    FEDERATION,
    RUN,
    SITE,
    World,
    again,
    digest,
    make_plan,
    written,
)

# --- honest bundles -----------------------------------------------------------------------------------


def test_an_honest_bundle_holds_to_its_last_witnessed_entry(audited, world: World):
    audit = audited(world)
    assert audit.exit is Exit.OK and not audit.findings
    assert (audit.site, audit.log.size) == (SITE, len(world.entries))
    assert audit.vouched == Checkpoint.read(world.newest).size
    said = audit.to_json()
    assert said["released"] == {"update": 3, "sealed_expert": 0}
    (account,) = said["accounts"]
    assert account["epsilon"] == account["epsilon_recomputed"] > 0
    assert account["recomputed_exactly"] == account["charges"] == 3


def test_a_masked_run_with_an_exchange_holds(audited, masked: World):
    audit = audited(masked)
    assert audit.exit is Exit.OK, audit.findings
    assert audit.to_json()["released"] == {"update": 3, "sealed_expert": 1}


def test_a_run_without_privacy_holds_and_is_said_to_bound_nothing(audited, open_run: World):
    audit = audited(open_run)
    assert audit.exit is Exit.OK, audit.findings
    assert any(NO_PRIVACY in note for note in audit.notes)
    assert audit.to_json()["accounts"] == []


def test_an_attempt_that_was_lost_is_sent_again_for_the_same_charge(audited):
    world = World()
    world.join()
    first = world.round(1)
    place = {"run": RUN, "round": 1, "attempt": 2}
    manifest = world.manifest(place, world.checkpoint(place), world.plan.roster)
    world.countersign(manifest, world.plan.roster)
    body = {name: first.body[name] for name in ("payload_hash", "layout_hash")}
    world.receipt(world.send("update", int(first.body["bytes"]), place, **body))
    assert audited(world).exit is Exit.OK


def test_a_training_that_was_cut_off_is_charged_again_and_holds(audited):
    world = World()
    world.join()
    world.reserve(1)
    world.round(1)
    audit = audited(world)
    assert audit.exit is Exit.OK, audit.findings
    assert len(audit.account.spent) == 2


def test_an_empty_log_of_a_site_that_never_trained_holds(audited):
    world = World()
    world.join()
    assert audited(world).exit is Exit.OK


def test_figures_in_between_are_held_to_their_neighbours(audited, refused):
    world = World(make_plan(rounds=6)).trained()
    audit = audited(world, exact=2)
    assert audit.exit is Exit.OK, audit.findings
    assert [one.recomputed is None for one in audit.account.spent] == [False, *[True] * 4, False]
    lying = World(make_plan(rounds=6))
    lying.join()
    for number in range(1, 7):
        lying.round(number, mechanism={"epsilon": "0.01"} if number == 3 else None)
    assert "between" in refused(Exit.EPSILON, lying, exact=2)


# --- the auditor's own files ------------------------------------------------------------------------


def test_a_trust_file_is_pem_or_toml_with_keys(tmp_path, world: World):
    pem = pem_of(world.own.anchors)
    assert read_trust(written(tmp_path, pem)).anchors == world.own.anchors
    toml = f"anchors = '''\n{pem.decode()}'''\n[keys]\nsite-a = '{world.own_key_id}'\n"
    said = read_trust(written(tmp_path, toml.encode()))
    assert said == Trust(world.own.anchors, {SITE: world.own_key_id})


@pytest.mark.parametrize("content", [b"", b"\xff", b"anchors = 3", b"keys = {}", b"-----BEGIN X"])
def test_a_trust_file_that_is_none_is_a_settings_error(tmp_path, content: bytes):
    with pytest.raises(ConfigError):
        read_trust(written(tmp_path, content))


def test_keys_that_are_not_pinned_are_named(audited, world: World):
    audit = audited(world, trust=Trust(world.own.anchors))
    assert audit.exit is Exit.OK
    assert any("did not pin" in note and "site-d" in note for note in audit.notes)


def test_another_key_than_the_pinned_one_is_tampering(refused, world: World):
    trust = Trust(world.own.anchors, {"site-c": digest("another key")})
    assert "you pinned" in refused(Exit.TAMPERED, world, trust=trust)


def test_another_federations_anchors_open_nothing(refused, world: World, masked: World):
    assert "does not lead" in refused(Exit.TAMPERED, world, trust=masked.trust)


def test_another_sites_bundle_is_a_checkpoint_from_elsewhere(audited, refused, tmp_path, world):
    """Site-b saw a checkpoint of site-a, and its bundle carries it."""
    other = World(authority=world.authority)
    other.sites[SITE] = world.sites["site-b"]
    held = written(tmp_path, other.bundle(checkpoints=[world.newest]), "other.bundle")
    assert audited(world, outside=[held]).vouching == (Checkpoint.read(world.newest).size,)
    shorter = cut_after_round(world, 2)
    assert "it was cut" in refused(Exit.FORKED, world, shorter, outside=[held])


def test_a_checkpoint_of_somebody_else_is_no_help(audited, tmp_path, world: World, masked: World):
    for content in (b"{}", masked.newest.to_bytes(), masked.bundle()):
        path = written(tmp_path, content)
        with pytest.raises(ConfigError):
            audited(world, outside=[path])


# --- the log ------------------------------------------------------------------------------------------


def cut_after_round(world: World, last: int) -> bytes:
    """The bundle that this site would have exported after an earlier round, sealed today."""
    shorter = World(world.plan, authority=world.authority)
    shorter.sites, shorter.coordinator = world.sites, world.coordinator
    shorter.clock_ms = world.clock_ms
    keep = 0
    for entry in world.entries:
        if entry.body.get("round", 0) > last or entry.body.get("round") == 0:
            break
        keep = entry.seq + 1
    entries = world.entries[:keep]
    receipts = sum(one.kind is EntryKind.RECEIPT for one in entries)
    return shorter.bundle(
        entries=entries,
        plans=world.contents["plans"],
        manifests=world.contents["manifests"][:last],
        countersignatures=world.contents["countersignatures"][: 4 * last],
        checkpoints=world.contents["checkpoints"][:last],
        receipts=world.contents["receipts"][:receipts],
    )


def test_a_log_that_was_cut_and_tidied_up_is_caught_by_a_witness_that_holds_a_newer_checkpoint(
    audited, refused, world: World
):
    shorter = cut_after_round(world, 2)
    alone = audited(world, shorter, alone=True)
    assert alone.exit is Exit.OK
    assert any("ends early" in note for note in alone.notes)
    assert "it was cut" in refused(Exit.FORKED, world, shorter)


def test_an_edited_sigma_signed_anew_is_another_history(refused, world: World):
    entries = world.resigned(
        again(one, noise_multiplier="1.2") if one.kind is EntryKind.BUDGET_RESERVED else again(one)
        for one in world.entries
    )
    content = world.bundle(entries=entries)
    assert "another history" in refused(Exit.FORKED, world, content)
    bare = world.bundle(entries=entries, checkpoints=[])
    assert "another history" in refused(Exit.FORKED, world, bare)


def test_a_log_that_is_signed_by_another_site_is_not_this_sites(refused, world: World):
    other = World(world.plan, authority=world.authority)
    other.sites = {**world.sites, SITE: world.sites["site-b"]}
    other.send("hello", 30, {})
    forged = other.bundle().replace(b'"site":"site-b"', b'"site":"site-a"', 1)
    assert "the certificate is" in refused(Exit.TAMPERED, world, forged)


def test_a_new_key_with_a_good_certificate_begins_no_second_log(refused, world: World):
    other = World(world.plan, authority=world.authority)
    other.sites = {**world.sites, SITE: world.authority.enrol(Role.PARTICIPANT, SITE)}
    other.coordinator = world.coordinator
    content = other.trained().bundle()
    assert "you pinned" in refused(Exit.TAMPERED, world, content)


def heir_of(world: World) -> World:
    """The same site after it joined anew, with another key."""
    heir = World(world.plan, authority=world.authority)
    issued = world.own.leaf.not_valid_before_utc.timestamp() + 3600
    own = world.authority.enrol(Role.PARTICIPANT, SITE, now=issued)
    heir.sites = {**world.sites, SITE: own}
    heir.coordinator = world.coordinator
    heir.join()
    return heir


def inherit(heir: World, world: World, size: int, root: str = "") -> None:
    """Take over the charges of the first ``size`` entries of the earlier log."""
    entries = world.entries[:size]
    old = [one for one in entries if one.kind is EntryKind.BUDGET_RESERVED]
    before = sum(one.kind is EntryKind.BUDGET_INHERITED for one in heir.entries)
    for one in old[before:]:
        body = {k: v for k, v in one.body.items() if k not in ("run", "round", "plan_hash", "rng")}
        root = root or merkle_root(entry.to_bytes() for entry in entries).hex()
        named = {"key_id": world.own_key_id, "size": size, "root": root}
        heir.log(EntryKind.BUDGET_INHERITED, {**body, **named})


def test_an_inherited_log_is_held_to_its_newest_checkpoint(audited, refused, world: World):
    """A site that begins anew with another key takes over less than it had spent, or something else."""
    newest = Checkpoint.read(world.newest)
    options = {"trust": Trust(world.own.anchors), "alone": True}
    for size, root, words in (
        (newest.size - 1, "", f"it inherits {newest.size - 1} entries"),
        (newest.size, digest("another history"), "another history than the earlier log's"),
    ):
        heir = heir_of(world)
        inherit(heir, world, size, root)
        assert words in refused(
            Exit.FORKED, heir, heir.bundle(checkpoints=[world.newest]), **options
        )
    heir = heir_of(world)
    inherit(heir, world, 8)  # a short copy, and then a longer one for the rest
    inherit(heir, world, newest.size)
    audit = audited(heir, heir.bundle(checkpoints=[world.newest]), **options)
    assert audit.exit is Exit.OK, audit.findings
    assert len(audit.account.spent) == 3


def test_a_site_that_joins_anew_and_inherits_nothing_is_caught_by_a_checkpoint_of_its_earlier_log(
    audited, refused, tmp_path, world: World
):
    heir, trust = heir_of(world), Trust(world.own.anchors)
    held = written(tmp_path, world.newest.to_bytes(), "earlier.checkpoint")
    words = refused(Exit.FORKED, heir, alone=True, trust=trust, outside=[held])
    assert "not inherited" in words
    assert audited(heir, alone=True, trust=trust).exit is Exit.OK  # nobody told the auditor


def test_a_checkpoint_of_an_earlier_log_vouches_for_nothing_of_the_next(
    audited, tmp_path, world: World
):
    heir = heir_of(world)
    inherit(heir, world, Checkpoint.read(world.newest).size)
    while len(heir.entries) <= Checkpoint.read(world.newest).size:
        heir.send("hello", 30, {})
    held = written(tmp_path, world.newest.to_bytes(), "earlier.checkpoint")
    audit = audited(heir, alone=True, trust=Trust(world.own.anchors), outside=[held])
    assert audit.exit is Exit.OK, audit.findings
    assert audit.vouching == () and audit.vouched == 0
    assert any("none of the checkpoints that you gave" in note for note in audit.notes)


def test_the_earlier_log_itself_is_not_held_against_the_later_one(audited, tmp_path, world: World):
    heir = heir_of(world)
    inherit(heir, world, Checkpoint.read(world.newest).size)
    heir.round(1)
    later = written(tmp_path, heir.newest.to_bytes(), "later.checkpoint")
    held = written(tmp_path, world.newest.to_bytes(), "own.checkpoint")
    audit = audited(world, alone=True, trust=Trust(world.own.anchors), outside=[held, later])
    assert audit.exit is Exit.OK, audit.findings


def test_an_earlier_log_that_only_another_one_inherits_is_told_of(audited, tmp_path, world: World):
    second = heir_of(world)
    second.round(1)
    second.close()
    third = heir_of(second)
    inherit(third, second, len(second.entries))
    held = written(tmp_path, world.newest.to_bytes(), "first.checkpoint")
    audit = audited(third, alone=True, trust=Trust(world.own.anchors), outside=[held])
    assert audit.exit is Exit.OK, audit.findings
    assert any("does not inherit itself" in note for note in audit.notes)


# --- charges ------------------------------------------------------------------------------------------


def rounds(world: World, **second) -> World:
    """Two rounds, of which the second is made in another way, and a closing checkpoint."""
    world.join()
    world.round(1)
    world.round(2, **second)
    world.close()
    return world


def test_an_update_that_nothing_was_charged_for_is_caught(refused):
    words = refused(Exit.UNCHARGED, rounds(World(), charge=False))
    assert "no committed reservation pays for" in words


def test_a_charge_that_was_not_committed_pays_for_nothing(refused):
    assert "pays for" in refused(Exit.UNCHARGED, rounds(World(), commit=False))


@pytest.mark.parametrize(
    "lie",
    [
        {"noise_multiplier": "2.2"},
        {"clip_norm": "0.5"},
        {"sampling_rate": "0.01"},
        {"steps": 1},
        {"unit": "record"},
        {"rng": "seeded"},
        {"sampler": "shuffle"},
        {"relation": "replace-one"},
        {"mechanism": "laplace"},
        {"plan_hash": digest("another plan")},
    ],
    ids=lambda lie: next(iter(lie)),
)
def test_a_charge_for_another_mechanism_than_the_plans_pays_for_nothing(refused, lie):
    words = refused(Exit.UNCHARGED, rounds(World(), mechanism=lie))
    assert "pays for" in words and ("plan" in words or "not known here" in words)


def test_another_update_than_the_one_that_was_paid_for_is_caught(refused):
    words = refused(Exit.UNCHARGED, rounds(World(), update={"payload_hash": digest("other")}))
    assert "another update" in words


def test_two_commits_of_one_round_are_caught(refused):
    world = World()
    world.join()
    world.round(1)
    reserved = world.reserve(1)
    world.log(
        EntryKind.BUDGET_COMMITTED,
        {"run": RUN, "round": 1, "reservation": reserved.seq, "update_hash": digest("second")},
    )
    assert "two trainings" in refused(Exit.UNCHARGED, world, alone=True)


def test_one_reservation_pays_once(refused):
    world = World()
    world.join()
    world.round(1)
    spent = next(one for one in world.entries if one.kind is EntryKind.BUDGET_COMMITTED)
    world.log(spent.kind, spent.body)
    assert "not this round's to spend" in refused(Exit.UNCHARGED, world, alone=True)


def test_a_budget_that_is_passed_is_caught(refused):
    assert "of a budget of 0.5" in refused(Exit.OVER_BUDGET, rounds(World(budget=0.5)))


def test_a_budget_that_is_passed_and_raised_afterwards_is_caught(refused):
    """Figures in between are held to their neighbours only: the site claims as little as it can."""
    world = World(make_plan(rounds=8))
    world.join()
    for number in range(1, 9):
        lie = {"epsilon": "0.999"} if number in (4, 5) else {}
        world.round(number, mechanism={**lie, "budget": "1.0" if number <= 5 else "50.0"})
    world.close()
    spent = [epsilon_pld(world.charges[:number], world.delta) for number in (3, 4, 5)]
    assert spent[0] < 1 < spent[1]
    assert f"epsilon {spent[2]:.4f} is spent of a budget of 1" in refused(
        Exit.OVER_BUDGET, world, exact=2
    )


@pytest.mark.parametrize(
    "extreme",
    [
        {"noise_multiplier": "1e+200"},
        {"noise_multiplier": "1e-160"},
        {"noise_multiplier": "1e-200", "sampling_rate": "0.5"},
        {"sampling_rate": "5e-324"},
        {"steps": 2**53 - 1},
    ],
    ids=str,
)
def test_a_mechanism_that_cannot_be_accounted_for_is_a_finding(refused, extreme):
    world = rounds(World(), mechanism={**extreme, "epsilon": "1.0"})
    assert "it is not charged what the plan asks" in refused(Exit.UNCHARGED, world)


@pytest.mark.parametrize("claimed", ["0.0", "0.5", "30.0"])
def test_a_figure_that_is_not_what_the_charges_add_up_to_is_caught(refused, claimed: str):
    assert "recomputed" in refused(Exit.EPSILON, rounds(World(), mechanism={"epsilon": claimed}))


def test_delta_stays_what_it_was(refused):
    assert "delta changes" in refused(Exit.EPSILON, rounds(World(), mechanism={"delta": "0.0009"}))


def test_delta_is_below_one_in_the_declared_population(refused):
    assert "is not below 1 / 200" in refused(Exit.UNCHARGED, rounds(World(delta=0.005)))


def by_hand(world: World) -> tuple[dict, dict]:
    """A first round by the book; the place of the second, and the update that it will train."""
    world.join()
    first = world.round(1)
    place = {"run": RUN, "round": 2, "attempt": 1}
    update = {
        "size": int(first.body["bytes"]),
        "payload_hash": digest("update", RUN, 2),
        "layout_hash": first.body["layout_hash"],
    }
    return place, update


def commit(world: World, reserved) -> None:
    body = {"run": RUN, "round": 2, "reservation": reserved.seq}
    world.log(EntryKind.BUDGET_COMMITTED, {**body, "update_hash": digest("update", RUN, 2)})


def test_a_charge_that_is_committed_after_the_update_left_pays_for_nothing(refused):
    world = World()
    place, update = by_hand(world)
    reserved = world.reserve(2)
    manifest = world.manifest(place, world.checkpoint(place), world.plan.roster)
    world.countersign(manifest, world.plan.roster)
    world.send("update", update.pop("size"), place, **update)
    commit(world, reserved)
    world.close()
    assert "no committed reservation pays for" in refused(Exit.UNCHARGED, world)


def test_a_charge_that_nobody_witnessed_before_the_training_is_caught(refused):
    world = World()
    place, update = by_hand(world)
    manifest = world.manifest(place, world.checkpoint(place), world.plan.roster)
    world.countersign(manifest, world.plan.roster)
    commit(world, world.reserve(2))
    world.send("update", update.pop("size"), place, **update)
    world.close()
    assert "is in no checkpoint of its attempt" in refused(Exit.UNWITNESSED, world)


# --- what left ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ({"bytes": 400}, "an update of 400 bytes"),
        ({"layout_hash": digest("layout")}, "another layout"),
        (
            {"recipient": Identity(FEDERATION, Role.PARTICIPANT, "site-b").uri},
            "left to spiffe",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_update_of_another_shape_or_to_somebody_else_is_caught(refused, lie, words: str):
    world = rounds(World(), update=lie)
    # A coordinator that lies, too, gives the receipt for it.
    assert words in refused(Exit.UNCHARGED, world)


def test_a_second_update_for_one_manifest_is_caught(refused):
    world = World()
    world.join()
    sent = world.round(1)
    place = {"run": RUN, "round": 1, "attempt": 1}
    world.send("update", int(sent.body["bytes"]), place, layout_hash=sent.body["layout_hash"])
    world.close()
    assert "second update" in refused(Exit.UNCHARGED, world)


def test_an_update_outside_any_plan_is_caught(refused):
    world = World()
    world.join()
    world.send("update", 132, {})
    world.send("update", 132, {"run": "other-1", "round": 1, "attempt": 1})
    assert refused(Exit.UNCHARGED, world).count("outside any plan") == 2


def test_an_update_that_left_before_its_manifest_was_accepted_is_caught(refused):
    world = World()
    place, update = by_hand(world)
    reserved, given = world.reserve(2), world.checkpoint(place)
    commit(world, reserved)
    world.send("update", update.pop("size"), place, **update)
    world.countersign(world.manifest(place, given, world.plan.roster), world.plan.roster)
    world.close()
    assert "no manifest asked for" in refused(Exit.UNCHARGED, world)


def test_an_update_for_a_cohort_that_the_site_is_not_in_is_caught(refused):
    others = ("site-b", "site-c", "site-d")
    world = World(make_plan(unit="none"))
    world.join()
    world.round(1, cohort=others, signers=others)
    words = refused(Exit.UNCHARGED, world)
    assert "in whose cohort the site, with this key, was not" in words


def test_an_update_after_the_approval_was_taken_back_is_caught(refused):
    world = World()
    world.join()
    world.round(1)
    approved = next(one for one in world.entries if one.kind is EntryKind.PLAN_APPROVED)
    world.log(EntryKind.PLAN_REFUSED, {**approved.body, "number": 2})
    world.round(2)
    assert "did not approve then" in refused(Exit.UNCHARGED, world)


def test_a_payload_of_unknown_kind_or_of_impossible_size_is_caught(refused):
    world = World()
    world.join()
    world.send("templates", 10, {})
    world.send("hello", 20_000_000, {})
    words = refused(Exit.UNCHARGED, world)
    assert "unknown kind 'templates'" in words and "a hello of 20000000 bytes" in words


def test_every_payload_that_a_site_can_send_is_known_here():
    assert set(CONTROL_BYTES) == set(PayloadKind) - set(DATA_KINDS)


# --- witnesses ----------------------------------------------------------------------------------------


def test_too_few_witnesses_are_not_enough(refused, audited):
    world = rounds(World(), signers=("site-a", "site-b"))
    assert "2 of 3 witnesses" in refused(Exit.UNWITNESSED, world)
    assert audited(world, faulty=0).exit is Exit.UNWITNESSED
    all_but_one = rounds(World(), signers=("site-a", "site-b", "site-c"))
    assert audited(all_but_one).exit is Exit.OK
    assert audited(all_but_one, faulty=3).exit is Exit.UNWITNESSED


def test_of_two_histories_with_disjoint_witnesses_one_at_least_is_not_witnessed(refused, audited):
    """The site and its coordinator lie together; no honest witness signs for both."""
    histories = []
    first = World()
    for signers in (("site-a", "site-b"), ("site-a", "site-c", "site-d")):
        one = World(first.plan, authority=first.authority)
        one.sites, one.coordinator = first.sites, first.coordinator
        one.clock_ms += 1000 * len(histories)
        histories.append(rounds(one, signers=signers))
    refused(Exit.UNWITNESSED, histories[0])
    assert audited(histories[1]).exit is Exit.OK
    histories[1].newest = histories[0].contents["checkpoints"][0]
    assert "another history" in refused(Exit.FORKED, histories[1])


def test_a_checkpoint_that_no_manifest_names_is_witnessed_by_nobody(refused, world: World):
    missing = [one for one in world.contents["checkpoints"] if one is not world.newest][1:]
    content = world.bundle(checkpoints=missing)
    assert "0 of 3 witnesses" in refused(Exit.UNWITNESSED, world, content)


def test_fewer_signatures_than_the_quorum_are_not_enough_without_privacy_either(refused):
    world = World(make_plan(unit="none"))
    world.join()
    world.round(1, signers=("site-a",))
    assert "1 sites signed its manifest" in refused(Exit.UNWITNESSED, world)


# --- statements of others -----------------------------------------------------------------------------


def without(world: World, section: str, at: int = 0) -> bytes:
    left = [one for i, one in enumerate(world.contents[section]) if i != at]
    return world.bundle(**{section: left})


@pytest.mark.parametrize("section", ["plans", "manifests", "receipts"])
def test_what_the_log_names_is_in_the_bundle(refused, world: World, section: str):
    assert "missing" in refused(Exit.MALFORMED, world, without(world, section))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"site":"site-a"', b'"site":"X!"'),
        (b'"version":1', b'"version":' + b"[" * 900 + b"]" * 900),
        (b'"version":1', b'"version":' + b"[" * 992 + b"]" * 992),
    ],
    ids=["a name that no site has", "900 lists", "992 lists"],
)
def test_a_header_that_cannot_be_read_is_malformed(refused, old: bytes, new: bytes):
    world = World()
    world.send("hello", 30, {})
    content = world.bundle()
    assert old in content.split(b"\n", 1)[0]
    refused(Exit.MALFORMED, world, content.replace(old, new, 1))


def test_a_receipt_for_what_is_not_in_the_log_shows_that_it_was_cut(refused, world: World):
    shorter = [one for one in world.entries if one.seq < world.entries[-3].seq]
    content = world.bundle(entries=shorter)
    assert "it was cut" in refused(Exit.FORKED, world, content, alone=True)


def test_a_statement_with_another_signers_signature_is_caught(refused, world: World):
    said = world.contents["countersignatures"]
    other = type(said[1])(said[1].statement, said[2].signature, said[2].chain)
    content = world.bundle(countersignatures=[said[0], other, *said[2:]])
    assert "is signed by" in refused(Exit.TAMPERED, world, content)


def test_a_signature_of_another_attempt_counts_for_none(refused, world: World):
    said = world.contents["countersignatures"]
    content = world.bundle(countersignatures=[said[0], said[4], *said[2:]])
    assert "twice" in refused(Exit.MALFORMED, world, content)


def test_the_worst_finding_is_the_exit_code():
    every = [Finding(code, "", "") for code in reversed(SEVERITY)]
    assert exit_of(every) is Exit.MALFORMED
    assert exit_of(every[:2]) is Exit.EPSILON
    assert exit_of([]) is Exit.OK
    assert set(SEVERITY) == set(Exit) - {Exit.OK}


def test_a_file_that_is_no_bundle_has_a_verdict_without_empty_lines(audited, world: World):
    def shown(audit):
        return [str(line) for line in verdict(audit).renderables]

    assert any(line.startswith("site ") for line in shown(audited(world)))
    lines = shown(audited(world, b"\x89PNG\r\n", alone=True))
    assert lines[0] == "malformed"
    assert not any(line.startswith(("site ", "log: ", "left: ")) for line in lines)


def test_the_key_of_the_log_is_in_the_verdict(audited, world: World):
    assert audited(world).key_id == key_id(world.own.signing_key.public_key()).hex()
    assert set(Contents.__dataclass_fields__) == set(world.contents)
