"""Faults of shells and commands: quotas, lost shells, output and input that arrive in bad shape."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vm.emulated.guest.chaos.fault import ALWAYS, Fault, Interruption, Unit

if TYPE_CHECKING:
    from vm.emulated.guest.settings import GuestSettings


class ShellsLost(Fault):
    """The WinRM service restarts: connections and shells are gone, the machine is not (windows-lab A.2, 2150858843)."""

    name = "shells-lost"

    def before(self, operation: str) -> None:
        if operation == "Command" and self.strikes(operation):
            assert self.controls is not None
            self.controls.restart_winrm()
            raise Interruption


class ShellsLostInReceive(Fault):
    """The WinRM service restarts while a command runs: its output and its exit code are gone (windows-lab A.2, 995)."""

    name = "shells-lost-in-receive"

    def after(self, operation: str) -> None:
        if operation == "Receive" and self.strikes(operation):
            assert self.controls is not None
            self.controls.restart_winrm()
            raise Interruption


class MaxShells(Fault):
    """A low MaxShellsPerUser: leaked shells bite at once, fault 2150859173 (windows-lab A.2)."""

    name = "max-shells"
    unit = Unit.NUMBER
    default = 2
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, quotas=replace(settings.quotas, max_shells_per_user=int(self.value)))

    def noticed(self, place: str) -> None:
        if place == "too many shells":
            self.strikes()


class MaxProcesses(Fault):
    """A low MaxProcessesPerShell: commands without a Signal at their end bite, fault 2150859241 (windows-lab A.2)."""

    name = "max-processes"
    unit = Unit.NUMBER
    default = 2
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, quotas=replace(settings.quotas, max_processes_per_shell=int(self.value)))

    def noticed(self, place: str) -> None:
        if place == "too many commands":
            self.strikes()


class MaxOperations(Fault):
    """A low MaxConcurrentOperationsPerUser, fault 2150859174 (windows-lab A.2)."""

    name = "max-operations"
    unit = Unit.NUMBER
    default = 2
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, quotas=replace(settings.quotas, max_operations_per_user=int(self.value)))

    def noticed(self, place: str) -> None:
        if place == "too many operations":
            self.strikes()


class SmallEnvelope(Fault):
    """MaxEnvelopeSizekb of 150, as old systems have it: larger Sends are refused (windows-lab A.2, 2150858790)."""

    name = "small-envelope"
    unit = Unit.BYTES
    default = 150 * 1024
    habit = ALWAYS

    def settings(self, settings: GuestSettings) -> GuestSettings:
        return replace(settings, quotas=replace(settings.quotas, max_envelope_bytes=int(self.value)))

    def noticed(self, place: str) -> None:
        if place == "envelope too large":
            self.strikes()


class ReceiveDelay(Fault):
    """Output arrives late: the answer to a Receive takes its time (windows-lab A.1, TimedOut is daily life)."""

    name = "receive-delay"
    unit = Unit.SECONDS
    default = 0.1
    maximum = 60
    habit = ALWAYS

    def after(self, operation: str) -> None:
        if operation == "Receive" and self.strikes():
            self.pause(self.value)


class ReceiveChunks(Fault):
    """Output arrives in tiny pieces that cut characters of several bytes in two (windows-lab A.1, cp437/65001)."""

    name = "receive-chunks"
    unit = Unit.BYTES
    default = 7
    habit = ALWAYS

    def receive_bytes(self, budget: int) -> int:
        return self.random.randint(1, max(1, int(self.value))) if self.strikes() else budget


class StdinTruncated(Fault):
    """What is sent to standard input is lost after so many bytes, and nobody says so (windows-lab A.5: verify by hash)."""

    name = "stdin-truncated"
    unit = Unit.BYTES
    default = 1000
    habit = ALWAYS

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]  # those of the base
        self._seen = 0

    def on_input(self, data: bytes) -> bytes:
        left = max(0, int(self.value) - self._seen)
        self._seen += len(data)
        if len(data) <= left or not self.strikes(f"{len(data) - left} bytes"):
            return data
        return data[:left]


class OutputByteOrderMark(Fault):
    """A byte order mark before what a command prints, as PowerShell writes with some encodings (windows-lab A.4)."""

    name = "output-bom"
    habit = ALWAYS

    def on_output(self, data: bytes, first: bool) -> bytes:
        return b"\xef\xbb\xbf" + data if first and self.strikes() else data


class OutputLineEnds(Fault):
    """CR CR LF at the ends of lines: text went through two layers that each translate it (windows-lab A.7, 4)."""

    name = "output-crlf"
    habit = ALWAYS

    def on_output(self, data: bytes, first: bool) -> bytes:
        return data.replace(b"\n", b"\r\n") if b"\n" in data and self.strikes() else data


class OutputNoise(Fault):
    """A line of a foreign code page before a command's own output: AutoRun of cmd.exe, a profile (windows-lab A.1)."""

    name = "output-noise"
    habit = ALWAYS

    def on_output(self, data: bytes, first: bool) -> bytes:
        return b"Willkommen zur\x81ck \xff\xfe\x9d\r\n" + data if first and self.strikes() else data


class CodePage(Fault):
    """The shell has the system's code page whatever WINRS_CODEPAGE asks for (windows-lab A.1: the default is 437)."""

    name = "code-page"
    unit = Unit.NUMBER
    default = 850
    habit = ALWAYS

    def code_page(self, asked: int) -> int:
        return int(self.value) if self.strikes(str(asked)) else asked


class SignedExitCode(Fault):
    """ExitCode as a signed number: which sign Windows gives to an NTSTATUS is not settled (windows-lab A.1 and G 4)."""

    name = "exit-code-signed"
    habit = ALWAYS

    def exit_code(self, code: int) -> int:
        return code - (1 << 32) if code & 0x80000000 and self.strikes(f"{code:#x}") else code
