"""Enrol, verify, identify, renew and calibrate, with one model for all calls.

Everything is decided at the site. The model is loaded at the first call that looks at an image. Nothing
here looks for presentation attacks: a good picture of a palm, or of a signature, may pass for it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fedpalm.data.names import one_spelling
from fedpalm.data.roi import Grey
from fedpalm.data.signatures import ForgeryKind
from fedpalm.errors import (
    DataError,
    EnrolledError,
    NotFoundError,
    StaleReferenceError,
    StateError,
)
from fedpalm.protection import KEY_BYTES, Transform, score

from ..config import ParticipantConfig, VerificationSettings
from ..store import SiteStore
from .attempts import Attempts, Outcome
from .calibrate import (
    Tick,
    calibrate,
    development_pairs,
    require_enough,
    require_kind,
    require_rate,
    stays,
)
from .gallery import MODES, Gallery, Mode, Reference, fuse, subject_name
from .looks import ImageSource, Looks, require_files
from .model import ModelId, StoredModel, Templates, training_identities
from .results import Enrolment, Identification, Renewal, Verification
from .sensor import sensor_of
from .thresholds import Threshold, Thresholds

MAX_IMAGES = 20
FAILURES_TO_ENROL = "failures_to_enrol"
_UNDECIDED = "nothing was decided"


class Verifier:
    """Who people are, as far as this site's model can tell. Safe to use from several threads.

    Args:
        run_id: whose model to use; None takes the run that was completed last.
    """

    def __init__(
        self, config: ParticipantConfig, store: SiteStore, run_id: str | None = None
    ) -> None:
        self._config, self._store = config, store
        self.settings = config.verification or VerificationSettings()
        self.gallery, self.thresholds = Gallery(store), Thresholds(store)
        self.attempts = Attempts(store, self.settings)
        self.looks = Looks(config, store, self.attempts, run_id)

    @property
    def stored_model(self) -> StoredModel:
        """Which model is in use. Raises as :func:`.model.find_model`."""
        return self.looks.stored

    @property
    def model_id(self) -> ModelId:
        return self.looks.model_id

    def load(self) -> None:
        """Build the networks now, rather than at the first image. Raises as :meth:`StoredModel.build`."""
        self.looks.model()

    def enrol(
        self,
        subject: str,
        images: Sequence[ImageSource],
        *,
        mode: Mode | Literal["auto"] = "auto",
        replace: bool = False,
    ) -> Enrolment:
        """Keep a protected reference of somebody, made from one or several images of them.

        Args:
            mode: auto is closed for a name that this site trained on, open for all others.
            replace: of somebody who is enrolled: make key and reference anew.
        Raises:
            EnrolledError: they are enrolled, and ``replace`` is not set.
            NotFoundError: there is no such file.
            DataError, QualityError: an image cannot be used; nothing is stored.
        """
        name = subject_name(subject)
        known = self.gallery.find(name)
        if known is not None and not replace:
            raise EnrolledError(
                f"{name!r} is enrolled already",
                safe="their reference stays as it is",
                next_step="choose another name, or replace them on purpose: --replace",
            )
        if not 1 <= len(images) <= MAX_IMAGES:
            raise DataError(f"{len(images)} images: 1 to {MAX_IMAGES} are needed to enrol")
        safe = "nobody was enrolled" if known is None else "their reference stays as it is"
        require_files(images, safe=safe)
        chosen = self._mode_of(name) if mode == "auto" else mode
        try:
            greys, qualities = self.looks.acquire(images, safe=safe)
        except DataError:
            self.attempts.tell(FAILURES_TO_ENROL)
            raise
        templates = self.looks.templates(chosen, greys)
        resembles = self._resembling(greys, but=name)
        kept = greys if self.settings.keep_images else None
        reference, misfits = self._keep(name, chosen, templates, kept, known)
        of_images = (*(w for one in qualities for w in one.warnings), *misfits)
        warnings = []
        if self.thresholds.current(chosen, self.model_id.hash) is None:
            warnings.append(f"no threshold of {chosen} comparisons: calibrate before you verify")
        warnings += [
            f"matches {other!r}, who is enrolled: one person twice?" for other in resembles
        ]
        return Enrolment(
            subject=name,
            mode=chosen,
            model=self.model_id,
            images=reference.images,
            kept_images=kept is not None,
            resembles=resembles,
            quality=qualities,
            image_warnings=of_images,
            warnings=(*of_images, *warnings),
        )

    def verify(self, subject: str, image: ImageSource, *, caller: str = "") -> Verification:
        """Is this who they claim to be?

        Args:
            caller: the application that asks; its attempts have a limit of their own.
        Raises:
            LockedOutError, TooManyAttemptsError: the image was not looked at.
            NotFoundError, StaleReferenceError, NotCalibratedError: nothing can be decided.
            DataError, QualityError: the image cannot be used.
        """
        name = subject_name(subject)
        require_files([image], safe=_UNDECIDED)
        with self.attempts.attempt("verify", name, caller) as attempt:
            reference = self.gallery.get(name)
            self._require_current(reference)
            threshold = self.thresholds.require(reference.mode, reference.model)
            greys, (quality,) = self.looks.acquire([image], safe=_UNDECIDED)
            probe = self.gallery.transform(reference).apply(
                self.looks.templates(reference.mode, greys)
            )
            found = score(probe[0], reference.protected)
            match = found >= threshold.value
            attempt.outcome = Outcome.MATCH if match else Outcome.NON_MATCH
        return Verification(
            subject=name,
            match=match,
            score=found,
            threshold=threshold.value,
            target_fmr=threshold.target_fmr,
            against=threshold.against,
            mode=reference.mode,
            model=self.model_id,
            quality=quality,
        )

    def identify(self, image: ImageSource, *, caller: str = "") -> Identification:
        """Who of those enrolled is this, if anybody?

        The best comparison has to reach the threshold for one comparison; how much more likely a false
        match is among so many is in the answer.

        Raises:
            TooManyAttemptsError: the image was not looked at.
            NotFoundError: there is no such file.
            NotCalibratedError: no mode has a threshold.
            DataError, QualityError: the image cannot be used.
        """
        require_files([image], safe=_UNDECIDED)
        with self.attempts.attempt("identify", None, caller) as attempt:
            references = list(self.gallery.all())
            limits = self._limits({one.mode for one in references} or {"open"})
            able = [one for one in references if self._can_be_identified(one, limits)]
            greys, (quality,) = self.looks.acquire([image], safe=_UNDECIDED)
            found = self.looks.ranked(greys, able, limits)
            matches = [one for one in found if one.above >= 0]
            attempt.outcome = Outcome.MATCH if matches else Outcome.NON_MATCH
        compared = [one.mode for one in able]
        bounds = (limits[mode].fpir_bound(compared.count(mode)) for mode in set(compared))
        best = matches[0] if matches else None
        return Identification(
            subject=best.reference.subject if best else None,
            score=best.score if best else None,
            threshold=limits[best.reference.mode].value if best else None,
            mode=best.reference.mode if best else None,
            comparisons=len(able),
            left_out=len(references) - len(able),
            fpir_bound=min(1.0, sum(bounds)),
            model=self.model_id,
            quality=quality,
        )

    def renew(
        self, subjects: Iterable[str] | None = None, images: Sequence[ImageSource] | None = None
    ) -> Renewal:
        """Give people a new key, and make their references again, with the model in use.

        Args:
            subjects: None means everybody.
            images: of the one subject that is named, where none are kept.
        Raises:
            NotFoundError: somebody is not enrolled, one is named of whom there are no images, or there
                is no such file.
            DataError, QualityError: an image cannot be used; that person stays as they were.
        """
        named = None if subjects is None else [subject_name(one) for one in subjects]
        if images is not None and (named is None or len(named) != 1):
            raise DataError("images renew one person, who has to be named")
        known = (
            list(self.gallery.all()) if named is None else [self.gallery.get(one) for one in named]
        )
        safe = "their reference and key stay as they are"
        require_files(images or (), safe=safe)
        done, without = [], []
        for reference in known:
            greys = (
                self.looks.acquire(images, safe=safe)[0] if images else self._kept_images(reference)
            )
            if greys is None:
                without.append(reference.subject)
                continue
            kept = greys if self.settings.keep_images else None
            templates = self.looks.templates(reference.mode, greys)
            self._keep(reference.subject, reference.mode, templates, kept, reference)
            done.append(reference.subject)
        if without and named is not None and len(named) == 1:
            raise NotFoundError(
                f"no images of {without[0]!r} are kept here that show a "
                f"{self.looks.stored.sensor.noun}",
                safe=safe,
                next_step="give images: fedpalm-participant renew SUBJECT IMAGES",
            )
        return Renewal(tuple(done), tuple(without), self.model_id)

    def calibrate(
        self,
        target_fmr: float,
        *,
        against: ForgeryKind = "random",
        modes: Sequence[Mode] = ("closed", "open"),
        accept_weak: bool = False,
        seed: int = 0,
        tick: Tick = lambda what, done, total: None,
    ) -> list[Threshold]:
        """Set the thresholds of these modes, all or none, on the site's own development pairs.

        Args:
            against: whose claims the rate is of; what all others would get is stored with the threshold.
            accept_weak: allow a target above :data:`.calibrate.WEAK_FMR`.
        Raises:
            ConfigError: no data are configured, nobody forges so, or the target is no rate, or weak.
            DataError: there are too few pairs for the target, or an image cannot be used.
        """
        in_force = [one for one in MODES if self.thresholds.current(one, self.model_id.hash)]
        safe = stays(in_force)
        require_kind(against, self.stored_model.sensor, safe=safe)
        require_rate(target_fmr, against, accept_weak=accept_weak, safe=safe)
        wanted = [development_pairs(self._config, self.stored_model, mode) for mode in modes]
        require_enough(wanted, target_fmr, against, safe=safe)
        model, images, now = (
            self.looks.model(),
            self.settings.images_per_reference,
            self._store.now_ms(),
        )
        found = [
            calibrate(
                model,
                pairs,
                target_fmr=target_fmr,
                against=against,
                images=images,
                seed=seed,
                now_ms=now,
                tick=tick,
            )
            for pairs in wanted
        ]
        with self._store.transaction() as db:
            self.thresholds.put(db, found)
        return found

    # --- inside -----------------------------------------------------------------------------------

    def _mode_of(self, subject: str) -> Mode:
        trained_on = training_identities(self._config, self._store, self.stored_model.run)
        return "closed" if subject in map(one_spelling, trained_on) else "open"

    def _keep(
        self,
        name: str,
        mode: Mode,
        templates: Templates,
        kept: Grey | None,
        known: Reference | None,
    ) -> tuple[Reference, list[str]]:
        """Make a key and a reference and store both; warnings about images that do not fit together."""
        key, now = secrets.token_bytes(KEY_BYTES), self._store.now_ms()
        transform = Transform.of(key, templates.shape[1])
        reference = Reference(
            subject=name,
            mode=mode,
            model=self.model_id.hash,
            run_id=self.model_id.run_id,
            protected=transform.apply(fuse(templates))[0],
            length=templates.shape[1],
            images=len(templates),
            images_kept=kept is not None,
            enrolled_ms=now if known is None else known.enrolled_ms,
            renewed_ms=now,
        )
        with self._store.transaction() as db:
            if (self.gallery.find(name) is None) != (known is None):
                raise StateError(
                    f"{name!r} was enrolled, or forgotten, by somebody else meanwhile",
                    safe="nothing was stored",
                    next_step="look at fedpalm-participant subjects, and try again",
                )
            self.gallery.put(db, reference, key, kept)
            self.attempts.count(db, "enrolled" if known is None else "renewed")
        self._store.erase_freed()
        return reference, self._misfits(transform, templates, mode)

    def _kept_images(self, reference: Reference) -> Grey | None:
        """What the model in use can look at: of palms it makes no templates of signatures."""
        run = self._store.run(reference.run_id)
        if run is not None and sensor_of(run.plan).noun != self.looks.stored.sensor.noun:
            return None
        return self.gallery.images(reference.subject)

    def _misfits(self, transform: Transform, templates: Templates, mode: Mode) -> list[str]:
        """Images that would not match a reference made from the others of the same person."""
        threshold = self.thresholds.current(mode, self.model_id.hash)
        if threshold is None or len(templates) < 2:
            return []
        protected = transform.apply(templates)
        found = []
        for number in range(len(templates)):
            rest = fuse(np.delete(templates, number, axis=0))
            if score(protected[number], transform.apply(rest)[0]) < threshold.value:
                stranger = self.looks.stored.sensor.stranger
                found.append(f"image {number + 1} does not match the others: {stranger}?")
        return found

    def _resembling(self, greys: Grey, *, but: str) -> tuple[str, ...]:
        """Whom of those enrolled these images match, by the thresholds that there are."""
        references = [one for one in self.gallery.all() if one.subject != but]
        limits = self._limits({one.mode for one in references}, strict=False)
        able = [one for one in references if one.model == self.model_id.hash and one.mode in limits]
        found = self.looks.ranked(greys, able, limits)
        return tuple(one.reference.subject for one in found if one.above >= 0)

    def _limits(self, modes: Iterable[Mode], *, strict: bool = True) -> dict[Mode, Threshold]:
        """Thresholds of these modes; strict: at least one. Raises NotCalibratedError."""
        model = self.model_id.hash
        limits = {mode: self.thresholds.current(mode, model) for mode in sorted(set(modes))}
        found = {mode: one for mode, one in limits.items() if one is not None}
        if strict and not found:
            self.thresholds.require(sorted(limits)[0], model)
        return found

    def _can_be_identified(self, one: Reference, limits: dict[Mode, Threshold]) -> bool:
        current = one.model == self.model_id.hash and one.mode in limits
        return current and self.attempts.locked_until_ms(one.subject) is None

    def _require_current(self, reference: Reference) -> None:
        if reference.model != self.model_id.hash:
            raise StaleReferenceError(
                f"the reference of {reference.subject!r} was made by another model "
                f"(run {reference.run_id}) than the one in use (run {self.model_id.run_id})",
                safe="nothing was compared",
                next_step="make it again: fedpalm-participant renew SUBJECT, or renew --all",
            )
