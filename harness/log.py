"""The log of a run: everything that was done, with its time, without secrets. The console is another matter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO

MASK = "***"


class Log:
    """An append-only text log that several threads may write to; each line is flushed at once.

    Args:
        stream: where lines go; None for a log that keeps nothing.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._secrets: list[str] = []

    def protect(self, secret: str) -> None:
        """From now on `secret` is written as `***`, wherever it turns up."""
        if secret:
            with self._lock:
                self._secrets = sorted({*self._secrets, secret}, key=len, reverse=True)

    def scrub(self, text: str) -> str:
        """`text` without the protected secrets."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return text

    def write(self, text: str) -> None:
        """Write one entry; further lines of it are indented."""
        if self._stream is None:
            return
        now = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        body = self.scrub(text.rstrip()).replace("\n", "\n             ")
        with self._lock:
            self._stream.write(f"{now} {body}\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the stream; later entries are dropped."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
            self._stream = None

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Within, what libraries and other rooms log by `logging` goes here, and nowhere else."""
        handler = _Bridge(self)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)


class _Bridge(logging.Handler):
    """Hands records of `logging` on to a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(f"[{record.name}] {record.levelname.lower()}: {self.format(record)}")
