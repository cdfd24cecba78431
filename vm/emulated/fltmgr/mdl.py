"""MDLs that the I/O system itself makes: of kernel buffers, and of user buffers mapped into the system half."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import PAGE_SHIFT, PAGE_SIZE, Access, MemoryFaultError, pages
from vm.emulated.kernel.objects import StatusError

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel
    from vm.emulated.kernel.processes import KProcess

STATUS_INVALID_USER_BUFFER = 0xC000_00E8
MDL_MAPPED_TO_SYSTEM_VA = 0x0001
MDL_PAGES_LOCKED = 0x0002
MDL_SOURCE_IS_NONPAGED_POOL = 0x0004
SYSTEM_VIEWS = 0xFFFF_9100_0000_0000
"""Where user buffers are mapped for FltLockUserBuffer; never reused, so that a stale pointer faults."""
_HEADER = struct.Struct("<QHHHHQQQII")


@contextmanager
def address_space(k: Kernel, process: KProcess) -> Iterator[None]:
    """The user half of `process` is current inside the block."""
    before = k.memory.user_pages
    k.memory.switch_user(process.user_pages)
    try:
        yield
    finally:
        k.memory.switch_user(before)


def mdl_of_kernel_buffer(k: Kernel, address: int, length: int) -> int:
    """An MDL of nonpaged kernel memory."""
    return _write(k, address, length, address, MDL_SOURCE_IS_NONPAGED_POOL | MDL_PAGES_LOCKED, process=0)


def lock_user_buffer(k: Kernel, process: KProcess, address: int, length: int, *, write: bool) -> int:
    """An MDL of a user buffer, locked and mapped into the system half.

    Raises:
        StatusError: STATUS_INVALID_USER_BUFFER, a page is not there or does not allow the access.
    """
    base = address & ~(PAGE_SIZE - 1)
    size = pages(address - base + length) * PAGE_SIZE
    needed = Access.READ_WRITE if write else Access.READ
    with address_space(k, process):
        try:
            for page in range(base, base + size, PAGE_SIZE):
                k.memory.physical(page, needed)
        except MemoryFaultError as fault:
            raise StatusError(STATUS_INVALID_USER_BUFFER) from fault
        view = k.services.get("mdl_views", SYSTEM_VIEWS)
        k.services["mdl_views"] = view + size + PAGE_SIZE
        k.memory.alias(view, base, size, int(needed))
    flags = MDL_PAGES_LOCKED | MDL_MAPPED_TO_SYSTEM_VA
    return _write(k, address, length, view + (address - base), flags, process=process.address)


def free_mdl(k: Kernel, mdl: int) -> None:
    """Unmap and free an MDL of this module."""
    memory = k.memory
    if memory.u16(mdl + 0x0A) & MDL_MAPPED_TO_SYSTEM_VA:
        mapped, count, offset = memory.u64(mdl + 0x18), memory.u32(mdl + 0x28), memory.u32(mdl + 0x2C)
        memory.unmap(mapped - offset, pages(offset + count) * PAGE_SIZE, release=False)
    k.pool.free(mdl, "Mdl")


def _write(k: Kernel, address: int, length: int, mapped: int, flags: int, *, process: int) -> int:
    base, offset = address & ~(PAGE_SIZE - 1), address & (PAGE_SIZE - 1)
    count = pages(offset + length)
    size = _HEADER.size + 8 * count
    mdl = k.pool.allocate(size, "Mdl", owner="nt")
    frames = [k.memory.physical(mapped - offset + i * PAGE_SIZE) >> PAGE_SHIFT for i in range(count)]
    head = _HEADER.pack(0, size & 0xFFFF, flags, 0, 0, process, mapped, base, length, offset)
    k.memory.write(mdl, head + struct.pack(f"<{count}Q", *frames))
    return mdl
