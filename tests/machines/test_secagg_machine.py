"""Masked attempts under anything that a lying coordinator, a corrupt site and crashes can do, in any order.

``make fuzz-secagg`` runs it at length: SECAGG_FUZZ_STEPS steps at least, of which it prints how many and
how long. Without that it takes a few seconds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fedpalm.errors import (
    BadShareError,
    BoxesRefusedError,
    FedPalmError,
    MaskingError,
    StaleRoundError,
)
from fedpalm.secagg import site as core
from fedpalm.secagg.codec import Encoded
from fedpalm.secagg.memory import AttemptRef
from fedpalm.secagg.messages import Box, Complaint, MaskedInput, Reveal, ShareKind, signed
from fedpalm.secagg.site import AttemptFacts, SiteAttempt
from fedpalm.secagg.terms import SecAggTerms
from fedpalm.secagg.unmasking import Collection, Step
from tests.support.masking import (
    Crash,
    Site,
    manifest_hash,
    names,
    opened_sum,
    payload_hash,
    signing_key,
)

FUZZ_STEPS = int(os.environ.get("SECAGG_FUZZ_STEPS", "0"))
CORRUPT = "s01"
MODELS = ("m0", "m1")
JUNK = ("shares", "pair", "mask_share_hash", "seed_share_hash")
steps = {"taken": 0, "sums": 0, "refused": 0, "crashes": 0, "complaints": 0, "caught": 0}


class Story:
    """What a coordinator has seen of one manifest: every message, of everybody, in every version."""

    def __init__(
        self, ref: AttemptRef, model: str, cohort: tuple[str, ...], terms: SecAggTerms, version: str
    ) -> None:
        self.ref, self.model, self.cohort, self.terms = ref, model, cohort, terms
        self.manifest = manifest_hash(ref, model, cohort, version)
        self.keys: list[Any] = []
        self.boxes: list[Any] = []
        self.inputs: list[Any] = []
        self.complaints: list[Complaint] = []
        self.junk: dict[str, str] = {}
        self.spoilt: set[str] = set()
        self.dealt_another_secret = False
        self.agreements: list[Any] = []
        self.vectors: dict[bytes, Encoded] = {}

    def facts(self, site: str) -> AttemptFacts:
        keys = {name: signing_key(name).public_key() for name in self.cohort}
        return AttemptFacts(self.terms, site, self.manifest, self.cohort, keys)

    def add(self, where: str, said: Any) -> None:
        known = getattr(self, where)
        if said not in known:
            known.append(said)


class MaskingUnderFire(RuleBasedStateMachine):
    """The coordinator is the adversary, with one corrupt site; all other sites run the real core."""

    def __init__(self) -> None:
        super().__init__()
        self.stories: list[Story] = []
        self.masked_by_key: dict[tuple[str, bytes], str] = {}
        self.shares: defaultdict[tuple[bytes, str, ShareKind], set[str]] = defaultdict(set)
        self.revealed: dict[tuple[str, AttemptRef], Reveal] = {}
        self.views: dict[tuple[bytes, str], Any] = {}
        self.opened: dict[bytes, Any] = {}
        self.sent: dict[tuple[str, str, bytes], Any] = {}
        self.masking: tuple[str, str] | None = None
        self.apply_masks = core.apply_masks
        core.apply_masks = self.watch_masks

    def teardown(self) -> None:
        core.apply_masks = self.apply_masks

    def watch_masks(self, vector: Encoded, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
        """Every stream key that a site uses, in the process that dies as well, is for one vector."""
        assert self.masking is not None
        site, content = self.masking
        assert payload_hash(vector) == content
        assert len({*add, *subtract}) == len(add) + len(subtract)
        for key in (*add, *subtract):
            assert self.masked_by_key.setdefault((site, key), content) == content
        self.apply_masks(vector, add, subtract)

    # --- the stage --------------------------------------------------------------------------------

    @initialize(count=st.sampled_from([3, 4, 4, 5]), grouped=st.booleans())
    def found(self, count: int, grouped: bool) -> None:
        groups = (("left", names(3)), ("right", names(count)[count - 3 :])) if grouped else ()
        self.terms = SecAggTerms(names(count), groups=groups)
        self.sites = {name: Site(name) for name in names(count)}
        self.honest = [name for name in names(count) if name != CORRUPT]
        self.open_story(AttemptRef("r", 1, 1), "m0", names(count), "")

    def open_story(
        self, ref: AttemptRef, model: str, cohort: tuple[str, ...], version: str
    ) -> None:
        self.stories.append(Story(ref, model, cohort, self.terms, version))

    @rule(
        round_=st.integers(1, 2),
        attempt=st.integers(1, 4),
        run=st.sampled_from(["r", "r", "r", "q"]),
        model=st.sampled_from(MODELS),
        left_out=st.integers(0, 9),
        version=st.sampled_from(["", "", "other"]),
    )
    def new_manifest(
        self, round_: int, attempt: int, run: str, model: str, left_out: int, version: str
    ) -> None:
        """A retry, the next round, another run, another model, another cohort: whatever it likes."""
        cohort = tuple(name for at, name in enumerate(self.terms.roster) if at != left_out)
        self.open_story(AttemptRef(run, round_, attempt), model, cohort, version)

    @rule()
    def retry(self) -> None:
        ref = self.stories[-1].ref
        newer = replace(ref, attempt=ref.attempt + 1)
        self.open_story(newer, self.stories[-1].model, self.terms.roster, "")

    @rule(data=st.data())
    def next_round(self, data: st.DataObject) -> None:
        ref = self.stories[-1].ref
        model = f"m{ref.round}" if data.draw(st.booleans()) else self.stories[-1].model
        self.open_story(AttemptRef(ref.run, ref.round + 1, 1), model, self.terms.roster, "")

    # --- sites, one step at a time ------------------------------------------------------------------

    def story(self, data: st.DataObject) -> Story:
        """Mostly the newest; also all the others, whose messages are replayed."""
        back = data.draw(st.sampled_from([0, 0, 0, 1, 2]))
        return self.stories[-1 - min(back, len(self.stories) - 1)]

    def ask(self, name: str, kind: str, story: Story, *shown: Any) -> Any | None:
        """One step of an honest site; None if it refused or crashed."""
        site, facts = self.sites[name], story.facts(name)
        self.masking = (name, payload_hash(site.vector(story.ref)))
        try:
            said = getattr(site, kind)(facts, story.ref, *shown)
        except Crash:
            steps["crashes"] += 1
            said = None
        except BoxesRefusedError as error:
            site.crash = ""
            self.complain(name, story, error.accused)
            return None
        except (MaskingError, StaleRoundError):
            steps["refused"] += 1
            site.crash = ""
            return None
        finally:
            self.masking = None
        self.note_stored_reveal(name)
        if said is not None and kind in ("share", "mask", "complain", "reveal"):
            # Whoever is asked again gives the same bytes, before and after any crash.
            first = self.sent.setdefault((name, kind, facts.context), repr_of(said))
            assert first == repr_of(said)
        return said

    def complain(self, name: str, story: Story, accused: tuple[str, ...]) -> None:
        steps["complaints"] += 1
        if (said := self.ask(name, "complain", story, accused)) is not None:
            story.add("complaints", said)
            assert said.accused == accused

    def note_stored_reveal(self, name: str) -> None:
        """Shares count as given from the moment at which they are stored."""
        while self.sites[name].given:
            facts, reveal = self.sites[name].given.pop(0)
            ref = next(one.ref for one in self.stories if one.manifest == facts.manifest_hash)
            assert self.revealed.setdefault((name, ref), reveal) == reveal
            survivors = tuple(o.owner for o in reveal.shares if o.kind is ShareKind.SEED)
            view = (tuple(one.owner for one in reveal.shares), survivors)
            assert self.opened.setdefault(facts.context, view) == view, "two unmaskings"
            for one in reveal.shares:
                self.shares[facts.context, one.owner, one.kind].add(name)

    @rule(data=st.data(), crash=st.sampled_from(["", "", "", "before store", "before send"]))
    def site_step(self, data: st.DataObject, crash: str) -> None:
        """Any honest site, any step, shown any selection of what was ever said under a manifest."""
        story = self.story(data)
        honest = [name for name in self.honest if name in story.cohort]
        name = data.draw(st.sampled_from(honest))
        kind = data.draw(st.sampled_from(["join", "share", "mask", "agree", "reveal"]))
        self.sites[name].crash = crash
        try:
            self.step(data, name, kind, story)
        finally:
            self.sites[name].crash = ""

    def step(self, data: st.DataObject | None, name: str, kind: str, story: Story) -> None:
        def some(listed: Iterable[Any]) -> list[Any]:
            every = list(listed)
            if data is None or not every or data.draw(st.booleans()):
                return newest_of_each(every)
            picked = data.draw(st.lists(st.sampled_from(range(len(every))), max_size=7))
            return [every[at] for at in picked]

        match kind:
            case "join":
                if (said := self.ask(name, kind, story, story.model)) is not None:
                    story.add("keys", said)
            case "share":
                for box in self.ask(name, kind, story, some(story.keys)) or ():
                    story.add("boxes", box)
            case "mask":
                to_it = [box for box in story.boxes if box.recipient == name]
                if (done := self.ask(name, kind, story, some(to_it))) is not None:
                    story.add("inputs", done[0])
                    story.vectors[done[0].payload_hash] = done[1]
            case "agree":
                if (said := self.ask(name, kind, story, some(story.inputs))) is not None:
                    story.add("agreements", said)
                    known = self.views.setdefault((story.manifest, name), said.view)
                    assert known == said.view, "a site agreed to two things"
            case "reveal":
                self.ask(name, kind, story, some(story.agreements))

    @rule(
        data=st.data(),
        kind=st.sampled_from(["join", "share", "mask", "agree", "reveal"]),
        missing=st.integers(0, 12),
    )
    def all_sites_step(self, data: st.DataObject, kind: str, missing: int) -> None:
        """What an honest coordinator does, with a site that may drop out."""
        story = self.stories[-1]
        for at, name in enumerate(story.cohort):
            if at == missing:
                continue
            if name == CORRUPT:
                self.corrupt_plays_along(kind, story)
            else:
                self.step(None, name, kind, story)

    @rule(
        missing=st.integers(0, 12),
        until=st.sampled_from([2, 3, 4, 5, 5, 5]),
        crashes=st.integers(0, 7),
        when=st.sampled_from(["before store", "before send"]),
    )
    def whole_attempt(self, missing: int, until: int, crashes: int, when: str) -> None:
        """An honest run through the steps, from which a site drops after it shared; another one's process
        ends in a step, and it is asked again."""
        story = self.stories[-1]
        for at, kind in enumerate(["join", "share", "mask", "agree", "reveal"][:until]):
            for place, name in enumerate(story.cohort):
                if at >= 2 and place == missing:
                    continue
                if name == CORRUPT:
                    self.corrupt_plays_along(kind, story)
                    continue
                if at == crashes and name == self.honest[0]:
                    self.sites[name].crash = when
                    self.step(None, name, kind, story)
                    self.sites[name].crash = ""
                self.step(None, name, kind, story)
        self.open_sum(story)

    # --- the corrupt site ---------------------------------------------------------------------------

    def corrupt_plays_along(self, kind: str, story: Story) -> None:
        """It runs the same core without a memory, a store or scruples; its state is of this story."""
        state: SiteAttempt | None = getattr(story, "corrupt", None)
        key, facts = signing_key(CORRUPT), story.facts(CORRUPT)
        self.masking = None
        try:
            if kind == "join" and state is None:
                state, keys = core.begin(facts, key)
                story.add("keys", keys)
            elif state is None:
                return
            elif kind == "share":
                fresh = state.own_boxes == ()
                state, boxes = self.deal(story, state)
                for box in boxes if fresh else ():
                    story.add("boxes", self.spoilt(story, state, box))
            elif kind == "mask":
                to_it = [box for box in story.boxes if box.recipient == CORRUPT]
                vector = np.frombuffer(hashlib.sha512(b"any").digest() * 3, np.uint32)[:37].copy()
                content = payload_hash(vector)
                self.masking = (f"{CORRUPT} {story.manifest.hex()}", content)
                state, masked = core.mask(state, newest_of_each(to_it), vector, key)
                story.add("inputs", masked)
                story.vectors[masked.payload_hash] = vector
                story.corrupt_vector = content  # type: ignore[attr-defined]
            elif kind == "agree":
                state, agreement = core.agree(state, newest_of_each(story.inputs), key)
                story.add("agreements", agreement)
            elif kind == "reveal":
                state, reveal = core.reveal(state, newest_of_each(story.agreements), key)
                story.corrupt_reveal = reveal  # type: ignore[attr-defined]
        except MaskingError:
            steps["refused"] += 1
        finally:
            self.masking = None
        story.corrupt = state  # type: ignore[attr-defined]

    def deal(self, story: Story, state: SiteAttempt) -> tuple[SiteAttempt, tuple[Box, ...]]:
        """Its boxes; if it so decided, with shares of another secret, all hashes of which fit."""
        honest = core.split
        if story.dealt_another_secret:
            core.split = lambda secret, t, n: honest(bytes(32), t, n)
        try:
            return core.share(state, newest_of_each(story.keys), signing_key(CORRUPT))
        finally:
            core.split = honest

    def spoilt(self, story: Story, state: SiteAttempt, box: Box) -> Box:
        """Junk of the right form in one field, signed: nobody but the recipient can tell."""
        where = story.junk.get(box.recipient)
        if where is None or not getattr(box, where):
            return box
        story.spoilt.add(box.recipient)
        made = replace(box, **{where: bytes(len(getattr(box, where)))})
        return signed(made, state.context, signing_key(CORRUPT))

    @rule(
        junk=st.tuples(*[st.sampled_from(["", "", "", *JUNK])] * 5),
        another_secret=st.sampled_from([False, False, False, True]),
        lies=st.booleans(),
        missing=st.integers(2, 9),
        next_round=st.booleans(),
    )
    def attempt_with_a_saboteur(
        self,
        junk: tuple[str, ...],
        another_secret: bool,
        lies: bool,
        missing: int,
        next_round: bool,
    ) -> None:
        """An honest coordinator, and a corrupt site that sends junk, deals badly, or accuses everybody.

        Whoever gets junk says so of that site and of nobody else; no honest site is ever caught.
        """
        ref, model = self.stories[-1].ref, self.stories[-1].model
        later = replace(ref, attempt=ref.attempt + 1)
        if next_round:
            later, model = AttemptRef(ref.run, ref.round + 1, 1), f"m{ref.round}"
        self.open_story(later, model, self.terms.roster, f"manifest {len(self.stories)}")
        story = self.stories[-1]
        fields = zip(self.terms.roster, junk, strict=False)
        story.junk = {name: field for name, field in fields if field}
        story.dealt_another_secret = another_secret
        for kind in ("join", "share", "mask", "agree", "reveal"):
            for place, name in enumerate(story.cohort):
                if kind not in ("join", "share") and place == missing:
                    continue
                if name != CORRUPT:
                    self.step(None, name, kind, story)
                elif kind == "mask" and lies:
                    self.corrupt_accuses_everybody(story)
                else:
                    self.corrupt_plays_along(kind, story)
        for said in self.by_honest(story):
            assert said.accused == (CORRUPT,) and said.site in story.spoilt
        assert not story.spoilt & {said.site for said in story.inputs}
        self.open_sum(story)

    def corrupt_accuses_everybody(self, story: Story) -> None:
        senders = {box.sender for box in story.boxes} - {CORRUPT}
        if CORRUPT in story.cohort and senders:
            lie = Complaint(CORRUPT, tuple(sorted(senders)))
            story.add("complaints", signed(lie, collected_context(story), signing_key(CORRUPT)))

    @precondition(lambda self: any(one.agreements for one in self.stories))
    @rule(data=st.data())
    def corrupt_signs_what_another_agreed_to(self, data: st.DataObject) -> None:
        """Every view gets its signature: the one that makes two sums, if the threshold were too low."""
        story = self.story(data)
        if CORRUPT not in story.cohort or not story.agreements:
            return
        copied = data.draw(st.sampled_from(story.agreements))
        context = collected_context(story)
        forged = signed(replace(copied, site=CORRUPT), context, signing_key(CORRUPT))
        story.add("agreements", forged)

    @precondition(lambda self: any(one.inputs for one in self.stories))
    @rule(data=st.data(), some=st.integers(3, 5))
    def corrupt_signs_an_input(self, data: st.DataObject, some: int) -> None:
        """Of other peers, or of another vector than before."""
        story = self.story(data)
        if CORRUPT not in story.cohort or not story.inputs:
            return
        said = MaskedInput(CORRUPT, story.cohort[:some], bytes(32))
        story.add("inputs", signed(said, collected_context(story), signing_key(CORRUPT)))

    @precondition(lambda self: len(self.stories[-1].inputs) >= 3)
    @rule(data=st.data())
    def split_the_survivors(self, data: st.DataObject) -> None:
        """Two survivor sets, each honest site shown one of them; the corrupt site signs both."""
        story = self.stories[-1]
        every = newest_of_each(story.inputs)
        left_out = data.draw(st.tuples(st.sampled_from([*every, None]), st.sampled_from(every)))
        sides = [[said for said in every if said is not out] for out in left_out]
        shown = {name: data.draw(st.integers(0, 1)) for name in story.cohort if name != CORRUPT}
        views: dict[int, list[Any]] = {0: [], 1: []}
        for name, side in shown.items():
            if (said := self.ask(name, "agree", story, sides[side])) is not None:
                story.add("agreements", said)
                views[side].append(said)
        for side in (0, 1):
            if views[side] and CORRUPT in story.cohort:
                forged = replace(views[side][0], site=CORRUPT)
                context = collected_context(story)
                views[side].append(signed(forged, context, signing_key(CORRUPT)))
        for name, side in shown.items():
            self.ask(name, "reveal", story, views[side])

    # --- sums ---------------------------------------------------------------------------------------

    def open_sum(self, story: Story) -> None:
        """What an honest coordinator would do with all that it has: an exact sum, or nothing."""
        collection = Collection(story.facts(""))
        try:
            for keys in story.keys:
                collection = collection.take_keys(keys)
            collection = collection.close_step()
            for name in collection.keys:
                boxes = [box for box in story.boxes if box.sender == name]
                if boxes:
                    collection = collection.take_boxes(name, boxes)
            collection = collection.close_step()
            for masked in newest_of_each(story.inputs):
                collection = collection.take_input(masked)
            for complaint in story.complaints:
                if complaint.site not in collection.inputs:
                    collection = collection.take_complaint(complaint)
            assert not collection.waiting_for & set(collection.complaints)
            if any(name in collection.caught for name in self.honest):
                # Only who lies to them makes honest sites accuse each other.
                assert any(set(said.accused) != {CORRUPT} for said in self.by_honest(story))
            steps["caught"] += CORRUPT in collection.caught
            collection = collection.close_step()
            for agreement in newest_of_each(story.agreements):
                collection = collection.take_agreement(agreement)
            collection = collection.close_step()
            for name in collection.agreements:
                reveal = self.revealed.get((name, story.ref))
                if name == CORRUPT:
                    reveal = getattr(story, "corrupt_reveal", None)
                if reveal is not None:
                    collection = collection.take_reveal(reveal)
            collection = collection.close_step()
            assert collection.step is Step.DONE
            vectors = {
                name: story.vectors[said.payload_hash]
                for name, said in collection.inputs.items()
                if said.payload_hash in story.vectors
            }
            if len(vectors) < len(collection.inputs):
                return  # A corrupt input whose vector nobody made.
            total = opened_sum(collection, vectors)
        except BadShareError as error:
            assert error.caught == CORRUPT
            return
        except FedPalmError:
            return
        expected = np.zeros_like(total)
        for name in collection.survivors:
            if name == CORRUPT:
                expected += np.frombuffer(hashlib.sha512(b"any").digest() * 3, np.uint32)[:37]
            else:
                expected += self.sites[name].vector(story.ref)
        np.testing.assert_array_equal(total, expected)
        assert not set(collection.survivors) & set(collection.complaints)
        steps["sums"] += 1

    def by_honest(self, story: Story) -> list[Complaint]:
        return [said for said in story.complaints if said.site != CORRUPT]

    @rule(data=st.data())
    def try_to_open(self, data: st.DataObject) -> None:
        self.open_sum(self.story(data))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """A site's process ends between two steps: only what is on its disk comes back."""
        name = data.draw(st.sampled_from(self.honest))
        self.sites[name] = Site(name, disk=dict(self.sites[name].disk))

    # --- what must hold -----------------------------------------------------------------------------

    def can_open(self, context: bytes, owner: str, kind: ShareKind) -> bool:
        """With the corrupt site's share of everything on top of what honest sites gave."""
        honest = self.shares.get((context, owner, kind), set()) - {CORRUPT}
        return len(honest) + 1 >= self.terms.threshold

    @invariant()
    def never_both_secrets_of_a_peer(self) -> None:
        for context, owner, kind in list(self.shares):
            if owner != CORRUPT and kind is ShareKind.SEED and self.can_open(context, owner, kind):
                assert not self.can_open(context, owner, ShareKind.MASK)

    @invariant()
    def no_site_gives_both_shares_of_a_peer(self) -> None:
        given = Counter(
            (context, owner, by)
            for (context, owner, _), holders in self.shares.items()
            for by in holders
        )
        assert all(count == 1 for count in given.values())

    @invariant()
    def never_two_sums_of_one_round_or_model(self) -> None:
        by_round: defaultdict[tuple[str, int], set[Any]] = defaultdict(set)
        by_model: defaultdict[str, set[Any]] = defaultdict(set)
        for story in self.stories:
            context = story.facts("").context
            opened = frozenset(
                owner for owner in self.honest if self.can_open(context, owner, ShareKind.SEED)
            )
            if opened:
                by_round[story.ref.run, story.ref.round].add((context, opened))
                by_model[story.model].add((context, opened))
        assert all(len(sums) == 1 for sums in (*by_round.values(), *by_model.values()))

    @invariant()
    def no_sum_of_a_group_hides_one_site_among_fewer_than_it_must(self) -> None:
        """Of any view under which a site gave one share."""
        for _, survivors in self.opened.values():
            for _, members in self.terms.groups:
                assert len(set(members) & set(survivors)) >= self.terms.group_survivors

    @invariant()
    def a_step_was_taken(self) -> None:
        steps["taken"] += 1


def newest_of_each(listed: Iterable[Any]) -> list[Any]:
    """One message of each sender, the newest."""
    found: dict[str, Any] = {}
    for one in listed:
        found[getattr(one, "site", None) or one.sender] = one
    return list(found.values())


def collected_context(story: Story) -> bytes:
    """Under which the later steps are signed, for the keys that came last."""
    return core.keys_context(story.facts("").context, newest_of_each(story.keys))


def repr_of(said: Any) -> Any:
    """Comparable: a masked input comes with its vector."""
    if isinstance(said, tuple) and said and isinstance(said[0], MaskedInput):
        return said[0], said[1].tobytes()
    return said


def test_no_order_of_events_tells_more_than_one_sum() -> None:
    started = time.monotonic()
    before = dict(steps)
    phases = [Phase.generate] if FUZZ_STEPS else list(settings().phases)
    examples = 40
    while True:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            MaskingUnderFire,
            settings=settings(
                max_examples=max(examples, FUZZ_STEPS // 100),
                stateful_step_count=40,
                phases=phases,
                suppress_health_check=list(HealthCheck),
                database=None if FUZZ_STEPS else settings().database,
            ),
        )
        done = {name: steps[name] - before[name] for name in steps}
        if done["taken"] >= FUZZ_STEPS:
            break
    print(f"secagg machine: {done} in {time.monotonic() - started:.1f} s")
    if FUZZ_STEPS:
        # A run in which nothing happens proves nothing.
        assert all(count > 0 for count in done.values()), done
