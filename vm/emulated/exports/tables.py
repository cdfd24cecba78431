"""Generic tables (AVL and splay forms), which call back into the driver, and bitmaps.

The order of a table's elements is kept here, not in the links inside them: drivers never follow those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

from vm.emulated.exports.declare import BOOLEAN, NTOSKRNL, PVOID, ULONG, Export, export
from vm.emulated.exports.state import state_of
from vm.emulated.kernel.threads import DISPATCH_LEVEL, HIGH_LEVEL, Call, Model

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_LESS, _GREATER, _EQUAL = 0, 1, 2
_NOT_FOUND = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class _Layout:
    """Offsets in a table structure, and the size of the links in front of each element (x64)."""

    suffix: str
    count: int
    compare: int
    allocate: int
    free: int
    context: int
    size: int
    links: int


_AVL = _Layout("Avl", count=0x2C, compare=0x48, allocate=0x50, free=0x58, context=0x60, size=0x68, links=0x20)
_SPLAY = _Layout("", count=0x24, compare=0x28, allocate=0x30, free=0x38, context=0x40, size=0x48, links=0x28)


@dataclass(slots=True)
class _Table:
    """Elements of one table in order (addresses of their links), and where an enumeration stands."""

    nodes: list[int] = field(default_factory=list)
    position: int = 0


class Tables:
    """The generic tables of one kernel by address."""

    def __init__(self, k: Kernel) -> None:
        self.known: dict[int, _Table] = {}

    def get(self, address: int) -> _Table:
        """The table at an address; a zeroed one counts as empty."""
        return self.known.setdefault(address, _Table())


def _find(k: Kernel, layout: _Layout, table: int, key: int) -> Model:
    """Binary search by the driver's comparison: (position, True if it is there)."""
    nodes = state_of(k, Tables).get(table).nodes
    compare = k.memory.u64(table + layout.compare)
    low, high = 0, len(nodes)
    while low < high:
        middle = (low + high) // 2
        order = yield Call(compare, (table, key, nodes[middle] + layout.links), "table comparison routine")
        if order & 0xFFFF_FFFF == _EQUAL:
            return middle, True
        if order & 0xFFFF_FFFF == _LESS:
            high = middle
        else:
            low = middle + 1
    return low, False


def _declare(layout: _Layout) -> dict[str, Export]:
    def initialize(
        k: Kernel, Table: PVOID, Compare: PVOID, Allocate: PVOID, Free: PVOID, TableContext: PVOID
    ) -> None:
        k.memory.write(Table, bytes(layout.size))
        for offset, value in (
            (layout.compare, Compare),
            (layout.allocate, Allocate),
            (layout.free, Free),
            (layout.context, TableContext),
        ):
            k.memory.put64(Table + offset, value)
        state_of(k, Tables).known[Table] = _Table()

    def insert(k: Kernel, Table: PVOID, Buffer: PVOID, BufferSize: ULONG, NewElement: PVOID) -> Model:
        """The element that is there, or the new one; NULL without memory."""
        position, found = yield from _find(k, layout, Table, Buffer)
        nodes = state_of(k, Tables).get(Table).nodes
        if NewElement:
            k.memory.put8(NewElement, int(not found))
        if found:
            return nodes[position] + layout.links
        allocate = k.memory.u64(Table + layout.allocate)
        node = yield Call(allocate, (Table, layout.links + BufferSize), "table allocation routine")
        if not node:
            if NewElement:
                k.memory.put8(NewElement, 0)
            return 0
        k.memory.write(node, bytes(layout.links))
        k.memory.write(node + layout.links, k.memory.read(Buffer, BufferSize))
        nodes.insert(position, node)
        k.memory.put32(Table + layout.count, len(nodes))
        return node + layout.links

    def delete(k: Kernel, Table: PVOID, Buffer: PVOID) -> Model:
        position, found = yield from _find(k, layout, Table, Buffer)
        if not found:
            return False
        nodes = state_of(k, Tables).get(Table).nodes
        node = nodes.pop(position)
        k.memory.put32(Table + layout.count, len(nodes))
        yield Call(k.memory.u64(Table + layout.free), (Table, node), "table free routine")
        return True

    def lookup(k: Kernel, Table: PVOID, Buffer: PVOID) -> Model:
        position, found = yield from _find(k, layout, Table, Buffer)
        return state_of(k, Tables).get(Table).nodes[position] + layout.links if found else 0

    def enumerate_(k: Kernel, Table: PVOID, Restart: BOOLEAN) -> int:
        table = state_of(k, Tables).get(Table)
        if Restart:
            table.position = 0
        if table.position >= len(table.nodes):
            return 0
        table.position += 1
        return table.nodes[table.position - 1] + layout.links

    def enumerate_without(k: Kernel, Table: PVOID, RestartKey: PVOID) -> int:
        """RestartKey points to NULL at first, then to the element returned last."""
        nodes = state_of(k, Tables).get(Table).nodes
        last = k.memory.u64(RestartKey)
        position = nodes.index(last) + 1 if last in nodes else 0
        if position >= len(nodes):
            return 0
        k.memory.put64(RestartKey, nodes[position])
        return nodes[position] + layout.links

    def get_element(k: Kernel, Table: PVOID, I: ULONG) -> int:  # noqa: E741  # the documented name
        nodes = state_of(k, Tables).get(Table).nodes
        return nodes[I] + layout.links if len(nodes) > I else 0

    def number(k: Kernel, Table: PVOID) -> int:
        return len(state_of(k, Tables).get(Table).nodes)

    def is_empty(k: Kernel, Table: PVOID) -> bool:
        return not state_of(k, Tables).get(Table).nodes

    functions: dict[str, Any] = {
        "RtlInitializeGenericTable": initialize,
        "RtlInsertElementGenericTable": insert,
        "RtlDeleteElementGenericTable": delete,
        "RtlLookupElementGenericTable": lookup,
        "RtlEnumerateGenericTable": enumerate_,
        "RtlEnumerateGenericTableWithoutSplaying": enumerate_without,
        "RtlGetElementGenericTable": get_element,
        "RtlNumberGenericTableElements": number,
        "RtlIsGenericTableEmpty": is_empty,
    }
    return {
        name + layout.suffix: export(NTOSKRNL, irql=DISPATCH_LEVEL, name=name + layout.suffix)(function)
        for name, function in functions.items()
    }


globals().update(_declare(_AVL))
globals().update(_declare(_SPLAY))


# Bitmaps. RTL_BITMAP: SizeOfBitMap (bits) 0x00, Buffer 0x08


def _bits(k: Kernel, header: int) -> tuple[int, int]:
    """(size in bits, the bits as one number)."""
    size = k.memory.u32(header)
    raw = k.memory.read(k.memory.u64(header + 8), (size + 31) // 32 * 4)
    return size, int.from_bytes(raw, "little") & ((1 << size) - 1)


def _put(k: Kernel, header: int, size: int, value: int) -> None:
    k.memory.write(k.memory.u64(header + 8), value.to_bytes((size + 31) // 32 * 4, "little"))


def _mask(start: int, count: int) -> int:
    return ((1 << count) - 1) << start


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlInitializeBitMap(k: Kernel, BitMapHeader: PVOID, BitMapBuffer: PVOID, SizeOfBitMap: ULONG) -> None:
    k.memory.put32(BitMapHeader, SizeOfBitMap)
    k.memory.put64(BitMapHeader + 8, BitMapBuffer)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlSetBits(k: Kernel, BitMapHeader: PVOID, StartingIndex: ULONG, NumberToSet: ULONG) -> None:
    size, value = _bits(k, BitMapHeader)
    _put(k, BitMapHeader, size, value | _mask(StartingIndex, NumberToSet))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlClearBits(k: Kernel, BitMapHeader: PVOID, StartingIndex: ULONG, NumberToClear: ULONG) -> None:
    size, value = _bits(k, BitMapHeader)
    _put(k, BitMapHeader, size, value & ~_mask(StartingIndex, NumberToClear))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlSetBit(k: Kernel, BitMapHeader: PVOID, BitNumber: ULONG) -> None:
    RtlSetBits(k, BitMapHeader, BitNumber, 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlClearBit(k: Kernel, BitMapHeader: PVOID, BitNumber: ULONG) -> None:
    RtlClearBits(k, BitMapHeader, BitNumber, 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlTestBit(k: Kernel, BitMapHeader: PVOID, BitNumber: ULONG) -> bool:
    return bool(_bits(k, BitMapHeader)[1] >> BitNumber & 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlSetAllBits(k: Kernel, BitMapHeader: PVOID) -> None:
    size, _ = _bits(k, BitMapHeader)
    _put(k, BitMapHeader, size, (1 << (size + 31) // 32 * 32) - 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlClearAllBits(k: Kernel, BitMapHeader: PVOID) -> None:
    _put(k, BitMapHeader, k.memory.u32(BitMapHeader), 0)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlAreBitsSet(k: Kernel, BitMapHeader: PVOID, StartingIndex: ULONG, Length: ULONG) -> bool:
    size, value = _bits(k, BitMapHeader)
    return 0 < Length <= size - StartingIndex and value >> StartingIndex & _mask(0, Length) == _mask(
        0, Length
    )


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlAreBitsClear(k: Kernel, BitMapHeader: PVOID, StartingIndex: ULONG, Length: ULONG) -> bool:
    size, value = _bits(k, BitMapHeader)
    return 0 < Length <= size - StartingIndex and not value >> StartingIndex & _mask(0, Length)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlNumberOfSetBits(k: Kernel, BitMapHeader: PVOID) -> int:
    _, value = _bits(k, BitMapHeader)
    return value.bit_count()


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlNumberOfClearBits(k: Kernel, BitMapHeader: PVOID) -> int:
    size, value = _bits(k, BitMapHeader)
    return size - value.bit_count()


def _search(size: int, value: int, count: int, hint: int) -> int:
    """First run of `count` set bits from the hint on, then from the start; _NOT_FOUND if there is none."""
    if count == 0:
        return hint & ~7 if hint < size else 0
    wanted = _mask(0, count)
    begin = hint if hint < size else 0
    for index in chain(range(begin, size - count + 1), range(min(begin, size - count + 1))):
        if value >> index & wanted == wanted:
            return index
    return _NOT_FOUND


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFindSetBits(k: Kernel, BitMapHeader: PVOID, NumberToFind: ULONG, HintIndex: ULONG) -> int:
    size, value = _bits(k, BitMapHeader)
    return _search(size, value, NumberToFind, HintIndex)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFindClearBits(k: Kernel, BitMapHeader: PVOID, NumberToFind: ULONG, HintIndex: ULONG) -> int:
    size, value = _bits(k, BitMapHeader)
    return _search(size, ~value & _mask(0, size), NumberToFind, HintIndex)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFindClearBitsAndSet(k: Kernel, BitMapHeader: PVOID, NumberToFind: ULONG, HintIndex: ULONG) -> int:
    found: int = RtlFindClearBits(k, BitMapHeader, NumberToFind, HintIndex)
    if found != _NOT_FOUND:
        RtlSetBits(k, BitMapHeader, found, NumberToFind)
    return found


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlFindSetBitsAndClear(k: Kernel, BitMapHeader: PVOID, NumberToFind: ULONG, HintIndex: ULONG) -> int:
    found: int = RtlFindSetBits(k, BitMapHeader, NumberToFind, HintIndex)
    if found != _NOT_FOUND:
        RtlClearBits(k, BitMapHeader, found, NumberToFind)
    return found
