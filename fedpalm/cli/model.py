"""``fedpalm model``: the initial model of a plan, a public file that everybody can make again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import click
import safetensors.numpy

from ..canonical import canonical_json
from ..errors import ConfigError
from ..layout import Layout, TensorSpec
from ..methods.rehearsal import rehearsal_vector
from ..methods.template import ModelTemplate, model_template
from ..plan import PlanDraft
from ..settings import load_toml
from .console import command_errors, emit, json_option


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
    template = (
        model_template(draft.method, draft.training, draft.seed)
        if parameters is None
        else _rehearsal_template(parameters, draft.seed)
    )
    write_model(template, draft.method, draft.seed, out)
    emit(
        {
            "out": str(out),
            "parameters": template.layout.size,
            "layout_hash": template.layout.hash.hex(),
            "model_hash": hashlib.sha256(template.initial.astype("<f4").tobytes()).hexdigest(),
        },
        as_json,
    )


def write_model(template: ModelTemplate, method: str, seed: int, path: Path) -> None:
    """Write a template as safetensors, durably: whole or not at all."""
    metadata = {
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


def _rehearsal_template(parameters: int, seed: int) -> ModelTemplate:
    layout = Layout((TensorSpec("open_set.rehearsal.vector", (parameters,)),))
    return ModelTemplate(layout, Layout(()), rehearsal_vector(layout, seed), {})
