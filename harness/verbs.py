"""The verbs that need a machine: deploy and test, from the sources to the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from harness import deployment, interrupts
from harness.config import Configuration
from harness.console import Console
from harness.deployment import Plan, StepResult
from harness.machines import HeldMachine, held
from harness.package import Package
from harness.remote.guest import Guest
from harness.runs import runner
from harness.runs.record import RunRecord
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
    runner.check_selection(choices.select)
    started = time.monotonic()
    with held(configuration, choices.machine, driver) as machine:
        try:
            package, address, steps = _build_while_starting(machine, build, console)
            view = RunView(console)
            runs = configuration.runs
            record = RunRecord(runs.directory, machine.name, keep=runs.keep, view=view)
            record.write(
                "run", driver=driver.name, machine=machine.name, select=choices.select, **_made_of(package)
            )
            for step in steps:
                record.note(step)
            status = 1
            try:
                with record.log.gathering():
                    _to_the_verdict(configuration, choices, machine, address, package, record)
            except KeyboardInterrupt as interrupt:
                status = interrupts.exit_status(interrupt)
                record.write("interrupted")
            except DownlinkError as error:
                record.problem(error)
                raise
            finally:
                machine.stop()
                record.keep_logs(configuration.machine_directory(machine.name))
                results = record.finish(time.monotonic() - started)
        finally:
            machine.stop()
    view.summary(results, _relative(record.directory.path))
    return 0 if results.passed else status


def _build_while_starting(
    machine: HeldMachine, build: Build, console: Console
) -> tuple[Package, GuestAddress, list[StepResult]]:
    """Build, and bring the machine up meanwhile: each takes about a second, and neither needs the other."""
    steps: list[StepResult] = []
    with ThreadPoolExecutor(1) as beside:
        starting = beside.submit(machine.restore, keep=False)
        package = _timed(console, "build", build, lambda made: f"'{_relative(made.directory)}'", steps)
        machine.check(package)
        what = f"start the machine '{machine.name}'"
        address = _timed(console, what, starting.result, _where, steps)
    return package, address, steps


def _to_the_verdict(
    configuration: Configuration,
    choices: Choices,
    machine: HeldMachine,
    address: GuestAddress,
    package: Package,
    record: RunRecord,
) -> None:
    """Deploy, run the suite, unload, and ask the machine how it came through."""
    driver = configuration.driver(choices.driver)
    plan = Plan.of(driver)
    deadline = Deadline.after(seconds=configuration.runs.deadline_seconds)
    request = runner.SuiteRequest(
        configuration.root, driver.suites, choices.select, configuration.runs.test_seconds
    )
    try:
        with Guest(address, machine=machine.name, log=record.log) as guest:
            deployment.deploy(guest, package, plan, deadline.sooner(seconds=DEPLOY_SECONDS), record.step)
            went_down = runner.run_suite(machine.machine, guest, request, record, deadline)
            if not went_down:
                _unload(guest, plan, record)
    except DownlinkError as error:
        machine.explain(error)
        with suppress(DownlinkError):
            runner.record_condition(machine.machine, record)
        raise
    runner.record_condition(machine.machine, record)


def _unload(guest: Guest, plan: Plan, record: RunRecord) -> None:
    """Unload the driver: what it forgets to give back shows now."""
    try:
        deployment.remove(guest, plan, Deadline.after(seconds=UNLOAD_SECONDS))
    except DownlinkError as error:
        record.problem(error)


def _timed(
    console: Console,
    name: str,
    action: Callable[[], _T],
    detail: Callable[[_T], str],
    steps: list[StepResult] | None = None,
) -> _T:
    """Do one thing and show how long it took; also add it to `steps`."""
    console.transient(f"{name} ...")
    began = time.monotonic()
    result = action()
    step = StepResult(name, detail(result), True, time.monotonic() - began)
    console.step(step.name, step.detail, step.seconds)
    if steps is not None:
        steps.append(step)
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
