"""What a demo is about, palms or signatures: where people, comparisons, figures and the report differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...plan import Plan
from .figures import OpenReport, SiteReport
from .settings import DemoSettings
from .workspace import Workspace

if TYPE_CHECKING:
    from .federation import Federation

Chosen = Callable[[Workspace], list[str]]
"""Who is at which site, as what writes it down: a list a site. Returns the files."""


@dataclass(frozen=True)
class Newcomer:
    """Somebody whom nobody trained on: images to enrol with, and claims to be them, by name."""

    enrolled: tuple[Path, ...]
    claims: Mapping[str, Path]
    forgery_kind: str = ""


@dataclass(frozen=True)
class Measured:
    """A subject's part of the report."""

    sites: tuple[SiteReport, ...]
    open_set: OpenReport
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Subject(Protocol):
    """One of the two; :func:`subject_of` has them."""

    def largest_fit(self, source: str, sites: int) -> int:
        """How many training identities a site a real source allows. Raises DataError."""

    def choose(self, settings: DemoSettings) -> Chosen:
        """Who is where, nobody at two sites; every image has been looked at. Raises DataError."""

    def compare(
        self,
        workspace: Workspace,
        settings: DemoSettings,
        contender: str,
        told: Callable[[int], None],
    ) -> dict[str, Any]:
        """Train a contender in this process, say every round to ``told``, and return what it found."""

    def evaluate(self, federation: Federation, workspace: Workspace, plan: Plan) -> None:
        """Every site evaluates at home; what else is measured, by the demo. Steps of the journal."""

    def measured(self, workspace: Workspace, plan: Plan, others: Mapping[str, Any]) -> Measured:
        """Of the journal, and of what the comparisons (``others``) found."""

    def newcomer(self, workspace: Workspace, settings: DemoSettings, site: str) -> Newcomer:
        """An open identity of ``site``, for another site to enrol."""

    def sample(self, workspace: Workspace, settings: DemoSettings) -> bytes | None:
        """A PNG of training images; None if they are of people."""


def subject_of(settings: DemoSettings) -> Subject:
    """Loads torch and imaging libraries."""
    if settings.modality == "signature":
        from .signatures import Signatures

        return Signatures()
    from .palms import Palms

    return Palms()
