"""The pytest plugin that travels into the guest and tells the host, event by event, what the suite does.

Imports the standard library and pytest only. Each event is one line of JSON behind a prefix that the host chose, on
the standard output that pytest started with, and the same line in a file, from which the host fills gaps when a
connection was lost. Lines are flushed at once: the next instruction may crash the machine.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

_OUTPUT = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
"""Standard output as it was before pytest began to capture it."""
_ERRORS = os.fdopen(os.dup(2), "w", encoding="utf-8", newline="\n")

TEXT_CHARACTERS = 40_000
"""Longest text in one event; the middle of what is longer is left out."""

_WORDS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS = {"and", "or", "not", "True", "False"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("downlink", "reporting to the host")
    group.addoption("--event-prefix", default="@event ", help="what every event's line starts with")
    group.addoption("--event-file", default=None, help="file that keeps the events, too")
    group.addoption("--event-sync", action="store_true", help="write that file through to the disk each time")
    group.addoption("--select", default=None, help="expression of marks, or of names if it has other words")
    group.addoption("--test-seconds", type=float, default=0.0, help="end the run when one test takes longer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fact(*ids): the facts about Windows that the test asserts")
    config.addinivalue_line("markers", "slow: takes more than a second; leave out with --select 'not slow'")
    config.pluginmanager.register(Reporter(config), "downlink-reporter")


def uses_marks_only(expression: str, marks: set[str]) -> bool:
    """True when every word of a selection is a registered mark, so that it is meant for `-m` and not for `-k`."""
    words = set(_WORDS.findall(expression)) - _OPERATORS
    return bool(words) and words <= marks


class Reporter:
    """Turns pytest's hooks into events."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._prefix = str(config.getoption("event_prefix"))
        self._seconds = float(config.getoption("test_seconds"))
        self._sync = bool(config.getoption("event_sync"))
        self._number = 0
        self._reports: list[pytest.TestReport] = []
        file = config.getoption("event_file")
        self._file: TextIO | None = None
        if file:
            Path(str(file)).parent.mkdir(parents=True, exist_ok=True)
            # Open as long as the process lives, so that a crash finds every line on the disk.
            self._file = Path(str(file)).open("w", encoding="utf-8", newline="\n")  # noqa: SIM115

    def event(self, kind: str, **values: Any) -> None:
        """Send one event."""
        self._number += 1
        line = json.dumps({"n": self._number, "event": kind, **values}, ensure_ascii=True)
        if self._file is not None:
            self._file.write(line + "\n")
            self._file.flush()
            if self._sync:
                # What was only flushed is zeros after a bugcheck: the length was written, the data was not.
                os.fsync(self._file.fileno())
        # A line of its own, whatever pytest or a test left unfinished on the same stream.
        _OUTPUT.write(f"\n{self._prefix}{line}\n")
        _OUTPUT.flush()

    def pytest_sessionstart(self) -> None:
        self.event(
            "session",
            python=platform.python_version(),
            pytest=pytest.__version__,
            platform=platform.platform(),
        )

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        expression = self._config.getoption("select")
        if expression:
            marks = {line.split(":")[0].split("(")[0].strip() for line in self._config.getini("markers")}
            target = "markexpr" if uses_marks_only(expression, marks) else "keyword"
            setattr(self._config.option, target, expression)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.event("collect-error", id=report.nodeid, text=_cut(report.longreprtext))

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self.event("deselected", count=len(items))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        tests = [
            {
                "id": item.nodeid,
                "facts": [str(fact) for mark in item.iter_markers("fact") for fact in mark.args],
                "marks": sorted({mark.name for mark in item.iter_markers()} - {"fact", "parametrize"}),
            }
            for item in session.items
        ]
        self.event("collected", tests=tests)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._reports = []
        self.event("started", id=item.nodeid)
        if self._seconds:
            # Cannot be survived by a test that hangs in a system call, unlike a signal or a thread's exception.
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=_ERRORS)
        try:
            return (yield)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._finished(item)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._reports.append(report)

    def pytest_internalerror(self, excrepr: object) -> None:
        self.event("internal-error", text=_cut(str(excrepr)))

    def pytest_keyboard_interrupt(self) -> None:
        self.event("interrupted-in-guest")

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.event("end", exit_code=int(exitstatus))

    def _finished(self, item: pytest.Item) -> None:
        outcome, report = _verdict(self._reports)
        sections = {name: _cut(text) for name, text in report.sections} if report else {}
        reason = ""
        if report is not None and outcome in ("skipped", "xfailed", "xpassed"):
            reason = str(getattr(report, "wasxfail", "")) or _skip_reason(report)
        self.event(
            "finished",
            id=item.nodeid,
            outcome=outcome,
            seconds=round(sum(report.duration for report in self._reports), 4),
            text=_cut(report.longreprtext) if report is not None and outcome in ("failed", "error") else "",
            reason=reason,
            sections=sections if outcome in ("failed", "error") else {},
            properties=[[str(name), str(value)] for name, value in item.user_properties],
        )


def _verdict(reports: list[pytest.TestReport]) -> tuple[str, pytest.TestReport | None]:
    """The outcome of one test from the reports of its phases, and the report that explains it."""
    for report in reports:
        if report.failed:
            return ("failed" if report.when == "call" else "error"), report
    for report in reports:
        if report.skipped:
            return ("xfailed" if hasattr(report, "wasxfail") else "skipped"), report
        if report.when == "call" and hasattr(report, "wasxfail"):
            return "xpassed", report
    called = next((report for report in reports if report.when == "call"), None)
    return ("passed", called) if called is not None else ("error", None)


def _skip_reason(report: pytest.TestReport) -> str:
    longrepr = report.longrepr
    text = str(longrepr[2]) if isinstance(longrepr, tuple) else report.longreprtext
    return text.removeprefix("Skipped: ")


def _cut(text: str) -> str:
    if len(text) <= TEXT_CHARACTERS:
        return text
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


if sys.platform == "win32":
    # Python hides dialogs of crashed children by default only when nobody asks for them; the guest has no desktop.
    import ctypes

    ctypes.windll.kernel32.SetErrorMode(0x0001 | 0x0002)  # SEM_FAILCRITICALERRORS | SEM_NOGPFAULTERRORBOX
