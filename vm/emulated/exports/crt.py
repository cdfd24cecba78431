"""The C run-time library that ntoskrnl exports: zero-terminated strings and formatted printing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import LONG, NTOSKRNL, PVOID, SIZE_T, ULONGLONG, VarArgs, alias, export
from vm.emulated.exports.printf import ArgumentList, Arguments, format_text
from vm.emulated.exports.strings import downcase, units
from vm.emulated.kernel.threads import APC_LEVEL, HIGH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_MINUS_ONE = 0xFFFF_FFFF
_ENOUGH = 1 << 20


def _wide(k: Kernel, address: int, limit: int = _ENOUGH) -> bytes:
    """UTF-16 units up to a terminator, as bytes."""
    return units(k.memory.wide_string(address, limit)) if limit else b""


def _order(a: bytes, b: bytes, size: int) -> int:
    """Comparison of two runs of units; -1, 0 or 1 as a 32-bit value."""
    first = [int.from_bytes(a[i : i + size], "little") for i in range(0, len(a), size)]
    second = [int.from_bytes(b[i : i + size], "little") for i in range(0, len(b), size)]
    return (first > second) - (first < second) & _MINUS_ONE


def _narrow(k: Kernel, address: int, limit: int = _ENOUGH) -> bytes:
    return k.memory.c_string(address, limit) if limit else b""


# Wide strings


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcslen(k: Kernel, str_: PVOID) -> int:
    return len(_wide(k, str_)) // 2


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsnlen(k: Kernel, str_: PVOID, numberOfElements: SIZE_T) -> int:
    return len(_wide(k, str_, numberOfElements)) // 2


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcscmp(k: Kernel, string1: PVOID, string2: PVOID) -> int:
    return _order(_wide(k, string1), _wide(k, string2), 2)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsncmp(k: Kernel, string1: PVOID, string2: PVOID, count: SIZE_T) -> int:
    return _order(_wide(k, string1, count), _wide(k, string2, count), 2)


def _lower_wide(k: Kernel, address: int, limit: int = _ENOUGH) -> bytes:
    return units(downcase(_wide(k, address, limit).decode("utf-16-le", "surrogatepass")))


@export(NTOSKRNL, irql=APC_LEVEL)
def _wcsicmp(k: Kernel, string1: PVOID, string2: PVOID) -> int:
    return _order(_lower_wide(k, string1), _lower_wide(k, string2), 2)


@export(NTOSKRNL, irql=APC_LEVEL)
def _wcsnicmp(k: Kernel, string1: PVOID, string2: PVOID, count: SIZE_T) -> int:
    return _order(_lower_wide(k, string1, count), _lower_wide(k, string2, count), 2)


def _find(text: bytes, what: bytes, start: int = 0, step: int = 2) -> int:
    """Offset of `what` at a unit boundary, or -1."""
    at = text.find(what, start)
    while at >= 0 and at % step:
        at = text.find(what, at + 1)
    return at


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsstr(k: Kernel, str_: PVOID, strSearch: PVOID) -> int:
    at = _find(_wide(k, str_), _wide(k, strSearch))
    return str_ + at if at >= 0 else 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcschr(k: Kernel, str_: PVOID, c: ULONGLONG) -> int:
    at = _find(_wide(k, str_) + b"\0\0", (c & 0xFFFF).to_bytes(2, "little"))
    return str_ + at if at >= 0 else 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsrchr(k: Kernel, str_: PVOID, c: ULONGLONG) -> int:
    raw = _wide(k, str_) + b"\0\0"
    unit = (c & 0xFFFF).to_bytes(2, "little")
    return next((str_ + i for i in range(len(raw) - 2, -1, -2) if raw[i : i + 2] == unit), 0)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcscpy(k: Kernel, dest: PVOID, src: PVOID) -> int:
    k.memory.write(dest, _wide(k, src) + b"\0\0")
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsncpy(k: Kernel, dest: PVOID, src: PVOID, count: SIZE_T) -> int:
    k.memory.write(dest, _wide(k, src, count).ljust(2 * count, b"\0"))
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcscat(k: Kernel, dest: PVOID, src: PVOID) -> int:
    k.memory.write(dest + len(_wide(k, dest)), _wide(k, src) + b"\0\0")
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def wcsncat(k: Kernel, dest: PVOID, src: PVOID, count: SIZE_T) -> int:
    k.memory.write(dest + len(_wide(k, dest)), _wide(k, src, count) + b"\0\0")
    return dest


@export(NTOSKRNL, irql=APC_LEVEL)
def towupper(k: Kernel, c: ULONGLONG) -> int:
    upper = chr(c & 0xFFFF).upper()
    return ord(upper) if len(upper) == 1 else c & 0xFFFF


@export(NTOSKRNL, irql=APC_LEVEL)
def towlower(k: Kernel, c: ULONGLONG) -> int:
    lower = chr(c & 0xFFFF).lower()
    return ord(lower) if len(lower) == 1 else c & 0xFFFF


# Narrow strings


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strlen(k: Kernel, str_: PVOID) -> int:
    return len(_narrow(k, str_))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strnlen(k: Kernel, str_: PVOID, numberOfElements: SIZE_T) -> int:
    return len(_narrow(k, str_, numberOfElements))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strcmp(k: Kernel, string1: PVOID, string2: PVOID) -> int:
    return _order(_narrow(k, string1), _narrow(k, string2), 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strncmp(k: Kernel, string1: PVOID, string2: PVOID, count: SIZE_T) -> int:
    return _order(_narrow(k, string1, count), _narrow(k, string2, count), 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def _stricmp(k: Kernel, string1: PVOID, string2: PVOID) -> int:
    return _order(_narrow(k, string1).lower(), _narrow(k, string2).lower(), 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def _strnicmp(k: Kernel, string1: PVOID, string2: PVOID, count: SIZE_T) -> int:
    return _order(_narrow(k, string1, count).lower(), _narrow(k, string2, count).lower(), 1)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strstr(k: Kernel, str_: PVOID, strSearch: PVOID) -> int:
    at = _narrow(k, str_).find(_narrow(k, strSearch))
    return str_ + at if at >= 0 else 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strchr(k: Kernel, str_: PVOID, c: LONG) -> int:
    at = (_narrow(k, str_) + b"\0").find(c & 0xFF)
    return str_ + at if at >= 0 else 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strrchr(k: Kernel, str_: PVOID, c: LONG) -> int:
    at = (_narrow(k, str_) + b"\0").rfind(c & 0xFF)
    return str_ + at if at >= 0 else 0


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strcpy(k: Kernel, dest: PVOID, src: PVOID) -> int:
    k.memory.write(dest, _narrow(k, src) + b"\0")
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strncpy(k: Kernel, dest: PVOID, src: PVOID, count: SIZE_T) -> int:
    k.memory.write(dest, _narrow(k, src, count).ljust(count, b"\0"))
    return dest


@export(NTOSKRNL, irql=HIGH_LEVEL)
def strcat(k: Kernel, dest: PVOID, src: PVOID) -> int:
    k.memory.write(dest + len(_narrow(k, dest)), _narrow(k, src) + b"\0")
    return dest


def _one_character(name: str, change: Callable[[bytes], bytes]) -> object:
    def convert(k: Kernel, c: LONG) -> int:
        return change(bytes((c,)))[0] if 0 <= c < 128 else c & 0xFFFF_FFFF

    return export(NTOSKRNL, irql=HIGH_LEVEL, name=name)(convert)


toupper = _one_character("toupper", bytes.upper)
tolower = _one_character("tolower", bytes.lower)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def atoi(k: Kernel, str_: PVOID) -> int:
    text = _narrow(k, str_).lstrip()
    sign = -1 if text[:1] == b"-" else 1
    digits = text[1:] if text[:1] in (b"-", b"+") else text
    value = 0
    for byte in digits:
        if not 0x30 <= byte <= 0x39:
            break
        value = value * 10 + byte - 0x30
    return sign * value & _MINUS_ONE


# Printing. The _sn forms leave the text unterminated when it just fits, and return -1 when it does not (docs).


def _put_narrow(k: Kernel, buffer: int, count: int, text: str) -> int:
    data = text.encode("cp1252", "replace")
    if len(data) > count:
        k.memory.write(buffer, data[:count])
        return _MINUS_ONE
    k.memory.write(buffer, data + b"\0" if len(data) < count else data)
    return len(data)


def _put_wide(k: Kernel, buffer: int, count: int, text: str) -> int:
    data = units(text)
    if len(data) > 2 * count:
        k.memory.write(buffer, data[: 2 * count])
        return _MINUS_ONE
    k.memory.write(buffer, data + b"\0\0" if len(data) < 2 * count else data)
    return len(data) // 2


def _narrow_text(k: Kernel, format_: int, arguments: Arguments) -> str:
    return format_text(k.memory, _narrow(k, format_).decode("cp1252", "replace"), arguments)


def _wide_text(k: Kernel, format_: int, arguments: Arguments) -> str:
    return format_text(k.memory, k.memory.wide_string(format_), arguments, wide=True)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def _snprintf(k: Kernel, buffer: PVOID, count: SIZE_T, format_: PVOID, arguments: VarArgs) -> int:
    return _put_narrow(k, buffer, count, _narrow_text(k, format_, arguments))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def _vsnprintf(k: Kernel, buffer: PVOID, count: SIZE_T, format_: PVOID, argptr: PVOID) -> int:
    return _put_narrow(k, buffer, count, _narrow_text(k, format_, ArgumentList(k.memory, argptr)))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def sprintf(k: Kernel, buffer: PVOID, format_: PVOID, arguments: VarArgs) -> int:
    return _put_narrow(k, buffer, _ENOUGH, _narrow_text(k, format_, arguments))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def vsprintf(k: Kernel, buffer: PVOID, format_: PVOID, argptr: PVOID) -> int:
    return _put_narrow(k, buffer, _ENOUGH, _narrow_text(k, format_, ArgumentList(k.memory, argptr)))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def _snwprintf(k: Kernel, buffer: PVOID, count: SIZE_T, format_: PVOID, arguments: VarArgs) -> int:
    return _put_wide(k, buffer, count, _wide_text(k, format_, arguments))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def _vsnwprintf(k: Kernel, buffer: PVOID, count: SIZE_T, format_: PVOID, argptr: PVOID) -> int:
    return _put_wide(k, buffer, count, _wide_text(k, format_, ArgumentList(k.memory, argptr)))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def swprintf(k: Kernel, buffer: PVOID, format_: PVOID, arguments: VarArgs) -> int:
    return _put_wide(k, buffer, _ENOUGH, _wide_text(k, format_, arguments))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def vswprintf(k: Kernel, buffer: PVOID, format_: PVOID, argptr: PVOID) -> int:
    return _put_wide(k, buffer, _ENOUGH, _wide_text(k, format_, ArgumentList(k.memory, argptr)))


_swprintf = alias(swprintf, "_swprintf")
