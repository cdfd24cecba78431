"""Takes the standard output of the guest's pytest apart: events for the host, everything else for a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TextIO

from harness.runs.journal import Event


class EventStream:
    """Fed with pieces of text as they arrive; hands out each event once, in order.

    Args:
        prefix: what the plugin puts in front of each event; random, so that no test can print one by accident.
        on_event: gets each event.
        output: gets all other text.
        seen: numbers of the events that were handed out by an earlier stream of the same suite.
    """

    def __init__(
        self, prefix: str, on_event: Callable[[Event], None], output: TextIO, seen: Iterable[int] = ()
    ) -> None:
        self._prefix = prefix
        self._on_event = on_event
        self._output = output
        self._rest = ""
        self._seen = set(seen)

    def feed(self, text: str) -> None:
        """Take the next piece; a line is looked at when it is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(line.rstrip("\r"))

    def close(self) -> None:
        """What came without a final newline is text."""
        if self._rest:
            self._output.write(self._rest)
            self._rest = ""
        self._output.flush()

    def add_missing(self, lines: str) -> int:
        """Add the events of the guest's own file that never arrived; returns how many there were."""
        before = len(self._seen)
        for line in lines.splitlines():
            self._event(line)
        return len(self._seen) - before

    def _line(self, line: str) -> None:
        if line.startswith(self._prefix):
            self._event(line[len(self._prefix) :])
        elif line:
            self._output.write(line + "\n")

    def _event(self, text: str) -> None:
        try:
            event = json.loads(text)
            number = event["n"]
        except (ValueError, KeyError, AttributeError):
            # Cut off by a crash of the guest: the journal has only what is complete.
            self._output.write(text + "\n")
            return
        if number not in self._seen:
            self._seen.add(number)
            self._on_event(event)
