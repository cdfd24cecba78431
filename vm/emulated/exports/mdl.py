"""Memory descriptor lists: describe, lock, and map the same frames a second time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vm.emulated.cpu.memory import PAGE_SIZE, USER_PAGES_END, Access, MemoryFaultError
from vm.emulated.exports.declare import (
    BOOLEAN,
    KPROCESSOR_MODE,
    NTOSKRNL,
    PVOID,
    SIZE_T,
    ULONG,
    export,
)
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.status import STATUS_ACCESS_VIOLATION
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

# MDL (x64): Next 0x00, Size 0x08, MdlFlags 0x0A, Process 0x10, MappedSystemVa 0x18, StartVa 0x20, ByteCount 0x28,
# ByteOffset 0x2C, then one page frame number per page from 0x30 on.
_SIZE, _FLAGS, _PROCESS, _MAPPED, _START, _COUNT, _OFFSET, _PAGES = (
    0x08,
    0x0A,
    0x10,
    0x18,
    0x20,
    0x28,
    0x2C,
    0x30,
)
MAPPED_TO_SYSTEM_VA = 0x0001
PAGES_LOCKED = 0x0002
SOURCE_IS_NONPAGED_POOL = 0x0004
PARTIAL = 0x0010
_MAPPINGS = 0xFFFF_9000_0000_0000


class Mappings:
    """Where locked pages were mapped a second time."""

    def __init__(self, k: Kernel) -> None:
        self.next = _MAPPINGS


def _spanned(address: int, length: int) -> int:
    return ((address & 0xFFF) + length + PAGE_SIZE - 1) // PAGE_SIZE


def _initialize(k: Kernel, mdl: int, address: int, length: int) -> None:
    memory = k.memory
    pages = _spanned(address, length)
    memory.write(mdl, bytes(_PAGES + 8 * pages))
    memory.put16(mdl + _SIZE, _PAGES + 8 * pages)
    memory.put64(mdl + _START, address & ~0xFFF)
    memory.put32(mdl + _COUNT, length)
    memory.put32(mdl + _OFFSET, address & 0xFFF)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoAllocateMdl(
    k: Kernel,
    VirtualAddress: PVOID,
    Length: ULONG,
    SecondaryBuffer: BOOLEAN,
    ChargeQuota: BOOLEAN,
    Irp: PVOID,
) -> int:
    owner, site = k.caller()
    mdl = k.pool.allocate(_PAGES + 8 * _spanned(VirtualAddress, Length), "Mdl", owner=owner, site=site)
    _initialize(k, mdl, VirtualAddress, Length)
    return mdl


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoFreeMdl(k: Kernel, Mdl: PVOID) -> None:
    flags = k.memory.u16(Mdl + _FLAGS)
    if flags & PAGES_LOCKED and not flags & PARTIAL:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xB8,
            Mdl,
            flags,
            rule=f"the MDL at {Mdl:#x} was freed while its pages are locked: call MmUnlockPages first",
        )
    k.pool.free(Mdl, "Mdl", site=k.caller()[1])


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmSizeOfMdl(k: Kernel, Base: PVOID, Length: SIZE_T) -> int:
    return _PAGES + 8 * _spanned(Base, Length)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmBuildMdlForNonPagedPool(k: Kernel, MemoryDescriptorList: PVOID) -> None:
    memory = k.memory
    mdl = MemoryDescriptorList
    start = memory.u64(mdl + _START)
    block = k.pool.block_of(start + memory.u32(mdl + _OFFSET))
    if block is not None and block.paged:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x7F,
            k.engine.irql,
            mdl,
            memory.u16(mdl + _FLAGS),
            rule=f"MmBuildMdlForNonPagedPool was called for paged pool ('{block.tag}')",
        )
    _fill(k, mdl, Access.READ)
    memory.put64(mdl + _MAPPED, start + memory.u32(mdl + _OFFSET))
    memory.put16(mdl + _FLAGS, memory.u16(mdl + _FLAGS) | SOURCE_IS_NONPAGED_POOL)


def _fill(k: Kernel, mdl: int, access: int) -> None:
    """Enter the frame numbers; MemoryFaultError if a page does not allow `access`."""
    memory = k.memory
    start = memory.u64(mdl + _START)
    count = _spanned(memory.u32(mdl + _OFFSET), memory.u32(mdl + _COUNT))
    for index in range(count):
        frame = memory.physical(start + index * PAGE_SIZE, access)
        memory.put64(mdl + _PAGES + 8 * index, frame >> 12)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmProbeAndLockPages(
    k: Kernel, MemoryDescriptorList: PVOID, AccessMode: KPROCESSOR_MODE, Operation: ULONG
) -> None:
    """Raises STATUS_ACCESS_VIOLATION where the pages do not allow the operation (docs): call it in a __try block."""
    memory = k.memory
    mdl = MemoryDescriptorList
    flags = memory.u16(mdl + _FLAGS)
    if flags & (PAGES_LOCKED | SOURCE_IS_NONPAGED_POOL | MAPPED_TO_SYSTEM_VA):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xB0,
            mdl,
            flags,
            rule=f"MmProbeAndLockPages was called for the MDL at {mdl:#x}, which is locked or describes nonpaged pool",
        )
    start = memory.u64(mdl + _START)
    end = start + memory.u32(mdl + _OFFSET) + memory.u32(mdl + _COUNT)
    if AccessMode == 1 and end >> 12 > USER_PAGES_END:
        raise GuestException(STATUS_ACCESS_VIOLATION, 0, start)
    try:
        _fill(k, mdl, Access.READ if Operation == 0 else Access.READ_WRITE)
    except MemoryFaultError as fault:
        raise GuestException(STATUS_ACCESS_VIOLATION, int(Operation != 0), fault.address) from fault
    memory.put16(mdl + _FLAGS, flags | PAGES_LOCKED)
    memory.put64(mdl + _PROCESS, k.current.process.address if start >> 12 < USER_PAGES_END else 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmUnlockPages(k: Kernel, MemoryDescriptorList: PVOID) -> None:
    memory = k.memory
    flags = memory.u16(MemoryDescriptorList + _FLAGS)
    if not flags & PAGES_LOCKED:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x7D if flags & SOURCE_IS_NONPAGED_POOL else 0x7C,
            MemoryDescriptorList,
            flags,
            rule=f"MmUnlockPages was called for the MDL at {MemoryDescriptorList:#x}, whose pages are not locked",
        )
    if flags & MAPPED_TO_SYSTEM_VA:
        _unmap(k, MemoryDescriptorList)
    memory.put16(MemoryDescriptorList + _FLAGS, memory.u16(MemoryDescriptorList + _FLAGS) & ~PAGES_LOCKED)


def _map(k: Kernel, mdl: int) -> int:
    memory = k.memory
    flags = memory.u16(mdl + _FLAGS)
    if flags & (MAPPED_TO_SYSTEM_VA | SOURCE_IS_NONPAGED_POOL):
        return memory.u64(mdl + _MAPPED)
    if not flags & PAGES_LOCKED:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xB3,
            mdl,
            flags,
            PAGES_LOCKED,
            rule=f"the MDL at {mdl:#x} was mapped, but its pages are not locked",
        )
    mappings = state_of(k, Mappings)
    pages = _spanned(memory.u32(mdl + _OFFSET), memory.u32(mdl + _COUNT))
    base = mappings.next
    mappings.next += (pages + 1) * PAGE_SIZE
    for index in range(pages):
        frame = memory.u64(mdl + _PAGES + 8 * index) << 12
        memory.pages[(base >> 12) + index] = (frame, int(Access.READ_WRITE))
    address = base + memory.u32(mdl + _OFFSET)
    memory.put64(mdl + _MAPPED, address)
    memory.put16(mdl + _FLAGS, flags | MAPPED_TO_SYSTEM_VA)
    return address


def _unmap(k: Kernel, mdl: int) -> None:
    memory = k.memory
    pages = _spanned(memory.u32(mdl + _OFFSET), memory.u32(mdl + _COUNT))
    memory.unmap(memory.u64(mdl + _MAPPED) & ~0xFFF, pages * PAGE_SIZE, release=False)
    memory.put16(mdl + _FLAGS, memory.u16(mdl + _FLAGS) & ~MAPPED_TO_SYSTEM_VA)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmMapLockedPagesSpecifyCache(
    k: Kernel,
    MemoryDescriptorList: PVOID,
    AccessMode: KPROCESSOR_MODE,
    CacheType: ULONG,
    RequestedAddress: PVOID,
    BugCheckOnFailure: ULONG,
    Priority: ULONG,
) -> Any:
    """Kernel mappings only: a user-mode mapping of a minifilter's buffer is refused as without memory."""
    if AccessMode == 1:
        return 0
    return _map(k, MemoryDescriptorList)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmMapLockedPages(k: Kernel, MemoryDescriptorList: PVOID, AccessMode: KPROCESSOR_MODE) -> int:
    return _map(k, MemoryDescriptorList)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmUnmapLockedPages(k: Kernel, BaseAddress: PVOID, MemoryDescriptorList: PVOID) -> None:
    memory = k.memory
    mdl = MemoryDescriptorList
    if not memory.u16(mdl + _FLAGS) & MAPPED_TO_SYSTEM_VA or memory.u64(mdl + _MAPPED) != BaseAddress:
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xB3,
            mdl,
            memory.u16(mdl + _FLAGS),
            rule=f"MmUnmapLockedPages was called for {BaseAddress:#x}, where the MDL at {mdl:#x} is not mapped",
        )
    _unmap(k, mdl)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def IoBuildPartialMdl(
    k: Kernel, SourceMdl: PVOID, TargetMdl: PVOID, VirtualAddress: PVOID, Length: ULONG
) -> None:
    memory = k.memory
    source_start = memory.u64(SourceMdl + _START)
    source_address = source_start + memory.u32(SourceMdl + _OFFSET)
    length = Length or source_address + memory.u32(SourceMdl + _COUNT) - VirtualAddress
    if VirtualAddress < source_address or VirtualAddress + length > source_address + memory.u32(
        SourceMdl + _COUNT
    ):
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0x2_0040,
            SourceMdl,
            TargetMdl,
            rule=f"IoBuildPartialMdl was called for a range that the MDL at {SourceMdl:#x} does not describe",
        )
    _initialize(k, TargetMdl, VirtualAddress, length)
    first = ((VirtualAddress & ~0xFFF) - source_start) // PAGE_SIZE
    for index in range(_spanned(VirtualAddress, length)):
        memory.put64(TargetMdl + _PAGES + 8 * index, memory.u64(SourceMdl + _PAGES + 8 * (first + index)))
    flags = memory.u16(SourceMdl + _FLAGS)
    memory.put16(TargetMdl + _FLAGS, PARTIAL | flags & (PAGES_LOCKED | SOURCE_IS_NONPAGED_POOL))
    if flags & (SOURCE_IS_NONPAGED_POOL | MAPPED_TO_SYSTEM_VA):
        mapped = memory.u64(SourceMdl + _MAPPED) + VirtualAddress - source_address
        memory.put64(TargetMdl + _MAPPED, mapped)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmPrepareMdlForReuse(k: Kernel, Mdl: PVOID) -> None:
    """A macro in most headers."""
    if k.memory.u16(Mdl + _FLAGS) & MAPPED_TO_SYSTEM_VA:
        _unmap(k, Mdl)


@export(NTOSKRNL, irql=APC_LEVEL)
def MmProtectMdlSystemAddress(k: Kernel, MemoryDescriptorList: PVOID, NewProtect: ULONG) -> int:
    address = k.memory.u64(MemoryDescriptorList + _MAPPED) & ~0xFFF
    pages = _spanned(
        k.memory.u32(MemoryDescriptorList + _OFFSET), k.memory.u32(MemoryDescriptorList + _COUNT)
    )
    access = Access.READ if NewProtect & 2 else Access.READ_WRITE
    k.memory.protect(address, pages * PAGE_SIZE, int(access))
    return 0
