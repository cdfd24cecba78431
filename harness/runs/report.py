"""`report.html`: one file with everything that a reader of a run needs, without scripts or links to elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from harness.runs.journal import Event
from harness.runs.results import Outcome, Results, TestResult

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #888; --good: #1a7f37; --bad: #cf222e; --skip: #9a6700; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
header { border-left: .4rem solid var(--good); padding-left: 1rem; } header.bad { border-color: var(--bad); }
header p { margin: .2rem 0; color: var(--dim); }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid var(--line); vertical-align: top; } td.number { text-align: right; white-space: nowrap; }
pre { background: #8881; padding: .6rem .8rem; overflow-x: auto; font-size: 13px; margin: .4rem 0; }
.passed, .xfailed { color: var(--good); } .failed, .error, .crashed, .xpassed, .interrupted { color: var(--bad); }
.skipped, .notrun { color: var(--skip); } .dim { color: var(--dim); }
details > summary { cursor: pointer; }
"""


def write(results: Results, path: Path) -> None:
    """Write the report of `results` to `path`."""
    head = results.head
    title = f"{head.get('driver', 'driver')} on {head.get('machine', 'machine')}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(title)}</title><style>{_STYLE}</style>",
        _header(results, title),
        _machine(results),
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
    counts = ", ".join(f"{count} {outcome.value}" for outcome in Outcome if (count := results.count(outcome)))
    verdict = "passed" if results.passed else "interrupted" if results.interrupted else "failed"
    facts = [
        f"{name}: {results.head[name]}" for name in ("time", "toolchain", "package") if name in results.head
    ]
    return (
        f"<header class='{'' if results.passed else 'bad'}'><h1>{_text(title)}: {verdict}</h1>"
        f"<p>{_text(counts or 'no tests')} in {results.seconds:.1f} s</p><p>{_text(' · '.join(facts))}</p></header>"
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
    rows += [f"<p class=error>{_text(problem)}</p>" for problem in results.problems]
    return "<h2>Machine</h2>" + ("".join(rows) or "<p class=passed>It came through clean.</p>")


def _condition(title: str, text: str, event: Event) -> str:
    stack = "\n".join(f"at {frame}" for frame in event["stack"])
    return f"<p class=error><b>{_text(title)}</b><br>{_text(text)}</p>" + (
        f"<pre>{_text(stack)}</pre>" if stack else ""
    )


def _failures(tests: Iterable[TestResult]) -> str:
    parts = []
    for test in tests:
        if test.outcome.good or test.outcome is Outcome.NOT_RUN:
            continue
        printed = "".join(
            f"<p class=dim>{_text(name)}</p><pre>{_text(text)}</pre>" for name, text in test.sections
        )
        parts.append(
            f"<details open><summary class={_class(test)}>{test.outcome.value}: {_text(test.id)}</summary>"
            f"<pre>{_text(test.text)}</pre>{printed}</details>"
        )
    return "<h2>Failures</h2>" + "".join(parts) if parts else ""


def _tests(tests: Iterable[TestResult]) -> str:
    rows = "".join(
        f"<tr><td class={_class(test)}>{test.outcome.value}<td>{_text(test.id)}"
        f"{f'<br><span class=dim>{_text(test.reason)}</span>' if test.reason else ''}"
        f"<td>{_text(' '.join(test.facts))}<td class=number>{test.seconds:.2f} s"
        for test in tests
    )
    return f"<h2>Tests</h2><table><tr><th>Outcome<th>Test<th>Facts<th>Time{rows}</table>" if rows else ""


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
        f"<tr><td>{_text(step['name'])}<td>{_text(step['detail'])}<td class=number>{step['seconds']:.2f} s"
        for step in steps
    )
    return f"<h2>Steps</h2><table>{rows}</table>" if rows else ""


def _fact_order(fact: str) -> tuple[str, int]:
    letters = fact.rstrip("0123456789")
    number = fact[len(letters) :]
    return letters, int(number) if number else 0


def _class(test: TestResult) -> str:
    return test.outcome.value.replace(" ", "")


def _text(value: object) -> str:
    return escape(str(value))
