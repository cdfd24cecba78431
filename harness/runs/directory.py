"""The directory of one run: where its files are, how the latest one is found, and which old ones go."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vm.errors import ConfigurationError, DownlinkError

LATEST = "latest"
_NAME = re.compile(r"^(\d{8}T\d{6}Z)(?:-(\d+))?-[\w.-]+$")
"""Only directories with such a name are ever removed."""


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """`runs/<utc time>-<machine>/` and the files in it."""

    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    @property
    def junit(self) -> Path:
        return self.path / "junit.xml"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def guest(self) -> Path:
        """What was collected from the guest."""
        return self.path / "guest"

    @property
    def output(self) -> Path:
        """What pytest and the tests printed in the guest."""
        return self.path / "guest-output.txt"


def create(runs: Path, machine: str, *, keep: int, now: datetime | None = None) -> RunDirectory:
    """Make the directory of a new run, let `latest` point to it and remove the oldest beyond `keep`.

    Raises:
        ConfigurationError: the directory cannot be written.
    """
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    try:
        runs.mkdir(parents=True, exist_ok=True)
        path = _make(runs, stamp, machine)
        _point(runs, path)
    except OSError as error:
        raise ConfigurationError(f"the run directory in '{runs}' cannot be made: {error.strerror}") from error
    for _, _, old in _runs(runs)[:-keep]:
        if old != path:
            shutil.rmtree(old, ignore_errors=True)
    return RunDirectory(path)


def latest(runs: Path) -> RunDirectory:
    """The run that `latest` points to; raises `DownlinkError` when there is none."""
    pointer = runs / LATEST
    target = runs / (pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else LATEST)
    if not target.is_dir():
        raise DownlinkError("there is no run yet", hint="make one: ./inv test")
    return RunDirectory(target.resolve())


def _make(runs: Path, stamp: str, machine: str) -> Path:
    """Two runs may begin within a second: the later one gets a number, higher than any that was given."""
    number = max((taken for began, taken, _ in _runs(runs) if began == stamp), default=0)
    while True:
        number += 1
        path = runs / (f"{stamp}-{machine}" if number == 1 else f"{stamp}-{number}-{machine}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _point(runs: Path, path: Path) -> None:
    """A symbolic link; a text file with the name where links need a privilege (Windows)."""
    pointer, draft = runs / LATEST, runs / f".{LATEST}-{os.getpid()}"
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(path.name, target_is_directory=True)
    except (OSError, NotImplementedError):
        draft.write_text(path.name + "\n", encoding="utf-8")
    try:
        draft.replace(pointer)
    except OSError:
        # Windows does not rename over a link to a directory.
        pointer.unlink(missing_ok=True)
        draft.replace(pointer)


def _runs(runs: Path) -> list[tuple[str, int, Path]]:
    """All run directories, oldest first: when each began, its number within that second, and where it is."""
    found: list[tuple[str, int, Path]] = []
    for path in runs.iterdir():
        match = _NAME.match(path.name)
        if match and path.is_dir() and not path.is_symlink():
            found.append((match[1], int(match[2] or 1), path))
    return sorted(found)
