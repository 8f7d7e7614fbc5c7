"""The keys of other sites: what is remembered, compared by telephone, and confirmed by a person."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from fedpalm.errors import NotFoundError, StateError
from fedpalm.ledger.bodies import EntryKind
from fedpalm.pki.keys import VerifyingKey
from participant.cli import main
from participant.peers import PeerBook, roster_code
from tests.support.masked_rounds import masked_plan
from tests.support.participant import SITES

RUN, PLAN = "toy-1", masked_plan()


def _key(world, site):
    return world.absent(site).signing_key.public_key()


def _keys(world, *sites):
    return {site: _key(world, site) for site in sites}


@pytest.fixture
def home(world):
    """North's, which has seen the keys of east and west, of the run, and of south, of another one."""
    site, home = world.site("north")
    site.desk.plans.propose(RUN, PLAN, world.offer(PLAN))
    PeerBook(site.store).pin(_keys(world, "east", "south", "west"))
    site.store.close()
    return home


def _call(home, *arguments, code=0):
    result = CliRunner().invoke(main, ["peers", *arguments, "--home", str(home.path)])
    assert result.exit_code == code, result.output
    return result.output


def _listed(home, *arguments):
    return json.loads(_call(home, *arguments, "--json"))


def _of_run(home):
    return _listed(home, "--run", RUN)


def _confirmed(home):
    return {one["site"] for one in _listed(home)["peers"] if one["confirmed_ms"] is not None}


def _logged(world):
    site, _ = world.site("north")
    entries = [e.body for e in site.log.entries() if e.kind is EntryKind.PEER_CONFIRMED]
    site.store.close()
    return entries


def _ids(home):
    return {one["site"]: one["key_id"] for one in _listed(home)["peers"]}


def _code_at(world, site, keys):
    made, _ = world.site(site)
    book = PeerBook(made.store)
    others = {name: key for name, key in keys.items() if name != site}
    book.pin(others)
    code = roster_code((site, keys[site]), book.all())
    made.store.close()
    return code


def test_sites_that_know_each_other_by_the_same_keys_print_the_same_code_and_others_do_not(world):
    keys = _keys(world, *SITES)
    codes = {_code_at(world, site, keys) for site in SITES}
    assert len(codes) == 1
    (code,) = codes
    assert [len(group) for group in code.split()] == [4] * 12
    lied_to = {**keys, "east": world.coordinator.signing_key.public_key()}
    peers = world.site("west")[0].store
    book = PeerBook(peers)
    with peers.transaction() as db:
        db.execute("DELETE FROM peers")
    book.pin({site: lied_to[site] for site in ("east", "north")})
    assert roster_code(("west", keys["west"]), book.all()) != code
    peers.close()


def test_a_key_that_is_seen_again_changes_nothing_and_another_one_is_kept_beside_it(world):
    site, _ = world.site("north")
    book, first, other = PeerBook(site.store), _key(world, "east"), _key(world, "west")
    assert book.pin({"east": first})["east"].other is None
    assert book.pin({"east": first}) == book.pin({"east": first})
    seen = book.pin({"east": other})["east"]
    assert (seen.key, seen.other) == (first, other)
    assert book.get("east") == seen
    site.store.close()


def test_peers_lists_all_keys_and_with_a_run_those_of_its_roster_and_their_code(home):
    told, text = _listed(home), _call(home)
    assert [one["site"] for one in told["peers"]] == ["east", "south", "west"]
    assert "roster_code" not in told
    assert "peers --run RUN" in text
    told, text = _of_run(home), _call(home, "--run", RUN)
    assert [one["site"] for one in told["peers"]] == ["east", "west"]
    assert told["unseen"] == []
    assert told["roster_code"] in text
    assert text.count("not confirmed") == 2
    assert f"peers confirm --all CODE --run {RUN}" in text
    for one in told["peers"]:
        assert one["key_id"] in text


def test_sites_of_a_run_print_one_code_whatever_other_runs_they_are_in(world):
    homes = {name: world.home(name) for name in SITES}
    keys = {
        name: VerifyingKey.from_public_bytes(bytes.fromhex(key))
        for name, key in world.signing_keys(SITES).items()
    }
    for name in SITES:
        site, _ = world.site(name)
        site.desk.plans.propose(RUN, PLAN, world.offer(PLAN))
        others = {other: key for other, key in keys.items() if other != name}
        PeerBook(site.store).pin({**others, f"elsewhere-{name}": _key(world, "south")})
        site.store.close()
    assert len({_of_run(home)["roster_code"] for home in homes.values()}) == 1


def test_before_all_keys_of_a_run_were_seen_there_is_no_code(world):
    site, home = world.site("north")
    site.desk.plans.propose(RUN, PLAN, world.offer(PLAN))
    PeerBook(site.store).pin(_keys(world, "east"))
    site.store.close()
    told = _of_run(home)
    assert (told["roster_code"], told["unseen"]) == ("", ["west"])
    assert "no key has been seen of west" in _call(home, "--run", RUN)
    _call(home, "confirm", "--all", "0" * 32, "--run", RUN, code=NotFoundError.exit_code)
    _call(home, "--run", "toy-9", code=NotFoundError.exit_code)
    assert _confirmed(home) == set()


def test_before_any_key_was_seen_it_says_so(world):
    site, home = world.site("north")
    site.store.close()
    assert _listed(home) == {"site": "north", "peers": []}
    assert "no key of another site" in _call(home)


def test_a_person_confirms_one_peer_by_its_key_id_and_the_log_says_so_once(world, home):
    ids = _ids(home)
    _call(home, "confirm", "east", ids["west"], code=StateError.exit_code)
    _call(home, "confirm", "nobody", ids["west"], code=NotFoundError.exit_code)
    assert _confirmed(home) == set()
    told = json.loads(_call(home, "confirm", "east", ids["east"].upper(), "--json"))
    assert told == {"confirmed": ["east"], "unconfirmed": ["south", "west"]}
    _call(home, "confirm", "east", ids["east"])
    assert _confirmed(home) == {"east"}
    assert _logged(world) == [{"site": "east", "key_id": ids["east"]}]


def test_a_person_confirms_all_peers_of_a_run_by_its_roster_code(world, home):
    code = _of_run(home)["roster_code"]
    wrong = code.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    of_run = ("--run", RUN)
    _call(home, "confirm", "--all", wrong, *of_run, code=StateError.exit_code)
    assert _confirmed(home) == set()
    told = json.loads(_call(home, "confirm", "--all", code, *of_run, "--json"))
    assert told == {"confirmed": ["east", "west"], "unconfirmed": ["south"]}
    assert "all were before" in _call(home, "confirm", "--all", code.replace(" ", ""), *of_run)
    assert _confirmed(home) == {"east", "west"}
    assert [body["site"] for body in _logged(world)] == ["east", "west"]
    assert "--all CODE" not in _call(home, *of_run)


@pytest.mark.parametrize(
    "said",
    [(), ("east",), ("east", "1", "--all", "2", "--run", "r"), ("east", "--all", "2", "--run", "r"),
     ("--all", "2"), ("--run", "r"), ("east", "1", "--run", "r")],
)  # fmt: skip
def test_confirm_takes_a_site_with_its_key_id_or_a_code_with_its_run_and_nothing_else(home, said):
    said_so = _call(home, "confirm", *said, code=2)
    assert "say SITE and KEY_ID, or --all CODE --run RUN" in said_so


def test_a_peer_that_comes_with_another_key_is_confirmed_when_it_is_accepted(world, home):
    site, _ = world.site("north")
    PeerBook(site.store).pin({"east": world.coordinator.signing_key.public_key()})
    site.store.close()
    east, west = _of_run(home)["peers"]
    assert "REFUSED" in _call(home)
    _call(home, "accept", "west", west["key_id"], code=StateError.exit_code)
    _call(home, "accept", "nobody", west["key_id"], code=NotFoundError.exit_code)
    _call(home, "accept", "east", east["key_id"], code=StateError.exit_code)
    told = json.loads(_call(home, "accept", "east", east["other_key_id"], "--json"))
    assert told == {
        "site": "east",
        "old_key_id": east["key_id"],
        "key_id": east["other_key_id"],
    }
    assert _confirmed(home) == {"east"}
    assert _logged(world) == [{"site": "east", "key_id": east["other_key_id"]}]
