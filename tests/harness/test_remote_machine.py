"""The kind `remote` from end to end: a host that somebody else looks after is found as it was, used, and left as it was."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import choices, config, machines, testing, verbs
from harness.config import DriverConfig
from harness.deployment import Plan, cleanup, pnputil, services
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.readiness import LOGON_PAUSES
from harness.runs import runner
from harness.runs.results import Outcome
from tests.harness import remote_lab
from tests.harness.remote_lab import VARIABLE, Harness, Host, soon
from vm.errors import DownlinkError, MachineError
from vm.machine import Abilities, Machine
from vm.remote.machine import RemoteMachine

Start = Callable[..., Host]

SLOW_SUITE = """
import time

def test_first():
    pass

def test_in_flight():
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def package() -> Package:
    return remote_lab.package()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts the host; its password is where the harness looks for it."""
    made: list[Host] = []

    def start(**settings: Any) -> Host:
        made.append(Host(tmp_path, **settings))
        monkeypatch.setenv(VARIABLE, made[-1].password)
        return made[-1]

    yield start
    for host in made:
        host.stop()


def traces(host: Host) -> dict[str, Any]:
    """What of a run is in the guest."""
    with host.guest() as guest:
        plan = Plan.of(remote_lab.ROOT_CONFIGURATION.driver())
        return {
            "service": services.runs(guest, plan, soon()),
            "packages": pnputil.stored(guest, plan, soon()),
            "certificates": [store for store in ("Root", "TrustedPublisher") if certificates(guest, store)],
            "directory": exists(guest, r"C:\Downlink"),
            "image": guest.size(r"C:\Windows\System32\drivers\downlink.sys", soon()) is not None,
            "tasks": guest.run("schtasks /query /fo csv /nh", deadline=soon()).stdout.strip(),
        }


NOTHING: dict[str, Any] = {
    "service": None,
    "packages": [],
    "certificates": [],
    "directory": False,
    "image": False,
    "tasks": "",
}


def exists(guest: Guest, path: str) -> bool:
    return "yes" in guest.run(f'if exist "{path}" echo yes', deadline=soon(), check=False).stdout


def certificates(guest: Guest, store: str) -> bool:
    return "Cert Hash" in guest.run(["certutil", "-store", store], deadline=soon(), check=False).stdout


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 2) -> None:
    """Unloads count as hung soon."""

    def plan(driver: DriverConfig, machine: Machine) -> Plan:
        return replace(choices.plan_for(driver, machine), unload_seconds=seconds)

    monkeypatch.setattr(testing, "plan_for", plan)
    monkeypatch.setattr(verbs, "plan_for", plan)


# Ways to it, and both ways of running suites


@pytest.mark.parametrize("suites", ["detached", "attached"])
@pytest.mark.parametrize(
    ("way", "scheme"), [("sftp", "http"), ("winrm", "http"), ("sftp", "https"), ("winrm", "https")]
)
def test_a_run_passes_and_leaves_nothing(
    start: Start, tmp_path: Path, package: Package, way: str, scheme: str, suites: str
) -> None:
    host = start(scheme=scheme)
    harness = Harness(tmp_path / "checkout", {**host.settings(way), "suites": suites})

    assert harness.test(lambda: package) == 0, harness.said

    assert harness.results.count(Outcome.PASSED) == 3
    assert "oem0.inf" in harness.said  # by pnputil
    assert any(event["event"] == "detached" for event in harness.events) is (suites == "detached")
    assert harness.results.left_behind == ()
    assert traces(host) == NOTHING
    # It is not ours to stop, or to start.
    assert "reach the machine 'far'" in harness.said and "start the machine" not in harness.said
    assert "has no checkpoint" in harness.said
    assert sorted(path.name for path in (harness.run.guest / "evidence").iterdir()) == [
        *("Application.evtx", "System.evtx", "fltmc-filters.txt", "fltmc-instances.txt"),
        *("setupapi.dev.log", "verifier-settings.txt", "verifier.txt"),
    ]
    secrets = [
        path
        for path in (tmp_path / "checkout").rglob("*")
        if path.is_file() and not path.is_symlink() and host.password.encode() in path.read_bytes()
    ]
    assert secrets == []


def test_the_service_mode_leaves_nothing_either(start: Start, tmp_path: Path, package: Package) -> None:
    host = start()
    harness = Harness(tmp_path / "checkout", {**host.settings(), "deployment": "service"})

    assert harness.test(lambda: package) == 0, harness.said
    assert traces(host) == NOTHING


# What keeps it from being reached


def test_a_wrong_password_is_one_sentence_and_few_logons(
    start: Start, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start()
    monkeypatch.setenv(VARIABLE, "not the password")
    harness = Harness(tmp_path / "checkout", host.settings())

    error = harness.refused(lambda: package)

    assert "refused the user name or password" in error.message and error.hint
    assert harness.said.count("copy the package") == 0
    log = harness.run.log.read_text(encoding="utf-8")
    assert log.count("'ver'") <= len(LOGON_PAUSES) + 1 and "not the password" not in log
    assert traces(host) == NOTHING


def test_without_a_password_nothing_is_built(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(tmp_path / "checkout", start().settings())
    monkeypatch.delenv(VARIABLE)

    error = harness.refused(lambda: pytest.fail("it was built"))

    assert "no password" in error.message and VARIABLE in (error.hint or "")


def test_another_host_key_is_one_sentence_and_everything_is_put_back(
    start: Start, tmp_path: Path, package: Package
) -> None:
    host = start()
    other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGHnB0yVYT9Uz0Q4DqVwQhYl0S1xP3rC5nYl5v8tTn0F"
    harness = Harness(tmp_path / "checkout", {**host.settings(), "host_key": other})

    error = harness.refused(lambda: package)

    assert re.search("SSH host key .* is not the one", error.message), error.render()
    assert traces(host) == NOTHING


def test_another_certificate_is_one_sentence(start: Start, tmp_path: Path, package: Package) -> None:
    host = start(chaos="certificate-changed")
    harness = Harness(tmp_path / "checkout", host.settings())

    error = harness.refused(lambda: package)

    assert "is not the one that belongs to this machine" in error.message, error.render()


def test_a_host_that_is_down_is_named_with_its_port(
    start: Start, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start()
    harness = Harness(tmp_path / "checkout", host.settings())
    port = host.machine.address().winrm_port
    host.stop()
    abilities = RemoteMachine.abilities.fget  # type: ignore[attr-defined]

    def hasty(machine: RemoteMachine) -> Abilities:
        return replace(abilities(machine), start_seconds=1)

    monkeypatch.setattr(RemoteMachine, "abilities", property(hasty))

    error = harness.refused(lambda: package)

    assert f"'127.0.0.1' does not answer on port {port}: Connection refused" in error.message
    assert "is it on" in (error.hint or "")


# What happens to it in the middle


@pytest.mark.parametrize("suites", ["attached", "detached"])
def test_a_host_that_restarts_in_the_suite_is_red_with_the_test_in_flight(
    start: Start, tmp_path: Path, package: Package, suites: str
) -> None:
    host = start()
    harness = Harness(tmp_path / "checkout", {**host.settings(), "suites": suites}, suite=SLOW_SUITE)
    when(harness, "test_in_flight", lambda: command(host, "shutdown /r /t 0"))

    assert harness.test(lambda: package) == 1

    results = harness.results
    assert any("restarted during the run" in problem for problem in results.problems), results.problems
    assert results.in_flight is not None and results.in_flight.id == "test_sample.py::test_in_flight"
    assert results.crashes == ()
    assert traces(host) == NOTHING


@pytest.mark.parametrize("suites", ["attached", "detached"])
def test_a_bugcheck_in_the_suite_is_read_from_the_event_log(
    start: Start, tmp_path: Path, package: Package, suites: str
) -> None:
    host = start()
    harness = Harness(tmp_path / "checkout", {**host.settings(), "suites": suites}, suite=SLOW_SUITE)
    when(harness, "test_in_flight", lambda: host.machine.interrupt())

    assert harness.test(lambda: package) == 1

    results = harness.results
    (crash,) = results.crashes
    assert (crash["code"], crash["name"]) == (0x80, "NMI_HARDWARE_FAILURE")
    assert list(crash["parameters"]) == [0x4F4454, 0, 0, 0]
    assert results.in_flight is not None and results.in_flight.id == "test_sample.py::test_in_flight"
    assert results.in_flight.outcome is Outcome.CRASHED
    assert "bugcheck 0x80 NMI_HARDWARE_FAILURE (0x4F4454, 0x0, 0x0, 0x0) during" in harness.said
    (dump,) = (harness.run.guest / "Minidump").iterdir()
    assert crash["dump"].endswith(f"\\{dump.name}") and dump.stat().st_size
    assert results.left_behind == (f"the dump '{crash['dump']}' of the bugcheck stays in the guest",)
    assert traces(host) == NOTHING


def test_a_host_that_goes_for_good_is_told_with_what_may_be_in_it(
    start: Start, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BOOT_SECONDS", 2)
    monkeypatch.setattr(cleanup, "REACH_SECONDS", 2)
    host = start()
    harness = Harness(tmp_path / "checkout", {**host.settings(), "suites": "attached"}, suite=SLOW_SUITE)
    when(harness, "test_in_flight", host.stop)

    assert harness.test(lambda: package) == 1

    results = harness.results
    assert any("did not come back" in problem for problem in results.problems), results.problems
    assert results.in_flight is not None
    driver, certificate, directory = results.left_behind
    assert driver.startswith("the driver 'Downlink' may still be installed: the guest does not answer")
    assert re.match(
        "the certificate [0-9a-f]{16}… may still be trusted: the guest does not answer", certificate
    )
    assert directory.startswith(r"the directory 'C:\Downlink' and the suite's task may still be there")
    assert f"left behind: {driver}" in harness.said


def test_a_clean_up_that_is_interrupted_says_what_may_be_left(
    start: Start, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    host = start()
    plan = Plan.of(remote_lab.ROOT_CONFIGURATION.driver())
    with host.guest() as guest:
        cleaning = cleanup.Cleanup(cleanup.look(guest, package, plan, soon()), plan)
        monkeypatch.setattr(cleanup, "end_tasks", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cleaning.clean(guest, soon())

    assert len(cleaning.left) == 3
    assert all("the clean-up was interrupted" in sentence for sentence in cleaning.left)


def when(harness: Harness, test: str, act: Callable[[], None]) -> None:
    """Do something once, as soon as the journal says that a test has begun."""

    def watch() -> None:
        deadline = soon()
        while not deadline.passed:
            for journal in harness.configuration.runs.directory.glob("*/journal.jsonl"):
                text = journal.read_text(encoding="utf-8")
                if re.search(rf'"started".*{test}', text):
                    act()
                    return
            stop.wait(0.02)

    stop = threading.Event()
    threading.Thread(target=watch, daemon=True).start()


def command(host: Host, line: str) -> None:
    with host.guest() as guest:
        guest.run(line, deadline=soon())


# What was there before


def test_what_was_there_before_is_told_or_stays(start: Start, tmp_path: Path, package: Package) -> None:
    host = start()
    first = Harness(tmp_path / "first", {**host.settings(), "deployment": "service"})
    verbs.deploy(first.configuration, verbs.Choices(), lambda: package, first.console)
    assert "'Downlink' runs on the machine 'far'" in first.said and "clean up" not in first.said
    with host.guest() as guest:
        guest.put_bytes(b"mine", r"C:\Downlink\mine.txt", soon())
    harness = Harness(tmp_path / "checkout", host.settings())

    assert harness.test(lambda: package) == 0, harness.said

    assert harness.results.left_behind == (
        r"the driver 'Downlink' that was installed before ('C:\Windows\System32\drivers\downlink.sys', loaded)"
        " was removed and is not put back",
        r"the directory 'C:\Downlink' keeps what is not the harness's: 'mine.txt'",
    )
    assert "left behind: the driver 'Downlink' that was installed before" in harness.said
    left = "left behind" in harness.run.report.read_text(encoding="utf-8").lower()
    assert left
    assert traces(host) == {**NOTHING, "certificates": ["Root", "TrustedPublisher"], "directory": True}
    with host.guest() as guest:
        listed = guest.run(["dir", "/b", r"C:\Downlink"], deadline=soon()).stdout.split()
    assert listed == ["mine.txt"]


def test_a_deployment_that_fails_is_put_back(start: Start, tmp_path: Path, package: Package) -> None:
    host = start(chaos="disk-full")
    harness = Harness(tmp_path / "checkout", host.settings())

    with pytest.raises(DownlinkError):
        verbs.deploy(harness.configuration, verbs.Choices(), lambda: package, harness.console)
    assert "clean up" in harness.said
    assert traces(host) == NOTHING


def test_an_older_driver_that_a_deployment_did_not_get_to_stays(
    start: Start, tmp_path: Path, package: Package
) -> None:
    host = start()
    first = Harness(tmp_path / "first", host.settings())
    verbs.deploy(first.configuration, verbs.Choices(), lambda: package, first.console)
    command(host, "bcdedit /set testsigning off")
    command(host, "shutdown /r /t 0")
    with host.guest() as guest:
        guest.wait_for_boot("0x1", soon())
    before = traces(host)
    harness = Harness(tmp_path / "checkout", host.settings())

    assert "testsigning is off" in harness.refused(lambda: package).message

    assert harness.results.left_behind == ()
    after = traces(host)
    assert after["packages"] == before["packages"] != []
    assert after["service"] is before["service"] is False
    assert after["certificates"] == ["Root", "TrustedPublisher"]


# A driver that does not go


def test_a_driver_that_hangs_is_told_and_the_host_has_to_be_restarted(
    start: Start, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = start(chaos="unload-hangs")
    impatient(monkeypatch)
    harness = Harness(tmp_path / "checkout", host.settings())

    assert harness.test(lambda: package) == 1, harness.said

    results = harness.results
    assert any("hangs in its unload" in problem for problem in results.problems)
    assert results.left_behind[0] == (
        "the driver 'Downlink' is still in the guest: the driver 'Downlink' hangs in its unload"
    )
    hints = [event["hint"] for event in harness.events if event["event"] == "problem"]
    assert hints and all("restart it" in hint and "vm.restore" not in hint for hint in hints)
    left = traces(host)
    assert left["service"] is not None and not left["directory"] and left["certificates"] == []

    # Nothing is begun on it in the same boot.
    for attempt in (
        lambda: harness.test(lambda: package),
        lambda: verbs.deploy(harness.configuration, verbs.Choices(), lambda: package, harness.console),
    ):
        with pytest.raises(MachineError, match="has to be restarted before it is used again") as raised:
            attempt()
        assert "shutdown /r" in (raised.value.hint or "") and "vm.restore" not in raised.value.render()

    command(host, "shutdown /r /t 0")
    with host.guest() as guest:
        guest.wait_for_boot("0x1", soon())
    assert harness.test(lambda: package) == 0, harness.said
    assert traces(host) == NOTHING


# Verbs of a machine's life


def test_a_life_that_is_not_ours_is_said_to_be_so(start: Start, tmp_path: Path) -> None:
    from harness import lifecycle

    host = start()
    harness = Harness(tmp_path / "checkout", host.settings())
    settings, console = harness.configuration, harness.console

    lifecycle.start(settings, None, console)
    lifecycle.stop(settings, None, console)
    with pytest.raises(MachineError, match="has no checkpoint to go back to"):
        lifecycle.restore(settings, None, console)
    with pytest.raises(MachineError, match="is not made here"):
        lifecycle.create(settings, None, console)

    assert "reach the machine 'far'" in harness.said and "is not ours to stop" in harness.said
    assert "start the" not in harness.said and "restore" not in harness.said


def test_the_mark_of_a_restart_is_that_of_its_boot(tmp_path: Path) -> None:
    from harness.deployment import UnloadError

    given = {"host": "127.0.0.1", "username": "lab"}
    held = machines.HeldMachine(RemoteMachine("far", tmp_path, given), tmp_path)
    held.see_boot("0x7")
    held.mark_dirty(UnloadError("it hangs"))

    for boot in ("0x7", "0x7"):
        with pytest.raises(MachineError, match="it hangs"):
            held.see_boot(boot)
    held.see_boot("0x70")
    assert held.dirty is None


@pytest.mark.parametrize("name", ["far", "here"])
def test_the_examples_of_the_documentation_are_complete(tmp_path: Path, name: str) -> None:
    text = (remote_lab.ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
    (example,) = [
        block for block in re.findall(r"(?s)```toml\n(.*?)```", text) if f"[machines.{name}]" in block
    ]
    (tmp_path / "harness.toml").write_text(
        (remote_lab.ROOT / "harness.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "harness.local.toml").write_text(example, encoding="utf-8")

    machine = config.load(tmp_path).machine(name)

    assert machine.kind.name == {"far": "remote", "here": "local"}[name]
    assert set(machine.settings) <= set(machine.kind.settings)
