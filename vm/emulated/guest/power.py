"""Restart and shutdown of the guest: what `shutdown` schedules and who carries it out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

_GRACE_SECONDS = 1.0
"""A restart without delay waits so long for the client to receive the end of the command that asked for it."""


class PowerAction(Enum):
    """What a scheduled end of the system leads to."""

    RESTART = "restart"
    SHUTDOWN = "shutdown"


class ShutdownPendingError(Exception):
    """A shutdown is scheduled already (ERROR_SHUTDOWN_IS_SCHEDULED, 1190)."""


class Power:
    """Holds at most one scheduled restart or shutdown and carries it out in a thread of its own."""

    def __init__(self, carry_out: Callable[[PowerAction], None]) -> None:
        self._carry_out = carry_out
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def schedule(
        self,
        action: PowerAction,
        *,
        delay_seconds: float,
        after_delivery: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        """Let it happen after the delay; without delay as soon as the asking command's end was delivered.

        Raises:
            ShutdownPendingError: something is scheduled already.
        """
        with self._lock:
            if self._timer is not None:
                raise ShutdownPendingError
            timer = threading.Timer(delay_seconds or _GRACE_SECONDS, lambda: self._run(timer, action))
            timer.name = f"guest {action.value}"
            timer.daemon = True
            self._timer = timer
            timer.start()
        if delay_seconds == 0 and after_delivery is not None:
            after_delivery(
                lambda: threading.Thread(target=self._run, args=(timer, action), daemon=True).start()
            )

    def abort(self) -> bool:
        """Cancel what is scheduled; False if nothing is."""
        with self._lock:
            timer, self._timer = self._timer, None
        if timer is None:
            return False
        timer.cancel()
        return True

    def _run(self, timer: threading.Timer, action: PowerAction) -> None:
        with self._lock:
            if self._timer is not timer:
                return
            self._timer = None
        timer.cancel()
        self._carry_out(action)
