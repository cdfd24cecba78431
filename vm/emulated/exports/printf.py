"""printf as the kernel's run-time library formats it, with its own conversions (%wZ, %Z, %I64x, %S, %p)."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from vm.emulated.cpu.memory import Memory


class Arguments(Protocol):
    """Where arguments come from: the registers and stack of a call, or a va_list."""

    def next(self) -> int:
        """The next argument, unsigned 64 bit."""
        ...


class ArgumentList:
    """The arguments of a va_list: on x64 a pointer to 8-byte slots."""

    def __init__(self, memory: Memory, address: int) -> None:
        self._memory = memory
        self._address = address

    def next(self) -> int:
        value = self._memory.u64(self._address)
        self._address += 8
        return value


_CONVERSION = re.compile(
    r"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    r"(?P<size>I64|I32|I|hh|h|ll|l|w|z|t|j|L|q)?(?P<type>[a-zA-Z%])",
    re.DOTALL,
)
_BITS = {"I64": 64, "ll": 64, "I": 64, "z": 64, "t": 64, "j": 64, "q": 64, "I32": 32, "h": 16, "hh": 8}
_MOST = 1 << 20
_NULL = "(null)"


def format_text(
    memory: Memory,
    text: str,
    arguments: Arguments,
    *,
    wide: bool = False,
    on_unicode: Callable[[], None] | None = None,
) -> str:
    """The formatted text.

    Args:
        wide: %s and %c mean wide strings, as in swprintf; %S and %C the others.
        on_unicode: called for each conversion that needs the Unicode tables, which are paged: IRQL rules differ.

    Raises:
        MemoryFaultError: an argument points nowhere; the caller's fault.
    """
    formatter = _Formatter(memory, arguments, wide, on_unicode)
    return _CONVERSION.sub(formatter.convert, text)


class _Formatter:
    def __init__(
        self, memory: Memory, arguments: Arguments, wide: bool, on_unicode: Callable[[], None] | None
    ) -> None:
        self.memory = memory
        self.arguments = arguments
        self.wide = wide
        self.on_unicode = on_unicode

    def convert(self, match: re.Match[str]) -> str:
        kind = match["type"]
        if kind == "%":
            return "%"
        flags = match["flags"]
        width, flags = self._width(match["width"], flags)
        precision = self._precision(match["precision"])
        size = match["size"] or ""
        if kind in "diouxX":
            body = self._integer(kind, size, flags, precision)
            zero = "0" in flags and "-" not in flags and precision is None
            return _pad(body, width, flags, zero=zero)
        if kind == "p":
            return _pad(f"{self.arguments.next():016X}", width, flags)
        if kind in "cC":
            return _pad(self._character(kind, size), width, flags)
        if kind in "sS":
            return _pad(self._string(kind, size, precision), width, flags)
        if kind == "Z":
            return _pad(self._counted(size, precision), width, flags)
        if kind in "eEfFgGaA":
            value = struct.unpack("<d", self.arguments.next().to_bytes(8, "little"))[0]
            digits = 6 if precision is None else precision
            sign = "+" if "+" in flags else " " if " " in flags else ""
            code = "g" if kind in "aA" else kind
            return _pad(
                f"{value:{sign}.{digits}{code}}", width, flags, zero="0" in flags and "-" not in flags
            )
        # An unknown conversion prints itself without the percent sign.
        return match[0][1:]

    def _width(self, text: str | None, flags: str) -> tuple[int, str]:
        if text == "*":
            value = _signed(self.arguments.next(), 32)
            return (min(-value, _MOST), flags + "-") if value < 0 else (min(value, _MOST), flags)
        return (min(int(text), _MOST) if text else 0), flags

    def _precision(self, text: str | None) -> int | None:
        if text is None:
            return None
        if text == "*":
            value = _signed(self.arguments.next(), 32)
            return None if value < 0 else min(value, _MOST)
        return min(int(text or "0"), _MOST)

    def _integer(self, kind: str, size: str, flags: str, precision: int | None) -> str:
        bits = _BITS.get(size, 32)
        raw = self.arguments.next() & ((1 << bits) - 1)
        sign = ""
        if kind in "di":
            value = _signed(raw, bits)
            sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
            digits = str(abs(value))
        elif kind == "u":
            digits = str(raw)
        elif kind == "o":
            digits = f"{raw:o}"
            if "#" in flags and not digits.startswith("0"):
                digits = "0" + digits
        else:
            digits = f"{raw:{kind}}"
            if "#" in flags and raw:
                sign = "0" + kind
        if precision is not None:
            digits = "" if precision == 0 and raw == 0 else digits.rjust(precision, "0")
        return sign + digits

    def _is_wide(self, kind: str, size: str) -> bool:
        if size in ("l", "w", "ll"):
            wide = True
        elif size == "h":
            wide = False
        else:
            wide = self.wide if kind.islower() else not self.wide
        if wide and not self.wide and self.on_unicode is not None:
            self.on_unicode()
        return wide

    def _character(self, kind: str, size: str) -> str:
        value = self.arguments.next()
        if self._is_wide(kind, size):
            return chr(value & 0xFFFF)
        return bytes((value & 0xFF,)).decode("cp1252", "replace")

    def _string(self, kind: str, size: str, precision: int | None) -> str:
        wide = self._is_wide(kind, size)
        address = self.arguments.next()
        limit = _MOST if precision is None else precision
        if address == 0:
            return _NULL[:limit]
        if wide:
            return self.memory.wide_string(address, limit)
        return self.memory.c_string(address, limit).decode("cp1252", "replace") if limit else ""

    def _counted(self, size: str, precision: int | None) -> str:
        """%wZ takes a UNICODE_STRING, %Z (and %hZ) an ANSI_STRING; in wide functions %Z is wide too."""
        wide = size in ("w", "l") or (self.wide and size != "h")
        if wide and not self.wide and self.on_unicode is not None:
            self.on_unicode()
        address = self.arguments.next()
        if address == 0 or self.memory.u64(address + 8) == 0:
            return _NULL
        if wide:
            text = self.memory.unicode_string(address)
        else:
            length = self.memory.u16(address)
            text = self.memory.read(self.memory.u64(address + 8), length).decode("cp1252", "replace")
        return text if precision is None else text[:precision]


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _pad(body: str, width: int, flags: str, *, zero: bool = False) -> str:
    if len(body) >= width:
        return body
    if "-" in flags:
        return body.ljust(width)
    if not zero:
        return body.rjust(width)
    head = 2 if body[:2] in ("0x", "0X") else 1 if body[:1] in ("-", "+", " ") else 0
    return body[:head] + body[head:].rjust(width - head, "0")
