"""How a run looks on the console while it goes on, and what stays when it is over."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.console import Console
from harness.runs.journal import Event
from harness.runs.results import Outcome, Results, TestResult, explanation

FAILURE_LINES = 30
"""Most lines of one failure on the console; the report has all of it."""

PRINTED_LINES = 8
"""Most lines that are shown of what a failed test printed."""

LINE_CHARACTERS = 200
"""Longest line of a failure on the console."""

FAILURES_SHOWN = 10
"""Most failures that are shown with their text; when a machine is broken every test fails for the same reason."""

FAILURES_NAMED = 30
"""Most failures that get a line while the run goes on."""


@dataclass(slots=True)
class _File:
    """A test file that is being run: since when, and how its tests have ended."""

    started: float
    outcomes: list[str] = field(default_factory=list)


class RunView:
    """Shows events as they come: failures as lines, everything else as progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = 0
        self._done = 0
        self._failed = 0
        self._left: Counter[str] = Counter()
        """Tests by file that have not ended."""
        self._open: dict[str, _File] = {}
        self._lock = threading.Lock()

    def event(self, event: Event) -> None:
        """Show one event of a guest; several workers may have some to show."""
        with self._lock:
            self._event(event)

    def _event(self, event: Event) -> None:
        match event["event"]:
            case "collected":
                self._collected(event)
                self._console.line(f"running {len(event['tests'])} tests in the guest")
            case "collect-error":
                self._console.line(f"  {self._bad('error')}  {event['id']} could not be imported")
            case "started":
                self._open.setdefault(_file(event["id"]), _File(time.monotonic()))
                failed = f", {self._failed} failed" if self._failed else ""
                self._console.transient(f"  {self._done + 1}/{self._total}{failed}  {event['id']}")
            case "finished":
                self._done += 1
                if not Outcome(event["outcome"]).good:
                    self._failed += 1
                    if self._failed <= FAILURES_NAMED:
                        self._console.line(f"  {self._bad(event['outcome'])}  {event['id']}")
                self._finished(_file(event["id"]), event["outcome"])

    def recall(self, event: Event) -> None:
        """Take in an event that was shown by the process that began the run."""
        match event["event"]:
            case "collected":
                self._collected(event)
            case "finished":
                self._done += 1
                self._left[_file(event["id"])] -= 1
                self._failed += not Outcome(event["outcome"]).good

    def step(self, name: str, detail: str, seconds: float) -> None:
        """Show one step of the way to the tests."""
        self._console.step(name, detail, seconds)

    def summary(self, results: Results, run: Path) -> None:
        """What failed and why, what the machine says, and the verdict as the last line."""
        for file in tuple(self._open):
            self._end_file(file)
        console = self._console
        bad = [
            test for test in results.tests if not test.outcome.good and test.outcome is not Outcome.NOT_RUN
        ]
        for test in bad[:FAILURES_SHOWN]:
            self._failure(test)
        if len(bad) > FAILURES_SHOWN:
            console.line()
            console.line(f"and {len(bad) - FAILURES_SHOWN} more, all of them in '{run / 'report.html'}'")
        for crash in results.crashes:
            self._crash(crash, results.in_flight)
        for violation in results.violations:
            console.line()
            times = f", {violation['count']} times, first:" if violation.get("count", 1) > 1 else ""
            console.line(f"{self._bad('rule broken')}: {violation['rule']} by '{violation['driver']}'{times}")
            console.line(f"  {violation['message']}")
            self._stack(violation["stack"])
        for problem in results.problems:
            console.line()
            console.line(f"{self._bad('problem')}: {problem}")
        console.line()
        for sentence in results.untested:
            console.line(f"not tested: {sentence}")
        for sentence in results.left_behind:
            console.line(f"left behind: {sentence}")
        console.line(verdict_line(results, console, run))

    def _failure(self, test: TestResult) -> None:
        self._console.line()
        self._console.line(f"{self._bad(test.outcome.value)}: {self._console.style(test.id, 'bold')}")
        self._lines(explanation(test), FAILURE_LINES)
        for name, text in test.sections:
            self._console.line(self._console.style(f"  {name}:", "dim"))
            self._lines(text, PRINTED_LINES)

    def _lines(self, text: str, most: int) -> None:
        """The last lines of a text, indented; what pytest marks as the error stands out."""
        lines = [line for line in text.splitlines() if line.strip() not in ("", "E")]
        if len(lines) > most:
            lines = ["…", *lines[-most:]]
        for line in lines:
            shown = line if len(line) <= LINE_CHARACTERS else line[: LINE_CHARACTERS - 1] + "…"
            self._console.line(f"  {self._console.style(shown, 'red') if line.startswith('E ') else shown}")

    def _crash(self, crash: Event, test: TestResult | None) -> None:
        parameters = ", ".join(f"0x{parameter:X}" for parameter in crash["parameters"])
        during = f" during {test.id}" if test else ""
        self._console.line()
        self._console.line(
            f"{self._bad('bugcheck')} 0x{crash['code']:X} {crash['name']} ({parameters}){during}"
        )
        if crash["rule"]:
            self._console.line(f"  {crash['rule']}")
        self._stack(crash["stack"])

    def _stack(self, stack: Sequence[str]) -> None:
        for frame in stack:
            self._console.line(f"    at {frame}")

    def _collected(self, event: Event) -> None:
        self._total += len(event["tests"])
        self._left.update(_file(test["id"]) for test in event["tests"])

    def _finished(self, file: str, outcome: str) -> None:
        """One test of a file has ended; its last one ends the file."""
        if file in self._open:
            self._open[file].outcomes.append(outcome)
        self._left[file] -= 1
        if self._left[file] <= 0:
            self._end_file(file)

    def _end_file(self, file: str) -> None:
        shown = self._open.pop(file, None)
        if shown is not None and shown.outcomes:
            counts = Counter(shown.outcomes)
            text = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
            self._console.step(file, text, time.monotonic() - shown.started)

    def _bad(self, text: str) -> str:
        return self._console.style(text, "red", "bold")


def _file(test: str) -> str:
    return test.partition("::")[0]


def verdict_line(results: Results, console: Console, run: Path) -> str:
    """One line: passed or not, the counts, the time, where the rest is."""
    counts = [f"{count} {outcome.value}" for outcome in Outcome if (count := results.count(outcome))] or [
        "no tests"
    ]
    if results.deselected:
        counts.append(f"{results.deselected} deselected")
    if results.crashes:
        counts.append(f"{len(results.crashes)} bugcheck" + ("s" if len(results.crashes) > 1 else ""))
    if results.violations:
        counts.append(f"{len(results.violations)} broken rule" + ("s" if len(results.violations) > 1 else ""))
    if results.passed:
        word = console.style("passed", "green", "bold")
    elif results.interrupted:
        word = console.style("interrupted", "yellow", "bold")
    else:
        word = console.style("FAILED", "red", "bold")
    return f"{word}: {', '.join(counts)} in {results.seconds:.1f} s ({run})"
