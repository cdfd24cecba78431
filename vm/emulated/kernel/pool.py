"""The pool, every allocation as special pool: pages of its own, ending at an unmapped guard page, never reused.

A use after free, an overrun or a double free is therefore seen at the very instruction. What is left when a driver
is unloaded is a leak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vm.emulated.cpu.colours import COLOURS, POOL_COLOUR
from vm.emulated.cpu.memory import PAGE_SHIFT, PAGE_SIZE, Access, Memory, pages
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

POOL_BASE = 0xFFFF_B000_0003_0000
ALIGNMENT = 16
"""MEMORY_ALLOCATION_ALIGNMENT on x64."""
SLACK = 0xA7
"""Byte behind an allocation up to the guard page; a change of it is found when the block is freed."""
GARBAGE = 0xBD
"""Byte of fresh memory that the caller did not ask to be zeroed."""


@dataclass(slots=True)
class Allocation:
    """One block of pool."""

    address: int
    size: int
    tag: str
    paged: bool
    owner: str
    """Name of the driver that allocated it, or of the part of the model that did ("fltmgr")."""
    site: int
    """Return address of the allocating call."""
    base: int
    pages: int
    freed_at: int | None = None


class Pool:
    """Pool memory of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.memory: Memory = kernel.memory
        self.live: dict[int, Allocation] = {}
        self._by_page: dict[int, Allocation] = {}
        self._next = POOL_BASE
        self.refuse: Callable[[int, str, str], bool] | None = None
        """Fault injection: asked with (size, tag, driver) before a driver's allocation; True makes it fail."""
        self.peak_bytes = 0
        self.bytes = 0
        self.allocations = 0

    def allocate(
        self,
        size: int,
        tag: str,
        *,
        owner: str,
        site: int = 0,
        paged: bool = False,
        zero: bool = True,
        aligned: bool = False,
    ) -> int:
        """Address of a new block.

        Args:
            size: in bytes; zero gives a block of one byte that must not be touched beyond it.
            tag: four characters.
            aligned: start the block at a page boundary, as the kernel does for a page and more.
        """
        size = max(size, 1)
        count = pages(size)
        base = self._place(count)
        self.memory.map(base, count * PAGE_SIZE, Access.READ_WRITE)
        room = count * PAGE_SIZE
        offset = (
            0
            if aligned or (size >= PAGE_SIZE and size % PAGE_SIZE == 0)
            else (room - size) & ~(ALIGNMENT - 1)
        )
        address = base + offset
        if not zero:
            self.memory.fill(address, size, GARBAGE)
        slack = room - offset - size
        if slack:
            self.memory.fill(address + size, slack, SLACK)
        block = Allocation(address, size, tag, paged, owner, site, base, count)
        self.live[address] = block
        for page in range(base >> PAGE_SHIFT, (base >> PAGE_SHIFT) + count):
            self._by_page[page] = block
        self.bytes += size
        self.allocations += 1
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        return address

    def _place(self, count: int) -> int:
        """Address of `count` pages and a guard page, in the pool's colours (vm.emulated.cpu.colours) if they fit."""
        base = self._next
        if (base >> PAGE_SHIFT) % COLOURS + count + 1 > COLOURS or (
            base >> PAGE_SHIFT
        ) % COLOURS < POOL_COLOUR:
            base = ((base >> PAGE_SHIFT) // COLOURS * COLOURS + COLOURS + POOL_COLOUR) << PAGE_SHIFT
        self._next = base + (count + 1) * PAGE_SIZE
        return base

    def free(self, address: int, tag: str | None = None, *, site: int = 0) -> None:
        """Release a block; bugchecks for a double free, a foreign address, a wrong tag or a damaged end."""
        block = self.live.get(address)
        if block is None:
            self._bad_free(address)
        assert block is not None
        if tag is not None and tag.rstrip("\0 ") and tag != block.tag:
            raise Bugcheck(
                bc.BAD_POOL_CALLER,
                0x0A,
                address,
                rule=f"a block with the tag '{block.tag}' was freed with the tag '{tag}'",
            )
        slack = block.base + block.pages * PAGE_SIZE - address - block.size
        if slack and self.memory.read(address + block.size, slack) != bytes((SLACK,)) * slack:
            raise Bugcheck(
                bc.SPECIAL_POOL_DETECTED_MEMORY_CORRUPTION,
                address,
                block.size,
                0,
                0x24,
                rule=f"memory behind the {block.size}-byte block '{block.tag}' at {address:#x} was overwritten",
            )
        self.kernel.check_free(
            block.base, block.base + block.pages * PAGE_SIZE, f"the pool block '{block.tag}'"
        )
        del self.live[address]
        block.freed_at = site
        self.bytes -= block.size
        self.memory.unmap(block.base, block.pages * PAGE_SIZE)

    def block_of(self, address: int) -> Allocation | None:
        """The block whose pages, or whose guard page, contain `address`, freed or not."""
        page = address >> PAGE_SHIFT
        return self._by_page.get(page) or self._by_page.get(page - 1)

    def owned_by(self, owner: str) -> list[Allocation]:
        """Blocks that a driver has not freed."""
        return [block for block in self.live.values() if block.owner == owner]

    def _bad_free(self, address: int) -> None:
        block = self._by_page.get(address >> PAGE_SHIFT)
        if block is not None and block.address == address:
            raise Bugcheck(
                bc.BAD_POOL_CALLER,
                0x07,
                0,
                0,
                address,
                rule=f"the block '{block.tag}' at {address:#x} was freed twice",
            )
        raise Bugcheck(
            bc.BAD_POOL_CALLER,
            0x46,
            address,
            rule=f"{address:#x} was freed, which is not the start of a pool block",
        )


def tag_text(tag: int) -> str:
    """A pool tag as it reads in the debugger."""
    return "".join(chr(b) if 32 <= b < 127 else "." for b in tag.to_bytes(4, "little"))
