"""The process of an emulated machine: start, stop, restart, crash, and what becomes of it when its parent goes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import winrm
import winrm.exceptions

from harness.package import Package
from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine
from vm.errors import MachineError, PackageError
from vm.machine import MachineState

ROOT = Path(__file__).resolve().parents[2]
SERVICE_KEY = r"HKLM\SYSTEM\CurrentControlSet\Services\Downlink"


def soon() -> Deadline:
    return Deadline.after(seconds=60)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[EmulatedMachine]:
    made = EmulatedMachine("lab", tmp_path / "machines" / "lab", {"cache": str(ROOT / ".cache"), "seed": 1})
    yield made
    made.stop(soon())


@pytest.fixture(scope="module")
def package() -> Package:
    from harness.builds import prepare
    from harness.config import load

    return prepare(load(ROOT), None, None, None)()


class Shell:
    """Commands in the guest through a WinRM client of its own."""

    def __init__(self, machine: EmulatedMachine) -> None:
        address = machine.address()
        self._protocol = winrm.Protocol(
            endpoint=f"http://{address.host}:{address.winrm_port}/wsman",
            transport="ntlm",
            username=address.credentials.username,
            password=address.credentials.password,
            message_encryption="always",
            proxy=None,
        )
        self._shell = self._protocol.open_shell(codepage=65001)

    def run(self, line: str) -> tuple[str, int]:
        command = self._protocol.run_command(self._shell, line)
        out, error, status = self._protocol.get_command_output(self._shell, command)
        self._protocol.cleanup_command(self._shell, command)
        return (out + error).decode(), status


def test_a_machine_that_was_never_made_is_absent(machine: EmulatedMachine) -> None:
    assert machine.state() is MachineState.ABSENT
    with pytest.raises(MachineError, match="does not run"):
        machine.address()


def test_a_started_machine_answers_and_a_stopped_one_leaves_no_process(machine: EmulatedMachine) -> None:
    address = machine.start(soon())
    assert machine.state() is MachineState.RUNNING
    assert "Version 10.0" in Shell(machine).run("ver")[0]
    assert machine.start(soon()) == address
    machine.stop(soon())
    assert machine.state() is MachineState.STOPPED
    with pytest.raises(OSError):
        socket.create_connection((address.host, address.winrm_port), timeout=2).close()


@pytest.mark.skipif(os.name != "posix", reason="permissions are bits on POSIX only")
def test_the_state_with_the_password_is_for_its_owner_only(machine: EmulatedMachine, tmp_path: Path) -> None:
    machine.start(soon())
    state = tmp_path / "machines" / "lab" / "state.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    password = machine.address().credentials.password
    assert password not in repr(machine.address())
    for log in state.parent.glob("*.log"):
        assert password not in log.read_text(errors="replace")


def test_a_restored_machine_is_a_fresh_one(machine: EmulatedMachine) -> None:
    machine.start(soon())
    shell = Shell(machine)
    shell.run(r"echo left> C:\left.txt")
    before = machine.address().credentials.password
    machine.restore(soon())
    assert "not" in Shell(machine).run(r"type C:\left.txt")[0]
    assert machine.address().credentials.password != before


def test_a_port_that_is_in_use_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        machine = EmulatedMachine(
            "lab", tmp_path / "machines" / "lab", {"cache": str(ROOT / ".cache"), "winrm_port": port}
        )
        with pytest.raises(MachineError, match=str(port)) as caught:
            machine.start(soon())
    assert caught.value.hint
    assert machine.state() is not MachineState.RUNNING


def test_a_state_file_of_a_killed_process_does_not_count(machine: EmulatedMachine, tmp_path: Path) -> None:
    machine.start(soon())
    assert machine._process is not None
    machine._process.kill()
    machine._process.wait()
    assert machine.state() is MachineState.STOPPED
    machine.start(soon())
    assert "Version" in Shell(machine).run("ver")[0]


@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP is a POSIX signal")
def test_a_process_that_does_not_react_is_killed_by_a_stop(machine: EmulatedMachine) -> None:
    machine.start(soon())
    process = machine._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    machine.stop(Deadline.after(seconds=1))
    assert process.poll() is not None


def test_a_machine_that_is_not_kept_ends_with_its_parent(tmp_path: Path) -> None:
    directory = tmp_path / "machines" / "lab"
    script = (
        "import sys, time; from pathlib import Path; from vm.deadline import Deadline; "
        "from vm.emulated.machine import EmulatedMachine; "
        f"m = EmulatedMachine('lab', Path({str(directory)!r}), {{'cache': {str(ROOT / '.cache')!r}}}); "
        "m.start(Deadline.after(seconds=60), keep=False); print(m._process.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    process_id = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    machine = EmulatedMachine("lab", directory, {})
    assert machine._wait_for_end(process_id, soon())
    assert machine.state() is not MachineState.RUNNING


def test_a_restart_gives_another_boot_and_keeps_the_disk(machine: EmulatedMachine) -> None:
    machine.start(soon())
    key = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
    shell = Shell(machine)
    shell.run(r"echo kept> C:\kept.txt")
    before = shell.run(f'reg query "{key}" /v BootId')[0]
    # The connection, or the shell, may be gone before the answer: pywinrm has a different error for each moment.
    with contextlib.suppress(OSError, winrm.exceptions.WinRMError, winrm.exceptions.WinRMTransportError):
        shell.run("shutdown /r /t 0")
    after = _after_restart(machine, f'reg query "{key}" /v BootId', before)
    assert after != before
    assert "kept" in Shell(machine).run(r"type C:\kept.txt")[0]


def _after_restart(machine: EmulatedMachine, command: str, before: str) -> str:
    """The output of a command as soon as it differs; the machine answers refused connections while it restarts."""
    deadline = soon()
    seen: Any = None
    while not deadline.passed:
        try:
            seen = Shell(machine).run(command)[0]
        except Exception as error:  # noqa: BLE001  # whatever a client sees of a machine that restarts
            seen = error
        else:
            if seen != before:
                return str(seen)
    raise AssertionError(f"the machine did not restart; last seen: {seen}")


def test_an_image_that_imports_what_is_not_modelled_is_refused_by_name(
    machine: EmulatedMachine, package: Package
) -> None:
    data = package.image.read_bytes()
    machine.check_image(data, "downlink.sys")
    broken = data.replace(b"FltSendMessage\0", b"FltSendMassage\0").replace(b"KeSetEvent\0", b"KeSitEvent\0")
    with pytest.raises(PackageError) as caught:
        machine.check_image(broken, "downlink.sys")
    assert "fltmgr.sys!FltSendMassage" in caught.value.message
    assert "ntoskrnl.exe!KeSitEvent" in caught.value.message


def test_a_file_that_is_no_image_is_refused(machine: EmulatedMachine) -> None:
    with pytest.raises(PackageError):
        machine.check_image(b"MZ is not enough", "x.sys")
