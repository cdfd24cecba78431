"""References that drivers take on filters, instances and volumes: FltObjectReference, and every function that hands out
a pointer. The object stays valid for as long, torn down or not, and FltUnregisterFilter waits for them (fact X12)."""

from __future__ import annotations

from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import Filter, Instance, Volume
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.status import STATUS_SUCCESS


def reference(k: Kernel, address: int) -> None:
    """Take a reference.

    Raises:
        StatusError: STATUS_FLT_DELETING_OBJECT while the filter is being torn down.
        Bugcheck: there is no filter, instance or volume at `address`.
    """
    owner, what = _owner(k, address)
    if owner is not None:
        manager_of(k).acquire_rundown(owner, what)
    k.objects.reference(k.objects.get(address))


def dereference(k: Kernel, address: int) -> None:
    """Drop a reference; bugchecks when nobody holds one."""
    owner, what = _owner(k, address)
    item = k.objects.get(address)
    if owner is not None:
        manager_of(k).release_rundown(owner, what)
    elif item.references <= 1:
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            address,
            rule=f"a reference on the volume '{item.body.device_name}' was dropped that nobody holds",
        )
    k.objects.dereference(item)


def hand_out(k: Kernel, address: int, out: int) -> int:
    """Store a pointer with a reference at `out`, as the FltGet*From* functions do; STATUS_SUCCESS.

    Raises:
        StatusError: see `reference`.
    """
    reference(k, address)
    k.memory.put64(out, address)
    return STATUS_SUCCESS


def _owner(k: Kernel, address: int) -> tuple[Filter | None, str]:
    """The filter whose end a reference holds up (none for a volume), and the words for the reference."""
    item = k.objects.get(address)
    body = item.body
    if isinstance(body, Filter):
        return body, f"an FltObjectReference of the filter '{body.name}' without FltObjectDereference"
    if isinstance(body, Instance):
        return body.filter, (
            f"an FltObjectReference of the instance '{body.name}' on {body.volume.dos_name or body.volume.device_name} "
            "without FltObjectDereference"
        )
    if isinstance(body, Volume):
        return None, ""
    raise Bugcheck(
        bc.REFERENCE_BY_POINTER,
        0,
        address,
        rule=f"{address:#x} is an object of type '{item.type}', expected a filter, an instance or a volume",
    )
