"""Suites that run as a task: the program in the guest as a real process, and a host that follows through its files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any
from xml.etree import ElementTree

import pytest

from harness.remote.winrm import CommandResult
from harness.runs import detached, guest_task
from harness.runs.detached import DetachedSuite
from harness.runs.stream import EventStream
from harness.runs.suite import SuiteEnd
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError

SUITE = DetachedSuite(run="a-run", task=r"\Downlink\a-run", prefix="@x ", boot="7")
TASK_NAMESPACE = "{http://schemas.microsoft.com/windows/2004/02/mit/task}"


class FilesOfAGuest:
    """As much of a guest as the following needs: a directory for its results, and trouble when a test asks for it."""

    machine = "double"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.boot = "7"
        self.commands: list[list[str]] = []
        self.reconnects = 0
        self.before_read: Callable[[str], None] = lambda _: None
        self.on_command: Callable[[list[str]], None] = lambda _: None

    def place(self, path: str) -> Path:
        return self.root / PureWindowsPath(path).name

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        self.before_read(PureWindowsPath(source).name)
        file = self.place(source)
        return file.read_bytes()[offset:] if file.exists() else None

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        self.place(target).write_bytes(content)

    def run(
        self, command: list[str], *, deadline: Deadline, check: bool = True, repeatable: bool = False
    ) -> CommandResult:
        self.commands.append(command)
        self.on_command(command)
        output = "C:\\Python\\python.exe\r\n" if command[0] == "where" else ""
        return CommandResult(" ".join(command), 0, output, "", 0.0)

    def boot_identity(self, deadline: Deadline) -> str:
        return self.boot

    def reconnect(self) -> None:
        self.reconnects += 1

    def status(self, **values: object) -> None:
        with (self.root / "status.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def printed(self, text: str) -> None:
        with (self.root / "output.txt").open("a", encoding="utf-8") as file:
            file.write(text)


class Follower:
    """Follows the suite of a double and keeps what it was told."""

    def __init__(self, guest: FilesOfAGuest) -> None:
        self.guest = guest
        self.events: list[dict[str, Any]] = []
        self.troubles: list[str] = []
        self.text = io.StringIO()

    def follow(self, seconds: float = 5.0, silence: float = 30.0) -> Any:
        stream = EventStream(SUITE.prefix, self.events.append, self.text)
        return detached.follow(
            self.guest,  # type: ignore[arg-type]
            SUITE,
            stream,
            Deadline.after(seconds=seconds),
            lambda error: self.troubles.append(error.message),
            silence_seconds=silence,
        )


@pytest.fixture
def guest(tmp_path: Path) -> FilesOfAGuest:
    return FilesOfAGuest(tmp_path)


def run_task(directory: Path, program: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the guest's program as the scheduler would, with a Python program in place of pytest."""
    names = {"output": "output.txt", "errors": "errors.txt", "status": "status.jsonl"}
    (directory / "task.json").write_text(
        json.dumps({"arguments": ["-c", program], **names}), encoding="utf-8"
    )
    done = subprocess.run(
        [sys.executable, str(Path(guest_task.__file__)), "task.json"], cwd=directory, timeout=60, check=False
    )
    lines = (directory / "status.jsonl").read_text(encoding="utf-8").splitlines()
    return done.returncode, [json.loads(line) for line in lines]


def test_the_program_in_the_guest_beats_and_tells_the_exit_code(tmp_path: Path) -> None:
    code, status = run_task(tmp_path, "import sys; print('out'); print('bad', file=sys.stderr); sys.exit(5)")

    assert code == 5
    assert status[0] == {"beat": 1} and status[-1] == {"exit_code": 5}
    assert (tmp_path / "output.txt").read_text(encoding="utf-8") == "out\n"
    assert (tmp_path / "errors.txt").read_text(encoding="utf-8") == "bad\n"


def test_a_suite_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(
        json.dumps({"arguments": [], "output": "no/such/place", "errors": "e", "status": "status.jsonl"}),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(Path(guest_task.__file__)), "task.json"], cwd=tmp_path, timeout=60, check=False
    )
    assert done.returncode == 1
    assert (
        "could not be started"
        in json.loads((tmp_path / "status.jsonl").read_text(encoding="utf-8"))["problem"]
    )


def test_what_is_printed_before_the_end_arrives_before_the_end(guest: FilesOfAGuest) -> None:
    guest.printed('@x {"n": 1, "event": "started", "id": "a"}\ntext\n')
    guest.status(beat=1)
    guest.status(exit_code=1)
    (guest.root / "errors.txt").write_text("why", encoding="utf-8")
    follower = Follower(guest)

    assert follower.follow() == SuiteEnd(1, "why")
    assert [event["event"] for event in follower.events] == ["started"]
    assert follower.text.getvalue() == "text\n"


def test_a_growing_file_is_read_from_where_it_was_left(guest: FilesOfAGuest) -> None:
    reads = 0

    def grow(name: str) -> None:
        nonlocal reads
        if name == "output.txt":
            reads += 1
            if reads <= 3:
                guest.printed(f'@x {{"n": {reads}, "event": "tick"}}\n')
            else:
                guest.status(exit_code=0)

    guest.before_read = grow
    follower = Follower(guest)

    assert follower.follow() == SuiteEnd(0, "")
    assert [event["n"] for event in follower.events] == [1, 2, 3]


def test_a_character_that_is_cut_in_two_is_put_together(guest: FilesOfAGuest) -> None:
    whole = '@x {"n": 1, "event": "e", "text": "ü"}\n'.encode()
    cut = whole.index("ü".encode()) + 1
    pieces = [whole[:cut], whole[cut:]]

    def grow(name: str) -> None:
        if name == "output.txt":
            if pieces:
                with (guest.root / name).open("ab") as file:
                    file.write(pieces.pop(0))
            else:
                guest.status(exit_code=0)

    guest.before_read = grow
    follower = Follower(guest)

    follower.follow()
    assert follower.events[0]["text"] == "ü"


def test_a_lost_connection_is_told_and_outlived(guest: FilesOfAGuest) -> None:
    guest.status(beat=1)
    failures = iter([True, True])

    def fail(name: str) -> None:
        if next(failures, False):
            raise GuestError("the connection was reset")
        guest.status(exit_code=0)

    guest.before_read = fail
    follower = Follower(guest)

    assert follower.follow() == SuiteEnd(0, "")
    assert follower.troubles == ["the connection was reset"] * 2
    assert guest.reconnects == 2


def test_a_guest_that_restarted_is_lost_at_once(guest: FilesOfAGuest) -> None:
    guest.status(beat=1)
    failures = iter([True])

    def fail(name: str) -> None:
        if next(failures, False):
            guest.boot = "8"
            raise GuestError("the connection was reset")

    guest.before_read = fail

    end = Follower(guest).follow(silence=3600)
    assert end == {"event": "guest-lost", "text": "the guest restarted while the suite ran (boot 7, now 8)"}


def test_a_process_that_ends_without_a_word_is_noticed_by_its_silence(guest: FilesOfAGuest) -> None:
    guest.status(beat=1)

    end = Follower(guest).follow(silence=0.2)
    assert end == {"event": "guest-lost", "text": "the suite's process in the guest ended without a word"}


def test_a_suite_that_outlives_the_deadline_is_ended_in_the_guest(guest: FilesOfAGuest) -> None:
    guest.status(beat=1)

    end = Follower(guest).follow(seconds=0.2)
    assert end["event"] == "problem" and "took too long" in end["text"]
    assert [command[:2] for command in guest.commands] == [["schtasks", "/end"], ["schtasks", "/delete"]]


def test_a_guest_that_never_answers_ends_with_the_last_trouble(guest: FilesOfAGuest) -> None:
    def fail(name: str) -> None:
        raise GuestError("no route to host")

    guest.before_read = fail

    end = Follower(guest).follow(seconds=0.3)
    assert "the last trouble was: no route to host" in end["text"]


def test_a_line_of_the_status_that_a_crash_filled_with_zeros_says_nothing(guest: FilesOfAGuest) -> None:
    (guest.root / "status.jsonl").write_bytes(b'{"beat": 1}\n' + b"\0" * 20 + b"\n" + b'{"exit_code": 3}\n')

    assert Follower(guest).follow() == SuiteEnd(3, "")


def test_the_task_is_defined_for_system_by_its_sid_and_with_a_limit(guest: FilesOfAGuest) -> None:
    guest.on_command = lambda command: guest.status(beat=1) if "/run" in command else None

    detached.start(guest, SUITE, ["-m", "pytest", "a & b"], 600.0, Deadline.after(seconds=5))  # type: ignore[arg-type]

    content = (guest.root / "task.xml").read_bytes()
    assert content.startswith(b"\xff\xfe")
    task = ElementTree.fromstring(content.decode("utf-16"))
    found = {element.tag.removeprefix(TASK_NAMESPACE): element.text for element in task.iter()}
    assert found["UserId"] == "S-1-5-18"
    assert found["ExecutionTimeLimit"] == "PT600S"
    assert found["Command"] == "C:\\Python\\python.exe"
    assert found["Arguments"] == "guest_task.py ../results/a-run/task.json"
    assert found["WorkingDirectory"] == "C:\\Downlink\\lib"
    assert json.loads((guest.root / "task.json").read_text(encoding="utf-8"))["arguments"][-1] == "a & b"
    assert [command[1] for command in guest.commands if command[0] == "schtasks"] == ["/create", "/run"]


def test_a_task_that_does_not_start_is_told_with_what_the_scheduler_says(guest: FilesOfAGuest) -> None:
    with pytest.raises(DeadlineExceededError, match="to start; last seen: no status file yet") as raised:
        detached.start(guest, SUITE, [], 60.0, Deadline.after(seconds=0.3))  # type: ignore[arg-type]
    assert "schtasks says" in str(raised.value.causes[0])


def test_a_suite_is_found_again_by_its_event() -> None:
    assert DetachedSuite.of(json.loads(json.dumps(SUITE.event()))) == SUITE


def test_a_restart_that_broke_no_connection_is_asked_for_after_a_while_and_not_all_the_time(
    guest: FilesOfAGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detached, "DOUBT_SECONDS", 0.3)
    asked = 0

    def boot(deadline: Deadline) -> str:
        nonlocal asked
        asked += 1
        return "7" if asked < 3 else "8"

    monkeypatch.setattr(guest, "boot_identity", boot)
    guest.status(beat=1)

    end = Follower(guest).follow(silence=3600)
    assert end == {"event": "guest-lost", "text": "the guest restarted while the suite ran (boot 7, now 8)"}
    assert asked == 3
