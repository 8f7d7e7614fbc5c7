"""Rates and lock-outs: what is refused, for how long, and that a refusal says nothing of an image."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.errors import (
    DataError,
    LockedOutError,
    NotFoundError,
    StaleReferenceError,
    TooManyAttemptsError,
)
from participant.config import VerificationSettings
from participant.verification.attempts import Attempts, Outcome
from tests.support.verification import VerifyingSite, palm

MINUTE_S = 61


def of(site: VerifyingSite, **settings) -> Attempts:
    often = {"attempts_per_minute": 1000, "subject_attempts_per_minute": 1000}
    return Attempts(site.store, VerificationSettings(**{**often, **settings}))


def tried(attempts: Attempts, outcome: Outcome, subject: str | None = "anna", caller: str = ""):
    with attempts.attempt("verify" if subject else "identify", subject, caller) as attempt:
        attempt.outcome = outcome


def failed(attempts: Attempts, times: int, subject: str = "anna"):
    for _ in range(times):
        tried(attempts, Outcome.NON_MATCH, subject)


def test_after_the_last_allowed_failure_a_person_is_locked_out(site: VerifyingSite):
    attempts = of(site, max_failures=3, lockout_s=60)
    failed(attempts, 3)
    with pytest.raises(LockedOutError):
        tried(attempts, Outcome.MATCH)
    tried(attempts, Outcome.MATCH, "bert")
    site.clock.advance(60.1)
    tried(attempts, Outcome.MATCH)


def test_each_further_failure_doubles_the_pause_until_a_match(site: VerifyingSite):
    attempts = of(site, max_failures=2, lockout_s=100)
    failed(attempts, 2)
    for pause in (100, 200, 400):
        site.clock.advance(pause - 1)
        with pytest.raises(LockedOutError):
            tried(attempts, Outcome.NON_MATCH)
        site.clock.advance(1.1)
        failed(attempts, 1)
    site.clock.advance(800.1)
    tried(attempts, Outcome.MATCH)
    failed(attempts, 1)
    failed(attempts, 1)
    with pytest.raises(LockedOutError):
        failed(attempts, 1)


def test_a_pause_is_a_day_at_the_most(site: VerifyingSite):
    attempts = of(site, max_failures=1, lockout_s=86400)
    failed(attempts, 1)
    site.clock.advance(86400.1)
    failed(attempts, 1)
    site.clock.advance(86400.1)
    tried(attempts, Outcome.MATCH)


def test_an_attempt_that_is_cut_off_counts_as_failed(site: VerifyingSite):
    attempts = of(site, max_failures=2)
    for _ in range(2):
        # Nobody is left to say how it ended: kill -9.
        attempts._begin("verify", attempts._mark("anna"), "")
    with pytest.raises(LockedOutError):
        tried(attempts, Outcome.MATCH)


def test_many_attempts_at_once_are_not_more_attempts(site: VerifyingSite):
    attempts = of(site, max_failures=3)
    with (
        attempts.attempt("verify", "anna"),
        attempts.attempt("verify", "anna"),
        attempts.attempt("verify", "anna"),
        pytest.raises(LockedOutError),
    ):
        tried(attempts, Outcome.MATCH)


@pytest.mark.parametrize("error", [DataError("blurred"), StaleReferenceError("stale")])
def test_what_is_not_the_persons_fault_is_no_failure_of_theirs(site: VerifyingSite, error):
    attempts = of(site, max_failures=2)
    failed(attempts, 1)
    for _ in range(3):
        with pytest.raises(type(error)), attempts.attempt("verify", "anna"):
            raise error
    failed(attempts, 1)
    with pytest.raises(LockedOutError):
        failed(attempts, 1)


def test_a_locked_out_attempt_tells_nothing_of_the_image(ready: VerifyingSite, monkeypatch):
    ready.set(max_failures=1)
    ready.verifier.enrol("anna", [palm(100, 0)])
    ready.verifier.verify("anna", palm(101, 0))
    monkeypatch.setattr(
        "participant.verification.palms.read_roi", lambda source: pytest.fail("it was looked at")
    )
    said = set()
    for image in (palm(100, 1), palm(101, 1), np.zeros((1, 1), np.uint8)):
        with pytest.raises(LockedOutError) as refused:
            ready.verifier.verify("anna", image)
        said.add(str(refused.value))
    assert len(said) == 1 and not any(c.isdigit() for c in said.pop())


def test_who_is_locked_out_is_not_identified_either(ready: VerifyingSite):
    ready.set(max_failures=1)
    ready.verifier.enrol("anna", [palm(100, 0)])
    assert ready.verifier.identify(palm(100, 1)).subject == "anna"
    ready.verifier.verify("anna", palm(101, 0))
    found = ready.verifier.identify(palm(100, 1))
    assert (found.subject, found.left_out) == (None, 1)


def test_somebody_at_the_site_can_unlock(site: VerifyingSite):
    attempts = of(site, max_failures=1)
    failed(attempts, 1)
    attempts.unlock("anna")
    tried(attempts, Outcome.MATCH)
    with pytest.raises(NotFoundError):
        attempts.unlock("anna")


def test_who_is_locked_out_is_told_so_whatever_the_rates(site: VerifyingSite):
    attempts = Attempts(
        site.store,
        VerificationSettings(max_failures=2, subject_attempts_per_minute=2, attempts_per_minute=2),
    )
    failed(attempts, 2)
    with pytest.raises(LockedOutError):
        tried(attempts, Outcome.MATCH)


def test_an_unlock_lets_a_person_be_tried_at_once_and_as_often_as_anybody(site: VerifyingSite):
    attempts = Attempts(site.store, VerificationSettings())
    tried(attempts, Outcome.MATCH)
    failed(attempts, 5)
    with pytest.raises(LockedOutError):
        tried(attempts, Outcome.MATCH)
    attempts.unlock("anna")
    for _ in range(6):
        tried(attempts, Outcome.MATCH)
    with pytest.raises(TooManyAttemptsError, match="for this person"):
        tried(attempts, Outcome.MATCH)
    tried(attempts, Outcome.MATCH, "bert")


def test_an_unlock_lifts_no_limit_but_the_persons_own(site: VerifyingSite):
    attempts = Attempts(
        site.store, VerificationSettings(application_attempts_per_minute=5, attempts_per_minute=6)
    )
    for _ in range(5):
        tried(attempts, Outcome.NON_MATCH, "anna", "door")
    attempts.unlock("anna")
    with pytest.raises(TooManyAttemptsError, match="by this application"):
        tried(attempts, Outcome.MATCH, "anna", "door")
    tried(attempts, Outcome.MATCH)
    with pytest.raises(TooManyAttemptsError, match="at this site"):
        tried(attempts, Outcome.MATCH)


def test_attempts_have_a_rate_each_for_a_person_an_application_and_in_all(site: VerifyingSite):
    def limited(**settings):
        return of(site, max_failures=100, **settings)

    by_person = limited(subject_attempts_per_minute=2)
    for _ in range(2):
        tried(by_person, Outcome.MATCH)
    with pytest.raises(TooManyAttemptsError):
        tried(by_person, Outcome.MATCH)
    tried(by_person, Outcome.MATCH, "bert")

    by_application = limited(application_attempts_per_minute=2)
    for number in range(2):
        tried(by_application, Outcome.MATCH, f"p{number}", "door")
    with pytest.raises(TooManyAttemptsError):
        tried(by_application, Outcome.MATCH, "p9", "door")
    tried(by_application, Outcome.MATCH, "p9", "gate")

    in_all = limited(attempts_per_minute=6)
    with pytest.raises(TooManyAttemptsError):
        tried(in_all, Outcome.MATCH, None)
    site.clock.advance(MINUTE_S)
    tried(in_all, Outcome.MATCH, None)


def test_refusals_are_counted_and_hold_nobody_up(site: VerifyingSite):
    attempts = of(site, attempts_per_minute=1)
    tried(attempts, Outcome.MATCH)
    for _ in range(5):
        with pytest.raises(TooManyAttemptsError):
            tried(attempts, Outcome.MATCH)
    assert attempts.counts() == {"refused_too_many_attempts": 5, "verify_match": 1}
    assert len(site.store.rows("SELECT * FROM verification_attempts")) == 1
    site.clock.advance(MINUTE_S)
    tried(attempts, Outcome.MATCH)


def test_the_log_names_nobody_and_has_no_score(ready: VerifyingSite):
    ready.verifier.enrol("anna", [palm(100, 0)])
    ready.verifier.verify("anna", palm(100, 1), caller="door")
    ready.verifier.verify("anna", palm(101, 1), caller="door")
    rows = ready.store.rows("SELECT * FROM verification_attempts")
    assert [row["outcome"] for row in rows] == ["match", "non_match"]
    assert {row["caller"] for row in rows} == {"door"}
    told = {"seq", "at_ms", "kind", "subject", "caller", "outcome", "excused"}
    assert set(rows[0].keys()) == told
    (mark,) = {bytes(row["subject"]) for row in rows}
    assert len(mark) == 32 and b"anna" not in mark


def test_another_sites_vault_gives_another_mark(ready: VerifyingSite, tmp_path):
    other = VerifyingSite(ready.world, "west")
    assert of(other)._mark("anna") != of(ready)._mark("anna")
    other.store.close()


def test_old_rows_go(site: VerifyingSite):
    attempts = of(site, keep_attempts_days=1)
    tried(attempts, Outcome.MATCH)
    site.clock.advance(2 * 86400)
    tried(attempts, Outcome.MATCH)
    assert len(site.store.rows("SELECT * FROM verification_attempts")) == 1
