"""Faults of files, boots, clocks, drivers and tools: each fires when it should, and only then."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import paramiko
import pytest
import requests
from winrm.exceptions import WSManFaultError

from tests.vm.guest.chaos_reports import firings, occasions
from vm.emulated.guest import boot
from vm.emulated.guest.chaos.plan import Chaos, parse
from vm.emulated.guest.drive import Drive
from vm.emulated.guest.sftp_files import SftpFiles

Broken = (requests.exceptions.ConnectionError, ConnectionError, OSError)
CREATE = "sc create Downlink type= filesys binPath= C:\\x.sys"


class Prompt:
    """Commands in one shell of a running guest."""

    def __init__(self, machine: Any, run_command: Any) -> None:
        self._protocol = machine.protocol()
        self._shell = self._protocol.open_shell(codepage=65001)
        self._run = run_command

    def __call__(self, line: str) -> tuple[str, int]:
        out, err, code = self._run(self._protocol, self._shell, line)
        return (out + err).decode(), code


@pytest.fixture
def open_prompt(run_command: Any) -> Callable[[Any], Prompt]:
    return lambda machine: Prompt(machine, run_command)


# Files


def test_the_connection_closes_within_an_upload_and_half_a_file_stays(own_machine: Any) -> None:
    machine = own_machine(chaos="sftp-closes:100k")
    client = machine.sftp()
    with pytest.raises((OSError, EOFError, paramiko.SSHException)):
        client.putfo(BytesIO(bytes(300_000)), "/C:/big.bin")
    assert 0 < (machine.c / "big.bin").stat().st_size <= 100 * 1024
    assert firings(machine, "sftp-closes") == 1
    machine.sftp().putfo(BytesIO(bytes(300_000)), "/C:/big.bin")
    assert (machine.c / "big.bin").stat().st_size == 300_000


def test_what_was_sent_before_the_cut_does_not_reach_the_disk_after_it(tmp_path: Path) -> None:
    cuts: list[str] = []
    drive = Drive(tmp_path)
    files = SftpFiles(
        paramiko.ServerInterface(), drive, "C:\\", Chaos(parse("sftp-closes:10")), lambda: cuts.append("cut")
    )
    handle = files.open("/C:/x.bin", os.O_WRONLY | os.O_CREAT, paramiko.SFTPAttributes())
    assert isinstance(handle, paramiko.SFTPHandle)
    assert handle.write(0, b"12345678") == paramiko.SFTP_OK
    assert [handle.write(8, b"12345678"), handle.write(16, b"1")] == [paramiko.SFTP_FAILURE] * 2
    handle.close()
    assert (cuts, (tmp_path / "x.bin").read_bytes()) == (["cut"], b"12345678")


def test_a_small_upload_is_no_occasion(own_machine: Any) -> None:
    machine = own_machine(chaos="sftp-closes:100k")
    machine.sftp().putfo(BytesIO(bytes(1000)), "/C:/small.bin")
    assert (occasions(machine, "sftp-closes"), (machine.c / "small.bin").stat().st_size) == (0, 1000)


def test_a_short_write_is_told_as_a_whole_one(own_machine: Any) -> None:
    machine = own_machine(chaos="sftp-short-write:64k")
    data = bytes(range(256)) * 1000
    with machine.sftp().open("/C:/big.bin", "wb") as file:
        file.set_pipelined(True)
        file.write(data)
    assert (machine.c / "big.bin").read_bytes() != data
    assert firings(machine, "sftp-short-write") == 1


def test_sftp_is_slow(own_machine: Any) -> None:
    machine = own_machine(chaos="sftp-slow:1M")
    began = time.monotonic()
    machine.sftp().putfo(BytesIO(bytes(200_000)), "/C:/big.bin")
    assert time.monotonic() - began >= 0.15
    assert firings(machine, "sftp-slow") >= 6


def test_the_disk_is_full_for_sftp_and_for_commands(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="disk-full:50k")
    prompt, client = open_prompt(machine), machine.sftp()
    client.putfo(BytesIO(bytes(40_000)), "/C:/first.bin")
    assert firings(machine, "disk-full") == 0
    with pytest.raises(OSError, match=r"Failure|size mismatch"):
        client.putfo(BytesIO(bytes(40_000)), "/C:/second.bin")
    assert firings(machine, "disk-full") >= 1
    said, code = prompt("copy C:\\first.bin C:\\third.bin")
    assert code != 0
    assert "There is not enough space on the disk." in said
    assert not (machine.c / "third.bin").exists()
    assert "not enough space" in prompt("for-nothing 2>nul & type C:\\first.bin >C:\\fourth.bin")[0]
    assert "not enough space" in prompt("certutil -encode C:\\first.bin C:\\fifth.txt")[0]


# Boots


def test_the_guest_restarts_within_a_copy(own_machine: Any) -> None:
    machine = own_machine(chaos="restart-in-copy:50k")
    first = machine.computer.boot_id
    client = machine.sftp()
    with pytest.raises((OSError, EOFError, paramiko.SSHException)):
        for _ in range(1000):
            client.putfo(BytesIO(bytes(100_000)), "/C:/big.bin")
    assert machine.rebooted.wait(10)
    assert machine.computer.boot_id != first
    assert firings(machine, "restart-in-copy") == 1


def test_the_guest_restarts_while_a_command_runs(own_machine: Any) -> None:
    machine = own_machine(chaos="restart-in-run@1")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "ping -n 100 127.0.0.1")
    with pytest.raises((*Broken, WSManFaultError)):
        for _ in range(1000):
            protocol.get_command_output_raw(shell, command)
    assert machine.rebooted.wait(10)
    assert firings(machine, "restart-in-run") == 1


@pytest.mark.parametrize(("fault", "code"), [("bugcheck-in-copy:1k", 0xD1), ("bugcheck-in-run@1", 0x139)])
def test_the_machine_bugchecks_when_it_is_at_work(
    own_machine: Any, open_prompt: Any, wait_until: Callable[..., None], fault: str, code: int
) -> None:
    machine = own_machine(chaos=fault)
    open_prompt(machine)("ver")
    if "copy" in fault:
        assert machine.bugchecks == []
        machine.sftp().putfo(BytesIO(bytes(3_000)), "/C:/big.bin")
    wait_until(lambda: len(machine.bugchecks) == 1, "the bugcheck")
    assert machine.bugchecks[0][0] == code
    assert firings(machine, fault.split(":")[0].split("@")[0]) == 1


def test_nothing_answers_for_a_while_after_a_boot(own_machine: Any, wait_until: Callable[..., None]) -> None:
    machine = own_machine(chaos="slow-boot:300ms@2")
    machine.protocol().open_shell()
    machine.face.restart()
    began = time.monotonic()
    with pytest.raises(Broken):
        machine.protocol().open_shell()

    def answers() -> bool:
        try:
            return bool(machine.protocol().open_shell())
        except Broken:
            return False

    wait_until(answers, "an answer after the boot")
    assert time.monotonic() - began >= 0.2
    assert firings(machine, "slow-boot") == 1


def test_a_slow_first_boot_can_be_stopped_at_once(own_machine: Any) -> None:
    machine = own_machine(chaos="slow-boot:60")
    with pytest.raises(Broken):
        machine.protocol().open_shell()
    began = time.monotonic()
    machine.face.stop()
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name == "guest chaos"]


def test_the_ports_are_others_after_a_restart(own_machine: Any) -> None:
    machine = own_machine(chaos="address-changes")
    before = (machine.face.winrm_port, machine.face.ssh_port)
    assert firings(machine, "address-changes") == 0
    machine.face.restart()
    assert not set(before) & {machine.face.winrm_port, machine.face.ssh_port}
    assert machine.moved == [(machine.face.winrm_port, machine.face.ssh_port)]
    assert machine.protocol().open_shell()
    machine.sftp().close()
    with pytest.raises(OSError, match="refused"):
        requests.post(f"http://127.0.0.1:{before[0]}/wsman", timeout=5)
    assert firings(machine, "address-changes") == 1


# The clock


def _guest_time(machine: Any) -> float:
    answer = requests.post(machine.url, timeout=5)
    return parsedate_to_datetime(answer.headers["Date"]).timestamp()


def test_the_clock_is_off_from_the_start_and_can_be_set(own_machine: Any) -> None:
    machine = own_machine(chaos="clock-off:1d")
    assert abs(_guest_time(machine) - time.time() + 86400) < 5
    machine.face.clock.set(time.time())
    machine.face.restart()
    assert abs(_guest_time(machine) - time.time()) < 5
    assert firings(machine, "clock-off") == 1


def test_the_clock_jumps_at_a_restart(own_machine: Any) -> None:
    machine = own_machine(chaos="clock-jumps:2h")
    assert abs(_guest_time(machine) - time.time()) < 5
    machine.face.restart()
    assert abs(_guest_time(machine) - time.time() - 7200) < 5
    assert firings(machine, "clock-jumps") == 1


# Boot options


def test_test_signing_is_off(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="testsigning-off")
    assert not boot.testsigning_in_effect(machine.registry)
    assert open_prompt(machine)("bcdedit /set testsigning on")[1] == 0
    machine.face.restart()
    assert boot.testsigning_in_effect(machine.registry)
    assert firings(machine, "testsigning-off") == 1


def test_secure_boot_forbids_test_signing(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="secure-boot")
    said, code = open_prompt(machine)("bcdedit /set testsigning on")
    assert (code, "protected by Secure Boot policy" in said) == (1, True)
    machine.face.restart()
    assert not boot.testsigning_in_effect(machine.registry)
    assert boot.secure_boot_on(machine.registry)
    assert firings(machine, "secure-boot") == 1


# Drivers


def test_an_unload_is_refused(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="unload-refused")
    prompt = open_prompt(machine)
    assert prompt(CREATE + "& fltmc load Downlink")[1] == 0
    said, code = prompt("fltmc unload Downlink")
    assert (code, "0x801f0010" in said) == (1, True)
    assert "Downlink" in prompt("fltmc")[0]
    assert prompt("fltmc unload Downlink")[1] == 0
    assert firings(machine, "unload-refused") == 1


def test_an_unload_hangs_until_the_machine_stops(own_machine: Any, wait_until: Callable[..., None]) -> None:
    machine = own_machine(chaos="unload-hangs")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, CREATE + "& fltmc load Downlink& fltmc unload Downlink")
    wait_until(lambda: firings(machine, "unload-hangs") == 1, "the unload")
    assert [call[0] for call in machine.computer.calls] == ["load"]
    protocol.cleanup_command(shell, command)
    assert _commands()
    machine.face.stop()
    wait_until(lambda: not _commands(), "the end of the command's thread")


def test_a_hanging_unload_ends_with_a_restart(own_machine: Any, wait_until: Callable[..., None]) -> None:
    machine = own_machine(chaos="unload-hangs")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    protocol.run_command(shell, CREATE + "& fltmc load Downlink& fltmc unload Downlink")
    wait_until(lambda: firings(machine, "unload-hangs") == 1, "the unload")
    machine.face.restart()
    wait_until(lambda: not _commands(), "the end of the command's thread")


def _commands() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("guest command")]


def test_a_load_races_with_the_last_unload(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="load-race@1-2")
    prompt = open_prompt(machine)
    prompt(CREATE)
    for _ in range(2):
        said, code = prompt("fltmc load Downlink")
        assert (code, "0x80070420" in said) == (1, True)
    assert prompt("fltmc load Downlink")[1] == 0
    assert firings(machine, "load-race") == 2


def test_a_deleted_service_stays_marked_for_a_while(own_machine: Any, open_prompt: Any) -> None:
    machine = own_machine(chaos="delete-pending:3")
    prompt = open_prompt(machine)
    prompt(CREATE)
    assert prompt("sc delete Downlink")[1] == 0
    assert prompt(CREATE)[1] == 1072
    assert prompt("reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\Downlink")[1] == 0
    assert prompt("sc query Downlink")[1] == 1060
    assert prompt(CREATE)[1] == 0
    assert prompt("sc delete Downlink& sc query Downlink")[1] == 1060
    assert firings(machine, "delete-pending") == 1


# Tools


@pytest.mark.parametrize(
    ("fault", "line"), [("python-missing", "python -V"), ("powershell-missing", "powershell")]
)
def test_a_program_is_missing(own_machine: Any, open_prompt: Any, fault: str, line: str) -> None:
    machine = own_machine(chaos=fault)
    prompt = open_prompt(machine)
    prompt("ver")
    assert firings(machine, fault) == 0
    said, code = prompt(line)
    assert (code, "is not recognized as an internal or external command" in said) == (1, True)
    assert firings(machine, fault) >= 1
    assert prompt("where python")[1] == (1 if "python" in fault else 0)


@pytest.mark.parametrize(
    ("value", "line", "code"),
    [
        ("3010", "pnputil.exe /add-driver x.inf /install", 3010),
        ("3010", "pnputil.exe /delete-driver oem3.inf", 3010),
        ("259", "pnputil.exe /Add-Driver x.inf", 259),
        ("259", "pnputil.exe /delete-driver oem3.inf", 0),
        ("3010", "pnputil.exe /enum-drivers", 0),
        ("3010", "sc.exe /add-driver", 0),
    ],
)
def test_a_success_of_pnputil_is_told_as_another_code(value: str, line: str, code: int) -> None:
    chaos = Chaos(parse(f"pnputil:{value}"))
    program, *words = line.split()
    assert chaos.result_of(program, words, 2) == 2
    assert chaos.result_of(program, words, 0) == code
    assert chaos.result_of(program, words, 0) == 0
    assert chaos.report()[0]["occasions"] == (2 if code else 0)


def test_pnputil_begins_a_restart(own_machine: Any) -> None:
    machine = own_machine(chaos="pnputil:1641")
    assert machine.face.chaos.result_of("pnputil.exe", ["/add-driver"], 0) == 1641
    assert machine.rebooted.wait(10)
    assert firings(machine, "pnputil") == 1


@pytest.mark.parametrize(
    ("fault", "line", "code", "text"),
    [
        (
            "w32tm-refuses",
            "w32tm /query /status",
            0x80070426,
            "The service has not been started. (0x80070426)",
        ),
        ("schtasks-refuses", "schtasks /create /tn x", 1, "ERROR: Access is denied."),
    ],
)
def test_a_tool_refuses(
    own_machine: Any, open_prompt: Any, fault: str, line: str, code: int, text: str
) -> None:
    machine = own_machine(chaos=f"{fault}@2")
    prompt = open_prompt(machine)
    prompt("ver")
    assert text not in prompt(line)[0]
    assert (firings(machine, fault), occasions(machine, fault)) == (0, 1)
    said, ended = prompt(line)
    assert (ended, text in said) == (code, True)
    assert firings(machine, fault) == 1
