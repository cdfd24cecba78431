"""Memory: the C runtime's block routines, probes of user addresses, MDLs, and what is found by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import PAGE_SIZE, Access, MemoryFaultError
from vm.emulated.exports.declare import (
    LONG,
    NTOSKRNL,
    PVOID,
    SIZE_T,
    ULONG,
    alias,
    export,
)
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.stack import return_addresses
from vm.emulated.kernel.status import (
    STATUS_ACCESS_VIOLATION,
    STATUS_DATATYPE_MISALIGNMENT,
    STATUS_INVALID_PARAMETER,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, HIGH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

USER_PROBE_ADDRESS = 0x0000_7FFF_FFFF_0000


# Blocks of memory


@export(NTOSKRNL, irql=HIGH_LEVEL)
def memcpy(k: Kernel, dest: PVOID, src: PVOID, count: SIZE_T) -> int:
    """Overlapping buffers are Verifier's 0xF0 (docs of bugcheck 0xC4)."""
    if count:
        if dest < src + count and src < dest + count and dest != src:
            raise Bugcheck(
                bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
                0xF0,
                dest,
                src,
                count,
                rule=f"memcpy was called with overlapping buffers ({dest:#x} and {src:#x}, {count} bytes): use memmove",
            )
        k.memory.write(dest, k.memory.read(src, count))
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def memmove(k: Kernel, dest: PVOID, src: PVOID, count: SIZE_T) -> int:
    if count:
        k.memory.write(dest, k.memory.read(src, count))
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def memset(k: Kernel, dest: PVOID, c: LONG, count: SIZE_T) -> int:
    if count:
        k.memory.fill(dest, count, c & 0xFF)
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def memcmp(k: Kernel, buf1: PVOID, buf2: PVOID, count: SIZE_T) -> int:
    a, b = k.memory.read(buf1, count), k.memory.read(buf2, count)
    return (a > b) - (a < b) & 0xFFFF_FFFF


@export(NTOSKRNL, irql=HIGH_LEVEL)
def memchr(k: Kernel, buf: PVOID, c: LONG, count: SIZE_T) -> int:
    found = k.memory.read(buf, count).find(c & 0xFF)
    return buf + found if found >= 0 else 0


RtlCopyMemory = alias(memmove, "RtlCopyMemory")
RtlMoveMemory = alias(memmove, "RtlMoveMemory")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlZeroMemory(k: Kernel, Destination: PVOID, Length: SIZE_T) -> None:
    if Length:
        k.memory.fill(Destination, Length, 0)


RtlSecureZeroMemory = alias(RtlZeroMemory, "RtlSecureZeroMemory")


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFillMemory(k: Kernel, Destination: PVOID, Length: SIZE_T, Fill: LONG) -> None:
    if Length:
        k.memory.fill(Destination, Length, Fill & 0xFF)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlCompareMemory(k: Kernel, Source1: PVOID, Source2: PVOID, Length: SIZE_T) -> int:
    """Number of bytes that are equal up to the first difference."""
    a, b = k.memory.read(Source1, Length), k.memory.read(Source2, Length)
    return next((i for i in range(Length) if a[i] != b[i]), Length) if a != b else Length


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlCompareMemoryUlong(k: Kernel, Source: PVOID, Length: SIZE_T, Pattern: ULONG) -> int:
    data, word = k.memory.read(Source, Length & ~3), Pattern.to_bytes(4, "little")
    return next((i for i in range(0, len(data), 4) if data[i : i + 4] != word), len(data))


# Probes


def probe(k: Kernel, address: int, length: int, alignment: int, access: Access) -> None:
    """ProbeForRead and ProbeForWrite: zero length passes; raises into the caller what the documentation names."""
    if length == 0:
        return
    if alignment in (1, 2, 4, 8, 16) and address & (alignment - 1):
        raise GuestException(STATUS_DATATYPE_MISALIGNMENT)
    end = address + length
    if end > USER_PROBE_ADDRESS:
        raise GuestException(STATUS_ACCESS_VIOLATION, int(access is Access.WRITE), address)
    if access is not Access.WRITE:
        return
    page = address
    while page < end:
        if not k.memory.is_mapped(page, Access.WRITE):
            raise GuestException(STATUS_ACCESS_VIOLATION, 1, page)
        page = (page & ~(PAGE_SIZE - 1)) + PAGE_SIZE


@export(NTOSKRNL, irql=APC_LEVEL)
def ProbeForRead(k: Kernel, Address: PVOID, Length: SIZE_T, Alignment: ULONG) -> None:
    """Checks the range only: the memory itself may still be invalid (docs)."""
    probe(k, Address, Length, Alignment, Access.READ)


@export(NTOSKRNL, irql=APC_LEVEL)
def ProbeForWrite(k: Kernel, Address: PVOID, Length: SIZE_T, Alignment: ULONG) -> None:
    """Touches every page."""
    probe(k, Address, Length, Alignment, Access.WRITE)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmIsAddressValid(k: Kernel, VirtualAddress: PVOID) -> bool:
    return k.memory.is_mapped(VirtualAddress, Access.NONE)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def MmIsNonPagedSystemAddressValid(k: Kernel, VirtualAddress: PVOID) -> bool:
    return k.memory.is_mapped(VirtualAddress, Access.NONE)


@export(NTOSKRNL, irql=APC_LEVEL)
def MmCopyMemory(
    k: Kernel,
    TargetAddress: PVOID,
    SourceAddress: PVOID,
    NumberOfBytes: SIZE_T,
    Flags: ULONG,
    NumberOfBytesTransferred: PVOID,
) -> int:
    """MM_COPY_MEMORY_VIRTUAL (2) only; stops at the first byte that cannot be read."""
    if Flags != 2:
        return STATUS_INVALID_PARAMETER
    done = 0
    try:
        while done < NumberOfBytes:
            count = min(NumberOfBytes - done, PAGE_SIZE - (SourceAddress + done & 0xFFF))
            data = k.memory.read(SourceAddress + done, count)
            k.memory.write(TargetAddress + done, data)
            done += count
    except MemoryFaultError as fault:
        if not SourceAddress <= fault.address < SourceAddress + NumberOfBytes:
            raise
        k.memory.put64(NumberOfBytesTransferred, done)
        return STATUS_ACCESS_VIOLATION
    k.memory.put64(NumberOfBytesTransferred, done)
    return STATUS_SUCCESS


# By name


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def MmGetSystemRoutineAddress(k: Kernel, SystemRoutineName: PVOID) -> int:
    """NULL for what the machine does not model, so that a driver takes its other path."""
    name = k.memory.unicode_string(SystemRoutineName)
    for dll in (NTOSKRNL, "hal.dll"):
        address = k.routine(dll, name)
        if address is not None:
            return address
    return 0


# Odds and ends of the run-time library


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlCaptureStackBackTrace(
    k: Kernel, FramesToSkip: ULONG, FramesToCapture: ULONG, BackTrace: PVOID, BackTraceHash: PVOID
) -> int:
    """The return addresses of the calling driver's code, innermost first."""
    frame = k.current.guest_frame()
    assert frame is not None
    found = [k.memory.u64(frame.rsp), *return_addresses(k, frame)][
        FramesToSkip : FramesToSkip + FramesToCapture
    ]
    for index, address in enumerate(found):
        k.memory.put64(BackTrace + 8 * index, address)
    if BackTraceHash:
        k.memory.put32(BackTraceHash, sum(found))
    return len(found)


class RandomNumbers:
    """How often random numbers were drawn: nothing of the host's randomness enters a run."""

    def __init__(self, k: Kernel) -> None:
        self.state = k.scheduler.seed & 0x7FFF_FFFF or 1


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlRandomEx(k: Kernel, Seed: PVOID) -> int:
    """0 to MAXLONG-1; a Lehmer generator over the caller's seed, so the same seed gives the same numbers."""
    value = (k.memory.u32(Seed) * 0x7FFF_FFED + 0x7FFF_FFC3) % 0x7FFF_FFFF
    k.memory.put32(Seed, value)
    return value


RtlRandom = alias(RtlRandomEx, "RtlRandom")


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ExUuidCreate(k: Kernel, Uuid: PVOID) -> int:
    """A version 4 UUID from the run's seed."""
    numbers = state_of(k, RandomNumbers)
    raw = bytearray()
    for _ in range(4):
        numbers.state = numbers.state * 48_271 % 0x7FFF_FFFF
        raw += (numbers.state * 2 ^ numbers.state >> 7).to_bytes(5, "little")[:4]
    raw[7] = raw[7] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    k.memory.write(Uuid, bytes(raw))
    return STATUS_SUCCESS
