"""Runs the checks room by room: host, toolchain, machine, guest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.doctor import facts, fixes, guest, host, machine, toolchain
from harness.doctor.expectation import Expectation
from harness.doctor.subject import Check, Subject, failed, fine, trouble
from harness.remote.channels import ContentError
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DownlinkError
from vm.findings import Finding, Severity
from vm.machine import MachineState
from vm.powershell.script import ScriptError

GUEST_SECONDS = 120
"""For the one question to a guest: on a busy Windows its parts take several seconds."""


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair that was tried: what it said, or why it failed."""

    fix: str
    said: str
    ok: bool


@dataclass(slots=True)
class Examination:
    """Looks at a subject, as often as it is asked to.

    Args:
        subject: what to look at.
    """

    subject: Subject
    findings: list[Finding] = field(default_factory=list)

    def look(self) -> list[Finding]:
        """Everything, in the order in which a run would meet the trouble; changes nothing."""
        self.findings = [
            fine("host.configuration", "'harness.toml' is valid"),
            *run_checks(self.subject, (*host.ALL, *toolchain.ALL, *machine.ALL)),
            *self._guest(),
        ]
        return self.findings

    def repair(self) -> list[Repair]:
        """Carry out the harmless repairs that the findings name, each once."""
        wanted = dict.fromkeys(
            each.fix for each in self.findings if each.fix and each.severity is not Severity.OK
        )
        with self._patient() as patient:
            return [_repair(name, patient) for name in wanted]

    def _guest(self) -> Iterator[Finding]:
        try:
            with self._patient() as patient:
                if patient.guest is not None and patient.wanted is not None:
                    yield from examine_guest(patient.guest, patient.wanted)
        except DownlinkError as error:
            yield failed("guest.answer", error)

    @contextmanager
    def _patient(self) -> Iterator[fixes.Patient]:
        """The subject with a connection to its guest, if that runs."""
        subject = self.subject
        controlled = subject.configuration.create_machine(subject.machine.name, subject.driver)
        if controlled.state() is not MachineState.RUNNING:
            yield fixes.Patient(subject)
            return
        wanted = Expectation.of(subject, controlled.abilities)
        with Guest(controlled.address(), machine=subject.machine.name) as connected:
            yield fixes.Patient(subject, connected, wanted)


def run_checks(subject: Subject, checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of some checks; an error of one of them is its finding."""
    for check in checks:
        try:
            yield from check(subject)
        except DownlinkError as error:
            room = check.__module__.rpartition(".")[2]
            yield failed(f"{room}.{check.__name__.replace('_', '-')}", error)


def examine_guest(connected: Guest, wanted: Expectation, deadline: Deadline | None = None) -> list[Finding]:
    """What a running guest's one answer shows.

    Raises:
        GuestError: the guest could not be reached.
    """
    limit = (deadline or Deadline.never()).sooner(seconds=GUEST_SECONDS)
    try:
        found = facts.ask(connected, wanted.service, wanted.inf, limit)
    except ContentError as error:
        return [
            trouble("guest.files", Severity.ERROR, "guest-files", error.message, "files that arrive whole")
        ]
    except ScriptError as error:
        return [trouble("guest.facts", Severity.WARNING, "guest-facts", error.message, "an answer")]
    return list(guest.examine(found, wanted))


def _repair(name: str, patient: fixes.Patient) -> Repair:
    try:
        return Repair(name, fixes.FIXES[name](patient), True)
    except DownlinkError as error:
        return Repair(name, error.message, False)
