"""Interlocked lists: doubly linked under a spin lock, and sequenced singly linked ones (S-lists)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import NTOSKRNL, PVOID, SIZE_T, ULONG, alias, export
from vm.emulated.exports.spinlocks import SpinLocks
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.threads import DISPATCH_LEVEL, HIGH_LEVEL, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_CORRUPT_LIST_ENTRY = 3
"""FAST_FAIL_CORRUPT_LIST_ENTRY."""


def _locked(k: Kernel, lock: int, work: Callable[[], int]) -> Any:
    """Do the work while the spin lock is held; at once if it is free."""
    locks = state_of(k, SpinLocks)
    old = k.engine.irql
    k.engine.irql = max(old, DISPATCH_LEVEL)
    spin = locks.acquire(lock, old)
    if spin is not None:
        return _when_free(k, spin, lock, old, work)
    try:
        return work()
    finally:
        locks.release(lock)
        k.engine.irql = old


def _when_free(k: Kernel, spin: Model, lock: int, old: int, work: Callable[[], int]) -> Model:
    yield from spin
    try:
        return work()
    finally:
        state_of(k, SpinLocks).release(lock)
        k.engine.irql = old


def _check_neighbours(k: Kernel, first: int, second: int) -> None:
    if k.memory.u64(first) != second or k.memory.u64(second + 8) != first:
        raise Bugcheck(
            bc.KERNEL_SECURITY_CHECK_FAILURE,
            _CORRUPT_LIST_ENTRY,
            first,
            second,
            rule=f"the doubly linked list at {first:#x} is damaged: the entries {first:#x} and {second:#x} do not point to "
            "each other",
        )


def insert_between(k: Kernel, entry: int, before: int, after: int) -> None:
    """Link an entry in; bugchecks when the neighbours are not neighbours."""
    _check_neighbours(k, before, after)
    memory = k.memory
    memory.put64(entry, after)
    memory.put64(entry + 8, before)
    memory.put64(before, entry)
    memory.put64(after + 8, entry)


def _insert(k: Kernel, head: int, entry: int, *, at_head: bool) -> int:
    """The entry that was first (last), or 0 if the list was empty."""
    memory = k.memory
    neighbour = memory.u64(head) if at_head else memory.u64(head + 8)
    if at_head:
        insert_between(k, entry, head, neighbour)
    else:
        insert_between(k, entry, neighbour, head)
    return 0 if neighbour == head else neighbour


def _remove_head(k: Kernel, head: int) -> int:
    memory = k.memory
    entry = memory.u64(head)
    if entry == head:
        return 0
    following = memory.u64(entry)
    _check_neighbours(k, head, entry)
    _check_neighbours(k, entry, following)
    memory.put64(head, following)
    memory.put64(following + 8, head)
    return entry


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedInsertHeadList(k: Kernel, ListHead: PVOID, ListEntry: PVOID, Lock: PVOID) -> Any:
    return _locked(k, Lock, lambda: _insert(k, ListHead, ListEntry, at_head=True))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedInsertTailList(k: Kernel, ListHead: PVOID, ListEntry: PVOID, Lock: PVOID) -> Any:
    return _locked(k, Lock, lambda: _insert(k, ListHead, ListEntry, at_head=False))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedRemoveHeadList(k: Kernel, ListHead: PVOID, Lock: PVOID) -> Any:
    return _locked(k, Lock, lambda: _remove_head(k, ListHead))


def _push(k: Kernel, head: int, entry: int) -> int:
    first = k.memory.u64(head)
    k.memory.put64(entry, first)
    k.memory.put64(head, entry)
    return first


def _pop(k: Kernel, head: int) -> int:
    first = k.memory.u64(head)
    if first:
        k.memory.put64(head, k.memory.u64(first))
    return first


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedPushEntryList(k: Kernel, ListHead: PVOID, ListEntry: PVOID, Lock: PVOID) -> Any:
    return _locked(k, Lock, lambda: _push(k, ListHead, ListEntry))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedPopEntryList(k: Kernel, ListHead: PVOID, Lock: PVOID) -> Any:
    return _locked(k, Lock, lambda: _pop(k, ListHead))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedAddUlong(k: Kernel, Addend: PVOID, Increment: ULONG, Lock: PVOID) -> Any:
    def add() -> int:
        old = k.memory.u32(Addend)
        k.memory.put32(Addend, old + Increment)
        return old

    return _locked(k, Lock, add)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedAddLargeInteger(k: Kernel, Addend: PVOID, Increment: SIZE_T, Lock: PVOID) -> Any:
    def add() -> int:
        old = k.memory.u64(Addend)
        k.memory.put64(Addend, old + Increment)
        return old

    return _locked(k, Lock, add)


# S-lists. SLIST_HEADER (x64, 16-byte aligned): Depth in bits 0-15 and Sequence in bits 16-63 of the first word; the
# second word is the address of the first entry.


@export(NTOSKRNL, irql=HIGH_LEVEL)
def InitializeSListHead(k: Kernel, SListHead: PVOID) -> None:
    _aligned(SListHead, "an S-list head")
    k.memory.write(SListHead, bytes(16))


ExInitializeSListHead = alias(InitializeSListHead, "ExInitializeSListHead")


def _aligned(address: int, what: str) -> None:
    if address & 15:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0030,
            address,
            rule=f"{what} lies at {address:#x}; it must be aligned to 16 bytes",
        )


def _set(k: Kernel, head: int, depth: int, first: int) -> None:
    sequence = (k.memory.u64(head) >> 16) + 1
    k.memory.put64(head, depth & 0xFFFF | sequence << 16)
    k.memory.put64(head + 8, first)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExpInterlockedPushEntrySList(k: Kernel, ListHead: PVOID, ListEntry: PVOID) -> int:
    _aligned(ListEntry, "an S-list entry")
    first = k.memory.u64(ListHead + 8) & ~0xF
    k.memory.put64(ListEntry, first)
    _set(k, ListHead, (k.memory.u64(ListHead) & 0xFFFF) + 1, ListEntry)
    return first


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExpInterlockedPopEntrySList(k: Kernel, ListHead: PVOID) -> int:
    first = k.memory.u64(ListHead + 8) & ~0xF
    if first:
        _set(k, ListHead, (k.memory.u64(ListHead) & 0xFFFF) - 1, k.memory.u64(first))
    return first


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExpInterlockedFlushSList(k: Kernel, ListHead: PVOID) -> int:
    first = k.memory.u64(ListHead + 8) & ~0xF
    if first:
        _set(k, ListHead, 0, 0)
    return first


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedPushEntrySList(k: Kernel, ListHead: PVOID, ListEntry: PVOID, Lock: PVOID) -> int:
    """The lock is not used on x64."""
    result: int = ExpInterlockedPushEntrySList(k, ListHead, ListEntry)
    return result


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExInterlockedPopEntrySList(k: Kernel, ListHead: PVOID, Lock: PVOID) -> int:
    """The lock is not used on x64."""
    result: int = ExpInterlockedPopEntrySList(k, ListHead)
    return result


InterlockedPushEntrySList = alias(ExpInterlockedPushEntrySList, "InterlockedPushEntrySList")
InterlockedPopEntrySList = alias(ExpInterlockedPopEntrySList, "InterlockedPopEntrySList")
InterlockedFlushSList = alias(ExpInterlockedFlushSList, "InterlockedFlushSList")
ExInterlockedFlushSList = alias(ExpInterlockedFlushSList, "ExInterlockedFlushSList")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def ExQueryDepthSList(k: Kernel, SListHead: PVOID) -> int:
    return k.memory.u64(SListHead) & 0xFFFF


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFirstEntrySList(k: Kernel, SListHead: PVOID) -> int:
    return k.memory.u64(SListHead + 8) & ~0xF
