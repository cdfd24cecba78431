"""Spin locks: plain, in-stack queued, reader/writer; and the interlocked lists that go with them.

Every thread runs as if it had a processor of its own, so a lock that is held can be met. Whoever meets one spins,
that is, is parked until the lock is free. The lock word in the driver's memory shows the state as Windows would.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import KIRQL, NTOSKRNL, PVOID, alias, export
from vm.emulated.exports.irql import HAL
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.threads import DISPATCH_LEVEL, HIGH_LEVEL, Block, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_SPIN = "spin lock"
_SHARED = "shared spin lock"
_EXCLUSIVE_BIT = 0x8000_0000


class SpinLocks:
    """The spin locks of one kernel that are held: who holds them, who spins."""

    def __init__(self, k: Kernel) -> None:
        self.k = k
        self.owners: dict[int, tuple[KThread, int | None]] = {}
        """Address -> (owner, IRQL before the acquisition; None if the acquisition did not change it)."""
        self.waiting: dict[int, deque[tuple[KThread, int | None]]] = {}
        self.shared: dict[int, list[KThread]] = {}
        """Holders of EX_SPIN_LOCKs that are held shared."""
        self.shared_waiting: dict[int, deque[tuple[KThread, bool]]] = {}

    # KSPIN_LOCK

    def acquire(self, lock: int, old: int | None) -> Model | None:
        """Take the lock at DISPATCH_LEVEL; None if it was free, else a generator that ends when it is ours."""
        k = self.k
        thread = k.current
        held = self.owners.get(lock)
        value = k.memory.u64(lock)
        if held is None:
            if value:
                raise Bugcheck(
                    bc.SPIN_LOCK_INIT_FAILURE,
                    lock,
                    value,
                    rule=f"the spin lock at {lock:#x} holds the value {value:#x}: it was not initialised with "
                    "KeInitializeSpinLock, or its memory was overwritten",
                )
            k.memory.put64(lock, thread.address | 1)
            self.owners[lock] = (thread, old)
            thread.owned.append((_SPIN, lock))
            return None
        if not value:
            raise Bugcheck(
                bc.SPIN_LOCK_INIT_FAILURE,
                lock,
                rule=f"the spin lock at {lock:#x} is held by thread '{held[0].name}', but its memory was overwritten",
            )
        if held[0] is thread:
            raise Bugcheck(
                bc.SPIN_LOCK_ALREADY_OWNED,
                lock,
                rule=f"thread '{thread.name}' acquired the spin lock at {lock:#x}, which it holds already: it would spin "
                "for ever",
            )
        return self._spin(lock, old, thread)

    def _spin(self, lock: int, old: int | None, thread: KThread) -> Model:
        self.waiting.setdefault(lock, deque()).append((thread, old))
        yield Block(f"spinning on the spin lock at {lock:#x}")
        return old

    def release(self, lock: int) -> int | None:
        """Give the lock to the next thread that spins on it; the IRQL from before our acquisition."""
        k = self.k
        thread = k.current
        held = self.owners.get(lock)
        if held is None or held[0] is not thread:
            owner = f"thread '{held[0].name}' holds it" if held is not None else "nobody holds it"
            raise Bugcheck(
                bc.SPIN_LOCK_NOT_OWNED,
                lock,
                rule=f"thread '{thread.name}' released the spin lock at {lock:#x}, which it does not hold: {owner}",
            )
        thread.owned.remove((_SPIN, lock))
        queue = self.waiting.get(lock)
        if queue:
            following, old = queue.popleft()
            if not queue:
                del self.waiting[lock]
            self.owners[lock] = (following, old)
            k.memory.put64(lock, following.address | 1)
            following.owned.append((_SPIN, lock))
            k.scheduler.wake(following, None)
        else:
            del self.owners[lock]
            k.memory.put64(lock, 0)
        return held[1]

    def check_restored(self, lock: int, saved: int | None, new: int) -> None:
        """The IRQL that a release restores must be one that an acquisition of this thread has saved."""
        thread = self.k.current
        others = [self.owners[a][1] for kind, a in thread.owned if kind == _SPIN and a in self.owners]
        if any(kind in (_SPIN, _SHARED) for kind, _ in thread.owned) and new < DISPATCH_LEVEL:
            other = next(a for kind, a in reversed(thread.owned) if kind in (_SPIN, _SHARED))
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x31,
                new,
                lock,
                rule=f"releasing the spin lock at {lock:#x} lowers the IRQL to {new} while the spin lock at {other:#x} is "
                "still held",
            )
        expected = {level for level in (saved, *others) if level is not None}
        if saved is None:
            expected.add(DISPATCH_LEVEL)
        if new not in expected:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x32,
                new,
                lock,
                rule=f"releasing the spin lock at {lock:#x} restores IRQL {new}, but it was acquired at IRQL "
                f"{' or '.join(str(level) for level in sorted(expected))}",
            )


def _acquire_and_raise(k: Kernel, lock: int) -> Any:
    engine = k.engine
    old = engine.irql
    engine.irql = DISPATCH_LEVEL
    spin = state_of(k, SpinLocks).acquire(lock, old)
    return old if spin is None else spin


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeInitializeSpinLock(k: Kernel, SpinLock: PVOID) -> None:
    held = state_of(k, SpinLocks).owners.get(SpinLock)
    if held is not None:
        raise Bugcheck(
            bc.SPIN_LOCK_INIT_FAILURE,
            SpinLock,
            rule=f"the spin lock at {SpinLock:#x} was initialised while thread '{held[0].name}' holds it",
        )
    k.memory.put64(SpinLock, 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeAcquireSpinLockRaiseToDpc(k: Kernel, SpinLock: PVOID) -> Any:
    return _acquire_and_raise(k, SpinLock)


KfAcquireSpinLock = alias(KeAcquireSpinLockRaiseToDpc, "KfAcquireSpinLock")
HalKfAcquireSpinLock = alias(KeAcquireSpinLockRaiseToDpc, "KfAcquireSpinLock", dll=HAL)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeAcquireSpinLock(k: Kernel, SpinLock: PVOID, OldIrql: PVOID) -> Any:
    spin = _acquire_and_raise(k, SpinLock)
    if spin.__class__ is int:
        k.memory.put8(OldIrql, spin)
        return None
    return _store_irql(k, spin, OldIrql)


def _store_irql(k: Kernel, spin: Model, address: int) -> Model:
    k.memory.put8(address, (yield from spin))


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def KeAcquireSpinLockAtDpcLevel(k: Kernel, SpinLock: PVOID) -> Any:
    return state_of(k, SpinLocks).acquire(SpinLock, None)


KefAcquireSpinLockAtDpcLevel = alias(KeAcquireSpinLockAtDpcLevel, "KefAcquireSpinLockAtDpcLevel")


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def KeTryToAcquireSpinLockAtDpcLevel(k: Kernel, SpinLock: PVOID) -> bool:
    locks = state_of(k, SpinLocks)
    if SpinLock in locks.owners:
        return False
    locks.acquire(SpinLock, None)
    return True


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeTestSpinLock(k: Kernel, SpinLock: PVOID) -> bool:
    return k.memory.u64(SpinLock) == 0


@export(NTOSKRNL, irql=DISPATCH_LEVEL, minimum=DISPATCH_LEVEL)
def KeReleaseSpinLock(k: Kernel, SpinLock: PVOID, NewIrql: KIRQL) -> None:
    locks = state_of(k, SpinLocks)
    saved = locks.release(SpinLock)
    if saved != NewIrql or len(k.current.owned):
        locks.check_restored(SpinLock, saved, NewIrql)
    k.engine.irql = NewIrql


KfReleaseSpinLock = alias(KeReleaseSpinLock, "KfReleaseSpinLock")
HalKfReleaseSpinLock = alias(KeReleaseSpinLock, "KfReleaseSpinLock", dll=HAL)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def KeReleaseSpinLockFromDpcLevel(k: Kernel, SpinLock: PVOID) -> None:
    state_of(k, SpinLocks).release(SpinLock)


KefReleaseSpinLockFromDpcLevel = alias(KeReleaseSpinLockFromDpcLevel, "KefReleaseSpinLockFromDpcLevel")

# In-stack queued spin locks. KLOCK_QUEUE_HANDLE: LockQueue.Next 0x00, LockQueue.Lock 0x08, OldIrql 0x10.


def _fill_handle(k: Kernel, lock: int, handle: int, old: int) -> None:
    k.memory.put64(handle, 0)
    k.memory.put64(handle + 8, lock)
    k.memory.put8(handle + 0x10, old)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def KeAcquireInStackQueuedSpinLock(k: Kernel, SpinLock: PVOID, LockHandle: PVOID) -> Any:
    _fill_handle(k, SpinLock, LockHandle, k.engine.irql)
    return _acquire_and_raise(k, SpinLock)


@export(NTOSKRNL, irql=DISPATCH_LEVEL, minimum=DISPATCH_LEVEL)
def KeReleaseInStackQueuedSpinLock(k: Kernel, LockHandle: PVOID) -> None:
    locks = state_of(k, SpinLocks)
    lock, new = k.memory.u64(LockHandle + 8), k.memory.u8(LockHandle + 0x10)
    locks.check_restored(lock, locks.release(lock), new)
    k.engine.irql = new


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def KeAcquireInStackQueuedSpinLockAtDpcLevel(k: Kernel, SpinLock: PVOID, LockHandle: PVOID) -> Any:
    _fill_handle(k, SpinLock, LockHandle, k.engine.irql)
    return state_of(k, SpinLocks).acquire(SpinLock, None)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def KeReleaseInStackQueuedSpinLockFromDpcLevel(k: Kernel, LockHandle: PVOID) -> None:
    state_of(k, SpinLocks).release(k.memory.u64(LockHandle + 8))


# EX_SPIN_LOCK: a LONG, bit 31 for the exclusive owner, a count of the shared ones below.


def _acquire_shared(k: Kernel, lock: int, old: int | None) -> Any:
    locks = state_of(k, SpinLocks)
    thread = k.current
    if lock in locks.owners or locks.shared_waiting.get(lock):
        if lock in locks.owners and locks.owners[lock][0] is thread:
            _own_already(thread, lock)
        return _spin_shared(k, lock, old, thread, exclusive=False)
    locks.shared.setdefault(lock, []).append(thread)
    thread.owned.append((_SHARED, lock))
    k.memory.put32(lock, len(locks.shared[lock]))
    return old


def _acquire_exclusive(k: Kernel, lock: int, old: int | None) -> Any:
    locks = state_of(k, SpinLocks)
    thread = k.current
    if lock in locks.owners or locks.shared.get(lock):
        if thread in locks.shared.get(lock, ()) or (lock in locks.owners and locks.owners[lock][0] is thread):
            _own_already(thread, lock)
        return _spin_shared(k, lock, old, thread, exclusive=True)
    locks.owners[lock] = (thread, old)
    thread.owned.append((_SPIN, lock))
    k.memory.put32(lock, _EXCLUSIVE_BIT)
    return old


def _own_already(thread: KThread, lock: int) -> None:
    raise Bugcheck(
        bc.SPIN_LOCK_ALREADY_OWNED,
        lock,
        rule=f"thread '{thread.name}' acquired the reader/writer spin lock at {lock:#x}, which it holds already: it would "
        "spin for ever",
    )


def _spin_shared(k: Kernel, lock: int, old: int | None, thread: KThread, *, exclusive: bool) -> Model:
    state_of(k, SpinLocks).shared_waiting.setdefault(lock, deque()).append((thread, exclusive))
    yield Block(f"spinning on the reader/writer spin lock at {lock:#x}")
    return old


def _grant(k: Kernel, lock: int) -> None:
    """The lock has become free for the next writer, or for the readers at the head of the queue."""
    locks = state_of(k, SpinLocks)
    queue = locks.shared_waiting.get(lock, deque())
    while queue:
        thread, exclusive = queue[0]
        if exclusive:
            if not locks.shared.get(lock):
                queue.popleft()
                locks.owners[lock] = (thread, None)
                thread.owned.append((_SPIN, lock))
                k.scheduler.wake(thread, None)
            break
        queue.popleft()
        locks.shared.setdefault(lock, []).append(thread)
        thread.owned.append((_SHARED, lock))
        k.scheduler.wake(thread, None)
    if not queue:
        locks.shared_waiting.pop(lock, None)
    k.memory.put32(lock, _EXCLUSIVE_BIT if lock in locks.owners else len(locks.shared.get(lock, ())))


def _release_shared(k: Kernel, lock: int) -> None:
    locks = state_of(k, SpinLocks)
    thread = k.current
    holders = locks.shared.get(lock, [])
    if thread not in holders:
        raise Bugcheck(
            bc.SPIN_LOCK_NOT_OWNED,
            lock,
            rule=f"thread '{thread.name}' released the reader/writer spin lock at {lock:#x} as a reader, which it is not",
        )
    holders.remove(thread)
    thread.owned.remove((_SHARED, lock))
    if not holders:
        locks.shared.pop(lock, None)
    _grant(k, lock)


def _release_exclusive(k: Kernel, lock: int) -> None:
    locks = state_of(k, SpinLocks)
    thread = k.current
    held = locks.owners.get(lock)
    if held is None or held[0] is not thread:
        raise Bugcheck(
            bc.SPIN_LOCK_NOT_OWNED,
            lock,
            rule=f"thread '{thread.name}' released the reader/writer spin lock at {lock:#x} as its writer, which it is not",
        )
    del locks.owners[lock]
    thread.owned.remove((_SPIN, lock))
    _grant(k, lock)


def _restore(k: Kernel, lock: int, new: int) -> None:
    if new > DISPATCH_LEVEL:
        raise Bugcheck(
            bc.IRQL_NOT_LESS_OR_EQUAL,
            lock,
            new,
            rule=f"releasing the reader/writer spin lock at {lock:#x} raises the IRQL to {new}",
        )
    if new < DISPATCH_LEVEL and any(kind in (_SPIN, _SHARED) for kind, _ in k.current.owned):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x31,
            new,
            lock,
            rule=f"releasing the reader/writer spin lock at {lock:#x} lowers the IRQL to {new} while another spin lock is "
            "held",
        )
    k.engine.irql = new


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireSpinLockShared(k: Kernel, SpinLock: PVOID) -> Any:
    old, k.engine.irql = k.engine.irql, DISPATCH_LEVEL
    return _acquire_shared(k, SpinLock, old)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireSpinLockExclusive(k: Kernel, SpinLock: PVOID) -> Any:
    old, k.engine.irql = k.engine.irql, DISPATCH_LEVEL
    return _acquire_exclusive(k, SpinLock, old)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def ExAcquireSpinLockSharedAtDpcLevel(k: Kernel, SpinLock: PVOID) -> Any:
    return _acquire_shared(k, SpinLock, None)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def ExAcquireSpinLockExclusiveAtDpcLevel(k: Kernel, SpinLock: PVOID) -> Any:
    return _acquire_exclusive(k, SpinLock, None)


@export(NTOSKRNL, irql=DISPATCH_LEVEL, minimum=DISPATCH_LEVEL)
def ExReleaseSpinLockShared(k: Kernel, SpinLock: PVOID, OldIrql: KIRQL) -> None:
    _release_shared(k, SpinLock)
    _restore(k, SpinLock, OldIrql)


@export(NTOSKRNL, irql=DISPATCH_LEVEL, minimum=DISPATCH_LEVEL)
def ExReleaseSpinLockExclusive(k: Kernel, SpinLock: PVOID, OldIrql: KIRQL) -> None:
    _release_exclusive(k, SpinLock)
    _restore(k, SpinLock, OldIrql)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def ExReleaseSpinLockSharedFromDpcLevel(k: Kernel, SpinLock: PVOID) -> None:
    _release_shared(k, SpinLock)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def ExReleaseSpinLockExclusiveFromDpcLevel(k: Kernel, SpinLock: PVOID) -> None:
    _release_exclusive(k, SpinLock)


@export(NTOSKRNL, irql=HIGH_LEVEL, minimum=DISPATCH_LEVEL)
def ExTryConvertSharedSpinLockExclusive(k: Kernel, SpinLock: PVOID) -> bool:
    """TRUE only for the one reader of the lock."""
    locks = state_of(k, SpinLocks)
    thread = k.current
    if locks.shared.get(SpinLock) != [thread]:
        return False
    del locks.shared[SpinLock]
    thread.owned.remove((_SHARED, SpinLock))
    locks.owners[SpinLock] = (thread, None)
    thread.owned.append((_SPIN, SpinLock))
    k.memory.put32(SpinLock, _EXCLUSIVE_BIT)
    return True
