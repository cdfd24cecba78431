"""Counted strings of the run-time library (UNICODE_STRING, ANSI_STRING), conversions between them, GUIDs."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

from vm.emulated.cpu.memory import Memory
from vm.emulated.exports.declare import BOOLEAN, NTOSKRNL, PVOID, ULONG, USHORT, WCHAR, alias, export
from vm.emulated.exports.pool import allocate, release
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_INVALID_PARAMETER,
    STATUS_NAME_TOO_LONG,
    STATUS_NO_MEMORY,
    STATUS_SOME_NOT_MAPPED,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, HIGH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_MOST = 0xFFFE
"""Most bytes in a UNICODE_STRING."""
_TAG = int.from_bytes(b"Strg", "little")


def upcase(text: str) -> str:
    """Upper case character by character, as the kernel's table does it: lengths never change."""
    if text.isascii():
        return text.upper()
    return "".join(u if len(u := c.upper()) == 1 else c for c in text)


def downcase(text: str) -> str:
    """Lower case character by character."""
    if text.isascii():
        return text.lower()
    return "".join(u if len(u := c.lower()) == 1 else c for c in text)


def units(text: str) -> bytes:
    """UTF-16 of a text, lone surrogates included."""
    return text.encode("utf-16-le", "surrogatepass")


def text_of(raw: bytes) -> str:
    """Text of UTF-16 bytes, lone surrogates included."""
    return raw.decode("utf-16-le", "surrogatepass")


def ansi_string(memory: Memory, address: int) -> bytes:
    """The bytes of an ANSI_STRING."""
    length = memory.u16(address)
    return memory.read(memory.u64(address + 8), length) if length else b""


def put_counted(memory: Memory, address: int, length: int, maximum: int, buffer: int) -> None:
    """Fill in a UNICODE_STRING or ANSI_STRING."""
    memory.put16(address, length)
    memory.put16(address + 2, maximum)
    memory.put64(address + 8, buffer)


# Initialisation


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlInitUnicodeString(k: Kernel, DestinationString: PVOID, SourceString: PVOID) -> None:
    """Longer sources are cut to 0xFFFC bytes (docs)."""
    if not SourceString:
        put_counted(k.memory, DestinationString, 0, 0, 0)
        return
    length = min(len(units(k.memory.wide_string(SourceString))), _MOST - 2)
    put_counted(k.memory, DestinationString, length, length + 2, SourceString)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlInitUnicodeStringEx(k: Kernel, DestinationString: PVOID, SourceString: PVOID) -> int:
    """STATUS_NAME_TOO_LONG instead of a cut (docs)."""
    if SourceString and len(units(k.memory.wide_string(SourceString, 40_000))) > _MOST - 2:
        return STATUS_NAME_TOO_LONG
    RtlInitUnicodeString(k, DestinationString, SourceString)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlInitAnsiString(k: Kernel, DestinationString: PVOID, SourceString: PVOID) -> None:
    if not SourceString:
        put_counted(k.memory, DestinationString, 0, 0, 0)
        return
    length = min(len(k.memory.c_string(SourceString, 0x1_0000)), 0xFFFE)
    put_counted(k.memory, DestinationString, length, length + 1, SourceString)


RtlInitString = alias(RtlInitAnsiString, "RtlInitString")
RtlInitUTF8String = alias(RtlInitAnsiString, "RtlInitUTF8String")


# Copying and appending


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlCopyUnicodeString(k: Kernel, DestinationString: PVOID, SourceString: PVOID) -> None:
    """Cuts what does not fit; adds a terminator if there is room for it (docs)."""
    memory = k.memory
    if not SourceString:
        memory.put16(DestinationString, 0)
        return
    maximum = memory.u16(DestinationString + 2)
    length = min(memory.u16(SourceString), maximum)
    buffer = memory.u64(DestinationString + 8)
    if length:
        memory.write(buffer, memory.read(memory.u64(SourceString + 8), length))
    memory.put16(DestinationString, length)
    if length + 2 <= maximum:
        memory.put16(buffer + length, 0)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlCopyString(k: Kernel, DestinationString: PVOID, SourceString: PVOID) -> None:
    memory = k.memory
    if not SourceString:
        memory.put16(DestinationString, 0)
        return
    data = ansi_string(memory, SourceString)[: memory.u16(DestinationString + 2)]
    memory.write(memory.u64(DestinationString + 8), data)
    memory.put16(DestinationString, len(data))


def _append(k: Kernel, destination: int, data: bytes) -> int:
    memory = k.memory
    length, maximum = memory.u16(destination), memory.u16(destination + 2)
    if length + len(data) > maximum:
        return STATUS_BUFFER_TOO_SMALL
    buffer = memory.u64(destination + 8)
    memory.write(buffer + length, data)
    memory.put16(destination, length + len(data))
    if length + len(data) + 2 <= maximum:
        memory.put16(buffer + length + len(data), 0)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlAppendUnicodeStringToString(k: Kernel, Destination: PVOID, Source: PVOID) -> int:
    return _append(k, Destination, units(k.memory.unicode_string(Source)))


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlAppendUnicodeToString(k: Kernel, Destination: PVOID, Source: PVOID) -> int:
    return _append(k, Destination, units(k.memory.wide_string(Source))) if Source else STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlDuplicateUnicodeString(k: Kernel, Flags: ULONG, StringIn: PVOID, StringOut: PVOID) -> int:
    """Flags: 1 adds a terminator, 2 allocates a buffer for an empty string too (with 1 only, docs)."""
    memory = k.memory
    if Flags & ~3 or Flags == 2:
        return STATUS_INVALID_PARAMETER
    data = units(memory.unicode_string(StringIn))
    terminated = bool(Flags & 1)
    if not data and not (terminated and Flags & 2):
        put_counted(memory, StringOut, 0, 0, 0)
        return STATUS_SUCCESS
    size = len(data) + (2 if terminated else 0)
    if size > 0xFFFF:
        return STATUS_NAME_TOO_LONG
    buffer = allocate(k, size, _TAG, paged=True, zero=True)
    if not buffer:
        return STATUS_NO_MEMORY
    memory.write(buffer, data)
    put_counted(memory, StringOut, len(data), size, buffer)
    return STATUS_SUCCESS


def _free(k: Kernel, address: int) -> None:
    buffer = k.memory.u64(address + 8)
    if buffer:
        release(k, buffer)
        put_counted(k.memory, address, 0, 0, 0)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlFreeUnicodeString(k: Kernel, UnicodeString: PVOID) -> None:
    _free(k, UnicodeString)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlFreeAnsiString(k: Kernel, AnsiString: PVOID) -> None:
    _free(k, AnsiString)


RtlFreeOemString = alias(RtlFreeAnsiString, "RtlFreeOemString")
RtlFreeUTF8String = alias(RtlFreeAnsiString, "RtlFreeUTF8String")


# Comparison. The tables are paged: callers with CaseInSensitive must be at PASSIVE_LEVEL (docs); APC_LEVEL works.


def _pair(k: Kernel, first: int, second: int, ignore_case: int) -> tuple[str, str]:
    a, b = k.memory.unicode_string(first), k.memory.unicode_string(second)
    return (upcase(a), upcase(b)) if ignore_case else (a, b)


def compare_units(a: str, b: str) -> int:
    """Difference of the first units that differ, else of the lengths; negative, zero, positive."""
    if a == b:
        return 0
    raw_a, raw_b = units(a), units(b)
    for i in range(0, min(len(raw_a), len(raw_b)), 2):
        x, y = raw_a[i] | raw_a[i + 1] << 8, raw_b[i] | raw_b[i + 1] << 8
        if x != y:
            return x - y
    return len(raw_a) - len(raw_b)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCompareUnicodeString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> int:
    return compare_units(*_pair(k, String1, String2, CaseInSensitive)) & 0xFFFF_FFFF


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCompareUnicodeStrings(
    k: Kernel,
    String1: PVOID,
    String1Length: PVOID,
    String2: PVOID,
    String2Length: PVOID,
    CaseInSensitive: BOOLEAN,
) -> int:
    """Lengths in characters."""
    a = text_of(k.memory.read(String1, 2 * String1Length))
    b = text_of(k.memory.read(String2, 2 * String2Length))
    if CaseInSensitive:
        a, b = upcase(a), upcase(b)
    return compare_units(a, b) & 0xFFFF_FFFF


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlEqualUnicodeString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> bool:
    if k.memory.u16(String1) != k.memory.u16(String2):
        return False
    a, b = _pair(k, String1, String2, CaseInSensitive)
    return a == b


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlPrefixUnicodeString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> bool:
    """TRUE if String1 is a prefix of String2."""
    a, b = _pair(k, String1, String2, CaseInSensitive)
    return b.startswith(a)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSuffixUnicodeString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> bool:
    a, b = _pair(k, String1, String2, CaseInSensitive)
    return b.endswith(a)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlEqualString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> bool:
    a, b = ansi_string(k.memory, String1), ansi_string(k.memory, String2)
    return a.upper() == b.upper() if CaseInSensitive else a == b


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCompareString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> int:
    a, b = ansi_string(k.memory, String1), ansi_string(k.memory, String2)
    if CaseInSensitive:
        a, b = a.upper(), b.upper()
    return (a > b) - (a < b) & 0xFFFF_FFFF


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlPrefixString(k: Kernel, String1: PVOID, String2: PVOID, CaseInSensitive: BOOLEAN) -> bool:
    a, b = ansi_string(k.memory, String1), ansi_string(k.memory, String2)
    return b.upper().startswith(a.upper()) if CaseInSensitive else b.startswith(a)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlHashUnicodeString(
    k: Kernel, String: PVOID, CaseInSensitive: BOOLEAN, HashAlgorithm: ULONG, HashValue: PVOID
) -> int:
    """HASH_STRING_ALGORITHM_DEFAULT (0) and X65599 (1) are the same: hash * 65599 + unit."""
    if HashAlgorithm not in (0, 1):
        return STATUS_INVALID_PARAMETER
    text = k.memory.unicode_string(String)
    raw = units(upcase(text) if CaseInSensitive else text)
    value = 0
    for i in range(0, len(raw), 2):
        value = (value * 65_599 + (raw[i] | raw[i + 1] << 8)) & 0xFFFF_FFFF
    k.memory.put32(HashValue, value)
    return STATUS_SUCCESS


# Case


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlUpcaseUnicodeChar(k: Kernel, SourceCharacter: WCHAR) -> int:
    return ord(upcase(chr(SourceCharacter)))


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlDowncaseUnicodeChar(k: Kernel, SourceCharacter: WCHAR) -> int:
    return ord(downcase(chr(SourceCharacter)))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlUpperChar(k: Kernel, Character: USHORT) -> int:
    character = Character & 0xFF
    return character - 32 if 0x61 <= character <= 0x7A else character


def _store(k: Kernel, destination: int, data: bytes, allocated: int, terminator: int) -> int:
    """Put converted text into a counted string, into a new buffer if asked for one."""
    memory = k.memory
    if allocated:
        if len(data) + terminator > 0xFFFF:
            return STATUS_INVALID_PARAMETER
        buffer = allocate(k, max(len(data) + terminator, 1), _TAG, paged=True, zero=True)
        if not buffer:
            return STATUS_NO_MEMORY
        put_counted(memory, destination, len(data), len(data) + terminator, buffer)
        memory.write(buffer, data)
        return STATUS_SUCCESS
    maximum = memory.u16(destination + 2)
    if len(data) > maximum:
        return STATUS_BUFFER_OVERFLOW
    buffer = memory.u64(destination + 8)
    memory.write(buffer, data)
    memory.put16(destination, len(data))
    if terminator and len(data) + terminator <= maximum:
        memory.write(buffer + len(data), bytes(terminator))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUpcaseUnicodeString(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = units(upcase(k.memory.unicode_string(SourceString)))
    return _store(k, DestinationString, data, AllocateDestinationString, 0)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlDowncaseUnicodeString(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = units(downcase(k.memory.unicode_string(SourceString)))
    return _store(k, DestinationString, data, AllocateDestinationString, 0)


# Conversions


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlAnsiStringToUnicodeString(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = units(ansi_string(k.memory, SourceString).decode("cp1252", "replace"))
    if len(data) + 2 > 0xFFFF:
        return STATUS_INVALID_PARAMETER
    return _store(k, DestinationString, data, AllocateDestinationString, 2)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeStringToAnsiString(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = k.memory.unicode_string(SourceString).encode("cp1252", "replace")
    return _store(k, DestinationString, data, AllocateDestinationString, 1)


RtlOemStringToUnicodeString = alias(RtlAnsiStringToUnicodeString, "RtlOemStringToUnicodeString")
RtlUnicodeStringToOemString = alias(RtlUnicodeStringToAnsiString, "RtlUnicodeStringToOemString")


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeStringToUTF8String(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = _to_utf8(k.memory.unicode_string(SourceString))[0]
    return _store(k, DestinationString, data, AllocateDestinationString, 1)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUTF8StringToUnicodeString(
    k: Kernel, DestinationString: PVOID, SourceString: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    data = units(ansi_string(k.memory, SourceString).decode("utf-8", "replace"))
    return _store(k, DestinationString, data, AllocateDestinationString, 2)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlAnsiStringToUnicodeSize(k: Kernel, AnsiString: PVOID) -> int:
    """Bytes with the terminator."""
    return 2 * k.memory.u16(AnsiString) + 2


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeStringToAnsiSize(k: Kernel, UnicodeString: PVOID) -> int:
    return len(k.memory.unicode_string(UnicodeString).encode("cp1252", "replace")) + 1


RtlxAnsiStringToUnicodeSize = alias(RtlAnsiStringToUnicodeSize, "RtlxAnsiStringToUnicodeSize")
RtlxUnicodeStringToAnsiSize = alias(RtlUnicodeStringToAnsiSize, "RtlxUnicodeStringToAnsiSize")


def _to_utf8(text: str) -> tuple[bytes, bool]:
    """UTF-8, and True if a lone surrogate had to be replaced."""
    try:
        return text.encode("utf-8"), False
    except UnicodeEncodeError:
        return units(text).decode("utf-16-le", "replace").encode("utf-8"), True


def _put_limited(k: Kernel, destination: int, maximum: int, actual: int, data: bytes, step: int) -> int:
    """Write as many whole characters as fit; the count is stored, and the status says whether all did."""
    if not destination:
        k.memory.put32(actual, len(data))
        return STATUS_SUCCESS
    fits = len(data) <= maximum
    cut = data if fits else data[: maximum // step * step]
    if not fits and step == 1:
        while cut and data[len(cut)] & 0xC0 == 0x80:
            cut = cut[:-1]
    k.memory.write(destination, cut)
    if actual:
        k.memory.put32(actual, len(cut))
    return STATUS_SUCCESS if fits else STATUS_BUFFER_TOO_SMALL


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeToUTF8N(
    k: Kernel,
    UTF8StringDestination: PVOID,
    UTF8StringMaxByteCount: ULONG,
    UTF8StringActualByteCount: PVOID,
    UnicodeStringSource: PVOID,
    UnicodeStringByteCount: ULONG,
) -> int:
    data, replaced = _to_utf8(text_of(k.memory.read(UnicodeStringSource, UnicodeStringByteCount & ~1)))
    status = _put_limited(
        k, UTF8StringDestination, UTF8StringMaxByteCount, UTF8StringActualByteCount, data, 1
    )
    return STATUS_SOME_NOT_MAPPED if replaced and status == STATUS_SUCCESS else status


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUTF8ToUnicodeN(
    k: Kernel,
    UnicodeStringDestination: PVOID,
    UnicodeStringMaxByteCount: ULONG,
    UnicodeStringActualByteCount: PVOID,
    UTF8StringSource: PVOID,
    UTF8StringByteCount: ULONG,
) -> int:
    raw = k.memory.read(UTF8StringSource, UTF8StringByteCount)
    try:
        text, replaced = raw.decode("utf-8"), False
    except UnicodeDecodeError:
        text, replaced = raw.decode("utf-8", "replace"), True
    status = _put_limited(
        k,
        UnicodeStringDestination,
        UnicodeStringMaxByteCount,
        UnicodeStringActualByteCount,
        units(text),
        2,
    )
    return STATUS_SOME_NOT_MAPPED if replaced and status == STATUS_SUCCESS else status


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlMultiByteToUnicodeN(
    k: Kernel,
    UnicodeString: PVOID,
    MaxBytesInUnicodeString: ULONG,
    BytesInUnicodeString: PVOID,
    MultiByteString: PVOID,
    BytesInMultiByteString: ULONG,
) -> int:
    """Cuts silently (docs)."""
    data = units(k.memory.read(MultiByteString, BytesInMultiByteString).decode("cp1252", "replace"))
    data = data[: MaxBytesInUnicodeString & ~1]
    k.memory.write(UnicodeString, data)
    if BytesInUnicodeString:
        k.memory.put32(BytesInUnicodeString, len(data))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeToMultiByteN(
    k: Kernel,
    MultiByteString: PVOID,
    MaxBytesInMultiByteString: ULONG,
    BytesInMultiByteString: PVOID,
    UnicodeString: PVOID,
    BytesInUnicodeString: ULONG,
) -> int:
    data = text_of(k.memory.read(UnicodeString, BytesInUnicodeString & ~1)).encode("cp1252", "replace")
    data = data[:MaxBytesInMultiByteString]
    k.memory.write(MultiByteString, data)
    if BytesInMultiByteString:
        k.memory.put32(BytesInMultiByteString, len(data))
    return STATUS_SUCCESS


_NUMBER = re.compile(r"\s*([-+]?)(0[xX]|0[oO]|0[bB])?([0-9A-Fa-f]*)")
_PREFIX_BASE = {"0x": 16, "0o": 8, "0b": 2}


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlUnicodeStringToInteger(k: Kernel, String: PVOID, Base: ULONG, Value: PVOID) -> int:
    """Base 0 takes it from the prefix 0x, 0o, 0b; what is no digit ends the number (docs)."""
    if Base not in (0, 2, 8, 10, 16):
        return STATUS_INVALID_PARAMETER
    match = _NUMBER.match(k.memory.unicode_string(String))
    assert match is not None, "the expression matches the empty text"
    sign, prefix, digits = match.groups()
    base = Base or _PREFIX_BASE.get((prefix or "").lower(), 10)
    if prefix and Base:
        digits = "0"  # with a base given, a prefix is a zero and the end of the number
    value = 0
    for digit in digits:
        number = int(digit, 16)
        if number >= base:
            break
        value = value * base + number
    k.memory.put32(Value, -value if sign == "-" else value)
    return STATUS_SUCCESS


def _digits(value: int, base: int) -> str | None:
    match base:
        case 0 | 10:
            return str(value)
        case 2:
            return f"{value:b}"
        case 8:
            return f"{value:o}"
        case 16:
            return f"{value:X}"
    return None


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlIntegerToUnicodeString(k: Kernel, Value: ULONG, Base: ULONG, String: PVOID) -> int:
    digits = _digits(Value, Base)
    return STATUS_INVALID_PARAMETER if digits is None else _store(k, String, units(digits), 0, 2)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlInt64ToUnicodeString(k: Kernel, Value: PVOID, Base: ULONG, String: PVOID) -> int:
    digits = _digits(Value, Base)
    return STATUS_INVALID_PARAMETER if digits is None else _store(k, String, units(digits), 0, 2)


# GUIDs


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlStringFromGUID(k: Kernel, Guid: PVOID, GuidString: PVOID) -> int:
    """{XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX}, in a buffer that RtlFreeUnicodeString frees."""
    text = "{" + str(uuid.UUID(bytes_le=k.memory.read(Guid, 16))).upper() + "}"
    return _store(k, GuidString, units(text), 1, 2)


_GUID = re.compile(r"\{[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}")


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlGUIDFromString(k: Kernel, GuidString: PVOID, Guid: PVOID) -> int:
    text = k.memory.unicode_string(GuidString)
    if not _GUID.fullmatch(text):
        return STATUS_INVALID_PARAMETER
    k.memory.write(Guid, uuid.UUID(text).bytes_le)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlValidateUnicodeString(k: Kernel, Flags: ULONG, String: PVOID) -> int:
    memory = k.memory
    length, maximum, buffer = memory.u16(String), memory.u16(String + 2), memory.u64(String + 8)
    bad = length & 1 or maximum & 1 or length > maximum or (not buffer and (length or maximum))
    return STATUS_INVALID_PARAMETER if Flags or bad else STATUS_SUCCESS
