"""Rundown protection (EX_RUNDOWN_REF) and its cache-aware form.

The word is the count shifted left by one, as Windows keeps it; bit 0 says that rundown has begun. While somebody
waits, the count goes on below the bit, so that one look at the memory tells everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import NTOSKRNL, PVOID, SIZE_T, ULONG, export
from vm.emulated.exports.pool import allocate, release
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Block, KThread, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_ACTIVE = 1
_CACHE_AWARE_SIZE = 0x40


class Rundowns:
    """Threads that wait in ExWaitForRundownProtectionRelease, by the address of the word."""

    def __init__(self, k: Kernel) -> None:
        self.waiting: dict[int, list[KThread]] = {}
        self._k = k
        k.free_checks.append(self._check_free)

    def _check_free(self, begin: int, end: int, what: str) -> None:
        for address in self._inside(begin, end):
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0x2_0010,
                address,
                begin,
                rule=f"{what} was freed while a thread waits for the rundown protection at {address:#x} inside it",
            )

    def _inside(self, begin: int, end: int) -> Iterator[int]:
        return (address for address in self.waiting if begin <= address < end)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeRundownProtection(k: Kernel, RunRef: PVOID) -> None:
    k.memory.put64(RunRef, 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireRundownProtection(k: Kernel, RunRef: PVOID) -> bool:
    value = k.memory.u64(RunRef)
    if value & _ACTIVE:
        return False
    k.memory.put64(RunRef, value + 2)
    return True


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireRundownProtectionEx(k: Kernel, RunRef: PVOID, Count: ULONG) -> bool:
    value = k.memory.u64(RunRef)
    if value & _ACTIVE:
        return False
    k.memory.put64(RunRef, value + 2 * Count)
    return True


def _release(k: Kernel, address: int, count: int) -> None:
    value = k.memory.u64(address)
    if value >> 1 < count:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0011,
            address,
            value,
            rule=f"the rundown protection at {address:#x} was released more often than it was acquired",
        )
    value -= 2 * count
    k.memory.put64(address, value)
    if value == _ACTIVE:
        for thread in state_of(k, Rundowns).waiting.pop(address, []):
            k.scheduler.wake(thread, None)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseRundownProtection(k: Kernel, RunRef: PVOID) -> None:
    _release(k, RunRef, 1)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseRundownProtectionEx(k: Kernel, RunRef: PVOID, Count: ULONG) -> None:
    _release(k, RunRef, Count)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExWaitForRundownProtectionRelease(k: Kernel, RunRef: PVOID) -> Model:
    """From now on acquisitions fail; returns when the last one is released, and at once if there is none."""
    value = k.memory.u64(RunRef)
    k.memory.put64(RunRef, value | _ACTIVE)
    if value >> 1:
        state_of(k, Rundowns).waiting.setdefault(RunRef, []).append(k.current)
        yield Block(f"ExWaitForRundownProtectionRelease for {RunRef:#x}")


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReInitializeRundownProtection(k: Kernel, RunRef: PVOID) -> None:
    """Only after the rundown is complete (docs)."""
    value = k.memory.u64(RunRef)
    if value != _ACTIVE:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0012,
            RunRef,
            value,
            rule=f"the rundown protection at {RunRef:#x} was re-initialised, but its rundown is not complete",
        )
    k.memory.put64(RunRef, 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExRundownCompleted(k: Kernel, RunRef: PVOID) -> None:
    value = k.memory.u64(RunRef)
    if value >> 1:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0013,
            RunRef,
            value,
            rule=f"ExRundownCompleted was called for {RunRef:#x} while {value >> 1} acquisitions are outstanding",
        )
    k.memory.put64(RunRef, _ACTIVE)


# The cache-aware form: an opaque block of pool whose first word is used as above.


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExSizeOfRundownProtectionCacheAware(k: Kernel) -> int:
    return _CACHE_AWARE_SIZE


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocateCacheAwareRundownProtection(k: Kernel, PoolType: ULONG, PoolTag: ULONG) -> int:
    return allocate(k, _CACHE_AWARE_SIZE, PoolTag, paged=bool(PoolType & 1), zero=True)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFreeCacheAwareRundownProtection(k: Kernel, RunRefCacheAware: PVOID) -> None:
    release(k, RunRefCacheAware)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeRundownProtectionCacheAware(k: Kernel, RunRefCacheAware: PVOID, RunRefSize: SIZE_T) -> None:
    k.memory.write(RunRefCacheAware, bytes(RunRefSize))


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireRundownProtectionCacheAware(k: Kernel, RunRefCacheAware: PVOID) -> bool:
    result: bool = ExAcquireRundownProtection(k, RunRefCacheAware)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAcquireRundownProtectionCacheAwareEx(k: Kernel, RunRefCacheAware: PVOID, Count: ULONG) -> bool:
    result: bool = ExAcquireRundownProtectionEx(k, RunRefCacheAware, Count)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseRundownProtectionCacheAware(k: Kernel, RunRefCacheAware: PVOID) -> None:
    _release(k, RunRefCacheAware, 1)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReleaseRundownProtectionCacheAwareEx(k: Kernel, RunRefCacheAware: PVOID, Count: ULONG) -> None:
    _release(k, RunRefCacheAware, Count)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExWaitForRundownProtectionReleaseCacheAware(k: Kernel, RunRefCacheAware: PVOID) -> Model:
    yield from ExWaitForRundownProtectionRelease(k, RunRefCacheAware)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExReInitializeRundownProtectionCacheAware(k: Kernel, RunRefCacheAware: PVOID) -> None:
    ExReInitializeRundownProtection(k, RunRefCacheAware)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExRundownCompletedCacheAware(k: Kernel, RunRefCacheAware: PVOID) -> None:
    ExRundownCompleted(k, RunRefCacheAware)
