"""``evaluate`` and ``preflight``: what can be said about the site's own images, at the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.errors import ConfigError

from ..config import DataSettings, Home
from .site import open_site

if TYPE_CHECKING:
    from ..evaluate import Evaluation
    from ..evaluate_signatures import SignatureEvaluation

_ASSUMED = "nobody here is enrolled at another site: that cannot be checked from here"
_LIST = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--run", "run_id", help="Left out, the run joined last.")
@click.option("--round", "round_number", type=click.IntRange(0), help="A global model kept here.")
@click.option("--model", "model_file", type=_LIST, help="An exported global model (safetensors).")
@click.option(
    "--open-set",
    nargs=2,
    type=_LIST,
    metavar="GALLERY PROBE",
    help="Two `path label` lists that replace the site's own open identities; of palms.",
)
@click.option(
    "--references",
    type=click.IntRange(1),
    help="Of every writer; of signatures. Left out, 5 or as many as everybody has.",
)
@click.option(
    "--scores",
    type=_LIST,
    help="Write the score of every claim there, writers as numbers; of signatures.",
)
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the bootstrap intervals.")
@home_option("the site")
@json_option
@command_errors
def evaluate(
    run_id: str | None,
    round_number: int | None,
    model_file: Path | None,
    open_set: tuple[Path, Path] | None,
    references: int | None,
    scores: Path | None,
    seed: int,
    home: Path,
    as_json: bool,
) -> None:
    """Measure verification with this site's state and a global model; nothing leaves the site.

    Of signatures: the rate at which genuine ones are refused and random, simple or skilled forgeries
    accepted, where both are equal; with one threshold for all writers, and with each writer's own.
    """
    from ..evaluate import ModelChoice, evaluate_site, find_trained
    from ..evaluate_signatures import evaluate_signatures

    if round_number is not None and model_file is not None:
        raise click.UsageError("--round and --model exclude each other")
    choice = ModelChoice(model_file, round_number)
    with open_site(home) as (config, desk):
        run, data = find_trained(config, desk.store, run_id)
        if data.modality == "signature":
            if open_set is not None:
                raise click.UsageError("--open-set is for palms")
            claims = evaluate_signatures(
                config,
                desk.store,
                run_id=run.run_id,
                choice=choice,
                references=references,
                seed=seed,
            )
            if scores is not None:
                _write_scores(scores, claims)
            emit(claims.to_json(), as_json, _claims_table(claims))
            return
        if references is not None or scores is not None:
            raise click.UsageError("--references and --scores are for signatures")
        result = evaluate_site(
            config, desk.store, run_id=run.run_id, choice=choice, open_set=open_set, seed=seed
        )
    emit(result.to_json(), as_json, _table(result))


def _write_scores(path: Path, result: SignatureEvaluation) -> None:
    from fedpalm.evaluation.claim_file import write_claims

    write_claims(path, {"closed": result.closed_set.scores, "open": result.open_set.scores})


def _table(result: Evaluation) -> Table:
    table = Table("set", "EER", "95 % interval", "AUC", "rank-1", "people", "genuine", "impostor")
    for name, report in (("closed", result.closed_set), ("open", result.open_set)):
        table.add_row(
            name,
            _percent(report.eer),
            " to ".join(map(_percent, report.eer_interval)),
            f"{report.auc:.4f}",
            f"{100 * report.rank1:.1f} %",
            str(report.identities),
            str(report.genuine_pairs),
            str(report.impostor_pairs),
        )
    return table


def _claims_table(result: SignatureEvaluation) -> Table:
    table = Table(
        "writers", "references", "forgery", "EER", "95 % interval", "own thresholds", "95 % interval",
        "genuine", "forged",
    )  # fmt: skip
    for name, half in (("closed", result.closed_set), ("open", result.open_set)):
        for kind, report in half.forgeries.items():
            table.add_row(
                f"{half.writers} {name}",
                str(half.references),
                kind,
                _percent(report.eer),
                " to ".join(map(_percent, report.eer_interval)),
                _percent(report.user_eer),
                " to ".join(map(_percent, report.user_eer_interval)),
                str(report.genuine),
                str(report.forged),
            )
    return table


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f} %"


@click.command()
@home_option("the site")
@json_option
@command_errors
def preflight(home: Path, as_json: bool) -> None:
    """Look at every image once and tell whether it can be trained on.

    How many palms train and how many are kept open is counted as without differential privacy; with it
    everybody's own hash decides, and the two numbers differ by chance.
    """
    config = Home(home).load()
    if config.data is None:
        raise ConfigError(f"{Home(home).config}: no [data]", next_step='add [data] source = "PATH"')
    of = _signatures if config.data.modality == "signature" else _palms
    emit(of(config.data, config.site), as_json)


def _palms(data: DataSettings, site: str) -> dict[str, Any]:
    from fedpalm.data.roi import preflight as look

    from ..images import list_palms, split_records

    split = split_records(data, site, "none")
    return {
        "source": data.source,
        "modality": data.modality,
        **look(list_palms(data)).to_json(),
        "training_images": len(split.train),
        "closed_identities": len(split.classes),
        "open_identities": len(split.open_classes),
        "split": "counted as without differential privacy; with it everybody's own hash decides",
        "input": "ROI images are expected; the palm is not searched for in a photograph",
        "assumed": _ASSUMED,
    }


def _signatures(data: DataSettings, site: str) -> dict[str, Any]:
    from fedpalm.data.signature_image import preflight_signatures as look
    from fedpalm.data.signatures import FORGERY_KINDS

    from ..images import list_signatures, trainable_signatures

    split, records = trainable_signatures(data, site), list_signatures(data)
    training = sum(record.genuine for record in split.train)
    return {
        "source": data.source,
        "modality": data.modality,
        **look(records).to_json(),
        "forged": sum(not record.genuine for record in records),
        "training_signatures": training,
        "training_forgeries": len(split.train) - training,
        "closed_writers": len(split.writers),
        "open_writers": len(split.open_writers),
        "forgeries_tried": {
            name: {kind: len(getattr(trial, kind)) for kind in FORGERY_KINDS}
            for name, trial in (("closed", split.closed), ("open", split.open))
        },
        "input": "one signature an image; lines, stamps and printed text on the paper count as ink",
        "assumed": _ASSUMED,
    }
