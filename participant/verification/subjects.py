"""Who is enrolled, and forgetting somebody: what needs no model and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedpalm.data.names import one_spelling
from fedpalm.errors import ConfigError, DataError, NotFoundError, StateError
from fedpalm.ledger.bodies import MAX_NAMES_CHARS, EntryKind

from ..config import ParticipantConfig, VerificationSettings
from ..desk import Desk
from ..store import SiteStore
from .attempts import Attempts
from .gallery import Gallery, subject_name
from .model import find_model, training_identities
from .results import EnrolledSubject, Erasure
from .thresholds import Thresholds


def list_subjects(
    config: ParticipantConfig, store: SiteStore, run_id: str | None = None
) -> dict[str, Any]:
    """Everybody who is enrolled, the thresholds, and what was counted.

    Args:
        run_id: whose model references have to be of, not to be stale.
    """
    attempts, gallery = (
        Attempts(store, config.verification or VerificationSettings()),
        Gallery(store),
    )
    try:
        model, problem = find_model(config, store, run_id).id, ""
    except (ConfigError, DataError, NotFoundError, StateError) as error:
        # The list is of use without a model, too: then everybody in it is stale.
        model, problem = None, error.what
    people = [
        EnrolledSubject(
            subject=one.subject,
            mode=one.mode,
            images=one.images,
            images_kept=one.images_kept,
            stale=model is None or one.model != model.hash,
            locked_until_ms=attempts.locked_until_ms(one.subject),
            run_id=one.run_id,
            model=one.model,
            enrolled_ms=one.enrolled_ms,
            renewed_ms=one.renewed_ms,
        )
        for one in gallery.all()
    ]
    thresholds = [
        {**one.to_json(), "stale": model is None or one.model != model.hash}
        for one in Thresholds(store).all()
    ]
    return {
        "run_id": model.run_id if model else None,
        "model": model.hash if model else None,
        "problem": problem,
        "subjects": [one.to_json() for one in people],
        "thresholds": thresholds,
        "counts": attempts.counts(),
    }


def forget(config: ParticipantConfig, desk: Desk, subject: str) -> Erasure:
    """Erase what is kept of a person to verify them by, and note in the log that retraining may be due.

    The entry is the same whoever it is: it names no one, and every run that this site has trained in.

    Raises:
        NotFoundError: nobody of this name is enrolled, nor among those whom the site trains on.
    """
    store, name = desk.store, subject_name(subject)
    attempts = Attempts(store, config.verification or VerificationSettings())
    gallery, trained_on = Gallery(store), _in_training_data(config, store, name)
    if gallery.find(name) is None and not trained_on:
        raise NotFoundError(
            f"{name!r} is not enrolled here, and nobody of this name is known to be in the training data; "
            "whether they are there under another name cannot be told",
            safe="nothing was erased",
            next_step="fedpalm-participant subjects lists who is enrolled",
        )
    runs = trained_runs(store)
    with store.transaction() as db:
        erased = gallery.erase(db, name)
        rows = attempts.erase(db, name)
        attempts.count(db, "forgotten")
        entry = desk.log.append(db, EntryKind.SUBJECT_ERASED, _body(runs))
    return Erasure(
        subject=name,
        erased=erased,
        attempts=rows,
        runs=tuple(runs),
        in_training_data=trained_on,
        journal_cut=store.erase_freed(),
        entry_seq=entry.seq,
    )


def in_words(erasure: Erasure) -> list[str]:
    """What was erased, what still remembers, and what to do: a sentence each."""
    gone = [name for name, was_there in erasure.erased.items() if was_there]
    lines = [
        f"Erased: {', '.join(gone) or 'nothing was enrolled'}; {erasure.attempts} attempts; lock-outs. "
        f"Entry {erasure.entry_seq} of the log says so, without a name."
    ]
    if not erasure.journal_cut:
        lines.append(
            "Another process has the database open: sealed bytes of the old records stay in its journal "
            "until that ends. Stop the agent and the service once."
        )
    if erasure.in_training_data is False:
        lines.append(
            "Nobody of this name is in the site's training data. Whether they are there under another name "
            "cannot be told: look for their images yourself."
        )
    else:
        known = "is" if erasure.in_training_data else "may be"
        lines.append(
            f"This name {known} in the site's training data, whose images this command does not delete: "
            "take them out of the data folder, if they are there."
        )
    if erasure.runs:
        lines.append(
            "Trained on this site's data, and so perhaps on this person, under any name: the models of "
            f"{', '.join(erasure.runs)}. To forget there, train anew without them, and retire these models."
        )
    lines.append(
        "Backups of this home still hold the sealed records: delete those, or let them expire."
    )
    return lines


def trained_runs(store: SiteStore) -> list[str]:
    """Runs in which this site has trained, oldest first."""
    rows = store.rows(
        "SELECT run_id FROM runs WHERE run_id IN (SELECT run_id FROM updates) "
        "ORDER BY joined_ms, rowid"
    )
    return [str(row["run_id"]) for row in rows]


def _in_training_data(config: ParticipantConfig, store: SiteStore, name: str) -> bool | None:
    """Whether the site's data have somebody of this name among those who train; None: it cannot be told."""
    run = store.latest_run()
    try:
        if run is None:
            return False
        return name in map(one_spelling, training_identities(config, store, run))
    except (ConfigError, DataError, OSError):
        return None


def _body(runs: Sequence[str]) -> dict[str, str | int]:
    """As many names as an entry holds; run names are short, so that is a hundred at the least."""
    named: list[str] = []
    for run in reversed(runs):
        if len(" ".join([run, *named])) > MAX_NAMES_CHARS:
            break
        named.insert(0, run)
    return {"runs": " ".join(sorted(named)), "earlier": len(runs) - len(named)}
