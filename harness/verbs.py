"""The verbs that need a machine: deploy and test, from the sources to the verdict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness import deployment, interrupts
from harness.config import Configuration
from harness.console import Console
from harness.deployment import Plan, StepResult
from harness.log import Log
from harness.machines import HeldMachine, held
from harness.package import Package
from harness.remote.guest import Guest
from harness.runs import directory, junit, report, runner
from harness.runs.directory import RunDirectory
from harness.runs.journal import Event, Journal, read
from harness.runs.results import Results, collect
from harness.runs.view import RunView
from vm.deadline import Deadline
from vm.errors import DownlinkError
from vm.machine import GuestAddress

DEPLOY_SECONDS = 120
UNLOAD_SECONDS = 60

Build = Callable[[], Package]
"""Makes the package, or finds that it is up to date."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose on the command line; None = what harness.toml says."""

    driver: str | None = None
    machine: str | None = None
    select: str | None = None
    toolchain: str = ""
    build: str = ""
    """"debug" or "release"."""


def deploy(configuration: Configuration, choices: Choices, build: Build, console: Console) -> None:
    """Build if stale, bring the machine up, replace the driver in it and leave it running.

    Raises:
        DownlinkError: a step failed; a machine that was started for it is stopped again.
    """
    driver = configuration.driver(choices.driver)
    package = _timed(console, "build", build, lambda made: f"'{made.directory}'")
    with held(configuration, choices.machine, driver) as machine, machine.stopped_on_failure():
        machine.check(package)
        if reason := machine.dirty:
            console.line(f"the machine '{machine.name}' is restored first: {reason}")
        address = _timed(console, "start the machine", machine.start, _where)
        with Guest(address, machine=machine.name) as guest:
            done = deployment.deploy(
                guest,
                package,
                Plan.of(driver),
                Deadline.after(seconds=DEPLOY_SECONDS),
                lambda step: console.step(step.name, step.detail, step.seconds),
            )
    console.line(
        f"'{done.service}' runs on the machine '{machine.name}', attached to {', '.join(done.volumes)}"
    )


def test(configuration: Configuration, choices: Choices, build: Build, console: Console) -> int:
    """Build, restore, deploy, run the suites inside the machine, report; returns the exit status.

    The machine is stopped at the end, however that comes about; what was found out until then is kept.

    Raises:
        DownlinkError: the way to the tests failed. A red run is no error.
    """
    driver = configuration.driver(choices.driver)
    machine_name = configuration.machine(choices.machine).name
    runner.check_selection(choices.select)
    started = time.monotonic()
    package = _timed(console, "build", build, lambda made: f"'{made.directory}'")
    with held(configuration, choices.machine, driver) as machine:
        machine.check(package)
        run = directory.create(configuration.runs.directory, machine_name, keep=configuration.runs.keep)
        log = Log(run.log.open("w", encoding="utf-8"))
        journal = Journal(run.journal, log)
        view = RunView(console)
        journal.write(
            "run", driver=driver.name, machine=machine_name, select=choices.select, **_made_of(package)
        )
        status = 1
        try:
            _to_the_verdict(configuration, choices, machine, package, run, journal, log, view, console)
        except KeyboardInterrupt as interrupt:
            status = interrupts.exit_status(interrupt)
            journal.write("interrupted")
        except DownlinkError as error:
            journal.write("problem", text=error.message)
            raise
        finally:
            results = _finish(run, journal, log, time.monotonic() - started)
        view.summary(results, _relative(run.path))
        return 0 if results.passed else status


def _to_the_verdict(
    configuration: Configuration,
    choices: Choices,
    machine: HeldMachine,
    package: Package,
    run: RunDirectory,
    journal: Journal,
    log: Log,
    view: RunView,
    console: Console,
) -> None:
    driver = configuration.driver(choices.driver)
    plan = Plan.of(driver)
    deadline = Deadline.after(seconds=configuration.runs.deadline_seconds)

    def step(result: StepResult) -> None:
        journal.write("step", name=result.name, detail=result.detail, seconds=round(result.seconds, 3))
        view.step(result.name, result.detail, result.seconds)

    def record(event: Event) -> None:
        journal.write(**event)

    try:
        began = time.monotonic()
        console.transient(f"starting the machine '{machine.name}' ...")
        address = machine.restore(keep=False)
        step(
            StepResult(
                "start the machine", f"{machine.name}, {_where(address)}", True, time.monotonic() - began
            )
        )
        with Guest(address, machine=machine.name, log=log) as guest:
            deployment.deploy(guest, package, plan, deadline.sooner(seconds=DEPLOY_SECONDS), step)
            request = runner.SuiteRequest(
                configuration.root, driver.suites, choices.select, configuration.runs.test_seconds
            )
            crashed = runner.run_suite(machine.machine, guest, request, run, journal, deadline, view.event)
            if not crashed:
                # What a driver forgets to give back shows when it is unloaded.
                try:
                    deployment.remove(guest, plan, Deadline.after(seconds=UNLOAD_SECONDS))
                except DownlinkError as error:
                    record({"event": "problem", "text": error.message})
        runner.record_condition(machine.machine, record)
    except DownlinkError as error:
        machine.explain(error)
        runner.record_condition(machine.machine, record)
        raise
    finally:
        machine.stop()
        _keep_logs(configuration.machine_directory(machine.name), run.path / "machine")


def _keep_logs(source: Path, target: Path) -> None:
    """Copy the logs that the machine itself wrote on this host into the run."""
    for path in source.glob("*.log"):
        target.mkdir(exist_ok=True)
        shutil.copyfile(path, target / path.name)


def _finish(run: RunDirectory, journal: Journal, log: Log, seconds: float) -> Results:
    """Close the journal and derive from it everything else that the run leaves behind."""
    verdict = collect(read(run.journal))
    journal.write("verdict", passed=verdict.passed, seconds=round(seconds, 3))
    journal.close()
    log.close()
    results = collect(read(run.journal))
    junit.write(results, run.junit)
    report.write(results, run.report)
    return results


def _timed(console: Console, name: str, action: Callable[[], _T], detail: Callable[[_T], str]) -> _T:
    console.transient(f"{name} ...")
    began = time.monotonic()
    result = action()
    console.step(name, detail(result), time.monotonic() - began)
    return result


def _made_of(package: Package) -> dict[str, object]:
    """What identifies the package in the journal."""
    manifest = package.manifest
    return {
        "package": package.entry("image").sha256[:16],
        "toolchain": manifest.toolchain,
        "configuration": manifest.configuration,
        "revision": manifest.source.revision,
        "versions": dict(manifest.versions),
    }


def _where(address: GuestAddress) -> str:
    return f"WinRM at {address.host}:{address.winrm_port}"


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
