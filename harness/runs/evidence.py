"""What a guest remembers of a run: bugchecks in its event log, dumps, and how its drivers were set up.

For machines that cannot say by themselves how they came through (`Abilities.witness`). Events are told apart by record
number and never by time, because the clock of a restored guest jumps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.emulated.kernel.bugcheck import bugcheck_name
from vm.errors import DownlinkError, GuestError
from vm.machine import CrashReport

LOGS = ("System", "Application")

DIRECTORY = "evidence"
"""Below what was collected from the guest."""

SETUP_LOG = r"C:\Windows\INF\setupapi.dev.log"
SETUP_LOG_BYTES = 400_000
"""Only the end of it matters, and it may have grown for years."""

STATE_SECONDS = 15.0
"""Each question about filters and verifier: after a hung unload fltmc hangs, too, and the rest is still worth fetching."""

_LIVE_REPORTS = r"C:\Windows\LiveKernelReports"
"""Rules of Driver Verifier that do not stop the machine leave live dumps (bugcheck 0x1C4) there."""

_STATE = {
    "fltmc-filters.txt": ["fltmc", "filters"],
    "fltmc-instances.txt": ["fltmc", "instances"],
    "verifier.txt": ["verifier", "/query"],
    "verifier-settings.txt": ["verifier", "/querysettings"],
}
_NAMESPACE = "{http://schemas.microsoft.com/win/2004/08/events/event}"
_REPORTED = ("Microsoft-Windows-WER-SystemErrorReporting", 1001)
"""The bugcheck as it was found in the dump at the next boot: "0x000000d1 (0x..., 0x..., 0x..., 0x...)"."""
_POWER = ("Microsoft-Windows-Kernel-Power", 41)
"""The system came up without having been shut down; BugcheckCode is 0 when the power went away."""
_NUMBER = re.compile(r"0x([0-9a-fA-F]+)")
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where the event logs ended when the run began: the newest record number by log."""

    records: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """One event of a log: its record number, provider, identifier, and the named values it carries."""

    record: int
    provider: str
    id: int
    data: Mapping[str, str]


def mark(guest: Guest, deadline: Deadline) -> Mark:
    """Remember where the logs end.

    Raises:
        GuestError: a log cannot be read.
    """
    return Mark({log: _newest(guest, log, deadline) for log in LOGS})


def crashes(guest: Guest, since: Mark, deadline: Deadline) -> tuple[CrashReport, ...]:
    """The bugchecks that the guest has logged since `since`, oldest first."""
    events = list(events_since(guest, "System", since, deadline))
    reported = [_from_report(event) for event in events if (event.provider, event.id) == _REPORTED]
    if reported:
        return tuple(reported)
    # Without a dump there is no report: the kernel's power manager still knows the code.
    power = (event for event in events if (event.provider, event.id) == _POWER)
    return tuple(report for event in power if (report := _from_power(event)) is not None)


def events_since(guest: Guest, log: str, since: Mark, deadline: Deadline) -> Iterator[LoggedEvent]:
    """The events of a log that are newer than the mark."""
    result = guest.run(
        ["wevtutil", "qe", log, f"/q:{_query(since, log)}", "/f:xml"], deadline=deadline, repeatable=True
    )
    text = _NOT_IN_XML.sub("", result.stdout)
    try:
        root = ElementTree.fromstring(f"<Events>{text}</Events>")
    except ElementTree.ParseError as error:
        raise GuestError(
            f"what wevtutil printed of the log '{log}' is not XML: {error}", machine=guest.machine
        ) from error
    for element in root:
        system = element.find(f"{_NAMESPACE}System")
        if system is not None:
            yield _event(element, system)


def collect(guest: Guest, since: Mark, target: Path, deadline: Deadline) -> tuple[str, ...]:
    """Fetch everything that helps to understand a run; returns what could not be had, one sentence each."""
    missing: list[str] = []
    place = target / DIRECTORY
    place.mkdir(parents=True, exist_ok=True)
    for file, command in _STATE.items():
        with _noting(missing, file):
            said = guest.run(command, deadline=deadline.sooner(seconds=STATE_SECONDS), check=False)
            (place / file).write_text(said.output + "\n", encoding="utf-8")
    for log in LOGS:
        with _noting(missing, f"the log '{log}'"):
            exported = rf"C:\Downlink\{log}.evtx"
            query = f"/q:{_query(since, log)}"
            guest.run(["wevtutil", "epl", log, exported, query, "/ow:true"], deadline=deadline)
            content = guest.read_bytes(exported, deadline)
            (place / f"{log}.evtx").write_bytes(content or b"")
    with _noting(missing, SETUP_LOG):
        content = guest.read_bytes(SETUP_LOG, deadline)
        if content:
            (place / "setupapi.dev.log").write_bytes(content[-SETUP_LOG_BYTES:])
    with _noting(missing, _LIVE_REPORTS):
        guest.get_tree(_LIVE_REPORTS, place / "LiveKernelReports", deadline)
    return tuple(missing)


@contextmanager
def _noting(missing: list[str], what: str) -> Iterator[None]:
    """Within, an error of the guest is noted and the next thing is tried: collect from everything, then judge."""
    try:
        yield
    except DownlinkError as error:
        missing.append(f"{what} could not be collected: {error.message}")


def _newest(guest: Guest, log: str, deadline: Deadline) -> int:
    """The newest record number of a log, 0 for an empty one; `gli` prints property names, which are not localised."""
    said = guest.run(["wevtutil", "gli", log], deadline=deadline, repeatable=True)
    values: dict[str, int] = {}
    for line in said.stdout.splitlines():
        name, _, value = line.partition(":")
        with suppress(ValueError):
            values[name.strip()] = int(value)
    count, oldest = values.get("numberOfLogRecords"), values.get("oldestRecordNumber")
    if count is None:
        raise GuestError(f"wevtutil does not tell how long the log '{log}' is", machine=guest.machine)
    return max(0, (oldest or 1) + count - 1) if count else 0


def _query(since: Mark, log: str) -> str:
    return f"*[System[(EventRecordID > {since.records[log]})]]"


def _event(element: ElementTree.Element, system: ElementTree.Element) -> LoggedEvent:
    provider = system.find(f"{_NAMESPACE}Provider")
    data: dict[str, str] = {}
    for number, value in enumerate(element.iter(f"{_NAMESPACE}Data"), 1):
        data[value.get("Name") or f"param{number}"] = value.text or ""
    return LoggedEvent(
        record=_integer(system.findtext(f"{_NAMESPACE}EventRecordID")),
        provider=(provider.get("Name") or "") if provider is not None else "",
        id=_integer(system.findtext(f"{_NAMESPACE}EventID")),
        data=data,
    )


def _integer(text: str | None) -> int:
    try:
        return int(text or "0", 0)
    except ValueError:
        return 0


def _from_report(event: LoggedEvent) -> CrashReport:
    numbers = [int(number, 16) for number in _NUMBER.findall(event.data.get("param1", ""))]
    return _report(numbers, event.data.get("param2") or None)


def _from_power(event: LoggedEvent) -> CrashReport | None:
    code = _integer(event.data.get("BugcheckCode"))
    if not code:
        return None
    return _report([code, *(_integer(event.data.get(f"BugcheckParameter{n}")) for n in range(1, 5))], None)


def _report(numbers: list[int], dump: str | None) -> CrashReport:
    code, *parameters = numbers or [0]
    first, second, third, fourth = (*parameters, 0, 0, 0, 0)[:4]
    return CrashReport(code, bugcheck_name(code), (first, second, third, fourth), dump=dump)
