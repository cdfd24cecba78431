"""What console and report show of runs with several workers, of machines without a checkpoint, and of resumed runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from harness.console import Console
from harness.runs import report
from harness.runs.journal import Journal, read
from harness.runs.results import Outcome, Results, TestResult, collect
from harness.runs.view import RunView


def collected(*tests: str) -> dict[str, Any]:
    return {"event": "collected", "tests": [{"id": test, "facts": [], "marks": []} for test in tests]}


def started(test: str) -> dict[str, Any]:
    return {"event": "started", "id": test}


def finished(test: str, outcome: str = "passed") -> dict[str, Any]:
    rest = {"text": "", "reason": "", "sections": {}, "properties": []}
    return {"event": "finished", "id": test, "outcome": outcome, "seconds": 0.1, **rest}


def shown(view: RunView, out: io.StringIO) -> list[str]:
    return [line.partition(" s  ")[2] or line for line in out.getvalue().splitlines()]


def test_files_of_two_workers_are_counted_each_when_its_last_test_ends() -> None:
    out = io.StringIO()
    view = RunView(Console(out, color=False))
    for event in (
        collected("a.py::one", "a.py::two"),
        collected("b.py::one"),
        started("a.py::one"),
        started("b.py::one"),
        finished("a.py::one"),
        started("a.py::two"),
        finished("b.py::one", "failed"),
        finished("a.py::two"),
    ):
        view.event(event)

    lines = shown(view, out)
    assert lines[:2] == ["running 2 tests in the guest", "running 1 tests in the guest"]
    assert lines[-2:] == ["b.py: 1 failed", "a.py: 2 passed"]


def test_a_run_with_workers_has_ended_when_all_have() -> None:
    events = [{"event": "run", "workers": 2}, collected("a.py::t"), started("a.py::t"), finished("a.py::t")]

    assert not collect([*events, {"event": "end"}]).passed
    assert collect([*events, {"event": "end"}, {"event": "end"}]).passed


def test_a_resumed_run_goes_on_counting_where_it_was() -> None:
    out = io.StringIO()
    view = RunView(Console(out, color=False))
    for event in (collected("a.py::one", "a.py::two"), started("a.py::one"), finished("a.py::one")):
        view.recall(event)
    assert out.getvalue() == ""
    view.event(started("a.py::two"))
    view.event(finished("a.py::two"))

    assert shown(view, out) == ["a.py: 1 passed"]


def test_a_machine_without_a_checkpoint_says_what_was_not_tested_and_what_stays(tmp_path: Path) -> None:
    results = Results(
        (TestResult("a.py::t", Outcome.PASSED),),
        head={"machine": "far", "untested": ["no <checkpoint>"]},
        left_behind=("the certificate stays",),
        ended=True,
    )
    out = io.StringIO()

    RunView(Console(out, color=False)).summary(results, Path("runs/x"))
    report.write(results, tmp_path / "report.html")

    assert results.passed
    assert (
        "not tested: no <checkpoint>\nleft behind: the certificate stays\npassed: 1 passed" in out.getvalue()
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>Not tested:</b> no &lt;checkpoint&gt;" in page
    assert "<b>Left behind:</b> the certificate stays" in page
    assert "It came through clean." in page


def test_a_machine_with_a_problem_did_not_come_through_clean(tmp_path: Path) -> None:
    report.write(Results(problems=("it went away",), head={"untested": ["x"]}), tmp_path / "report.html")

    assert "It came through clean." not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_journal_that_was_torn_is_continued_on_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"event": "b", "te', encoding="utf-8")

    journal = Journal(path)
    journal.write("c")
    journal.close()

    assert [event["event"] for event in read(path)] == ["a", "c"]
