"""What is read from a guest's event logs and fetched from it after a run; the events are in the form that wevtutil
prints them in (`/f:xml`: elements one after the other, without a root)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.remote.winrm import CommandResult
from harness.runs import evidence
from harness.runs.evidence import Mark
from vm.deadline import Deadline
from vm.errors import GuestError

NAMESPACE = "http://schemas.microsoft.com/win/2004/08/events/event"
SINCE = Mark({"System": 100, "Application": 5})


def event(provider: str, id: int, record: int, data: str) -> str:
    return (
        f"<Event xmlns='{NAMESPACE}'><System><Provider Name='{provider}'/><EventID Qualifiers='16384'>{id}</EventID>"
        f"<EventRecordID>{record}</EventRecordID><Channel>System</Channel></System><EventData>{data}</EventData></Event>"
    )


REPORTED = event(
    "Microsoft-Windows-WER-SystemErrorReporting",
    1001,
    120,
    "<Data Name='param1'>0x000000d1 (0xfffff80012345678, 0x0000000000000002, 0x0000000000000000, 0xfffff80087654321)"
    "</Data><Data Name='param2'>C:\\Windows\\MEMORY.DMP</Data><Data Name='param3'>abc</Data>",
)


def power(code: int) -> str:
    return event(
        "Microsoft-Windows-Kernel-Power",
        41,
        119,
        f"<Data Name='BugcheckCode'>{code}</Data><Data Name='BugcheckParameter1'>0xc2</Data>"
        "<Data Name='BugcheckParameter2'>0x7</Data><Data Name='BugcheckParameter3'>0x0</Data>"
        "<Data Name='BugcheckParameter4'>0xffff800012345678</Data><Data Name='SleepInProgress'>0</Data>",
    )


class GuestWithLogs:
    """A guest whose commands answer what a test wrote down, and whose files are in a dictionary."""

    machine = "double"

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self.commands: list[str] = []
        self.broken: set[str] = set()

    def run(
        self, command: list[str], *, deadline: Deadline, check: bool = True, repeatable: bool = False
    ) -> CommandResult:
        line = " ".join(command)
        self.commands.append(line)
        if command[0] in self.broken:
            raise GuestError(f"'{command[0]}' failed", machine=self.machine)
        found = next((text for start, text in self.answers.items() if line.startswith(start)), "")
        return CommandResult(line, 0, found, "", 0.0)

    def read_bytes(self, source: str, deadline: Deadline, **_: Any) -> bytes | None:
        return self.files.get(source)

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        target.mkdir(parents=True)
        (target / "live.dmp").write_bytes(b"PAGEDU64")
        return [target / "live.dmp"]


@pytest.fixture
def guest() -> Any:
    return GuestWithLogs()


def deadline() -> Deadline:
    return Deadline.after(seconds=5)


def test_a_mark_is_the_newest_record_of_each_log(guest: Any) -> None:
    guest.answers = {
        "wevtutil gli System": "creationTime: 2026-01-01T00:00:00.0Z\r\nnumberOfLogRecords: 40\r\noldestRecordNumber: 61\r\n",
        "wevtutil gli Application": "numberOfLogRecords: 0\r\noldestRecordNumber: 0\r\n",
    }

    assert evidence.mark(guest, deadline()) == Mark({"System": 100, "Application": 0})


def test_a_log_that_does_not_tell_its_length_is_an_error(guest: Any) -> None:
    with pytest.raises(GuestError, match="does not tell how long the log 'System' is"):
        evidence.mark(guest, deadline())


def test_a_reported_bugcheck_has_its_code_parameters_and_dump(guest: Any) -> None:
    guest.answers = {"wevtutil qe System": power(0xD1) + REPORTED}

    (crash,) = evidence.crashes(guest, SINCE, deadline())

    assert (crash.code, crash.name) == (0xD1, "DRIVER_IRQL_NOT_LESS_OR_EQUAL")
    assert crash.parameters == (0xFFFFF80012345678, 2, 0, 0xFFFFF80087654321)
    assert crash.dump == r"C:\Windows\MEMORY.DMP"
    assert guest.commands == ["wevtutil qe System /q:*[System[(EventRecordID > 100)]] /f:xml"]


def test_without_a_dump_the_power_manager_knows(guest: Any) -> None:
    guest.answers = {"wevtutil qe System": power(0xC4)}

    (crash,) = evidence.crashes(guest, SINCE, deadline())

    assert crash.name == "DRIVER_VERIFIER_DETECTED_VIOLATION"
    assert crash.parameters == (0xC2, 7, 0, 0xFFFF800012345678)
    assert crash.dump is None


@pytest.mark.parametrize(
    "logged", ["", power(0), event("Service Control Manager", 7045, 101, "<Data>x</Data>")]
)
def test_a_restart_without_a_bugcheck_is_none(guest: Any, logged: str) -> None:
    guest.answers = {"wevtutil qe System": logged}

    assert evidence.crashes(guest, SINCE, deadline()) == ()


def test_characters_that_xml_forbids_do_not_hide_the_events(guest: Any) -> None:
    guest.answers = {"wevtutil qe System": event("x", 1, 101, "<Data>\x01\x00</Data>") + REPORTED}

    assert len(evidence.crashes(guest, SINCE, deadline())) == 1


def test_output_that_is_not_xml_is_an_error(guest: Any) -> None:
    guest.answers = {"wevtutil qe System": "<Event"}

    with pytest.raises(GuestError, match="is not XML"):
        evidence.crashes(guest, SINCE, deadline())


def test_everything_that_can_be_had_is_fetched(guest: Any, tmp_path: Path) -> None:
    guest.answers = {"fltmc filters": "Downlink", "verifier": "none"}
    guest.files = {
        r"C:\Downlink\System.evtx": b"ElfFile\0",
        evidence.SETUP_LOG: b"x" * (evidence.SETUP_LOG_BYTES + 10) + b"end",
    }

    assert evidence.collect(guest, SINCE, tmp_path, deadline()) == ()

    place = tmp_path / evidence.DIRECTORY
    assert (place / "fltmc-filters.txt").read_text(encoding="utf-8") == "Downlink\n"
    assert (place / "System.evtx").read_bytes() == b"ElfFile\0"
    assert len((place / "setupapi.dev.log").read_bytes()) == evidence.SETUP_LOG_BYTES
    assert (place / "LiveKernelReports" / "live.dmp").exists()


def test_one_thing_that_cannot_be_had_does_not_keep_the_others(guest: Any, tmp_path: Path) -> None:
    guest.broken = {"verifier"}

    missing = evidence.collect(guest, SINCE, tmp_path, deadline())

    assert missing == tuple(
        f"{file} could not be collected: 'verifier' failed"
        for file in ("verifier.txt", "verifier-settings.txt")
    )
    assert (tmp_path / evidence.DIRECTORY / "fltmc-filters.txt").exists()
    assert (tmp_path / evidence.DIRECTORY / "LiveKernelReports").exists()
