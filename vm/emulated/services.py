"""The table of user-mode services: names as docs/architecture.md lists them, each a generator of the model.

A service runs in the client's emulated thread and returns (NTSTATUS, values).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vm.emulated.fltmgr import port_services, services_files
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.objects import HandleEntry, StatusError
from vm.emulated.kernel.security import Impersonation
from vm.emulated.kernel.status import STATUS_INVALID_PARAMETER, STATUS_SUCCESS
from vm.emulated.kernel.threads import KThread, Model

Service = Callable[..., Model]


def close(k: Kernel, thread: KThread, *, handle: int) -> Model:
    """CloseHandle of any handle: the last one of an object runs its cleanup in this thread."""
    try:
        work = k.objects.close(thread.process.handles, handle)
    except StatusError as error:
        return error.status, {}
    if work is not None:
        yield from work
    return STATUS_SUCCESS, {}


def duplicate(k: Kernel, thread: KThread, *, handle: int) -> Model:
    """DuplicateHandle within the process, with the same access."""
    try:
        entry = thread.process.handles.get(handle)
    except StatusError as error:
        return error.status, {}
    return STATUS_SUCCESS, {"handle": thread.process.handles.insert(HandleEntry(entry.object, entry.access))}
    yield  # a service is a generator


def impersonate(k: Kernel, thread: KThread, *, level: str) -> Model:
    """Act with a restricted token (Administrators deny-only, no privileges), or as oneself again."""
    if level == "none":
        thread.impersonation = None
    elif level == "restricted":
        thread.impersonation = Impersonation(replace(thread.process.token).restricted())
    else:
        return STATUS_INVALID_PARAMETER, {}
    return STATUS_SUCCESS, {}
    yield  # a service is a generator


def close_all(k: Kernel, thread: KThread) -> Model:
    """Close every handle of the process, as its end does; runs in a thread of that process."""
    table = thread.process.handles
    while table.entries:
        handle = next(iter(table.entries))
        work = k.objects.close(table, handle)
        if work is not None:
            yield from work
    return None


def kernel_services() -> dict[str, Service]:
    """Services that need nothing but the kernel."""
    table: dict[str, Service] = {
        "connect_port": port_services.connect_port,
        "get_message": port_services.get_message,
        "wait_operation": port_services.wait_operation,
        "cancel": port_services.cancel,
        "reply_message": port_services.reply_message,
        "send_message": port_services.send_message,
        "close": close,
        "duplicate": duplicate,
        "impersonate": impersonate,
    }
    return {**services_files.SERVICES, **table}


def may_load_drivers(k: Kernel, thread: KThread) -> bool:
    """SeLoadDriverPrivilege of the caller (fact L2)."""
    return k.token_of(thread).has(security.SE_LOAD_DRIVER)
