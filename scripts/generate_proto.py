"""Generate fedpalm/wire/v1 from proto/, or with --check fail if the committed code has drifted."""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "proto").rglob("*.proto"))
PACKAGE = Path("fedpalm/wire/v1")


def generate(into: Path) -> None:
    """Write the message, stub and typing modules of every .proto file below ``into``."""
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{well_known}"]
    arguments += [f"--{kind}={into}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main([*arguments, *map(str, SOURCES)]) != 0:
        raise SystemExit("protoc failed")


def drifted(fresh: Path) -> list[str]:
    """Names of generated files that are missing, stale or left over in the tree."""
    made = {path.name for path in fresh.iterdir()}
    kept = {path.name for path in (ROOT / PACKAGE).glob("*_pb2*")}
    _, different, errors = filecmp.cmpfiles(fresh, ROOT / PACKAGE, made & kept, shallow=False)
    return sorted({*different, *errors, *(made ^ kept)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, change nothing")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        if names := drifted(Path(folder) / PACKAGE):
            sys.exit(f"{PACKAGE} has drifted from proto/: {', '.join(names)}\nNext: make proto")


if __name__ == "__main__":
    main()
