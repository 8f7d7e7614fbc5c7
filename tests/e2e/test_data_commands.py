"""A data set as distributed, from its folder to a look at it, through the installed program."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fedpalm.data.palms import synthetic_palms

from .harness import run_cli, run_json


def test_a_palmprint_set_is_looked_at_and_shown_a_site_a_row(tmp_path: Path):
    palms = synthetic_palms(tmp_path / "cache", 1, 8, 4, seed=3)[0]
    for record in palms:
        person, number = int(record.identity[-4:]), int(record.path.stem) + 1
        hand = tmp_path / "iitd" / "Segmented" / ("Left" if person % 2 else "Right")
        hand.mkdir(parents=True, exist_ok=True)
        with Image.open(record.path) as image:
            image.resize((150, 150)).save(hand / f"{person // 2 + 1:03d}_{number}.bmp")

    report = run_json("fedpalm", "data", "preflight", tmp_path / "iitd")
    assert (report["identities"], report["images"]) == (8, 32)
    assert report["width_px"] == [150, 150]

    page = tmp_path / "page.png"
    size = ("--sites", "2", "--identities", "2", "--images", "3", "--tile-px", "32")
    run_cli("fedpalm", "data", "sample", tmp_path / "iitd", "--out", page, *size)
    with Image.open(page) as image:
        assert image.size == (6 * 32 + 8, 2 * 32)
