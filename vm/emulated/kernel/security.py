"""Tokens, SIDs, access control lists and the access check, over the binary forms of winnt.h."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace

from vm.emulated.cpu.memory import Memory
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import STATUS_INVALID_SECURITY_DESCR

SYSTEM = "S-1-5-18"
ADMINISTRATORS = "S-1-5-32-544"
USERS = "S-1-5-32-545"
EVERYONE = "S-1-1-0"
AUTHENTICATED_USERS = "S-1-5-11"
LAB_USER = "S-1-5-21-3623811015-3361044348-30300820-1001"

ACCESS_ALLOWED_ACE_TYPE = 0
ACCESS_DENIED_ACE_TYPE = 1
SE_DACL_PRESENT = 0x0004
SE_SELF_RELATIVE = 0x8000
MAXIMUM_ALLOWED = 0x0200_0000

SE_LOAD_DRIVER = "SeLoadDriverPrivilege"


@dataclass(frozen=True, slots=True)
class Token:
    """Who a thread acts as: user, groups that count for granting, groups that count for denying only, privileges."""

    user: str
    groups: frozenset[str]
    deny_only: frozenset[str] = frozenset()
    privileges: frozenset[str] = frozenset()

    def restricted(self) -> Token:
        """The filtered token of an administrator who is not elevated (fact P24): Administrators is deny-only."""
        return replace(
            self,
            groups=self.groups - {ADMINISTRATORS},
            deny_only=self.deny_only | {ADMINISTRATORS},
            privileges=frozenset(),
        )

    def denied_by(self, sid: str) -> bool:
        """True if an entry that denies `sid` counts for this token."""
        return sid == self.user or sid in self.groups or sid in self.deny_only

    def has(self, privilege: str) -> bool:
        """True if the privilege is held and enabled."""
        return privilege in self.privileges


SYSTEM_TOKEN = Token(
    SYSTEM,
    frozenset((ADMINISTRATORS, EVERYONE, AUTHENTICATED_USERS)),
    privileges=frozenset((SE_LOAD_DRIVER,)),
)
ADMINISTRATOR_TOKEN = Token(
    LAB_USER,
    frozenset((ADMINISTRATORS, USERS, EVERYONE, AUTHENTICATED_USERS)),
    privileges=frozenset((SE_LOAD_DRIVER,)),
)
"""An elevated administrator, as a WinRM logon with LocalAccountTokenFilterPolicy=1 is."""


@dataclass(frozen=True, slots=True)
class Ace:
    """One access control entry: type, mask, SID."""

    kind: int
    mask: int
    sid: str


@dataclass(frozen=True, slots=True)
class SecurityDescriptor:
    """What of a security descriptor decides about access. `dacl` None is a NULL DACL: everyone may do everything."""

    dacl: tuple[Ace, ...] | None
    owner: str | None = None
    group: str | None = None

    def granted(self, token: Token, desired: int) -> bool:
        """The access check of the security reference monitor, in the order of the entries."""
        if self.dacl is None:
            return True
        left = desired
        for ace in self.dacl:
            if ace.kind == ACCESS_ALLOWED_ACE_TYPE and (ace.sid == token.user or ace.sid in token.groups):
                left &= ~ace.mask
                if not left:
                    return True
            elif ace.kind == ACCESS_DENIED_ACE_TYPE and token.denied_by(ace.sid) and left & ace.mask:
                return False
        return not left


def default_descriptor(access: int) -> SecurityDescriptor:
    """What FltBuildDefaultSecurityDescriptor makes: SYSTEM and Administrators (fact P20)."""
    return SecurityDescriptor(
        (Ace(ACCESS_ALLOWED_ACE_TYPE, access, SYSTEM), Ace(ACCESS_ALLOWED_ACE_TYPE, access, ADMINISTRATORS)),
        owner=ADMINISTRATORS,
        group=ADMINISTRATORS,
    )


# Binary forms


def sid_bytes(sid: str) -> bytes:
    """The binary form of a SID in its text form S-1-authority-sub-..."""
    parts = sid.split("-")
    authority = int(parts[2])
    subs = [int(p) for p in parts[3:]]
    return bytes((1, len(subs))) + authority.to_bytes(6, "big") + struct.pack(f"<{len(subs)}I", *subs)


def sid_text(memory: Memory, address: int) -> str:
    """The text form of the SID at an address."""
    revision, count = memory.read(address, 2)
    if revision != 1 or count > 15:
        raise StatusError(STATUS_INVALID_SECURITY_DESCR)
    authority = int.from_bytes(memory.read(address + 2, 6), "big")
    subs = struct.unpack(f"<{count}I", memory.read(address + 8, 4 * count))
    return "-".join(("S-1", str(authority), *map(str, subs)))


def encode(descriptor: SecurityDescriptor) -> bytes:
    """A self-relative SECURITY_DESCRIPTOR."""
    control = SE_SELF_RELATIVE | SE_DACL_PRESENT
    body = bytearray(20)
    offsets = [0, 0, 0, 0]
    for position, sid in ((0, descriptor.owner), (1, descriptor.group)):
        if sid is not None:
            offsets[position] = len(body)
            body += sid_bytes(sid)
    if descriptor.dacl is not None:
        offsets[3] = len(body)
        body += encode_acl(descriptor.dacl)
    struct.pack_into("<BBHIIII", body, 0, 1, 0, control, *offsets)
    return bytes(body)


def encode_acl(aces: tuple[Ace, ...]) -> bytes:
    """An ACL of revision 2."""
    entries = b"".join(
        struct.pack("<BBHI", ace.kind, 0, 8 + len(sid_bytes(ace.sid)), ace.mask) + sid_bytes(ace.sid)
        for ace in aces
    )
    return struct.pack("<BBHHH", 2, 0, 8 + len(entries), len(aces), 0) + entries


def decode(memory: Memory, address: int) -> SecurityDescriptor:
    """Read the descriptor at an address, absolute or self-relative.

    Raises:
        StatusError: STATUS_INVALID_SECURITY_DESCR.
    """
    revision, _, control = struct.unpack("<BBH", memory.read(address, 4))
    if revision != 1:
        raise StatusError(STATUS_INVALID_SECURITY_DESCR)
    if control & SE_SELF_RELATIVE:
        owner, group, _, dacl = (
            o and address + o for o in struct.unpack("<4I", memory.read(address + 4, 16))
        )
    else:
        owner, group, _, dacl = struct.unpack("<4Q", memory.read(address + 8, 32))
    entries: tuple[Ace, ...] | None = None
    if control & SE_DACL_PRESENT and dacl:
        entries = decode_acl(memory, dacl)
    return SecurityDescriptor(
        entries,
        owner=sid_text(memory, owner) if owner else None,
        group=sid_text(memory, group) if group else None,
    )


def decode_acl(memory: Memory, address: int) -> tuple[Ace, ...]:
    """The entries of the ACL at an address."""
    revision, _, size, count, _ = struct.unpack("<BBHHH", memory.read(address, 8))
    if revision not in (2, 4) or size < 8:
        raise StatusError(STATUS_INVALID_SECURITY_DESCR)
    found = []
    cursor = address + 8
    for _ in range(count):
        kind, _, length, mask = struct.unpack("<BBHI", memory.read(cursor, 8))
        if cursor + length > address + size or length < 16:
            raise StatusError(STATUS_INVALID_SECURITY_DESCR)
        found.append(Ace(kind, mask, sid_text(memory, cursor + 8)))
        cursor += length
    return tuple(found)


@dataclass(slots=True)
class Impersonation:
    """The token a thread uses instead of its process's."""

    token: Token
    level: str = field(default="impersonation")


# What the variable SeExports points to (SE_EXPORTS of ntifs.h)

PRIVILEGES = {
    2: "SeCreateToken",
    3: "SeAssignPrimaryToken",
    4: "SeLockMemory",
    5: "SeIncreaseQuota",
    6: "SeMachineAccount",
    7: "SeTcb",
    8: "SeSecurity",
    9: "SeTakeOwnership",
    10: "SeLoadDriver",
    11: "SeSystemProfile",
    12: "SeSystemtime",
    13: "SeProfileSingleProcess",
    14: "SeIncreaseBasePriority",
    15: "SeCreatePagefile",
    16: "SeCreatePermanent",
    17: "SeBackup",
    18: "SeRestore",
    19: "SeShutdown",
    20: "SeDebug",
    21: "SeAudit",
    22: "SeSystemEnvironment",
    23: "SeChangeNotify",
    24: "SeRemoteShutdown",
    25: "SeUndock",
    26: "SeSyncAgent",
    27: "SeEnableDelegation",
    28: "SeManageVolume",
    29: "SeImpersonate",
    30: "SeCreateGlobal",
    31: "SeTrustedCredManAccess",
    32: "SeRelabel",
    33: "SeIncreaseWorkingSet",
    34: "SeTimeZone",
    35: "SeCreateSymbolicLink",
}
"""Privilege numbers (SE_*_PRIVILEGE of wdm.h) and names without the word Privilege."""

_EXPORTS: tuple[int | str, ...] = (
    *(2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 14, 11, 12, 13, 16, 17, 18, 19, 20, 21, 22, 23, 24),
    *("S-1-0-0", EVERYONE, "S-1-2-0", "S-1-3-0", "S-1-3-1", "S-1-5", "S-1-5-1", "S-1-5-2", "S-1-5-3"),
    *("S-1-5-4", SYSTEM, ADMINISTRATORS, USERS, "S-1-5-32-546", "S-1-5-32-547", "S-1-5-32-548"),
    *("S-1-5-32-549", "S-1-5-32-550", "S-1-5-32-551", AUTHENTICATED_USERS, "S-1-5-12", "S-1-5-7"),
    *(25, 26, 27, "S-1-5-19", "S-1-5-20", 28, 29, 30, 31, 32, 33, 34, 35, "S-1-5-17", "S-1-16-0"),
    *("S-1-16-4096", "S-1-16-8192", "S-1-16-12288", "S-1-16-16384", "S-1-3-4"),
)
"""The members in their order: a privilege number (a LUID) or a SID (a pointer)."""


def exports_image(address: int) -> bytes:
    """SE_EXPORTS with its SIDs behind it, for a block at `address`."""
    head, tail = bytearray(), bytearray()
    for member in _EXPORTS:
        if isinstance(member, int):
            head += struct.pack("<Q", member)
        else:
            head += struct.pack("<Q", address + 8 * len(_EXPORTS) + len(tail))
            tail += sid_bytes(member).ljust(32, b"\0")
    return bytes(head + tail)
