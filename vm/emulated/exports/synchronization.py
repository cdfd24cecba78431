"""Dispatcher objects: events, mutexes, semaphores, timers, deferred procedure calls, and the waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import (
    BOOLEAN,
    HANDLE,
    KPRIORITY,
    KPROCESSOR_MODE,
    LARGE_INTEGER,
    LONG,
    NTOSKRNL,
    PVOID,
    UCHAR,
    ULONG,
    alias,
    export,
)
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel import dpc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.dispatcher import SEMAPHORE_LIMIT, ObjectType
from vm.emulated.kernel.status import STATUS_SUCCESS, STATUS_USER_APC
from vm.emulated.kernel.threads import (
    APC_LEVEL,
    DISPATCH_LEVEL,
    HIGH_LEVEL,
    PASSIVE_LEVEL,
    TERMINATING,
    USER_MODE,
    Block,
    Model,
    Wait,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

MUTANT_SIZE, SEMAPHORE_SIZE, TIMER_SIZE, DPC_SIZE = 0x38, 0x20, 0x40, 0x40
MAXIMUM_WAIT_OBJECTS = 64
THREAD_WAIT_OBJECTS = 3

_TIMER_DUE, _TIMER_DPC, _TIMER_PERIOD = 0x18, 0x30, 0x3C
_DPC_OBJECT = 0x13
_EVENT_TYPES = frozenset((int(ObjectType.NOTIFICATION_EVENT), int(ObjectType.SYNCHRONIZATION_EVENT)))

# Events


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeEvent(k: Kernel, Event: PVOID, Type: ULONG, State: BOOLEAN) -> None:
    k.dispatcher.initialize(Event, Type & 1, int(State != 0))


def _check_event(k: Kernel, address: int, routine: str) -> None:
    kind = k.memory.u64(address) & 0x7F
    if kind not in _EVENT_TYPES:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0001,
            address,
            kind,
            rule=f"{routine} was called for {address:#x}, which is no event but a dispatcher object of type {kind}",
        )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeSetEvent(k: Kernel, Event: PVOID, Increment: KPRIORITY, Wait: BOOLEAN) -> int:
    """With Wait=TRUE the caller must be at IRQL <= APC_LEVEL and wait next (docs)."""
    if Wait and k.engine.irql > APC_LEVEL:
        raise Bugcheck(
            bc.IRQL_NOT_LESS_OR_EQUAL,
            Event,
            k.engine.irql,
            rule="KeSetEvent was called with Wait=TRUE above APC_LEVEL",
        )
    return k.dispatcher.set_event(Event)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeResetEvent(k: Kernel, Event: PVOID) -> int:
    _check_event(k, Event, "KeResetEvent")
    return k.dispatcher.reset_event(Event)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeClearEvent(k: Kernel, Event: PVOID) -> None:
    _check_event(k, Event, "KeClearEvent")
    k.dispatcher.reset_event(Event)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReadStateEvent(k: Kernel, Event: PVOID) -> int:
    _check_event(k, Event, "KeReadStateEvent")
    return k.memory.i32(Event + 4)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KePulseEvent(k: Kernel, Event: PVOID, Increment: KPRIORITY, Wait: BOOLEAN) -> int:
    _check_event(k, Event, "KePulseEvent")
    return k.dispatcher.pulse_event(Event)


# Mutexes. KMUTANT: MutantListEntry 0x18, OwnerThread 0x28, Abandoned 0x30, ApcDisable 0x31.


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeMutex(k: Kernel, Mutex: PVOID, Level: ULONG) -> None:
    k.dispatcher.initialize(Mutex, ObjectType.MUTANT, 1, MUTANT_SIZE)
    k.memory.write(Mutex + 0x18, bytes(0x20))
    k.memory.put8(Mutex + 0x31, 1)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReleaseMutex(k: Kernel, Mutex: PVOID, Wait: BOOLEAN) -> int:
    """Zero when the mutex has become free (docs); only its owner may release it."""
    return k.dispatcher.release_mutant(Mutex, k.current)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReadStateMutex(k: Kernel, Mutex: PVOID) -> int:
    return k.memory.i32(Mutex + 4)


# Semaphores


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeSemaphore(k: Kernel, Semaphore: PVOID, Count: LONG, Limit: LONG) -> None:
    k.dispatcher.initialize(Semaphore, ObjectType.SEMAPHORE, Count, SEMAPHORE_SIZE)
    k.memory.put32(Semaphore + SEMAPHORE_LIMIT, Limit)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReleaseSemaphore(
    k: Kernel, Semaphore: PVOID, Increment: KPRIORITY, Adjustment: LONG, Wait: BOOLEAN
) -> int:
    """Raises STATUS_SEMAPHORE_LIMIT_EXCEEDED beyond the limit (docs)."""
    return k.dispatcher.release_semaphore(Semaphore, Adjustment)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReadStateSemaphore(k: Kernel, Semaphore: PVOID) -> int:
    return k.memory.i32(Semaphore + 4)


# Waits


def timeout_of(k: Kernel, address: int) -> int | None:
    """The value behind a PLARGE_INTEGER timeout; None for NULL, which waits for ever."""
    return k.memory.i64(address) if address else None


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeWaitForSingleObject(
    k: Kernel, Object: PVOID, WaitReason: ULONG, WaitMode: KPROCESSOR_MODE, Alertable: BOOLEAN, Timeout: PVOID
) -> Model:
    return (yield Wait((Object,), timeout_of(k, Timeout), mode=WaitMode))


KeWaitForMutexObject = alias(KeWaitForSingleObject, "KeWaitForMutexObject")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeWaitForMultipleObjects(
    k: Kernel,
    Count: ULONG,
    Object: PVOID,
    WaitType: ULONG,
    WaitReason: ULONG,
    WaitMode: KPROCESSOR_MODE,
    Alertable: BOOLEAN,
    Timeout: PVOID,
    WaitBlockArray: PVOID,
) -> Model:
    """More than THREAD_WAIT_OBJECTS need a wait block array, more than MAXIMUM_WAIT_OBJECTS bugcheck (docs)."""
    if Count == 0 or Count > (MAXIMUM_WAIT_OBJECTS if WaitBlockArray else THREAD_WAIT_OBJECTS):
        raise Bugcheck(
            bc.MAXIMUM_WAIT_OBJECTS_EXCEEDED,
            Count,
            rule=f"KeWaitForMultipleObjects was called for {Count} objects "
            f"{'with' if WaitBlockArray else 'without'} a wait block array; at most "
            f"{MAXIMUM_WAIT_OBJECTS if WaitBlockArray else THREAD_WAIT_OBJECTS} are allowed so",
        )
    objects = tuple(k.memory.u64(Object + 8 * index) for index in range(Count))
    return (yield Wait(objects, timeout_of(k, Timeout), wait_all=WaitType == 0, mode=WaitMode))


@export(NTOSKRNL, irql=APC_LEVEL)
def KeDelayExecutionThread(
    k: Kernel, WaitMode: KPROCESSOR_MODE, Alertable: BOOLEAN, Interval: PVOID
) -> Model:
    interval = k.memory.i64(Interval)
    now = k.clock.interrupt_time
    due = k.clock.due_of(interval)
    woken = yield Block(
        "KeDelayExecutionThread", timeout=max(0, due - now), killable=bool(WaitMode == USER_MODE)
    )
    return STATUS_USER_APC if woken is TERMINATING else STATUS_SUCCESS


# Timers. KTIMER: DueTime 0x18, TimerListEntry 0x20, Dpc 0x30, Period 0x3C.


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeTimerEx(k: Kernel, Timer: PVOID, Type: ULONG) -> None:
    if k.dispatcher.timer_in(Timer, Timer + 1) is not None:
        raise Bugcheck(
            bc.TIMER_OR_DPC_INVALID,
            0,
            Timer,
            rule=f"the timer at {Timer:#x} was initialised while it is set",
        )
    kind = ObjectType.SYNCHRONIZATION_TIMER if Type & 1 else ObjectType.NOTIFICATION_TIMER
    k.dispatcher.initialize(Timer, kind, 0, TIMER_SIZE)
    k.memory.write(Timer + 0x18, bytes(TIMER_SIZE - 0x18))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeTimer(k: Kernel, Timer: PVOID) -> None:
    KeInitializeTimerEx(k, Timer, 0)


def _check_timer(k: Kernel, address: int, routine: str) -> None:
    kind = k.memory.u8(address) & 0x7F
    if kind not in (ObjectType.NOTIFICATION_TIMER, ObjectType.SYNCHRONIZATION_TIMER):
        raise Bugcheck(
            bc.TIMER_OR_DPC_INVALID,
            0,
            address,
            rule=f"{routine} was called for {address:#x}, which was not initialised with KeInitializeTimer",
        )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeSetTimerEx(k: Kernel, Timer: PVOID, DueTime: LARGE_INTEGER, Period: LONG, Dpc: PVOID) -> bool:
    _check_timer(k, Timer, "KeSetTimer")
    k.memory.put64(Timer + _TIMER_DUE, k.clock.due_of(DueTime))
    k.memory.put64(Timer + _TIMER_DPC, Dpc)
    k.memory.put32(Timer + _TIMER_PERIOD, Period)
    return k.dispatcher.set_timer(Timer, DueTime, Period, Dpc)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeSetTimer(k: Kernel, Timer: PVOID, DueTime: LARGE_INTEGER, Dpc: PVOID) -> bool:
    result: bool = KeSetTimerEx(k, Timer, DueTime, 0, Dpc)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeSetCoalescableTimer(
    k: Kernel, Timer: PVOID, DueTime: LARGE_INTEGER, Period: ULONG, TolerableDelay: ULONG, Dpc: PVOID
) -> bool:
    result: bool = KeSetTimerEx(k, Timer, DueTime, Period, Dpc)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeCancelTimer(k: Kernel, Timer: PVOID) -> bool:
    _check_timer(k, Timer, "KeCancelTimer")
    return k.dispatcher.cancel_timer(Timer)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeReadStateTimer(k: Kernel, Timer: PVOID) -> bool:
    return k.memory.i32(Timer + 4) != 0


# Deferred procedure calls


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeDpc(k: Kernel, Dpc: PVOID, DeferredRoutine: PVOID, DeferredContext: PVOID) -> None:
    memory = k.memory
    memory.write(Dpc, bytes(DPC_SIZE))
    memory.put8(Dpc, _DPC_OBJECT)
    memory.put8(Dpc + 1, 1)  # MediumImportance
    memory.put64(Dpc + dpc.ROUTINE, DeferredRoutine)
    memory.put64(Dpc + dpc.CONTEXT, DeferredContext)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInsertQueueDpc(k: Kernel, Dpc: PVOID, SystemArgument1: PVOID, SystemArgument2: PVOID) -> bool:
    """FALSE if it is queued already; the arguments of that call are then ignored (docs)."""
    return k.queue_dpc(Dpc, SystemArgument1, SystemArgument2)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeRemoveQueueDpc(k: Kernel, Dpc: PVOID) -> bool:
    return dpc.remove(k, Dpc)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def KeFlushQueuedDpcs(k: Kernel) -> Model:
    """Returns when every DPC that was queued at the call has run."""
    threads = [k.objects.get(address) for address in k.dpc_threads]
    for item in threads:
        k.objects.reference(item)
    for item in threads:
        yield Wait((item.address,))
        k.objects.dereference(item)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeSetImportanceDpc(k: Kernel, Dpc: PVOID, Importance: ULONG) -> None:
    k.memory.put8(Dpc + 1, Importance)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeSetTargetProcessorDpc(k: Kernel, Dpc: PVOID, Number: UCHAR) -> None:
    k.memory.put16(Dpc + 2, Number + 0x500)


# Waits on handles


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ZwWaitForSingleObject(k: Kernel, Handle: HANDLE, Alertable: BOOLEAN, Timeout: PVOID) -> Any:
    from vm.emulated.exports.objects import referenced_wait

    return referenced_wait(k, Handle, timeout_of(k, Timeout))


NtWaitForSingleObject = alias(ZwWaitForSingleObject, "NtWaitForSingleObject")
