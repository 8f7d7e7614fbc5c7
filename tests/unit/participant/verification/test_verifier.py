"""Enrol, verify, identify, renew: what is decided, what is refused, and what lies at rest."""

from __future__ import annotations

import numpy as np
import pytest

from fedpalm.errors import (
    DataError,
    EnrolledError,
    NotCalibratedError,
    NotFoundError,
    QualityError,
    StaleReferenceError,
    StateError,
    VaultError,
)
from fedpalm.protection import score
from participant.verification import open_verifier
from participant.verification.gallery import IMAGES, KEY, REFERENCE
from participant.verification.subjects import forget
from participant.verification.verifier import Verifier
from tests.support.participant import World
from tests.support.verification import VerifyingSite, palm, palm_file

ANNA, BERT = 100, 101
"""Nobody trained on them."""


def touches(person, *numbers):
    return [palm(person, number) for number in numbers]


def test_a_person_matches_themselves_and_nobody_else(ready: VerifyingSite):
    done = ready.verifier.enrol("Anna Åkesson", touches(ANNA, 0, 1, 2))
    assert (done.mode, done.images, done.kept_images) == ("open", 3, True)
    assert done.resembles == () and done.warnings == ()
    found = ready.verifier.verify("Anna Åkesson", palm(ANNA, 9))
    assert found.match and found.score >= found.threshold
    assert found.target_fmr == 0.02 and found.model == ready.verifier.model_id
    wrong = ready.verifier.verify("Anna Åkesson", palm(BERT, 9))
    assert not wrong.match and wrong.score < wrong.threshold


def test_an_image_may_be_a_file_its_bytes_or_pixels(ready: VerifyingSite, tmp_path):
    file = palm_file(tmp_path, ANNA, 5)
    ready.verifier.enrol("anna", [file])
    kinds = (file, str(file), file.read_bytes(), palm(ANNA, 5))
    assert {ready.verifier.verify("anna", kind).score for kind in kinds} == {1.0}


def test_whom_the_site_trained_on_is_verified_by_its_own_model(ready: VerifyingSite):
    trained_on = ready.verifier.stored_model
    from participant.verification.model import training_identities

    name = training_identities(ready.config, ready.store, trained_on.run)[0]
    person = int(name[1:])
    assert ready.verifier.enrol(name, touches(person, 7, 8)).mode == "closed"
    assert ready.verifier.verify(name, palm(person, 9)).mode == "closed"
    assert ready.verifier.enrol("anna", touches(ANNA, 0), mode="closed").mode == "closed"


def test_a_name_is_enrolled_once_unless_it_is_replaced(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0))
    with pytest.raises(EnrolledError):
        ready.verifier.enrol(" anna ", touches(BERT, 0))
    assert ready.verifier.verify("anna", palm(ANNA, 1)).match
    ready.verifier.enrol("anna", touches(BERT, 0), replace=True)
    assert not ready.verifier.verify("anna", palm(ANNA, 1)).match


def test_somebody_who_is_enrolled_under_another_name_is_noticed(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0, 1))
    again = ready.verifier.enrol("annabel", touches(ANNA, 2, 3))
    assert again.resembles == ("anna",)
    assert any("one person twice" in warning for warning in again.warnings)


def test_images_of_two_people_in_one_enrolment_are_noticed(ready: VerifyingSite):
    mixed = ready.verifier.enrol("anna", [*touches(ANNA, 0, 1), *touches(BERT, 0)])
    assert "image 3 does not match the others: another palm?" in mixed.warnings


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 401, "a\x00"])
def test_a_name_that_cannot_be_seen_or_kept_is_refused(site: VerifyingSite, name):
    with pytest.raises(DataError, match="no name"):
        site.verifier.enrol(name, touches(ANNA, 0))


def test_without_a_threshold_nothing_is_decided(site: VerifyingSite):
    done = site.verifier.enrol("anna", touches(ANNA, 0))
    assert any("calibrate before" in warning for warning in done.warnings)
    with pytest.raises(NotCalibratedError):
        site.verifier.verify("anna", palm(ANNA, 1))
    with pytest.raises(NotCalibratedError):
        site.verifier.identify(palm(ANNA, 1))


def test_the_threshold_of_the_other_mode_does_not_do(site: VerifyingSite):
    site.verifier.calibrate(0.02, modes=["closed"])
    site.verifier.enrol("anna", touches(ANNA, 0))
    with pytest.raises(NotCalibratedError, match="open"):
        site.verifier.verify("anna", palm(ANNA, 1))


def test_a_reference_of_another_model_is_refused_until_it_is_renewed(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0, 1))
    ready.train("toy-2", weight=2.0)
    with pytest.raises(StaleReferenceError, match=r"toy-1.*toy-2") as refused:
        ready.verifier.verify("anna", palm(ANNA, 2))
    assert "renew --all" in refused.value.next_step
    with pytest.raises(NotCalibratedError, match="another model"):
        ready.verifier.identify(palm(ANNA, 2))
    assert ready.verifier.renew().renewed == ("anna",)
    with pytest.raises(NotCalibratedError, match="another model"):
        ready.verifier.verify("anna", palm(ANNA, 2))
    ready.verifier.calibrate(0.02)
    assert ready.verifier.verify("anna", palm(ANNA, 2)).match


def test_private_state_that_changed_is_another_model(ready: VerifyingSite):
    before = ready.verifier.model_id
    store = ready.store
    with store.files(), store.transaction() as db:
        store.replace_state(db, "toy-1", {"head.open.prototypes": np.ones((12, 3), np.float32)})
    after = Verifier(ready.config, store).model_id
    assert after.hash != before.hash and after.run_id == before.run_id


def test_a_renewed_reference_has_another_key_and_the_old_one_is_gone(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0, 1))
    old_key = ready.store.items.get(KEY, "anna")
    old = ready.verifier.gallery.get("anna")
    ready.verifier.renew(["anna"])
    new = ready.verifier.gallery.get("anna")
    assert ready.store.items.get(KEY, "anna") != old_key
    # Under another key the same images agree by chance.
    assert abs(score(new.protected, old.protected) - 0.5) < 0.1
    assert (new.enrolled_ms, new.images) == (old.enrolled_ms, 2)
    assert ready.verifier.verify("anna", palm(ANNA, 2)).match


def test_where_no_images_are_kept_a_renewal_needs_some(ready: VerifyingSite):
    ready.set(keep_images=False)
    assert not ready.verifier.enrol("anna", touches(ANNA, 0)).kept_images
    assert ready.store.items.get(IMAGES, "anna") is None
    with pytest.raises(NotFoundError, match="no images"):
        ready.verifier.renew(["anna"])
    assert ready.verifier.renew().without_images == ("anna",)
    assert ready.verifier.renew(["anna"], touches(ANNA, 1)).renewed == ("anna",)
    assert ready.store.items.get(IMAGES, "anna") is None


def test_who_somebody_is_among_many(ready: VerifyingSite):
    for person in range(100, 106):
        ready.verifier.enrol(f"n{person}", touches(person, 0, 1))
    found = ready.verifier.identify(palm(103, 5))
    assert (found.subject, found.comparisons, found.left_out) == ("n103", 6, 0)
    upper = ready.verifier.thresholds.require("open", found.model.hash).fmr_interval[1]
    assert found.fpir_bound == pytest.approx(min(1.0, 6 * upper))
    nobody = ready.verifier.identify(palm(200, 5))
    assert (nobody.subject, nobody.score, nobody.comparisons) == (None, None, 6)


def test_an_identification_looks_through_both_modes(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0, 1))
    ready.verifier.enrol("bert", touches(BERT, 0, 1), mode="closed")
    assert ready.verifier.identify(palm(BERT, 3)).mode == "closed"
    assert ready.verifier.identify(palm(ANNA, 3)).subject == "anna"


def test_a_poor_image_is_a_failure_to_acquire_and_nothing_is_kept(ready: VerifyingSite):
    flat = np.tile(np.linspace(1, 254, 128).astype(np.uint8), (128, 1))
    with pytest.raises(QualityError, match="sharpness"):
        ready.verifier.enrol("anna", [palm(ANNA), flat])
    assert list(ready.verifier.gallery.all()) == []
    counts = ready.verifier.attempts.counts()
    assert (counts["failures_to_enrol"], counts["failures_to_acquire"]) == (1, 1)
    ready.verifier.enrol("anna", touches(ANNA, 0))
    with pytest.raises(DataError):
        ready.verifier.verify("anna", np.full((128, 128), 7, dtype=np.uint8))
    counts = ready.verifier.attempts.counts()
    assert (counts["failures_to_acquire"], counts["verify_not_acquired"]) == (2, 1)


def test_a_path_without_an_image_is_nobodys_failure(ready: VerifyingSite, tmp_path):
    use = ready.verifier
    use.enrol("anna", touches(ANNA, 0))
    before = use.attempts.counts()
    wrong = (
        (tmp_path / "nothing.png", NotFoundError, "no such file"),
        ("x" * 5000, NotFoundError, "no such file"),
        (tmp_path, DataError, "a folder"),
    )
    for path, kind, why in wrong:
        for safe, call in (
            ("nobody was enrolled", lambda path=path: use.enrol("bert", [palm(BERT), path])),
            ("nothing was decided", lambda path=path: use.verify("anna", path)),
            ("nothing was decided", lambda path=path: use.identify(path)),
            ("their reference", lambda path=path: use.renew(["anna"], [path])),
        ):
            with pytest.raises(kind, match=why) as refused:
                call()
            assert safe in refused.value.safe and refused.value.next_step
            assert "region of interest" not in refused.value.next_step
    assert use.attempts.counts() == before
    assert ready.store.rows("SELECT * FROM verification_attempts") == []


def test_a_refused_image_says_what_that_means_for_the_person(ready: VerifyingSite, tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    flat = np.tile(np.linspace(1, 254, 128).astype(np.uint8), (128, 1))
    for poor in (text, flat):
        with pytest.raises(DataError) as refused:
            ready.verifier.enrol("anna", [poor])
        assert refused.value.safe == "nobody was enrolled"
        assert "another image" in refused.value.next_step
    ready.verifier.enrol("anna", touches(ANNA, 0))
    for call in (ready.verifier.identify, lambda image: ready.verifier.verify("anna", image)):
        with pytest.raises(DataError) as refused:
            call(text)
        assert refused.value.safe == "nothing was decided"


def test_nothing_about_a_person_lies_in_the_clear(ready: VerifyingSite):
    images = touches(ANNA, 0, 1)
    ready.verifier.enrol("Anna Åkesson", images)
    ready.verifier.verify("Anna Åkesson", palm(ANNA, 2))
    reference = ready.verifier.gallery.get("Anna Åkesson")
    raw = ready.verifier.looks.templates("open", np.stack(images))
    key = ready.store.items.get(KEY, "Anna Åkesson")
    at_rest = ready.bytes_at_rest()
    for secret in (
        "Åkesson".encode(),
        raw[0].tobytes()[:64],
        raw.mean(axis=0).tobytes()[:64],
        reference.protected.tobytes()[:64],
        images[0].tobytes()[:128],
        key,
    ):
        assert secret not in at_rest


def test_the_vault_holds_no_unprotected_template(ready: VerifyingSite):
    images = touches(ANNA, 0, 1)
    ready.verifier.enrol("anna", images)
    raw = ready.verifier.looks.templates("open", np.stack(images))
    sealed = [ready.store.items.get(kind, "anna") for kind in (REFERENCE, KEY, IMAGES)]
    for template in (*raw, raw.mean(axis=0)):
        assert all(template.tobytes()[:32] not in (item or b"") for item in sealed)


def test_who_is_forgotten_while_they_are_renewed_stays_forgotten(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0))
    looks = ready.verifier.looks
    make = looks.templates

    def forgotten_meanwhile(mode, greys):
        forget(ready.config, ready.desk, "anna")
        return make(mode, greys)

    looks.templates = forgotten_meanwhile
    with pytest.raises(StateError, match="meanwhile"):
        ready.verifier.renew(["anna"])
    assert list(ready.verifier.gallery.all()) == []


def test_two_who_enrol_one_name_at_once_do_not_replace_each_other(ready: VerifyingSite):
    looks, other = ready.verifier.looks, Verifier(ready.config, ready.store)
    make = looks.templates

    def enrolled_meanwhile(mode, greys):
        looks.templates = make
        other.enrol("anna", touches(BERT, 0))
        return make(mode, greys)

    looks.templates = enrolled_meanwhile
    with pytest.raises(StateError, match="meanwhile"):
        ready.verifier.enrol("anna", touches(ANNA, 0))
    assert ready.verifier.verify("anna", palm(BERT, 1)).match


def test_a_record_that_was_altered_verifies_nobody(ready: VerifyingSite):
    ready.verifier.enrol("anna", touches(ANNA, 0))
    with ready.store.transaction() as db:
        db.execute(
            "UPDATE vault_items SET sealed = zeroblob(length(sealed)) WHERE kind = ?", (REFERENCE,)
        )
    ready.store.close()
    ready.reopen()
    with pytest.raises(VaultError):
        ready.verifier.verify("anna", palm(ANNA, 1))


def test_a_notebook_opens_a_verifier_of_a_home(ready: VerifyingSite):
    ready.store.close()
    with open_verifier(ready.home.path) as verifier:
        verifier.enrol("anna", touches(ANNA, 0, 1))
        assert verifier.verify("anna", palm(ANNA, 2)).match
    ready.reopen()
    with open_verifier(str(ready.home.path), run="toy-1") as verifier:
        assert verifier.identify(palm(ANNA, 3)).subject == "anna"


def test_a_notebook_may_ask_for_the_passphrase(world: World):
    home = world.home("north")
    home.config.write_text(home.config.read_text() + '\n[vault]\npassphrase = "ask"\n')
    with open_verifier(home.path, ask=lambda prompt: "correct horse battery staple") as verifier:
        mark = verifier.attempts._mark("anna")
    with open_verifier(home.path) as verifier, pytest.raises(VaultError, match="terminal"):
        verifier.attempts._mark("anna")
    wrong = open_verifier(home.path, ask=lambda prompt: "another one entirely")
    with wrong as verifier, pytest.raises(VaultError):
        verifier.attempts._mark("anna")
    with open_verifier(home.path, ask=lambda prompt: "correct horse battery staple") as verifier:
        assert verifier.attempts._mark("anna") == mark


def test_without_a_completed_run_there_is_no_model(site: VerifyingSite):
    with pytest.raises(NotFoundError, match="has not joined"):
        Verifier(site.config, site.store, "elsewhere").load()
    with site.store.transaction() as db:
        db.execute("UPDATE runs SET state = 'aborted'")
    with pytest.raises(NotFoundError, match="completed"):
        Verifier(site.config, site.store).load()
    Verifier(site.config, site.store, "toy-1").load()


def test_an_inference_needs_no_training_images(site: VerifyingSite, tmp_path):
    config = site.config.model_copy(update={"data": None})
    verifier = Verifier(config, site.store)
    assert verifier.enrol("anna", touches(ANNA, 0)).mode == "open"
    assert verifier.looks._built._method.images.classes == 12
