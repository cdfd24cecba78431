"""What the doctor looks at, and how a check says what it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import Configuration, DriverConfig, MachineConfig
from harness.secrets import Secrets
from harness.symptoms import by_id
from vm.errors import DownlinkError
from vm.findings import Finding, Severity


@dataclass(frozen=True, slots=True)
class Subject:
    """A checkout on this host, and one machine of it."""

    configuration: Configuration
    machine: MachineConfig
    driver: DriverConfig
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)

    @property
    def secrets(self) -> Secrets:
        """Where the machine's password is looked for."""
        return self.configuration.secrets

    @property
    def root(self) -> Path:
        """The checkout."""
        return self.configuration.root

    @property
    def state_directory(self) -> Path:
        """Where the machine keeps its state on this host."""
        return self.configuration.machine_directory(self.machine.name)


Check = Callable[[Subject], Iterable[Finding]]
"""Looks at one thing of the host or the machine; a `DownlinkError` that it raises is a finding, too."""


def fine(check: str, found: str) -> Finding:
    """Nothing is wrong."""
    return Finding(check, Severity.OK, found)


def note(check: str, found: str) -> Finding:
    """Nothing is wrong, but results have to be read with it in mind."""
    return Finding(check, Severity.NOTE, found)


def trouble(
    check: str,
    severity: Severity,
    symptom: str,
    found: str,
    wanted: str = "",
    fix: str = "",
    **names: str,
) -> Finding:
    """Something is wrong; the cure is that of the symptom, with `<name>` and the like replaced by `names`."""
    mend = by_id(symptom).cure
    for name, value in names.items():
        mend = mend.replace(f"<{name}>", value)
    return Finding(check, severity, found, wanted, mend, fix)


def failed(check: str, error: DownlinkError) -> Finding:
    """The finding that an error is."""
    return Finding(check, Severity.ERROR, error.message, "", error.hint or "")
