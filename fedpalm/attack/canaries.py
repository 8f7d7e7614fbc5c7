"""One-run canaries: people of whom a fair coin decides whether they are there, each with its own direction.

All take part in every step (q = 1): that is where a run says most about a person for its epsilon. What
draws do is tested directly (:mod:`.direct`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..plan import PrivacySettings
from ..privacy.accounting import Charge, charged_epsilon
from .findings import Finding
from .one_run import Guesses, epsilon_at_least, guess, p_value
from .probe import TrainingPath

DELTA = 1e-5
CONFIDENCE = 0.95
_GRADIENT = 100.0


@dataclass(frozen=True)
class CanaryAudit:
    """``canaries`` people, of whom 2 ``each`` coins are guessed; the noise makes epsilon at most 2."""

    canaries: int = 5000
    each: int = 100
    steps: int = 2
    noise_multiplier: float = 2.9

    @property
    def claimed(self) -> float:
        """Epsilon that the account charges for the run, at DELTA."""
        return charged_epsilon([Charge(self.noise_multiplier, 1.0, self.steps)], DELTA)

    def run(self, path: TrainingPath, seed: int) -> tuple[Finding, dict[str, Any]]:
        """Train once with the canaries that the coins let in; guess the coins."""
        privacy = PrivacySettings(
            unit="subject",
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0,
            population=self.canaries // 2,
            steps=self.steps,
        )
        included = np.random.default_rng(seed).random(self.canaries) < 0.5
        people = [[(int(at), _GRADIENT)] for at in np.flatnonzero(included)]
        scores = path.released(people, self.canaries, privacy).sum(axis=0)
        found = guess(scores, included, self.each)
        return self._judged(found)

    def _judged(self, found: Guesses) -> tuple[Finding, dict[str, Any]]:
        claimed = self.claimed
        proved = epsilon_at_least(found, DELTA, CONFIDENCE)
        finding = Finding(
            "canaries",
            "one-run canaries",
            p_value(found, claimed, DELTA),
            f"epsilon >= {proved:.2f} ({CONFIDENCE:.0%}), {found.right} of {found.made} right",
            f"epsilon <= {claimed:.2f}",
        )
        figures = {
            "canaries": found.canaries,
            "guesses": found.made,
            "right": found.right,
            "claimed_epsilon": claimed,
            "delta": DELTA,
            "epsilon_lower_bound": proved,
            "confidence": CONFIDENCE,
        }
        return finding, figures
