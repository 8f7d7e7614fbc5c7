"""The walls of the house, as they stand at run time."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
{imports}
print([m for m in ("torch", "opacus", "sklearn", "matplotlib", "PIL", {other!r}) if m in sys.modules])
"""


def _loaded(imports: str, other: str) -> str:
    script = LOADED.format(imports=imports, other=other)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_coordinator_cannot_run_a_model():
    """Everything that `serve` uses is imported, and neither torch nor a site's code came along."""
    imports = "import coordinator.__main__, coordinator.cli, coordinator.server"
    assert _loaded(imports, "participant") == "[]"


def test_the_site_command_line_starts_without_torch_and_without_the_coordinator():
    assert _loaded("import participant.__main__, participant.cli", "coordinator") == "[]"


def test_the_wire_code_is_generated_from_proto():
    done = subprocess.run(
        [sys.executable, "scripts/generate_proto.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
