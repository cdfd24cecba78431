"""The same deployment and the same suite over every way into a guest, on a real emulated machine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.builds import prepare
from harness.config import load
from harness.console import Console
from harness.deployment import Plan, deploy, remove
from harness.log import Log
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.local import LocalFiles
from harness.remote.winrm import WinRm
from harness.runs import runner
from harness.runs.record import RunRecord
from harness.runs.view import RunView
from tests.harness.stand_in_cmd import StandIn, StandInCommands
from tests.harness.transport_lab import WAYS
from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine
from vm.machine import Channel, DeploymentMode

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def package() -> Package:
    return prepare(load(ROOT), None, None, None)()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    directory = tmp_path_factory.mktemp("machines") / "lab"
    made = EmulatedMachine("lab", directory, {"cache": str(ROOT / ".cache"), "seed": 1})
    made.start(soon(), keep=False)
    made.c_drive = directory / "c"  # type: ignore[attr-defined]
    yield made
    made.stop(soon())


@pytest.fixture(params=WAYS)
def guest(machine: EmulatedMachine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The guest without any trace of an earlier deployment."""
    address = machine.address()
    with Guest(address, machine="lab") as cleaner:
        remove(cleaner, plan(DeploymentMode.SERVICE), soon())
        cleaner.run("if exist C:\\Downlink rmdir /s /q C:\\Downlink", deadline=soon())
    if request.param != "local":
        ssh = address.ssh_port if request.param == "sftp" else None
        with Guest(replace(address, ssh_port=ssh), machine="lab") as connected:
            yield connected
        return
    drive: Path = machine.c_drive  # type: ignore[attr-defined]
    log = Log()
    stand_in = StandIn(tmp_path / "cmd", WinRm(address, machine="stand-in", log=log), drive)
    commands = StandInCommands(stand_in, drive, machine="lab", log=log)
    files = LocalFiles(machine="lab", log=log, root=drive)
    local = replace(address, channel=Channel.LOCAL)
    with Guest(local, machine="lab", log=log, commands=commands, files=files) as connected:
        yield connected
    stand_in.close()


def plan(mode: DeploymentMode) -> Plan:
    return replace(Plan.of(load(ROOT).driver(), mode), unload_seconds=10)


def soon() -> Deadline:
    return Deadline.after(seconds=60)


@pytest.mark.parametrize("mode", [DeploymentMode.PACKAGE, DeploymentMode.SERVICE])
def test_a_driver_is_deployed_and_a_second_time_nothing_is_sent(
    guest: Guest, package: Package, mode: DeploymentMode
) -> None:
    first = deploy(guest, package, plan(mode), soon())
    second = deploy(guest, package, plan(mode), soon())

    copies = [step for done in (first, second) for step in done.steps if step.name == "copy the package"]
    assert first.volumes == second.volumes == ("D:", "E:")
    assert "MB/s" in copies[0].detail and copies[0].changed
    assert copies[1].detail == "up to date, hashes verified in the guest" and not copies[1].changed
    assert remove(guest, plan(mode), soon()) is True


def test_a_package_that_somebody_has_changed_in_the_guest_is_sent_again(
    guest: Guest, package: Package
) -> None:
    service = plan(DeploymentMode.SERVICE)
    deploy(guest, package, service, soon())
    inf = f"C:\\Downlink\\package\\{package.entry('inf').name}"
    guest.put_bytes(b"; changed by hand\r\n", inf, soon())

    done = deploy(guest, package, service, soon())

    (copy,) = [step for step in done.steps if step.name == "copy the package"]
    assert copy.changed and copy.detail.startswith(f"{len(package.manifest.files)} files")
    assert guest.read_bytes(inf, soon()) == (package.directory / package.entry("inf").name).read_bytes()


def test_a_suite_runs_and_its_results_come_back(
    guest: Guest, machine: EmulatedMachine, package: Package, tmp_path: Path
) -> None:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "test_sample.py").write_text(
        "from harness.client import *\n\ndef test_one():\n    pass\n\ndef test_two():\n    assert False, 'as meant'\n",
        encoding="utf-8",
    )
    deploy(guest, package, plan(DeploymentMode.SERVICE), soon())
    request = runner.SuiteRequest(ROOT, suites, None, 30)
    record = RunRecord(tmp_path / "runs", "lab", keep=2, view=RunView(Console(io.StringIO(), color=False)))
    record.write("run", driver="downlink", machine="lab")

    went_down = runner.run_suite(machine, guest, request, record, soon())
    results = record.finish(1.0)

    assert not went_down
    assert [(test.name, test.outcome.value) for test in results.tests] == [
        ("test_one", "passed"),
        ("test_two", "failed"),
    ]
    assert (record.directory.guest / "events.jsonl").exists()
