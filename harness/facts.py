"""Facts about Windows against machines: what was asserted where, what was observed, and where machines disagree.

Tests name the facts that they assert (`@pytest.mark.fact`) and note what a doubtful one turned out to be (the fixture
`observe`). At its end a run adds that to `runs/facts/<machine>.json`, which outlives the run's own directory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.console import Console
from harness.runs.results import Results
from vm.errors import DownlinkError

DIRECTORY = "facts"
FORMAT = 1

OBSERVED = "observed:"
"""What the name of a property begins with that says what a doubtful fact turned out to be."""

_FACT = re.compile(r"^([A-Z]+)(\d*)")


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact on one machine: how the tests ended that assert it, what was observed, and in which run."""

    outcomes: Mapping[str, int] = field(default_factory=dict)
    observed: tuple[str, ...] = ()
    run: str = ""

    @property
    def text(self) -> str:
        """For a cell of the table."""
        if self.observed:
            return ", ".join(self.observed)
        return ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())

    @property
    def verdict(self) -> str:
        """What machines are compared by: the observed values, or whether all tests passed."""
        if self.observed:
            return self.text
        return "passed" if set(self.outcomes) == {"passed"} else self.text


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What is known of one machine. `version` is that of its Windows, "" if no run has told it."""

    machine: str
    kind: str
    version: str
    facts: Mapping[str, Fact]

    @property
    def title(self) -> str:
        return f"{self.machine} ({self.kind}{', ' if self.version else ''}{self.version})"


@dataclass(frozen=True, slots=True)
class Row:
    """One fact and what each machine says of it; None where it was not asserted."""

    fact: str
    found: tuple[Fact | None, ...]

    @property
    def differs(self) -> bool:
        """True when two machines that assert it do not say the same."""
        return len({found.verdict for found in self.found if found is not None}) > 1

    @property
    def doubtful(self) -> bool:
        return any(found is not None and found.observed for found in self.found)


def remember(results: Results, run: str, runs: Path) -> None:
    """Add what a run found out to what is known of its machine; facts that it did not assert stay as they are."""
    found = of_results(results, run)
    if not found.facts:
        return
    path = runs / DIRECTORY / f"{found.machine}.json"
    known: Mapping[str, Fact] = {}
    with suppress(DownlinkError):  # there is none yet, or it is of no use any more: this run makes it anew
        known = load(path).facts
    merged = MachineFacts(found.machine, found.kind, found.version, {**known, **found.facts})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps({"format": FORMAT, **asdict(merged)}, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def of_results(results: Results, run: str) -> MachineFacts:
    """The facts of one run."""
    outcomes: dict[str, dict[str, int]] = {}
    observed: dict[str, list[str]] = {}
    for test in results.tests:
        for fact in test.facts:
            counts = outcomes.setdefault(fact, {})
            counts[test.outcome.value] = counts.get(test.outcome.value, 0) + 1
        for name, value in test.properties:
            if name.startswith(OBSERVED):
                values = observed.setdefault(name.removeprefix(OBSERVED), [])
                if value not in values:
                    values.append(value)
    facts = {
        fact: Fact(outcomes.get(fact, {}), tuple(sorted(observed.get(fact, ()))), run)
        for fact in {*outcomes, *observed}
        # A test that did not run has asserted nothing.
        if set(outcomes.get(fact, {})) != {"not run"} or fact in observed
    }
    head = results.head
    return MachineFacts(
        str(head.get("machine", "?")),
        str(head.get("kind", "?")),
        results.windows,
        dict(sorted(facts.items())),
    )


def load(path: Path) -> MachineFacts:
    """What such a file says.

    Raises:
        DownlinkError: it cannot be read or is none.
    """
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"its format is {raw['format']}")
        facts = {
            str(name): Fact(dict(fact["outcomes"]), tuple(fact["observed"]), str(fact["run"]))
            for name, fact in raw["facts"].items()
        }
        return MachineFacts(str(raw["machine"]), str(raw["kind"]), str(raw["version"]), facts)
    except OSError as error:
        raise DownlinkError(f"'{path}' cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DownlinkError(
            f"'{path}' does not hold the facts of a machine: {error}",
            hint="such files are made by ./inv test, in runs/facts",
        ) from error


def compare(machines: Sequence[MachineFacts]) -> list[Row]:
    """All facts that any of the machines knows, in the order of their names."""
    names = {fact for machine in machines for fact in machine.facts}
    return [
        Row(name, tuple(machine.facts.get(name) for machine in machines))
        for name in sorted(names, key=_order)
    ]


def show(runs: Path, further: Iterable[Path], console: Console, *, everything: bool, as_json: bool) -> None:
    """Print what the machines say: doubtful facts and differences, or everything.

    Args:
        runs: directory of the runs.
        further: files of other hosts, as a pipeline keeps them with its run.

    Raises:
        DownlinkError: there is nothing to compare.
    """
    paths = [*sorted((runs / DIRECTORY).glob("*.json")), *further]
    if not paths:
        raise DownlinkError("no run has asserted a fact yet", hint="./inv test")
    machines = [load(path) for path in paths]
    rows = compare(machines)
    if as_json:
        console.line(json.dumps([asdict(machine) for machine in machines], indent=2))
        return
    shown = [row for row in rows if everything or row.doubtful or row.differs]
    table = [("fact", *(machine.title for machine in machines), "")]
    for row in shown:
        cells = (found.text if found else "-" for found in row.found)
        table.append((row.fact, *cells, "differs" if row.differs else ""))
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for number, line in enumerate(table):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        style = "bold" if number == 0 else "red" if line[-1] else ""
        console.line(console.style(text, style) if style else text)
    differing = sum(row.differs for row in rows)
    doubtful = sum(row.doubtful for row in rows)
    hosts = "one machine" if len(machines) == 1 else f"{len(machines)} machines"
    console.line()
    console.line(
        f"{len(rows)} facts asserted on {hosts}, {doubtful} of them doubtful"
        + (f"; {differing} differ" if len(machines) > 1 else "; a second machine is needed to compare")
    )


def _order(fact: str) -> tuple[str, int, str]:
    match = _FACT.match(fact)
    return (match[1], int(match[2] or 0), fact) if match else (fact, 0, fact)
