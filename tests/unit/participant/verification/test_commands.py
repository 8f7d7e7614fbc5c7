"""The commands, as a person or a script types them: words, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedpalm.errors import (
    ConfigError,
    DataError,
    LockedOutError,
    NotCalibratedError,
    NotFoundError,
    QualityError,
    StateError,
)
from fedpalm.pki.bundle import load_tls_identity
from fedpalm.settings import parse_toml
from participant.cli import main
from participant.cli.verification import NO_MATCH
from participant.config import ParticipantConfig, VerificationSettings, to_toml
from tests.support.verification import VerifyingSite, palm_file

ANNA, BERT = 100, 101


@pytest.fixture
def call(ready: VerifyingSite):
    """A command on the site's home; what it prints."""
    ready.store.close()

    def run(*arguments: object, code: int = 0) -> str:
        words = [*map(str, arguments), "--home", str(ready.home.path)]
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result.stdout

    yield run
    ready.reopen()


@pytest.fixture
def ask(call):
    return lambda *arguments, code=0: json.loads(call(*arguments, "--json", code=code))


def test_from_enrolment_to_erasure(call, ask, tmp_path: Path):
    images = [palm_file(tmp_path, ANNA, touch) for touch in range(3)]
    done = ask("enrol", "anna", *images)
    assert (done["subject"], done["mode"], done["images"]) == ("anna", "open", 3)
    assert [one["side_px"] for one in done["quality"]] == [128, 128, 128]
    found = ask("verify", "anna", palm_file(tmp_path, ANNA, 5))
    assert found["match"] and found["score"] >= found["threshold"]
    assert {"target_fmr", "mode", "model", "run_id", "quality"} <= set(found)
    other = palm_file(tmp_path, BERT, 5)
    assert ask("verify", "anna", other, code=NO_MATCH)["match"] is False
    assert "NO MATCH: score 0." in call("verify", "anna", other, code=NO_MATCH)
    who = ask("identify", images[0])
    assert (who["subject"], who["comparisons"]) == ("anna", 1)
    assert ask("identify", other, code=NO_MATCH)["subject"] is None
    assert "nobody: 1 comparisons" in call("identify", other, code=NO_MATCH)
    assert ask("renew", "anna")["renewed"] == ["anna"]
    assert ask("renew", "--all")["renewed"] == ["anna"]
    assert "anna" in call("subjects")
    (listed,) = ask("subjects")["subjects"]
    assert (listed["subject"], listed["stale"]) == ("anna", False)
    gone = ask("forget", "anna")
    assert gone["erased"] == {"reference": True, "key": True, "images": True}
    assert any("To forget there" in line for line in gone["in_words"])
    assert ask("subjects")["subjects"] == []
    ask("forget", "anna", code=NotFoundError.exit_code)


def test_an_answer_of_no_is_no_error_and_no_error_is_an_answer(
    ready: VerifyingSite, ask, tmp_path: Path
):
    with ready.home.config.open("a") as file:
        file.write("\n[verification]\nmax_failures = 2\n")
    good, other = palm_file(tmp_path, ANNA), palm_file(tmp_path, BERT)
    codes = {
        kind.exit_code
        for kind in (DataError, LockedOutError, NotCalibratedError, NotFoundError, StateError)
    }
    assert NO_MATCH not in codes and NO_MATCH > 16
    ask("verify", "anna", good, code=NotFoundError.exit_code)
    ask("enrol", "anna", good)
    ask("verify", "anna", tmp_path / "nothing.png", code=NotFoundError.exit_code)
    ask("verify", "anna", tmp_path, code=DataError.exit_code)
    error = ask("enrol", "anna", good, code=StateError.exit_code)["error"]
    assert error["code"] == "enrolled" and "--replace" in error["next_step"]
    ask("enrol", "anna", good, "--replace")
    for _ in range(2):
        ask("verify", "anna", other, code=NO_MATCH)
    locked = ask("verify", "anna", good, code=LockedOutError.exit_code)
    assert locked["error"]["code"] == "locked_out" and "score" not in json.dumps(locked)
    ask("unlock", "anna")
    ask("verify", "anna", good)
    error = ask("unlock", "anna", code=NotFoundError.exit_code)["error"]
    assert "has failed since" in error["what"]
    error = ask("unlock", "zoe", code=NotFoundError.exit_code)["error"]
    assert "'zoe' is not enrolled" in error["what"]


def test_a_warning_goes_to_stderr_and_json_stays_one_object(ready: VerifyingSite, tmp_path: Path):
    ready.store.close()
    result = CliRunner().invoke(
        main,
        ["enrol", "anna", str(palm_file(tmp_path, ANNA)), "--json", "--home", str(ready.home.path)],
    )
    assert json.loads(result.stdout)["images"] == 1
    assert "1 of 3 images" in result.stderr
    ready.reopen()


def test_a_calibration_tells_both_modes(ask, call):
    found = ask("calibrate", "--fmr", "0.02")["thresholds"]
    assert [one["mode"] for one in found] == ["closed", "open"]
    assert "FNMR" in call("calibrate", "--fmr", "0.05", "--mode", "open")
    error = ask("calibrate", code=DataError.exit_code)["error"]
    assert "3,000 are needed" in error["what"]
    for wrong in (("--fmr", 0), ("--fmr", -1), ("--fmr", 2), ("--fmr", 0.9)):
        error = ask("calibrate", *wrong, code=ConfigError.exit_code)["error"]
        assert error["next_step"] and error["safe"]
    assert ask("calibrate", "--run", "nope", code=NotFoundError.exit_code)["error"]["next_step"]


def test_a_calibration_says_what_it_replaces(ask, call):
    said = ask("calibrate", "--fmr", "0.05", "--mode", "open")
    assert [one["mode"] for one in said["thresholds"]] == ["open"]
    assert [(one["mode"], one["target_fmr"]) for one in said["replaced"]] == [("open", 0.02)]
    text = call("calibrate", "--fmr", "0.9", "--accept-weak")
    assert "open: replaces the threshold" in text
    assert "at FMR 0.05, now 0.9" in text and "at FMR 0.02, now 0.9" in text


def test_applications_are_allowed_listed_and_revoked(ask, call, tmp_path: Path):
    made = ask("serve", "allow", "door", "--out", tmp_path / "door", "--days", 30)
    assert made["server_name"] == "verifier.north-verification.fedpalm.internal"
    assert (tmp_path / "door").stat().st_mode & 0o077 == 0
    tls = load_tls_identity(tmp_path / "door", now=made["issued_ms"] / 1000)
    assert tls.identity.uri == "spiffe://north-verification/application/door"
    ask("serve", "allow", "door", "--out", tmp_path / "again", code=StateError.exit_code)
    assert not (tmp_path / "again").exists()
    assert "may call" in call("serve", "applications")
    assert ask("serve", "revoke", "door")["revoked"] == 1
    (listed,) = ask("serve", "applications")["applications"]
    assert listed["revoked_ms"] is not None
    ask("serve", "revoke", "door", code=NotFoundError.exit_code)
    ask("serve", "allow", "door", "--out", tmp_path / "again")


def test_liveness_is_said_to_be_out_of_scope():
    for command in ("verify", "identify"):
        shown = CliRunner().invoke(main, [command, "--help"]).stdout
        assert "living hand" in shown and "picture" in shown
    assert "living hand" in CliRunner().invoke(main, ["serve", "--help"]).stdout


def test_renew_tells_a_person_from_a_certificate(tmp_path: Path):
    for words in (["anna", "--all"], ["--run", "x"]):
        result = CliRunner().invoke(main, ["renew", *words, "--home", str(tmp_path)])
        assert result.exit_code == 2


def test_what_needs_no_model_starts_without_torch(ready: VerifyingSite, tmp_path: Path):
    ready.verifier.enrol("anna", [palm_file(tmp_path, ANNA)])
    ready.store.close()
    home = str(ready.home.path)
    script = f"""
import sys
from participant.cli import main
for words in (["subjects"], ["forget", "anna"], ["unlock", "anna"], ["serve", "applications"], ["status"]):
    try:
        main([*words, "--home", {home!r}, "--json"], standalone_mode=False)
    except SystemExit:
        pass
assert "torch" not in sys.modules and "grpc" not in sys.modules, "slow to start"
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"erased"' in done.stdout
    ready.reopen()


def test_the_settings_survive_a_rewrite_of_the_file(site: VerifyingSite):
    settings = VerificationSettings(max_failures=3, keep_images=False, lockout_s=2.5)
    config = site.config.model_copy(update={"verification": settings})
    again = parse_toml(ParticipantConfig, to_toml(config).encode(), "participant.toml")
    assert again == config


def test_a_wrong_setting_is_named(site: VerifyingSite):
    path = site.home.config
    path.write_text(path.read_text() + "[verification]\nmax_failures = 0\nmax_tries = 1\n")
    result = CliRunner().invoke(main, ["subjects", "--home", str(site.home.path), "--json"])
    said = json.loads(result.stdout)["error"]["what"]
    assert "verification.max_failures" in said and "verification.max_tries" in said


def test_an_image_that_is_too_poor_says_what_would_do(ask, tmp_path: Path):
    import numpy as np
    from PIL import Image

    ramp = np.tile(np.linspace(1, 254, 128).astype(np.uint8), (128, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    error = ask("enrol", "anna", tmp_path / "ramp.png", code=QualityError.exit_code)["error"]
    assert error["code"] == "quality" and "region of interest" in error["next_step"]
