"""The account of bundles, honest and with one fault each."""

from __future__ import annotations

import pytest

from fedpalm.attack.account import of_findings
from fedpalm.audit.findings import Exit
from fedpalm.audit.findings import Finding as AuditFinding
from tests.support.faulty_ledgers import findings_of, ledgers

CAUGHT_BY = {
    "honest": set(),
    "accountant reset each round": {"claimed epsilon"},
    "charged at half q": {"charges and releases"},
    "uncharged round": {"charges and releases"},
    "uncharged expert": {"charges and releases"},
}


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_an_honest_log_passes_and_each_fault_is_caught(name, tmp_path):
    found = findings_of(name, tmp_path)
    assert {one.test for one in found if one.p_value == 0.0} == CAUGHT_BY[name]
    assert all(one.detector == "ledger" for one in found)


def test_every_fault_of_the_series_has_its_test_here():
    assert set(ledgers()) == set(CAUGHT_BY)


def test_what_is_not_about_the_account_is_left_to_verify():
    tampered = AuditFinding(Exit.TAMPERED, "log", "a signature does not hold")
    over = AuditFinding(Exit.OVER_BUDGET, "log, entry 3", "too much is spent")
    refuted = [one for one in of_findings([tampered, over]) if one.p_value == 0.0]
    assert [(one.test, one.figure) for one in refuted] == [("budget", str(over))]
