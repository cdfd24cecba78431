"""What the user sees: short lines on standard output, one line that changes in place where there is a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from typing import TextIO

from vm.errors import DownlinkError

_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


class Console:
    """Writes lines and one transient line; safe to use from several threads.

    Args:
        out: standard output.
        err: standard error, for errors and hints.
        color: None = where `out` is a terminal and NO_COLOR is not set.
    """

    def __init__(
        self, out: TextIO | None = None, err: TextIO | None = None, *, color: bool | None = None
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.terminal = self._out.isatty()
        self._color = color if color is not None else self.terminal and not os.environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._transient = False
        self.defuse: Callable[[str], str] = str
        """What every line passes through: inside a CI system, text of others must not be a command to it."""

    def style(self, text: str, *styles: str) -> str:
        """`text` in the styles "bold", "dim", "red", "green", "yellow", where colours are shown."""
        if not self._color:
            return text
        return f"\x1b[{';'.join(_CODES[style] for style in styles)}m{text}\x1b[0m"

    def line(self, text: str = "") -> None:
        """Write a line that stays."""
        with self._lock:
            self._erase()
            self._write(self._out, self.defuse(text) + "\n")

    def transient(self, text: str) -> None:
        """Show what is happening now, in place of the transient line before; nothing where there is no terminal."""
        if not self.terminal:
            return
        with self._lock:
            self._erase()
            width = shutil.get_terminal_size().columns - 1
            self._write(self._out, text if len(text) <= width else text[: width - 1] + "…")
            self._transient = True

    def step(self, name: str, detail: str, seconds: float) -> None:
        """One line for one thing done: what, the details, how long."""
        time = self.style(f"{seconds:6.2f} s", "dim")
        self.line(f"{time}  {name}" + (f": {detail}" if detail else ""))

    def error(self, error: DownlinkError) -> None:
        """The sentence, the causes and the hint, on standard error."""
        with self._lock:
            self._erase()
            self._write(self._err, self.defuse(error.render()) + "\n")

    def clear(self) -> None:
        """Remove the transient line."""
        with self._lock:
            self._erase()

    def _erase(self) -> None:
        if self._transient:
            self._write(self._out, "\r\x1b[2K")
            self._transient = False

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
