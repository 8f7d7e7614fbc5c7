"""What a demo found, as data: the content of ``report.json``. Rates are fractions, sizes bytes."""

from __future__ import annotations

from pydantic import Field

from ...settings import Settings
from .settings import DemoSettings

FORMAT = "fedpalm-demo-report/1"


class Estimate(Settings):
    """An equal error rate with its bootstrap interval over identities, and how many pairs it saw."""

    eer: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    genuine: int = Field(ge=0)
    impostor: int = Field(ge=0)


class Curve(Settings):
    """A ROC curve: false match rate, ascending, against false non-match rate."""

    fmr: tuple[float, ...]
    fnmr: tuple[float, ...]


class Point(Settings):
    """An open-set EER after a round."""

    round: int
    eer: float


class LearningPoint(Settings):
    """Losses of both tasks on held-out signatures after the receipt of a round, before its training."""

    round: int
    user: float
    forged: float | None
    """None: no site keeps a forgery aside."""


class SiteRound(Settings):
    """What a site told of a round of FedMH: held-out losses after its receipt, how far it went towards
    the average in each group (``etas``), and the two tasks' gradients while it trained."""

    round: int
    user_loss: float | None
    forged_loss: float | None
    etas: dict[str, float]
    cosine: float | None = None
    user_weight: float | None = None
    opposed: float | None = None
    """Share of the steps whose gradients opposed each other."""


class Egress(Settings):
    """One kind of payload that left a site."""

    kind: str
    count: int
    bytes: int


class Budget(Settings):
    """What a site's log says that differential privacy has cost, for each person."""

    spent: float
    budget: float
    delta: float
    people: int
    steps: int


class SiteReport(Settings):
    """One site: what it held, how well its closed set is verified, and what left it.

    Of signatures also its open writers, what it told of its rounds, and all rates by kind of forgery.
    """

    site: str
    backbone: str | None = None
    training_identities: int
    open_identities: int
    images: int
    closed: dict[str, Estimate]
    open: dict[str, Estimate] = Field(default_factory=dict)
    closed_forgeries: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    open_forgeries: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    rounds: tuple[SiteRound, ...] = ()
    egress: tuple[Egress, ...] = ()
    budget: Budget | None = None


class OpenReport(Settings):
    """The open set of all sites, pooled.

    Of palms one model is judged on all pairs; for no federation it is the mean over the sites' own models.
    Of signatures every site judges its own writers with its own model, at a threshold of its own, and this
    is the mean over the sites.
    """

    identities: int
    images: int
    references: int | None = None
    """Of signatures: how many enrolled a writer."""
    estimates: dict[str, Estimate]
    """By contender; of signatures against random forgeries, which other writers' own signatures are."""
    forgeries: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    """Of signatures: against the other kinds of forgery that the data have, by kind and contender."""
    one_threshold: dict[str, dict[str, Estimate]] = Field(default_factory=dict)
    """Of signatures: all sites' scores pooled under one threshold, by kind and contender. Models that
    differ from site to site have scores that differ, too, and pay for it."""
    local_by_site: dict[str, Estimate] = Field(default_factory=dict)
    curves: dict[str, Curve] = Field(default_factory=dict)
    convergence: dict[str, tuple[Point, ...]] = Field(default_factory=dict)
    learning: dict[str, tuple[LearningPoint, ...]] = Field(default_factory=dict)
    """Of signatures: mean over the sites."""
    warm_start: Estimate | None = None
    """Of the model that a private demo begins at: it has seen nobody's images."""


class Claim(Settings):
    """An image under somebody's name, and what the site decided."""

    score: float
    match: bool


class InUse(Settings):
    """A site's threshold at ``target_fmr``, and claims to be somebody whom nobody trained on."""

    site: str
    threshold: float
    target_fmr: float
    fmr: float
    fmr_interval: tuple[float, float]
    fnmr: float
    fnmr_interval: tuple[float, float]
    impostor_pairs: int
    genuine: Claim
    impostor: Claim
    forgery: Claim | None = None
    forgery_kind: str = ""


class Report(Settings):
    """Everything a demo shows."""

    format: str = FORMAT
    name: str
    created: str
    command: str
    settings: DemoSettings
    versions: dict[str, str]
    machine: dict[str, str | int]
    run_id: str
    plan_hash: str
    model_hash: str
    parameters: int
    expert_parameters: int
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Of sites with backbones of their own: who shares which part of the model."""
    confidence: float
    sites: tuple[SiteReport, ...]
    open_set: OpenReport
    in_use: InUse | None = None
    """None: the first site has too few people for a threshold."""
    timings_s: dict[str, float]
    resumed: bool = False
    lost_rounds: tuple[int, ...] = ()
    """Masked rounds that gave no sum, because the run was cut off while shares were given."""
    files: dict[str, str]

    @property
    def contenders(self) -> tuple[str, ...]:
        return self.settings.contenders

    @property
    def by_forgery(self) -> dict[str, dict[str, Estimate]]:
        """Rates of the open set by kind of forgery, then contender; ``random`` alone of palms."""
        return {"random": self.open_set.estimates, **self.open_set.forgeries}

    @property
    def federation_helps(self) -> bool:
        """The global model's open-set EER is below the mean of the models trained alone."""
        estimates = self.open_set.estimates
        return estimates[self.settings.method].eer < estimates["local"].eer
