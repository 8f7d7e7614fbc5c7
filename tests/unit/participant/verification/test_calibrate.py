"""A threshold keeps its target on its pairs, says how sure that is, and refuses what it cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedpalm.errors import ConfigError, DataError, NotCalibratedError
from participant.verification.calibrate import (
    DevelopmentPairs,
    _key,
    development_pairs,
    require_enough,
)
from participant.verification.sensor import Sample
from participant.verification.thresholds import Threshold
from participant.verification.verifier import Verifier
from tests.support.verification import VerifyingSite, palm


def test_a_threshold_is_stored_with_all_that_is_known_of_it(site: VerifyingSite):
    found = site.verifier.calibrate(0.02)
    assert [one.mode for one in found] == ["closed", "open"]
    for one in found:
        assert one.fmr <= one.target_fmr == 0.02
        assert one.fmr_interval[0] <= one.fmr <= one.fmr_interval[1]
        assert one.fnmr_interval[0] <= one.fnmr <= one.fnmr_interval[1]
        assert (one.identities, one.images) == (12, 3)
        # Each of 12 people has two probes, which claim every other name.
        assert (one.genuine_pairs, one.impostor_pairs) == (24, 24 * 11)
        assert one.model == site.verifier.model_id.hash
        assert one.calibrated_ms == site.store.now_ms()
        assert Threshold.from_json(one.to_json()) == one
    assert Verifier(site.config, site.store).thresholds.all() == found


def test_it_stays_until_the_next_calibration(ready: VerifyingSite):
    before = ready.verifier.thresholds.find("open")
    ready.clock.advance(10)
    ready.verifier.enrol("anna", [palm(100)])
    ready.verifier.verify("anna", palm(101))
    assert ready.verifier.thresholds.find("open") == before
    ready.verifier.calibrate(0.05, modes=["closed"])
    assert ready.verifier.thresholds.find("open") == before
    ready.verifier.calibrate(0.05)
    after = ready.verifier.thresholds.find("open")
    assert after is not None and before is not None
    assert (after.target_fmr, after.calibrated_ms > before.calibrated_ms) == (0.05, True)
    assert after.value <= before.value


def test_a_target_that_the_pairs_cannot_show_is_refused(ready: VerifyingSite):
    before = ready.verifier.thresholds.all()
    with pytest.raises(DataError, match=r"264 comparisons.*3,000 are needed") as refused:
        ready.verifier.calibrate(1e-3)
    assert "--fmr 0.012" in refused.value.next_step
    assert refused.value.safe == "what is in force stays: closed, open"
    assert ready.verifier.thresholds.all() == before
    ready.verifier.calibrate(0.012)


@pytest.mark.parametrize("fmr", [0.0, 1.0, -1.0, float("nan")])
def test_a_target_that_is_no_rate_is_refused(site: VerifyingSite, fmr):
    with pytest.raises(ConfigError):
        site.verifier.calibrate(fmr)


def test_a_weak_rate_has_to_be_meant(ready: VerifyingSite):
    before = ready.verifier.thresholds.all()
    with pytest.raises(ConfigError, match="90% of strangers") as refused:
        ready.verifier.calibrate(0.9)
    assert "--accept-weak" in refused.value.next_step
    assert ready.verifier.thresholds.all() == before
    ready.verifier.calibrate(0.1)
    found = ready.verifier.calibrate(0.9, accept_weak=True)
    assert ready.verifier.thresholds.all() == found and found[0].target_fmr == 0.9


def test_the_mode_that_can_show_a_rate_is_named_and_the_rate_is_one_that_both_can(
    site: VerifyingSite, monkeypatch
):
    def fewer_open(config, model, mode):
        pairs = development_pairs(config, model, mode)
        return pairs if mode == "closed" else replace(pairs, probes=pairs.probes[:3])

    monkeypatch.setattr("participant.verification.verifier.development_pairs", fewer_open)
    with pytest.raises(DataError, match=r"open: .* 33 comparisons") as refused:
        site.verifier.calibrate(0.02)
    assert "closed" not in refused.value.what
    assert "--fmr 0.091 at the least" in refused.value.next_step
    assert "--mode closed" in refused.value.next_step
    assert refused.value.safe == "no threshold is in force: nobody is verified"
    with pytest.raises(DataError) as refused:
        site.verifier.calibrate(0.002)
    assert "closed: " in refused.value.what and "open: " in refused.value.what
    assert "--fmr 0.091" in refused.value.next_step and "--mode" not in refused.value.next_step
    site.verifier.calibrate(0.091)
    site.verifier.calibrate(0.02, modes=["closed"])


def test_a_site_without_images_cannot_calibrate(site: VerifyingSite):
    verifier = Verifier(site.config.model_copy(update={"data": None}), site.store)
    with pytest.raises(ConfigError, match=r"no \[data\]"):
        verifier.calibrate(0.02)


def test_nobody_is_probed_and_enrolled_with_one_image(site: VerifyingSite):
    for mode in ("closed", "open"):
        pairs = development_pairs(site.config, site.verifier.stored_model, mode)
        assert not set(pairs.gallery) & set(pairs.probes)
        assert {one.identity for one in pairs.gallery} == {one.identity for one in pairs.probes}
        assert pairs.claims("random") * 0.02 >= 3


def test_the_two_modes_share_nobody(site: VerifyingSite):
    closed, opened = (
        development_pairs(site.config, site.verifier.stored_model, mode)
        for mode in ("closed", "open")
    )
    assert not set(closed.people) & set(opened.people)


def test_the_rate_that_was_promised_is_kept_in_use(ready: VerifyingSite):
    """80 claims by strangers whom no calibration saw, under keys that none saw."""
    ready.set(attempts_per_minute=10_000, subject_attempts_per_minute=10_000, max_failures=100)
    for person in range(300, 305):
        ready.verifier.enrol(f"n{person}", [palm(person, touch) for touch in range(3)])
    limit = ready.verifier.thresholds.require("open", ready.verifier.model_id.hash)
    false = [
        ready.verifier.verify(f"n{person}", palm(stranger, 0)).match
        for person in range(300, 305)
        for stranger in range(400, 416)
    ]
    assert np.mean(false) <= max(3 * limit.fmr_interval[1], 3 / len(false))


def test_the_bound_of_an_identification_grows_with_the_gallery(thresholds):
    one = replace(thresholds[0], fmr_interval=(0.0, 0.01))
    assert one.fpir_bound(0) == 0.0
    assert one.fpir_bound(7) == pytest.approx(0.07)
    assert one.fpir_bound(1000) == 1.0


def test_no_threshold_is_no_decision(site: VerifyingSite):
    with pytest.raises(NotCalibratedError, match="has not been set") as refused:
        site.verifier.thresholds.require("open", site.verifier.model_id.hash)
    assert "calibrate --mode open" in refused.value.next_step


def test_two_signatures_never_share_a_key_however_they_are_named():
    pairs = [("a/b", "c"), ("a", "b/c"), ("a/b/c", ""), ("a", ""), ("", "a")]
    assert len({_key(0, *pair) for pair in pairs}) == len(pairs)
    assert _key(0, "a", "b") != _key(1, "a", "b")


def test_where_nobody_could_claim_a_kind_the_kinds_that_can_be_claimed_are_named():
    """Everybody has the same name, so whoever claims to be somebody else forges simply."""

    def samples(count: int) -> tuple[Sample, ...]:
        return tuple(
            Sample(Path(f"{who}-{at}.png"), f"writer {who}", "the same")
            for who in range(6)
            for at in range(count)
        )

    pairs = DevelopmentPairs("open", samples(1), samples(2))
    with pytest.raises(DataError, match="from 0 comparisons") as refused:
        require_enough([pairs], 0.1, "random", safe="")
    assert "--against simple" in refused.value.next_step
    assert "--against skilled" not in refused.value.next_step
