"""Reader/writer locks that wait: ERESOURCE, push locks, and the push-lock routines of FLTMGR.SYS."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import BOOLEAN, FLTMGR, NTOSKRNL, PVOID, ULONG, ULONG_PTR, alias, export
from vm.emulated.exports.irql import apcs_disabled, enter_critical_region, leave_critical_region
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.status import STATUS_SUCCESS
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Block, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

RESOURCE = "resource"
PUSH_LOCK = "push lock"
RESOURCE_SIZE = 0x68
_ACTIVE_COUNT, _FLAG, _CONTENTION = 0x18, 0x1A, 0x44
_OWNED_EXCLUSIVE = 0x80


@dataclass(slots=True, eq=False)
class SharedLock:
    """State of one reader/writer lock."""

    owner: KThread | None = None
    depth: int = 0
    """How often the exclusive owner holds it, shared acquisitions included."""
    readers: dict[KThread, int] = field(default_factory=dict)
    queue: deque[tuple[KThread, bool]] = field(default_factory=deque)
    """(thread, wants it exclusively) in the order of arrival."""

    def free(self) -> bool:
        """True if nobody holds it."""
        return self.owner is None and not self.readers

    def writer_waits(self) -> bool:
        """True if a thread waits to own it exclusively."""
        return any(exclusive for _, exclusive in self.queue)


class SharedLocks:
    """Resources and push locks of one kernel, by address."""

    def __init__(self, k: Kernel) -> None:
        self.k = k
        self.resources: dict[int, SharedLock] = {}
        self.push_locks: dict[int, SharedLock] = {}
        k.free_checks.append(self._check_free)

    def _check_free(self, begin: int, end: int, what: str) -> None:
        for address in self.resources:
            if begin <= address < end:
                raise Bugcheck(
                    bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                    0xD2,
                    address,
                    begin,
                    end - begin,
                    rule=f"{what} was freed while it holds a resource ({address:#x}) that was not deleted with "
                    "ExDeleteResourceLite",
                )

    def grant(self, lock: SharedLock, kind: str, address: int) -> None:
        """Give the lock to those at the head of the queue who can have it now."""
        while lock.queue:
            thread, exclusive = lock.queue[0]
            if exclusive:
                if not lock.free():
                    return
                lock.queue.popleft()
                lock.owner, lock.depth = thread, 1
            else:
                if lock.owner is not None:
                    return
                lock.queue.popleft()
                lock.readers[thread] = lock.readers.get(thread, 0) + 1
            thread.owned.append((kind, address))
            self.k.scheduler.wake(thread, None)

    def wait(self, lock: SharedLock, kind: str, address: int, *, exclusive: bool) -> Model:
        """Queue the running thread and park it until the lock is its own."""
        lock.queue.append((self.k.current, exclusive))
        how = "exclusively" if exclusive else "shared"
        yield Block(f"a wait for the {kind} at {address:#x} ({how})")
        return True


# ERESOURCE


def _resource(k: Kernel, address: int) -> SharedLock:
    lock = state_of(k, SharedLocks).resources.get(address)
    if lock is None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xD1,
            address,
            rule=f"{address:#x} is not an initialised resource (ExInitializeResourceLite), or it was deleted",
        )
    return lock


def _show(k: Kernel, address: int, lock: SharedLock) -> None:
    """Keep the visible part of the structure as the debugger would show it."""
    count = 1 if lock.owner is not None else len(lock.readers)
    k.memory.put16(address + _ACTIVE_COUNT, count)
    k.memory.put16(address + _FLAG, _OWNED_EXCLUSIVE if lock.owner is not None else 0)


def _check_apcs(k: Kernel, address: int, code: int, verb: str) -> None:
    """System threads are exempt, as no user APC can suspend them."""
    if not apcs_disabled(k) and not k.current.is_system:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            code,
            k.engine.irql,
            k.current.critical_region,
            address,
            rule=f"the resource at {address:#x} was {verb} with normal kernel APCs enabled: call KeEnterCriticalRegion first",
        )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeResourceLite(k: Kernel, Resource: PVOID) -> int:
    locks = state_of(k, SharedLocks)
    if Resource in locks.resources:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xD0,
            Resource,
            rule=f"the resource at {Resource:#x} was initialised a second time without being deleted",
        )
    k.memory.write(Resource, bytes(RESOURCE_SIZE))
    k.memory.put64(Resource, Resource)
    k.memory.put64(Resource + 8, Resource)
    locks.resources[Resource] = SharedLock()
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReinitializeResourceLite(k: Kernel, Resource: PVOID) -> int:
    lock = _resource(k, Resource)
    _must_be_free(lock, Resource, "re-initialised")
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExDeleteResourceLite(k: Kernel, Resource: PVOID) -> int:
    lock = _resource(k, Resource)
    _must_be_free(lock, Resource, "deleted")
    del state_of(k, SharedLocks).resources[Resource]
    k.memory.write(Resource, bytes(RESOURCE_SIZE))
    return STATUS_SUCCESS


def _must_be_free(lock: SharedLock, address: int, verb: str) -> None:
    if not lock.free() or lock.queue:
        holder = lock.owner or next(iter(lock.readers))
        raise Bugcheck(
            bc.RESOURCE_NOT_OWNED,
            address,
            holder.address,
            rule=f"the resource at {address:#x} was {verb} while thread '{holder.name}' holds it",
        )


def _acquire(k: Kernel, address: int, wait: int, *, exclusive: bool, starve: bool = False) -> Any:
    _check_apcs(k, address, 0x37, "acquired")
    lock = _resource(k, address)
    thread = k.current
    if lock.owner is thread:
        lock.depth += 1
        thread.owned.append((RESOURCE, address))
        return True
    if exclusive:
        can = lock.free()
    elif lock.owner is not None:
        can = False
    else:
        can = thread in lock.readers or starve or not lock.queue
    if can:
        if exclusive:
            lock.owner, lock.depth = thread, 1
        else:
            lock.readers[thread] = lock.readers.get(thread, 0) + 1
        thread.owned.append((RESOURCE, address))
        _show(k, address, lock)
        return True
    if not wait:
        return False
    if thread in lock.readers:
        raise Bugcheck(
            bc.RESOURCE_NOT_OWNED,
            address,
            thread.address,
            rule=f"thread '{thread.name}' holds the resource at {address:#x} shared and waits to own it exclusively: it would "
            "wait for ever",
        )
    k.memory.put32(address + _CONTENTION, k.memory.u32(address + _CONTENTION) + 1)
    return state_of(k, SharedLocks).wait(lock, RESOURCE, address, exclusive=exclusive)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireResourceExclusiveLite(k: Kernel, Resource: PVOID, Wait: BOOLEAN) -> Any:
    """Normal kernel APCs must be disabled (docs); the owner may acquire it again."""
    return _acquire(k, Resource, Wait, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireResourceSharedLite(k: Kernel, Resource: PVOID, Wait: BOOLEAN) -> Any:
    """Waits behind a writer that waits, unless the thread holds the resource already (docs)."""
    return _acquire(k, Resource, Wait, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireSharedStarveExclusive(k: Kernel, Resource: PVOID, Wait: BOOLEAN) -> Any:
    """Does not wait behind a writer that waits."""
    return _acquire(k, Resource, Wait, exclusive=False, starve=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireSharedWaitForExclusive(k: Kernel, Resource: PVOID, Wait: BOOLEAN) -> Any:
    """Waits behind a writer that waits even if the thread holds the resource: that is a deadlock then (docs)."""
    lock = _resource(k, Resource)
    if k.current in lock.readers and lock.writer_waits():
        if not Wait:
            return False
        return state_of(k, SharedLocks).wait(lock, RESOURCE, Resource, exclusive=False)
    return _acquire(k, Resource, Wait, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExTryToAcquireResourceExclusiveLite(k: Kernel, Resource: PVOID) -> Any:
    return _acquire(k, Resource, 0, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExEnterCriticalRegionAndAcquireResourceExclusive(k: Kernel, Resource: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire(k, Resource, 1, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExEnterCriticalRegionAndAcquireResourceShared(k: Kernel, Resource: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire(k, Resource, 1, exclusive=False)


def _release(k: Kernel, address: int, thread: KThread) -> None:
    lock = _resource(k, address)
    if lock.owner is thread:
        lock.depth -= 1
        if lock.depth == 0:
            lock.owner = None
    elif thread in lock.readers:
        lock.readers[thread] -= 1
        if not lock.readers[thread]:
            del lock.readers[thread]
    else:
        raise Bugcheck(
            bc.RESOURCE_NOT_OWNED,
            address,
            thread.address,
            rule=f"thread '{thread.name}' released the resource at {address:#x}, which it does not hold",
        )
    thread.owned.remove((RESOURCE, address))
    state_of(k, SharedLocks).grant(lock, RESOURCE, address)
    _show(k, address, lock)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseResourceLite(k: Kernel, Resource: PVOID) -> None:
    _check_apcs(k, Resource, 0x38, "released")
    _release(k, Resource, k.current)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseResourceForThreadLite(k: Kernel, Resource: PVOID, ResourceThreadId: ULONG_PTR) -> None:
    """The thread is the one that acquired it, which need not be the running one."""
    thread: KThread = k.objects.get(ResourceThreadId & ~3, "Thread").body
    _release(k, Resource, thread)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExReleaseResourceAndLeaveCriticalRegion(k: Kernel, Resource: PVOID) -> None:
    _release(k, Resource, k.current)
    leave_critical_region(k)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExConvertExclusiveToSharedLite(k: Kernel, Resource: PVOID) -> None:
    lock = _resource(k, Resource)
    if lock.owner is not k.current:
        raise Bugcheck(
            bc.RESOURCE_NOT_OWNED,
            Resource,
            k.current.address,
            rule=f"the resource at {Resource:#x} was converted to shared by a thread that does not own it exclusively",
        )
    lock.readers = {k.current: lock.depth}
    lock.owner, lock.depth = None, 0
    state_of(k, SharedLocks).grant(lock, RESOURCE, Resource)
    _show(k, Resource, lock)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExIsResourceAcquiredExclusiveLite(k: Kernel, Resource: PVOID) -> bool:
    return _resource(k, Resource).owner is k.current


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExIsResourceAcquiredSharedLite(k: Kernel, Resource: PVOID) -> int:
    """How often the thread holds it, shared or exclusively (docs)."""
    lock = _resource(k, Resource)
    return lock.depth if lock.owner is k.current else lock.readers.get(k.current, 0)


ExIsResourceAcquiredLite = alias(ExIsResourceAcquiredSharedLite, "ExIsResourceAcquiredLite")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExGetExclusiveWaiterCount(k: Kernel, Resource: PVOID) -> int:
    return sum(exclusive for _, exclusive in _resource(k, Resource).queue)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExGetSharedWaiterCount(k: Kernel, Resource: PVOID) -> int:
    return sum(not exclusive for _, exclusive in _resource(k, Resource).queue)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExDisableResourceBoostLite(k: Kernel, Resource: PVOID) -> None:
    _resource(k, Resource)


# Push locks: one word, 1 while owned exclusively, 16 for each reader


def _push_lock(k: Kernel, address: int) -> SharedLock:
    locks = state_of(k, SharedLocks).push_locks
    lock = locks.get(address)
    value = k.memory.u64(address)
    if lock is None:
        if value:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0031,
                address,
                value,
                rule=f"the push lock at {address:#x} holds {value:#x}: it is not initialised, or its memory was overwritten",
            )
        lock = locks[address] = SharedLock()
    return lock


def _update(k: Kernel, address: int, lock: SharedLock) -> None:
    k.memory.put64(address, 1 if lock.owner is not None else 16 * len(lock.readers))
    if lock.free() and not lock.queue:
        state_of(k, SharedLocks).push_locks.pop(address, None)


def _check_push(k: Kernel, address: int, code: int, verb: str) -> None:
    if not apcs_disabled(k):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            code,
            k.engine.irql,
            k.current.critical_region,
            address,
            rule=f"the push lock at {address:#x} was {verb} with normal kernel APCs enabled: call KeEnterCriticalRegion first",
        )


def _acquire_push(k: Kernel, address: int, *, exclusive: bool) -> Any:
    lock = _push_lock(k, address)
    thread = k.current
    if lock.owner is thread or thread in lock.readers:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0032,
            address,
            thread.address,
            rule=f"thread '{thread.name}' acquired the push lock at {address:#x}, which it holds already: push locks are not "
            "recursive",
        )
    can = lock.free() if exclusive else lock.owner is None and not lock.queue
    if not can:
        return _wait_push(k, lock, address, exclusive)
    if exclusive:
        lock.owner, lock.depth = thread, 1
    else:
        lock.readers[thread] = 1
    thread.owned.append((PUSH_LOCK, address))
    _update(k, address, lock)
    return None


def _wait_push(k: Kernel, lock: SharedLock, address: int, exclusive: bool) -> Model:
    yield from state_of(k, SharedLocks).wait(lock, PUSH_LOCK, address, exclusive=exclusive)


def _release_push(k: Kernel, address: int, *, exclusive: bool | None) -> None:
    lock = _push_lock(k, address)
    thread = k.current
    owns = lock.owner is thread
    if not (owns or thread in lock.readers) or (exclusive is not None and owns is not exclusive):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0033,
            address,
            thread.address,
            rule=f"thread '{thread.name}' released the push lock at {address:#x}, which it does not hold in that way",
        )
    if owns:
        lock.owner, lock.depth = None, 0
    else:
        del lock.readers[thread]
    thread.owned.remove((PUSH_LOCK, address))
    state_of(k, SharedLocks).grant(lock, PUSH_LOCK, address)
    _update(k, address, lock)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializePushLock(k: Kernel, PushLock: PVOID) -> None:
    _initialize_push(k, PushLock)


def _initialize_push(k: Kernel, address: int) -> None:
    lock = state_of(k, SharedLocks).push_locks.get(address)
    if lock is not None and not lock.free():
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0034,
            address,
            rule=f"the push lock at {address:#x} was initialised or deleted while it is held",
        )
    k.memory.put64(address, 0)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquirePushLockExclusiveEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> Any:
    """Normal kernel APCs must be disabled (docs)."""
    _check_push(k, PushLock, 0xEA, "acquired")
    return _acquire_push(k, PushLock, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquirePushLockSharedEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> Any:
    _check_push(k, PushLock, 0xEA, "acquired")
    return _acquire_push(k, PushLock, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExReleasePushLockExclusiveEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> None:
    _check_push(k, PushLock, 0xEB, "released")
    _release_push(k, PushLock, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExReleasePushLockSharedEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> None:
    _check_push(k, PushLock, 0xEB, "released")
    _release_push(k, PushLock, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExReleasePushLockEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> None:
    _check_push(k, PushLock, 0xEB, "released")
    _release_push(k, PushLock, exclusive=None)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExfAcquirePushLockExclusive(k: Kernel, PushLock: PVOID) -> Any:
    _check_push(k, PushLock, 0xEA, "acquired")
    return _acquire_push(k, PushLock, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExfAcquirePushLockShared(k: Kernel, PushLock: PVOID) -> Any:
    _check_push(k, PushLock, 0xEA, "acquired")
    return _acquire_push(k, PushLock, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExfReleasePushLockExclusive(k: Kernel, PushLock: PVOID) -> None:
    _release_push(k, PushLock, exclusive=True)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExfReleasePushLockShared(k: Kernel, PushLock: PVOID) -> None:
    _release_push(k, PushLock, exclusive=False)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExfReleasePushLock(k: Kernel, PushLock: PVOID) -> None:
    _release_push(k, PushLock, exclusive=None)


# The Filter Manager's forms enter and leave a critical region themselves (docs of FltAcquirePushLockExclusive).


@export(FLTMGR, irql=APC_LEVEL)
def FltInitializePushLock(k: Kernel, PushLock: PVOID) -> None:
    _initialize_push(k, PushLock)


@export(FLTMGR, irql=APC_LEVEL)
def FltDeletePushLock(k: Kernel, PushLock: PVOID) -> None:
    _initialize_push(k, PushLock)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquirePushLockExclusive(k: Kernel, PushLock: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire_push(k, PushLock, exclusive=True)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquirePushLockShared(k: Kernel, PushLock: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire_push(k, PushLock, exclusive=False)


@export(FLTMGR, irql=APC_LEVEL)
def FltReleasePushLock(k: Kernel, PushLock: PVOID) -> None:
    _release_push(k, PushLock, exclusive=None)
    leave_critical_region(k)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquirePushLockExclusiveEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> Any:
    enter_critical_region(k)
    return _acquire_push(k, PushLock, exclusive=True)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquirePushLockSharedEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> Any:
    enter_critical_region(k)
    return _acquire_push(k, PushLock, exclusive=False)


@export(FLTMGR, irql=APC_LEVEL)
def FltReleasePushLockEx(k: Kernel, PushLock: PVOID, Flags: ULONG) -> None:
    _release_push(k, PushLock, exclusive=None)
    leave_critical_region(k)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquireResourceExclusive(k: Kernel, Resource: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire(k, Resource, 1, exclusive=True)


@export(FLTMGR, irql=APC_LEVEL)
def FltAcquireResourceShared(k: Kernel, Resource: PVOID) -> Any:
    enter_critical_region(k)
    return _acquire(k, Resource, 1, exclusive=False)


@export(FLTMGR, irql=APC_LEVEL)
def FltReleaseResource(k: Kernel, Resource: PVOID) -> None:
    _release(k, Resource, k.current)
    leave_critical_region(k)
