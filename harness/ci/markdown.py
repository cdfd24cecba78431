"""A run as a page of Markdown: the verdict first, then what a reader needs to act on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from harness.runs.journal import Event
from harness.runs.results import Outcome, Results, TestResult, explanation

FAILURES_SHOWN = 20
"""Most failures with their text; all are in the report."""

FAILURE_LINES = 40
"""Most lines of one failure, the last ones."""

NAMES_SHOWN = 200
"""Most names of failed tests."""

SLOWEST = 5

_SPECIAL = re.compile(r"[\\`*_{}\[\]<>()#+!|~&@:\"'-]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


def summary(results: Results) -> str:
    """The page of a run."""
    return "\n\n".join(part for part in _parts(results) if part) + "\n"


def plain(text: object) -> str:
    """`text` so that Markdown and HTML show it as it is, on one line.

    Characters with a meaning become numeric references, which are never part of any structure (CommonMark, 2.5).
    """
    return _SPECIAL.sub(lambda match: f"&#{ord(match[0])};", _CONTROL.sub(" ", str(text)))


def block(text: str, lines: int = FAILURE_LINES) -> str:
    """`text` as a block of code that nothing inside it can end; its last lines if it is long."""
    found = text.rstrip().splitlines()
    kept = ["…", *found[-lines:]] if len(found) > lines else found
    body = "\n".join(_CONTROL.sub(" ", line) for line in kept)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", body)), default=0))
    return f"{fence}text\n{body}\n{fence}"


def _parts(results: Results) -> Iterator[str]:
    head = results.head
    verdict = "passed" if results.passed else "interrupted" if results.interrupted else "FAILED"
    mark = "✅" if results.passed else "❌"
    title = f"{head.get('driver', 'driver')} on {head.get('machine', 'machine')}"
    yield f"## {mark} {plain(title)}: {verdict}"
    yield f"{plain(_counts(results))} in {results.seconds:.1f} s"
    yield _identity(head)
    yield from _condition(results)
    yield from _failures(results.tests)
    yield _list("Not tested", head.get("untested", ()))
    skipped = Counter(test.reason for test in results.tests if test.outcome is Outcome.SKIPPED)
    yield _list("Skipped", (f"{reason} ({count})" for reason, count in skipped.most_common()))
    yield _times(results)


def _counts(results: Results) -> str:
    counts = [f"{count} {outcome.value}" for outcome in Outcome if (count := results.count(outcome))]
    deselected = [f"{results.deselected} deselected"] if results.deselected else []
    return ", ".join(counts or ["no tests"]) + "".join(f", {part}" for part in deselected)


def _identity(head: Event) -> str:
    """What was tested where, as a table."""
    names = (
        "machine",
        "kind",
        "driver",
        "package",
        "toolchain",
        "configuration",
        "revision",
        "select",
        "time",
    )
    rows = [(name, head[name]) for name in names if head.get(name)]
    rows += [(name, value) for name, value in dict(head.get("versions") or {}).items()]
    if not rows:
        return ""
    return "| | |\n|---|---|\n" + "\n".join(f"| {plain(name)} | {plain(value)} |" for name, value in rows)


def _condition(results: Results) -> Iterator[str]:
    """Crashes, broken rules and what went wrong outside of any test."""
    if not (results.crashes or results.violations or results.problems):
        return
    yield "### What went wrong"
    for crash in results.crashes:
        parameters = ", ".join(f"0x{parameter:X}" for parameter in crash["parameters"])
        during = f" during {results.in_flight.id}" if results.in_flight else ""
        yield f"**bugcheck 0x{crash['code']:X} {plain(crash['name'])}** ({parameters}){plain(during)}"
        yield block(
            "\n".join([crash["rule"] or "", *(f"at {frame}" for frame in crash["stack"])]).strip() or "-"
        )
    for violation in results.violations:
        times = violation.get("count", 1)
        yield f"**{plain(violation['rule'])}** by {plain(violation['driver'])}, {times} times"
        yield block("\n".join([violation["message"], *(f"at {frame}" for frame in violation["stack"])]))
    for problem in results.problems:
        yield block(problem)


def _failures(tests: Iterable[TestResult]) -> Iterator[str]:
    bad = [test for test in tests if not test.outcome.good and test.outcome is not Outcome.NOT_RUN]
    if not bad:
        return
    yield f"### Failed ({len(bad)})"
    yield "\n".join(
        f"* {test.outcome.value}: <code>{plain(test.id)}</code> ({test.seconds:.2f} s)"
        for test in bad[:NAMES_SHOWN]
    ) + (f"\n* and {len(bad) - NAMES_SHOWN} more" if len(bad) > NAMES_SHOWN else "")
    for test in bad[:FAILURES_SHOWN]:
        if text := explanation(test):
            yield (
                f"<details><summary><code>{plain(test.id)}</code></summary>\n\n{block(text)}\n\n</details>"
            )
    if len(bad) > FAILURES_SHOWN:
        yield f"The other {len(bad) - FAILURES_SHOWN} are in the report of the run."


def _times(results: Results) -> str:
    rows = [(str(step["name"]), float(step["seconds"])) for step in results.steps]
    slowest = sorted(results.tests, key=lambda test: -test.seconds)[:SLOWEST]
    rows += [(test.id, test.seconds) for test in slowest if test.seconds > 0]
    if not rows:
        return ""
    table = "\n".join(f"| {plain(name)} | {seconds:.2f} |" for name, seconds in rows)
    return f"<details><summary>Steps and slowest tests</summary>\n\n| | s |\n|---|--:|\n{table}\n\n</details>"


def _list(title: str, entries: Iterable[object]) -> str:
    lines = [f"* {plain(entry)}" for entry in entries]
    return "\n".join([f"### {title}\n", *lines]) if lines else ""
