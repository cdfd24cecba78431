"""What drivers import to work with callback data: dirty bit, requestor, buffers, pending, completion, reissue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.exports.declare import BOOLEAN, FLTMGR, HANDLE, NTSTATUS, PVOID, UCHAR, ULONG, export
from vm.emulated.fltmgr import io
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.answers import answers
from vm.emulated.fltmgr.close import cancel_open
from vm.emulated.fltmgr.file_objects import file_at
from vm.emulated.fltmgr.mdl import lock_user_buffer
from vm.emulated.fltmgr.model import INSTANCE_TYPE
from vm.emulated.fltmgr.requests import (
    IOPB_FILE,
    IOPB_MAJOR,
    IOPB_PARAMETERS,
    IOPB_SIZE,
    UNSET_STATUS,
    Pended,
    PostEntry,
    Request,
    Walk,
    instances_below,
    make_request,
    release_request,
    request_at,
)
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.exceptions import USER_END
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FLT_DELETING_OBJECT,
    STATUS_INVALID_PARAMETER,
    STATUS_PENDING,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, PASSIVE_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

PFLT_CALLBACK_DATA = PVOID
IO_READ_ACCESS, IO_WRITE_ACCESS = 0, 1
"""LOCK_OPERATION: what the device does to the buffer."""

_BUFFERS: dict[int, tuple[int | None, int, int, int]] = {
    n.IRP_MJ_READ: (0x20, 0x18, 0x00, IO_WRITE_ACCESS),
    n.IRP_MJ_WRITE: (0x20, 0x18, 0x00, IO_READ_ACCESS),
    n.IRP_MJ_QUERY_INFORMATION: (None, 0x10, 0x00, IO_WRITE_ACCESS),
    n.IRP_MJ_SET_INFORMATION: (None, 0x20, 0x00, IO_READ_ACCESS),
    n.IRP_MJ_QUERY_VOLUME_INFORMATION: (None, 0x10, 0x00, IO_WRITE_ACCESS),
    n.IRP_MJ_DIRECTORY_CONTROL: (0x28, 0x20, 0x00, IO_WRITE_ACCESS),
    n.IRP_MJ_QUERY_SECURITY: (0x18, 0x10, 0x08, IO_WRITE_ACCESS),
    n.IRP_MJ_QUERY_EA: (0x28, 0x20, 0x00, IO_WRITE_ACCESS),
    n.IRP_MJ_SET_EA: (0x10, 0x08, 0x00, IO_READ_ACCESS),
}
"""Major function -> offsets in FLT_PARAMETERS of MDL (None: there is none), buffer and length, and the access."""


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltSetCallbackDataDirty(k: Kernel, Data: PFLT_CALLBACK_DATA) -> None:
    request_at(k, Data, "FltSetCallbackDataDirty").change_flags(add=n.FLTFL_CALLBACK_DATA_DIRTY)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltClearCallbackDataDirty(k: Kernel, Data: PFLT_CALLBACK_DATA) -> None:
    request_at(k, Data, "FltClearCallbackDataDirty").change_flags(remove=n.FLTFL_CALLBACK_DATA_DIRTY)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltIsCallbackDataDirty(k: Kernel, Data: PFLT_CALLBACK_DATA) -> BOOLEAN:
    return bool(request_at(k, Data, "FltIsCallbackDataDirty").flags & n.FLTFL_CALLBACK_DATA_DIRTY)


# The requestor


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltGetRequestorProcess(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> PVOID:
    return request_at(k, CallbackData, "FltGetRequestorProcess").thread.process.address


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltGetRequestorProcessId(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> ULONG:
    return request_at(k, CallbackData, "FltGetRequestorProcessId").thread.process.id


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltGetRequestorProcessIdEx(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> HANDLE:
    return request_at(k, CallbackData, "FltGetRequestorProcessIdEx").thread.process.id


@export(FLTMGR, irql=APC_LEVEL)
def FltGetRequestorSessionId(k: Kernel, CallbackData: PFLT_CALLBACK_DATA, SessionId: PVOID) -> NTSTATUS:
    """Remote commands and services run in session 0."""
    request_at(k, CallbackData, "FltGetRequestorSessionId")
    k.memory.put32(SessionId, 0)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
def FltIs32bitProcess(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> BOOLEAN:
    if CallbackData:
        request_at(k, CallbackData, "FltIs32bitProcess")
    return False


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltIsOperationSynchronous(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> BOOLEAN:
    request = request_at(k, CallbackData, "FltIsOperationSynchronous")
    file = request.file
    if request.fast_io or (file is not None and file.synchronous):
        return True
    return bool(request.irp_flags & (n.IRP_SYNCHRONOUS_API | n.IRP_SYNCHRONOUS_PAGING_IO))


# Buffers


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltDecodeParameters(
    k: Kernel,
    CallbackData: PFLT_CALLBACK_DATA,
    MdlAddressPointer: PVOID,
    Buffer: PVOID,
    Length: PVOID,
    DesiredAccess: PVOID,
) -> NTSTATUS:
    """Pointers to the members of Iopb->Parameters that describe the buffer."""
    request = request_at(k, CallbackData, "FltDecodeParameters")
    found = _BUFFERS.get(request.major)
    if found is None:
        return STATUS_INVALID_PARAMETER
    mdl, buffer, length, access = found
    base = request.iopb + IOPB_PARAMETERS
    k.memory.put64(Buffer, base + buffer)
    if MdlAddressPointer:
        k.memory.put64(MdlAddressPointer, base + mdl if mdl is not None else 0)
    if Length:
        k.memory.put64(Length, base + length)
    if DesiredAccess:
        k.memory.put32(DesiredAccess, access)
    return STATUS_SUCCESS


@export(FLTMGR, irql=APC_LEVEL)
@answers
def FltLockUserBuffer(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> NTSTATUS:
    """An MDL for the user buffer, mapped into the system half; it goes with the request."""
    request = request_at(k, CallbackData, "FltLockUserBuffer")
    found = _BUFFERS.get(request.major)
    if found is None:
        raise StatusError(STATUS_INVALID_PARAMETER)
    mdl_offset, buffer_offset, length_offset, access = found
    if mdl_offset is None:
        raise StatusError(STATUS_INVALID_PARAMETER)
    buffer, length = request.parameter(buffer_offset), request.parameter32(length_offset)
    if request.parameter(mdl_offset) or not buffer or not length or buffer >= USER_END:
        return STATUS_SUCCESS
    mdl = lock_user_buffer(k, request.thread.process, buffer, length, write=access == IO_WRITE_ACCESS)
    request.mdls.append(mdl)
    raw = mdl.to_bytes(8, "little")
    at = IOPB_PARAMETERS + mdl_offset
    k.memory.write(request.iopb + at, raw)
    # The Filter Manager made this change: it counts without the dirty bit, and every instance sees it from now on.
    for walk in request.walks:
        holders: list[PostEntry | Pended] = list(walk.posts)
        if walk.pended is not None:
            holders.append(walk.pended)
        for holder in holders:
            if holder.parameters[at : at + 8] == bytes(8):
                holder.parameters = holder.parameters[:at] + raw + holder.parameters[at + 8 :]
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltGetSwappedBufferMdlAddress(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> PVOID:
    """The file system of the model never needs an MDL of a swapped buffer, so none was made."""
    request_at(k, CallbackData, "FltGetSwappedBufferMdlAddress")
    return 0


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltRetainSwappedBufferMdlAddress(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> None:
    request_at(k, CallbackData, "FltRetainSwappedBufferMdlAddress")


# Pending and completing


@export(FLTMGR, irql=APC_LEVEL)
def FltCompletePendedPreOperation(
    k: Kernel, CallbackData: PFLT_CALLBACK_DATA, CallbackStatus: ULONG, Context: PVOID
) -> Model:
    request = request_at(k, CallbackData, "FltCompletePendedPreOperation")
    yield from io.complete_pended_pre(k, request, CallbackStatus, Context)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltCompletePendedPostOperation(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> Model:
    yield from io.complete_pended_post(k, request_at(k, CallbackData, "FltCompletePendedPostOperation"))


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltDoCompletionProcessingWhenSafe(
    k: Kernel,
    Data: PFLT_CALLBACK_DATA,
    FltObjects: PVOID,
    CompletionContext: PVOID,
    Flags: ULONG,
    SafePostCallback: PVOID,
    RetPostOperationStatus: PVOID,
) -> Model:
    """Call `SafePostCallback` now if the IRQL allows it, else in a worker thread with the completion pended."""
    request = request_at(k, Data, "FltDoCompletionProcessingWhenSafe")
    if Flags & io.POST_OPERATION_DRAINING:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x66,
            Data,
            rule="FltDoCompletionProcessingWhenSafe was called while draining; a draining callback must finish at once",
        )
    arguments = (Data, FltObjects, CompletionContext, Flags)
    name = f"safe {io.callback_name(k, SafePostCallback, request.major)}"
    if k.engine.irql < DISPATCH_LEVEL:
        status = yield Call(SafePostCallback, arguments, name)
        k.memory.put32(RetPostOperationStatus, status & 0xFFFF_FFFF)
        return True
    if request.irp_flags & n.IRP_PAGING_IO or request.fast_io:
        k.memory.put32(RetPostOperationStatus, io.FINISHED_PROCESSING)
        return False
    k.memory.put32(RetPostOperationStatus, io.MORE_PROCESSING_REQUIRED)
    k.start_system_thread(_complete_later(k, request, SafePostCallback, arguments, name), "completion worker")
    return True


def _complete_later(
    k: Kernel, request: Request, callback: int, arguments: tuple[int, ...], name: str
) -> Model:
    status = yield Call(callback, arguments, name)
    if status & 0xFFFF_FFFF != io.MORE_PROCESSING_REQUIRED:
        yield from io.complete_pended_post(k, request)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltCancelFileOpen(k: Kernel, Instance: PVOID, FileObject: PVOID) -> Model:
    """In a post-create callback only: before a handle exists."""
    k.objects.get(Instance, INSTANCE_TYPE)
    file = file_at(k, FileObject, "FltCancelFileOpen")
    if file.flags & n.FO_HANDLE_CREATED or file.cleaned_up:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6A,
            FileObject,
            rule="FltCancelFileOpen was called for a file object that has a handle already; it is for post-create callbacks",
        )
    yield from cancel_open(k, file)


@export(FLTMGR, irql=PASSIVE_LEVEL)
def FltReissueSynchronousIo(k: Kernel, InitiatingInstance: PVOID, CallbackData: PFLT_CALLBACK_DATA) -> Model:
    instance = k.objects.get(InitiatingInstance, INSTANCE_TYPE).body
    request = request_at(k, CallbackData, "FltReissueSynchronousIo")
    if request.fast_io or request.walk.pended is None or not request.walk.pended.is_post:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x66,
            CallbackData,
            rule="FltReissueSynchronousIo is for post-operation callbacks of IRP-based operations",
        )
    yield from io.reissue(k, request, instance)


# Requests of a filter's own


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltAllocateCallbackData(
    k: Kernel, Instance: PVOID, FileObject: PVOID, RetNewCallbackData: PVOID
) -> NTSTATUS:
    """The filter fills Iopb in and sends it with FltPerformSynchronousIo."""
    instance = k.objects.get(Instance, INSTANCE_TYPE).body
    if instance.tearing_down:
        return STATUS_FLT_DELETING_OBJECT
    request = make_request(
        k,
        major=0,
        volume=instance.volume,
        file_object=FileObject,
        thread=k.current,
        parameters=bytes(48),
        top=instance,
        data_flags=n.FLTFL_CALLBACK_DATA_GENERATED_IO,
    )
    request.cleared = True
    k.memory.put64(RetNewCallbackData, request.data)
    return STATUS_SUCCESS


def _prepare(k: Kernel, data: int, caller: str) -> Request:
    request = request_at(k, data, caller)
    if request.initiator is None or not request.cleared:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6B,
            data,
            rule=f"{caller} was given callback data that FltAllocateCallbackData did not make, or that is in use",
        )
    request.cleared = False
    request.thread = k.current
    request.major = k.memory.u8(request.iopb + IOPB_MAJOR)
    request.walk = Walk(instances_below(request.volume, request.initiator))
    request.walks = [request.walk]
    request.make_slots(len(request.walk.instances))
    request.set_status(UNSET_STATUS)
    return request


@export(FLTMGR, irql=APC_LEVEL)
def FltPerformSynchronousIo(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> Model:
    yield from io.send(k, _prepare(k, CallbackData, "FltPerformSynchronousIo"), keep=True)


@export(FLTMGR, irql=APC_LEVEL)
def FltPerformAsynchronousIo(
    k: Kernel, CallbackData: PFLT_CALLBACK_DATA, CallbackRoutine: PVOID, CallbackContext: PVOID
) -> NTSTATUS:
    """The request runs in a system thread, which then calls `CallbackRoutine(CallbackData, CallbackContext)`."""
    request = _prepare(k, CallbackData, "FltPerformAsynchronousIo")

    def work() -> Model:
        request.thread = k.current
        yield from io.send(k, request, keep=True)
        yield Call(CallbackRoutine, (CallbackData, CallbackContext), "completion of FltPerformAsynchronousIo")

    k.start_system_thread(work(), "asynchronous I/O of a filter")
    return STATUS_PENDING


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltFreeCallbackData(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> None:
    request = request_at(k, CallbackData, "FltFreeCallbackData")
    if request.initiator is None or not request.cleared:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x6B,
            CallbackData,
            rule="FltFreeCallbackData was given callback data that the filter did not allocate, or that is in use",
        )
    release_request(k, request)


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltReuseCallbackData(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> None:
    request = request_at(k, CallbackData, "FltReuseCallbackData")
    file = k.memory.u64(request.iopb + IOPB_FILE)
    k.memory.fill(request.iopb, IOPB_SIZE, 0)
    k.memory.put64(request.iopb + IOPB_FILE, file)
    request.set_status(UNSET_STATUS)
    request.change_flags(
        remove=n.FLTFL_CALLBACK_DATA_DIRTY
        | n.FLTFL_CALLBACK_DATA_POST_OPERATION
        | n.FLTFL_CALLBACK_DATA_REISSUED_IO
    )


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltSetCancelCompletion(k: Kernel, CallbackData: PFLT_CALLBACK_DATA, CanceledCallback: PVOID) -> NTSTATUS:
    """Accepted and never called: no client of the model cancels file I/O."""
    request_at(k, CallbackData, "FltSetCancelCompletion")
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltClearCancelCompletion(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> NTSTATUS:
    request_at(k, CallbackData, "FltClearCancelCompletion")
    return STATUS_SUCCESS


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltCancelIo(k: Kernel, CallbackData: PFLT_CALLBACK_DATA) -> BOOLEAN:
    """FALSE: whatever has reached the file system is complete at once."""
    request_at(k, CallbackData, "FltCancelIo")
    return False


@export(FLTMGR, irql=DISPATCH_LEVEL)
def FltGetIrpName(k: Kernel, IrpMajorCode: UCHAR) -> PVOID:
    """A constant ANSI string."""
    strings: dict[int, int] = k.services.setdefault("irp_names", {})
    address = strings.get(IrpMajorCode)
    if address is None:
        text = n.operation_name(IrpMajorCode).encode() + b"\0"
        address = strings[IrpMajorCode] = k.pool.allocate(len(text), "FMnm", owner="fltmgr")
        k.memory.write(address, text)
    return address
