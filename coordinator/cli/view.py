"""A run as JSON and as text."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedpalm.text import one_line
from fedpalm.wire.v1 import operator_pb2 as pb


def when(moment_ms: int) -> str:
    """Local time of a wire timestamp; 0 is never."""
    if not moment_ms:
        return "never"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_ms / 1000))


def awaited(status: pb.RunStatus) -> list[str]:
    """Sites of the roster that have not answered the plan yet."""
    return sorted(set(status.roster) - set(status.approved) - set(status.refused))


def run_json(status: pb.RunStatus) -> dict[str, Any]:
    """What ``--json`` prints of a run."""
    return {
        "run_id": status.run_id,
        "plan_name": status.plan_name,
        "plan_hash": status.plan_hash.hex(),
        "method": status.method,
        "state": status.state,
        "round": status.round,
        "rounds": status.rounds,
        "attempt": status.attempt,
        "round_state": status.round_state,
        "roster": list(status.roster),
        "approved": list(status.approved),
        "refused": list(status.refused),
        "awaited": awaited(status),
        "joined": list(status.joined),
        "cohort": list(status.cohort),
        "delivered": list(status.delivered),
        "deadline_ms": status.deadline_ms,
        "model_hash": status.model_hash.hex(),
        "masking": status.masking,
        "masking_step": status.masking_step,
        "lost_rounds": list(status.lost_rounds),
        "caught": list(status.caught),
        "spent": status.spent,
        "warnings": list(status.warnings),
        "reason": status.reason,
        "exchange": exchange_json(status.exchange),
    }


def exchange_json(exchange: pb.ExchangeStatus) -> dict[str, Any]:
    """What ``--json`` prints of an exchange; its state is empty if none was proposed."""
    return {
        "exchange_id": exchange.exchange_id,
        "state": exchange.state,
        "number": exchange.number,
        "purpose": exchange.purpose,
        "expires_ms": exchange.expires_ms,
        "consented": list(exchange.consented),
        "refused": list(exchange.refused),
        "sealed": list(exchange.sealed),
        "revealed": list(exchange.revealed),
        "delivered": list(exchange.delivered),
        "unopened": [
            {"site": one.site, "senders": list(one.senders), "reason": one.reason}
            for one in exchange.unopened
        ],
        "reason": exchange.reason,
    }


def run_text(status: pb.RunStatus) -> RenderableType:
    """What a person sees of a run."""
    rows = [
        ("run", f"{status.run_id}  ({status.method}, plan {status.plan_hash.hex()[:16]})"),
        ("state", status.state + (f": {status.reason}" if status.reason else "")),
    ]
    if status.round:
        rows.append(
            ("round", f"{status.round} of {status.rounds}, attempt {status.attempt}, "
             f"{status.round_state.replace('_', ' ')}")
        )  # fmt: skip
    if status.masking_step:
        rows.append(("masking", f"{status.masking}, waiting for {status.masking_step}"))
    elif status.masking not in ("", "none"):
        rows.append(("masking", status.masking))
    if status.lost_rounds:
        rows.append(("without a sum", f"round {', '.join(map(str, status.lost_rounds))}"))
    if status.caught:
        rows.append(("kept out", f"{', '.join(status.caught)}: broke the rules of masking"))
    rows.append(("approved", _agreement(status)))
    rows.append(("joined", ", ".join(status.joined) or "nobody yet"))
    if status.cohort:
        rows.append(("delivered", f"{len(status.delivered)} of {len(status.cohort)}"))
    if status.deadline_ms:
        rows.append(("deadline", when(status.deadline_ms)))
    rows.append(("model", status.model_hash.hex()))
    rows.extend(("warning", one) for one in status.warnings)
    if status.exchange.state:
        exchange = status.exchange
        said = f"{exchange.state}, yes from {', '.join(exchange.consented) or 'nobody yet'}"
        if exchange.refused:
            said += f", no from {', '.join(exchange.refused)}"
        rows.append(("exchange", said + (f": {exchange.reason}" if exchange.reason else "")))
    return _table(rows)


def exchange_text(status: pb.RunStatus) -> RenderableType:
    """What a person sees of a run's newest exchange."""
    exchange = status.exchange
    if not exchange.state:
        return Text(f"run {status.run_id}: no exchange was proposed")
    state = exchange.state + (f": {exchange.reason}" if exchange.reason else "")
    rows = [
        ("run", f"{status.run_id}  ({status.state})"),
        ("exchange", f"{exchange.exchange_id}, number {exchange.number} of this plan"),
        ("state", state),
        ("purpose", exchange.purpose),
        ("expires", when(exchange.expires_ms)),
        ("said yes", ", ".join(exchange.consented) or "nobody"),
    ]
    if exchange.refused:
        rows.append(("said no", ", ".join(exchange.refused)))
    answered = {*exchange.consented, *exchange.refused}
    waiting = ", ".join(sorted(set(status.roster) - answered))
    if exchange.state == "proposed":
        rows.append(("waiting for", waiting))
    else:
        for what, sites in (
            ("sealed", exchange.sealed),
            ("sent keys", exchange.revealed),
            ("opened", exchange.delivered),
        ):
            rows.append((what, ", ".join(sites) or "nobody"))
    for one in exchange.unopened:
        what = "expert" if len(one.senders) == 1 else "experts"
        did = "could not" if one.site in exchange.delivered else "did not"
        said = f"{one.site} {did} open the {what} of {', '.join(one.senders)}: {one.reason}"
        rows.append(("not opened", said))
    rows.extend(("warning", one) for one in status.warnings)
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> Table:
    """Names and values; reasons and warnings quote others, and a line break would look like a row."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, style="bold"), Text(one_line(value)))
    return table


def _agreement(status: pb.RunStatus) -> str:
    """Who has said yes, who has said no, and who is waited for."""
    parts = [f"{len(status.approved)} of {len(status.roster)}"]
    if status.approved:
        parts[0] += f": {', '.join(status.approved)}"
    if status.refused:
        parts.append(f"refused: {', '.join(status.refused)}")
    if status.state not in ("completed", "aborted") and (waiting := awaited(status)):
        parts.append(f"waiting for {', '.join(waiting)}")
    return "; ".join(parts)


def run_line(status: pb.RunStatus) -> str:
    """One line for logs and pipes."""
    parts = [f"{status.run_id} {status.state}"]
    if status.round:
        parts.append(f"round {status.round}/{status.rounds}.{status.attempt} {status.round_state}")
    if status.masking_step:
        parts.append(f"masking {status.masking_step}")
    if status.cohort:
        parts.append(f"delivered {len(status.delivered)}/{len(status.cohort)}")
    if status.state == "created" or len(status.approved) < len(status.roster):
        parts.append(f"approved {len(status.approved)}/{len(status.roster)}")
    if status.exchange.state:
        parts.append(f"exchange {status.exchange.state}")
    return one_line(", ".join(parts))


def runs_text(statuses: list[pb.RunStatus]) -> RenderableType:
    """Several runs, one below the other."""
    if not statuses:
        return Text("no runs; submit one: fedpalm-coordinator plan submit plan.toml --model FILE")
    return Group(*(part for s in statuses for part in (run_text(s), Text())))
