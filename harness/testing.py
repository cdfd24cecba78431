"""The verb test: from the sources to the verdict, on one machine or on clones of it, and after a cut."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from harness import deployment, interrupts, tidying
from harness.choices import Build, Choices, plan_for, relative, timed, where
from harness.config import Configuration, DriverConfig
from harness.console import Console
from harness.deployment import Plan, StepResult
from harness.deployment.cleanup import Before, Cleanup
from harness.deployment.steps import OnStep
from harness.doctor import preflight
from harness.doctor.subject import Subject
from harness.machines import HeldMachine, held
from harness.package import Package
from harness.remote.guest import Guest
from harness.remote.readiness import wait_until_ready
from harness.remote.repeating import repeated
from harness.runs import directory, evidence, runner
from harness.runs.detached import DetachedSuite
from harness.runs.journal import Event, read
from harness.runs.record import RunRecord
from harness.runs.share import Share, shares
from harness.runs.view import RunView
from vm.deadline import Deadline
from vm.errors import ConfigurationError, DownlinkError, MachineError
from vm.machine import MachineState

DEPLOY_SECONDS = 120
UNLOAD_SECONDS = 60
READY_SECONDS = 120
"""How long a machine that says that it runs may take until its guest carries out a command."""
EVIDENCE_SECONDS = 120
"""How long the collection of logs and dumps may take, also when the run's deadline has passed."""

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
            status = _guarded(record, workers, lambda: _run_all(job, workers), configuration, started)
        finally:
            _stop(workers)
    results = record.results
    assert results is not None
    view.summary(results, relative(record.directory.path))
    return 0 if results.passed else status


def resume(configuration: Configuration, choices: Choices, console: Console) -> int:
    """Follow the latest run to its end, whose suite goes on in the guest although its host process is gone.

    Raises:
        DownlinkError: there is no such run, or its machine does not run any more.
    """
    run = directory.latest(configuration.runs.directory)
    cut = _cut_short(run)
    head, suite = cut.head, cut.suite
    driver = configuration.driver(str(head["driver"]))
    started = time.monotonic()
    with held(configuration, str(head["machine"]), driver, head.get("checkpoint")) as machine:
        if machine.machine.state() is not MachineState.RUNNING:
            raise MachineError(
                f"the run '{run.path.name}' cannot be resumed: its machine does not run any more",
                hint="begin again: ./inv test",
                machine=machine.name,
            )
        view = RunView(console)
        record = RunRecord.reopened(run, view)
        configuration.secrets.protect_in(record.log)
        worker = Worker("", machine)
        console.line(f"following the run '{run.path.name}' on the machine '{machine.name}'")

        def follow() -> None:
            deadline = Deadline.after(seconds=configuration.runs.deadline_seconds)
            where_now = machine.machine.address
            plan = plan_for(driver, machine.machine)
            cleanup = tidying.recalled(machine, cut.before, plan)
            with (
                _seeing(machine, record),
                Guest(where_now, machine=machine.name, log=record.log) as guest,
                _tidied(guest, machine, cleanup, record),
            ):
                machine.see_boot(suite.boot)
                went_down = runner.resume_suite(machine.machine, guest, suite, record, deadline)
                boot = None if went_down else suite.boot
                _afterwards(machine, guest, plan, record, cut.mark, boot, cleanup=cleanup)

        try:
            status = _guarded(record, (worker,), follow, configuration, started)
        finally:
            _stop((worker,))
    results = record.results
    assert results is not None
    view.summary(results, relative(run.path))
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


def _guarded(
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
        _stop(workers)
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
            _stop(workers)
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
    with _seeing(machine, record), Guest(where_now, machine=machine.name, log=record.log) as guest:

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
        with _tidied(guest, machine, cleanup, record):
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
            _afterwards(machine, guest, plan, record, mark, boot_of_end, worker.name, cleanup)


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
                _gather_evidence(guest, mark, record, worker)
        raise


def _tidied(
    guest: Guest, machine: HeldMachine, cleanup: Cleanup | None, record: RunRecord
) -> AbstractContextManager[None]:
    return tidying.tidied(
        *(guest, machine, cleanup),
        on_step=record.step,
        tell=lambda sentence: record.write("left-behind", text=sentence),
    )


@contextmanager
def _seeing(machine: HeldMachine, record: RunRecord) -> Iterator[None]:
    """Within, an error is explained by what the machine knows; at the end its condition is written down."""
    try:
        yield
    except DownlinkError as error:
        machine.explain(error)
        machine.mark_dirty(error)
        with suppress(DownlinkError):
            runner.record_condition(machine.machine, record)
        raise
    runner.record_condition(machine.machine, record)


def _afterwards(
    machine: HeldMachine,
    guest: Guest,
    plan: Plan,
    record: RunRecord,
    mark: evidence.Mark | None,
    boot: str | None,
    worker: str = "",
    cleanup: Cleanup | None = None,
) -> None:
    """Unload the driver, so that what it forgets to give back shows now; then ask the guest what it remembers.

    `boot` is the one in which the suite has ended; None if the guest went down in it, and the driver with it.
    """
    if boot is not None:
        deadline = Deadline.after(seconds=UNLOAD_SECONDS)
        try:
            deployment.remove(guest, plan, deadline)
            if (now := guest.boot_identity(deadline)) != boot:
                record.write("restarted", before=boot, after=now)
        except DownlinkError as error:
            record.problem(error)
            machine.mark_dirty(error)
            if cleanup is not None:
                cleanup.see(error)
    if mark is not None:
        _gather_evidence(guest, mark, record, worker)


def _gather_evidence(guest: Guest, mark: evidence.Mark, record: RunRecord, worker: str) -> None:
    """What a machine that is no witness of its own leaves in its logs."""
    deadline = Deadline.after(seconds=EVIDENCE_SECONDS)
    try:
        for crash in evidence.crashes(guest, mark, deadline):
            record.crash(crash)
            if crash.dump:
                record.write(
                    "left-behind", text=f"the dump '{crash.dump}' of the bugcheck stays in the guest"
                )
        for sentence in evidence.collect(guest, mark, record.directory.guest / worker, deadline):
            record.log.write(sentence)
    except DownlinkError as error:
        record.problem(error)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a run that was cut short says of itself."""

    head: Event
    suite: DetachedSuite
    mark: evidence.Mark | None
    before: Before | None


def _cut_short(run: directory.RunDirectory) -> _Cut:
    """What a run that was cut short says of itself.

    Raises:
        DownlinkError: it was not cut short, or its suite ended with its host.
    """
    events = {event["event"]: event for event in read(run.journal)}
    if "verdict" in events:
        raise DownlinkError(f"the latest run, '{run.path.name}', has come to its end", hint="./inv test")
    if not {"detached", "collected", "started"} & events.keys():
        raise DownlinkError(
            f"the latest run, '{run.path.name}', was cut short before its suite began", hint="./inv test"
        )
    if "detached" not in events or events["run"].get("workers", 1) > 1:
        raise DownlinkError(
            f"the suite of the latest run, '{run.path.name}', does not go on without its host",
            hint='only suites that run as a task do: suites = "detached" in harness.toml, one worker',
        )
    mark = evidence.Mark(events["mark"]["records"]) if "mark" in events else None
    before = Before.of(events["before"]) if "before" in events else None
    return _Cut(events["run"], DetachedSuite.of(events["detached"]), mark, before)


def _stop(workers: tuple[Worker, ...]) -> None:
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
