"""Waiting for something that does not announce itself: ask, remember what was seen, ask again. A leaf."""

from __future__ import annotations

import time
from collections.abc import Callable

from vm.deadline import Deadline
from vm.errors import DeadlineExceededError

INTERVAL_SECONDS = 0.1
"""Pause between two questions."""


def wait_until(probe: Callable[[], str | None], what: str, deadline: Deadline, *, machine: str) -> None:
    """Ask until `probe` returns None, which means that it is so.

    Args:
        probe: returns what it saw instead, as it reads after 'last seen'.
        what: what is waited for, as it reads after 'while waiting for'.

    Raises:
        DeadlineExceededError: it did not become so; with what was last seen.
    """
    last: str | None = None
    while True:
        try:
            seen = probe()
        except DeadlineExceededError:
            # The last question was cut off; what the one before it saw says more.
            if last is not None:
                deadline.check(what, last_seen=last, machine=machine)
            raise
        if seen is None:
            return
        last = seen
        time.sleep(min(INTERVAL_SECONDS, deadline.remaining))
        deadline.check(what, last_seen=seen, machine=machine)
