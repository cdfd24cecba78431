"""The quick part of the doctor, before a run: stops it with one sentence where it would fail later in an odd place."""

from __future__ import annotations

import time
from collections.abc import Iterable

from harness.config import DriverConfig
from harness.deployment import StepResult
from harness.doctor import host, machine, toolchain
from harness.doctor.examination import examine_guest, run_checks
from harness.doctor.expectation import Expectation
from harness.doctor.subject import Subject
from harness.package import Package
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DownlinkError, MachineError
from vm.findings import Finding, Severity
from vm.machine import Machine

_CHANGES_RESULTS = frozenset({"guest.hvci", "guest.verifier", "guest.defender", "guest.filters"})


class PreflightError(MachineError):
    """Something is wrong that a run would fail of; `findings` are all errors, the first one is the sentence."""

    def __init__(self, findings: list[Finding], machine: str | None) -> None:
        first, *others = findings
        super().__init__(
            _sentence(first),
            hint=first.mend or None,
            machine=machine,
            causes=[DownlinkError(_sentence(each)) for each in others],
        )
        self.findings = tuple(findings)


def before_start(subject: Subject) -> list[Finding]:
    """Look at the host's part, which takes milliseconds, before anything starts or is built.

    Raises:
        PreflightError: something is an error.
    """
    return _passed(run_checks(subject, (*host.QUICK, *toolchain.QUICK, *machine.QUICK)), None)


def in_guest(
    guest: Guest,
    driver: DriverConfig,
    machine: Machine,
    package: Package,
    deadline: Deadline,
    checkpoint: str | None = None,
) -> StepResult:
    """Look at a guest right after its start, with one call, before anything of the run is in it.

    Args:
        guest: the running guest.
        driver: what is going to be installed.
        machine: the machine that the guest runs on.
        package: what a build made of the driver.
        deadline: of the run.
        checkpoint: what the machine was restored to, if that was chosen.

    Returns:
        The step, whose detail names what results have to be read with in mind.

    Raises:
        PreflightError: something is an error; all of them are named.
        GuestError: the guest could not be reached.
    """
    began = time.monotonic()
    wanted = Expectation.of_package(package, driver, machine, checkpoint)
    found = _passed(examine_guest(guest, wanted, deadline), guest.machine)
    return StepResult("look at the guest", _summary(found), False, time.monotonic() - began)


def _summary(findings: list[Finding]) -> str:
    said = [
        each.found
        for each in findings
        if each.severity is Severity.WARNING
        or (each.severity is Severity.NOTE and each.check in _CHANGES_RESULTS)
    ]
    return "; ".join((f"{len(findings)} checks", *said))


def _passed(findings: Iterable[Finding], machine: str | None) -> list[Finding]:
    found = list(findings)
    errors = [each for each in found if each.severity is Severity.ERROR]
    if errors:
        raise PreflightError(errors, machine)
    return found


def _sentence(finding: Finding) -> str:
    room, _, what = finding.check.partition(".")
    wanted = f"; wanted: {finding.wanted}" if finding.wanted else ""
    return f"the {room} is not fit for a run ({what}): {finding.found}{wanted}"
