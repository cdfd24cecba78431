"""The log of a run: everything that was done, with its time, without secrets. The console is another matter."""

from __future__ import annotations

import base64
import html
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import quote, quote_plus

MASK = "***"

_SHORTEST_DERIVED = 6
"""Encodings of shorter secrets are so short that they would turn up by chance."""


def forms(secret: str) -> tuple[str, ...]:
    """The texts in which a secret can turn up: itself, escaped for a URL, JSON or XML, in base64 and in hexadecimal.

    Base64 encodes three bytes at a time, so a secret inside of something longer ("user:secret", as in a header) has
    three faces; of each, the characters that its neighbours cannot change. The same for UTF-16, which
    `-EncodedCommand` of PowerShell carries. Longest first.
    """
    found = {secret}
    if len(secret) >= _SHORTEST_DERIVED:
        found |= {quote(secret), quote(secret, safe=""), quote_plus(secret), html.escape(secret, quote=False)}
        found |= {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
        for data in (secret.encode(), secret.encode("utf-16-le")):
            found |= {data.hex(), data.hex().upper()}
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                found.add(encode(data).decode())
                for shift in range(3):
                    first, last = -(-shift * 8 // 6), (shift + len(data)) * 4 // 3
                    found.add(encode(b"\0" * shift + data + b"\0\0").decode()[first:last])
    return tuple(sorted(found, key=len, reverse=True))


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
        """From now on `secret` is written as `***`, wherever it turns up, and in whichever of its `forms`."""
        if secret:
            with self._lock:
                self._secrets = sorted({*self._secrets, *forms(secret)}, key=len, reverse=True)

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
