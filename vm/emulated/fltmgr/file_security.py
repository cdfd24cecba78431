"""Security descriptors of files as bytes: taking parts out of a self-relative one, and putting parts in."""

from __future__ import annotations

import struct

from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.security import ADMINISTRATORS, Token, sid_bytes
from vm.emulated.kernel.status import STATUS_INVALID_OWNER, STATUS_INVALID_SECURITY_DESCR

OWNER_SECURITY_INFORMATION = 0x1
GROUP_SECURITY_INFORMATION = 0x2
DACL_SECURITY_INFORMATION = 0x4
SACL_SECURITY_INFORMATION = 0x8

_HEADER = struct.Struct("<BBHIIII")
_SELF_RELATIVE = 0x8000
_DACL_PRESENT, _SACL_PRESENT = 0x0004, 0x0010
_DACL_BITS = 0x1504 | 0x0008
_SACL_BITS = 0x2A10 | 0x0020
_EMPTY = _HEADER.pack(1, 0, _SELF_RELATIVE, 0, 0, 0, 0)


def select(descriptor: bytes, information: int) -> bytes:
    """The parts that SECURITY_INFORMATION asks for, as a self-relative descriptor."""
    control, parts = _split(descriptor or _EMPTY)
    chosen = [part if information & bit else b"" for part, bit in zip(parts, _BITS, strict=True)]
    kept = control & ~(_DACL_BITS | _SACL_BITS)
    if information & DACL_SECURITY_INFORMATION:
        kept |= control & _DACL_BITS
    if information & SACL_SECURITY_INFORMATION:
        kept |= control & _SACL_BITS
    return _join(kept, chosen)


def replace(descriptor: bytes, information: int, new: bytes) -> bytes:
    """`descriptor` with the parts that SECURITY_INFORMATION names taken from `new`.

    Raises:
        StatusError: `new` is not a self-relative security descriptor.
    """
    control, parts = _split(descriptor or _EMPTY)
    new_control, new_parts = _split(new)
    merged = [
        theirs if information & bit else ours
        for ours, theirs, bit in zip(parts, new_parts, _BITS, strict=True)
    ]
    for bit, bits in ((DACL_SECURITY_INFORMATION, _DACL_BITS), (SACL_SECURITY_INFORMATION, _SACL_BITS)):
        if information & bit:
            control = control & ~bits | new_control & bits
    return _join(control, merged)


def check_owner(new: bytes, token: Token) -> None:
    """Refuse an owner that the caller may not give: it must be the caller, or its Administrators group.

    Windows also takes any other group with SE_GROUP_OWNER, and anybody from who holds SeRestorePrivilege: no token here
    has either.

    Raises:
        StatusError: STATUS_INVALID_OWNER, or `new` is not a self-relative security descriptor.
    """
    owner = _split(new)[1][0]
    allowed = [token.user, *({ADMINISTRATORS} & token.groups)]
    if owner not in [sid_bytes(sid) for sid in allowed]:
        raise StatusError(STATUS_INVALID_OWNER)


_BITS = (
    OWNER_SECURITY_INFORMATION,
    GROUP_SECURITY_INFORMATION,
    SACL_SECURITY_INFORMATION,
    DACL_SECURITY_INFORMATION,
)
"""In the order of the offsets in SECURITY_DESCRIPTOR_RELATIVE."""


def _split(descriptor: bytes) -> tuple[int, list[bytes]]:
    if len(descriptor) < _HEADER.size:
        raise StatusError(STATUS_INVALID_SECURITY_DESCR)
    revision, _, control, *offsets = _HEADER.unpack_from(descriptor)
    if revision != 1 or not control & _SELF_RELATIVE:
        raise StatusError(STATUS_INVALID_SECURITY_DESCR)
    parts = []
    for position, offset in enumerate(offsets):
        if not offset:
            parts.append(b"")
            continue
        if offset + 8 > len(descriptor):
            raise StatusError(STATUS_INVALID_SECURITY_DESCR)
        is_acl = position >= 2
        size = (
            int.from_bytes(descriptor[offset + 2 : offset + 4], "little")
            if is_acl
            else 8 + 4 * descriptor[offset + 1]
        )
        part = descriptor[offset : offset + size]
        if len(part) != size or size < 8:
            raise StatusError(STATUS_INVALID_SECURITY_DESCR)
        parts.append(part)
    return control, parts


def _join(control: int, parts: list[bytes]) -> bytes:
    offsets = []
    body = bytearray()
    for part in parts:
        offsets.append(_HEADER.size + len(body) if part else 0)
        body += part + bytes(-len(part) % 4)
    return _HEADER.pack(1, 0, control | _SELF_RELATIVE, *offsets) + bytes(body)
