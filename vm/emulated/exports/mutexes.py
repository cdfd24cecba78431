"""Fast mutexes and guarded mutexes (FAST_MUTEX and KGUARDED_MUTEX have the same layout)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import NTOSKRNL, PVOID, export
from vm.emulated.exports.irql import apcs_disabled
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.dispatcher import ObjectType
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Block, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

# FAST_MUTEX (x64): Count 0x00, Owner 0x08, Contention 0x10, Event 0x18, OldIrql 0x30.
_OWNER, _CONTENTION, _EVENT, _OLD_IRQL = 0x08, 0x10, 0x18, 0x30

FAST = "fast mutex"
UNSAFE = "fast mutex (unsafe)"
GUARDED = "guarded mutex"


class Mutexes:
    """Mutexes of one kernel that are held, with the threads that wait for them."""

    def __init__(self, k: Kernel) -> None:
        self.k = k
        self.owners: dict[int, tuple[KThread, str]] = {}
        self.waiting: dict[int, deque[tuple[KThread, str]]] = {}

    def acquire(self, mutex: int, kind: str, old: int) -> Model | None:
        """Take the mutex; None if it was free, else a generator that ends when it is ours."""
        memory = self.k.memory
        thread = self.k.current
        held = self.owners.get(mutex)
        if held is None:
            count = memory.i32(mutex)
            if count != 1:
                raise Bugcheck(
                    bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                    0x2_0020,
                    mutex,
                    count & 0xFFFF_FFFF,
                    rule=f"the {kind} at {mutex:#x} is not initialised, or its memory was overwritten (Count is {count}, "
                    "a free one has 1)",
                )
            self._own(mutex, thread, kind, old)
            return None
        if held[0] is thread:
            raise Bugcheck(
                bc.MUTEX_ALREADY_OWNED,
                thread.address,
                mutex,
                rule=f"thread '{thread.name}' acquired the {kind} at {mutex:#x}, which it holds already: it would wait for "
                "ever",
            )
        return self._wait(mutex, kind, old, thread)

    def _own(self, mutex: int, thread: KThread, kind: str, old: int) -> None:
        memory = self.k.memory
        memory.put32(mutex, 0)
        memory.put64(mutex + _OWNER, thread.address)
        memory.put32(mutex + _OLD_IRQL, old)
        self.owners[mutex] = (thread, kind)
        thread.owned.append((kind, mutex))

    def _wait(self, mutex: int, kind: str, old: int, thread: KThread) -> Model:
        memory = self.k.memory
        memory.put32(mutex + _CONTENTION, memory.u32(mutex + _CONTENTION) + 1)
        self.waiting.setdefault(mutex, deque()).append((thread, kind))
        yield Block(f"a wait for the {kind} at {mutex:#x}")
        memory.put32(mutex + _OLD_IRQL, old)

    def release(self, mutex: int, kind: str) -> int:
        """Hand the mutex to the next waiter; the IRQL that the acquisition saved."""
        memory = self.k.memory
        thread = self.k.current
        held = self.owners.get(mutex)
        if held is None or held[0] is not thread:
            owner = f"thread '{held[0].name}' holds it" if held is not None else "nobody holds it"
            raise Bugcheck(
                bc.THREAD_NOT_MUTEX_OWNER,
                thread.address,
                held[0].address if held is not None else 0,
                mutex,
                rule=f"thread '{thread.name}' released the {kind} at {mutex:#x}, which it does not hold: {owner}",
            )
        if held[1] != kind:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0021,
                mutex,
                rule=f"the mutex at {mutex:#x} was acquired as a {held[1]} and released as a {kind}",
            )
        old = memory.u32(mutex + _OLD_IRQL)
        thread.owned.remove((kind, mutex))
        queue = self.waiting.get(mutex)
        if queue:
            following, its_kind = queue.popleft()
            if not queue:
                del self.waiting[mutex]
            self._own(mutex, following, its_kind, 0)
            self.k.scheduler.wake(following, None)
        else:
            del self.owners[mutex]
            memory.put64(mutex + _OWNER, 0)
            memory.put32(mutex, 1)
        return old & 0xFF


def _initialize(k: Kernel, mutex: int) -> None:
    held = state_of(k, Mutexes).owners.get(mutex)
    if held is not None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0022,
            mutex,
            rule=f"the {held[1]} at {mutex:#x} was initialised while thread '{held[0].name}' holds it",
        )
    memory = k.memory
    memory.write(mutex, bytes(0x38))
    memory.put32(mutex, 1)
    k.dispatcher.initialize(mutex + _EVENT, ObjectType.SYNCHRONIZATION_EVENT, 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeFastMutex(k: Kernel, FastMutex: PVOID) -> None:
    """Inline in the headers; an export for those that call it."""
    _initialize(k, FastMutex)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireFastMutex(k: Kernel, FastMutex: PVOID) -> Any:
    """Runs on at APC_LEVEL."""
    old, k.engine.irql = k.engine.irql, APC_LEVEL
    return state_of(k, Mutexes).acquire(FastMutex, FAST, old)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExTryToAcquireFastMutex(k: Kernel, FastMutex: PVOID) -> bool:
    mutexes = state_of(k, Mutexes)
    if FastMutex in mutexes.owners:
        return False
    old, k.engine.irql = k.engine.irql, APC_LEVEL
    mutexes.acquire(FastMutex, FAST, old)
    return True


@export(NTOSKRNL, irql=APC_LEVEL, minimum=APC_LEVEL)
def ExReleaseFastMutex(k: Kernel, FastMutex: PVOID) -> None:
    old = state_of(k, Mutexes).release(FastMutex, FAST)
    held = next((lock for kind, lock in reversed(k.current.owned) if kind == FAST), None)
    if old < APC_LEVEL and held is not None:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x34,
            old,
            held,
            rule=f"releasing the fast mutex at {FastMutex:#x} lowers the IRQL to {old} while the fast mutex at {held:#x} is "
            "still held: fast mutexes must be released in the reverse order",
        )
    k.engine.irql = old


def _check_apcs(k: Kernel, mutex: int, code: int, what: str) -> None:
    if not apcs_disabled(k):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            code,
            k.engine.irql,
            k.current.critical_region,
            mutex,
            rule=f"{what} was called for {mutex:#x} with APCs enabled: it needs APC_LEVEL, a critical or a guarded region",
        )


@export(NTOSKRNL, irql=APC_LEVEL)
def ExAcquireFastMutexUnsafe(k: Kernel, FastMutex: PVOID) -> Any:
    """APCs must be disabled by the caller (docs)."""
    _check_apcs(k, FastMutex, 0x39, "ExAcquireFastMutexUnsafe")
    return state_of(k, Mutexes).acquire(FastMutex, UNSAFE, k.engine.irql)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExReleaseFastMutexUnsafe(k: Kernel, FastMutex: PVOID) -> None:
    _check_apcs(k, FastMutex, 0x3A, "ExReleaseFastMutexUnsafe")
    state_of(k, Mutexes).release(FastMutex, UNSAFE)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeInitializeGuardedMutex(k: Kernel, Mutex: PVOID) -> None:
    _initialize(k, Mutex)


@export(NTOSKRNL, irql=APC_LEVEL)
def KeAcquireGuardedMutex(k: Kernel, Mutex: PVOID) -> Any:
    """Enters a guarded region."""
    k.current.guarded_region += 1
    return state_of(k, Mutexes).acquire(Mutex, GUARDED, k.engine.irql)


@export(NTOSKRNL, irql=APC_LEVEL)
def KeTryToAcquireGuardedMutex(k: Kernel, Mutex: PVOID) -> bool:
    mutexes = state_of(k, Mutexes)
    if Mutex in mutexes.owners:
        return False
    k.current.guarded_region += 1
    mutexes.acquire(Mutex, GUARDED, k.engine.irql)
    return True


@export(NTOSKRNL, irql=APC_LEVEL)
def KeReleaseGuardedMutex(k: Kernel, Mutex: PVOID) -> None:
    state_of(k, Mutexes).release(Mutex, GUARDED)
    k.current.guarded_region -= 1
