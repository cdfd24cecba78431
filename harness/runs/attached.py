"""A suite as one command over WinRM: its events arrive as it prints them, and it ends with the connection."""

from __future__ import annotations

from harness.remote.faults import ConnectionLostError, ShellGoneError
from harness.remote.guest import Guest
from harness.runs.journal import Event
from harness.runs.stream import EventStream
from harness.runs.suite import WORKING_DIRECTORY, SuiteEnd
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError


def run(guest: Guest, arguments: list[str], stream: EventStream, deadline: Deadline) -> SuiteEnd | Event:
    """Run pytest in the guest; returns how it ended, or the event that says why that is not known."""
    try:
        result = guest.run(
            ["python", *arguments],
            deadline=deadline,
            check=False,
            directory=WORKING_DIRECTORY,
            on_output=stream.feed,
        )
    except (ConnectionLostError, ShellGoneError) as error:
        return {"event": "guest-lost", "text": error.message}
    except DeadlineExceededError as error:
        return {"event": "problem", "text": f"the run took too long: {error.message}"}
    return SuiteEnd(result.exit_code, result.stderr)
