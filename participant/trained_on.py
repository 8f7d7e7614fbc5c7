"""Which signatures a run trained on here, sealed at its first training and the same ever after.

Who trains is dealt by rank among the writers in the folder: one more, and somebody who trained could count
as a stranger. So what was dealt is kept, by run, in the vault; a run that continues another goes on with
the record of that one. Torch-free.
"""

from __future__ import annotations

from fedpalm.data.trained_signatures import TrainedSignatures
from fedpalm.plan import Plan

from .store import SiteStore

TRAINED_ON = "trained-on"


def trained_on(store: SiteStore, run_id: str, plan: Plan) -> TrainedSignatures | None:
    """What is kept for a run, or for one that it continues; None: it has not trained signatures here.

    Raises:
        VaultError: the vault cannot be opened, or its records are not what was stored.
    """
    kept = store.items.get(TRAINED_ON, run_id)
    while kept is None and plan.continues is not None:
        earlier = plan.continues.run
        kept = store.items.get(TRAINED_ON, earlier)
        row = store.row("SELECT plan FROM plans WHERE run_id = ?", earlier) or store.row(
            "SELECT plan FROM runs WHERE run_id = ?", earlier
        )
        if row is None:
            break
        plan = Plan.from_bytes(row["plan"])
    return None if kept is None else TrainedSignatures.from_bytes(kept)


def keep_trained_on(store: SiteStore, run_id: str, trained: TrainedSignatures) -> None:
    """Keep it for a run, unless something is kept: what came first stays."""
    with store.transaction() as db:
        if store.items.get(TRAINED_ON, run_id) is None:
            store.items.put(db, TRAINED_ON, run_id, trained.to_bytes())
