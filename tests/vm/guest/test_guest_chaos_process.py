"""Faults of a whole machine in its own process: bugchecks with their evidence, addresses that change, HTTPS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import winrm
import winrm.exceptions

from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine

ROOT = Path(__file__).resolve().parents[3]
Broken = (
    requests.exceptions.RequestException,
    OSError,
    winrm.exceptions.WinRMError,
    # A sealed session that has lost its connection gets 400 on the next one.
    winrm.exceptions.WinRMTransportError,
    winrm.exceptions.InvalidCredentialsError,
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., EmulatedMachine]]:
    """Starts a machine with settings of its own."""
    made: list[EmulatedMachine] = []

    def make(**settings: Any) -> EmulatedMachine:
        values = {"cache": str(ROOT / ".cache"), "seed": 1, **settings}
        machine = EmulatedMachine("lab", tmp_path / "machines" / f"lab{len(made)}", values)
        made.append(machine)
        machine.start(Deadline.after(seconds=60), keep=False)
        return machine

    yield make
    for machine in made:
        machine.stop(Deadline.after(seconds=30))


def protocol(machine: EmulatedMachine) -> winrm.Protocol:
    address = machine.address()
    https = address.winrm_scheme == "https"
    return winrm.Protocol(
        endpoint=f"{address.winrm_scheme}://{address.host}:{address.winrm_port}/wsman",
        transport="ssl" if https else "ntlm",
        username=address.credentials.username,
        password=address.credentials.password,
        message_encryption="auto" if https else "always",
        ca_trust_path=str(address.certificate) if https else None,
        proxy=None,
    )


def run(machine: EmulatedMachine, line: str) -> tuple[str, int]:
    client = protocol(machine)
    shell = client.open_shell(codepage=65001)
    out, error, code = client.get_command_output(shell, client.run_command(shell, line))
    client.close_shell(shell)
    return (out + error).decode(), code


def answers(machine: EmulatedMachine, line: str = "ver") -> bool:
    try:
        return run(machine, line)[1] == 0
    except Broken:
        return False


def fired(machine: EmulatedMachine, name: str) -> int:
    return next(len(entry["firings"]) for entry in machine.chaos() if entry["fault"] == name)


def test_a_bugcheck_within_a_run_leaves_report_dump_and_events(
    start: Callable[..., EmulatedMachine], wait_until: Callable[..., None]
) -> None:
    machine = start(chaos="bugcheck-in-run@1")
    client = protocol(machine)
    shell = client.open_shell()
    command = client.run_command(shell, "ping -n 100 127.0.0.1")
    with pytest.raises(Broken):
        for _ in range(1000):
            client.get_command_output_raw(shell, command)
    wait_until(lambda: answers(machine), "the boot after the bugcheck", seconds=20)
    (crash,) = machine.condition().crashes
    assert (crash.code, crash.parameters) == (0x139, (3, 0, 0, 0))
    assert crash.dump is not None
    assert run(machine, f"if exist {crash.dump} exit 5")[1] == 5
    events, _ = run(machine, 'wevtutil qe System "/q:*[System[EventID=41 or EventID=1001]]" /f:xml')
    assert "<Data Name='BugcheckCode'>313</Data>" in events
    assert "0x00000139 (0x0000000000000003" in events and crash.dump in events
    assert fired(machine, "bugcheck-in-run") == 1


def test_another_address_after_a_restart_is_in_the_machines_state(
    start: Callable[..., EmulatedMachine], wait_until: Callable[..., None]
) -> None:
    machine = start(chaos=["address-changes"])
    before = machine.address()
    # The restart may be quicker than the clean-up behind the command.
    answers(machine, "shutdown /r /t 0")
    wait_until(lambda: machine.address().winrm_port != before.winrm_port, "another address", seconds=20)
    wait_until(lambda: answers(machine), "an answer there", seconds=20)
    after = machine.address()
    assert after.ssh_port != before.ssh_port
    assert (after.host_key, after.credentials) == (before.host_key, before.credentials)
    assert fired(machine, "address-changes") == 1


def test_a_machine_over_https_is_reached_with_its_pinned_certificate(
    start: Callable[..., EmulatedMachine],
) -> None:
    machine = start(scheme="https", language="de")
    assert machine.address().certificate is not None
    said, code = run(machine, "schtasks /run /tn nothing")
    assert (code, said.strip()) == (1, "FEHLER: Das System kann die angegebene Datei nicht finden.")


def test_a_hanging_unload_does_not_hold_up_the_end_of_the_process(
    start: Callable[..., EmulatedMachine], wait_until: Callable[..., None]
) -> None:
    machine = start(chaos="unload-hangs,slow-boot:1ms,latency:5ms")
    client = protocol(machine)
    shell = client.open_shell()
    client.run_command(shell, "fltmc unload Nothing")
    wait_until(lambda: fired(machine, "unload-hangs") == 1, "the unload")
    deadline = Deadline.after(seconds=8)
    machine.stop(deadline)
    assert not deadline.passed
