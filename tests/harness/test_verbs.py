"""deploy and test from end to end, on a machine in this process; and what an interruption leaves behind."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import config, machines, verbs
from harness.bootstrap import try_lock
from harness.console import Console
from harness.deployment import UnloadError
from harness.machines import HeldMachine, held
from harness.package import load_package
from harness.runs import directory
from harness.runs.journal import read
from harness.runs.results import Outcome, collect
from tests.harness import lab_machine
from tests.harness.lab_machine import LabMachine
from tests.harness.remote_doubles import MachineDouble
from vm import registry as kinds
from vm.errors import (
    BuildError,
    ConfigurationError,
    DownlinkError,
    GuestError,
    MachineError,
    PackageError,
)
from vm.machine import Condition, CrashReport, MachineState, Violation

GOOD_SUITE = "import pytest\n\n@pytest.mark.fact('C8')\ndef test_one(): pass\n\ndef test_two(): pass\n"


class Harness:
    """A checkout in a temporary directory and what its console showed."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root = root
        lab_machine.install(root, suite)
        self.configuration = config.load(root)
        self.out = io.StringIO()
        self.console = Console(self.out, io.StringIO(), color=False)

    def test(self, **choices: Any) -> int:
        return verbs.test(self.configuration, verbs.Choices(**choices), self.build, self.console)

    def build(self) -> verbs.Package:
        return load_package(self.root / "package")

    @property
    def run(self) -> directory.RunDirectory:
        return directory.latest(self.root / "runs")


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Harness]]:
    made: list[LabMachine] = []
    original = LabMachine.__init__

    def remember(self: LabMachine, *arguments: object) -> None:
        made.append(self)
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LabMachine, "__init__", remember)
    for module in (kinds, config):
        monkeypatch.setattr(module, "KINDS", kinds.KINDS)  # put back afterwards what `install` replaces
    monkeypatch.chdir(tmp_path)
    yield lambda suite: Harness(tmp_path, suite)
    for machine in made:
        assert machine.state() is MachineState.STOPPED or machine.calls.count("stop") == 0
        machine.stop(machines.Deadline.after(seconds=5))


def test_a_good_driver_and_suite_end_in_one_line_that_says_passed(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)

    assert sample.test() == 0

    lines = sample.out.getvalue().splitlines()
    assert lines[-1].startswith("passed: 2 passed in ") and "runs/" in lines[-1]
    assert any("copy the package" in line for line in lines)
    assert sample.run.junit.exists() and sample.run.report.exists() and sample.run.log.exists()
    assert (sample.run.guest / "events.jsonl").exists()
    assert "secret-word" not in "".join(
        path.read_text(encoding="utf-8", errors="replace")
        for path in sample.run.path.rglob("*")
        if path.is_file()
    )


def test_a_failing_test_is_a_red_run_and_no_error_of_the_harness(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE + "\ndef test_three():\n    assert 'left' == 'right'\n")

    assert sample.test() == 1
    assert "'left' == 'right'" in sample.out.getvalue()
    assert sample.out.getvalue().splitlines()[-1].startswith("FAILED: 2 passed, 1 failed")


def test_workers_share_the_files_and_every_test_runs_once(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)
    (sample.root / "suites" / "test_other.py").write_text("def test_three(): pass\n", encoding="utf-8")

    assert sample.test(workers=2) == 0

    results = collect(read(sample.run.journal))
    assert sorted(test.id for test in results.tests) == [
        *("test_other.py::test_three", "test_sample.py::test_one", "test_sample.py::test_two"),
    ]
    assert results.count(Outcome.PASSED) == 3
    assert {path.name for path in sample.run.guest.iterdir()} == {"w1", "w2"}
    assert "start the machine 'lab-w2'" in sample.out.getvalue()


def test_a_selection_that_only_one_worker_has_is_no_problem_of_the_other(
    harness: Callable[[str], Harness],
) -> None:
    sample = harness(GOOD_SUITE)
    (sample.root / "suites" / "test_other.py").write_text("def test_three(): pass\n", encoding="utf-8")

    assert sample.test(workers=2, select="three") == 0
    assert sample.test(workers=2, select="nothing_has_this_name") == 1
    assert "problem: no test matches the selection" in sample.out.getvalue()
    assert sample.out.getvalue().splitlines()[-1].startswith("FAILED: ")


def test_a_worker_whose_driver_does_not_load_fails_the_run(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabMachine, "load_status", 0xC000009A)
    sample = harness(GOOD_SUITE)
    (sample.root / "suites" / "test_other.py").write_text("def test_three(): pass\n", encoding="utf-8")

    with pytest.raises(GuestError, match="STATUS_INSUFFICIENT_RESOURCES"):
        sample.test(workers=2)


@pytest.mark.parametrize(
    ("workers", "message"), [(0, "cannot be 0 workers"), (3, "cannot share 1 test files")]
)
def test_a_number_of_workers_that_cannot_be_is_refused(
    harness: Callable[[str], Harness], workers: int, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        harness(GOOD_SUITE).test(workers=workers)


def test_a_checkpoint_by_name_is_refused_where_there_are_none(harness: Callable[[str], Harness]) -> None:
    with pytest.raises(ConfigurationError, match="have no checkpoints by name"):
        harness(GOOD_SUITE).test(checkpoint="verifier")


def test_a_run_goes_on_as_it_was_begun(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)

    with pytest.raises(ConfigurationError, match="goes on as it was begun"):
        verbs.resume(sample.configuration, sample.console, verbs.Choices(select="one"))


def test_a_run_that_came_to_its_end_is_not_resumed(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)
    sample.test()

    with pytest.raises(DownlinkError, match="has come to its end"):
        verbs.resume(sample.configuration, sample.console)


def test_a_run_that_held_on_to_its_suite_cannot_be_resumed(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)
    sample.test()
    lines = sample.run.journal.read_text(encoding="utf-8").splitlines(keepends=True)
    sample.run.journal.write_text(
        "".join(line for line in lines if '"verdict"' not in line), encoding="utf-8"
    )

    with pytest.raises(DownlinkError, match="does not go on without its host"):
        verbs.resume(sample.configuration, sample.console)


def test_a_selection_reaches_the_guest(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)

    assert sample.test(select="not fact") == 0
    assert "1 passed, 1 deselected" in sample.out.getvalue().splitlines()[-1]


def test_a_broken_rule_makes_a_run_red(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Violation(
        "client-port-leaked", "a client port is still open", "Sample", ("Sample!DriverUnload+0x20",)
    )
    monkeypatch.setattr(LabMachine, "present", Condition(violations=(rule,)))
    sample = harness(GOOD_SUITE)

    assert sample.test() == 1
    assert "rule broken: client-port-leaked by 'Sample'" in sample.out.getvalue()
    assert "at Sample!DriverUnload+0x20" in sample.out.getvalue()


def test_a_driver_that_does_not_load_is_an_error_with_its_status_and_the_machine_is_stopped(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabMachine, "load_status", 0xC000009A)
    crash = CrashReport(
        0x50, "PAGE_FAULT_IN_NONPAGED_AREA", (1, 0, 0, 0), "read of freed pool", ("Sample!Main+8",)
    )
    monkeypatch.setattr(LabMachine, "present", Condition(crashes=(crash,)))
    sample = harness(GOOD_SUITE)

    with pytest.raises(GuestError, match="STATUS_INSUFFICIENT_RESOURCES") as caught:
        sample.test()

    assert "because: bugcheck 0x50 PAGE_FAULT_IN_NONPAGED_AREA at Sample!Main+8" in caught.value.render()
    assert collect(read(sample.run.journal)).crashes[0]["name"] == "PAGE_FAULT_IN_NONPAGED_AREA"
    assert sample.run.junit.exists()


def test_deploy_leaves_the_machine_running_and_a_second_one_replaces_the_driver(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = harness(GOOD_SUITE)
    machine = sample.configuration.create_machine(None, sample.configuration.driver())
    monkeypatch.setattr(config.Configuration, "create_machine", lambda *_: machine)

    verbs.deploy(sample.configuration, verbs.Choices(), sample.build, sample.console)
    verbs.deploy(sample.configuration, verbs.Choices(), sample.build, sample.console)

    assert machine.state() is MachineState.RUNNING
    assert sample.out.getvalue().count("'Sample' runs on the machine 'lab', attached to D:, E:") == 2
    assert "unloaded, service deleted" in sample.out.getvalue()


def test_a_deploy_that_fails_stops_the_machine_that_it_started(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabMachine, "load_status", 0xC0000001)
    sample = harness(GOOD_SUITE)
    machine = sample.configuration.create_machine(None, sample.configuration.driver())
    monkeypatch.setattr(config.Configuration, "create_machine", lambda *_: machine)

    with pytest.raises(GuestError, match="did not load"):
        verbs.deploy(sample.configuration, verbs.Choices(), sample.build, sample.console)

    assert machine.state() is MachineState.STOPPED


def test_a_machine_is_told_what_the_driver_promises(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)

    machine = sample.configuration.create_machine(None, sample.configuration.driver())

    assert machine.settings["rules"] == {"Sample": {"io_path_waits": "allow"}}  # type: ignore[attr-defined]


def test_two_commands_never_use_one_machine_at_once(harness: Callable[[str], Harness]) -> None:
    sample = harness(GOOD_SUITE)
    driver = sample.configuration.driver()

    with (
        held(sample.configuration, None, driver),
        pytest.raises(MachineError, match="another command is using the machine"),
        held(sample.configuration, None, driver),
    ):
        pass
    with held(sample.configuration, None, driver):
        pass


def test_a_hung_unload_marks_the_machine_until_it_is_restored(tmp_path: Path) -> None:
    machine = HeldMachine(MachineDouble(), tmp_path)

    with pytest.raises(UnloadError), machine.stopped_on_failure():
        raise UnloadError("the driver 'Sample' hangs in its unload")

    assert machine.dirty == "the driver 'Sample' hangs in its unload"
    machine.start()
    assert machine.dirty is None
    assert machine.machine.calls == ["restore"]  # type: ignore[attr-defined]


def test_a_second_ctrl_c_while_stopping_takes_the_grace_away_but_not_the_stop(tmp_path: Path) -> None:
    double = MachineDouble()
    graces: list[float] = []

    def interrupted_once(deadline: machines.Deadline) -> None:
        graces.append(deadline.remaining)
        if len(graces) == 1:
            raise KeyboardInterrupt

    double.on_stop = interrupted_once

    with pytest.raises(KeyboardInterrupt):
        HeldMachine(double, tmp_path).stop()

    assert graces[0] > 1 and graces[1] == 0
    assert double.state() is MachineState.STOPPED


WAITING_SUITE = """
import os, pathlib, subprocess, sys, threading

def test_first(): pass

def test_waits():
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    pathlib.Path("PIDS").write_text(f"{os.getpid()} {child.pid}")
    threading.Event().wait()
"""


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_test_keeps_the_results_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int
) -> None:
    for module in (kinds, config):
        monkeypatch.setattr(module, "KINDS", kinds.KINDS)
    lab_machine.install(tmp_path, WAITING_SUITE)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.harness.lab_machine", str(tmp_path)],
        cwd=lab_machine.CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        started = wait_for_event(process, tmp_path, "test_waits")
        pids = wait_for_pids(process, tmp_path)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()

    assert started
    assert process.returncode == status, output
    assert output.splitlines()[-1].startswith("interrupted: 1 passed, 1 interrupted"), output
    assert "Traceback" not in output
    results = collect(read(directory.latest(tmp_path / "runs").journal))
    assert [test.outcome.value for test in results.tests] == ["passed", "interrupted"]
    assert directory.latest(tmp_path / "runs").junit.exists()
    assert not [pid for pid in pids if alive(pid)]


def wait_for_event(process: subprocess.Popen[str], root: Path, test: str) -> bool:
    deadline = machines.Deadline.after(seconds=60)
    while True:
        assert process.poll() is None, process.communicate()[0]
        for journal in root.glob("runs/*/journal.jsonl"):
            if any(event["event"] == "started" and test in event["id"] for event in read(journal)):
                return True
        deadline.check(f"'{test}' to start")
        process_pause()


def wait_for_pids(process: subprocess.Popen[str], root: Path) -> list[int]:
    deadline = machines.Deadline.after(seconds=30)
    while True:
        for path in root.rglob("PIDS"):
            text = path.read_text(encoding="utf-8").split()
            if len(text) == 2:
                return [int(word) for word in text]
        assert process.poll() is None, process.communicate()[0]
        deadline.check("the test to tell its processes")
        process_pause()


def process_pause() -> None:
    """Polling another process's files is all there is; the deadline is the caller's."""
    import time

    time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    script = (
        "import sys, time\nfrom harness.bootstrap import try_lock\n"
        f"f = open({str(path)!r}, 'a+b')\nprint(try_lock(f.fileno()), flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=lab_machine.CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == "True"
        with path.open("a+b") as file:
            assert not try_lock(file.fileno())
        holder.kill()
        holder.wait(timeout=10)
        with path.open("a+b") as file:
            assert try_lock(file.fileno())


def test_a_build_that_fails_stops_the_machine_that_was_starting_beside_it(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = harness(GOOD_SUITE)
    machine = sample.configuration.create_machine(None, sample.configuration.driver())
    monkeypatch.setattr(config.Configuration, "create_machine", lambda *_: machine)

    def fail() -> verbs.Package:
        raise BuildError("'driver.c' does not compile", output="driver.c:1: error: no")

    sample.build = fail  # type: ignore[method-assign]
    with pytest.raises(BuildError):
        sample.test()

    assert machine.state() is MachineState.STOPPED
    assert "stop" in machine.calls  # type: ignore[attr-defined]
    assert not (sample.root / "runs").exists()


def test_an_image_that_the_machine_cannot_load_is_refused_before_anything_is_deployed(
    harness: Callable[[str], Harness], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LabMachine, image: bytes, name: str) -> None:
        raise PackageError(f"'{name}' imports what is not modelled: 'FltOne', 'FltTwo'")

    monkeypatch.setattr(LabMachine, "check_image", refuse)
    sample = harness(GOOD_SUITE)

    with pytest.raises(PackageError, match="'FltOne', 'FltTwo'"):
        sample.test()

    assert not (sample.root / "runs").exists()
