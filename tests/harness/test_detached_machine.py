"""Suites as a task on real machines: the host process is killed, connections go, addresses change, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import verbs
from harness.package import Package
from harness.remote.guest import Guest
from harness.runs.results import Outcome
from tests.harness import remote_lab
from tests.harness.doors import move as move_through
from tests.harness.doors import through_doors
from tests.harness.remote_lab import ROOT, VARIABLE, Harness, Host, soon
from vm.emulated.machine import EmulatedMachine
from vm.errors import DownlinkError, MachineError
from vm.machine import MachineState
from vm.waiting import wait_until

GATED = """
import time
from pathlib import Path

def test_before():
    pass

def test_in_flight():
    end = time.monotonic() + 40
    while not Path(GATE).exists():
        assert time.monotonic() < end
        time.sleep(0.02)

def test_after():
    pass
"""
"""The emulated guest's Python is a process of this host: it sees the gate that the test opens."""

TESTS = ["test_sample.py::test_after", "test_sample.py::test_before", "test_sample.py::test_in_flight"]

Make = Callable[..., Harness]


class Checkout(Harness):
    """A checkout whose machine is emulated and runs suites as a task."""

    def __init__(self, place: Path, machine: dict[str, Any] | None = None, **options: Any) -> None:
        self.gate = place / "gate"
        given = machine or {"kind": "emulated", "suites": "detached", "seed": 5}
        options.setdefault("suite", GATED.replace("GATE", repr(str(self.gate))))
        super().__init__(place / "checkout", given, **options)

    @property
    def machine(self) -> EmulatedMachine:
        found = self.configuration.create_machine(None, self.configuration.driver())
        assert isinstance(found, EmulatedMachine)
        return found

    def begin(self) -> subprocess.Popen[bytes]:
        """A process of its own that tests; returns when the test in flight has begun."""
        with (self.root / "process.txt").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.remote_lab", str(self.root)],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

        def seen() -> str | None:
            if process.poll() is not None:
                raise AssertionError((self.root / "process.txt").read_text(encoding="utf-8"))
            return None if self.started("test_in_flight") else "the test has not begun"

        wait_until(seen, "the test in flight", soon(), machine="host")
        return process

    def started(self, test: str) -> bool:
        journals = self.configuration.runs.directory.glob("*/journal.jsonl")
        return any(
            re.search(f'"started".*{test}', journal.read_text(encoding="utf-8")) for journal in journals
        )

    def resume(self) -> int:
        return verbs.resume(self.configuration, self.console)

    def assert_whole(self) -> None:
        """Every test once in journal and JUnit file, and all of them passed."""
        finished = Counter(event["id"] for event in self.events if event["event"] == "finished")
        assert finished == Counter(TESTS)
        cases = ElementTree.parse(self.run.junit).getroot().iter("testcase")
        assert sorted(str(case.get("name")) for case in cases) == [test.partition("::")[2] for test in TESTS]
        assert self.results.passed and self.results.count(Outcome.PASSED) == len(TESTS), self.said
        assert [event["event"] for event in self.events].count("verdict") == 1


@pytest.fixture(scope="module")
def package() -> Package:
    return remote_lab.package()


@pytest.fixture
def make(tmp_path: Path, package: Package) -> Iterator[Make]:
    made: list[Checkout] = []

    def checkout(**options: Any) -> Checkout:
        made.append(Checkout(tmp_path, **options))
        return made[-1]

    yield checkout
    for each in made:
        each.gate.touch()
        with suppress(AssertionError):
            each.machine.stop(soon())


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


# The process of this host is killed


@pytest.mark.parametrize("late", [False, True], ids=["it goes on", "it has ended meanwhile"])
def test_a_killed_host_process_loses_nothing(make: Make, late: bool) -> None:
    checkout = make()
    kill(checkout.begin())
    assert checkout.machine.state() is MachineState.RUNNING
    assert not checkout.results.passed
    checkout.gate.touch()
    if late:
        with Guest(checkout.machine.address, machine="lab") as guest:
            status = rf"C:\Downlink\results\{checkout.run.path.name}\status.jsonl"

            def ended() -> str | None:
                said = guest.read_bytes(status, soon()) or b""
                return None if b"exit_code" in said else "it runs"

            wait_until(ended, "the suite's end", soon(), machine="lab")

    assert checkout.resume() == 0, checkout.said

    checkout.assert_whole()
    assert checkout.machine.state() is MachineState.STOPPED
    log = checkout.run.log.read_text(encoding="utf-8")
    assert re.search(r"schtasks /delete /tn .Downlink-\S+ /f\W.*\b0\b", log)
    with pytest.raises(DownlinkError, match="has come to its end"):
        checkout.resume()


def test_a_killed_host_process_on_a_remote_host_is_cleaned_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.harness.test_remote_machine import NOTHING, traces

    host = Host(tmp_path)
    try:
        monkeypatch.setenv(VARIABLE, host.password)
        checkout = make(machine=host.settings())
        kill(checkout.begin())
        assert traces(host)["service"] is True and "Downlink-" in traces(host)["tasks"]
        checkout.gate.touch()

        assert checkout.resume() == 0, checkout.said

        checkout.assert_whole()
        assert checkout.results.left_behind == ()
        assert traces(host) == NOTHING
    finally:
        host.stop()


def test_a_suite_that_a_killed_process_left_is_ended_by_the_next_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package
) -> None:
    from tests.harness.test_remote_machine import NOTHING, traces

    host = Host(tmp_path)
    try:
        monkeypatch.setenv(VARIABLE, host.password)
        checkout = make(machine=host.settings())
        kill(checkout.begin())
        first = checkout.run.path.name
        (checkout.root / "suites" / "test_sample.py").write_text("def test_it(): pass\n", encoding="utf-8")

        assert checkout.test(lambda: package) == 0, checkout.said

        assert rf"the task '\Downlink-{first}' ended" in checkout.said, checkout.said
        assert "that was installed before" in checkout.results.left_behind[0]
        # Its certificate counts as one that was there before: nobody knows any more who brought it.
        assert traces(host) == {**NOTHING, "certificates": ["Root", "TrustedPublisher"]}
    finally:
        host.stop()


# Ends that are not those of the suite: the machine outlives none of them


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_the_machine(make: Make, number: int) -> None:
    checkout = make()
    process = checkout.begin()
    process.send_signal(number)

    assert process.wait(60) == 128 + number

    assert checkout.machine.state() is MachineState.STOPPED
    assert checkout.results.interrupted
    with pytest.raises(DownlinkError, match="has come to its end"):
        checkout.resume()


def test_an_interrupted_run_on_a_remote_host_is_cleaned_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.harness.test_remote_machine import NOTHING, traces

    for suites in ("detached", "attached"):
        place = tmp_path / suites
        place.mkdir()
        host = Host(place)
        try:
            monkeypatch.setenv(VARIABLE, host.password)
            checkout = Checkout(place, machine={**host.settings(), "suites": suites})
            process = checkout.begin()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert checkout.results.interrupted and checkout.results.left_behind == ()
            assert traces(host) == NOTHING
        finally:
            host.stop()


def test_an_error_stops_the_machine(make: Make, package: Package) -> None:
    checkout = make(machine={"kind": "emulated", "suites": "detached", "chaos": "schtasks-refuses"})

    error = checkout.refused(lambda: package)

    assert "schtasks" in error.message
    assert checkout.machine.state() is MachineState.STOPPED


# Outcomes


def test_a_test_that_hangs_is_ended_and_named(make: Make, package: Package) -> None:
    checkout = make(test_seconds=1)

    assert checkout.test(lambda: package) == 1

    (problem,) = checkout.results.problems
    assert problem.startswith("a test took too long and was ended:") and "test_in_flight" in problem
    assert checkout.results.in_flight is not None
    assert checkout.results.in_flight.id == "test_sample.py::test_in_flight"
    assert checkout.machine.state() is MachineState.STOPPED


def test_a_deadline_that_passes_ends_the_suite_in_the_guest(make: Make, package: Package) -> None:
    checkout = make(seconds=6)

    assert checkout.test(lambda: package) == 1

    assert any("the run took too long and was ended" in problem for problem in checkout.results.problems)
    assert checkout.results.in_flight is not None
    assert "schtasks /end" in checkout.run.log.read_text(encoding="utf-8")
    assert checkout.machine.state() is MachineState.STOPPED


def test_a_pytest_that_dies_is_a_problem_with_its_exit_code(make: Make, package: Package) -> None:
    checkout = make(suite="import os\n\ndef test_in_flight():\n    os._exit(77)\n")

    assert checkout.test(lambda: package) == 1

    assert any("pytest in the guest ended with 0x4D" in problem for problem in checkout.results.problems)
    assert checkout.results.in_flight is not None


# Connections


@pytest.mark.parametrize(
    ("chaos", "files"),
    [("drop-idle:20ms", "sftp"), ("drop-idle:20ms", "winrm"), ("", "winrm"), ("sftp-closes", "sftp")],
)
def test_a_suite_is_followed_over_what_there_is(make: Make, package: Package, chaos: str, files: str) -> None:
    machine = {"kind": "emulated", "suites": "detached", "files": files}
    checkout = make(machine={**machine, **({"chaos": chaos} if chaos else {})})
    open_when_begun(checkout)

    assert checkout.test(lambda: package) == 0, checkout.said
    checkout.assert_whole()


def test_an_address_that_changes_in_the_middle_is_followed(
    make: Make, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = through_doors(monkeypatch)
    checkout = make()

    def move() -> None:
        move_through(doors)
        checkout.gate.touch()

    on_start(checkout, move)
    try:
        assert checkout.test(lambda: package) == 0, checkout.said
        checkout.assert_whole()
        old, new = doors
        assert old.entered and new.entered
    finally:
        for each in doors:
            each.close()


def test_a_restart_under_another_address_is_found_out(make: Make, package: Package) -> None:
    checkout = make(machine={"kind": "emulated", "suites": "detached", "chaos": "address-changes"})

    def restart() -> None:
        with Guest(checkout.machine.address, machine="lab") as guest:
            guest.run("shutdown /r /t 0", deadline=soon())

    on_start(checkout, restart)

    assert checkout.test(lambda: package) == 1

    assert any("restarted" in problem for problem in checkout.results.problems)
    assert not any("did not come back" in problem for problem in checkout.results.problems)
    assert checkout.results.in_flight is not None


def on_start(checkout: Checkout, act: Callable[[], None]) -> None:
    """Do something once the test in flight has begun."""

    def watch() -> None:
        wait_until(
            lambda: None if checkout.started("test_in_flight") else "no", "the test", soon(), machine="host"
        )
        act()

    threading.Thread(target=watch, daemon=True).start()


def open_when_begun(checkout: Checkout) -> None:
    on_start(checkout, checkout.gate.touch)


# Nothing to resume


def test_a_machine_that_is_gone_cannot_be_resumed(make: Make) -> None:
    checkout = make()
    kill(checkout.begin())
    checkout.machine.stop(soon())

    with pytest.raises(MachineError, match="its machine does not run any more") as raised:
        checkout.resume()
    assert "./inv test" in (raised.value.hint or "")


def test_without_runs_there_is_nothing_to_resume(make: Make) -> None:
    with pytest.raises(DownlinkError, match="no run") as raised:
        make().resume()
    assert raised.value.hint


def test_a_run_that_was_cut_short_before_its_suite_cannot_be_resumed(make: Make, package: Package) -> None:
    checkout = make()
    checkout.gate.touch()
    checkout.test(lambda: package)
    lines = checkout.run.journal.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = lines[: next(i for i, line in enumerate(lines) if '"detached"' in line)]
    checkout.run.journal.write_text("".join(kept), encoding="utf-8")

    with pytest.raises(DownlinkError, match="was cut short before its suite began"):
        checkout.resume()


def test_nobody_resumes_a_run_that_somebody_follows(make: Make) -> None:
    checkout = make()
    process = checkout.begin()
    try:
        with pytest.raises(MachineError, match="another command is using the machine"):
            checkout.resume()
    finally:
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
