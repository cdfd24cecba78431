"""What one run writes down while it goes on, in one object: directory, log, journal and console view."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from harness import facts
from harness.deployment import StepResult
from harness.log import Log
from harness.runs import directory, junit, report
from harness.runs.directory import RunDirectory
from harness.runs.journal import Event, Journal, read
from harness.runs.results import Results, collect
from harness.runs.view import RunView
from harness.symptoms.advice import advise
from vm.errors import DownlinkError
from vm.machine import CrashReport


class RunRecord:
    """A run that has begun. `finish` it, whatever happened.

    Args:
        runs: the directory of all runs.
        machine: name of the machine.
        keep: how many runs stay.
        view: shows what happens.
    """

    def __init__(self, runs: Path, machine: str, *, keep: int, view: RunView) -> None:
        self._open(directory.create(runs, machine, keep=keep), view)

    @classmethod
    def reopened(cls, run: RunDirectory, view: RunView) -> Self:
        """The record of a run that was cut short, to be continued."""
        record = cls.__new__(cls)
        record._open(run, view)
        for event in read(run.journal):
            view.recall(event)
        return record

    def _open(self, run: RunDirectory, view: RunView) -> None:
        self.results: Results | None = None
        """What came out of it, once it is finished."""
        self.directory = run
        self.log = Log(run.log.open("a", encoding="utf-8"))
        self.journal = Journal(run.journal, self.log)
        self.view = view

    def write(self, event: str, **values: Any) -> None:
        """Write one event to the journal."""
        self.journal.write(event, **values)

    def event(self, event: Event) -> None:
        """Write an event that came as a whole."""
        self.journal.write(**event)

    def step(self, result: StepResult) -> None:
        """Write down and show one step of the way to the tests."""
        self.note(result)
        self.view.step(result.name, result.detail, result.seconds)

    def note(self, result: StepResult) -> None:
        """Write down a step that has been shown already."""
        self.journal.write("step", name=result.name, detail=result.detail, seconds=round(result.seconds, 3))

    def problem(self, error: DownlinkError) -> None:
        """Write down what went wrong outside of any test."""
        advise(error)
        self.journal.write("problem", text=error.message, hint=error.hint)

    def crash(self, report: CrashReport) -> None:
        """Write down a bugcheck."""
        self.journal.write("crash", **asdict(report))

    def keep_logs(self, source: Path, worker: str = "") -> None:
        """Copy the logs that the machine itself wrote on this host, in `source`, into the run."""
        for path in source.glob("*.log"):
            place = self.directory.path / "machine" / worker
            place.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / path.name)

    def finish(self, seconds: float) -> Results:
        """Close the journal and derive from it everything else that the run leaves behind."""
        passed = collect(read(self.directory.journal)).passed
        self.journal.write("verdict", passed=passed, seconds=round(seconds, 3))
        self.journal.close()
        self.log.close()
        results = collect(read(self.directory.journal))
        junit.write(results, self.directory.junit)
        report.write(results, self.directory.report)
        facts.remember(results, self.directory.path.name, self.directory.path.parent)
        self.results = results
        return results
