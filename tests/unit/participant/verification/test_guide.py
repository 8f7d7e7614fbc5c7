"""The guide's settings, limits and client are those of the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from fedpalm.data.roi import MIN_CONTRAST, MIN_SIDE_PX
from fedpalm.data.signature_image import MIN_INK_LEVELS
from fedpalm.errors import (
    EnrolledError,
    LockedOutError,
    NotFoundError,
    TooManyAttemptsError,
    VaultError,
)
from fedpalm.settings import parse_toml
from participant.cli.verification import NO_MATCH
from participant.config import VerificationSettings
from participant.verification import quality, signature_quality
from participant.verification.calibrate import WEAK_FMR

GUIDE = Path(__file__).parents[4].joinpath("docs/guides/VERIFICATION.md").read_text("utf-8")


def _blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def test_the_settings_are_all_there_with_their_defaults():
    (block,) = _blocks("toml")
    body = block.removeprefix("[verification]\n")
    assert parse_toml(VerificationSettings, body.encode(), "the guide") == VerificationSettings()
    named = set(re.findall(r"^(\w+) =", body, re.MULTILINE))
    assert named == set(VerificationSettings.model_fields)


@pytest.mark.parametrize("block", _blocks("python"), ids=["client", "notebook"])
def test_the_examples_import_what_there_is(block: str):
    tree = ast.parse(block)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom | ast.Import)]
    exec(compile(ast.Module(imports, []), "the guide", "exec"), {})


def test_limits_and_exit_code_are_those_in_force():
    limits = (
        f"below {MIN_SIDE_PX} px a side | below {quality.GOOD_SIDE_PX}",
        f"below {MIN_CONTRAST:g} | below {quality.GOOD_CONTRAST:g}",
        f"below {quality.MIN_SHARPNESS:g} | below {quality.GOOD_SHARPNESS:g}",
        f"below {quality.MIN_COVERAGE * 100:g} % | below {quality.GOOD_COVERAGE * 100:g} %",
        f"below {signature_quality.MIN_SIDE_PX} px | below {signature_quality.GOOD_SIDE_PX}",
        f"below {MIN_INK_LEVELS:g} | below {signature_quality.GOOD_LEVELS:g}",
        f"above {signature_quality.MAX_INK * 100:g} % | above {signature_quality.GOOD_INK * 100:g} %",
        f"below {signature_quality.MIN_SHARPNESS:g} | below {signature_quality.GOOD_SHARPNESS:g}",
        f"| {NO_MATCH} | no match",
        f"A rate above {WEAK_FMR:g} has to be meant",
        f"| {LockedOutError.exit_code} | locked out",
        f"| {EnrolledError.exit_code} | enrolled already",
        f"| {TooManyAttemptsError.exit_code} | too many attempts",
        f"| {NotFoundError.exit_code} | not enrolled",
        f"| {VaultError.exit_code} | the vault",
    )
    for limit in limits:
        assert limit in GUIDE
