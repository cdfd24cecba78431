"""Deadlines as objects: made once at the top, passed down, never a bare number of seconds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Self

from vm.errors import DeadlineExceededError


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock (`time.monotonic`, seconds) by which something has to be done."""

    at: float

    @classmethod
    def after(cls, *, seconds: float) -> Self:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    @classmethod
    def never(cls) -> Self:
        """A deadline that does not pass; only for interactive use."""
        return cls(math.inf)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative; `math.inf` for a deadline that does not pass."""
        return max(0.0, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        """True when no time is left."""
        return time.monotonic() >= self.at

    def sooner(self, *, seconds: float) -> Deadline:
        """This deadline, or the one `seconds` from now if that is earlier: for a step inside a longer task."""
        return Deadline(min(self.at, time.monotonic() + seconds))

    def check(self, what: str, *, last_seen: str | None = None, machine: str | None = None) -> None:
        """Raise `DeadlineExceededError` if the deadline has passed.

        Args:
            what: what was being waited for, as it reads after 'while waiting for'.
            last_seen: the last state observed, shown to the user.
            machine: the machine concerned.
        """
        if self.passed:
            seen = f"; last seen: {last_seen}" if last_seen else ""
            raise DeadlineExceededError(
                f"the deadline passed while waiting for {what}{seen}", machine=machine
            )
