"""A run in memory: its machine, its plan and what follows from it, who has agreed, and its chain."""

from __future__ import annotations

from fedpalm.errors import NotOnRosterError, PlanNotApprovedError, StateError
from fedpalm.methods.contribution import codec_for, masking_terms
from fedpalm.pki.statement import SignedStatement
from fedpalm.rounds.agreement import PlanAnswer
from fedpalm.rounds.manifest import ManifestHead, RoundManifest
from fedpalm.rounds.run import Run
from fedpalm.secagg.codec import FixedPointCodec
from fedpalm.secagg.terms import SecAggTerms

from .run_records import StoredRun


class ConductedRun:
    """What the store says of a run, kept up to date by the conductor after every transaction."""

    def __init__(self, stored: StoredRun) -> None:
        self.run_id, self.plan = stored.run_id, stored.plan
        self.run: Run = stored.run
        self.codec: FixedPointCodec = codec_for(stored.plan)
        self.masking: SecAggTerms | None = masking_terms(stored.plan)
        self.roster = frozenset(stored.plan.roster)
        self.offer = stored.offer
        self.answers = {site: PlanAnswer.read(one) for site, one in stored.answers.items()}
        self.manifest: SignedStatement | None = None
        self.head = ManifestHead.start(stored.plan, stored.run_id)
        if stored.manifest is not None:
            self.sealed(stored.manifest)

    def sealed(self, manifest: SignedStatement) -> None:
        """This manifest is stored: the newest of the run."""
        self.manifest = manifest
        self.head = ManifestHead.after(RoundManifest.read(manifest))

    def answered(self, kind: str) -> list[str]:
        """Sites whose newest answer is ``approve`` or ``refuse``, sorted."""
        return sorted(site for site, one in self.answers.items() if one.answer == kind)

    def is_news(self, answer: PlanAnswer) -> bool:
        """Does it replace the site's answer so far? The very same one again does not.

        Raises:
            StateError: an answer of this number or a higher one has come, and said something else.
        """
        known = self.answers.get(answer.site)
        if known is None or answer.number > known.number:
            return True
        if answer == known:
            return False
        raise StateError(
            f"site {answer.site} has given answer {known.number} ({known.answer}) to the plan of run "
            f"{self.run_id}; answer {answer.number} is not newer",
            safe=f"answer {known.number} stays in force",
            next_step="answer anew: fedpalm-participant approve, or refuse",
        )

    def require_roster(self, site: str) -> None:
        """Raises NotOnRosterError."""
        if site not in self.roster:
            raise NotOnRosterError(f"site {site} is not on the roster of run {self.run_id}")

    def require_approval(self, site: str) -> None:
        """Raises PlanNotApprovedError unless the site's newest answer is yes."""
        known = self.answers.get(site)
        if known is not None and known.answer == "approve":
            return
        said = "has not answered" if known is None else "has refused"
        raise PlanNotApprovedError(
            f"site {site} {said} the plan of run {self.run_id}",
            safe="it takes no part, and nothing of it was stored",
            next_step="fedpalm-participant review, then approve",
        )
