"""The journal of a run: one JSON object per line, appended and flushed as things happen, on the host.

Everything else that a run leaves behind (junit.xml, report.html, the verdict) is derived from it, so a run that was
interrupted anywhere still has its results.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.log import Log

Event = dict[str, Any]


class Journal:
    """An append-only journal; several threads may write to it.

    Args:
        path: the file; created, or continued when it exists.
        log: knows the secrets that must not get into it.
    """

    def __init__(self, path: Path, log: Log | None = None) -> None:
        self.path = path
        self._log = log or Log()
        self._lock = threading.Lock()
        _remove_torn_line(path)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def write(self, event: str, **values: Any) -> Event:
        """Append one event; returns it as it was written."""
        entry: Event = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "event": event,
            **values,
        }
        line = self._log.scrub(json.dumps(entry, ensure_ascii=False))
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()
        return entry

    def close(self) -> None:
        """Close the file; the journal can be read at any time."""
        self._file.close()


def read(path: Path) -> Iterator[Event]:
    """The events of a journal in order; a last line that was cut off by a crash of the host is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


def _remove_torn_line(path: Path) -> None:
    """Cut off a last line that a crash of the host left incomplete, so that what is appended begins a new one."""
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
