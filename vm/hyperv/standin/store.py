"""What the stand-in's host has, kept in a directory from call to call: machines, files, switches, faults."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STATE = "host.json"
EDITIONS = (
    {"index": 1, "name": "Windows Server 2025 Standard Evaluation", "edition": "ServerStandardEval"},
    {"index": 2, "name": "Windows Server 2025 Datacenter Evaluation", "edition": "ServerDatacenterEval"},
)


class Refusal(Exception):  # noqa: N818  # it is what a script answers, no failure of the stand-in
    """What a script answers instead of a result."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def fresh() -> dict[str, Any]:
    """A host as it is before anything was done: images, offline sources, no switch, no machine."""
    sources = r"C:\ProgramData\Downlink\sources"
    return {
        "host": {
            "module": True,
            "vmms": "running",
            "administrator": True,
            "hyperv_administrator": False,
            "processors": 8,
            "memory_free_mb": 16384,
            "memory_total_mb": 32768,
            "disk_free_mb": 200_000,
        },
        "switches": {},
        "machines": {},
        "record": 100,
        "files": {
            r"C:\images\server.iso": {"kind": "iso", "editions": list(EDITIONS)},
            r"C:\images\drivers.iso": {"kind": "iso", "editions": []},
            r"C:\images\notes.txt": {"kind": "file"},
            r"C:\images\server.vhdx": {"kind": "vhdx", "state": "IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE"},
            r"C:\images\installed.vhdx": {"kind": "vhdx", "state": "IMAGE_STATE_COMPLETE"},
            r"C:\images\old.vhdx": {"kind": "vhdx", "style": "mbr", "state": ""},
            sources: {
                "kind": "sources",
                "python": ["python.3.12.10.nupkg"],
                "ssh": ["OpenSSH-Win64.zip"],
                "wheels": ["pytest-8.4.2-py3-none-any.whl", "hypothesis-6.140.0-py3-none-any.whl"],
            },
        },
        "faults": {},
    }


class Store:
    """The directory of one stand-in."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def opened(self) -> Iterator[dict[str, Any]]:
        """The state, for this call alone, and written back at the end whatever a script answered."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / STATE
        with _alone(self.root / "lock"):
            state = json.loads(path.read_text(encoding="utf-8")) if path.exists() else fresh()
            try:
                yield state
            finally:
                draft = path.with_suffix(".part")
                draft.write_text(json.dumps(state, indent=1), encoding="utf-8")
                draft.replace(path)

    def content(self, disk: str) -> Path:
        """Directory with what is on a disk: the emulated guest's drive, its registry and its identity."""
        return self.root / "disks" / hashlib.sha256(disk.casefold().encode()).hexdigest()[:16]

    def snapshot(self, machine: str, checkpoint: str) -> Path:
        """Directory with what was on the machine's disk at a checkpoint."""
        return (
            self.root / "checkpoints" / hashlib.sha256(f"{machine}\0{checkpoint}".encode()).hexdigest()[:16]
        )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Within, no other call reads or writes the state: workers call at the same time. A killed call lets go, too."""
    with lock.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt

            # Tries for ten seconds each time, then raises.
            while True:
                with suppress(OSError):
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def copy(source: Path, target: Path) -> None:
    """Make `target` what `source` is; nothing if there is no source."""
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)


def remove(path: Path) -> None:
    """Remove a directory, if it is there."""
    if path.exists():
        shutil.rmtree(path)
