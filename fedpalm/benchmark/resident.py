"""Resident memory of this process, and its peak since a moment (Linux: ``/proc/self``)."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """What the process holds in memory now."""
    return _field("VmRSS")


def peak_resident_bytes() -> int:
    """The most it held since :func:`reset_peak`; where the kernel refuses that, since its start."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Let the peak begin at what is held now; without the right to, the peak can only be too high."""
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except PermissionError:
        return


def _field(name: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
