"""A coordinator that is also the CA puts keys of its own in the place of other sites' at first contact."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from fedpalm.errors import StateError
from fedpalm.pki.signing import key_id
from participant import rounds
from participant.peers import PeerBook
from tests.support.aio import in_loop
from tests.support.masked_rounds import MaskedCoordinator
from tests.support.participant import SITES, Site, World

KEYS = ("north", 1, 1, "keys")


class Impostor(MaskedCoordinator):
    """Tells north of east and west under keys of its own, which its CA vouches for, and signs as them.

    It then knows all masks but north's own secrets, and what it says in their names.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.expected = ("north",)
        self.absent_sign = True


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "COUNTERSIGNATURE_POLL_S", 0.01)
    monkeypatch.setattr(rounds, "COUNTERSIGNATURE_POLL_CAP_S", 0.02)


async def _until(said: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not said():
            await asyncio.sleep(0.01)


async def _stopped(*tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@in_loop
async def test_a_site_that_trusts_the_first_sight_of_a_key_does_not_notice(tmp_path: Path) -> None:
    world = World(tmp_path)
    north, _ = world.site("north")
    coordinator = Impostor(world)
    task = asyncio.create_task(north.run(coordinator))
    await _until(lambda: KEYS in coordinator.sent)
    await _stopped(task)


@in_loop
async def test_a_site_that_asks_for_confirmed_peers_gives_no_masking_keys(tmp_path: Path) -> None:
    world = World(tmp_path, policy='auto_approve = true\npeers = "confirmed"\n')
    north, _ = world.site("north")
    coordinator = Impostor(world)
    task = asyncio.create_task(north.run(coordinator))
    told = "nobody here has compared the signing keys of east, west"
    await _until(lambda: any(told in line for line in north.lines))
    await asyncio.sleep(0.2)
    assert sum(told in line for line in north.lines) == 1
    assert KEYS not in coordinator.sent
    await _stopped(task)
    east, _ = world.site("east")
    again = Site(north.home)
    seen = PeerBook(again.store).get("east")
    assert seen is not None
    true = key_id(east.identity.signing_key.public_key()).hex()
    assert seen.key_id != true, "what east reads out is another id"
    with pytest.raises(StateError, match="is not the one that was named"):
        PeerBook(again.store).confirm(again.log, "east", true)
    again.store.close()
    east.store.close()


@in_loop
async def test_under_that_policy_the_round_goes_on_once_somebody_has_confirmed(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, policy='auto_approve = true\npeers = "confirmed"\n')
    sites = [world.site(name)[0] for name in SITES]
    coordinator = MaskedCoordinator(world)
    tasks = [asyncio.create_task(site.run(coordinator)) for site in sites]
    for site in sites:
        await _until(lambda site=site: any("nobody here" in one for one in site.lines))
    assert not coordinator.sent
    for site in sites:
        beside = Site(site.home)
        book = PeerBook(beside.store)
        await _until(lambda book=book: len(book.all()) == 2)
        for peer in book.all():
            book.confirm(beside.log, peer.site, peer.key_id)
        beside.store.close()
    assert all(one.completed for one in await asyncio.gather(*tasks))
    assert len(coordinator.sums) == 1
