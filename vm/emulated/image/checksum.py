"""The checksum of the PE optional header, as ImageHlp computes it. Pure function on bytes."""

from __future__ import annotations

import sys
from array import array


def pe_checksum(data: bytes, field_offset: int) -> int:
    """The value that belongs into `OptionalHeader.CheckSum` of the file `data`.

    The algorithm of `CheckSumMappedFile`: the 16-bit one's complement sum of the file with the field itself
    counted as zero, plus the length of the file.

    Args:
        data: the whole file, signature included.
        field_offset: file offset of the four bytes of the field; even, as the PE format makes it.
    """
    padded = bytearray(data)
    padded[field_offset : field_offset + 4] = b"\0\0\0\0"
    padded += b"\0" * (-len(padded) % 4)
    words = array("I")
    words.frombytes(padded)
    if sys.byteorder == "big":
        words.byteswap()
    total = sum(words)  # 2**16 is 1 modulo 0xFFFF, so 32-bit words fold to the same sum as 16-bit ones
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total + len(data)) & 0xFFFFFFFF
