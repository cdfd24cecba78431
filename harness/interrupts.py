"""Signals that end a command: all of them take the way of Ctrl-C, so that every `finally` runs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells count it."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by another signal than Ctrl-C; `exit_status` is 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def exit_status(interrupt: KeyboardInterrupt) -> int:
    """The exit status that belongs to an interrupt."""
    return interrupt.exit_status if isinstance(interrupt, TerminatedError) else EXIT_INTERRUPTED


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Within, SIGTERM, SIGHUP (POSIX) and Ctrl-Break (Windows) raise in the main thread, as Ctrl-C does."""
    handlers: dict[int, Callable[[int, FrameType | None], object]] = {
        signal.SIGINT: signal.default_int_handler
    }
    handlers |= {
        getattr(signal, name): _raise for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
    }
    # What is ignored stays ignored: that is how nohup protects a command.
    previous = {
        number: before for number in handlers if (before := signal.getsignal(number)) != signal.SIG_IGN
    }
    for number in previous:
        signal.signal(number, handlers[number])
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def one_interrupt() -> Iterator[None]:
    """Within, only the first Ctrl-C raises, and those after it are ignored: what cleans up is not cut short.

    For clean-up that has a deadline of its own. Only in the main thread.
    """

    def first(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise TerminatedError(number)
