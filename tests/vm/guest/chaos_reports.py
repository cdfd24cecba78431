"""What the faults of a guest under test have done."""

from __future__ import annotations

from typing import Any


def firings(machine: Any, name: str) -> int:
    """How often the fault acted."""
    return len(_report(machine, name)["firings"])


def occasions(machine: Any, name: str) -> int:
    """How often it could have."""
    return int(_report(machine, name)["occasions"])


def _report(machine: Any, name: str) -> dict[str, Any]:
    (report,) = [entry for entry in machine.face.chaos.report() if entry["fault"] == name]
    return dict(report)
