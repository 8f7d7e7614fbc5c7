"""The status of a run, as operators see it."""

from __future__ import annotations

from fedpalm.exchange.machine import ExchangeMachine
from fedpalm.methods.contribution import masking_terms
from fedpalm.plan import Plan
from fedpalm.rounds.run import Run
from fedpalm.wire.v1 import operator_pb2 as pb

from .conductor import Conductor
from .exchange import ExchangeDesk
from .instructions import clip
from .proposal import other_plan, stuck


def run_status(run_id: str, conductor: Conductor, exchanges: ExchangeDesk) -> pb.RunStatus:
    """Raises NotFoundError for an unknown run."""
    run, plan = conductor.run(run_id), conductor.plan(run_id)
    current = run.current
    status = pb.RunStatus(
        run_id=run_id,
        plan_name=plan.draft.name,
        plan_hash=plan.hash,
        method=plan.draft.method,
        state=run.state.value,
        rounds=run.terms.rounds,
        roster=plan.roster,
        approved=conductor.answered(run_id, "approve"),
        refused=conductor.answered(run_id, "refuse"),
        joined=sorted(run.joined),
        model_hash=bytes.fromhex(run.model_hash),
        reason=clip(_reason(run_id, run, exchanges)),
        exchange=_exchange_status(run_id, exchanges),
        masking=plan.draft.masking,
        warnings=[
            clip(one)
            for one in (
                *([] if run.over else warnings(plan)),
                *_exchange_warnings(plan, exchanges),
                *_certificate_warnings(run_id, exchanges),
            )
        ],
        lost_rounds=run.lost_rounds,
        caught=sorted(run.caught),
    )
    if current is not None:
        status.round, status.attempt = current.ref.round, current.ref.attempt
        status.round_state = current.state.value
        status.cohort.extend(current.cohort)
        status.delivered.extend(current.survivors)
        status.spent = current.spent and current.model_hash == run.model_hash
        status.deadline_ms = conductor.deadline_ms(run_id)
        attempt = conductor.masking.attempt(run_id, current.ref)
        if attempt is not None:
            status.masking_step = attempt.step.value
    return status


def warnings(plan: Plan) -> list[str]:
    """What an operator should know before a run of this plan fails."""
    terms = masking_terms(plan)
    if terms is None:
        return []
    if terms.sites == terms.quorum:
        return [
            f"masking needs all {len(plan.roster)} sites in every round: one that drops out ends the "
            "attempt. A larger roster, or a lower quorum, has sites to spare."
        ]
    return [
        f"masking needs every site of group {name} in every round ({', '.join(members)}): one that drops "
        "out ends the attempt. A larger group has sites to spare."
        for name, members in terms.groups
        if len(members) == terms.group_survivors
    ]


def _reason(run_id: str, run: Run, exchanges: ExchangeDesk) -> str:
    """Why a run is where it is; what it waits for may have come since it paused."""
    if run.waits_for_exchange and exchanges.completed(run_id):
        return "the experts are exchanged; let it go on: fedpalm-coordinator resume"
    return run.reason


def _exchange_warnings(plan: Plan, exchanges: ExchangeDesk) -> list[str]:
    """What an operator should know about a plan whose exchange can never be completed."""
    why = stuck(plan, sorted(exchanges.sealed_before(plan.hash.hex())))
    return [f"{why}; {other_plan(plan)}"] if why else []


def _certificate_warnings(run_id: str, exchanges: ExchangeDesk) -> list[str]:
    """What an operator should know about an exchange that may outlast its consents."""
    machine = exchanges.of_run(run_id)
    early = exchanges.uncertified(machine) if machine is not None else []
    if not early:
        return []
    return [
        f"certificates end before the exchange expires: {', '.join(early[:5])}; a yes counts only while "
        "the certificate that it was signed under is valid, until every site has sealed. Renew before "
        "the site answers, or see that all are through in time"
    ]


def _exchange_status(run_id: str, exchanges: ExchangeDesk) -> pb.ExchangeStatus:
    machine = exchanges.of_run(run_id)
    if machine is None:
        return pb.ExchangeStatus()
    return pb.ExchangeStatus(
        exchange_id=machine.terms.exchange_id,
        state=machine.state.value,
        number=machine.terms.number,
        purpose=machine.terms.purpose,
        expires_ms=machine.terms.expires_ms,
        consented=sorted(machine.consents),
        refused=sorted(machine.refused),
        sealed=sorted(machine.sealed),
        revealed=sorted(machine.revealed),
        delivered=sorted(machine.delivered),
        reason=clip(machine.reason),
        unopened=[
            *(
                pb.Unopened(site=site, senders=senders, reason="it did not open there")
                for site, senders in sorted(machine.missing.items())
            ),
            *(
                pb.Unopened(site=site, senders=_others(machine, site), reason=clip(why))
                for site, why in sorted(machine.failed.items())
            ),
        ],
    )


def _others(machine: ExchangeMachine, site: str) -> list[str]:
    return [other for other in machine.signers if other != site]
