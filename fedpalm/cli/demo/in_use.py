"""What the training was for, once: a site enrols somebody whom nobody trained on, and verifies two claims.

The newcomer is a person of another site's open set, and so is the one who claims to be them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...data.records import ImageRecord, by_identity
from ...errors import DataError
from .figures import Claim, InUse
from .people import split_of
from .roles import SitePerson
from .workspace import Workspace

TARGET_FMR = 0.05
"""What the open set of a site of a demo can show; a site with more people asks for less."""
NEWCOMER = "newcomer"
_MOST_IMAGES = 3


def verify_a_newcomer(person: SitePerson, workspace: Workspace, other_site: str) -> dict[str, Any]:
    """Calibrate, enrol, and verify a genuine and an impostor image at one site.

    Returns:
        What the site's commands said; ``refused`` alone where its images do not allow a threshold.
    """
    split = split_of(workspace, other_site)
    groups = list(by_identity([*split.open_gallery, *split.open_probe]).values())
    newcomer, impostor = groups[0], groups[1]
    try:
        threshold = person.calibrate(TARGET_FMR)
    except DataError as error:
        return {"refused": error.what}
    person.enrol(NEWCOMER, _paths(newcomer[:-1][:_MOST_IMAGES]))
    return {
        "threshold": threshold,
        "genuine": person.verify(NEWCOMER, newcomer[-1].path),
        "impostor": person.verify(NEWCOMER, impostor[-1].path),
    }


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
        genuine=Claim(score=told["genuine"]["score"], match=told["genuine"]["match"]),
        impostor=Claim(score=told["impostor"]["score"], match=told["impostor"]["match"]),
    )


def _paths(records: Sequence[ImageRecord]) -> list[str]:
    return [str(record.path) for record in records]
