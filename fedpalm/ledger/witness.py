"""A witness takes only checkpoints that go on from the newest one that it holds of a log.

The other sites and the coordinator are the witnesses of a site's log. Of w witnesses, f of which may lie
or work together with the site, more than (w + f) / 2 must have seen a checkpoint: any two such groups share
an honest one, so no two histories of one log can both be witnessed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ForkError, ProofError, RolledBackError
from .checkpoint import Checkpoint
from .merkle import verify_consistency

_SAFE = "nothing is countersigned on it; both signed checkpoints are kept"


def enough_witnesses(signed: int, witnesses: int, faulty: int) -> bool:
    """Have more than (w + f) / 2 of w witnesses signed?"""
    return 2 * signed > witnesses + faulty


def check_follows(held: Checkpoint, later: Checkpoint, proof: Sequence[bytes]) -> None:
    """``later`` goes on from ``held``, of the same log; the caller has verified both signatures.

    Args:
        proof: consistency from ``held`` on.
    Raises:
        RolledBackError: it is older.
        ForkError: it is not shown to be of the same log.
    """
    both = f"held: {held}; came: {later}"
    if later.size < held.size:
        raise RolledBackError(
            f"the log of site {later.site} is shorter than it was. {both}",
            safe=_SAFE,
            next_step=RESTORE_STEP,
        )
    if later.size == held.size and later.root != held.root:
        raise ForkError(
            f"the log of site {later.site} has two histories. {both}",
            safe=_SAFE,
            next_step=COMPARE_STEP,
        )
    try:
        verify_consistency(held.size, held.root_bytes, later.size, later.root_bytes, proof)
    except ProofError as error:
        raise ForkError(
            f"the log of site {later.site} is not shown to go on from what it was ({error.what}). {both}",
            safe=_SAFE,
            next_step=COMPARE_STEP,
        ) from error


RESTORE_STEP = (
    "if that site's home came back from a backup: stop its agent and put the newest copy of the whole home "
    "in place, masking/ included; without one, have the operator revoke the site and let it join anew with "
    "new keys, and take over there what is known to be spent: fedpalm-participant budget inherit FILE"
)
COMPARE_STEP = (
    "compare both checkpoints (fedpalm-participant manifests, fedpalm-coordinator audit) with that site "
    "and the others by telephone: its log was rewritten, its home runs twice, or somebody between you "
    "alters what it says"
)
