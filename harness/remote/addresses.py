"""Where the guest answers now: an address that is fixed, or one that is asked for again after a lost connection."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vm.errors import DownlinkError
from vm.machine import GuestAddress


class CurrentAddress:
    """The address that connections are made to.

    Args:
        given: the address, or what tells it. A function is asked at the first use and whenever a connection was lost:
            a guest may come back from a restart or a restore under another one.
    """

    def __init__(self, given: GuestAddress | Callable[[], GuestAddress]) -> None:
        self._ask = given if callable(given) else None
        self._known = None if callable(given) else given
        self._stale = False
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        """Host and port of WinRM, as messages show them."""
        address = self.get()
        return f"{address.host}:{address.winrm_port}"

    def get(self) -> GuestAddress:
        """The last address known; raises what the function raises when there is none yet."""
        with self._lock:
            known = self._known
            stale, self._stale = self._stale, False
        if known is None or stale:
            return self._asked(known)
        return known

    def refresh(self) -> GuestAddress:
        """Ask again. A machine that cannot tell at the moment (it restarts) leaves the last one standing."""
        with self._lock:
            known, self._stale = self._known, False
        return self._asked(known)

    def forget(self) -> None:
        """Have the next `get` ask again."""
        with self._lock:
            self._stale = True

    def _asked(self, known: GuestAddress | None) -> GuestAddress:
        if self._ask is None:
            assert known is not None
            return known
        try:
            now = self._ask()
        except DownlinkError:
            if known is None:
                raise
            return known
        with self._lock:
            self._known = now
        return now
