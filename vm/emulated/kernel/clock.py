"""The machine's clock and its timers. Units are 100 ns; system time counts from 1601-01-01 UTC, as in the kernel."""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

UNITS_PER_SECOND = 10_000_000
UNITS_PER_MILLISECOND = 10_000
UNIX_EPOCH = 116_444_736_000_000_000
"""1970-01-01 in units since 1601-01-01."""
DEFAULT_START = UNIX_EPOCH + 1_767_225_600 * UNITS_PER_SECOND
"""2026-01-01T00:00:00Z: where a clock that does not follow the host starts, so that runs repeat exactly."""


@dataclass(order=True, slots=True)
class Timer:
    """One pending expiry on the interrupt-time axis."""

    due: int
    order: int
    action: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)


class Clock:
    """Virtual or wall-clock time.

    A virtual clock moves only by `advance` and, when the machine is idle, by jumping to the next timer: exactly
    repeatable. A clock that follows the host (`follow_host=True`) serves real client processes.
    """

    def __init__(self, *, start: int | None = None, follow_host: bool = False) -> None:
        self.follow_host = follow_host
        self._interrupt_time = 0
        self._host_start = time.monotonic_ns()
        if start is None:
            start = UNIX_EPOCH + time.time_ns() // 100 if follow_host else DEFAULT_START
        self._boot = start
        self._timers: list[Timer] = []
        self._order = itertools.count()

    @property
    def interrupt_time(self) -> int:
        """Units since boot; never goes back."""
        if self.follow_host:
            self._interrupt_time = max(self._interrupt_time, (time.monotonic_ns() - self._host_start) // 100)
        return self._interrupt_time

    @property
    def system_time(self) -> int:
        """Units since 1601-01-01 UTC."""
        return self._boot + self.interrupt_time

    def set_system_time(self, value: int) -> None:
        """Change the system time; timers with relative due times do not move."""
        self._boot = value - self.interrupt_time

    def advance(self, units: int) -> None:
        """Move a virtual clock; a clock that follows the host ignores it."""
        if not self.follow_host:
            self._interrupt_time += units

    def due_of(self, timeout: int) -> int:
        """Expiry on the interrupt-time axis of an NT timeout: negative is relative, positive absolute system time."""
        if timeout <= 0:
            return self.interrupt_time - timeout
        return timeout - self._boot

    def at(self, due: int, action: Callable[[], None]) -> Timer:
        """Run `action` once interrupt time reaches `due`."""
        timer = Timer(due, next(self._order), action)
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        """Drop a timer; it costs nothing to cancel one that has run."""
        timer.cancelled = True

    def next_due(self) -> int | None:
        """When the next timer expires, or None."""
        while self._timers and self._timers[0].cancelled:
            heapq.heappop(self._timers)
        return self._timers[0].due if self._timers else None

    def expire(self) -> bool:
        """Run the actions of all timers that are due; True if there was one."""
        if not self._timers:
            return False
        now = self.interrupt_time
        ran = False
        while self._timers and self._timers[0].due <= now:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                ran = True
                timer.action()
        return ran

    def jump(self) -> bool:
        """Move a virtual clock to its next timer and run it; False if there is none or the clock follows the host."""
        due = self.next_due()
        if due is None or self.follow_host:
            return False
        self._interrupt_time = max(self._interrupt_time, due)
        return self.expire()
