"""Faults of the stand-in's host, by configuration: each strikes a number of times, or always, in one script or in all.

In the state under "faults": {"checkpoint-fails": {"times": 2}, "garbage": {"script": "Get-Machine"}}.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vm.hyperv.standin.store import Refusal

REFUSALS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "access-denied": (
            "",
            "access-denied",
            "You do not have the required permission to complete this task.",
        ),
        "vmms-stopped": ("", "vmms-stopped", "the service vmms is Stopped"),
        "module-missing": (
            "",
            "hyperv-missing",
            "the PowerShell module Hyper-V is not installed on this host",
        ),
        "out-of-memory": (
            "Start-Machine",
            "out-of-memory",
            "'vm' failed to start. Could not initialize memory: Insufficient system resources exist to complete the"
            " requested service. (0x800705AA).",
        ),
        "disk-full": ("New-ChildDisk", "disk-full", "There is not enough space on the disk. (0x80070070)."),
        "checkpoint-fails": ("New-Checkpoint", "checkpoint-failed", "Checkpoint operation failed."),
        "merge-in-progress": (
            "Restore-Machine",
            "merge-in-progress",
            "the host is merging the disks of the virtual machine",
        ),
    }
)
"""Faults that are a refusal: the script they strike if none is named ("" = every one), code and message."""

STATES = (
    "stuck-starting",
    "no-heartbeat",
    "no-address",
    "credential-invalid",
    "restore-slow",
    "restore-ineffective",
    "secure-boot",
    "verifier-ignored",
    "guest-crashed",
    "garbage",
    "hang",
)
"""Faults that change what a script does."""


class Faults:
    """The faults of one call."""

    def __init__(self, state: dict[str, Any], script: str) -> None:
        self._configured: dict[str, dict[str, Any]] = state.setdefault("faults", {})
        self._script = script
        unknown = set(self._configured) - {*REFUSALS, *STATES}
        if unknown:
            raise ValueError(f"the stand-in has no fault '{sorted(unknown)[0]}'")

    def strike(self, name: str) -> dict[str, Any] | None:
        """The configuration of a fault that strikes now, counted down; None if it does not."""
        fault = self._configured.get(name)
        if fault is None:
            return None
        script = fault.get("script") or (REFUSALS[name][0] if name in REFUSALS else "")
        if script and script != self._script:
            return None
        if "times" in fault:
            if fault["times"] <= 0:
                return None
            fault["times"] -= 1
        return fault

    def refuse(self) -> None:
        """Raise the refusal of a fault that strikes this script."""
        for name, (_, code, message) in REFUSALS.items():
            if self.strike(name) is not None:
                raise Refusal(code, message)
