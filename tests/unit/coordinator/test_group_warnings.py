from __future__ import annotations

import pytest

from coordinator.status import warnings
from tests.unit.methods.test_group_terms import make


@pytest.mark.parametrize(
    ("letters", "warned"),
    [
        ("ssssrrr", "masking needs every site of group trunk.resnet in every round (e, f, g)"),
        ("ssssrrrr", ""),
        ("ssss", ""),
    ],
)
def test_an_operator_is_warned_of_a_group_without_a_site_to_spare(
    letters: str, warned: str
) -> None:
    found = warnings(make(letters))
    assert len(found) == bool(warned)
    assert all(one.startswith(warned) for one in found)
