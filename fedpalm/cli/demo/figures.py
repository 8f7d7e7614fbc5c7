"""What a demo found, as data: the content of ``report.json``. Rates are fractions, sizes bytes."""

from __future__ import annotations

from pydantic import Field

from ...settings import Settings
from .settings import DemoSettings

LABELS = {"fedpalm": "FedPalm", "fedavg": "FedAvg", "local": "No federation"}
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
    """One site: what it held, how well its closed set is verified, and what left it."""

    site: str
    training_identities: int
    open_identities: int
    images: int
    closed: dict[str, Estimate]
    egress: tuple[Egress, ...]
    budget: Budget | None = None


class OpenReport(Settings):
    """The open set of all sites, pooled. For no federation: the mean over the sites' own models."""

    identities: int
    images: int
    estimates: dict[str, Estimate]
    local_by_site: dict[str, Estimate]
    curves: dict[str, Curve]
    convergence: dict[str, tuple[Point, ...]]
    warm_start: Estimate | None = None
    """Of the model that a private demo begins at: it has seen nobody's images."""


class Claim(Settings):
    """An image under somebody's name, and what the site decided."""

    score: float
    match: bool


class InUse(Settings):
    """A site's threshold at ``target_fmr``, and two claims to be somebody whom nobody trained on."""

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

    def label(self, contender: str) -> str:
        return LABELS[contender]

    @property
    def federation_helps(self) -> bool:
        """The global model's open-set EER is below the mean of the models trained alone."""
        estimates = self.open_set.estimates
        return estimates[self.settings.method].eer < estimates["local"].eer
