"""How several workers share a suite."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.runs.share import shares
from vm.errors import ConfigurationError


def suite(directory: Path, sizes: dict[str, int]) -> Path:
    for name, size in sizes.items():
        (directory / name).write_text("#" * size, encoding="utf-8")
    (directory / "conftest.py").write_text("", encoding="utf-8")
    return directory


def earlier_run(runs: Path, seconds: dict[str, float]) -> None:
    run = runs / "20260101T000000Z-lab"
    run.mkdir(parents=True)
    events = [{"event": "finished", "id": f"{file}::test", "seconds": took} for file, took in seconds.items()]
    (run / "journal.jsonl").write_text(
        "".join(json.dumps(event) + "\n" for event in events), encoding="utf-8"
    )
    (runs / "latest").symlink_to(run.name, target_is_directory=True)


def test_every_file_is_run_by_exactly_one_worker(tmp_path: Path) -> None:
    names = {f"test_{number}.py": number + 1 for number in range(7)}
    (tmp_path / "s").mkdir()

    found = shares(suite(tmp_path / "s", names), 3, tmp_path / "runs")

    assert len(found) == 3 and all(found)
    assert sorted(name for group in found for name in group) == sorted(names)


def test_the_latest_run_tells_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    place = suite(tmp_path / "s", {"test_a.py": 10, "test_b.py": 10, "test_c.py": 10, "test_storm.py": 1})
    earlier_run(
        tmp_path / "runs", {"test_a.py": 1.0, "test_b.py": 1.0, "test_c.py": 1.0, "test_storm.py": 9.0}
    )

    assert shares(place, 2, tmp_path / "runs") == [
        ("test_storm.py",),
        ("test_a.py", "test_b.py", "test_c.py"),
    ]


def test_a_file_that_has_never_run_counts_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    place = suite(tmp_path / "s", {"test_new.py": 1000, "test_a.py": 10, "test_b.py": 10})
    earlier_run(tmp_path / "runs", {"test_a.py": 1.0, "test_b.py": 1.0})

    assert shares(place, 2, tmp_path / "runs") == [("test_new.py",), ("test_a.py", "test_b.py")]


def test_more_workers_than_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="3 workers cannot share 1 test files") as raised:
        shares(suite(tmp_path, {"test_a.py": 1}), 3, tmp_path / "runs")
    assert raised.value.hint == "--workers 1"
