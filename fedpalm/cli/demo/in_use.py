"""What the training was for, once: a site enrols somebody whom nobody trained on, and verifies claims.

The newcomer is of another site's open set, and so is whoever else claims to be them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from .figures import Claim, InUse
from .roles import SitePerson
from .subject import Newcomer

TARGET_FMR = 0.05
"""What the open set of a site of a demo can show; a site with more people asks for less."""
NEWCOMER = "newcomer"


def verify_a_newcomer(person: SitePerson, newcomer: Newcomer) -> dict[str, Any]:
    """Calibrate, enrol, and verify every claim at one site.

    Returns:
        What the site's commands said; ``refused`` alone where its images do not allow a threshold.
    """
    try:
        threshold = person.calibrate(TARGET_FMR)
    except DataError as error:
        return {"refused": error.what}
    person.enrol(NEWCOMER, newcomer.enrolled)
    claims = {name: person.verify(NEWCOMER, path) for name, path in newcomer.claims.items()}
    return {"threshold": threshold, "forgery_kind": newcomer.forgery_kind, **claims}


def read_back(site: str, told: Mapping[str, Any]) -> InUse | None:
    """What :func:`verify_a_newcomer` returned, for the report; None where there was no threshold."""
    if "refused" in told:
        return None
    threshold = told["threshold"]
    return InUse(
        site=site,
        threshold=threshold["threshold"],
        target_fmr=threshold["target_fmr"],
        fmr=threshold["fmr"],
        fmr_interval=threshold["fmr_interval"],
        fnmr=threshold["fnmr"],
        fnmr_interval=threshold["fnmr_interval"],
        impostor_pairs=threshold["impostor_pairs"],
        genuine=_claim(told["genuine"]),
        impostor=_claim(told["impostor"]),
        forgery=_claim(told["forgery"]) if "forgery" in told else None,
        forgery_kind=told.get("forgery_kind", ""),
    )


def _claim(said: Mapping[str, Any]) -> Claim:
    return Claim(score=said["score"], match=said["match"])
