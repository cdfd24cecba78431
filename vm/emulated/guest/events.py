"""The event logs of the guest: what it writes itself, numbered records, and the queries of `wevtutil`.

Records are told apart by number, because the clock of a guest jumps (windows-lab.md D.2). The logs live as long as the
machine's process; a restart of the guest keeps them.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

NAMESPACE = "http://schemas.microsoft.com/win/2004/08/events/event"
SYSTEM = "System"
APPLICATION = "Application"
LOGS = (SYSTEM, APPLICATION, "Security", "Setup")

CRITICAL, ERROR, WARNING, INFORMATION = 1, 2, 3, 4
_CLASSIC = "0x80000000000000"
"""Keywords of an event that was written through the classic API."""

SERVICE_CONTROL_MANAGER = "Service Control Manager"
FILTER_MANAGER = "Microsoft-Windows-FilterManager"
KERNEL_POWER = "Microsoft-Windows-Kernel-Power"
ERROR_REPORTING = "Microsoft-Windows-WER-SystemErrorReporting"
_EVENT_LOG = "EventLog"


@dataclass(frozen=True, slots=True)
class Event:
    """One record."""

    log: str
    record: int
    provider: str
    id: int
    level: int
    time: float
    """Seconds since the Unix epoch, by the guest's clock."""
    computer: str
    data: tuple[tuple[str, str], ...]
    """Names and values of EventData; classic events have empty names."""
    message: str

    @property
    def system_time(self) -> str:
        """The time as XML has it."""
        moment = datetime.datetime.fromtimestamp(self.time, datetime.UTC)
        return f"{moment:%Y-%m-%dT%H:%M:%S.%f}0Z"

    def xml(self) -> str:
        """One line, as `wevtutil qe /f:xml` prints it."""
        values = "".join(
            f"<Data Name={_quoted(name)}>{escape(value)}</Data>" if name else f"<Data>{escape(value)}</Data>"
            for name, value in self.data
        )
        return (
            f"<Event xmlns='{NAMESPACE}'><System><Provider Name={_quoted(self.provider)}/>"
            f"<EventID>{self.id}</EventID><Version>0</Version><Level>{self.level}</Level><Task>0</Task>"
            f"<Opcode>0</Opcode><Keywords>{_CLASSIC}</Keywords><TimeCreated SystemTime='{self.system_time}'/>"
            f"<EventRecordID>{self.record}</EventRecordID><Correlation/>"
            f"<Execution ProcessID='4' ThreadID='8'/><Channel>{self.log}</Channel>"
            f"<Computer>{escape(self.computer)}</Computer><Security/></System>"
            f"<EventData>{values}</EventData></Event>"
        )


@dataclass(slots=True)
class _Log:
    records: list[Event] = field(default_factory=list)
    written: int = 0
    """Number of the newest record; clearing a log does not reset it."""


class EventLogs:
    """All logs of one machine; may be used from any thread."""

    def __init__(self, computer: str, now: Callable[[], float]) -> None:
        self._computer = computer
        self._now = now
        self._lock = threading.Lock()
        self._logs = {name.casefold(): (name, _Log()) for name in LOGS}
        self.created = now()

    def name_of(self, text: str) -> str | None:
        """The log's name as it is spelled; None if there is no such log."""
        found = self._logs.get(text.casefold())
        return found[0] if found else None

    def write(
        self,
        log: str,
        provider: str,
        id: int,
        level: int,
        message: str,
        data: Mapping[str, object] | Sequence[object] = (),
    ) -> Event:
        """Append an event; `data` is by name, or a sequence of unnamed values."""
        pairs = data.items() if isinstance(data, Mapping) else (("", value) for value in data)
        name, found = self._logs[log.casefold()]
        with self._lock:
            found.written += 1
            event = Event(
                name,
                found.written,
                provider,
                id,
                level,
                self._now(),
                self._computer,
                tuple((key, str(value)) for key, value in pairs),
                message,
            )
            found.records.append(event)
        return event

    def read(self, log: str) -> list[Event]:
        """All records of a log, oldest first."""
        with self._lock:
            return list(self._logs[log.casefold()][1].records)

    def clear(self, log: str) -> None:
        """Forget the records; numbering goes on."""
        with self._lock:
            self._logs[log.casefold()][1].records.clear()

    # What the system writes itself

    def shut_down(self, account: str, *, restart: bool) -> None:
        """An orderly end of the system."""
        action = "restart" if restart else "shutdown"
        self.write(
            SYSTEM,
            "User32",
            1074,
            INFORMATION,
            f"The process C:\\Windows\\system32\\shutdown.exe ({self._computer}) has initiated the {action} of "
            f"computer {self._computer} on behalf of user {account} for the following reason: Other (Planned)",
            {
                "param1": "C:\\Windows\\system32\\shutdown.exe",
                "param2": self._computer,
                "param3": "Other (Planned)",
                "param4": "0x80000000",
                "param5": action,
                "param6": "",
                "param7": account,
            },
        )
        self.write(SYSTEM, _EVENT_LOG, 6006, INFORMATION, "The Event log service was stopped.")

    def booted(self, version: str, build: str) -> None:
        """The first events of a boot."""
        words = (f"{version}.", build, "", "Multiprocessor Free", "0")
        self.write(
            SYSTEM,
            _EVENT_LOG,
            6009,
            INFORMATION,
            f"Microsoft (R) Windows (R) {version}. {build} Multiprocessor Free.",
            words,
        )
        self.write(SYSTEM, _EVENT_LOG, 6005, INFORMATION, "The Event log service was started.")

    def died(self, when: float, crash: tuple[int, tuple[int, int, int, int], str] | None) -> None:
        """The boot before this one ended without a shutdown, with a bugcheck (code, parameters, dump) or without."""
        code, parameters, dump = crash or (0, (0, 0, 0, 0), "")
        data: dict[str, object] = {"BugcheckCode": code}
        data |= {f"BugcheckParameter{index}": f"{value:#x}" for index, value in enumerate(parameters, 1)}
        self.write(
            SYSTEM,
            KERNEL_POWER,
            41,
            CRITICAL,
            "The system has rebooted without cleanly shutting down first. This error could be caused if the system "
            "stopped responding, crashed, or lost power unexpectedly.",
            {**data, "SleepInProgress": 0, "PowerButtonTimestamp": 0, "BootAppStatus": 0},
        )
        moment = datetime.datetime.fromtimestamp(when, datetime.UTC)
        words = (f"{moment:%I:%M:%S %p}", f"{moment:%m/%d/%Y}")
        self.write(
            SYSTEM,
            _EVENT_LOG,
            6008,
            ERROR,
            f"The previous system shutdown at {words[0]} on {words[1]} was unexpected.",
            words,
        )
        if crash is None:
            return
        listed = ", ".join(f"{value:#018x}" for value in parameters)
        text = f"{code:#010x} ({listed})"
        identifier = f"{self._computer}-{int(when)}"
        self.write(
            SYSTEM,
            ERROR_REPORTING,
            1001,
            ERROR,
            f"The computer has rebooted from a bugcheck.  The bugcheck was: {text}. A dump was saved in: {dump}. "
            f"Report Id: {identifier}.",
            {"param1": text, "param2": dump, "param3": identifier},
        )

    def service_installed(self, name: str, image: str, kind: str, start: str) -> None:
        """A service was created."""
        self.write(
            SYSTEM,
            SERVICE_CONTROL_MANAGER,
            7045,
            INFORMATION,
            f"A service was installed in the system.\n\nService Name:  {name}\nService File Name:  {image}\n"
            f"Service Type:  {kind}\nService Start Type:  {start}\nService Account:  ",
            {
                "ServiceName": name,
                "ImagePath": image,
                "ServiceType": kind,
                "StartType": start,
                "AccountName": "",
            },
        )

    def service_failed(self, name: str, code: int, text: str) -> None:
        """A service did not start."""
        self.write(
            SYSTEM,
            SERVICE_CONTROL_MANAGER,
            7000,
            ERROR,
            f"The {name} service failed to start due to the following error: \n{text}",
            {"param1": name, "param2": f"%%{code}"},
        )

    def filter_changed(self, name: str, *, loaded: bool) -> None:
        """The Filter Manager has taken or let go a filter."""
        done = (
            "has successfully loaded and registered with Filter Manager"
            if loaded
            else "unloaded successfully"
        )
        self.write(
            SYSTEM,
            FILTER_MANAGER,
            6 if loaded else 1,
            INFORMATION,
            f"File System Filter '{name}' {done}.",
            {"FinalStatus": "0x0", "DeviceName": name, "DeviceVersionMajor": 10, "DeviceVersionMinor": 0},
        )


def _quoted(text: str) -> str:
    """An attribute in single quotes, as the service writes them."""
    if "'" in text:
        return quoteattr(text)
    return "'" + escape(text) + "'"
