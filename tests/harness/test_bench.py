"""Limits of benchmarks: a number that must not be large, and one that must not be small."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from harness import bench
from harness.bench import Benchmark, Measurement, catalog
from harness.console import Console


@pytest.mark.parametrize(
    ("measurement", "good", "wanted"),
    [
        (Measurement("b", "n", 2.0, "s", limit=2.0), True, "limit 2"),
        (Measurement("b", "n", 2.1, "s", limit=2.0), False, "limit 2"),
        (Measurement("b", "n", 50.0, "times", at_least=50), True, "at least 50"),
        (Measurement("b", "n", 49.9, "times", at_least=50), False, "at least 50"),
        (Measurement("b", "n", 1.0, ""), True, ""),
    ],
)
def test_a_limit_is_kept_from_its_own_side(measurement: Measurement, good: bool, wanted: str) -> None:
    assert (measurement.good, measurement.wanted) == (good, wanted)


def test_a_missed_limit_is_shown_and_is_the_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(_: Path) -> list[Measurement]:
        return [
            Measurement("b", "fast", 60.0, "times", at_least=50),
            Measurement("b", "slow", 1.0, "times", at_least=50),
        ]

    monkeypatch.setattr(catalog, "BENCHMARKS", (Benchmark("b", measure),))
    shown = io.StringIO()

    status = bench.run(tmp_path, "", tmp_path / "bench.json", Console(shown, color=False))

    lines = shown.getvalue().splitlines()
    assert status == 1
    assert "(at least 50)" in lines[0] and "MISSED" not in lines[0]
    assert "MISSED" in lines[1]
    assert [one["at_least"] for one in json.loads((tmp_path / "bench.json").read_text("utf-8"))] == [50, 50]


def test_the_naive_way_the_bench_compares_with_arrives_whole_in_an_emulated_guest(tmp_path: Path) -> None:
    from harness.bench.upload import _naive
    from tests.harness.transport_lab import Lab
    from vm.deadline import Deadline

    source = tmp_path / "small"
    source.write_bytes(bytes(range(256)) * 20)
    lab = Lab(tmp_path / "lab")
    try:
        with lab.guest("winrm") as guest:
            guest.put_bytes(b"", "C:\\Downlink\\bench\\first", Deadline.after(seconds=30))
            _naive(guest, source, Deadline.after(seconds=30))
    finally:
        lab.stop()

    assert lab.path("Downlink", "bench", "naive").read_bytes() == source.read_bytes()
