"""How a run looks on the console while it goes on, and what stays when it is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
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


class RunView:
    """Shows events as they come: failures as lines, everything else as progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._total = 0
        self._done = 0
        self._failed = 0
        self._file = ""
        self._in_file: list[str] = []
        self._file_started = 0.0

    def event(self, event: Event) -> None:
        """Show one event of the guest."""
        match event["event"]:
            case "collected":
                self._total = len(event["tests"])
                self._console.line(f"running {self._total} tests in the guest")
            case "collect-error":
                self._console.line(f"  {self._bad('error')}  {event['id']} could not be imported")
            case "started":
                self._begin_file(event["id"].partition("::")[0])
                failed = f", {self._failed} failed" if self._failed else ""
                self._console.transient(f"  {self._done + 1}/{self._total}{failed}  {event['id']}")
            case "finished":
                self._done += 1
                self._in_file.append(event["outcome"])
                if not Outcome(event["outcome"]).good:
                    self._failed += 1
                    if self._failed <= FAILURES_NAMED:
                        self._console.line(f"  {self._bad(event['outcome'])}  {event['id']}")
            case "end":
                self._end_file()

    def step(self, name: str, detail: str, seconds: float) -> None:
        """Show one step of the way to the tests."""
        self._console.step(name, detail, seconds)

    def summary(self, results: Results, run: Path) -> None:
        """What failed and why, what the machine says, and the verdict as the last line."""
        self._end_file()
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

    def _begin_file(self, file: str) -> None:
        if file != self._file:
            self._end_file()
            self._file, self._file_started = file, time.monotonic()

    def _end_file(self) -> None:
        if self._file and self._in_file:
            counts = ", ".join(
                f"{count} {outcome}"
                for outcome in dict.fromkeys(self._in_file)
                if (count := self._in_file.count(outcome))
            )
            self._console.step(self._file, counts, time.monotonic() - self._file_started)
        self._file, self._in_file = "", []

    def _bad(self, text: str) -> str:
        return self._console.style(text, "red", "bold")


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
