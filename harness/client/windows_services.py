"""Services on Windows: stopping that of a driver, through the service control manager."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref
from typing import Final

from harness.client import hresult as hr
from harness.client.errors import OperationTimeoutError, port_error
from harness.client.windows_api import (
    SC_MANAGER_CONNECT,
    SERVICE_CONTROL_STOP,
    SERVICE_QUERY_STATUS,
    SERVICE_STOP,
    SERVICE_STOPPED,
    Libraries,
    ServiceStatus,
)

_POLL_SECONDS: Final = 0.02


def stop(api: Libraries, name: str, *, seconds: float) -> None:
    """ControlService(SERVICE_CONTROL_STOP), and wait until the service has stopped.

    The service of a driver has usually stopped when the control returns; a state in between is waited for.

    Raises:
        PortError: there is no such service, it does not run, takes no stop, or is not the caller's to stop.
        OperationTimeoutError: the control was accepted, but the service has not stopped within `seconds`.
    """
    advapi32 = api.advapi32
    with (
        _opened(api, "OpenSCManager", advapi32.OpenSCManagerW(None, None, SC_MANAGER_CONNECT)) as manager,
        _opened(
            api, "OpenService", advapi32.OpenServiceW(manager, name, SERVICE_STOP | SERVICE_QUERY_STATUS)
        ) as service,
    ):
        status = ServiceStatus()
        _check(api, advapi32.ControlService(service, SERVICE_CONTROL_STOP, byref(status)), "ControlService")
        until = time.monotonic() + seconds
        while status.dwCurrentState != SERVICE_STOPPED:
            if time.monotonic() > until:
                raise OperationTimeoutError(
                    f"the service '{name}' has not stopped within {seconds:g} s; its state is {status.dwCurrentState}"
                )
            time.sleep(_POLL_SECONDS)
            _check(api, advapi32.QueryServiceStatus(service, byref(status)), "QueryServiceStatus")


@contextmanager
def _opened(api: Libraries, operation: str, handle: int | None) -> Iterator[int]:
    if not handle:
        raise port_error(hr.from_win32(api.last_error()), operation)
    try:
        yield handle
    finally:
        api.advapi32.CloseServiceHandle(handle)


def _check(api: Libraries, succeeded: int, operation: str) -> None:
    if not succeeded:
        raise port_error(hr.from_win32(api.last_error()), operation)
