"""A run that was cut short: its suite goes on in the guest as a task, and another process of this host sees it to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass

from harness import tidying
from harness.aftermath import afterwards, seeing, tidied
from harness.choices import Choices, plan_for, relative
from harness.config import Configuration
from harness.console import Console
from harness.deployment.cleanup import Before
from harness.machines import held
from harness.remote.guest import Guest
from harness.runs import directory, evidence, runner
from harness.runs.detached import DetachedSuite
from harness.runs.journal import Event, read
from harness.runs.record import RunRecord
from harness.runs.view import RunView
from harness.testing import Worker, guarded, stop_all
from vm.deadline import Deadline
from vm.errors import ConfigurationError, DownlinkError, MachineError
from vm.machine import MachineState


def resume(configuration: Configuration, console: Console, choices: Choices | None = None) -> int:
    """Follow the latest run to its end, whose suite goes on in the guest although its host process is gone.

    Raises:
        ConfigurationError: something was chosen: the run goes on as it was begun.
        DownlinkError: there is no such run, or its machine does not run any more.
    """
    if choices not in (None, Choices()):
        raise ConfigurationError(
            "the latest run goes on as it was begun", hint="leave out the options beside --resume"
        )
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
                seeing(machine, record),
                Guest(where_now, machine=machine.name, log=record.log) as guest,
                tidied(guest, machine, cleanup, record),
            ):
                machine.see_boot(suite.boot)
                went_down = runner.resume_suite(machine.machine, guest, suite, record, deadline)
                boot = None if went_down else suite.boot
                afterwards(machine, guest, plan, record, cut.mark, boot, cleanup=cleanup)

        try:
            status = guarded(record, (worker,), follow, configuration, started)
        finally:
            stop_all((worker,))
    results = record.results
    assert results is not None
    view.summary(results, relative(run.path))
    return 0 if results.passed else status


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
