"""The verb test: from the sources to the verdict, on one machine or on clones of it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from harness import deployment, interrupts, tidying
from harness.aftermath import EVIDENCE_SECONDS, afterwards, gather_evidence, seeing, tidied
from harness.choices import Build, Choices, plan_for, relative, timed, where
from harness.config import Configuration, DriverConfig
from harness.console import Console
from harness.deployment import Plan, StepResult
from harness.deployment.cleanup import Cleanup
from harness.deployment.steps import OnStep
from harness.doctor import preflight
from harness.doctor.subject import Subject
from harness.machines import HeldMachine, held
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.readiness import wait_until_ready
from harness.remote.repeating import repeated
from harness.runs import evidence, runner
from harness.runs.journal import read
from harness.runs.record import RunRecord
from harness.runs.share import Share, shares
from harness.runs.view import RunView
from vm.deadline import Deadline
from vm.errors import ConfigurationError, DownlinkError

DEPLOY_SECONDS = 120
READY_SECONDS = 120
"""How long a machine that says that it runs may take until its guest carries out a command."""

_VERSION = re.compile(r"\d+\.\d+\.\d+(\.\d+)?")


@dataclass(frozen=True, slots=True)
class Worker:
    """One machine of a run and its share of the suite; `name` is empty and `files` too when it is the only one."""

    name: str
    machine: HeldMachine
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """What all workers of a run have in common."""

    configuration: Configuration
    driver: DriverConfig
    request: runner.SuiteRequest
    package: Package
    record: RunRecord
    deadline: Deadline
    checkpoint: str | None = None


def test(configuration: Configuration, choices: Choices, build: Build, console: Console) -> int:
    """Build, restore, deploy, run the suites inside the machine, report; returns the exit status.

    The machine is stopped at the end, however that comes about; what was found out until then is kept.

    Raises:
        DownlinkError: the way to the tests failed. A red run is no error.
    """
    driver = configuration.driver(choices.driver)
    runner.check_selection(choices.select)
    started = time.monotonic()
    preflight.before_start(Subject(configuration, configuration.machine(choices.machine), driver))
    with held(configuration, choices.machine, driver, choices.checkpoint) as machine:
        machine.refuse_elsewhere()
        workers = _workers(configuration, machine, driver, choices.workers)
        try:
            package, steps = _build_while_starting(workers, build, console)
            view = RunView(console)
            runs = configuration.runs
            record = RunRecord(runs.directory, machine.name, keep=runs.keep, view=view)
            configuration.secrets.protect_in(record.log)
            record.write(
                "run",
                driver=driver.name,
                machine=machine.name,
                kind=machine.machine.kind,
                select=choices.select,
                workers=len(workers),
                checkpoint=choices.checkpoint,
                untested=machine.machine.abilities.untested,
                **_made_of(package),
            )
            for step in steps:
                record.note(step)
            request = runner.SuiteRequest(
                configuration.root, driver.suites, choices.select, configuration.runs.test_seconds
            )
            deadline = Deadline.after(seconds=runs.deadline_seconds)
            job = _Job(configuration, driver, request, package, record, deadline, choices.checkpoint)
            status = guarded(record, workers, lambda: _run_all(job, workers), configuration, started)
        finally:
            stop_all(workers)
    results = record.results
    assert results is not None
    view.summary(results, relative(record.directory.path))
    return 0 if results.passed else status


def _workers(
    configuration: Configuration, machine: HeldMachine, driver: DriverConfig, count: int
) -> tuple[Worker, ...]:
    """The machine itself, or so many clones of it with their shares of the suite.

    Raises:
        ConfigurationError: there cannot be so many.
    """
    if count < 1:
        raise ConfigurationError(f"there cannot be {count} workers", hint="--workers 2")
    if count == 1:
        return (Worker("", machine),)
    groups = shares(driver.suites, count, configuration.runs.directory)
    return tuple(Worker(f"w{number}", machine.clone(number), files) for number, files in enumerate(groups, 1))


def _build_while_starting(
    workers: tuple[Worker, ...], build: Build, console: Console
) -> tuple[Package, list[StepResult]]:
    """Build, and bring the machines up meanwhile: each takes about a second, and neither needs the other."""
    steps: list[StepResult] = []
    with ThreadPoolExecutor(len(workers)) as beside:
        starting = [beside.submit(worker.machine.restore, keep=_outlives(worker)) for worker in workers]
        package = timed(console, "build", build, lambda made: f"'{relative(made.directory)}'", steps)
        for worker in workers:
            worker.machine.check(package)
        for worker, begun in zip(workers, starting, strict=True):
            timed(console, worker.machine.starting, begun.result, where, steps)
    return package, steps


def _outlives(worker: Worker) -> bool:
    """A suite that goes on without this process needs a machine that does, too; it is stopped at every other end."""
    return worker.machine.machine.abilities.detached


def guarded(
    record: RunRecord,
    workers: tuple[Worker, ...],
    run: Callable[[], None],
    configuration: Configuration,
    started: float,
) -> int:
    """Run, and bring the record to its end whatever happens; returns the exit status of a run that is not green."""
    status = 1
    try:
        with record.log.gathering():
            run()
    except KeyboardInterrupt as interrupt:
        status = interrupts.exit_status(interrupt)
        record.write("interrupted")
    except DownlinkError as error:
        record.problem(error)
        raise
    finally:
        stop_all(workers)
        for worker in workers:
            record.keep_logs(configuration.machine_directory(worker.machine.name), worker.name)
        record.finish(time.monotonic() - started)
    return status


def _run_all(job: _Job, workers: tuple[Worker, ...]) -> None:
    """Every worker to its verdict; the first that fails on the way is the error of all, when all have ended."""
    if len(workers) == 1:
        _to_the_verdict(job, workers[0])
        return
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(_to_the_verdict, job, worker) for worker in workers]
        try:
            wait(running)
        except BaseException:
            # A thread cannot be interrupted, but it ends when its machine does.
            job.record.write("interrupted")
            stop_all(workers)
            raise
    _raise_first(running)
    if not any(event.get("tests") for event in read(job.record.directory.journal)):
        job.record.write("problem", text="no test matches the selection")


def _to_the_verdict(job: _Job, worker: Worker) -> None:
    """Deploy, run the suite, unload, and ask the machine how it came through."""
    machine, record = worker.machine, job.record
    plan = plan_for(job.driver, machine.machine)
    # Not the address itself: after a restart the guest may have another one.
    where_now = machine.machine.address
    with seeing(machine, record), Guest(where_now, machine=machine.name, log=record.log) as guest:

        def on_step(step: StepResult) -> None:
            record.step(replace(step, name=f"{worker.name}: {step.name}") if worker.name else step)

        began = time.monotonic()
        windows = _version(wait_until_ready(guest, job.deadline.sooner(seconds=READY_SECONDS)))
        record.write("guest", windows=windows)
        on_step(StepResult("wait for the guest", f"Windows {windows}", False, time.monotonic() - began))
        machine.see_boot(guest.boot_identity(job.deadline))
        cleanup = tidying.look(guest, machine, job.package, plan)
        if cleanup is not None:
            record.write("before", **cleanup.before.values())
        with tidied(guest, machine, cleanup, record):
            look = partial(
                preflight.in_guest,
                *(guest, job.driver, machine.machine, job.package, job.deadline, job.checkpoint),
            )
            on_step(repeated(guest, look))
            if cleanup is not None:
                on_step(tidying.end_tasks(guest, job.deadline))
            # The logs end here for a machine that is no witness: a driver may crash it in its very load.
            mark = None
            if not machine.machine.abilities.witness:
                mark = evidence.mark(guest, job.deadline)
                record.write("mark", records=mark.records)
            boot = _deployed(job, machine, guest, plan, record, cleanup, mark, on_step, worker.name)
            went_down = runner.run_suite(
                machine.machine, guest, job.request, record, job.deadline, Share(worker.name, worker.files)
            )
            boot_of_end = None if went_down else boot
            afterwards(machine, guest, plan, record, mark, boot_of_end, worker.name, cleanup)


def _deployed(
    job: _Job,
    machine: HeldMachine,
    guest: Guest,
    plan: Plan,
    record: RunRecord,
    cleanup: Cleanup | None,
    mark: evidence.Mark | None,
    on_step: OnStep,
    worker: str,
) -> str:
    """Deploy, and ask the guest what it remembers if that fails; returns the boot in which the driver was loaded."""

    def step(result: StepResult) -> None:
        if cleanup is not None:
            cleanup.on_step(result)
        on_step(result)

    try:
        deployment.deploy(guest, job.package, plan, job.deadline.sooner(seconds=DEPLOY_SECONDS), step)
        return guest.boot_identity(job.deadline)
    except DownlinkError:
        if mark is not None:
            with suppress(DownlinkError):
                guest.wait_for_boot(None, Deadline.after(seconds=EVIDENCE_SECONDS))
                gather_evidence(guest, mark, record, worker, stays=cleanup is not None)
        raise


def stop_all(workers: tuple[Worker, ...]) -> None:
    """Stop the machines; those that are not ours stay as they are."""
    for worker in workers:
        worker.machine.stop()


def _raise_first(running: list[Future[None]]) -> None:
    errors = [error for begun in running if (error := begun.exception()) is not None]
    if not errors:
        return
    first, *others = errors
    if isinstance(first, DownlinkError):
        first.causes += tuple(others)
    raise first


def _version(said: str) -> str:
    """Version of Windows in what `ver` prints; the words around it are localised."""
    found = _VERSION.search(said)
    return found[0] if found else ""


def _made_of(package: Package) -> dict[str, object]:
    """What identifies the package in the journal."""
    manifest = package.manifest
    return {
        "package": package.entry("image").sha256[:16],
        "toolchain": manifest.toolchain,
        "configuration": manifest.configuration,
        "revision": manifest.source.revision,
        "versions": dict(manifest.versions),
        "experimental": list(manifest.experimental),
    }
