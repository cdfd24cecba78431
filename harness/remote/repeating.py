"""Doing something once more after a connection was lost in it: only for what may be done twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from harness.remote.faults import ConnectionLostError, ShellGoneError

if TYPE_CHECKING:
    from harness.remote.guest import Guest

UNKNOWN_FATE = (ConnectionLostError, ShellGoneError)
"""After these nobody knows whether the guest has acted on the last request."""

_T = TypeVar("_T")


def repeated(guest: Guest, action: Callable[[], _T]) -> _T:
    """Do `action`, and once more over a new connection if the first attempt's fate is unknown.

    Args:
        guest: what `action` talks to.
        action: a question, or something that has the same result when it is done twice.

    Raises:
        GuestError: as `action`; the second loss is the error.
    """
    try:
        return action()
    except UNKNOWN_FATE as error:
        guest.log.write(f"once more: {error.message}")
        guest.reconnect()
        return action()
