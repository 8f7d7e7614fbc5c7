"""An installation of the built wheel in an environment of its own, beside what is installed already."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install_wheel(folder: Path) -> dict[str, str]:
    """Build and install the wheel below ``folder``; the environment to run its console scripts in.

    The dependencies are those of the environment that runs the tests, which has the site extra.
    """
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (site_packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    # A path alone: the .pth files beyond it, one of which is this checkout's, are not read.
    (site_packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    environment = {
        **kept,
        "PATH": f"{folder / 'env' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    where = subprocess.run(
        [python, "-c", "import fedpalm; print(fedpalm.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
    ).stdout
    assert str(site_packages) in where, where
    return environment
