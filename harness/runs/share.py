"""How several workers share a suite: whole files, the longest first, each to whoever has least to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.runs import directory
from harness.runs.journal import read
from vm.errors import ConfigurationError, DownlinkError


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker runs; no name and no files for the only worker, who runs everything."""

    worker: str = ""
    files: tuple[str, ...] = ()


def shares(suites: Path, count: int, runs: Path) -> list[tuple[str, ...]]:
    """The suite's files in `count` groups of about the same duration.

    Args:
        suites: directory of the suite.
        count: how many groups.
        runs: where earlier runs are; the latest one tells how long each file took.

    Raises:
        ConfigurationError: there are fewer files than groups.
    """
    sizes = {path.relative_to(suites).as_posix(): path.stat().st_size for path in suites.rglob("test_*.py")}
    if len(sizes) < count:
        raise ConfigurationError(
            f"{count} workers cannot share {len(sizes)} test files", hint=f"--workers {max(1, len(sizes))}"
        )
    took = _durations(runs)
    known = [name for name in sizes if name in took]
    # A file that has never run counts as much as its size, at the rate of those that have.
    rate = sum(took[name] for name in known) / sum(sizes[name] for name in known) if known else 1.0
    weights = {name: took.get(name, size * rate) for name, size in sizes.items()}
    groups: list[list[str]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        least = loads.index(min(loads))
        groups[least].append(name)
        loads[least] += weights[name]
    return [tuple(sorted(group)) for group in groups]


def _durations(runs: Path) -> dict[str, float]:
    """Seconds by file of the latest run, as far as there is one."""
    took: dict[str, float] = {}
    try:
        for event in read(directory.latest(runs).journal):
            if event["event"] == "finished":
                file = str(event["id"]).partition("::")[0]
                took[file] = took.get(file, 0.0) + float(event["seconds"])
    except (DownlinkError, OSError, ValueError, KeyError):
        return {}
    return took
