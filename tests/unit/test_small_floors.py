"""Names, canonical bytes, time and settings files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpalm.canonical import canonical_json, domain_hash
from fedpalm.clock import FakeClock
from fedpalm.errors import ConfigError, ProtocolError
from fedpalm.ids import new_run_id, run_id, site_id
from fedpalm.plan import PlanDraft
from fedpalm.settings import load_toml


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_a_domain_hash_tells_part_boundaries_apart(a: list[bytes], b: list[bytes]) -> None:
    assert (domain_hash("d", *a) == domain_hash("d", *b)) == (a == b)
    assert domain_hash("d", *a) != domain_hash("e", *a)


def test_canonical_json_is_rfc_8785() -> None:
    """Key order, number form and escapes of RFC 8785 section 3.2.2's example, abridged."""
    value = {
        "numbers": [333333333.33333329, 4.50, 2e-3],
        "string": '€$\n"',
        "literals": [None, True],
    }
    expected = (
        '{"literals":[null,true],"numbers":[333333333.3333333,4.5,0.002],"string":"€$\\n\\""}'
    )
    assert canonical_json(value) == expected.encode()


def _nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), 2**53, b"bytes", {1: 2}),
        *("\ud800", {"\ud800": 1}, pytest.param(_nested(5000), id="deep")),
    ],
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        canonical_json(value)


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a.b", "a/b", "a" * 64, "ä", "a\n", "a b"])
def test_a_name_that_is_no_dns_label_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        site_id(text)


def test_run_names_do_not_repeat_and_are_valid_however_long_the_plan_name() -> None:
    names = {new_run_id("p" * 54) for _ in range(50)}
    assert len(names) == 50 and all(run_id(name) == name for name in names)


def test_the_fake_clock_moves_only_forward_and_only_when_told() -> None:
    clock = FakeClock(10.0)
    clock.advance(2.5)
    assert clock.now() == 12.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("name = ", "plan.toml"),
        ("name = " + "[" * 2000 + "]" * 2000, "plan.toml"),
        ("name = 'p'\nmethod = 'fedavg'", "rounds"),
        ("name = 'p'\nmethod = 'nope'\nrounds = 1", "method"),
        ("name = 'p'\nmethod = 'fedavg'\nrounds = 1\ntypo = 1", "typo"),
    ],
)
def test_a_wrong_settings_file_names_itself_and_the_key(
    tmp_path: Path, text: str, names: str
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=names) as caught:
        load_toml(PlanDraft, path)
    assert "plan.toml" in str(caught.value)


def test_a_missing_settings_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_toml(PlanDraft, tmp_path / "absent.toml")
