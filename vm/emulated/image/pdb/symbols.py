"""What a PDB tells about an image, ready to be asked: address to function and line, name to address, line rows."""

from __future__ import annotations

import uuid
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Function:
    """A procedure; `size` is in bytes, 0 when only a public symbol is known of it."""

    name: str
    rva: int
    size: int


@dataclass(frozen=True, slots=True)
class LineRow:
    """`size` bytes of code from `rva` on come from `file`:`line`.

    Code of inlined functions has several rows: one in the function it was inlined into (the line of the call) and
    one per inlined function, `depth` 1 being the outermost of those.
    """

    rva: int
    size: int
    file: str
    line: int
    function: str
    depth: int = 0


@dataclass(frozen=True, slots=True)
class InlineFrame:
    """A function that the compiler inlined at the address, and the line in it."""

    function: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Location:
    """Where an address is in the sources.

    Attributes:
        function: the procedure that holds it, not what was inlined there.
        offset: bytes from the begin of that procedure.
        file: path as the compiler wrote it, None without line information.
        line: 1-based, None without line information; of the call when the code there was inlined.
        inlined: functions inlined at this place, outermost first.
    """

    function: str
    offset: int
    file: str | None
    line: int | None
    inlined: tuple[InlineFrame, ...] = ()

    def __str__(self) -> str:
        text = f"{self.function}+{self.offset:#x}" if self.offset else self.function
        if self.file is not None:
            text += f" ({_base_name(self.file)}:{self.line})"
        for frame in self.inlined:
            text += f" > {frame.function} ({_base_name(frame.file)}:{frame.line})"
        return text


@dataclass(frozen=True, slots=True, eq=False)
class Symbols:
    """The symbols of one image.

    Attributes:
        guid, age: what the RSDS record of the image must say.
        functions: in the order of their RVAs, none twice at the same RVA.
        rows: in the order of (rva, depth).
    """

    guid: uuid.UUID
    age: int
    functions: tuple[Function, ...]
    rows: tuple[LineRow, ...]
    _addresses: Mapping[str, int] = field(repr=False)
    _function_starts: tuple[int, ...] = field(repr=False)
    _outer_rows: tuple[LineRow, ...] = field(repr=False)
    _outer_starts: tuple[int, ...] = field(repr=False)
    _inline_rows: tuple[LineRow, ...] = field(repr=False)

    def lookup(self, rva: int) -> Location | None:
        """The function and line at `rva`; None outside of every known function.

        For a return address ask for the byte before it: the address itself may belong to the next line.
        """
        index = bisect_right(self._function_starts, rva) - 1
        if index < 0:
            return None
        function = self.functions[index]
        if function.size and rva >= function.rva + function.size:
            return None
        row_index = bisect_right(self._outer_starts, rva) - 1
        row = self._outer_rows[row_index] if row_index >= 0 else None
        if row is not None and not (function.rva <= row.rva and rva < row.rva + row.size):
            row = None
        return Location(
            function=function.name,
            offset=rva - function.rva,
            file=row.file if row else None,
            line=row.line if row else None,
            inlined=tuple(
                InlineFrame(inline.function, inline.file, inline.line)
                for inline in self._inline_rows
                if inline.rva <= rva < inline.rva + inline.size
            ),
        )

    def address(self, name: str) -> int | None:
        """RVA of the function or global variable `name`, None when there is none of that name."""
        return self._addresses.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that `address` knows."""
        return tuple(self._addresses)


def make_symbols(
    guid: uuid.UUID, age: int, functions: list[Function], rows: list[LineRow], addresses: dict[str, int]
) -> Symbols:
    """Sort what a reader found and build the indexes. Of two functions at one RVA the one with a size wins."""
    by_rva: dict[int, Function] = {}
    for function in functions:
        known = by_rva.get(function.rva)
        if known is None or (not known.size and function.size):
            by_rva[function.rva] = function
    ordered = tuple(by_rva[rva] for rva in sorted(by_rva))
    sorted_rows = tuple(sorted(rows, key=lambda row: (row.rva, row.depth)))
    outer = tuple(row for row in sorted_rows if row.depth == 0)
    return Symbols(
        guid=guid,
        age=age,
        functions=ordered,
        rows=sorted_rows,
        _addresses=addresses,
        _function_starts=tuple(function.rva for function in ordered),
        _outer_rows=outer,
        _outer_starts=tuple(row.rva for row in outer),
        _inline_rows=tuple(sorted((row for row in rows if row.depth), key=lambda row: (row.depth, row.rva))),
    )


def _base_name(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]
