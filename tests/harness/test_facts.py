"""Facts against machines: what a run leaves behind, and what a comparison says."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from harness import facts
from harness.console import Console
from harness.runs.results import Outcome, Results, TestResult
from vm.errors import DownlinkError


def results(machine: str, *tests: TestResult, kind: str = "emulated") -> Results:
    return Results(tests=tests, head={"machine": machine, "kind": kind}, windows="10.0.26100.1742")


def asserted(fact: str, outcome: Outcome = Outcome.PASSED, observed: str = "") -> TestResult:
    properties = ((f"observed:{fact}", observed),) if observed else ()
    return TestResult(f"test_a.py::{fact}-{outcome.value}", outcome, facts=(fact,), properties=properties)


def shown(runs: Path, *further: Path, everything: bool = False, as_json: bool = False) -> str:
    out = io.StringIO()
    facts.show(
        runs, further, Console(out, io.StringIO(), color=False), everything=everything, as_json=as_json
    )
    return out.getvalue()


def test_one_machine_shows_what_was_observed_of_doubtful_facts(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("U3", observed="0x80070032"), asserted("C8")), "run-1", tmp_path)

    text = shown(tmp_path)

    assert text.splitlines()[0].startswith("fact  lab (emulated, 10.0.26100.1742)")
    assert "U3    0x80070032" in text
    assert "C8" not in text
    assert "2 facts asserted on one machine, 1 of them doubtful" in text
    assert "C8    1 passed" in shown(tmp_path, everything=True)


def test_machines_that_disagree_are_told(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("U3", observed="0x80070032"), asserted("C8")), "run-1", tmp_path)
    facts.remember(
        results("win", asserted("U3", observed="0x80070001"), asserted("C8"), kind="hyperv"),
        "run-2",
        tmp_path,
    )

    text = shown(tmp_path)

    assert [line.split() for line in text.splitlines() if line.startswith("U3")] == [
        ["U3", "0x80070032", "0x80070001", "differs"]
    ]
    assert "2 facts asserted on 2 machines, 1 of them doubtful; 1 differ" in text


def test_a_fact_that_fails_on_one_machine_differs_although_nothing_was_observed(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("C8"), asserted("C8", Outcome.SKIPPED)), "run-1", tmp_path)
    facts.remember(results("win", asserted("C8", Outcome.FAILED)), "run-2", tmp_path)

    assert "differs" in shown(tmp_path)


def test_how_often_a_fact_is_asserted_makes_no_difference(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("C8")), "run-1", tmp_path)
    facts.remember(results("win", asserted("C8"), asserted("C8")), "run-2", tmp_path)

    assert "differs" not in shown(tmp_path)


def test_a_later_run_of_a_part_keeps_what_earlier_ones_found(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("U3", observed="0x1"), asserted("C8")), "run-1", tmp_path)
    facts.remember(
        results("lab", asserted("U3", observed="0x2"), asserted("C8", Outcome.NOT_RUN)), "run-2", tmp_path
    )

    known = facts.load(tmp_path / "facts" / "lab.json").facts
    assert known["U3"].observed == ("0x2",) and known["U3"].run == "run-2"
    assert known["C8"].outcomes == {"passed": 1} and known["C8"].run == "run-1"


def test_facts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    facts.remember(results("lab", *(asserted(name) for name in ("C10", "C2", "A1", "U5"))), "run-1", tmp_path)

    rows = [line.split()[0] for line in shown(tmp_path, everything=True).splitlines()[1:5]]
    assert rows == ["A1", "C2", "C10", "U5"]


def test_files_of_other_hosts_are_compared_too(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("U3", observed="0x1")), "run-1", tmp_path / "here")
    facts.remember(results("far", asserted("U3", observed="0x2")), "run-1", tmp_path / "there")

    assert "differs" in shown(tmp_path / "here", tmp_path / "there" / "facts" / "far.json")


def test_as_json_each_machine_is_whole(tmp_path: Path) -> None:
    facts.remember(results("lab", asserted("U3", observed="0x1")), "run-1", tmp_path)

    (machine,) = json.loads(shown(tmp_path, as_json=True))
    assert machine["machine"] == "lab" and machine["facts"]["U3"]["observed"] == ["0x1"]


def test_without_a_run_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(DownlinkError, match="no run has asserted a fact yet"):
        shown(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 9}', '{"format": 1, "machine": "x"}'])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(DownlinkError, match=r"bad\.json' does not hold the facts of a machine"):
        shown(tmp_path, tmp_path / "bad.json")


def test_a_run_that_asserted_nothing_leaves_nothing(tmp_path: Path) -> None:
    facts.remember(results("lab", TestResult("a", Outcome.PASSED)), "run-1", tmp_path)

    assert not (tmp_path / "facts").exists()
