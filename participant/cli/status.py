"""``status``: what this site is in, where it stands, and what waits for somebody."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from fedpalm.cli.console import command_errors, emit, home_option, json_option
from fedpalm.clock import SystemClock
from fedpalm.errors import ConfigError
from fedpalm.pki.bundle import CA, TLS_CHAIN, read_certificates
from fedpalm.pki.fingerprint import fingerprint
from fedpalm.pki.validity import end_of

from ..config import Home
from ..enrolment import request_summary
from ..exchange_book import ExchangeBook
from ..figures import figures
from ..masked_store import DEAD, MaskedBook
from ..plan_book import PlanBook, PlanState, StoredPlan
from ..policy import load_policy
from ..renewal import expiry_words, seconds_left
from ..store import SiteStore, StoredRun
from .run import agent_runs

DAY_S = 86400.0
_MASKING_STEPS = {
    "keyed": "1 of 5, its keys",
    "shared": "2 of 5, shares of its secrets, one for each site",
    "masked": "3 of 5, its masked update",
    "complained": "3 of 5, in place of an update a complaint: boxes for it did not open",
    "agreed": "4 of 5, its signature on who is in the sum",
    "revealed": "5 of 5, the shares that open the sum",
}
"""What this site stored last of an attempt, to send it."""


@click.command()
@home_option("the site")
@json_option
@command_errors
def status(home: Path, as_json: bool) -> None:
    """Tell who this site is, which run it is in, and what waits for a decision.

    Works without a certificate and with one that has ended, too.
    """
    place = Home(home)
    config = place.load()
    found: dict[str, Any] = {
        "site": config.site,
        "federation": config.federation,
        "coordinator": config.coordinator,
        **_membership(place),
        "policy": _policy(place),
    }
    if place.database.exists():
        with closing(SiteStore(place)) as store:
            found |= _work(place, store)
    emit(found, as_json, _words(found))


def _words(found: dict[str, Any]) -> Text:
    """The same for a person: a line each, and only what there is something to say about."""
    rows: list[tuple[str, str]] = [
        ("site", f"{found['site']} of {found['federation']}, coordinator {found['coordinator']}"),
        ("membership", found["state"]),
    ]
    if "asked_with" in found:
        rows.append(("asked with", found["asked_with"]))
    if "certificate_until" in found:
        left = max(0.0, found["certificate_days_left"])
        rows.append(("certificate", f"until {found['certificate_until']}, {left:g} days left"))
        if found["certificate_warning"]:
            rows.append(("warning", found["certificate_warning"]))
        rows += [("trust anchor", anchor) for anchor in found["anchors"]]
    policy = found["policy"]
    rows.append(
        ("policy", policy["error"] + "; " + policy["effect"])
        if "error" in policy
        else ("policy", f"{policy['source']} (fedpalm-participant policy says it in words)")
    )
    if "agent_running" in found:
        rows.append(("agent", "running" if found["agent_running"] else "not running"))
        if run := found["run"]:
            reason = f" ({run['reason']})" if run["reason"] else ""
            rows.append(
                (
                    "run",
                    f"{run['run_id']}: {run['state']}{reason}, {run['method']}, trained round "
                    f"{run['trained_round']} of {run['rounds']}, {run['updates_delivered']} delivered",
                )
            )
            if told := figures(run["metrics"]):
                rows.append(("training", f"round {run['trained_round']}: {told}"))
            if masking := run["masking"]:
                rows.append(
                    (
                        "masking",
                        f"round {masking['round']}, attempt {masking['attempt']}: step "
                        f"{_MASKING_STEPS[masking['stage']]}",
                    )
                )
        rows += [
            ("plan waits", f"{name}: fedpalm-participant review {name}")
            for name in found["plans_waiting"]
        ]
        rows += [
            ("exchange", f"{one['exchange_id']}: {one['state']}") for one in found["exchanges"]
        ]
        rows.append(("log", f"{found['log_entries']} entries"))
    if "next" in found:
        rows.append(("next", found["next"]))
    return Text("\n".join(f"{name:<13}  {value}" for name, value in rows))


def _membership(home: Home) -> dict[str, Any]:
    """``state`` is member, expired or waiting; a member may have asked for a new certificate, too."""
    asked = request_summary(home)
    pending = {"asked_with": asked["fingerprint"]} if asked else {}
    if not (home.tls / TLS_CHAIN).exists():
        return {
            "state": "waiting",
            **pending,
            "next": "read the fingerprint to the operator, then run join INVITATION again (or, by "
            "files, install BUNDLE)",
        }
    chain, anchors = (read_certificates(home.tls / name) for name in (TLS_CHAIN, CA))
    now = SystemClock().now()
    left_s = seconds_left(chain[0], now)
    return {
        "state": "member" if left_s > 0 else "expired",
        **pending,
        "certificate_until": end_of(chain[0]),
        "certificate_days_left": round(left_s / DAY_S, 1),
        "certificate_warning": expiry_words(chain[0], now),
        "anchors": [fingerprint(anchor) for anchor in anchors],
    }


def _policy(home: Home) -> dict[str, Any]:
    try:
        policy = load_policy(home)
    except ConfigError as error:
        return {"error": error.what, "effect": "nothing is approved, trained or sent"}
    source = str(home.policy) if home.policy.exists() else "defaults"
    return {"source": source, **policy.model_dump(mode="json")}


def _work(home: Home, store: SiteStore) -> dict[str, Any]:
    run = store.latest_run()
    plans = PlanBook(store).all()
    return {
        "agent_running": agent_runs(home),
        "run": _run(store, run) if run else None,
        "plans_waiting": [one.run_id for one in plans if one.state is PlanState.PROPOSED],
        "plans": [_plan(one) for one in plans],
        "exchanges": [
            {"exchange_id": one.terms.exchange_id, "state": one.state.value}
            for one in ExchangeBook(store).all()
        ],
        "log_entries": store.rows("SELECT COUNT(*) AS n FROM log")[0]["n"],
    }


def _plan(stored: StoredPlan) -> dict[str, Any]:
    return {
        "run_id": stored.run_id,
        "plan_hash": stored.plan.hash.hex(),
        "state": stored.state.value,
        "decided_by": stored.decided_by,
        "coordinator_knows": stored.answered,
    }


def _run(store: SiteStore, run: StoredRun) -> dict[str, Any]:
    trained = store.metrics(run.run_id)
    receipts = store.rows(
        "SELECT COUNT(DISTINCT payload_hash) AS n FROM releases WHERE payload = 'update' "
        "AND receipt_seq IS NOT NULL AND place LIKE ?",
        f"{run.run_id}/%",
    )
    return {
        "run_id": run.run_id,
        "state": run.state,
        "method": run.plan.draft.method,
        "rounds": run.plan.draft.rounds,
        "trained_round": max(trained, default=0),
        "metrics": trained[max(trained)] if trained else {},
        "metrics_by_round": trained,
        "updates_delivered": receipts[0]["n"],
        "masking": _masking(store, run.run_id),
        "model_hash": run.model_hash.hex() if run.model_hash else None,
        "reason": run.reason,
    }


def _masking(store: SiteStore, run_id: str) -> dict[str, Any] | None:
    """The masked attempt that goes on here, and how far it came; None if there is none."""
    newest = MaskedBook(store).newest(run_id)
    if newest is None or newest.stage == DEAD:
        return None
    place = newest.place
    return {"round": place.round, "attempt": place.attempt, "stage": newest.stage}
