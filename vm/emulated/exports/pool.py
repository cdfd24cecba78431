"""Pool allocation: the ExAllocatePool family, quota, lookaside lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import PAGE_SIZE, pages
from vm.emulated.exports.declare import NTOSKRNL, PVOID, SIZE_T, ULONG, ULONGLONG, USHORT, alias, export
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.pool import tag_text
from vm.emulated.kernel.status import (
    STATUS_INSUFFICIENT_RESOURCES,
    STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

# POOL_FLAG_* of wdm.h. The low 32 bits are required flags (unknown ones fail), the high ones optional (ignored).
USE_QUOTA = 0x1
UNINITIALIZED = 0x2
SESSION = 0x4
CACHE_ALIGNED = 0x8
RAISE_ON_FAILURE = 0x20
NON_PAGED = 0x40
NON_PAGED_EXECUTE = 0x80
PAGED = 0x100
SPECIAL_POOL = 0x1_0000_0000
_REQUIRED = (
    USE_QUOTA
    | UNINITIALIZED
    | SESSION
    | CACHE_ALIGNED
    | RAISE_ON_FAILURE
    | NON_PAGED
    | NON_PAGED_EXECUTE
    | PAGED
)
_KINDS = NON_PAGED | NON_PAGED_EXECUTE | PAGED

# POOL_TYPE bits of wdm.h.
_TYPE_PAGED = 0x1
_TYPE_MUST_SUCCEED = 0x2
_TYPE_CACHE_ALIGNED = 0x4
_TYPE_QUOTA_FAIL_INSTEAD_OF_RAISE = 0x8
_TYPE_RAISE_IF_FAILURE = 0x10
_TYPE_ZERO = 0x400
"""POOL_ZERO_ALLOCATION: how the inline ExAllocatePoolZero asks for zeroed memory."""

_UNTAGGED = int.from_bytes(b"None", "little")


def allocate(
    k: Kernel, size: int, tag: int, *, paged: bool, zero: bool, fail: int = 0, raises: bool = False
) -> int:
    """Allocate for the calling driver under the pool rules; 0 (or an exception) when there is no memory.

    Args:
        fail: what to return on failure.
        raises: raise STATUS_INSUFFICIENT_RESOURCES instead.
    """
    irql = k.engine.irql
    if paged and irql > APC_LEVEL:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x01,
            irql,
            _TYPE_PAGED,
            size,
            rule=f"{size} bytes of paged pool ('{tag_text(tag)}') were requested at IRQL {irql}; paged pool needs "
            "IRQL <= APC_LEVEL (1)",
        )
    if tag == 0:
        raise Bugcheck(
            bc.BAD_POOL_CALLER,
            0x9B,
            int(paged),
            size,
            k.caller()[1],
            rule="pool was requested with a tag of zero",
        )
    owner, site = k.caller()
    if size == 0:
        k.violate("pool.zero-bytes", f"zero bytes of pool ('{tag_text(tag)}') were requested", owner)
    pool = k.pool
    if (pool.refuse is not None and pool.refuse(size, tag_text(tag), owner)) or not _fits(k, size):
        if raises:
            raise GuestException(STATUS_INSUFFICIENT_RESOURCES)
        return fail
    return pool.allocate(size, tag_text(tag), owner=owner, site=site, paged=paged, zero=zero)


def _fits(k: Kernel, size: int) -> bool:
    free = k.memory.size // PAGE_SIZE - 1 - k.memory.frames_in_use
    return pages(size) < free


def release(k: Kernel, address: int, tag: int | None = None) -> None:
    """Free a block for the calling driver under the pool rules."""
    block = k.pool.live.get(address)
    irql = k.engine.irql
    if block is not None and block.paged and irql > APC_LEVEL:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x11,
            irql,
            _TYPE_PAGED,
            address,
            rule=f"the paged pool block '{block.tag}' at {address:#x} was freed at IRQL {irql}; that needs IRQL <= "
            "APC_LEVEL (1)",
        )
    if address == 0:
        raise Bugcheck(bc.BAD_POOL_CALLER, 0x46, 0, rule="a NULL pointer was freed as pool")
    k.pool.free(address, tag_text(tag) if tag else None, site=k.caller()[1])


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePool2(k: Kernel, Flags: ULONGLONG, NumberOfBytes: SIZE_T, Tag: ULONG) -> int:
    """Zeroed unless POOL_FLAG_UNINITIALIZED; an unknown or contradictory required flag returns NULL (docs)."""
    required = Flags & 0xFFFF_FFFF
    kinds = required & _KINDS
    raises = bool(required & RAISE_ON_FAILURE)
    if required & ~_REQUIRED or kinds not in (NON_PAGED, NON_PAGED_EXECUTE, PAGED):
        if raises:
            raise GuestException(STATUS_INVALID_PARAMETER)
        return 0
    return allocate(
        k, NumberOfBytes, Tag, paged=kinds == PAGED, zero=not required & UNINITIALIZED, raises=raises
    )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePool3(
    k: Kernel,
    Flags: ULONGLONG,
    NumberOfBytes: SIZE_T,
    Tag: ULONG,
    ExtendedParameters: PVOID,
    ExtendedParametersCount: ULONG,
) -> int:
    """As ExAllocatePool2; priority parameters (type 1) change nothing here, others are refused unless optional."""
    for index in range(ExtendedParametersCount):
        word = k.memory.u64(ExtendedParameters + 16 * index)
        kind, optional = word & 0xFF, bool(word >> 8 & 1)
        if kind != 1 and not optional:
            return 0
    result: int = ExAllocatePool2(k, Flags, NumberOfBytes, Tag)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePoolWithTag(k: Kernel, PoolType: ULONG, NumberOfBytes: SIZE_T, Tag: ULONG) -> int:
    return allocate(
        k,
        NumberOfBytes,
        Tag,
        paged=bool(PoolType & _TYPE_PAGED),
        zero=bool(PoolType & _TYPE_ZERO),
        raises=bool(PoolType & _TYPE_RAISE_IF_FAILURE),
    )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePoolWithTagPriority(
    k: Kernel, PoolType: ULONG, NumberOfBytes: SIZE_T, Tag: ULONG, Priority: ULONG
) -> int:
    result: int = ExAllocatePoolWithTag(k, PoolType, NumberOfBytes, Tag)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePool(k: Kernel, PoolType: ULONG, NumberOfBytes: SIZE_T) -> int:
    result: int = ExAllocatePoolWithTag(k, PoolType, NumberOfBytes, _UNTAGGED)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePoolWithQuotaTag(k: Kernel, PoolType: ULONG, NumberOfBytes: SIZE_T, Tag: ULONG) -> int:
    """Raises on failure unless POOL_QUOTA_FAIL_INSTEAD_OF_RAISE is given (docs)."""
    return allocate(
        k,
        NumberOfBytes,
        Tag,
        paged=bool(PoolType & _TYPE_PAGED),
        zero=bool(PoolType & _TYPE_ZERO),
        raises=not PoolType & _TYPE_QUOTA_FAIL_INSTEAD_OF_RAISE,
    )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocatePoolWithQuota(k: Kernel, PoolType: ULONG, NumberOfBytes: SIZE_T) -> int:
    result: int = ExAllocatePoolWithQuotaTag(k, PoolType, NumberOfBytes, _UNTAGGED)
    return result


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFreePool(k: Kernel, P: PVOID) -> None:
    release(k, P)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFreePoolWithTag(k: Kernel, P: PVOID, Tag: ULONG) -> None:
    """A tag of zero is not checked, as ExFreePool maps to it."""
    release(k, P, Tag)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFreePool2(
    k: Kernel, P: PVOID, Tag: ULONG, ExtendedParameters: PVOID, ExtendedParametersCount: ULONG
) -> None:
    release(k, P, Tag)


# Lookaside lists. GENERAL_LOOKASIDE (x64): ListHead 0x00, Depth 0x10, MaximumDepth 0x12, TotalAllocates 0x14,
# AllocateMisses 0x18, TotalFrees 0x1C, FreeMisses 0x20, Type 0x24, Tag 0x28, Size 0x2C, AllocateEx 0x30, FreeEx 0x38,
# ListEntry 0x40, LastTotalAllocates 0x50, LastAllocateMisses 0x54.

_TOTAL_ALLOCATES, _ALLOCATE_MISSES, _TOTAL_FREES, _FREE_MISSES = 0x14, 0x18, 0x1C, 0x20
_TYPE, _TAG, _SIZE, _ALLOCATE, _FREE = 0x24, 0x28, 0x2C, 0x30, 0x38
_EX_FLAG_RAISE, _EX_FLAG_NO_RAISE = 1, 2


def _initialize_lookaside(
    k: Kernel, list_: int, allocate_: int, free: int, pool_type: int, size: int, tag: int
) -> None:
    memory = k.memory
    memory.write(list_, bytes(0x60))
    # Depth stays 0: the inlined free then gives every block back to the pool, where its later use is seen.
    memory.put16(list_ + 0x12, 256)
    memory.put32(list_ + _TYPE, pool_type)
    memory.put32(list_ + _TAG, tag)
    memory.put32(list_ + _SIZE, size)
    memory.put64(list_ + _ALLOCATE, allocate_)
    memory.put64(list_ + _FREE, free)


def _initialize_classic(
    k: Kernel, list_: int, allocate_: int, free: int, pool_type: int, size: int, tag: int
) -> None:
    """The classic forms: without routines of the driver the pool's own are entered, which inlined code calls."""
    _initialize_lookaside(
        k,
        list_,
        allocate_ or k.resolve_import(NTOSKRNL, "ExAllocatePoolWithTag"),
        free or k.resolve_import(NTOSKRNL, "ExFreePool"),
        pool_type,
        size,
        tag,
    )


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeNPagedLookasideList(
    k: Kernel,
    Lookaside: PVOID,
    Allocate: PVOID,
    Free: PVOID,
    Flags: ULONG,
    Size: SIZE_T,
    Tag: ULONG,
    Depth: USHORT,
) -> None:
    raises = _TYPE_RAISE_IF_FAILURE if Flags & RAISE_ON_FAILURE else 0
    _initialize_classic(k, Lookaside, Allocate, Free, 512 | raises, Size, Tag)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExInitializePagedLookasideList(
    k: Kernel,
    Lookaside: PVOID,
    Allocate: PVOID,
    Free: PVOID,
    Flags: ULONG,
    Size: SIZE_T,
    Tag: ULONG,
    Depth: USHORT,
) -> None:
    raises = _TYPE_RAISE_IF_FAILURE if Flags & RAISE_ON_FAILURE else 0
    _initialize_classic(k, Lookaside, Allocate, Free, _TYPE_PAGED | raises, Size, Tag)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExDeleteNPagedLookasideList(k: Kernel, Lookaside: PVOID) -> None:
    """Nothing is cached in the list, so there is nothing to give back."""
    k.memory.write(Lookaside, bytes(0x60))


@export(NTOSKRNL, irql=APC_LEVEL)
def ExDeletePagedLookasideList(k: Kernel, Lookaside: PVOID) -> None:
    k.memory.write(Lookaside, bytes(0x60))


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExInitializeLookasideListEx(
    k: Kernel,
    Lookaside: PVOID,
    Allocate: PVOID,
    Free: PVOID,
    PoolType: ULONG,
    Flags: ULONG,
    Size: SIZE_T,
    Tag: ULONG,
    Depth: USHORT,
) -> int:
    """Depth is reserved and must be zero; at most one of the two EX_LOOKASIDE_LIST_EX_FLAGS (docs)."""
    if Depth:
        return STATUS_INVALID_PARAMETER
    if Flags & ~3 or Flags == 3:
        return STATUS_INVALID_PARAMETER
    _initialize_lookaside(k, Lookaside, Allocate, Free, PoolType | Flags << 16, Size, Tag)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExDeleteLookasideListEx(k: Kernel, Lookaside: PVOID) -> None:
    k.memory.write(Lookaside, bytes(0x60))


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFlushLookasideListEx(k: Kernel, Lookaside: PVOID) -> None:
    """Nothing is ever cached in the list."""


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExAllocateFromLookasideListEx(k: Kernel, Lookaside: PVOID) -> Model:
    memory = k.memory
    memory.put32(Lookaside + _TOTAL_ALLOCATES, memory.u32(Lookaside + _TOTAL_ALLOCATES) + 1)
    memory.put32(Lookaside + _ALLOCATE_MISSES, memory.u32(Lookaside + _ALLOCATE_MISSES) + 1)
    kind, tag, size = (memory.u32(Lookaside + offset) for offset in (_TYPE, _TAG, _SIZE))
    flags, pool_type = kind >> 16, kind & 0xFFFF
    if flags & _EX_FLAG_RAISE:
        pool_type |= _TYPE_RAISE_IF_FAILURE
    elif flags & _EX_FLAG_NO_RAISE:
        pool_type |= _TYPE_QUOTA_FAIL_INSTEAD_OF_RAISE
    routine = memory.u64(Lookaside + _ALLOCATE)
    if routine:
        return (yield Call(routine, (pool_type, size, tag, Lookaside), "lookaside Allocate routine"))
    return ExAllocatePoolWithTag(k, pool_type, size, tag)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def ExFreeToLookasideListEx(k: Kernel, Lookaside: PVOID, Entry: PVOID) -> Model:
    memory = k.memory
    memory.put32(Lookaside + _TOTAL_FREES, memory.u32(Lookaside + _TOTAL_FREES) + 1)
    memory.put32(Lookaside + _FREE_MISSES, memory.u32(Lookaside + _FREE_MISSES) + 1)
    routine = memory.u64(Lookaside + _FREE)
    if routine:
        yield Call(routine, (Entry, Lookaside), "lookaside Free routine")
    else:
        release(k, Entry, memory.u32(Lookaside + _TAG))


ExAllocateFromNPagedLookasideList = alias(ExAllocateFromLookasideListEx, "ExAllocateFromNPagedLookasideList")
ExAllocateFromPagedLookasideList = alias(ExAllocateFromLookasideListEx, "ExAllocateFromPagedLookasideList")
ExFreeToPagedLookasideList = alias(ExFreeToLookasideListEx, "ExFreeToPagedLookasideList")
ExFreeToNPagedLookasideList = alias(ExFreeToLookasideListEx, "ExFreeToNPagedLookasideList")
