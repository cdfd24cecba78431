"""What is stale: a record of every step of a build, with its inputs, so that only what changed is done again.

A step is up to date when its key (command and toolchain) is the same, its output is the file that the step wrote, and
every input has the content it had. Contents are hashed only when size or time of a file differ from the record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm.deadline import Deadline

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Identity of a file's content: size in bytes, modification time in ns, SHA-256 in hex."""

    size: int
    modified_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What is known of a step that was done."""

    key: str
    inputs: Mapping[str, FileStamp]
    output: FileStamp


@dataclass(slots=True)
class BuildRecord:
    """The steps of one build directory; `load` it, ask, `store` what was done, `save` it."""

    path: Path
    steps: dict[str, StepRecord]
    _stats: dict[str, tuple[int, int] | None] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> BuildRecord:
        """Read a record; a missing or unreadable one is an empty one, which makes everything stale."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format"] != _FORMAT:
                return cls(path, {})
            return cls(path, {name: _step(value) for name, value in raw["steps"].items()})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, {})

    def save(self) -> None:
        """Write the record, in one step, so that a reader never sees half of it."""
        raw = {
            "format": _FORMAT,
            "steps": {
                name: {
                    "key": step.key,
                    "inputs": {path: _stamp_list(stamp) for path, stamp in step.inputs.items()},
                    "output": _stamp_list(step.output),
                }
                for name, step in self.steps.items()
            },
        }
        write_atomically(self.path, json.dumps(raw, indent=0).encode())

    def is_current(self, name: str, key: str, output: Path) -> bool:
        """Whether the step has been done with this key, with these inputs, and its output is still there."""
        step = self.steps.get(name)
        if step is None or step.key != key or not self._same(output, step.output):
            return False
        return all(self._same(Path(path), stamp) for path, stamp in step.inputs.items())

    def store(self, name: str, key: str, inputs: Iterable[Path], output: Path) -> None:
        """Record that the step was done just now."""
        self._stats.pop(str(output), None)
        self.steps[name] = StepRecord(key, {str(path): stamp(path) for path in inputs}, stamp(output))

    def _same(self, path: Path, recorded: FileStamp) -> bool:
        name = str(path)
        if name not in self._stats:
            self._stats[name] = _stat(path)
        seen = self._stats[name]
        if seen is None or seen[0] != recorded.size:
            return False
        return seen[1] == recorded.modified_ns or stamp(path).sha256 == recorded.sha256


def stamp(path: Path) -> FileStamp:
    """Identity of a file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    return FileStamp(status.st_size, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())


def step_key(*parts: object) -> str:
    """A key for a step, from everything that its output depends on besides files."""
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def parse_dependencies(text: str) -> list[Path]:
    """Files named by a dependency file of the compiler (`-MD`), in make's syntax, without the target.

    A blank inside a name is written `\\ `, a dollar sign `$$`, a number sign `\\#`; lines are continued with a
    backslash. A drive letter's colon is no separator: the target ends at a colon followed by white space.
    """
    joined = text.replace("\\\r\n", " ").replace("\\\n", " ")
    _, _, listed = joined.partition(": ")
    names: list[str] = []
    current = ""
    position = 0
    while position < len(listed):
        character = listed[position]
        following = listed[position + 1 : position + 2]
        if character == "\\" and following in (" ", "#"):
            current += following
            position += 2
            continue
        if character == "$" and following == "$":
            current += "$"
            position += 2
            continue
        if character.isspace():
            if current:
                names.append(current)
            current = ""
        else:
            current += character
        position += 1
    if current:
        names.append(current)
    return [Path(name) for name in names]


@contextlib.contextmanager
def exclusive(path: Path, deadline: Deadline) -> Iterator[None]:
    """Hold a lock file for the body, so that two builds in one directory follow each other.

    The lock is the operating system's: it ends with the process, however that ends.

    Raises:
        DeadlineExceededError: somebody else held it until the deadline.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as handle:
        while not _try_lock(handle):
            deadline.check(f"another build to release '{path}'")
            time.sleep(0.02)
        try:
            yield
        finally:
            _unlock(handle)


def _try_lock(handle: Any) -> bool:
    try:
        if sys.platform == "win32":
            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _unlock(handle: Any) -> None:
    if sys.platform == "win32":
        handle.seek(0)
        msvcrt.locking(handle.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(handle, fcntl.LOCK_UN)


def _stat(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _stamp_list(stamp: FileStamp) -> list[int | str]:
    return [stamp.size, stamp.modified_ns, stamp.sha256]


def _step(raw: Any) -> StepRecord:
    inputs = {path: FileStamp(*values) for path, values in raw["inputs"].items()}
    return StepRecord(raw["key"], inputs, FileStamp(*raw["output"]))
