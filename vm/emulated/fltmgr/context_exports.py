"""What drivers import to use contexts: FltAllocateContext, FltSet/Get/Delete*Context, references, support queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import BOOLEAN, FLTMGR, NTSTATUS, PVOID, SIZE_T, ULONG, USHORT, export
from vm.emulated.fltmgr import contexts as c
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.contexts import Context, Table
from vm.emulated.fltmgr.file_objects import file_at
from vm.emulated.fltmgr.model import FILTER_TYPE, INSTANCE_TYPE, VOLUME_TYPE, Instance
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_CONTEXT_ALREADY_DEFINED,
    STATUS_FLT_CONTEXT_ALREADY_LINKED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

PFLT_CONTEXT = PVOID
KEEP_IF_EXISTS = 1


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltAllocateContext(
    k: Kernel,
    Filter: PVOID,
    ContextType: USHORT,
    ContextSize: SIZE_T,
    PoolType: ULONG,
    ReturnedContext: PVOID,
) -> Model:
    owner = k.objects.get(Filter, FILTER_TYPE).body
    k.memory.put64(ReturnedContext, 0)
    _, site = k.caller()
    address = yield from c.allocate(k, owner, ContextType, ContextSize, PoolType, site)
    k.memory.put64(ReturnedContext, address)
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltReferenceContext(k: Kernel, Context: PFLT_CONTEXT) -> None:
    c.context_at(k, Context, "FltReferenceContext").references += 1


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltReleaseContext(k: Kernel, Context: PFLT_CONTEXT) -> Model:
    yield from c.release(k, c.context_at(k, Context, "FltReleaseContext"))


@export(FLTMGR, irql=APC_LEVEL)
def FltDeleteContext(k: Kernel, Context: PFLT_CONTEXT) -> Model:
    """Detach a context; the caller's own reference stays."""
    context = c.context_at(k, Context, "FltDeleteContext")
    if context.table is not None:
        c.detach(context)
        yield from c.release(k, context)


# Set


def _set(
    k: Kernel, table: Table, key: object, kind: int, operation: int, new: int, old: int, caller: str
) -> Model:
    if old:
        k.memory.put64(old, 0)
    context = c.context_at(k, new, caller)
    if context.type != kind:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6E,
            new,
            kind,
            context.type,
            rule=f"{caller} was given {context.describe(k)}",
        )
    if operation > KEEP_IF_EXISTS:
        raise StatusError(STATUS_INVALID_PARAMETER)
    if context.table is not None:
        raise StatusError(STATUS_FLT_CONTEXT_ALREADY_LINKED)
    existing: Context | None = table.get(key)
    if existing is not None and operation == KEEP_IF_EXISTS:
        if old:
            existing.references += 1
            k.memory.put64(old, existing.address)
        raise StatusError(STATUS_FLT_CONTEXT_ALREADY_DEFINED)
    if existing is not None:
        c.detach(existing)
    c.attach(k, context, table, key)
    if existing is not None:
        if old:
            k.memory.put64(old, existing.address)
        else:
            yield from c.release(k, existing)
    return STATUS_SUCCESS


def _instance(k: Kernel, address: int) -> Instance:
    found: Instance = k.objects.get(address, INSTANCE_TYPE).body
    return found


def _settable(k: Kernel, address: int) -> Instance:
    instance = _instance(k, address)
    if instance.tearing_down or instance.filter.draining:
        raise StatusError(STATUS_FLT_DELETING_OBJECT)
    return instance


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltSetVolumeContext(
    k: Kernel, Volume: PVOID, Operation: ULONG, NewContext: PFLT_CONTEXT, OldContext: PVOID
) -> Model:
    volume = k.objects.get(Volume, VOLUME_TYPE).body
    owner = c.context_at(k, NewContext, "FltSetVolumeContext").owner
    if owner.draining:
        raise StatusError(STATUS_FLT_DELETING_OBJECT)
    table = c.table_of_volume(volume, owner)
    return (
        yield from _set(
            k, table, c.VOLUME, c.VOLUME, Operation, NewContext, OldContext, "FltSetVolumeContext"
        )
    )


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltSetInstanceContext(
    k: Kernel, Instance: PVOID, Operation: ULONG, NewContext: PFLT_CONTEXT, OldContext: PVOID
) -> Model:
    table = _settable(k, Instance).contexts
    return (
        yield from _set(
            k, table, c.INSTANCE, c.INSTANCE, Operation, NewContext, OldContext, "FltSetInstanceContext"
        )
    )


def _set_on_file(kind: int, caller: str) -> Callable[..., Model]:
    def set_context(k: Kernel, instance: int, file: int, operation: int, new: int, old: int) -> Model:
        found = _settable(k, instance)
        table = c.table_of_file(k, file_at(k, file, caller), kind)
        return (yield from _set(k, table, (found.address, kind), kind, operation, new, old, caller))

    return set_context


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltSetFileContext(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    Operation: ULONG,
    NewContext: PFLT_CONTEXT,
    OldContext: PVOID,
) -> Model:
    return (yield from _set_file(k, Instance, FileObject, Operation, NewContext, OldContext))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltSetStreamContext(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    Operation: ULONG,
    NewContext: PFLT_CONTEXT,
    OldContext: PVOID,
) -> Model:
    return (yield from _set_stream(k, Instance, FileObject, Operation, NewContext, OldContext))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltSetStreamHandleContext(
    k: Kernel,
    Instance: PVOID,
    FileObject: PVOID,
    Operation: ULONG,
    NewContext: PFLT_CONTEXT,
    OldContext: PVOID,
) -> Model:
    return (yield from _set_handle(k, Instance, FileObject, Operation, NewContext, OldContext))


_set_file = _set_on_file(c.FILE, "FltSetFileContext")
_set_stream = _set_on_file(c.STREAM, "FltSetStreamContext")
_set_handle = _set_on_file(c.STREAM_HANDLE, "FltSetStreamHandleContext")


# Get


def _get(k: Kernel, table: Table, key: object, out: int) -> int:
    k.memory.put64(out, 0)
    context: Context | None = table.get(key)
    if context is None:
        return STATUS_NOT_FOUND
    context.references += 1
    k.memory.put64(out, context.address)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetVolumeContext(k: Kernel, Filter: PVOID, Volume: PVOID, Context: PVOID) -> NTSTATUS:
    volume = k.objects.get(Volume, VOLUME_TYPE).body
    owner = k.objects.get(Filter, FILTER_TYPE).body
    return _get(k, c.table_of_volume(volume, owner), c.VOLUME, Context)


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetInstanceContext(k: Kernel, Instance: PVOID, Context: PVOID) -> NTSTATUS:
    return _get(k, _instance(k, Instance).contexts, c.INSTANCE, Context)


def _get_on_file(k: Kernel, instance: int, file: int, out: int, kind: int, caller: str) -> int:
    k.memory.put64(out, 0)
    table = c.table_of_file(k, file_at(k, file, caller), kind)
    return _get(k, table, (_instance(k, instance).address, kind), out)


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetFileContext(k: Kernel, Instance: PVOID, FileObject: PVOID, Context: PVOID) -> NTSTATUS:
    return _get_on_file(k, Instance, FileObject, Context, c.FILE, "FltGetFileContext")


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetStreamContext(k: Kernel, Instance: PVOID, FileObject: PVOID, Context: PVOID) -> NTSTATUS:
    return _get_on_file(k, Instance, FileObject, Context, c.STREAM, "FltGetStreamContext")


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltGetStreamHandleContext(k: Kernel, Instance: PVOID, FileObject: PVOID, Context: PVOID) -> NTSTATUS:
    return _get_on_file(k, Instance, FileObject, Context, c.STREAM_HANDLE, "FltGetStreamHandleContext")


# Delete


def _delete(k: Kernel, table: Table, key: object, old: int) -> Model:
    if old:
        k.memory.put64(old, 0)
    context: Context | None = table.get(key)
    if context is None:
        return STATUS_NOT_FOUND
    c.detach(context)
    if old:
        k.memory.put64(old, context.address)
    else:
        yield from c.release(k, context)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltDeleteVolumeContext(k: Kernel, Filter: PVOID, Volume: PVOID, OldContext: PVOID) -> Model:
    volume = k.objects.get(Volume, VOLUME_TYPE).body
    owner = k.objects.get(Filter, FILTER_TYPE).body
    return (yield from _delete(k, c.table_of_volume(volume, owner), c.VOLUME, OldContext))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltDeleteInstanceContext(k: Kernel, Instance: PVOID, OldContext: PVOID) -> Model:
    return (yield from _delete(k, _instance(k, Instance).contexts, c.INSTANCE, OldContext))


def _delete_on_file(k: Kernel, instance: int, file: int, old: int, kind: int, caller: str) -> Model:
    table = c.table_of_file(k, file_at(k, file, caller), kind)
    return (yield from _delete(k, table, (_instance(k, instance).address, kind), old))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltDeleteFileContext(k: Kernel, Instance: PVOID, FileObject: PVOID, OldContext: PVOID) -> Model:
    return (yield from _delete_on_file(k, Instance, FileObject, OldContext, c.FILE, "FltDeleteFileContext"))


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltDeleteStreamContext(k: Kernel, Instance: PVOID, FileObject: PVOID, OldContext: PVOID) -> Model:
    return (
        yield from _delete_on_file(k, Instance, FileObject, OldContext, c.STREAM, "FltDeleteStreamContext")
    )


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltDeleteStreamHandleContext(k: Kernel, Instance: PVOID, FileObject: PVOID, OldContext: PVOID) -> Model:
    return (
        yield from _delete_on_file(
            k, Instance, FileObject, OldContext, c.STREAM_HANDLE, "FltDeleteStreamHandleContext"
        )
    )


# Several at once

_ORDER = (c.VOLUME, c.INSTANCE, c.FILE, c.STREAM, c.STREAM_HANDLE)
"""Order of the members of FLT_RELATED_CONTEXTS; a transaction context follows, which no volume here has."""


@export(FLTMGR, irql=APC_LEVEL)
def FltGetContexts(k: Kernel, FltObjects: PVOID, DesiredContexts: USHORT, Contexts: PVOID) -> None:
    """FLT_RELATED_OBJECTS in, FLT_RELATED_CONTEXTS out; what is not there is NULL."""
    memory = k.memory
    memory.fill(Contexts, 48, 0)
    instance = _instance(k, memory.u64(FltObjects + 0x18))
    address = memory.u64(FltObjects + 0x20)
    for position, kind in enumerate(_ORDER):
        if not DesiredContexts & kind:
            continue
        out = Contexts + 8 * position
        if kind == c.VOLUME:
            _get(k, c.table_of_volume(instance.volume, instance.filter), c.VOLUME, out)
        elif kind == c.INSTANCE:
            _get(k, instance.contexts, c.INSTANCE, out)
        elif address:
            try:
                table = c.table_of_file(k, file_at(k, address, "FltGetContexts"), kind)
            except StatusError:
                continue
            _get(k, table, (instance.address, kind), out)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltReleaseContexts(k: Kernel, Contexts: PVOID) -> Model:
    for position in range(6):
        address = k.memory.u64(Contexts + 8 * position)
        if address:
            yield from c.release(k, c.context_at(k, address, "FltReleaseContexts"))
            k.memory.put64(Contexts + 8 * position, 0)


# What supports contexts


def _supports(k: Kernel, file: int, caller: str) -> bool:
    found = file_at(k, file, caller)
    return found.opened is not None and found.block is not None


@export(FLTMGR, irql=APC_LEVEL)
def FltSupportsFileContexts(k: Kernel, FileObject: PVOID) -> BOOLEAN:
    return _supports(k, FileObject, "FltSupportsFileContexts")


@export(FLTMGR, irql=APC_LEVEL)
def FltSupportsFileContextsEx(k: Kernel, FileObject: PVOID, Instance: PVOID) -> BOOLEAN:
    return _supports(k, FileObject, "FltSupportsFileContextsEx")


@export(FLTMGR, irql=APC_LEVEL)
def FltSupportsStreamContexts(k: Kernel, FileObject: PVOID) -> BOOLEAN:
    return _supports(k, FileObject, "FltSupportsStreamContexts")


@export(FLTMGR, irql=APC_LEVEL)
def FltSupportsStreamHandleContexts(k: Kernel, FileObject: PVOID) -> BOOLEAN:
    return _supports(k, FileObject, "FltSupportsStreamHandleContexts")
