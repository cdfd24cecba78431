"""Harmless repairs, by name: what `doctor --fix` may do without asking. None restarts, deletes or lowers anything."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PureWindowsPath
from types import MappingProxyType
from typing import Any

from harness.doctor.expectation import Expectation
from harness.doctor.facts import ticks
from harness.doctor.machine import stale_files
from harness.doctor.subject import Subject
from harness.remote.guest import Guest
from harness.remote.scripts import SOURCES, GuestScripts
from vm.deadline import Deadline
from vm.errors import MachineError
from vm.powershell.script import ParameterValue, Script

FIX_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Patient:
    """What a repair works on; `guest` and `wanted` are None where no guest runs."""

    subject: Subject
    guest: Guest | None = None
    wanted: Expectation | None = None

    def run(self, name: str, parameters: Mapping[str, ParameterValue] | None = None) -> Any:
        """Run one of the scripts in the guest and return its result."""
        script = Script(SOURCES / f"{name}.ps1")
        return GuestScripts(self._guest()).run(script, parameters or {}, Deadline.after(seconds=FIX_SECONDS))

    def _guest(self) -> Guest:
        if self.guest is None:
            raise MachineError("the machine does not run", machine=self.subject.machine.name)
        return self.guest


def make_directories(patient: Patient) -> str:
    """The directories that commands write to."""
    subject = patient.subject
    for place in (subject.configuration.runs.directory, subject.root / ".machines", subject.root / ".cache"):
        place.mkdir(parents=True, exist_ok=True)
    return "made the missing directories"


def remove_stale_state(patient: Patient) -> str:
    """Files of a machine whose process is gone."""
    found = stale_files(patient.subject.state_directory)
    for path in found:
        path.unlink(missing_ok=True)
    return f"removed {', '.join(path.name for path in found)}"


def set_clock(patient: Patient) -> str:
    """The guest's clock after the host's."""
    late = 0
    # The time is old by PowerShell's start when it is set. The first call shows by how much, the second allows for it.
    for _ in range(2):
        done = patient.run("Set-GuestClock", {"UtcTicks": ticks(time.time()) + late})
        late += ticks(time.time()) - int(done["afterTicks"])
    return "set the guest's clock"


def raise_quotas(patient: Patient) -> str:
    """Quotas of WinRM in the guest."""
    patient.run("Set-WinRmQuota")
    return "raised the quotas of WinRM"


def set_crash_dump(patient: Patient) -> str:
    """Dumps after a bugcheck."""
    patient.run("Set-CrashDump")
    return "set CrashControl"


def private_network(patient: Patient) -> str:
    """The category of the guest's networks."""
    patient.run("Set-PrivateNetwork")
    return "made the networks private"


def trust_certificate(patient: Patient) -> str:
    """The test certificate into both stores of the machine, as a deployment does."""
    certificate = patient.wanted.certificate if patient.wanted else None
    if certificate is None or patient.guest is None:
        raise MachineError("there is no certificate to trust yet", hint="./inv build")
    deadline = Deadline.after(seconds=FIX_SECONDS)
    target = str(PureWindowsPath(r"C:\Downlink") / "doctor" / f"{certificate.thumbprint}.cer")
    patient.guest.put_bytes(certificate.der, target, deadline)
    for store in ("Root", "TrustedPublisher"):
        patient.guest.run(["certutil", "-f", "-addstore", store, target], deadline=deadline)
    return "put the certificate into Root and TrustedPublisher"


FIXES: Mapping[str, Callable[[Patient], str]] = MappingProxyType(
    {
        "host.make-directories": make_directories,
        "machine.remove-stale-state": remove_stale_state,
        "guest.set-clock": set_clock,
        "guest.raise-quotas": raise_quotas,
        "guest.set-crash-dump": set_crash_dump,
        "guest.private-network": private_network,
        "guest.trust-certificate": trust_certificate,
    }
)
