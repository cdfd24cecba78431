"""Waiting for a guest that has just been started: until it carries out a command, and no longer than it helps."""

from __future__ import annotations

import time

from harness.remote.faults import ConnectionLostError, LogonError, ShellGoneError, StatusError
from harness.remote.guest import Guest
from harness.remote.polling import wait_until
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError

COMMAND_SECONDS = 20.0

REFUSAL_SECONDS = 5.0
"""A guest refuses good passwords while it boots, and its web server answers without WinRM behind it. One that still does
so after this time, counted from its first refusal, means it: a wrong password must not cost a minute."""


def wait_until_ready(guest: Guest, deadline: Deadline, *, refusal_seconds: float = REFUSAL_SECONDS) -> str:
    """Wait until the guest carries out a command; returns what `ver` prints.

    Raises:
        LogonError: it refuses the user name or password, and not only while it boots.
        GuestError: what it answered last, when waiting does not help or the deadline passed.
    """
    said = ""
    last: GuestError | None = None
    refused_since: float | None = None

    def probe() -> str | None:
        nonlocal said, last, refused_since
        try:
            said = guest.run("ver", deadline=deadline.sooner(seconds=COMMAND_SECONDS)).stdout.strip()
            return None
        except (ConnectionLostError, ShellGoneError) as error:
            last, refused_since = error, None
        except (LogonError, StatusError) as error:
            last = error
            refused_since = refused_since or time.monotonic()
            if time.monotonic() - refused_since > refusal_seconds:
                raise
        guest.reconnect()
        return last.message

    try:
        wait_until(probe, "the guest to carry out a command", deadline, machine=guest.machine)
    except DeadlineExceededError as error:
        # What it said last is worth more than that time has passed.
        raise (last or error) from error
    return said
