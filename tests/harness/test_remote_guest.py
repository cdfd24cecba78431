"""The guest over real WinRM and SFTP, as the emulated machine's Windows face serves them on the loopback."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.console import Console
from harness.deployment import Plan, UnloadError, deploy, remove
from harness.log import Log
from harness.package import Package, load_package
from harness.remote.faults import LogonError
from harness.remote.guest import Guest
from harness.remote.sftp import Upload
from harness.runs import runner
from harness.runs.record import RunRecord
from harness.runs.view import RunView
from tests.harness.remote_doubles import ComputerDouble, MachineDouble, sample_package
from vm.deadline import Deadline
from vm.emulated.guest.face import GuestFace
from vm.emulated.guest.settings import GuestSettings, Quotas
from vm.emulated.registry import Registry
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import Credentials, GuestAddress, MachineState

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "a-random-Passw0rd"
PLAN = Plan("Sample", "Sample Instance", "370001.5", "FSFilter Activity Monitor", unload_seconds=3)


class Lab:
    """A guest face with a computer double, and the address under which it answers."""

    def __init__(self, base: Path, **settings: object) -> None:
        self.registry = Registry()
        self.computer = ComputerDouble(self.registry)
        state = base / "state"
        state.mkdir(mode=0o700)
        made = GuestSettings(
            username="lab",
            password=PASSWORD,
            state_directory=state,
            cache_directory=ROOT / ".cache",
            **settings,  # type: ignore[arg-type]
        )
        self.face = GuestFace(
            lambda: self.computer,
            base / "c",
            self.registry,
            made,
            on_new_boot=lambda: setattr(self, "computer", ComputerDouble(self.registry)),
        )
        self.face.start()

    def address(self, transport: str = "ntlm") -> GuestAddress:
        return GuestAddress(
            host="127.0.0.1",
            winrm_port=self.face.winrm_port,
            winrm_scheme="http",
            winrm_transport=transport,
            ssh_port=self.face.ssh_port,
            host_key=self.face.host_key,
            credentials=Credentials("lab", PASSWORD),
        )

    def path(self, *parts: str) -> Path:
        return self.face.drive.root.joinpath(*parts)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.face.stop()


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[Callable[..., Lab]]:
    labs: list[Lab] = []

    def make(**settings: object) -> Lab:
        labs.append(Lab(tmp_path, **settings))
        return labs[-1]

    yield make
    for made in labs:
        made.face.stop()


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    with Guest(lab.address(), machine="lab") as connected:
        yield connected


def soon(seconds: float = 30) -> Deadline:
    return Deadline.after(seconds=seconds)


@pytest.mark.parametrize("transport", ["ntlm", "basic"])
def test_a_command_runs_and_its_exit_code_and_output_come_back(lab: Lab, transport: str) -> None:
    with Guest(lab.address(transport), machine="lab") as guest:
        assert "Microsoft Windows" in guest.run("ver", deadline=soon()).stdout
        missing = guest.run(["sc", "query", "nothing"], deadline=soon(), check=False)

    assert missing.exit_code == 1060


def test_a_failing_command_says_what_it_printed(guest: Guest) -> None:
    with pytest.raises(GuestError) as caught:
        guest.run(["sc", "query", "nothing"], deadline=soon())

    assert caught.value.exit_code == 1060
    assert caught.value.message.startswith("'sc query nothing' returned 1060")


def test_an_unknown_command_hints_at_the_path(guest: Guest) -> None:
    with pytest.raises(GuestError) as caught:
        guest.run(["frobnicate"], deadline=soon())

    assert "not installed in the guest" in (caught.value.hint or "")


def test_output_of_a_running_process_arrives_while_it_runs(guest: Guest) -> None:
    pieces: list[tuple[float, str]] = []
    script = b"import time\nprint('one', flush=True)\ntime.sleep(0.5)\nprint('two', flush=True)\n"

    guest.run(
        ["python", "-"],
        deadline=soon(),
        stdin=script,
        on_output=lambda text: pieces.append((time.monotonic(), text)),
    )

    assert "".join(text for _, text in pieces).split() == ["one", "two"]
    assert len(pieces) >= 2


def test_input_of_a_megabyte_arrives_whole(guest: Guest) -> None:
    data = os.urandom(1_000_000)

    result = guest.run(
        ["python", "-c", "import sys,hashlib;print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"],
        deadline=soon(),
        stdin=data,
    )

    assert result.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_a_process_that_hangs_is_ended_in_the_guest_at_its_deadline(lab: Lab, guest: Guest) -> None:
    with pytest.raises(DeadlineExceededError, match="did not end within"):
        guest.run(["python", "-c", "import threading;threading.Event().wait()"], deadline=soon(1.5))

    assert lab.face.processes.running() == []


def test_an_idle_connection_that_was_dropped_is_renewed_without_a_word(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(idle_drop_seconds=0.3)
    with Guest(lab.address(), machine="lab") as guest:
        guest.run("ver", deadline=soon())
        time.sleep(1.0)  # the subject of this test: being idle for longer than the server allows

        assert "Microsoft Windows" in guest.run("ver", deadline=soon()).stdout


def test_a_wrong_password_is_one_sentence_without_the_password(lab: Lab) -> None:
    address = replace(lab.address(), credentials=Credentials("lab", "wrong-secret"))
    with Guest(address, machine="lab") as guest:
        with pytest.raises(LogonError, match="refused the user name or password") as by_winrm:
            guest.run("ver", deadline=soon())
        with pytest.raises(GuestError, match="refused the user name or password for SFTP") as by_sftp:
            guest.read_bytes("C:\\x", soon())

    for caught in (by_winrm, by_sftp):
        assert "wrong-secret" not in caught.value.render()
        assert caught.value.hint


def test_a_guest_that_does_not_listen_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    address = GuestAddress(
        "127.0.0.1", free, "http", "ntlm", free, "ssh-ed25519 AAAA", Credentials("lab", "x")
    )
    with Guest(address, machine="lab") as guest:
        with pytest.raises(GuestError, match=rf"127\.0\.0\.1:{free} was lost while opening a shell"):
            guest.run("ver", deadline=soon())
        with pytest.raises(GuestError, match="while connecting to SFTP"):
            guest.read_bytes("C:\\x", soon())


def test_a_guest_that_accepts_and_says_nothing_does_not_hang_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harness.remote import session

    monkeypatch.setattr(session, "READ_SLACK_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        address = GuestAddress(
            "127.0.0.1", port, "http", "ntlm", port, "ssh-ed25519 AAAA", Credentials("lab", "x")
        )
        with Guest(address, machine="lab") as guest:
            with pytest.raises(DeadlineExceededError, match="did not answer in time"):
                guest.run("ver", deadline=soon(0.5))
            with pytest.raises((DeadlineExceededError, GuestError)):
                guest.read_bytes("C:\\x", soon(0.5))


def test_an_ssh_server_with_another_key_gets_no_password(lab: Lab, make_lab: Callable[..., Lab]) -> None:
    kind, key = lab.face.host_key.split()[:2]
    other = key[:-6] + ("AAAAAA" if not key.endswith("AAAAAA") else "BBBBBB")
    with Guest(replace(lab.address(), host_key=f"{kind} {other}"), machine="lab") as guest:
        with pytest.raises(GuestError, match="is not the one that belongs to this machine"):
            guest.read_bytes("C:\\x", soon())


def test_files_are_sent_into_directories_that_are_made_and_nothing_partial_is_left(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    source = tmp_path / "big.bin"
    source.write_bytes(os.urandom(700_000))
    target = "C:\\Downlink\\a b\\deep\\big.bin"

    guest.put([Upload(source, target)], soon())
    guest.put([Upload(source, target)], soon())
    guest.verify({target: hashlib.sha256(source.read_bytes()).hexdigest()}, soon())

    assert lab.path("Downlink", "a b", "deep", "big.bin").read_bytes() == source.read_bytes()
    assert not list(lab.path("Downlink").rglob("*.part"))


def test_the_guest_itself_finds_a_file_that_differs_or_is_missing(lab: Lab, guest: Guest) -> None:
    guest.put_bytes(b"as sent", "C:\\Downlink\\one.txt", soon())
    guest.put_bytes(b"as sent", "C:\\Downlink\\two.txt", soon())
    digest = hashlib.sha256(b"as sent").hexdigest()
    both = {"C:\\Downlink\\one.txt": digest, "C:\\Downlink\\two.txt": digest}
    guest.verify(both, soon())

    lab.path("Downlink", "two.txt").write_bytes(b"changed")
    with pytest.raises(GuestError, match=r"two\.txt' in the guest is not what was sent"):
        guest.verify(both, soon())
    lab.path("Downlink", "one.txt").unlink()
    with pytest.raises(GuestError, match=r"one\.txt' is not in the guest"):
        guest.verify(both, soon())


def test_many_files_are_verified_in_lines_that_cmd_takes(guest: Guest) -> None:
    names = {
        f"C:\\Downlink\\{'x' * 60}{number}.txt": hashlib.sha256(b"%d" % number).hexdigest()
        for number in range(150)
    }
    for number, name in enumerate(names):
        guest.put_bytes(b"%d" % number, name, soon())

    guest.verify(names, soon())


def test_a_directory_is_fetched_with_everything_below_it(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    guest.put_bytes(b"1", "C:\\Downlink\\results\\a.txt", soon())
    guest.put_bytes(b"2", "C:\\Downlink\\results\\deeper\\b.txt", soon())

    fetched = guest.get_tree("C:\\Downlink\\results", tmp_path / "got", soon())

    assert {path.relative_to(tmp_path / "got").as_posix() for path in fetched} == {"a.txt", "deeper/b.txt"}
    assert guest.get_tree("C:\\Downlink\\nowhere", tmp_path / "none", soon()) == []
    assert guest.read_bytes("C:\\Downlink\\nowhere.txt", soon()) is None


def test_a_restart_is_another_boot_and_the_guest_is_waited_for(lab: Lab, guest: Guest) -> None:
    before = guest.boot_identity(soon())
    assert guest.boot_identity(soon()) == before

    guest.run(["shutdown", "/r", "/t", "0"], deadline=soon(), check=False)
    after = guest.wait_for_boot(before, soon())

    assert after != before
    assert "Microsoft Windows" in guest.run("ver", deadline=soon()).stdout


def test_waiting_for_a_boot_that_does_not_come_says_what_was_seen(guest: Guest) -> None:
    before = guest.boot_identity(soon())

    with pytest.raises(DeadlineExceededError, match=f"last seen: still the boot {before}"):
        guest.wait_for_boot(before, soon(0.3))


def test_no_more_shells_than_the_quota_is_a_sentence(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(quotas=Quotas(max_shells_per_user=1))
    with Guest(lab.address(), machine="lab") as first, Guest(lab.address(), machine="lab") as second:
        first.run("ver", deadline=soon())
        with pytest.raises(GuestError, match="quota of shells"):
            second.run("ver", deadline=soon())


def test_closing_a_guest_leaves_no_shell_behind(make_lab: Callable[..., Lab]) -> None:
    lab = make_lab(quotas=Quotas(max_shells_per_user=1))
    for _ in range(3):
        with Guest(lab.address(), machine="lab") as guest:
            guest.run("ver", deadline=soon())


def test_a_guest_that_is_gone_can_still_be_closed(lab: Lab) -> None:
    guest = Guest(lab.address(), machine="lab")
    guest.run("ver", deadline=soon())
    guest.put_bytes(b"x", "C:\\Downlink\\x", soon())
    lab.face.stop()

    guest.close()


def test_a_deployment_through_the_real_commands_can_be_repeated(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    package = load(tmp_path)

    first = deploy(guest, package, PLAN, soon())
    second = deploy(guest, package, PLAN, soon())

    assert first.volumes == second.volumes == ("D:", "E:")
    assert [step.changed for step in first.steps[1:3]] == [True, False]
    assert [step.changed for step in second.steps[1:3]] == [False, True]
    assert lab.path("Windows", "System32", "drivers", "sample.sys").read_bytes() == package.image.read_bytes()
    key = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\Sample"
    for parent in (key, f"{key}\\Parameters"):
        assert lab.registry.get_string(f"{parent}\\Instances", "DefaultInstance") == PLAN.instance
        assert lab.registry.get_string(f"{parent}\\Instances\\{PLAN.instance}", "Altitude") == PLAN.altitude


def test_the_status_of_a_failing_driver_entry_reaches_the_user_by_name(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    lab.computer.load_status = 0xC000009A

    with pytest.raises(GuestError, match="STATUS_INSUFFICIENT_RESOURCES"):
        deploy(guest, load(tmp_path), PLAN, soon())


def test_a_driver_that_refuses_to_unload_stops_the_next_deployment(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    package = load(tmp_path)
    deploy(guest, package, PLAN, soon())
    lab.computer.unload_status = 0xC01C0010

    with pytest.raises(UnloadError, match="refused to be unloaded"):
        deploy(guest, package, PLAN, soon())


def test_removing_a_driver_leaves_no_service_key(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    deploy(guest, load(tmp_path), PLAN, soon())

    assert remove(guest, PLAN, soon()) is True
    assert not lab.registry.exists("HKLM\\SYSTEM\\CurrentControlSet\\Services\\Sample")
    assert remove(guest, PLAN, soon()) is False


def suite(tmp_path: Path, text: str) -> runner.SuiteRequest:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "test_sample.py").write_text(text, encoding="utf-8")
    return runner.SuiteRequest(ROOT, suites, None, 30)


def test_a_suite_runs_in_the_guests_own_python_with_the_deployed_files_only(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    request = suite(
        tmp_path,
        "import importlib.util\nimport harness.client\n\n"
        "def test_client_is_the_deployed_one():\n"
        "    assert 'Downlink' in harness.client.__file__\n\n"
        "def test_the_host_does_not_leak_in():\n"
        "    for name in ('vm', 'harness.config', 'winrm', 'paramiko', 'invoke', 'unicorn'):\n"
        "        assert importlib.util.find_spec(name) is None, name\n",
    )
    view = RunView(Console(io.StringIO(), color=False))
    record = RunRecord(tmp_path / "runs", "lab", keep=3, view=view)
    machine = MachineDouble()
    machine.now = MachineState.RUNNING

    runner.run_suite(machine, guest, request, record, soon(60))

    results = record.finish(1.0)
    assert [(test.name, test.outcome.value, test.text) for test in results.tests] == [
        ("test_client_is_the_deployed_one", "passed", ""),
        ("test_the_host_does_not_leak_in", "passed", ""),
    ]
    assert results.passed, results.problems


def test_a_guest_that_restarts_in_the_middle_of_a_suite_is_noticed(
    lab: Lab, guest: Guest, tmp_path: Path
) -> None:
    request = suite(tmp_path, "import threading\n\ndef test_waits():\n    threading.Event().wait()\n")
    view = RunView(Console(io.StringIO(), color=False))
    record = RunRecord(tmp_path / "runs", "lab", keep=3, view=view)
    machine = MachineDouble()
    machine.now = MachineState.RUNNING

    def on_event(event: dict[str, object]) -> None:
        if event["event"] == "started":
            lab.face.restart()

    view.event = on_event  # type: ignore[method-assign]

    went_down = runner.run_suite(machine, guest, request, record, soon(60))

    results = record.finish(1.0)
    assert went_down
    assert [test.outcome.value for test in results.tests] == ["crashed"]
    assert "the guest restarted during the run, which means a bugcheck" in results.problems
    assert (record.directory.guest / "events.jsonl").exists()


def test_the_log_has_every_command_and_no_secret(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    log = Log(path.open("w", encoding="utf-8"))
    with Guest(lab.address(), machine="lab", log=log) as guest:
        guest.run(["reg", "query", "HKLM\\SOFTWARE"], deadline=soon(), check=False)
        guest.put_bytes(b"x", "C:\\Downlink\\x", soon())
        guest.run(["echo", PASSWORD], deadline=soon())
    log.close()

    text = path.read_text(encoding="utf-8")
    assert "> reg query HKLM\\SOFTWARE" in text and "exit code" in text
    assert PASSWORD not in text


def load(tmp_path: Path) -> Package:
    return load_package(sample_package(tmp_path / "package"))
