"""The driver's service in the guest: whether it runs, where its image is, and its end."""

from __future__ import annotations

import re
from pathlib import PureWindowsPath

from harness.deployment.plan import Plan
from harness.remote.guest import Guest, failure
from vm.deadline import Deadline
from vm.waiting import wait_until

SERVICE_DOES_NOT_EXIST = 1060
SERVICE_MARKED_FOR_DELETE = 1072

_RUNNING = re.compile(r":\s+4\s")
"""State 4 in `sc query`: the label in front of the colon is localised, the number is not."""
_IMAGE_PATH = re.compile(r"^\s*ImagePath\s+REG_\w+\s+(.+?)\s*$", re.IGNORECASE | re.MULTILINE)


def runs(guest: Guest, plan: Plan, deadline: Deadline) -> bool | None:
    """Whether the driver runs; None when there is no such service."""
    query = guest.run(["sc", "query", plan.service], deadline=deadline, check=False)
    if query.exit_code == SERVICE_DOES_NOT_EXIST:
        return None
    if query.exit_code:
        raise failure(query, guest.machine)
    return _RUNNING.search(query.stdout) is not None


def image_path(guest: Guest, plan: Plan, deadline: Deadline) -> PureWindowsPath | None:
    """Where the service's image is; None when there is no service, or it does not say."""
    found = guest.run(["reg", "query", plan.service_key, "/v", "ImagePath"], deadline=deadline, check=False)
    match = _IMAGE_PATH.search(found.stdout) if not found.exit_code else None
    return windows_path(match[1]) if match else None


def windows_path(value: str) -> PureWindowsPath:
    r"""An ImagePath as a path of the drive C:. Drivers may have `\SystemRoot\...`, `\??\C:\...` or `System32\...`."""
    text = value.strip('"')
    lower = text.lower()
    for prefix, replacement in (
        ("\\systemroot\\", "C:\\Windows\\"),
        ("%systemroot%\\", "C:\\Windows\\"),
        ("\\??\\", ""),
        ("system32\\", "C:\\Windows\\System32\\"),
    ):
        if lower.startswith(prefix):
            return PureWindowsPath(replacement + text[len(prefix) :])
    return PureWindowsPath(text)


def delete(guest: Guest, plan: Plan, deadline: Deadline) -> None:
    """Delete the service and wait until Windows has forgotten it; one that is not there is fine."""
    deleted = guest.run(["sc", "delete", plan.service], deadline=deadline, check=False)
    if deleted.exit_code not in (0, SERVICE_DOES_NOT_EXIST, SERVICE_MARKED_FOR_DELETE):
        raise failure(deleted, guest.machine)
    wait_until_gone(guest, plan, deadline)


def wait_until_gone(guest: Guest, plan: Plan, deadline: Deadline) -> None:
    """Wait for the service key's end: it goes when the last handle is closed, and making it before that fails."""

    def still_there() -> str | None:
        found = guest.run(["reg", "query", plan.service_key], deadline=deadline, check=False)
        return None if found.exit_code else "its service key still exists"

    wait_until(
        still_there,
        f"the service '{plan.service}' to be deleted",
        deadline.sooner(seconds=plan.race_seconds),
        machine=guest.machine,
    )
