"""One-run canaries on the real path, small: what leaks is shown, what does not is not."""

from __future__ import annotations

from fedpalm.attack.bugs import faulty_paths
from fedpalm.attack.canaries import CONFIDENCE, DELTA, CanaryAudit
from fedpalm.attack.one_run import Guesses, epsilon_at_least
from fedpalm.attack.probe import TrainingPath

SMALL = CanaryAudit(canaries=600, each=60)


def test_the_claim_of_the_standard_audit_is_at_most_two_with_five_thousand_canaries():
    assert CanaryAudit().canaries == 5000
    assert 1.5 < CanaryAudit().claimed <= 2.0


def test_an_honest_path_is_not_accused():
    finding, figures = SMALL.run(TrainingPath(), 1)
    assert finding.p_value > 0.01
    assert figures["epsilon_lower_bound"] < figures["claimed_epsilon"]


def test_without_noise_every_guess_is_right_and_the_bound_passes_the_claim():
    finding, figures = SMALL.run(faulty_paths()["no noise"], 1)
    assert figures["right"] == figures["guesses"] == 120
    assert figures["epsilon_lower_bound"] > figures["claimed_epsilon"]
    assert finding.p_value < 1 - CONFIDENCE


def test_the_figures_say_what_the_bound_was_made_of():
    _, figures = SMALL.run(TrainingPath(), 2)
    found = Guesses(figures["canaries"], figures["guesses"], figures["right"])
    assert figures["delta"] == DELTA
    assert figures["epsilon_lower_bound"] == epsilon_at_least(found, DELTA, CONFIDENCE)
