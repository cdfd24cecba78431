"""Waiting for a guest that has just been started: until it carries out a command, and no longer than it helps."""

from __future__ import annotations

import time

from harness.remote.faults import ConnectionLostError, LogonError, NoNtlmError, ShellGoneError, StatusError
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.waiting import wait_until

COMMAND_SECONDS = 20.0

LOGON_PAUSES = (0.5, 2.0)
"""Seconds before the second and the third logon. A guest that boots may refuse good passwords for a moment; but a wrong one
must not be tried often: since Windows 11 22H2 ten failures lock the account for ten minutes by default."""

STATUS_SECONDS = 10.0
"""How long a web server may answer without WinRM behind it (503 while the service starts) until it means it."""


def wait_until_ready(
    guest: Guest, deadline: Deadline, *, logon_pauses: tuple[float, ...] = LOGON_PAUSES
) -> str:
    """Wait until the guest carries out a command; returns what `ver` prints.

    Raises:
        LogonError: it refuses the user name or password, and not only while it boots.
        GuestError: what it answered last, when waiting does not help or the deadline passed.
    """
    said = ""
    last: GuestError | None = None
    pauses = list(logon_pauses)
    without_winrm_since: float | None = None

    def probe() -> str | None:
        nonlocal said, last, without_winrm_since
        try:
            said = guest.run("ver", deadline=deadline.sooner(seconds=COMMAND_SECONDS)).stdout.strip()
            return None
        except NoNtlmError:
            raise
        except LogonError as error:
            last = error
            if not pauses:
                raise
            time.sleep(min(pauses.pop(0), deadline.remaining))
        except StatusError as error:
            last = error
            without_winrm_since = without_winrm_since or time.monotonic()
            if time.monotonic() - without_winrm_since > STATUS_SECONDS:
                raise
        except (ConnectionLostError, ShellGoneError) as error:
            last, without_winrm_since = error, None
        guest.reconnect()
        return last.message

    try:
        wait_until(probe, "the guest to carry out a command", deadline, machine=guest.machine)
    except DeadlineExceededError as error:
        # What it said last is worth more than that time has passed.
        raise (last or error) from error
    return said
