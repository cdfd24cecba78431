"""What a running command knows: the guest it runs in, its session's variables and directory, its streams."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from vm.emulated.computer import Computer
from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.clock import GuestClock
from vm.emulated.guest.commands.language import translated
from vm.emulated.guest.drive import Drive
from vm.emulated.guest.events import EventLogs
from vm.emulated.guest.power import Power
from vm.emulated.guest.processes import ProcessTable
from vm.emulated.guest.scheduler import TaskScheduler
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.guest.streams import Cancellation, Sink, Source
from vm.emulated.registry import Registry

DEFAULT_CODE_PAGE = 437
_CODECS: Mapping[int, str] = {65001: "utf-8", 20127: "ascii", 1200: "utf-16-le", 28591: "latin-1"}


@dataclass(frozen=True, slots=True)
class Guest:
    """Everything of the guest that commands can reach."""

    settings: GuestSettings
    computer: Callable[[], Computer]
    """The running system; another one after a restart."""
    drive: Drive
    registry: Registry
    processes: ProcessTable
    power: Power
    client_environment: Callable[[], Mapping[str, str]]
    """Variables that client processes need to reach the kernel."""
    chaos: Chaos = field(default_factory=Chaos)
    events: EventLogs = field(default_factory=lambda: EventLogs("DOWNLINK-VM", time.time))
    scheduler: TaskScheduler = field(default_factory=TaskScheduler)

    @property
    def clock(self) -> GuestClock:
        """The guest's clock."""
        return GuestClock(self.registry)


class ExitError(Exception):
    """`exit` was called: the interpreter ends with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Environment:
    """Environment variables: names without case, spelling kept."""

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._variables: dict[str, tuple[str, str]] = {}
        for name, value in (variables or {}).items():
            self.set(name, value)

    def get(self, name: str) -> str | None:
        found = self._variables.get(name.casefold())
        return found[1] if found else None

    def set(self, name: str, value: str) -> None:
        old = self._variables.get(name.casefold())
        self._variables[name.casefold()] = (old[0] if old else name, value)

    def remove(self, name: str) -> bool:
        """Delete the variable; False if it was not defined."""
        return self._variables.pop(name.casefold(), None) is not None

    def items(self) -> Iterator[tuple[str, str]]:
        """Names and values sorted by name, as `set` lists them."""
        return iter(sorted(self._variables.values(), key=lambda pair: pair[0].casefold()))

    def copy(self) -> Environment:
        return Environment(dict(self._variables.values()))


@dataclass(slots=True)
class Session:
    """State of one cmd.exe: what `set`, `cd`, `chcp` and exit codes change."""

    guest: Guest
    environment: Environment
    directory: str
    """Full Windows path."""
    cancellation: Cancellation
    code_page: int = DEFAULT_CODE_PAGE
    error_level: int = 0
    given: frozenset[str] = frozenset()
    """Folded names of the variables that the client gave or `set` changed: those that processes inherit."""
    after_delivery: Callable[[Callable[[], None]], None] | None = None
    """Has its argument run once the client has received the command's end."""

    def child(self) -> Session:
        """A new cmd.exe started by this one: changes there stay there."""
        return Session(
            guest=self.guest,
            environment=self.environment.copy(),
            directory=self.directory,
            cancellation=self.cancellation,
            code_page=self.code_page,
            given=self.given,
            after_delivery=self.after_delivery,
        )

    def variable(self, name: str) -> str | None:
        """Value of a variable, the dynamic ones included."""
        found = self.environment.get(name)
        if found is not None:
            return found
        dynamic = {
            "cd": self.directory,
            "errorlevel": _signed(self.error_level),
            "cmdextversion": "2",
        }
        return dynamic.get(name.casefold())

    def set_variable(self, name: str, value: str) -> None:
        self.environment.set(name, value)
        self.given |= {name.casefold()}

    def remove_variable(self, name: str) -> bool:
        self.given |= {name.casefold()}
        return self.environment.remove(name)

    def encode(self, text: str) -> bytes:
        """Text in the session's code page; what it lacks becomes '?', as WideCharToMultiByte does."""
        return text.encode(codec_of(self.code_page), "replace")

    def decode(self, data: bytes) -> str:
        return data.decode(codec_of(self.code_page), "replace")


@dataclass(slots=True)
class Invocation:
    """One call of one command."""

    name: str
    """As it was typed."""
    tail: str
    """The raw text after the name, quotes included."""
    arguments: list[str]
    session: Session
    stdin: Source
    stdout: Sink
    stderr: Sink
    language: str = "en"
    """Display language of what `out` and `err` write."""

    def out(self, text: str = "") -> None:
        """Write one line to standard output."""
        self.session.cancellation.check()
        self.stdout.write(self._line(text))

    def err(self, text: str = "") -> None:
        """Write one line to standard error."""
        self.session.cancellation.check()
        self.stderr.write(self._line(text))

    def _line(self, text: str) -> bytes:
        shown = translated(text, self.language) if self.language != "en" else text
        return self.session.encode(shown.replace("\n", "\r\n") + "\r\n")

    @property
    def guest(self) -> Guest:
        return self.session.guest

    def read_all(self) -> bytes:
        """Standard input to its end."""
        parts = []
        while data := self.stdin.read(65536):
            parts.append(data)
        return b"".join(parts)


Command = Callable[[Invocation], int]
"""A built-in or a tool: returns its exit code."""


def codec_of(code_page: int) -> str:
    """Python's codec for a Windows code page; LookupError if there is none."""
    name = _CODECS.get(code_page, f"cp{code_page}")
    codecs.lookup(name)
    return name


def base_environment(guest: Guest) -> dict[str, str]:
    """Variables of a new session of the guest's user."""
    settings = guest.settings
    home = f"C:\\Users\\{settings.username}"
    return {
        "ALLUSERSPROFILE": "C:\\ProgramData",
        "COMPUTERNAME": settings.computer_name,
        "ComSpec": "C:\\Windows\\system32\\cmd.exe",
        "HOMEDRIVE": "C:",
        "HOMEPATH": home[2:],
        "NUMBER_OF_PROCESSORS": "2",
        "OS": "Windows_NT",
        "Path": "C:\\Windows\\system32;C:\\Windows;C:\\Python",
        "PATHEXT": ".COM;.EXE;.BAT;.CMD",
        "PROCESSOR_ARCHITECTURE": "AMD64",
        "ProgramData": "C:\\ProgramData",
        "ProgramFiles": "C:\\Program Files",
        "PROMPT": "$P$G",
        "PUBLIC": "C:\\Users\\Public",
        "SystemDrive": "C:",
        "SystemRoot": "C:\\Windows",
        "TEMP": "C:\\Windows\\Temp",
        "TMP": "C:\\Windows\\Temp",
        "USERDOMAIN": settings.computer_name,
        "USERNAME": settings.username,
        "USERPROFILE": home,
        "windir": "C:\\Windows",
    }


def _signed(number: int) -> str:
    """%ERRORLEVEL% is a signed number."""
    return str(number - (1 << 32) if number & 0x80000000 else number)
