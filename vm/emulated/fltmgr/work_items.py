"""Work items: routines of a filter that run later, in a system thread, while a reference keeps the filter loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import FLTMGR, NTSTATUS, PVOID, ULONG, export
from vm.emulated.exports.state import state_of
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.io import function_name
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.model import Filter, Instance
from vm.emulated.fltmgr.requests import request_at
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST,
    STATUS_FLT_NOT_SAFE_TO_POST_OPERATION,
    STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import DISPATCH_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_GENERIC_TAG = "FMwg"
_DEFERRED_TAG = "FMwd"
_ITEM_SIZE = 0x70
_REFERENCE = "a queued work item"


@dataclass(slots=True)
class WorkItems:
    """Work items of one kernel: those that are queued and have not begun to run."""

    kernel: Kernel
    queued: set[int] = field(default_factory=set)


def _allocate(k: Kernel, tag: str) -> int:
    driver, site = k.caller()
    return k.pool.allocate(_ITEM_SIZE, tag, owner=driver, site=site)


def _free(k: Kernel, item: int, tag: str, caller: str) -> None:
    if item in state_of(k, WorkItems).queued:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0070,
            item,
            rule=f"{caller} was given a work item that is queued",
        )
    k.pool.free(item, tag, site=k.caller()[1])


def _begin(k: Kernel, item: int, tag: str, caller: str) -> None:
    block = k.pool.live.get(item)
    if block is None or block.tag != tag:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0071,
            item,
            rule=f"{caller} was given {item:#x}, which is not a work item of that kind",
        )
    queued = state_of(k, WorkItems).queued
    if item in queued:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0072,
            item,
            rule=f"{caller} was called twice for the same work item",
        )
    queued.add(item)


def _run(k: Kernel, item: int, owner: Filter, routine: int, arguments: tuple[int, ...], name: str) -> Model:
    state_of(k, WorkItems).queued.discard(item)
    yield Call(routine, arguments, name)
    manager_of(k).release_rundown(owner, _REFERENCE)


def _owner_of(k: Kernel, address: int) -> Filter:
    body = k.objects.get(address).body
    if isinstance(body, Filter):
        return body
    if isinstance(body, Instance):
        if body.tearing_down:
            raise StatusError(STATUS_FLT_DELETING_OBJECT)
        return body.filter
    raise StatusError(STATUS_INVALID_PARAMETER)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltAllocateGenericWorkItem(k: Kernel) -> PVOID:
    return _allocate(k, _GENERIC_TAG)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltFreeGenericWorkItem(k: Kernel, FltWorkItem: PVOID) -> None:
    _free(k, FltWorkItem, _GENERIC_TAG, "FltFreeGenericWorkItem")


@export(FLTMGR, irql=DISPATCH_LEVEL)
@answers
def FltQueueGenericWorkItem(
    k: Kernel, FltWorkItem: PVOID, FltObject: PVOID, WorkerRoutine: PVOID, QueueType: ULONG, Context: PVOID
) -> NTSTATUS:
    """The routine gets (work item, FltObject, context); the filter cannot be unregistered before it has returned."""
    owner = _owner_of(k, FltObject)
    manager_of(k).acquire_rundown(owner, _REFERENCE)
    _begin(k, FltWorkItem, _GENERIC_TAG, "FltQueueGenericWorkItem")
    name = f"work item {function_name(k, WorkerRoutine)}"
    k.start_system_thread(
        _run(k, FltWorkItem, owner, WorkerRoutine, (FltWorkItem, FltObject, Context), name), name
    )
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltAllocateDeferredIoWorkItem(k: Kernel) -> PVOID:
    return _allocate(k, _DEFERRED_TAG)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltFreeDeferredIoWorkItem(k: Kernel, FltWorkItem: PVOID) -> None:
    _free(k, FltWorkItem, _DEFERRED_TAG, "FltFreeDeferredIoWorkItem")


@export(FLTMGR, irql=DISPATCH_LEVEL)
@answers
def FltQueueDeferredIoWorkItem(
    k: Kernel, FltWorkItem: PVOID, Data: PVOID, WorkerRoutine: PVOID, QueueType: ULONG, Context: PVOID
) -> NTSTATUS:
    """For a callback that is going to pend `Data`; refused where posting can deadlock."""
    request = request_at(k, Data, "FltQueueDeferredIoWorkItem")
    if request.fast_io:
        return STATUS_FLT_INVALID_ASYNCHRONOUS_REQUEST
    if request.irp_flags & n.IRP_PAGING_IO or k.current.top_level_irp:
        return STATUS_FLT_NOT_SAFE_TO_POST_OPERATION
    pended = request.walk.pended
    if pended is None:
        return STATUS_INVALID_PARAMETER
    if pended.instance.tearing_down:
        return STATUS_FLT_DELETING_OBJECT
    owner = pended.instance.filter
    manager_of(k).acquire_rundown(owner, _REFERENCE)
    _begin(k, FltWorkItem, _DEFERRED_TAG, "FltQueueDeferredIoWorkItem")
    name = f"deferred I/O {function_name(k, WorkerRoutine)}"
    k.start_system_thread(
        _run(k, FltWorkItem, owner, WorkerRoutine, (FltWorkItem, Data, Context), name), name
    )
    return STATUS_SUCCESS
