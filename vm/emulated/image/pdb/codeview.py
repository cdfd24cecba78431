"""Decoders of the CodeView records inside PDB streams: symbol records, C13 line tables, inline sites. Sources: the
headers cvinfo.h and cvexefmt.h that Microsoft published with microsoft-pdb, and LLVM's document "The PDB File Format"."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

S_END = 0x0006
S_LDATA32 = 0x110C
S_GDATA32 = 0x110D
S_PUB32 = 0x110E
S_LPROC32 = 0x110F
S_GPROC32 = 0x1110
S_LPROC32_ID = 0x1146
S_GPROC32_ID = 0x1147
S_INLINESITE = 0x114D
S_INLINESITE_END = 0x114E
PROCEDURES = (S_LPROC32, S_GPROC32, S_LPROC32_ID, S_GPROC32_ID)

_LF_FUNC_ID = 0x1601
_LF_MFUNC_ID = 0x1602

_LINES = 0xF2
_FILE_CHECKSUMS = 0xF4
_INLINEE_LINES = 0xF6
_LINES_HAVE_COLUMNS = 1
_INLINEE_HAS_EXTRA_FILES = 1
HIDDEN_LINES = (0xFEEFEE, 0xF00F00)  # "step over" and "step into": no line of the source


def records(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(kind, offset of the contents, offset behind them) of every symbol or type record in `data[begin:end]`."""
    position = begin
    while position + 4 <= end:
        length, kind = struct.unpack_from("<HH", data, position)
        stop = position + 2 + length
        if length < 2 or stop > end:
            raise ValueError("a record is longer than its stream")
        yield kind, position + 4, stop
        position = stop


def zero_terminated(data: bytes, begin: int, end: int) -> str:
    """The text that begins at `begin` and ends with a zero byte, or at `end`."""
    stop = data.find(b"\0", begin, end)
    return data[begin : stop if stop >= 0 else end].decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Lines of one file within one contribution; `lines` holds (offset from `offset`, line)."""

    segment: int
    offset: int
    size: int
    file: int
    lines: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ModuleLines:
    """The C13 subsections of a module.

    Attributes:
        files: file identifier (offset into the checksum table) to offset of its name in the string table.
        inlinees: identifier of an inlined function to (file identifier, line it begins at).
    """

    blocks: tuple[LineBlock, ...]
    files: dict[int, int]
    inlinees: dict[int, tuple[int, int]]


def read_lines(data: bytes) -> ModuleLines:
    """Decode the C13 part of a module stream."""
    blocks: list[LineBlock] = []
    files: dict[int, int] = {}
    inlinees: dict[int, tuple[int, int]] = {}
    position = 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<II", data, position)
        body = data[position + 8 : position + 8 + length]
        if len(body) != length:
            raise ValueError("a line table is cut off")
        if kind == _LINES:
            blocks += _line_blocks(body)
        elif kind == _FILE_CHECKSUMS:
            files |= _file_names(body)
        elif kind == _INLINEE_LINES:
            inlinees |= _inlinees(body)
        position += 8 + length + -length % 4
    return ModuleLines(tuple(blocks), files, inlinees)


def _line_blocks(body: bytes) -> Iterator[LineBlock]:
    offset, segment, _, size = struct.unpack_from("<IHHI", body)
    position = 12
    while position + 12 <= len(body):
        file, count, length = struct.unpack_from("<III", body, position)
        if length < 12 + 8 * count:
            raise ValueError("a block of lines is shorter than its lines")
        numbers = struct.unpack_from(f"<{2 * count}I", body, position + 12)
        lines = tuple(zip(numbers[::2], (flags & 0xFFFFFF for flags in numbers[1::2]), strict=True))
        yield LineBlock(segment, offset, size, file, lines)
        position += length


def _file_names(body: bytes) -> dict[int, int]:
    names: dict[int, int] = {}
    position = 0
    while position + 6 <= len(body):
        name, size = struct.unpack_from("<IB", body, position)
        names[position] = name
        position += (6 + size + 3) & ~3
    return names


def _inlinees(body: bytes) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    (signature,) = struct.unpack_from("<I", body)
    position = 4
    while position + 12 <= len(body):
        function, file, line = struct.unpack_from("<III", body, position)
        found[function] = (file, line)
        position += 12
        if signature & _INLINEE_HAS_EXTRA_FILES:
            (extra,) = struct.unpack_from("<I", body, position)
            position += 4 + 4 * extra
    return found


def read_function_ids(ipi: bytes) -> dict[int, str]:
    """Names of the functions in the IPI stream by their item identifiers; inline sites refer to those."""
    if len(ipi) < 16:
        return {}
    _, header_size, first, _ = struct.unpack_from("<4I", ipi)
    names: dict[int, str] = {}
    for index, (kind, begin, end) in enumerate(records(ipi, header_size, len(ipi))):
        if kind in (_LF_FUNC_ID, _LF_MFUNC_ID):
            names[first + index] = zero_terminated(ipi, begin + 8, end)
    return names


@dataclass(frozen=True, slots=True)
class InlineLine:
    """A piece of an inlined function: `size` bytes from `offset` (counted from the procedure's begin) on."""

    offset: int
    size: int
    file: int
    line: int


def read_annotations(data: bytes, file: int, line: int, procedure_size: int) -> list[InlineLine]:
    """Decode the binary annotations of an S_INLINESITE.

    They are a small program: some operations move the position in code, line and file, and each that moves the code
    begins a piece that lasts until the next one or as long as a length says.

    Args:
        file, line: where the inlined function begins (from the inlinee table).
        procedure_size: bytes of the procedure that holds the site; ends a piece that nothing else ends.
    """
    pieces: list[InlineLine] = []
    begun: tuple[int, int, int] | None = None
    offset = 0

    def end_at(stop: int) -> None:
        if begun is not None and stop > begun[0]:
            pieces.append(InlineLine(begun[0], stop - begun[0], begun[1], begun[2]))

    numbers = _compressed(data)
    for operation in numbers:
        if operation == 0:  # padding to the end of the record
            break
        operand = next(numbers)
        if operation in (1, 2, 3, 11):  # CodeOffset, ChangeCodeOffsetBase, ChangeCodeOffset, ...AndLineOffset
            if operation == 11:
                line += _signed(operand >> 4)
                operand &= 0xF
            offset += operand
            if operation in (3, 11):
                end_at(offset)
                begun = (offset, file, line)
        elif operation == 4:  # ChangeCodeLength
            offset += operand
            end_at(offset)
            begun = None
        elif operation == 5:  # ChangeFile
            file = operand
        elif operation == 6:  # ChangeLineOffset
            line += _signed(operand)
        elif operation == 12:  # ChangeCodeLengthAndCodeOffset
            offset += next(numbers)
            end_at(offset)
            begun = (offset, file, line)
            offset += operand
            end_at(offset)
            begun = None
        # 7 to 10 and 13 (end line, range kind, columns) do not change where code is
    end_at(procedure_size)
    return pieces


def _compressed(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        first = data[position]
        if not first & 0x80:
            size, value = 1, first
        elif not first & 0x40:
            size, value = 2, first & 0x3F
        else:
            size, value = 4, first & 0x1F
        if position + size > len(data):
            raise ValueError("an annotation is cut off")
        for byte in data[position + 1 : position + size]:
            value = value << 8 | byte
        yield value
        position += size


def _signed(value: int) -> int:
    return -(value >> 1) if value & 1 else value >> 1
