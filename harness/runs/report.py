"""`report.html`: one file with everything that a reader of a run needs, without scripts or links to elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from harness.runs.journal import Event
from harness.runs.results import Outcome, Results, TestResult, explanation

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; --good: #1a7f37; --bad: #cf222e; --skip: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --dim: #999; --good: #4ac26b; --bad: #ff7b72; --skip: #d4a72c; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
header { border-left: .4rem solid var(--good); padding-left: 1rem; } header.bad { border-color: var(--bad); }
header p { margin: .2rem 0; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
details td:first-child { width: 7rem; } .number { text-align: right; white-space: nowrap; width: 5rem; }
pre { background: #8881; padding: .6rem .8rem; font-size: 13px; margin: .4rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.passed, .xfailed { color: var(--good); } .failed, .error, .crashed, .xpassed, .interrupted { color: var(--bad); }
.skipped, .notrun { color: var(--skip); } .dim { color: var(--dim); }
details { margin: .3rem 0; } details > summary { cursor: pointer; } details > table { margin: .2rem 0 1rem; }
"""

FAILURES_OPEN = 10
"""Most failures whose text is unfolded from the start."""


def write(results: Results, path: Path) -> None:
    """Write the report of `results` to `path`."""
    head = results.head
    title = f"{head.get('driver', 'driver')} on {head.get('machine', 'machine')}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(title)}</title><style>{_STYLE}</style>",
        _header(results, title),
        _machine(results),
        _problems(results.problems),
        _failures(results.tests),
        _tests(results.tests),
        _facts(results.tests),
        _steps(results.steps),
        "</html>",
    ]
    draft = path.with_suffix(".part")
    draft.write_text("\n".join(part for part in parts if part), encoding="utf-8")
    draft.replace(path)


def _header(results: Results, title: str) -> str:
    verdict = "passed" if results.passed else "interrupted" if results.interrupted else "failed"
    tests = _counts(results.tests) or "no tests"
    if results.deselected:
        tests += f", {results.deselected} deselected"
    head = results.head
    facts = [
        f"{name}: {head[name]}"
        for name in ("select", "toolchain", "configuration", "package")
        if head.get(name)
    ]
    if results.windows:
        facts.insert(0, f"Windows {results.windows}")
    if "time" in head:
        facts.insert(0, f"{str(head['time'])[:19].replace('T', ' ')} UTC")
    return (
        f"<header class='{'' if results.passed else 'bad'}'><h1>{_text(title)}: "
        f"<span class={verdict}>{verdict}</span></h1>"
        f"<p>{tests} in {results.seconds:.1f} s</p><p class=dim>{_text(' · '.join(facts))}</p></header>"
    )


def _machine(results: Results) -> str:
    rows = []
    for crash in results.crashes:
        parameters = ", ".join(f"0x{parameter:X}" for parameter in crash["parameters"])
        during = f" during {results.in_flight.id}" if results.in_flight else ""
        text = f"bugcheck 0x{crash['code']:X} {crash['name']} ({parameters}){during}"
        rows.append(_condition(text, crash["rule"] or "", crash))
    for violation in results.violations:
        rows.append(
            _condition(
                f"{violation['rule']} by {violation['driver']}, {violation.get('count', 1)} times",
                violation["message"],
                violation,
            )
        )
    for title, sentences in (("Not tested", results.untested), ("Left behind", results.left_behind)):
        rows += [f"<p><b>{title}:</b> {_text(sentence)}</p>" for sentence in sentences]
    # A machine that went away could not be asked, and so did not come through clean.
    clean = not (results.problems or results.crashes or results.violations)
    if clean:
        rows.insert(0, "<p class=passed>It came through clean.</p>")
    return f"<h2>Machine</h2>{''.join(rows)}" if rows else ""


def _problems(problems: Iterable[str]) -> str:
    """What went wrong outside of any test; it may have several lines."""
    parts = "".join(f"<pre class=error>{_text(problem)}</pre>" for problem in problems)
    return f"<h2>Problems</h2>{parts}" if parts else ""


def _condition(title: str, text: str, event: Event) -> str:
    stack = "\n".join(f"at {frame}" for frame in event["stack"])
    return f"<p class=error><b>{_text(title)}</b><br>{_text(text)}</p>" + (
        f"<pre>{_text(stack)}</pre>" if stack else ""
    )


def _failures(tests: Iterable[TestResult]) -> str:
    bad = [test for test in tests if not test.outcome.good and test.outcome is not Outcome.NOT_RUN]
    parts = []
    for number, test in enumerate(bad):
        printed = "".join(
            f"<p class=dim>{_text(name)}</p><pre>{_text(text)}</pre>" for name, text in test.sections
        )
        parts.append(
            f"<details{' open' if number < FAILURES_OPEN else ''}>"
            f"<summary><span class={_class(test)}>{test.outcome.value}</span> {_text(test.id)}</summary>"
            f"<pre>{_text(explanation(test))}</pre>{printed}</details>"
        )
    return f"<h2>Failures ({len(bad)})</h2>{''.join(parts)}" if bad else ""


def _tests(tests: Iterable[TestResult]) -> str:
    """A table per file, unfolded where something is not good."""
    by_file: dict[str, list[TestResult]] = {}
    for test in tests:
        by_file.setdefault(test.file, []).append(test)
    parts = []
    for file, found in by_file.items():
        rows = "".join(
            f"<tr><td class={_class(test)}>{test.outcome.value}<td>{_text(test.name)}"
            f"{f'<br><span class=dim>{_text(test.reason)}</span>' if test.reason else ''}"
            f"<td class=dim>{_text(' '.join(test.facts))}<td class=number>{_duration(test.seconds)}"
            for test in found
        )
        good = all(test.outcome.good for test in found)
        seconds = sum(test.seconds for test in found)
        parts.append(
            f"<details{'' if good else ' open'}><summary><b>{_text(file)}</b>: {_counts(found)}"
            f" <span class=dim>in {_duration(seconds)}</span></summary><table>{rows}</table></details>"
        )
    return f"<h2>Tests</h2>{''.join(parts)}" if parts else ""


def _facts(tests: Iterable[TestResult]) -> str:
    """Facts against tests: what was asserted about Windows in this run, and how it went."""
    by_fact: dict[str, list[TestResult]] = {}
    for test in tests:
        for fact in test.facts:
            by_fact.setdefault(fact, []).append(test)
    rows = "".join(
        f"<tr><td>{_text(fact)}<td>"
        + "<br>".join(
            f"<span class={_class(test)}>{test.outcome.value}</span> {_text(test.id)}" for test in found
        )
        for fact, found in sorted(by_fact.items(), key=lambda item: _fact_order(item[0]))
    )
    return f"<h2>Facts</h2><table><tr><th>Fact<th>Asserted by{rows}</table>" if rows else ""


def _steps(steps: Iterable[Event]) -> str:
    rows = "".join(
        f"<tr><td>{_text(step['name'])}<td>{_text(step['detail'])}<td class=number>{_duration(step['seconds'])}"
        for step in steps
    )
    return f"<h2>Steps</h2><table>{rows}</table>" if rows else ""


def _fact_order(fact: str) -> tuple[str, int]:
    letters = fact.rstrip("0123456789")
    number = fact[len(letters) :]
    return letters, int(number) if number else 0


def _counts(tests: Iterable[TestResult]) -> str:
    """How many ended in which way, each in its colour."""
    outcomes = [test.outcome for test in tests]
    return ", ".join(
        f"<span class={outcome.value.replace(' ', '')}>{count} {outcome.value}</span>"
        for outcome in Outcome
        if (count := outcomes.count(outcome))
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _class(test: TestResult) -> str:
    return test.outcome.value.replace(" ", "")


def _text(value: object) -> str:
    return escape(str(value))
