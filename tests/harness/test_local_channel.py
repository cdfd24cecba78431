"""This host as the guest: child processes of something that is called as cmd.exe is, and their ends."""

from __future__ import annotations

import io
import os
import stat
import sys
import time
from pathlib import Path

import pytest

from harness.log import Log
from harness.remote.guest import Guest
from harness.remote.local import LocalCommands, LocalFiles
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import Channel, Credentials, GuestAddress

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for cmd.exe is a shell script")

# What cmd.exe does with `/d /s /c "chcp 65001 >nul & line"`, for lines of a POSIX shell.
CMD = """#!/bin/sh
[ "$1 $2 $3" = "/d /s /c" ] || exit 99
line=${4#\\"chcp 65001 >nul & }
exec sh -c "${line%\\"}"
"""


@pytest.fixture
def commands(tmp_path: Path) -> LocalCommands:
    path = tmp_path / "cmd"
    path.write_text(CMD, encoding="ascii")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return LocalCommands(machine="here", log=Log(), program=(str(path),), root=tmp_path)


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds=seconds)


def is_running(process_id: int) -> bool:
    try:
        text = Path(f"/proc/{process_id}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return text.rpartition(")")[2].split()[0] not in "ZX"


def assert_ends(process_id: int) -> None:
    deadline = soon(10)
    while is_running(process_id):
        deadline.check(f"the process {process_id} to end")
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="is about other hosts")
def test_a_host_that_is_not_windows_cannot_be_its_own_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = GuestAddress(
        "localhost", 0, "http", "ntlm", None, None, Credentials("", ""), channel=Channel.LOCAL
    )
    with Guest(address, machine="here") as guest, pytest.raises(GuestError, match="is not Windows") as caught:
        guest.run("ver", deadline=soon())

    assert "--machine" in (caught.value.hint or "")
    with Guest(address, machine="here") as guest, pytest.raises(GuestError, match="is not Windows"):
        guest.put_bytes(b"x", "C:\\Downlink\\x", soon())
    assert list(tmp_path.iterdir()) == []


def test_exit_code_outputs_and_input_pass_through(commands: LocalCommands) -> None:
    result = commands.run("cat; echo oops >&2; exit 7", deadline=soon(), stdin="grüße".encode())

    assert (result.exit_code, result.stdout, result.stderr) == (7, "grüße", "oops\n")


def test_input_is_at_its_end_when_there_is_none(commands: LocalCommands) -> None:
    assert commands.run("cat; echo end", deadline=soon(5)).stdout == "end\n"


def test_much_input_and_much_output_do_not_block_each_other(commands: LocalCommands) -> None:
    data = os.urandom(3_000_000).hex().encode()

    result = commands.run("cat; cat /dev/null", deadline=soon(), stdin=data)

    assert result.stdout.encode() == data


def test_a_command_that_reads_none_of_its_input_is_no_failure(commands: LocalCommands) -> None:
    assert commands.run("exit 3", deadline=soon(), stdin=bytes(3_000_000)).exit_code == 3


def test_at_the_deadline_a_command_ends_with_everything_that_it_started(
    commands: LocalCommands, tmp_path: Path
) -> None:
    line = f"(sleep 300 & echo $! > {tmp_path}/child; wait) & echo working; wait"

    with pytest.raises(DeadlineExceededError, match=r"did not end within .* its last output was 'working'"):
        commands.run(line, deadline=soon(1))

    assert_ends(int((tmp_path / "child").read_text("ascii")))


def test_what_a_command_leaves_behind_ends_with_it_and_does_not_hold_its_output_open(
    commands: LocalCommands, tmp_path: Path
) -> None:
    began = time.monotonic()

    result = commands.run(f"sleep 300 & echo $! > {tmp_path}/child; echo done", deadline=soon())

    assert result.stdout == "done\n" and time.monotonic() - began < 20
    assert_ends(int((tmp_path / "child").read_text("ascii")))


def test_what_the_listener_of_the_output_raises_ends_the_command(commands: LocalCommands) -> None:
    def refuse(_: str) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        commands.run("echo one; sleep 300", deadline=soon(), on_output=refuse)

    assert time.monotonic() - began < 20


def test_a_program_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    commands = LocalCommands(machine="here", log=Log(), program=(str(tmp_path / "none"),), root=tmp_path)

    with pytest.raises(GuestError, match="could not be started: No such file"):
        commands.run("ver", deadline=soon())


def test_commands_are_logged_without_what_they_read(tmp_path: Path) -> None:
    stream = io.StringIO()
    path = tmp_path / "cmd"
    path.write_text(CMD, encoding="ascii")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    commands = LocalCommands(machine="here", log=Log(stream), program=(str(path),), root=tmp_path)

    commands.run("cat >/dev/null; exit 2", deadline=soon(), stdin=b"s3cret-word")

    assert "exit code 2 after" in stream.getvalue() and "s3cret" not in stream.getvalue()


def test_a_directory_that_may_not_be_written_asks_for_an_administrator(tmp_path: Path) -> None:
    files = LocalFiles(machine="here", log=Log(), root=tmp_path)
    (tmp_path / "Downlink").write_bytes(b"a file where a directory has to be")

    with pytest.raises(GuestError, match=r"writing 'C:.Downlink.x' failed on this host"):
        files.put_bytes(b"", "C:\\Downlink\\x", soon())
