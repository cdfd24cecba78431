"""Benchmarks: each measures ratios within one run, because absolute times depend on the host."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.console import Console


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of a benchmark. `limit` is the largest value that is still good, `at_least` the smallest; None when
    there is none."""

    benchmark: str
    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: float | None = None

    @property
    def good(self) -> bool:
        small_enough = self.limit is None or self.value <= self.limit
        return small_enough and (self.at_least is None or self.value >= self.at_least)

    @property
    def wanted(self) -> str:
        """Its limits as people read them, "" when there are none."""
        limits = (("limit", self.limit), ("at least", self.at_least))
        return ", ".join(f"{word} {value:g}" for word, value in limits if value is not None)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A named measurement that may take seconds; gets the root of the checkout."""

    name: str
    measure: Callable[[Path], list[Measurement]]


def run(root: Path, only: str, output: Path, console: Console) -> int:
    """Run the benchmarks whose name contains `only`, print them and write JSON; 1 when a limit is missed."""
    from harness.bench.catalog import BENCHMARKS

    measurements: list[Measurement] = []
    for benchmark in BENCHMARKS:
        if only not in benchmark.name:
            continue
        console.transient(f"{benchmark.name} ...")
        for measurement in benchmark.measure(root):
            measurements.append(measurement)
            limit = f"  ({measurement.wanted})" if measurement.wanted else ""
            word = "" if measurement.good else console.style("  MISSED", "red", "bold")
            title = f"{measurement.benchmark}: {measurement.name}"
            console.line(f"{measurement.value:12.3f} {measurement.unit:8} {title}{limit}{word}")
    output.write_text(json.dumps([asdict(one) for one in measurements], indent=2) + "\n", encoding="utf-8")
    console.line(f"written to '{output.name}'")
    return 0 if all(one.good for one in measurements) else 1
