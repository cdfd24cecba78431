"""What every fault has: a value, a schedule of occasions, the places where it may act, and the record of what it did."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from vm.emulated.guest.settings import GuestSettings


class Unit(Enum):
    """What the value of a fault is."""

    NONE = "no value"
    SECONDS = "a time such as 50ms or 2s"
    BYTES = "a size such as 512, 64k or 2M"
    NUMBER = "a number"


@dataclass(frozen=True, slots=True)
class Schedule:
    """On which occasions a fault acts, counted from 1; `last` is None for "and ever after"."""

    first: int = 1
    last: int | None = None

    def includes(self, occasion: int) -> bool:
        """True if it acts on that occasion."""
        return occasion >= self.first and (self.last is None or occasion <= self.last)


ONCE = Schedule(1, 1)
ALWAYS = Schedule(1, None)


@dataclass(frozen=True, slots=True)
class Firing:
    """One time that a fault acted."""

    fault: str
    occasion: int
    """Which occasion it was, from 1."""
    seconds: float
    """Since the machine's process began."""
    detail: str


@dataclass(frozen=True, slots=True)
class ProgramRefusal:
    """A program that fails: what it writes to standard error, and its exit code."""

    exit_code: int
    message: str


class Interruption(Exception):  # noqa: N818  # an order to the server, not an error
    """A request is not answered as it should be: the server carries out what this says.

    Args:
        status: HTTP status to answer without a body; None resets the connection instead.
        partly: with a reset: send the first half of the reply before.
    """

    def __init__(self, *, status: int | None = None, partly: bool = False) -> None:
        super().__init__(status)
        self.status = status
        self.partly = partly


class Controls(Protocol):
    """What faults can do to the machine; the guest face implements it."""

    def restart(self) -> None:
        """Have the whole guest restart; returns at once."""
        ...

    def bugcheck(self, code: int, parameters: tuple[int, int, int, int], rule: str) -> None:
        """Have the kernel stop; returns at once."""
        ...

    def restart_winrm(self) -> None:
        """Drop all WinRM connections and shells, as a restart of the service does."""
        ...


class Fault:
    """Base of all faults: no place does anything."""

    name: ClassVar[str]
    unit: ClassVar[Unit] = Unit.NONE
    default: ClassVar[float | None] = None
    """The value without one in the setting; None demands one (unless `unit` is NONE)."""
    maximum: ClassVar[float] = 1 << 40
    habit: ClassVar[Schedule] = ONCE

    def __init__(self, value: float | None = None, schedule: Schedule | None = None, seed: int = 0) -> None:
        self.value = value if value is not None else (self.default or 0)
        self.schedule = schedule or self.habit
        self.random = random.Random(f"{seed}:{self.name}")
        self.occasions = 0
        self.controls: Controls | None = None
        self.pause: Callable[[float], None] = lambda seconds: None
        """Waits so many seconds, or until the machine stops or restarts; set by `Chaos`."""
        self._lock = threading.Lock()
        self._record: Callable[[Firing], None] = lambda firing: None
        self._began = time.monotonic()

    def attach(self, record: Callable[[Firing], None], pause: Callable[[float], None]) -> None:
        """Where to report what fired, and how to wait."""
        self._record = record
        self.pause = pause

    def strikes(self, detail: str = "") -> bool:
        """Count an occasion; True, and recorded, if the fault acts on it."""
        with self._lock:
            self.occasions += 1
            occasion = self.occasions
        if not self.schedule.includes(occasion):
            return False
        self._record(Firing(self.name, occasion, time.monotonic() - self._began, detail))
        return True

    # The places where a fault may act, in the order in which a machine meets them

    def settings(self, settings: GuestSettings) -> GuestSettings:
        """Change what the guest is made with."""
        return settings

    def noticed(self, place: str) -> None:
        """The guest says that something happened which a changed setting leads to (a quota refused)."""

    def boot_delay_seconds(self) -> float:
        """How long after a boot the servers do not answer."""
        return 0.0

    def changes_ports(self) -> bool:
        """True if the machine has other ports after the restart that is under way."""
        return False

    def changes_host_key(self) -> bool:
        """True if SSH presents another host key from now on."""
        return False

    def clock_step_seconds(self, *, first: bool) -> float:
        """How far the clock is moved by a boot."""
        return 0.0

    def refuses_connection(self, server: str) -> bool:
        """True if a new connection to "winrm" or "ssh" is closed at once."""
        return False

    def refuses_logon(self, server: str) -> bool:
        """True if "winrm" or "ssh" refuses the right password, or "ntlm" the first token of a logon."""
        return False

    def on_request(self) -> None:
        """An HTTP request has arrived, whatever it is."""

    def dropped_idle(self) -> None:
        """A connection was closed because it was idle."""

    def forgets_logon(self) -> bool:
        """True if the connection of an authenticated request is to log on again."""
        return False

    def breaks_seal(self) -> bool:
        """True if a sealed request is to be treated as one with a wrong signature."""
        return False

    def before(self, operation: str) -> None:
        """A WinRM operation ("Create", "Command", "Receive" …) is about to be executed; may raise Interruption."""

    def after(self, operation: str) -> None:
        """It was executed and not answered yet; may raise Interruption."""

    def receive_bytes(self, budget: int) -> int:
        """How many raw bytes one Receive may carry at most."""
        return budget

    def on_input(self, data: bytes) -> bytes:
        """Standard input of a command on its way from Send to the command."""
        return data

    def on_output(self, data: bytes, first: bool) -> bytes:
        """Standard output of a command; `first` with the first piece of it."""
        return data

    def code_page(self, asked: int) -> int:
        """The code page a shell really has."""
        return asked

    def exit_code(self, code: int) -> int:
        """The number that a Receive reports for an exit code."""
        return code

    def on_program(self, program: str) -> ProgramRefusal | None:
        """How a program fails at once, None if it may run; `program` is its file name in lower case."""
        return None

    def result_of(self, program: str, arguments: Sequence[str], code: int) -> int:
        """The exit code of a program that has run."""
        return code

    def program_missing(self, program: str) -> bool:
        """True if there is no such program."""
        return False

    def on_write(self, size: int) -> None:
        """A file of C: is about to grow by so many bytes; may raise OSError."""

    def on_upload(self, size: int) -> int:
        """SFTP writes so many bytes; returns how many reach the disk, or raises ConnectionAbortedError."""
        return size

    def on_load(self, filter_name: str) -> int | None:
        """NTSTATUS with which a load fails; None if it may go on."""
        return None

    def on_unload(self, filter_name: str) -> int | None:
        """NTSTATUS with which an unload (not a stop of the service) fails; None if it may go on; may wait."""
        return None

    def keeps_deleted(self, service: str) -> bool:
        """True if a service that could go now stays marked for deletion."""
        return False
