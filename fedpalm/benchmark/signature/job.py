"""One job: train, score every set at the end, write the result.

After every round the state is put aside; a job that was interrupted goes on from there and ends with
the same bits. Run as ``python -m fedpalm.benchmark.signature.job FOLDER < job.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from ...evaluation.signatures import Embed
from ...layout import FloatVector
from ...methods.base import SiteMethod
from ..jobs import process, standing
from ..jobs.results import Store
from ..simulate import RoundMetrics, SimulationResult, run_rounds
from . import scoring
from .config import Job
from .contenders import REFERENCE
from .data import Claims, JobData, job_data, name_of
from .federation import Federation, federation
from .poison import poison_figures

MODULE = "fedpalm.benchmark.signature.job"


def run_job(job: Job, store: Store, progress: process.OnProgress) -> None:
    """Do the job, or what is left of it, and write its result.

    Raises:
        ConfigError: the contender cannot be built.
        DataError: the images cannot be used, or a model diverged.
    """
    config, data = job.config, job_data(job)
    made = federation(job, {name: one.train for name, one in data.sites.items()})
    begun, history = standing.load_checkpoint(store, job.hash, config.backbones)
    progress(begun.rounds if begun is not None else 0)
    clock = standing.Clock()

    def on_round(
        number: int, shared: FloatVector, sites: Mapping[str, SiteMethod], metrics: RoundMetrics
    ) -> None:
        clock.stop(history)
        history.rounds.append(standing.means(metrics))
        standing.save_checkpoint(store, job.hash, number, shared, sites, history)
        progress(number)
        clock.start()

    clock.start()
    ended = run_rounds(made.plan, made.sites, made.shared, made.combine, on_round, standing=begun)
    sets = _scored(job, data, ended)
    store.write(job.hash, _result(job, made, data, ended, sets, history), scoring.pack(sets))
    store.checkpoint_file(job.hash).unlink(missing_ok=True)


def _scored(
    job: Job, data: JobData, ended: SimulationResult
) -> dict[str, dict[int, dict[str, Any]]]:
    """Scores by set, number of references and site: closed, open, and every foreign set."""
    sets: dict[str, dict[str, Claims]] = {
        "closed": {name: one.closed for name, one in data.sites.items()},
        "open": {name: one.open for name, one in data.sites.items()},
    }
    sets |= {
        f"foreign:{other}": dict.fromkeys(data.sites, claims)
        for other, claims in data.foreign.items()
    }
    return {
        which: scoring.score_sets(_embeds(ended.sites, ended.shared, which), claims)
        for which, claims in sets.items()
    }


def _embeds(sites: Mapping[str, SiteMethod], shared: FloatVector, which: str) -> dict[str, Embed]:
    def of(site: SiteMethod) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
        templates = site.closed_templates if which == "closed" else site.open_templates
        return lambda images: templates(images, shared)

    return {name: of(site) for name, site in sites.items()}


def _result(
    job: Job,
    made: Federation,
    data: JobData,
    ended: SimulationResult,
    sets: Mapping[str, Mapping[int, Mapping[str, Any]]],
    history: standing.History,
) -> dict[str, Any]:
    config = job.config
    poison = None
    if job.variant_name == REFERENCE:
        poison = poison_figures(
            made.plan,
            ended.sites,
            {name: one.train for name, one in data.sites.items()},
            ended.shared,
            {name: one.open for name, one in data.sites.items()},
        )
    return {
        "experiment": job.experiment,
        "variant": job.variant_name,
        "data": job.data,
        "data_names": {which: name_of(config, which) for which in job.fingerprints},
        "seed": job.seed,
        "config": {
            "fingerprints": dict(job.fingerprints),
            **config.model_dump(
                mode="json", exclude={"seeds": True, "variants": True, "real": {"source"}}
            ),
            "backbones": config.backbones,
            "fedmh": job.contender.settings.model_dump(),
        },
        "trained_on": {
            name: {
                "classes": one.train.classes,
                "genuine": int(one.train.genuine.sum()),
                "forged": int((~one.train.genuine).sum()),
            }
            for name, one in data.sites.items()
        },
        "versions": process.versions(),
        "machine": process.machine(),
        "figures": {
            which: {
                str(count): scoring.figures(
                    by_site,
                    [str(job.seed), job.data, which],
                    config.resamples,
                    same_writers=":" in which,
                )
                for count, by_site in by_count.items()
            }
            for which, by_count in sets.items()
        },
        "poison": poison,
        "rounds": history.rounds,
        "values": made.values,
        "seconds": history.seconds,
        "cpu_seconds": history.cpu_seconds,
    }


def main() -> None:
    process.serve(lambda spec, store, said: run_job(Job.from_json(spec), store, said))


if __name__ == "__main__":
    main()
