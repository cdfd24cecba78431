"""The kind `local` from end to end: commands go to a stand-in for cmd.exe, files are an emulated machine's C: drive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import choices, lifecycle, verbs
from harness.log import Log
from harness.package import Package
from harness.remote import guest as guests
from harness.remote.local import LocalFiles
from harness.remote.winrm import WinRm
from harness.runs.results import Outcome
from tests.harness import remote_lab
from tests.harness.remote_lab import Harness, Host
from tests.harness.stand_in_cmd import StandIn, StandInCommands
from tests.harness.test_remote_machine import NOTHING, traces
from vm.errors import DownlinkError, MachineError
from vm.local.machine import LocalMachine

NAME = "here"


@pytest.fixture(scope="module")
def package() -> Package:
    return remote_lab.package()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A Windows that this process seems to run on."""
    made = Host(tmp_path)
    root = tmp_path / ".machines" / "host" / "c"
    forward = WinRm(made.machine.address(), machine="stand-in", log=Log())
    stand_in = StandIn(tmp_path / "cmd", forward, root)

    def commands(*, machine: str, log: Log) -> StandInCommands:
        return StandInCommands(stand_in, root, machine=machine, log=log)

    def files(*, machine: str, log: Log) -> LocalFiles:
        return LocalFiles(machine=machine, log=log, root=root)

    monkeypatch.setattr(guests, "LocalCommands", commands)
    monkeypatch.setattr(guests, "LocalFiles", files)
    monkeypatch.setattr(LocalMachine, "_refuse_elsewhere", lambda _: None)
    yield made
    stand_in.close()
    made.stop()


def harness(root: Path, **settings: Any) -> Harness:
    return Harness(root / "checkout", {"kind": "local", **settings}, name=NAME)


@pytest.mark.parametrize("mode", ["package", "service"])
@pytest.mark.parametrize("suites", ["attached", "detached"])
def test_a_run_passes_says_what_it_does_not_show_and_leaves_nothing(
    host: Host, tmp_path: Path, package: Package, mode: str, suites: str
) -> None:
    local = harness(tmp_path, deployment=mode, suites=suites)

    assert local.test(lambda: package) == 0, local.said

    results = local.results
    assert results.count(Outcome.PASSED) == 3 and results.left_behind == ()
    assert ("oem0.inf" in local.said) is (mode == "package")
    assert "reach the machine 'here': this host itself" in local.said and "WinRM" not in local.said
    report = local.run.report.read_text(encoding="utf-8")
    assert len(results.untested) == 3
    for sentence in results.untested:
        assert f"not tested: {sentence}" in local.said
        assert sentence in report
    assert "filter verifier, class 37" in report
    evidence = {path.name for path in (local.run.guest / "evidence").iterdir()}
    assert {"System.evtx", "Application.evtx", "fltmc-filters.txt", "verifier.txt"} <= evidence
    assert ("setupapi.dev.log" in evidence) is (mode == "package")  # only pnputil writes it
    assert traces(host) == NOTHING


def test_a_red_suite_is_cleaned_behind_and_its_output_is_there(
    host: Host, tmp_path: Path, package: Package
) -> None:
    local = Harness(
        tmp_path / "checkout",
        {"kind": "local"},
        name=NAME,
        suite="def test_bad():\n    print('seen')\n    assert 1 == 2\n",
    )

    assert local.test(lambda: package) == 1

    assert local.results.count(Outcome.FAILED) == 1 and "seen" in local.said
    assert traces(host) == NOTHING


def test_deploy_leaves_the_driver_where_it_is_and_the_next_run_says_so(
    host: Host, tmp_path: Path, package: Package
) -> None:
    local = harness(tmp_path)

    verbs.deploy(local.configuration, verbs.Choices(), lambda: package, local.console)
    assert "'Downlink' runs on the machine 'here', attached to" in local.said
    assert traces(host)["service"] is True

    assert local.test(lambda: package) == 0, local.said
    (sentence,) = local.results.left_behind
    assert "'Downlink' that was installed before" in sentence and "is not put back" in sentence


def test_where_there_is_no_windows_nothing_is_built(tmp_path: Path) -> None:
    local = harness(tmp_path)

    def build() -> Package:
        raise AssertionError("it was built")

    for attempt in (
        lambda: local.test(build),
        lambda: verbs.deploy(local.configuration, verbs.Choices(), build, local.console),
        lambda: lifecycle.start(local.configuration, None, local.console),
    ):
        with pytest.raises(MachineError, match="is not a Windows system and cannot be its own test machine"):
            attempt()
    assert local.said == ""
    with pytest.raises(DownlinkError, match="there is no run yet"):
        _ = local.run


def test_the_address_of_a_local_machine_is_shown_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalMachine, "_refuse_elsewhere", lambda _: None)
    assert choices.where(LocalMachine(NAME, Path(), {}).address()) == "this host itself"
