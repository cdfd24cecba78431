"""Threads and processes: system threads, identities, work items, process notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import (
    ACCESS_MASK,
    BOOLEAN,
    HANDLE,
    KPRIORITY,
    NTOSKRNL,
    NTSTATUS,
    PVOID,
    ULONG,
    alias,
    export,
)
from vm.emulated.exports.objects import ObjectAttributes, entry_of, insert_handle
from vm.emulated.exports.pool import allocate
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.processes import KProcess
from vm.emulated.kernel.status import (
    STATUS_INVALID_CID,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_TYPE_MISMATCH,
    STATUS_PROCEDURE_NOT_FOUND,
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
)
from vm.emulated.kernel.threads import (
    APC_LEVEL,
    DISPATCH_LEVEL,
    HIGH_LEVEL,
    PASSIVE_LEVEL,
    Call,
    GuestFrame,
    KThread,
    Model,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

THREAD_ALL_ACCESS = 0x1F_FFFF


def thread_at(k: Kernel, address: int) -> KThread:
    """The thread behind a PETHREAD of the driver; anything else is a bugcheck."""
    thread: KThread = k.objects.get(address, "Thread").body
    return thread


def process_at(k: Kernel, address: int) -> KProcess:
    """The process behind a PEPROCESS of the driver; anything else is a bugcheck."""
    process: KProcess = k.objects.get(address, "Process").body
    return process


# System threads


def _system_thread(routine: int, context: int, name: str) -> Model:
    yield Call(routine, (context,), name)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsCreateSystemThread(
    k: Kernel,
    ThreadHandle: PVOID,
    DesiredAccess: ULONG,
    ObjectAttributes_: PVOID,
    ProcessHandle: HANDLE,
    ClientId: PVOID,
    StartRoutine: PVOID,
    StartContext: PVOID,
) -> int:
    """Without OBJ_KERNEL_HANDLE the handle goes to the current process, where its client could close it (docs)."""
    process = k.system
    try:
        if ProcessHandle:
            item = entry_of(k, ProcessHandle).object
            if item.type != "Process":
                return STATUS_OBJECT_TYPE_MISMATCH
            process = item.body
        flags = ObjectAttributes(k, ObjectAttributes_).flags if ObjectAttributes_ else 0
    except StatusError as error:
        return error.status
    k.memory.put64(ThreadHandle, 0)
    name = k.describe(StartRoutine)
    thread = k.create_thread(process, name)
    handle = insert_handle(k, k.objects.get(thread.address), DesiredAccess or THREAD_ALL_ACCESS, flags)
    k.memory.put64(ThreadHandle, handle)
    if ClientId:
        k.memory.put64(ClientId, process.id)
        k.memory.put64(ClientId + 8, thread.id)
    k.scheduler.push_model(
        thread, _system_thread(StartRoutine, StartContext, "system thread routine"), f"system thread {name}"
    )
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=APC_LEVEL)
def PsTerminateSystemThread(k: Kernel, ExitStatus: NTSTATUS) -> Model:
    """Ends the calling thread; does not return. At PASSIVE_LEVEL, as a thread may end there only."""
    thread = k.current
    if not thread.is_system:
        return STATUS_INVALID_PARAMETER
    thread.exit_status = ExitStatus
    for frame in thread.frames[:-1]:
        if isinstance(frame, GuestFrame):
            k.forget_call(thread)
    for frame in reversed(thread.frames[:-1]):
        if not isinstance(frame, GuestFrame):
            frame.generator.close()
    del thread.frames[:-1]
    return STATUS_SUCCESS
    yield  # a generator: the scheduler finds an empty stack when it has returned, and ends the thread


@export(NTOSKRNL, irql=APC_LEVEL)
def PsGetThreadExitStatus(k: Kernel, Thread: PVOID) -> int:
    return thread_at(k, Thread).exit_status


# Who runs


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetCurrentThreadId(k: Kernel) -> int:
    return k.current.id


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetCurrentProcessId(k: Kernel) -> int:
    return k.current.process.id


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoGetCurrentProcess(k: Kernel) -> int:
    return k.current.process.address


PsGetCurrentProcess = alias(IoGetCurrentProcess, "PsGetCurrentProcess")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeGetCurrentThread(k: Kernel) -> int:
    return k.current.address


PsGetCurrentThread = alias(KeGetCurrentThread, "PsGetCurrentThread")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExGetPreviousMode(k: Kernel) -> int:
    return k.current.previous_mode


KeGetPreviousMode = alias(ExGetPreviousMode, "KeGetPreviousMode")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetProcessId(k: Kernel, Process: PVOID) -> int:
    return process_at(k, Process).id


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetThreadId(k: Kernel, Thread: PVOID) -> int:
    return thread_at(k, Thread).id


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetThreadProcessId(k: Kernel, Thread: PVOID) -> int:
    return thread_at(k, Thread).process.id


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetThreadProcess(k: Kernel, Thread: PVOID) -> int:
    return thread_at(k, Thread).process.address


IoThreadToProcess = alias(PsGetThreadProcess, "IoThreadToProcess")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsIsSystemThread(k: Kernel, Thread: PVOID) -> bool:
    thread = thread_at(k, Thread)
    return thread.is_system and thread.process.is_system


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsIsThreadTerminating(k: Kernel, Thread: PVOID) -> bool:
    return thread_at(k, Thread).terminating


IoIsSystemThread = alias(PsIsSystemThread, "IoIsSystemThread")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsIsSystemProcess(k: Kernel, Process: PVOID) -> bool:
    return process_at(k, Process).is_system


@export(NTOSKRNL, irql=APC_LEVEL)
def PsLookupProcessByProcessId(k: Kernel, ProcessId: HANDLE, Process: PVOID) -> int:
    """The process comes referenced."""
    for process in k.processes.values():
        if process.id == ProcessId:
            k.objects.reference(k.objects.get(process.address))
            k.memory.put64(Process, process.address)
            return STATUS_SUCCESS
    return STATUS_INVALID_PARAMETER


@export(NTOSKRNL, irql=APC_LEVEL)
def PsLookupThreadByThreadId(k: Kernel, ThreadId: HANDLE, Thread: PVOID) -> int:
    """The thread comes referenced."""
    for thread in k.threads.values():
        if thread.id == ThreadId:
            k.objects.reference(k.objects.get(thread.address))
            k.memory.put64(Thread, thread.address)
            return STATUS_SUCCESS
    return STATUS_INVALID_CID if ThreadId % 4 == 0 else STATUS_INVALID_PARAMETER


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def PsGetProcessImageFileName(k: Kernel, Process: PVOID) -> int:
    """Address of the short name (at most 14 characters), which lives as long as the process object."""
    process = process_at(k, Process)
    name = process.image.rpartition("\\")[2].encode("ascii", "replace")[:14]
    address = process.address + 0x180
    k.memory.write(address, name.ljust(15, b"\0"))
    return address


@export(NTOSKRNL, irql=APC_LEVEL)
def PsGetProcessCreateTimeQuadPart(k: Kernel, Process: PVOID) -> int:
    return process_at(k, Process).create_time


@export(NTOSKRNL, irql=APC_LEVEL)
def PsGetProcessExitProcessCalled(k: Kernel, Process: PVOID) -> bool:
    return process_at(k, Process).exited


@export(NTOSKRNL, irql=APC_LEVEL)
def PsGetProcessExitStatus(k: Kernel, Process: PVOID) -> int:
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeLocateProcessImageName(k: Kernel, Process: PVOID, ImageFileName: PVOID) -> int:
    """A UNICODE_STRING in one block of pool that the caller frees (docs)."""
    text = process_at(k, Process).image.encode("utf-16-le")
    block = allocate(k, 16 + len(text) + 2, int.from_bytes(b"SeIm", "little"), paged=True, zero=True)
    k.memory.put16(block, len(text))
    k.memory.put16(block + 2, len(text) + 2)
    k.memory.put64(block + 8, block + 16)
    k.memory.write(block + 16, text)
    k.memory.put64(ImageFileName, block)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=APC_LEVEL)
def KeSetPriorityThread(k: Kernel, Thread: PVOID, Priority: KPRIORITY) -> int:
    """The previous priority. Priorities are kept, not scheduled by."""
    thread_at(k, Thread)
    priorities = state_of(k, Notifications).priorities
    old = priorities.get(Thread, 8)
    priorities[Thread] = Priority
    return old


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeQueryPriorityThread(k: Kernel, Thread: PVOID) -> int:
    thread_at(k, Thread)
    return state_of(k, Notifications).priorities.get(Thread, 8)


@export(NTOSKRNL, irql=APC_LEVEL)
def KeSetBasePriorityThread(k: Kernel, Thread: PVOID, Increment: KPRIORITY) -> int:
    thread_at(k, Thread)
    return 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeGetCurrentProcessorNumberEx(k: Kernel, ProcNumber: PVOID) -> int:
    if ProcNumber:
        k.memory.put32(ProcNumber, 0)
    return 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryActiveProcessorCount(k: Kernel, ActiveProcessors: PVOID) -> int:
    if ActiveProcessors:
        k.memory.put64(ActiveProcessors, 1)
    return 1


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeQueryActiveProcessorCountEx(k: Kernel, GroupNumber: ULONG) -> int:
    return 1


KeQueryMaximumProcessorCountEx = alias(KeQueryActiveProcessorCountEx, "KeQueryMaximumProcessorCountEx")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoGetStackLimits(k: Kernel, LowLimit: PVOID, HighLimit: PVOID) -> None:
    k.memory.put64(LowLimit, k.current.stack_limit)
    k.memory.put64(HighLimit, k.current.stack_base)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def IoGetRemainingStackSize(k: Kernel) -> int:
    frame = k.current.guest_frame()
    assert frame is not None
    return frame.rsp - k.current.stack_limit


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoGetTopLevelIrp(k: Kernel) -> int:
    return k.current.top_level_irp


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoSetTopLevelIrp(k: Kernel, Irp: PVOID) -> None:
    k.current.top_level_irp = Irp


# Attaching to another process's address space


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeStackAttachProcess(k: Kernel, Process: PVOID, ApcState: PVOID) -> None:
    """KAPC_STATE.Process (0x20) keeps the process to come back to."""
    thread = k.current
    k.memory.put64(ApcState + 0x20, thread.process.address)
    thread.process = process_at(k, Process)
    k.memory.switch_user(thread.process.user_pages)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeUnstackDetachProcess(k: Kernel, ApcState: PVOID) -> None:
    thread = k.current
    thread.process = process_at(k, k.memory.u64(ApcState + 0x20))
    k.memory.switch_user(thread.process.user_pages)


# Notifications


class Notifications:
    """What drivers have asked to be told about processes, and thread priorities."""

    def __init__(self, k: Kernel) -> None:
        self.process: list[tuple[int, bool]] = []
        """(routine, extended) in the order of registration."""
        self.thread: list[int] = []
        self.image: list[int] = []
        self.priorities: dict[int, int] = {}


_MOST_ROUTINES = 64


def _set_process_routine(k: Kernel, routine: int, remove: bool, extended: bool) -> int:
    routines = state_of(k, Notifications).process
    entry = (routine, extended)
    if remove:
        if entry not in routines:
            return STATUS_PROCEDURE_NOT_FOUND
        routines.remove(entry)
        return STATUS_SUCCESS
    if entry in routines or len(routines) >= _MOST_ROUTINES:
        return STATUS_INVALID_PARAMETER
    routines.append(entry)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsSetCreateProcessNotifyRoutine(k: Kernel, NotifyRoutine: PVOID, Remove: BOOLEAN) -> int:
    return _set_process_routine(k, NotifyRoutine, bool(Remove), False)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsSetCreateProcessNotifyRoutineEx(k: Kernel, NotifyRoutine: PVOID, Remove: BOOLEAN) -> int:
    return _set_process_routine(k, NotifyRoutine, bool(Remove), True)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsSetCreateProcessNotifyRoutineEx2(
    k: Kernel, NotifyType: ULONG, NotifyInformation: PVOID, Remove: BOOLEAN
) -> int:
    if NotifyType != 0:  # PsCreateProcessNotifySubsystems
        return STATUS_INVALID_PARAMETER
    return _set_process_routine(k, NotifyInformation, bool(Remove), True)


def notify_process(k: Kernel, process: KProcess, parent_id: int, *, created: bool) -> Model:
    """Tell the drivers that a process begins or has ended; run it on a thread of that process, at PASSIVE_LEVEL.

    Returns:
        The status that a PsSetCreateProcessNotifyRoutineEx routine wants the creation to fail with, or success.
    """
    status = STATUS_SUCCESS
    for routine, extended in list(state_of(k, Notifications).process):
        if not extended:
            yield Call(routine, (parent_id, process.id, int(created)), "process notify routine")
            continue
        info = _create_info(k, process, parent_id) if created else 0
        yield Call(routine, (process.address, process.id, info), "process notify routine")
        if info:
            status = k.memory.u32(info + 0x40) or status
            k.pool.free(k.memory.u64(info + 0x30))
            k.pool.free(info)
    return status


def _create_info(k: Kernel, process: KProcess, parent_id: int) -> int:
    """PS_CREATE_NOTIFY_INFO: Size 0, Flags 8, ParentProcessId 0x10, CreatingThreadId 0x18, FileObject 0x28,
    ImageFileName 0x30, CommandLine 0x38, CreationStatus 0x40."""
    memory = k.memory
    info = k.pool.allocate(0x48, "PsNi", owner="nt")
    text = process.image.encode("utf-16-le")
    name = k.pool.allocate(16 + len(text), "PsNn", owner="nt")
    memory.put16(name, len(text))
    memory.put16(name + 2, len(text))
    memory.put64(name + 8, name + 16)
    memory.write(name + 16, text)
    memory.put64(info, 0x48)
    memory.put32(info + 8, 1)  # FileOpenNameAvailable
    memory.put64(info + 0x10, parent_id)
    memory.put64(info + 0x18, parent_id)
    memory.put64(info + 0x20, k.current.id)
    memory.put64(info + 0x30, name)
    return info


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsSetCreateThreadNotifyRoutine(k: Kernel, NotifyRoutine: PVOID) -> int:
    state_of(k, Notifications).thread.append(NotifyRoutine)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsRemoveCreateThreadNotifyRoutine(k: Kernel, NotifyRoutine: PVOID) -> int:
    routines = state_of(k, Notifications).thread
    if NotifyRoutine not in routines:
        return STATUS_PROCEDURE_NOT_FOUND
    routines.remove(NotifyRoutine)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsSetLoadImageNotifyRoutine(k: Kernel, NotifyRoutine: PVOID) -> int:
    state_of(k, Notifications).image.append(NotifyRoutine)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsRemoveLoadImageNotifyRoutine(k: Kernel, NotifyRoutine: PVOID) -> int:
    routines = state_of(k, Notifications).image
    if NotifyRoutine not in routines:
        return STATUS_PROCEDURE_NOT_FOUND
    routines.remove(NotifyRoutine)
    return STATUS_SUCCESS


# Work items


def _check_worker(k: Kernel, what: str) -> None:
    if k.engine.irql != PASSIVE_LEVEL:
        raise Bugcheck(
            bc.WORKER_THREAD_RETURNED_AT_BAD_IRQL,
            0,
            k.engine.irql,
            rule=f"{what} returned at IRQL {k.engine.irql}",
        )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExQueueWorkItem(k: Kernel, WorkItem: PVOID, QueueType: ULONG) -> None:
    """WORK_QUEUE_ITEM: List 0x00, WorkerRoutine 0x10, Parameter 0x18; in the queue while List.Flink is not NULL."""
    memory = k.memory
    if memory.u64(WorkItem):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0014,
            WorkItem,
            rule=f"the work item at {WorkItem:#x} was queued while it is in the queue, or without ExInitializeWorkItem",
        )
    memory.put64(WorkItem, 1)
    k.start_system_thread(_work(k, WorkItem), "worker thread")


def _work(k: Kernel, item: int) -> Model:
    memory = k.memory
    memory.put64(item, 0)
    yield Call(memory.u64(item + 0x10), (memory.u64(item + 0x18),), "work item routine")
    _check_worker(k, "a work item routine")


class _IoWorkItem:
    """What is behind a PIO_WORKITEM."""

    __slots__ = ("device", "queued")

    def __init__(self, device: int) -> None:
        self.device = device
        self.queued = False


IO_WORKITEM = "IoWorkItem"


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoAllocateWorkItem(k: Kernel, DeviceObject: PVOID) -> int:
    return k.objects.create(IO_WORKITEM, _IoWorkItem(DeviceObject)).address


def _queue_io_work(k: Kernel, item_address: int, routine: int, context: int, *, extended: bool) -> None:
    item = k.objects.get(item_address, IO_WORKITEM)
    work: _IoWorkItem = item.body
    if work.queued:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0015,
            item_address,
            rule="a work item was queued with IoQueueWorkItem while it is in the queue",
        )
    work.queued = True

    def run() -> Model:
        work.queued = False
        arguments = (work.device, context, item_address) if extended else (work.device, context)
        yield Call(routine, arguments, "work item routine")
        _check_worker(k, "a work item routine")

    k.start_system_thread(run(), "worker thread")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoQueueWorkItem(
    k: Kernel, IoWorkItem: PVOID, WorkerRoutine: PVOID, QueueType: ULONG, Context: PVOID
) -> None:
    _queue_io_work(k, IoWorkItem, WorkerRoutine, Context, extended=False)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoQueueWorkItemEx(
    k: Kernel, IoWorkItem: PVOID, WorkerRoutine: PVOID, QueueType: ULONG, Context: PVOID
) -> None:
    """The routine is IO_WORKITEM_ROUTINE_EX(IoObject, Context, IoWorkItem)."""
    _queue_io_work(k, IoWorkItem, WorkerRoutine, Context, extended=True)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoFreeWorkItem(k: Kernel, IoWorkItem: PVOID) -> None:
    item = k.objects.get(IoWorkItem, IO_WORKITEM)
    if item.body.queued:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0016,
            IoWorkItem,
            rule="a work item was freed with IoFreeWorkItem while it is in the queue",
        )
    k.objects.dereference(item)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwOpenProcess(
    k: Kernel,
    ProcessHandle: PVOID,
    DesiredAccess: ACCESS_MASK,
    ObjectAttributes_: PVOID,
    ClientId: PVOID,
) -> Any:
    process_id = k.memory.u64(ClientId)
    flags = ObjectAttributes(k, ObjectAttributes_).flags
    for process in k.processes.values():
        if process.id == process_id:
            handle = insert_handle(k, k.objects.get(process.address), DesiredAccess, flags)
            k.memory.put64(ProcessHandle, handle)
            return STATUS_SUCCESS
    return STATUS_INVALID_CID


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwTerminateProcess(k: Kernel, ProcessHandle: HANDLE, ExitStatus: NTSTATUS) -> int:
    """A client process is a real process of the host: the model cannot end it."""
    return STATUS_UNSUCCESSFUL
