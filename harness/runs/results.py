"""What a journal says about the tests and the machine: a fold over its events, without side effects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from harness.runs.journal import Event


class Outcome(Enum):
    """How one test ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """Its set-up or tear-down failed, or its file could not be imported."""
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    XPASSED = "xpassed"
    CRASHED = "crashed"
    """It was running when the machine or its process went down."""
    INTERRUPTED = "interrupted"
    """It was running when the user ended the run."""
    NOT_RUN = "not run"

    @property
    def good(self) -> bool:
        return self in (Outcome.PASSED, Outcome.SKIPPED, Outcome.XFAILED)


@dataclass(frozen=True, slots=True)
class TestResult:
    """One test of a run."""

    __test__ = False  # pytest would take it for a test class otherwise

    id: str
    outcome: Outcome
    seconds: float = 0.0
    text: str = ""
    """Why it failed, as pytest renders it."""
    reason: str = ""
    """Why it was skipped or expected to fail."""
    facts: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    sections: tuple[tuple[str, str], ...] = ()
    """What it printed, by stream."""
    properties: tuple[tuple[str, str], ...] = ()

    @property
    def file(self) -> str:
        return self.id.partition("::")[0]

    @property
    def name(self) -> str:
        return self.id.partition("::")[2] or self.id


@dataclass(frozen=True, slots=True)
class Results:
    """Everything a run has found out so far."""

    tests: tuple[TestResult, ...] = ()
    head: Event = field(default_factory=dict)
    """The event 'run': machine, driver, package, time."""
    windows: str = ""
    """Version of the guest's Windows, as in "10.0.26100.1742"."""
    steps: tuple[Event, ...] = ()
    crashes: tuple[Event, ...] = ()
    violations: tuple[Event, ...] = ()
    problems: tuple[str, ...] = ()
    """What went wrong outside of any test, one sentence each."""
    left_behind: tuple[str, ...] = ()
    """What could not be put back on a machine that has no checkpoint, one sentence each."""
    deselected: int = 0
    interrupted: bool = False
    ended: bool = False
    """pytest came to its own end, in every worker."""
    seconds: float = 0.0

    def count(self, *outcomes: Outcome) -> int:
        """How many tests ended in one of `outcomes`."""
        return sum(test.outcome in outcomes for test in self.tests)

    @property
    def passed(self) -> bool:
        """True only if tests ran, every one is good, pytest came to its end and the machine came through clean."""
        return (
            self.ended
            and self.count(Outcome.PASSED) > 0
            and all(test.outcome.good for test in self.tests)
            and not (self.crashes or self.violations or self.problems or self.interrupted)
        )

    @property
    def untested(self) -> tuple[str, ...]:
        """Sentences: what a run on this machine cannot show."""
        return tuple(str(sentence) for sentence in self.head.get("untested", ()))

    @property
    def in_flight(self) -> TestResult | None:
        """The test that was running when the run was cut short."""
        cut = (Outcome.CRASHED, Outcome.INTERRUPTED)
        return next((test for test in self.tests if test.outcome in cut), None)


def explanation(test: TestResult) -> str:
    """Why a test is not good: what pytest said, or what is known of one that pytest could say nothing about."""
    if test.text.strip():
        return test.text
    if test.outcome is Outcome.CRASHED:
        return "it was running when the machine or its process went down"
    if test.outcome is Outcome.INTERRUPTED:
        return "it was running when the run was interrupted"
    return test.reason


def collect(events: Iterable[Event]) -> Results:
    """The results of a journal, complete or not: a test that began and never ended crashed or was interrupted."""
    tests: dict[str, TestResult] = {}
    running: list[str] = []
    lists: dict[str, list[Any]] = {"step": [], "crash": [], "violation": [], "problem": [], "left-behind": []}
    lost: list[str] = []
    head: Event = {}
    windows = ""
    deselected, interrupted, ends, seconds = 0, False, 0, 0.0
    for event in events:
        match event["event"]:
            case "run":
                head = event
            case "guest":
                windows = event["windows"]
            case "collected":
                for test in event["tests"]:
                    tests[test["id"]] = TestResult(
                        test["id"], Outcome.NOT_RUN, facts=tuple(test["facts"]), marks=tuple(test["marks"])
                    )
            case "deselected":
                deselected += event["count"]
            case "collect-error":
                tests[event["id"]] = TestResult(event["id"], Outcome.ERROR, text=event["text"])
            case "started":
                running.append(event["id"])
            case "finished":
                running = [id for id in running if id != event["id"]]
                tests[event["id"]] = _finished(tests.get(event["id"]), event)
            case "internal-error":
                lists["problem"].append(f"pytest itself failed: {event['text']}")
            case "step" | "crash" | "violation" as kind:
                lists[kind].append(event)
            case "problem" | "left-behind" as kind:
                lists[kind].append(event["text"])
            case "guest-lost":
                lost.append(event["text"])
            case "restarted":
                lost.append("the guest restarted during the run, which means a bugcheck")
            case "interrupted":
                interrupted = True
            case "end":
                ends += 1
            case "verdict":
                seconds = event["seconds"]
    for id in running:
        outcome = Outcome.INTERRUPTED if interrupted and not lists["crash"] else Outcome.CRASHED
        tests[id] = replace(tests.get(id) or TestResult(id, outcome), outcome=outcome)
    return Results(
        tests=tuple(tests.values()),
        head=head,
        windows=windows,
        steps=tuple(lists["step"]),
        crashes=tuple(lists["crash"]),
        violations=tuple(lists["violation"]),
        # A known bugcheck, or the user himself, says it better than the connection that broke with it.
        problems=(*lists["problem"], *([] if lists["crash"] or interrupted else lost)),
        left_behind=tuple(lists["left-behind"]),
        deselected=deselected,
        interrupted=interrupted,
        ended=ends >= int(head.get("workers", 1)),
        seconds=seconds,
    )


def _finished(known: TestResult | None, event: Event) -> TestResult:
    return replace(
        known or TestResult(event["id"], Outcome.NOT_RUN),
        outcome=Outcome(event["outcome"]),
        seconds=event["seconds"],
        text=event["text"],
        reason=event["reason"],
        sections=tuple(event["sections"].items()),
        properties=tuple((name, value) for name, value in event["properties"]),
    )
