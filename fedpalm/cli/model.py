"""``fedpalm model``: the initial model of a plan, a public file that everybody can make again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import click
import safetensors.numpy

from ..canonical import canonical_json
from ..errors import ConfigError
from ..groups import TRUNK
from ..layout import Layout, TensorSpec
from ..methods.contribution import shared_backbones
from ..methods.plan_template import plan_template
from ..methods.rehearsal import rehearsal_vector
from ..methods.template import ModelTemplate
from ..plan import PlanDraft
from ..settings import load_toml, parse_settings
from .console import command_errors, emit, err, json_option


@click.group()
def commands() -> None:
    """Make the initial model of a plan."""


@commands.command("init")
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option(
    "--parameters",
    type=click.IntRange(1),
    help="Length of a rehearsal's vector; left out, that of the real model.",
)
@json_option
@command_errors
def init_command(plan: Path, out: Path, parameters: int | None, as_json: bool) -> None:
    """Write the shared model of round 0 for PLAN (a plan.toml) as safetensors.

    It depends on the plan's method, training settings and seed alone. The file's metadata hold the
    layout, in the order of the flat vector, and the layout of the expert that may be released.
    """
    draft = load_toml(PlanDraft, plan)
    if parameters is not None and draft.method != "rehearsal":
        raise ConfigError(
            f"--parameters goes with method 'rehearsal'; this plan's is {draft.method!r}"
        )
    if draft.backbones and draft.method == "rehearsal" and parameters is None:
        raise ConfigError(
            "a rehearsal of sites with backbones of their own has no model of its own",
            next_step="say how long its vector is: --parameters",
        )
    template = (
        plan_template(draft) if parameters is None else _rehearsal_template(parameters, draft)
    )
    write_model(template, draft.method, draft.seed, out)
    _emit(template, out, as_json)


@commands.command("pretrain")
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--sensors", type=click.IntRange(1), help="That palms are drawn for.")
@click.option("--people", type=click.IntRange(2), help="For each sensor.")
@click.option("--images", type=click.IntRange(2), help="Of each of them.")
@click.option("--rounds", type=click.IntRange(1), help="Of two epochs each.")
@click.option(
    "--difficulty", type=click.FloatRange(0, 3), help="How much images of one palm differ."
)
@click.option("--site-spread", type=click.FloatRange(0, 3), help="How much sensors differ.")
@json_option
@command_errors
def pretrain_command(plan: Path, out: Path, as_json: bool, **said: float | None) -> None:
    """Write a warm start for PLAN: its model of round 0, trained on drawn palms of nobody.

    It costs no privacy, takes minutes, and is the same file whenever the same is asked for on the same
    machine. `fedpalm-coordinator plan submit --model` takes it as it takes that of `model init`.
    """
    from ..methods.pretrain import PublicPalms, pretrain, provenance

    draft = load_toml(PlanDraft, plan)
    given = {name: value for name, value in said.items() if value is not None}
    palms = parse_settings(PublicPalms, given, "pretraining")

    def tell(number: int, loss: float) -> None:
        err().print(f"round {number} of {palms.rounds}, loss {loss:.3f}")

    template = pretrain(draft, palms, tell)
    write_model(template, draft.method, draft.seed, out, provenance(palms))
    _emit(template, out, as_json)


def _emit(template: ModelTemplate, out: Path, as_json: bool) -> None:
    emit(
        {
            "out": str(out),
            "parameters": template.layout.size,
            "layout_hash": template.layout.hash.hex(),
            "model_hash": hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
        },
        as_json,
    )


def write_model(
    template: ModelTemplate,
    method: str,
    seed: int,
    path: Path,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Write a template as safetensors, durably: whole or not at all; ``origin`` goes into its metadata."""
    metadata = {
        **(origin or {}),
        "layout": canonical_json(template.layout.to_json()).decode(),
        "expert_layout": canonical_json(template.expert_layout.to_json()).decode(),
        "method": method,
        "seed": str(seed),
    }
    data = _sorted_header(
        safetensors.numpy.save(template.layout.unflatten(template.initial), metadata)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _sorted_header(data: bytes) -> bytes:
    """The same file with the keys of its header in order: the library's order changes by run."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"))
    padded = header.encode() + b" " * (-len(header.encode()) % 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]


def _rehearsal_template(parameters: int, draft: PlanDraft) -> ModelTemplate:
    """One vector; with backbones, one in every group, as even in length as can be."""
    groups = [f"{TRUNK}{name}" for name in shared_backbones(draft)] + ["projection", "task"]
    names = groups if draft.backbones else ["rehearsal"]
    if parameters < len(names):
        raise ConfigError(f"{len(names)} groups in {parameters} parameters: each needs one")
    sizes = [(parameters + at) // len(names) for at in range(len(names))]
    layout = Layout(
        tuple(
            TensorSpec(f"open_set.{n}.vector", (size,))
            for n, size in zip(names, sizes, strict=True)
        )
    )
    return ModelTemplate(layout, Layout(()), rehearsal_vector(layout, draft.seed), {})
