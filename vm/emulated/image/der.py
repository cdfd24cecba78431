"""The little of DER that signatures and catalogs need: encode a value, walk an encoded one. Definite lengths and
one-byte tags only, as DER of PKCS #7 has them; anything else is a ValueError."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OBJECT_IDENTIFIER = 0x06
UTC_TIME = 0x17
BMP_STRING = 0x1E
SEQUENCE = 0x30
SET = 0x31


def context(number: int, *, constructed: bool) -> int:
    """The tag `[number]`."""
    return 0x80 | (0x20 if constructed else 0) | number


def encode(tag: int, *contents: bytes) -> bytes:
    """One value: its tag, its length and the concatenated contents."""
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def encode_integer(value: int) -> bytes:
    """A non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encode_oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER such as `1.2.840.113549.1.7.2`."""
    first, second, *rest = (int(part) for part in dotted.split("."))
    body = bytearray()
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        body += bytes(reversed(groups))
    return encode(OBJECT_IDENTIFIER, bytes(body))


def sequence(*members: bytes) -> bytes:
    """A SEQUENCE of encoded values."""
    return encode(SEQUENCE, *members)


def explicit(number: int, value: bytes) -> bytes:
    """An encoded value inside of an explicit tag `[number]`."""
    return encode(context(number, constructed=True), value)


def encode_set_of(members: Iterable[bytes], tag: int = SET) -> bytes:
    """A SET OF in DER's order of its encoded members."""
    return encode(tag, *sorted(members))


@dataclass(frozen=True, slots=True)
class Node:
    """One decoded value; `encoded` includes tag and length, `contents` does not."""

    tag: int
    contents: bytes
    encoded: bytes

    def expect(self, tag: int) -> Node:
        """Itself when it has the tag `tag`; ValueError otherwise."""
        if self.tag != tag:
            raise ValueError(f"tag {self.tag:#04x} where {tag:#04x} belongs")
        return self

    def children(self) -> list[Node]:
        """The values inside of a constructed one."""
        nodes: list[Node] = []
        position = 0
        while position < len(self.contents):
            nodes.append(_node(self.contents, position))
            position += len(nodes[-1].encoded)
        return nodes

    def integer(self) -> int:
        return int.from_bytes(self.expect(INTEGER).contents, "big", signed=True)

    def oid(self) -> str:
        """Dotted form of an OBJECT IDENTIFIER."""
        body = self.expect(OBJECT_IDENTIFIER).contents
        if not body or body[-1] & 0x80:
            raise ValueError("object identifier cut off")
        arcs, arc = [], 0
        for byte in body:
            arc = arc << 7 | byte & 0x7F
            if not byte & 0x80:
                arcs.append(arc)
                arc = 0
        first = min(arcs[0] // 40, 2)
        return ".".join(str(number) for number in (first, arcs[0] - 40 * first, *arcs[1:]))


def decode(data: bytes) -> Node:
    """The value at the beginning of `data`; bytes behind it are left alone. ValueError when it is not DER."""
    return _node(data, 0)


def decode_all(data: bytes) -> Node:
    """The one value that `data` is. ValueError when it is not DER or bytes follow."""
    node = _node(data, 0)
    if len(node.encoded) != len(data):
        raise ValueError(f"{len(data) - len(node.encoded)} bytes behind the value")
    return node


def _node(data: bytes, offset: int) -> Node:
    if offset + 2 > len(data):
        raise ValueError("value cut off")
    tag, length = data[offset], data[offset + 1]
    begin = offset + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("tag of several bytes")
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4 or begin + count > len(data):
            raise ValueError("length not in DER")
        length = int.from_bytes(data[begin : begin + count], "big")
        begin += count
    if begin + length > len(data):
        raise ValueError("value cut off")
    return Node(tag, data[begin : begin + length], data[offset : begin + length])
