"""What a CI system is told of a run: an annotation for each failure, up to a number, and the summary."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.ci import markdown
from harness.ci.systems import Annotation, Level, System, detect
from harness.config import Configuration
from harness.console import Console
from harness.runs.directory import RunDirectory, latest
from harness.runs.journal import read
from harness.runs.results import Outcome, Results, TestResult, collect, explanation
from vm.errors import DownlinkError

ANNOTATIONS = 10
"""Most annotations of one step: GitHub shows no more of each level and drops the rest without a word."""

_LAST_LINES = 25
_PYTEST = re.compile(
    r"^(?:FAILED|ERROR) (?P<file>[^\s:]+\.py)(?:::(?P<test>\S+))?(?: - (?P<message>.*))?$", re.MULTILINE
)
_PLACE = re.compile(
    r"^(?P<file>[\w./\\-]+\.pyi?):(?P<line>\d+)(?::\d+)?: (?P<message>(?:error: |[A-Z]+\d+ ).*)$",
    re.MULTILINE,
)


@contextmanager
def session(console: Console, configuration: Configuration, system: System | None = None) -> Iterator[None]:
    """While it lasts, nothing that is printed is a command of the CI system; then it is told of the run made meanwhile.

    Args:
        console: where a run is shown.
        configuration: where runs and suites are.
        system: the CI system; the one this process runs in if not given. Outside of one nothing happens.
    """
    found = system or detect()
    if found is None:
        yield
        return
    before = _written(configuration)
    _say(console, found.begin_foreign())
    console.defuse = found.defuse
    ended_by = ""
    try:
        yield
    except DownlinkError as error:
        ended_by = error.message
        raise
    finally:
        console.defuse = str
        _say(console, found.end_foreign())
        after = _written(configuration)
        if after is not None and after != before:
            run, _ = after
            results = collect(read(run.journal))
            tell(found, console, results, run.path, _suites(configuration, results), ended_by)


def tell(
    system: System, console: Console, results: Results, directory: Path, suites: str, ended_by: str = ""
) -> None:
    """Print the annotations of a run and hand over its summary.

    Args:
        system: who is told.
        console: where its commands are printed.
        results: the run.
        directory: the run's directory.
        suites: directory of the suites in the repository, with slashes, which the tests' names are relative to.
        ended_by: the error that ends the command, which gets an annotation of its own.
    """
    _say(console, map(system.annotation, of_run(results, suites, ended_by)))
    _say(console, system.summary(markdown.summary(results), directory))


def of_error(error: DownlinkError) -> Annotation:
    """Why a command ended."""
    hint = f"\nhint: {error.hint}" if error.hint else ""
    return Annotation(
        Level.ERROR, f"machine '{error.machine}'" if error.machine else "error", f"{error.message}{hint}"
    )


def check_failed(name: str, output: str, console: Console, system: System | None = None) -> None:
    """Show the output of one of the project's own checks, and tell the CI system, if any, what it complains about."""
    found = system or detect()
    if found is None:
        console.line(output)
        return
    console.line(found.defuse(output))
    _say(console, map(found.annotation, of_check(name, output)))


def of_run(results: Results, suites: str, ended_by: str = "") -> list[Annotation]:
    """What is worth an annotation, the machine's own words first; the last one counts what is left out."""
    all_of_them = [
        *_machine(results, ended_by),
        *(_test(test, suites) for test in results.tests if _bad(test)),
    ]
    return _capped(all_of_them, "the summary and the report name all of them")


def of_check(name: str, output: str) -> list[Annotation]:
    """Complaints of ruff, mypy and pytest in their output, or its last lines if it has another form."""
    lines = {
        match["file"]: int(match["line"])
        for match in re.finditer(r"^(?P<file>\S+\.py):(?P<line>\d+): ", output, re.MULTILINE)
    }
    found = [
        Annotation(
            Level.ERROR,
            f"{name}: {match['test'] or match['file']}",
            match["message"] or "failed",
            match["file"],
            lines.get(match["file"], 0),
        )
        for match in _PYTEST.finditer(output)
    ] or [
        Annotation(Level.ERROR, name, match["message"], match["file"].replace("\\", "/"), int(match["line"]))
        for match in _PLACE.finditer(output)
    ]
    text = "\n".join(output.rstrip().splitlines()[-_LAST_LINES:])
    return _capped(found or [Annotation(Level.ERROR, name, text or "failed")], "the log has all of them")


def _written(configuration: Configuration) -> tuple[RunDirectory, int] | None:
    """The latest run and how much it has written; None when there is none."""
    try:
        run = latest(configuration.runs.directory)
        return run, run.journal.stat().st_size
    except (DownlinkError, OSError):
        return None


def _suites(configuration: Configuration, results: Results) -> str:
    """Where the suites of the run's driver are in the repository."""
    driver = configuration.driver(str(results.head.get("driver") or "") or None)
    return driver.suites.relative_to(configuration.root).as_posix()


def _capped(found: list[Annotation], where: str) -> list[Annotation]:
    if len(found) <= ANNOTATIONS:
        return found
    left = len(found) - (ANNOTATIONS - 1)
    return [
        *found[: ANNOTATIONS - 1],
        Annotation(Level.ERROR, f"{left} more", f"{left} more failures; {where}"),
    ]


def _machine(results: Results, ended_by: str) -> Iterator[Annotation]:
    for crash in results.crashes:
        during = f" during {results.in_flight.id}" if results.in_flight else ""
        rule = f"\n{crash['rule']}" if crash["rule"] else ""
        stack = "".join(f"\nat {frame}" for frame in crash["stack"])
        yield Annotation(
            Level.ERROR,
            f"bugcheck 0x{crash['code']:X} {crash['name']}{during}",
            f"{crash['name']}{rule}{stack}",
        )
    for violation in results.violations:
        stack = "".join(f"\nat {frame}" for frame in violation["stack"])
        title = f"{violation['rule']} by {violation['driver']}"
        yield Annotation(Level.ERROR, title, f"{violation['message']}{stack}")
    for problem in results.problems:
        if problem != ended_by:
            yield Annotation(Level.ERROR, "problem", problem)
    reasons = (*results.crashes, *results.violations, *results.problems, *filter(_bad, results.tests))
    if not results.passed and not reasons:
        word = "interrupted" if results.interrupted else "no test passed"
        yield Annotation(Level.ERROR, word, "the run proves nothing; look at its log")


def _test(test: TestResult, suites: str) -> Annotation:
    text = explanation(test)
    said = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    message = "\n".join(said) or "\n".join(text.splitlines()[-_LAST_LINES:]) or test.outcome.value
    return Annotation(
        Level.ERROR, f"{test.outcome.value}: {test.name}", message, f"{suites}/{test.file}", _line(test)
    )


def _line(test: TestResult) -> int:
    """The last line of the test's own file in its traceback: where it asserted."""
    places = re.findall(rf"(?:^|[\\/]){re.escape(test.file)}:(\d+): ", test.text, re.MULTILINE)
    return int(places[-1]) if places else 0


def _bad(test: TestResult) -> bool:
    return not test.outcome.good and test.outcome is not Outcome.NOT_RUN


def _say(console: Console, lines: Iterable[str]) -> None:
    """Print what is for the CI system as it is."""
    defuse, console.defuse = console.defuse, str
    try:
        for line in lines:
            console.line(line)
    finally:
        console.defuse = defuse
