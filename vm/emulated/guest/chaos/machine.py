"""Faults of the machine: boots, addresses, clocks, drivers, and tools that refuse or are missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vm.emulated.guest.chaos.fault import ALWAYS, ONCE, Fault, ProgramRefusal, Schedule, Unit

if TYPE_CHECKING:
    from vm.emulated.guest.settings import GuestSettings

_STATUS_FLT_DO_NOT_DETACH = 0xC01C0010
_NO_MORE_ITEMS = 259
_RESTART_INITIATED = 1641


class RestartInRun(Fault):
    """The whole guest restarts while a command runs (windows-lab A.2: 995, then ShellId gone)."""

    name = "restart-in-run"
    habit = Schedule(3, 3)

    def before(self, operation: str) -> None:
        if operation == "Receive" and self.strikes():
            assert self.controls is not None
            self.controls.restart()


class BugcheckInRun(Fault):
    """The machine bugchecks while a command runs; evidence is in the event log and the dump (windows-lab D.4)."""

    name = "bugcheck-in-run"
    habit = Schedule(3, 3)

    def before(self, operation: str) -> None:
        if operation == "Receive" and self.strikes():
            assert self.controls is not None
            self.controls.bugcheck(
                0x139, (3, 0, 0, 0), "chaos: a bugcheck in the middle of a run was asked for"
            )


class SlowBoot(Fault):
    """After a boot nothing answers for a while (windows-lab D.1, 6: up to five minutes until a command works)."""

    name = "slow-boot"
    unit = Unit.SECONDS
    default = 1.0
    habit = ALWAYS

    def boot_delay_seconds(self) -> float:
        return self.value if self.strikes() else 0.0


class PortsChange(Fault):
    """The machine has another address after a restart, as on the Default Switch (windows-lab D.2)."""

    name = "address-changes"
    habit = ALWAYS

    def changes_ports(self) -> bool:
        return self.strikes()


class ClockOff(Fault):
    """The guest's clock is behind: it runs with the time of its snapshot (windows-lab D.2)."""

    name = "clock-off"
    unit = Unit.SECONDS
    default = 86400
    habit = ONCE

    def clock_step_seconds(self, *, first: bool) -> float:
        return -self.value if first and self.strikes() else 0.0


class ClockJumps(Fault):
    """The guest's clock jumps forward at a restart, when time synchronisation acts (windows-lab D.2)."""

    name = "clock-jumps"
    unit = Unit.SECONDS
    default = 7200
    habit = ALWAYS

    def clock_step_seconds(self, *, first: bool) -> float:
        return self.value if not first and self.strikes() else 0.0


class ClockRefuses(Fault):
    """w32tm does not set the clock: the service does not run, or the step is too big (windows-lab D.2)."""

    name = "w32tm-refuses"
    habit = ALWAYS

    def on_program(self, program: str) -> ProgramRefusal | None:
        if program != "w32tm.exe" or not self.strikes():
            return None
        text = "The following error occurred: The service has not been started. (0x80070426)"
        return ProgramRefusal(0x80070426, text)


class TestSigningOff(Fault):
    """Test signing is off, so that the driver's load fails with 577 (windows-lab D.1, 4; H, guest preflight)."""

    name = "testsigning-off"
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        self.strikes()
        return replace(settings, testsigning=False)


class SecureBootOn(Fault):
    """Secure Boot is on: test signing is off and `bcdedit` refuses to switch it on (windows-lab C.5)."""

    name = "secure-boot"
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        self.strikes()
        return replace(settings, testsigning=False, secure_boot=True)


class CertificateExpired(Fault):
    """WinRM speaks HTTPS with a certificate that is no longer valid, as after a clock jump (windows-lab D.2)."""

    name = "certificate-expired"
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        self.strikes()
        return replace(settings, https=True, tls=None, certificate_days=-1)


class CertificateChanged(Fault):
    """WinRM presents another certificate than the one that was pinned when the machine was made (windows-lab D.1)."""

    name = "certificate-changed"
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        self.strikes()
        return replace(settings, https=True, tls=None, certificate_pinned=False)


class PythonMissing(Fault):
    """There is no Python in the guest (windows-lab H, guest preflight)."""

    name = "python-missing"
    habit = ALWAYS

    def program_missing(self, program: str) -> bool:
        return program in ("python.exe", "python3.exe") and self.strikes(program)


class PowerShellMissing(Fault):
    """powershell.exe cannot start: a policy forbids it, or its installation is broken (windows-lab A.4)."""

    name = "powershell-missing"
    habit = ALWAYS

    def program_missing(self, program: str) -> bool:
        return program == "powershell.exe" and self.strikes(program)


class SchtasksRefuses(Fault):
    """Tasks cannot be made: a policy denies it to network logons (windows-lab A.4)."""

    name = "schtasks-refuses"
    habit = ALWAYS

    def on_program(self, program: str) -> ProgramRefusal | None:
        if program != "schtasks.exe" or not self.strikes():
            return None
        return ProgramRefusal(1, "ERROR: Access is denied.")


class PnputilAnswers(Fault):
    """pnputil ends with 3010 (restart needed), 1641 (restart begun) or 259 (nothing newer) (windows-lab C.3).

    What was asked for is done all the same; only a success is changed.
    """

    name = "pnputil"
    unit = Unit.NUMBER
    default = 3010

    def result_of(self, program: str, arguments: Sequence[str], code: int) -> int:
        verbs = {"/add-driver"} if self.value == _NO_MORE_ITEMS else {"/add-driver", "/delete-driver"}
        if program != "pnputil.exe" or code or not verbs & {word.casefold() for word in arguments}:
            return code
        if not self.strikes(" ".join(arguments)):
            return code
        if self.value == _RESTART_INITIATED:
            assert self.controls is not None
            self.controls.restart()
        return int(self.value)


class UnloadRefused(Fault):
    """The filter refuses to be unloaded: 0x801F0010 (windows-lab C.4)."""

    name = "unload-refused"

    def on_unload(self, filter_name: str) -> int | None:
        return _STATUS_FLT_DO_NOT_DETACH if self.strikes(filter_name) else None


class UnloadHangs(Fault):
    """An unload never comes back; only a restart ends it (windows-lab C.4: a deadline, never a blind retry)."""

    name = "unload-hangs"

    def on_unload(self, filter_name: str) -> int | None:
        if self.strikes(filter_name):
            self.pause(float("inf"))
        return None


class LoadRace(Fault):
    """fltmc load fails with 0x80070420 while the old image is still referenced (windows-lab C.3, last point)."""

    name = "load-race"

    def on_load(self, filter_name: str) -> int | None:
        # ERROR_SERVICE_ALREADY_RUNNING
        return 0xC000010E if self.strikes(filter_name) else None


class DeletePending(Fault):
    """A deleted service stays "marked for deletion" (1072) for so many more looks at it (windows-lab C.3)."""

    name = "delete-pending"
    unit = Unit.NUMBER
    default = 3
    habit = ONCE

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # those of the base
        self._left: dict[str, int] = {}

    def keeps_deleted(self, service: str) -> bool:
        name = service.casefold()
        if name not in self._left:
            if not self.strikes(service):
                return False
            self._left[name] = int(self.value)
        self._left[name] -= 1
        return self._left[name] >= 0
