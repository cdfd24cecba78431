"""Scheduled tasks of the guest: they outlive shells and connections, and end with the boot."""

from __future__ import annotations

import csv
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from vm.emulated.guest.scheduler import (
    DBG_TERMINATE_PROCESS,
    SCHED_S_TASK_HAS_NOT_RUN,
    SCHED_S_TASK_RUNNING,
    SCHED_S_TASK_TERMINATED,
)

XML = """<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>a test</Description></RegistrationInfo>
  <Triggers>{triggers}</Triggers>
  <Principals><Principal id="Author"><UserId>{user}</UserId></Principal></Principals>
  <Settings><ExecutionTimeLimit>{limit}</ExecutionTimeLimit></Settings>
  <Actions Context="Author"><Exec><Command>{command}</Command><Arguments>{arguments}</Arguments>
  <WorkingDirectory>{directory}</WorkingDirectory></Exec></Actions>
</Task>
"""
PING = "C:\\Windows\\System32\\PING.EXE"


def xml(command: str, arguments: str = "", **changes: str) -> bytes:
    values = {"triggers": "", "user": "S-1-5-18", "limit": "PT72H", "directory": "C:\\Work", **changes}
    return XML.format(command=command, arguments=arguments, **values).encode("utf-16")


def task(guest: Any, name: str = "lab") -> Any:
    found = guest.scheduler.find(name)
    assert found is not None
    return found


@pytest.fixture
def create(prompt: Any) -> Any:
    def make(command: str, arguments: str = "", **changes: str) -> Any:
        prompt.path("task.xml").write_bytes(xml(command, arguments, **changes))
        return prompt("schtasks /create /tn lab /xml C:\\Work\\task.xml /f")

    yield make
    prompt.guest.scheduler.close()


def test_a_task_runs_without_its_maker_and_its_exit_code_stays(
    prompt: Any, create: Any, wait_until: Callable[..., None]
) -> None:
    assert create("cmd.exe", "/c echo %USERNAME%&gt;who.txt&amp; exit 7").code == 0
    assert task(prompt.guest).last_result == SCHED_S_TASK_HAS_NOT_RUN
    assert prompt("schtasks /run /tn lab").out.startswith("SUCCESS: Attempted to run")
    wait_until(lambda: not task(prompt.guest).running, "the end of the task")
    assert task(prompt.guest).last_result == 7
    assert prompt.path("who.txt").read_text().strip() == "DOWNLINK-VM$"


def test_a_listing_tells_state_and_last_result(
    prompt: Any, create: Any, wait_until: Callable[..., None]
) -> None:
    create("cmd.exe", "/c exit 7")
    prompt("schtasks /run /tn \\lab")
    wait_until(lambda: not task(prompt.guest).running, "the end of the task")
    listed = dict(
        line.split(":", 1) for line in prompt("schtasks /query /tn lab /v /fo list").lines if ":" in line
    )
    assert listed["TaskName"].strip() == "\\lab"
    assert (listed["Last Result"].strip(), listed["Status"].strip()) == ("7", "Ready")
    assert listed["Task To Run"].strip() == "cmd.exe /c exit 7"
    header, row = csv.reader(prompt("schtasks /query /fo csv /v").lines)
    assert dict(zip(header, row, strict=True))["Last Result"] == "7"


@pytest.mark.parametrize(
    ("changes", "command", "result"),
    [
        ({}, "nothing.exe", 0x80070002),
        ({"directory": "C:\\Nowhere"}, "cmd.exe", 0x80070002),
        ({"limit": "PT0.2S"}, PING, SCHED_S_TASK_TERMINATED),
    ],
)
def test_a_task_that_cannot_run_to_its_end_says_why(
    prompt: Any,
    create: Any,
    wait_until: Callable[..., None],
    changes: dict[str, str],
    command: str,
    result: int,
) -> None:
    create(command, "-n 100 127.0.0.1", **changes)
    prompt("schtasks /run /tn lab")
    wait_until(lambda: not task(prompt.guest).running, "the end of the task")
    assert task(prompt.guest).last_result == result


def test_a_running_task_is_not_started_twice_and_can_be_ended(
    prompt: Any, create: Any, wait_until: Callable[..., None]
) -> None:
    create(PING, "-n 100 127.0.0.1")
    prompt("schtasks /run /tn lab")
    assert prompt("schtasks /run /tn lab").code == 0
    assert task(prompt.guest).last_result == SCHED_S_TASK_RUNNING
    assert len(_threads()) == 1
    assert prompt("schtasks /end /tn lab").code == 0
    wait_until(lambda: not _threads(), "the end of its thread")
    assert task(prompt.guest).last_result == SCHED_S_TASK_TERMINATED
    assert prompt("schtasks /end /tn lab").code == 1


def test_a_deleted_task_runs_on_until_the_guest_goes_down(prompt: Any, create: Any) -> None:
    create(PING, "-n 100 127.0.0.1")
    prompt("schtasks /run /tn lab")
    assert prompt("schtasks /delete /tn lab /f").code == 0
    assert prompt("schtasks /query /tn lab").code == 1
    assert len(_threads()) == 1
    prompt.guest.scheduler.close()
    assert not _threads()


def test_a_task_outlives_its_shell_and_every_connection_but_no_restart(
    own_machine: Any, run_command: Any, wait_until: Callable[..., None]
) -> None:
    machine = own_machine()
    (machine.c / "Work").mkdir()
    (machine.c / "task.xml").write_bytes(
        xml("C:\\Python\\python.exe", "-c &quot;import time; time.sleep(60)&quot;")
    )
    protocol = machine.protocol()
    shell = protocol.open_shell()
    line = "schtasks /create /tn lab /xml C:\\task.xml & schtasks /run /tn lab"
    assert run_command(protocol, shell, line)[2] == 0
    wait_until(lambda: bool(machine.face.processes.running()), "the task's process")
    protocol.close_shell(shell, close_session=True)
    machine.face.restart_winrm()
    assert task(machine.face).running
    machine.face.restart()
    assert task(machine.face).last_result == DBG_TERMINATE_PROCESS
    assert machine.face.processes.running() == []
    assert not _threads()


def test_a_task_with_a_boot_trigger_runs_at_the_next_boot(
    own_machine: Any, run_command: Any, wait_until: Callable[..., None]
) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    line = 'schtasks /create /tn lab /tr "cmd.exe /c echo up>C:\\up.txt" /sc onstart /ru SYSTEM'
    assert run_command(protocol, protocol.open_shell(), line)[2] == 0
    assert not (machine.c / "up.txt").exists()
    machine.face.restart()
    wait_until((machine.c / "up.txt").exists, "the task's file")


def test_no_thread_of_a_task_outlives_the_machine(own_machine: Any, run_command: Any) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    line = f'schtasks /create /tn lab /tr "{PING} -n 100 127.0.0.1" /sc once /st 23:59 /ru SYSTEM'
    assert run_command(protocol, protocol.open_shell(), line + "& schtasks /run /tn lab")[2] == 0
    assert len(_threads()) == 1
    began = time.monotonic()
    machine.face.stop()
    assert not _threads()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("schtasks /run /tn none", "ERROR: The system cannot find the file specified."),
        (
            "schtasks /create /tn lab /xml C:\\Work\\none.xml",
            "ERROR: The system cannot find the file specified.",
        ),
        ("schtasks /create /tn lab /xml C:\\Work\\bad.xml", "ERROR: The task XML is malformed."),
        ("schtasks /create /tn lab /tr x /sc once /ru SYSTEM", "Mandatory option 'st' is missing."),
        ("schtasks /create /tn lab /tr x /sc once /st 25:00 /ru SYSTEM", "Invalid starttime value."),
        ("schtasks /create /tn lab /tr x /sc once /st 12:00", "Only /ru SYSTEM is available"),
        ("schtasks /create /xml C:\\Work\\bad.xml", "Mandatory option 'tn' is missing."),
        ("schtasks /frob", "Invalid argument/option - '/frob'."),
        ("schtasks /query", "There are no scheduled tasks"),
    ],
)
def test_what_cannot_be_is_refused_with_exit_code_1(prompt: Any, line: str, said: str) -> None:
    prompt.path("bad.xml").write_text("<Task>")
    result = prompt(line)
    assert (result.code, said in result.err) == (1, True)


def test_a_task_is_replaced_and_deleted_only_when_it_is_confirmed(prompt: Any, create: Any) -> None:
    create("cmd.exe")
    assert prompt("schtasks /create /tn lab /xml C:\\Work\\task.xml").code == 1
    assert prompt("schtasks /create /tn lab /xml C:\\Work\\task.xml", b"Y\r\n").code == 0
    assert prompt("schtasks /delete /tn lab", b"N\r\n").code == 1
    assert prompt("schtasks /delete /tn lab", b"y\r\n").code == 0


@pytest.mark.parametrize("user", ["lab", "S-1-5-32-544"])
def test_other_accounts_than_system_are_refused(create: Any, user: str) -> None:
    result = create("cmd.exe", user=user)
    assert (result.code, "UserId" in result.err) == (1, True)


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("guest task")]
