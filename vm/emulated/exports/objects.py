"""Object references and handles: ObReferenceObject..., ZwClose, named events, and the object types drivers ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import (
    ACCESS_MASK,
    BOOLEAN,
    HANDLE,
    KPROCESSOR_MODE,
    NTOSKRNL,
    PVOID,
    ULONG,
    alias,
    export,
)
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.dispatcher import ObjectType
from vm.emulated.kernel.objects import (
    CURRENT_PROCESS,
    CURRENT_THREAD,
    KERNEL_HANDLE_BIT,
    HandleEntry,
    HandleTable,
    KObject,
    StatusError,
)
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_EXISTS,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import (
    APC_LEVEL,
    DISPATCH_LEVEL,
    KERNEL_MODE,
    PASSIVE_LEVEL,
    USER_MODE,
    Model,
    Wait,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

OBJ_INHERIT = 0x2
OBJ_PERMANENT = 0x10
OBJ_CASE_INSENSITIVE = 0x40
OBJ_OPENIF = 0x80
OBJ_KERNEL_HANDLE = 0x200
OBJECT_ATTRIBUTES_SIZE = 0x30
EVENT = "Event"
EVENT_ALL_ACCESS = 0x1F0003


class ObjectAttributes:
    """OBJECT_ATTRIBUTES as a driver filled it in: Length, RootDirectory 0x08, ObjectName 0x10, Attributes 0x18."""

    __slots__ = ("flags", "name", "root", "security_descriptor")

    def __init__(self, k: Kernel, address: int) -> None:
        memory = k.memory
        if memory.u32(address) != OBJECT_ATTRIBUTES_SIZE:
            raise StatusError(STATUS_INVALID_PARAMETER)
        self.root = memory.u64(address + 8)
        name = memory.u64(address + 0x10)
        self.name: str | None = memory.unicode_string(name) if name else None
        self.flags = memory.u32(address + 0x18)
        self.security_descriptor = memory.u64(address + 0x20)


def table_of(k: Kernel, handle: int) -> HandleTable:
    """The table that a handle value belongs to: the system's for kernel handles, else that of the current process."""
    return k.handle_table(k.current, kernel=handle & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT)


def entry_of(k: Kernel, handle: int, mode: int = KERNEL_MODE) -> HandleEntry:
    """What a handle refers to, pseudo handles included.

    Raises:
        StatusError: STATUS_INVALID_HANDLE, also for a kernel handle that comes from user mode.
    """
    thread = k.current
    if handle == CURRENT_PROCESS:
        return HandleEntry(k.objects.get(thread.process.address), 0x1F_FFFF)
    if handle == CURRENT_THREAD:
        return HandleEntry(k.objects.get(thread.address), 0x1F_FFFF)
    if mode == USER_MODE and handle & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT:
        raise StatusError(STATUS_INVALID_HANDLE)
    return table_of(k, handle).get(handle)


def insert_handle(k: Kernel, item: KObject, access: int, flags: int) -> int:
    """A new handle in the system's table (OBJ_KERNEL_HANDLE) or in that of the current process."""
    table = k.handle_table(k.current, kernel=bool(flags & OBJ_KERNEL_HANDLE))
    return table.insert(HandleEntry(item, access, inherit=bool(flags & OBJ_INHERIT)))


def type_name(k: Kernel, object_type: int) -> str | None:
    """The kind of object behind a POBJECT_TYPE; None for NULL."""
    if object_type == 0:
        return None
    kind: str = k.objects.get(object_type, "Type").body
    return kind


# References


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObReferenceObjectByHandle(
    k: Kernel,
    Handle: HANDLE,
    DesiredAccess: ACCESS_MASK,
    ObjectType: PVOID,
    AccessMode: KPROCESSOR_MODE,
    Object: PVOID,
    HandleInformation: PVOID,
) -> int:
    """Access is checked for AccessMode=UserMode only; the type whenever one is given (docs)."""
    k.memory.put64(Object, 0)
    try:
        entry = entry_of(k, Handle, AccessMode)
    except StatusError as error:
        return error.status
    kind = type_name(k, ObjectType)
    if kind is not None and entry.object.type != kind:
        return STATUS_OBJECT_TYPE_MISMATCH
    if AccessMode == USER_MODE and DesiredAccess & ~entry.access:
        return STATUS_ACCESS_DENIED
    k.objects.reference(entry.object)
    k.memory.put64(Object, entry.object.address)
    if HandleInformation:
        k.memory.put32(HandleInformation, 0)
        k.memory.put32(HandleInformation + 4, entry.access)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObReferenceObjectByHandleWithTag(
    k: Kernel,
    Handle: HANDLE,
    DesiredAccess: ACCESS_MASK,
    ObjectType: PVOID,
    AccessMode: KPROCESSOR_MODE,
    Tag: ULONG,
    Object: PVOID,
    HandleInformation: PVOID,
) -> int:
    result: int = ObReferenceObjectByHandle(
        k, Handle, DesiredAccess, ObjectType, AccessMode, Object, HandleInformation
    )
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObReferenceObjectByPointer(
    k: Kernel, Object: PVOID, DesiredAccess: ACCESS_MASK, ObjectType: PVOID, AccessMode: KPROCESSOR_MODE
) -> int:
    """A type is needed in user mode (docs)."""
    item = k.objects.get(Object)
    kind = type_name(k, ObjectType)
    if (kind is not None and item.type != kind) or (kind is None and AccessMode == USER_MODE):
        return STATUS_OBJECT_TYPE_MISMATCH
    k.objects.reference(item)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObfReferenceObject(k: Kernel, Object: PVOID) -> int:
    item = k.objects.get(Object)
    k.objects.reference(item)
    return item.references


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObfReferenceObjectWithTag(k: Kernel, Object: PVOID, Tag: ULONG) -> int:
    result: int = ObfReferenceObject(k, Object)
    return result


ObReferenceObject = alias(ObfReferenceObject, "ObReferenceObject")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObReferenceObjectSafe(k: Kernel, Object: PVOID) -> bool:
    item = k.objects.get(Object)
    if item.references <= 0:
        return False
    k.objects.reference(item)
    return True


def _dereference(k: Kernel, address: int) -> int:
    item = k.objects.get(address)
    if item.references - item.handles <= 0 and not item.permanent:
        raise Bugcheck(
            bc.REFERENCE_BY_POINTER,
            0,
            address,
            2,
            item.references,
            rule=f"the '{item.type}' object at {address:#x} was dereferenced more often than it was referenced: only its "
            f"{item.handles} open handle{'s' if item.handles != 1 else ''} kept it alive",
        )
    k.objects.dereference(item)
    return item.references


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObfDereferenceObject(k: Kernel, Object: PVOID) -> int:
    """At DISPATCH_LEVEL only while it is not the last reference; deletion is deferred then (docs)."""
    return _dereference(k, Object)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObfDereferenceObjectWithTag(k: Kernel, Object: PVOID, Tag: ULONG) -> int:
    return _dereference(k, Object)


ObDereferenceObject = alias(ObfDereferenceObject, "ObDereferenceObject")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObDereferenceObjectDeferDelete(k: Kernel, Object: PVOID) -> None:
    _dereference(k, Object)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ObDereferenceObjectDeferDeleteWithTag(k: Kernel, Object: PVOID, Tag: ULONG) -> None:
    _dereference(k, Object)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObOpenObjectByPointer(
    k: Kernel,
    Object: PVOID,
    HandleAttributes: ULONG,
    PassedAccessState: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectType: PVOID,
    AccessMode: KPROCESSOR_MODE,
    Handle: PVOID,
) -> int:
    item = k.objects.get(Object)
    kind = type_name(k, ObjectType)
    if kind is not None and item.type != kind:
        return STATUS_OBJECT_TYPE_MISMATCH
    k.memory.put64(Handle, insert_handle(k, item, DesiredAccess, HandleAttributes))
    return STATUS_SUCCESS


# Handles


def close_handle(k: Kernel, handle: int, mode: int = KERNEL_MODE) -> Any:
    """Close a handle for the running thread: a status, or a generator that returns it after the cleanup."""
    if handle in (CURRENT_PROCESS, CURRENT_THREAD):
        return STATUS_SUCCESS
    kernel_handle = handle & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT
    if kernel_handle and mode == USER_MODE:
        return STATUS_INVALID_HANDLE
    try:
        work = k.objects.close(table_of(k, handle), handle)
    except StatusError as error:
        if kernel_handle:
            raise Bugcheck(
                bc.INVALID_KERNEL_HANDLE,
                handle,
                0,
                rule=f"ZwClose was called for the kernel handle {handle:#x}, which is not open (closed twice, or never "
                "opened)",
            ) from error
        k.violate(
            "handle.invalid",
            f"ZwClose was called for the handle {handle:#x}, which is not open",
            k.caller()[0],
        )
        return error.status
    return STATUS_SUCCESS if work is None else _finish_close(work)


def _finish_close(work: Model) -> Model:
    yield from work
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwClose(k: Kernel, Handle: HANDLE) -> Any:
    """A bad kernel handle is bugcheck 0x93 (docs of INVALID_KERNEL_HANDLE)."""
    return close_handle(k, Handle)


NtClose = alias(ZwClose, "NtClose")


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObCloseHandle(k: Kernel, Handle: HANDLE, PreviousMode: KPROCESSOR_MODE) -> Any:
    return close_handle(k, Handle, PreviousMode)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwDuplicateObject(
    k: Kernel,
    SourceProcessHandle: HANDLE,
    SourceHandle: HANDLE,
    TargetProcessHandle: HANDLE,
    TargetHandle: PVOID,
    DesiredAccess: ACCESS_MASK,
    HandleAttributes: ULONG,
    Options: ULONG,
) -> Any:
    """DUPLICATE_CLOSE_SOURCE (1) and DUPLICATE_SAME_ACCESS (2)."""
    try:
        source = entry_of(k, SourceProcessHandle).object
        target = entry_of(k, TargetProcessHandle).object
        if source.type != "Process" or target.type != "Process":
            return STATUS_OBJECT_TYPE_MISMATCH
        entry = source.body.handles.get(SourceHandle)
    except StatusError as error:
        return error.status
    access = entry.access if Options & 2 else DesiredAccess
    table = k.system.handles if HandleAttributes & OBJ_KERNEL_HANDLE else target.body.handles
    k.memory.put64(TargetHandle, table.insert(HandleEntry(entry.object, access)))
    if Options & 1:
        work = k.objects.close(source.body.handles, SourceHandle)
        if work is not None:
            return _finish_close(work)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObIsKernelHandle(k: Kernel, Handle: HANDLE) -> bool:
    return Handle & KERNEL_HANDLE_BIT == KERNEL_HANDLE_BIT


@export(NTOSKRNL, irql=APC_LEVEL)
def ObGetObjectType(k: Kernel, Object: PVOID) -> int:
    return k.type_object(k.objects.get(Object).type)


@export(NTOSKRNL, irql=APC_LEVEL)
def ObMakeTemporaryObject(k: Kernel, Object: PVOID) -> None:
    k.objects.get(Object).permanent = False


def referenced_wait(k: Kernel, handle: int, timeout: int | None) -> Any:
    """Wait for the dispatcher object behind a handle, which stays referenced meanwhile."""
    try:
        entry = entry_of(k, handle)
    except StatusError as error:
        return error.status
    return _wait(k, entry.object, timeout)


def _wait(k: Kernel, item: KObject, timeout: int | None) -> Model:
    if item.type not in (EVENT, "Thread", "Process"):
        return STATUS_OBJECT_TYPE_MISMATCH
    k.objects.reference(item)
    status = yield Wait((item.address,), timeout)
    k.objects.dereference(item)
    return status


# Named and unnamed events


def _new_event(k: Kernel, name: str | None, kind: int, state: int) -> KObject:
    address = k.pool.allocate(0x18, "Even", owner="nt")
    try:
        item = k.objects.create(
            EVENT, None, name=name, address=address, on_delete=lambda: k.pool.free(address, "Even")
        )
    except StatusError:
        k.pool.free(address, "Even")
        raise
    k.dispatcher.initialize(address, kind, state)
    return item


def _resolve(k: Kernel, attributes: ObjectAttributes) -> str | None:
    if attributes.root and attributes.name is not None:
        parent = entry_of(k, attributes.root).object
        return f"{(parent.name or '').rstrip(chr(92))}\\{attributes.name}"
    return attributes.name or None


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwCreateEvent(
    k: Kernel,
    EventHandle: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectAttributes_: PVOID,
    EventType: ULONG,
    InitialState: BOOLEAN,
) -> int:
    try:
        attributes = ObjectAttributes(k, ObjectAttributes_) if ObjectAttributes_ else None
        flags = attributes.flags if attributes is not None else 0
        name = _resolve(k, attributes) if attributes is not None else None
        try:
            item = _new_event(k, name, EventType & 1, int(InitialState != 0))
            status = STATUS_SUCCESS
        except StatusError as error:
            if error.status != STATUS_OBJECT_NAME_COLLISION or not flags & OBJ_OPENIF or name is None:
                return error.status
            item = k.objects.lookup(name)
            if item.type != EVENT:
                return STATUS_OBJECT_TYPE_MISMATCH
            k.objects.reference(item)
            status = STATUS_OBJECT_NAME_EXISTS
    except StatusError as error:
        return error.status
    k.memory.put64(EventHandle, insert_handle(k, item, DesiredAccess, flags))
    k.objects.dereference(item)
    return status


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwOpenEvent(k: Kernel, EventHandle: PVOID, DesiredAccess: ACCESS_MASK, ObjectAttributes_: PVOID) -> int:
    try:
        attributes = ObjectAttributes(k, ObjectAttributes_)
        item = k.objects.lookup(_resolve(k, attributes) or "")
    except StatusError as error:
        return error.status
    if item.type != EVENT:
        return STATUS_OBJECT_TYPE_MISMATCH
    k.memory.put64(EventHandle, insert_handle(k, item, DesiredAccess, attributes.flags))
    return STATUS_SUCCESS


def _event_of(k: Kernel, handle: int) -> int:
    item = entry_of(k, handle).object
    if item.type != EVENT:
        raise StatusError(STATUS_OBJECT_TYPE_MISMATCH)
    return item.address


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwSetEvent(k: Kernel, EventHandle: HANDLE, PreviousState: PVOID) -> int:
    try:
        previous = k.dispatcher.set_event(_event_of(k, EventHandle))
    except StatusError as error:
        return error.status
    if PreviousState:
        k.memory.put32(PreviousState, previous)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwResetEvent(k: Kernel, EventHandle: HANDLE, PreviousState: PVOID) -> int:
    try:
        previous = k.dispatcher.reset_event(_event_of(k, EventHandle))
    except StatusError as error:
        return error.status
    if PreviousState:
        k.memory.put32(PreviousState, previous)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwClearEvent(k: Kernel, EventHandle: HANDLE) -> int:
    try:
        k.dispatcher.reset_event(_event_of(k, EventHandle))
    except StatusError as error:
        return error.status
    return STATUS_SUCCESS


def _io_create_event(k: Kernel, name_address: int, handle_address: int, kind: int) -> int:
    """IoCreateNotificationEvent and its twin: the event, or 0."""
    name = k.memory.unicode_string(name_address) if name_address else None
    try:
        item = _new_event(k, name, kind, 1)
    except StatusError as error:
        if error.status != STATUS_OBJECT_NAME_COLLISION or name is None:
            return 0
        item = k.objects.lookup(name)
        if item.type != EVENT:
            return 0
        k.objects.reference(item)
    k.memory.put64(handle_address, insert_handle(k, item, EVENT_ALL_ACCESS, OBJ_KERNEL_HANDLE))
    k.objects.dereference(item)
    return item.address


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def IoCreateNotificationEvent(k: Kernel, EventName: PVOID, EventHandle: PVOID) -> int:
    """Signalled when it is created (docs)."""
    return _io_create_event(k, EventName, EventHandle, ObjectType.NOTIFICATION_EVENT)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def IoCreateSynchronizationEvent(k: Kernel, EventName: PVOID, EventHandle: PVOID) -> int:
    return _io_create_event(k, EventName, EventHandle, ObjectType.SYNCHRONIZATION_EVENT)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ObReferenceObjectByName(
    k: Kernel,
    ObjectName: PVOID,
    Attributes: ULONG,
    AccessState: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectType: PVOID,
    AccessMode: KPROCESSOR_MODE,
    ParseContext: PVOID,
    Object: PVOID,
) -> int:
    try:
        item = k.objects.lookup(k.memory.unicode_string(ObjectName))
    except StatusError as error:
        return error.status
    kind = type_name(k, ObjectType)
    if kind is not None and item.type != kind:
        return STATUS_OBJECT_TYPE_MISMATCH
    k.objects.reference(item)
    k.memory.put64(Object, item.address)
    return STATUS_SUCCESS
