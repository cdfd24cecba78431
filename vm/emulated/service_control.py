"""Loading and unloading drivers for client processes: the work is done in a system thread, as Windows does it (X9),
and the service control manager answers with its own errors."""

from __future__ import annotations

from typing import Final

from vm.emulated.fltmgr import loading
from vm.emulated.fltmgr.manager import SERVICES
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.status import STATUS_FLT_DELETING_OBJECT, STATUS_SUCCESS, nt_success
from vm.emulated.kernel.threads import KThread, Model, Wait

ERROR_ACCESS_DENIED: Final = 5
ERROR_INVALID_SERVICE_CONTROL: Final = 1052
ERROR_SERVICE_DOES_NOT_EXIST: Final = 1060
ERROR_SERVICE_CANNOT_ACCEPT_CTRL: Final = 1061
ERROR_SERVICE_NOT_ACTIVE: Final = 1062


def in_system_thread(k: Kernel, work: Model, name: str) -> Model:
    """Run a generator of the model in a system thread of its own; the caller waits and gets its result."""
    results: list[object] = []

    def body() -> Model:
        results.append((yield from work))

    thread = k.start_system_thread(body(), name)
    item = k.objects.get(thread.address)
    k.objects.reference(item)
    yield Wait((item.address,))
    k.objects.dereference(item)
    return results[0]


def stop(k: Kernel, thread: KThread, *, name: str) -> Model:
    """OpenService and ControlService(SERVICE_CONTROL_STOP): `error` is the Win32 error, 0 when the service has stopped.

    For a filter it is a mandatory unload, whatever its callback answers (X10). A driver that takes no stop is refused
    without being asked (X11). Who may stop a service is said by the service's own descriptor, by default its
    administrators: the privilege to load drivers is the service control manager's.
    """
    if not k.registry.exists(rf"{SERVICES}\{name}"):
        return STATUS_SUCCESS, {"error": ERROR_SERVICE_DOES_NOT_EXIST}
    if security.ADMINISTRATORS not in k.token_of(thread).groups:
        return STATUS_SUCCESS, {"error": ERROR_ACCESS_DENIED}
    if loading.driver_of(k, name) is None:
        return STATUS_SUCCESS, {"error": ERROR_SERVICE_NOT_ACTIVE}
    unload = loading.unload_filter(k, name, mandatory=True)
    status: int = yield from in_system_thread(k, unload, f"stop of '{name}'")
    if nt_success(status):
        return STATUS_SUCCESS, {"error": 0}
    if status == STATUS_FLT_DELETING_OBJECT:
        # Not known of Windows: what a stop during another unload is answered with.
        return STATUS_SUCCESS, {"error": ERROR_SERVICE_CANNOT_ACCEPT_CTRL}
    return STATUS_SUCCESS, {"error": ERROR_INVALID_SERVICE_CONTROL}
