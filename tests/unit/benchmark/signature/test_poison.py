"""What is said of refusals is of what a site can judge."""

from __future__ import annotations

from fedpalm.benchmark.signature.poison import _receipts
from fedpalm.methods.base import RoundContext
from fedpalm.methods.fedmh import FedMHSite
from tests.unit.methods.signature_sites import fedmh_plan, tiny_signatures


def trained(site, **images):
    method = FedMHSite(fedmh_plan(), site, tiny_signatures(0, **images), 1)
    shared = method.initial_vector()
    return method, shared + method.train_round(RoundContext(1, 2), shared).delta


def test_a_head_that_a_site_cannot_judge_is_no_group_that_it_took_and_no_loss_of_0():
    blind, shared = trained("amber", forged=0)
    seeing, _ = trained("delta")
    assert blind.judged_groups == {"trunk.signet", "projection"}
    assert seeing.judged_groups == {"trunk.signet", "projection", "task"}
    found = _receipts([blind], -shared)
    assert (found["refused_groups"], found["refused_sites"]) == (1, 1)
    assert found["probe"]["before"].keys() == found["probe"]["after"].keys() == {"user"}
    both = _receipts([blind, seeing], -shared)
    assert (both["refused_groups"], both["refused_sites"]) == (1, 1)
    assert both["probe"]["before"]["forged"] == seeing.receipt(-shared).before.forged > 0
