"""The filter in the guest: loading it, unloading it, and seeing where it is attached."""

from __future__ import annotations

from harness.client import hresult
from harness.deployment.failures import advise, explain, find_hresult
from harness.deployment.plan import Plan, UnloadError
from harness.remote.channels import CommandResult
from harness.remote.faults import ConnectionLostError
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.waiting import wait_until

SHUTDOWN_IN_PROGRESS = 1115
_SERVICE_ALREADY_RUNNING = 0x80070420


def unload(guest: Guest, plan: Plan, deadline: Deadline) -> None:
    """Unload with its own deadline. Never tried twice: a hung unload holds the Filter Manager's lock for ever.

    Raises:
        UnloadError: it hangs or was refused.
    """
    try:
        result = guest.run(
            ["fltmc", "unload", plan.service],
            deadline=deadline.sooner(seconds=plan.unload_seconds),
            check=False,
        )
    except DeadlineExceededError as error:
        raise UnloadError(
            f"the driver '{plan.service}' hangs in its unload",
            hint=f"{plan.mend}; a reference, a sender or a server port that is still open holds it",
            machine=guest.machine,
            causes=[error],
        ) from error
    code = find_hresult(result.output) or result.exit_code
    if result.exit_code and code != hresult.FLT_FILTER_NOT_FOUND:
        raise UnloadError(
            f"the driver '{plan.service}' refused to be unloaded: {explain(code, result.output)}",
            exit_code=result.exit_code,
            hint=plan.mend,
            machine=guest.machine,
        )


def load(guest: Guest, plan: Plan, deadline: Deadline, *, again: bool = False) -> None:
    """Load the filter.

    An answer that it is loaded already is waited out for `plan.race_seconds`: its predecessor's image may still be
    referenced (windows-lab C.3). With `again`, the connection was lost when it was loaded: then it may be this one.

    Raises:
        GuestError: it did not load, and why; or the guest went down.
    """
    limit = deadline.sooner(seconds=plan.race_seconds)
    last: CommandResult | None = None

    def attempt() -> str | None:
        nonlocal last
        last = guest.run(["fltmc", "load", plan.service], deadline=deadline, check=False)
        there = last.exit_code and find_hresult(last.output) == _SERVICE_ALREADY_RUNNING
        return "its predecessor is still there" if there and not again else None

    try:
        wait_until(attempt, f"the driver '{plan.service}' to be loaded", limit, machine=guest.machine)
    except DeadlineExceededError:
        if last is None or not last.exit_code:
            raise
    assert last is not None
    if not last.exit_code or (again and find_hresult(last.output) == _SERVICE_ALREADY_RUNNING):
        return
    if last.exit_code == SHUTDOWN_IN_PROGRESS:
        raise ConnectionLostError(
            f"the guest went down while it loaded the driver '{plan.service}'", machine=guest.machine
        )
    code = find_hresult(last.output) or last.exit_code
    raise GuestError(
        f"the driver '{plan.service}' did not load: {explain(code, last.output)}",
        exit_code=last.exit_code,
        hint=advise(code),
        machine=guest.machine,
    )


def attached(guest: Guest, plan: Plan, deadline: Deadline) -> tuple[str, ...]:
    """Volumes with our instance; parsed by our own names, because fltmc's headers are localised (fact FM4)."""
    result = guest.run(["fltmc", "instances", "-f", plan.service], deadline=deadline)
    volumes = []
    for line in result.stdout.splitlines():
        if plan.instance in line and plan.altitude in line:
            # With -f fltmc leaves out the filter's own column.
            words = line.split(plan.altitude)[0].split()
            volumes.append(words[-1] if words else "?")
    if not volumes:
        raise GuestError(
            f"the driver '{plan.service}' is loaded but attached to no volume",
            hint="its InstanceSetup callback refused every volume; compare 'fltmc volumes' in the guest",
            machine=guest.machine,
        )
    return tuple(volumes)
