"""Security: SIDs, access control lists, descriptors in memory, subject contexts, tokens and access checks."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from vm.emulated.exports.declare import (
    ACCESS_MASK,
    BOOLEAN,
    KPROCESSOR_MODE,
    NTOSKRNL,
    PVOID,
    UCHAR,
    ULONG,
    ULONGLONG,
    export,
)
from vm.emulated.exports.pool import allocate
from vm.emulated.exports.strings import put_counted, units
from vm.emulated.exports.threads import process_at, thread_at
from vm.emulated.kernel import security
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.security import Token, sid_bytes, sid_text
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_ALLOTTED_SPACE_EXCEEDED,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_INVALID_ACL,
    STATUS_INVALID_INFO_CLASS,
    STATUS_INVALID_PARAMETER,
    STATUS_INVALID_SECURITY_DESCR,
    STATUS_INVALID_SID,
    STATUS_NO_MEMORY,
    STATUS_REVISION_MISMATCH,
    STATUS_SUCCESS,
    STATUS_UNKNOWN_REVISION,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, KERNEL_MODE, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

TOKEN = "Token"
Fill = Callable[[int], bytes]
"""Contents of a block, given its address."""
_MAXIMUM_ALLOWED = 0x0200_0000
_TAG = int.from_bytes(b"SeTk", "little")

# SIDs: Revision, SubAuthorityCount, IdentifierAuthority (6 bytes, big endian), SubAuthority ULONGs


def _sid_length(k: Kernel, sid: int) -> int:
    return 8 + 4 * k.memory.u8(sid + 1)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlLengthRequiredSid(k: Kernel, SubAuthorityCount: ULONG) -> int:
    return 8 + 4 * SubAuthorityCount


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlLengthSid(k: Kernel, Sid: PVOID) -> int:
    return _sid_length(k, Sid)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlInitializeSid(k: Kernel, Sid: PVOID, IdentifierAuthority: PVOID, SubAuthorityCount: UCHAR) -> int:
    if SubAuthorityCount > 15:
        return STATUS_INVALID_PARAMETER
    k.memory.write(Sid, bytes((1, SubAuthorityCount)) + k.memory.read(IdentifierAuthority, 6))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSubAuthoritySid(k: Kernel, Sid: PVOID, SubAuthority: ULONG) -> int:
    return Sid + 8 + 4 * SubAuthority


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSubAuthorityCountSid(k: Kernel, Sid: PVOID) -> int:
    return Sid + 1


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlValidSid(k: Kernel, Sid: PVOID) -> bool:
    return bool(Sid) and k.memory.u8(Sid) & 0xF == 1 and k.memory.u8(Sid + 1) <= 15


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlEqualSid(k: Kernel, Sid1: PVOID, Sid2: PVOID) -> bool:
    return k.memory.read(Sid1, _sid_length(k, Sid1)) == k.memory.read(Sid2, _sid_length(k, Sid2))


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCopySid(k: Kernel, DestinationSidLength: ULONG, DestinationSid: PVOID, SourceSid: PVOID) -> int:
    length = _sid_length(k, SourceSid)
    if length > DestinationSidLength:
        return STATUS_BUFFER_TOO_SMALL
    k.memory.write(DestinationSid, k.memory.read(SourceSid, length))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlConvertSidToUnicodeString(
    k: Kernel, UnicodeString: PVOID, Sid: PVOID, AllocateDestinationString: BOOLEAN
) -> int:
    if not RtlValidSid(k, Sid):
        return STATUS_INVALID_SID
    data = units(sid_text(k.memory, Sid))
    if AllocateDestinationString:
        buffer = allocate(k, len(data) + 2, _TAG, paged=True, zero=True)
        if not buffer:
            return STATUS_NO_MEMORY
        put_counted(k.memory, UnicodeString, 0, len(data) + 2, buffer)
    elif k.memory.u16(UnicodeString + 2) < len(data):
        return STATUS_BUFFER_TOO_SMALL
    k.memory.write(k.memory.u64(UnicodeString + 8), data)
    k.memory.put16(UnicodeString, len(data))
    return STATUS_SUCCESS


# ACLs: AclRevision, Sbz1, AclSize, AceCount, Sbz2; entries follow


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCreateAcl(k: Kernel, Acl: PVOID, AclLength: ULONG, AclRevision: ULONG) -> int:
    if AclLength < 8:
        return STATUS_BUFFER_TOO_SMALL
    if AclRevision not in (2, 3, 4) or AclLength > 0xFFFC:
        return STATUS_INVALID_PARAMETER
    k.memory.write(Acl, struct.pack("<BBHHH", AclRevision, 0, AclLength & 0xFFFC, 0, 0))
    return STATUS_SUCCESS


def _acl_end(k: Kernel, acl: int) -> tuple[int, int]:
    """(address behind the last entry, end of the list); StatusError when it is damaged."""
    size, count = k.memory.u16(acl + 2), k.memory.u16(acl + 4)
    cursor = acl + 8
    for _ in range(count):
        cursor += k.memory.u16(cursor + 2)
        if cursor > acl + size:
            raise StatusError(STATUS_INVALID_ACL)
    return cursor, acl + size


def _add_ace(k: Kernel, acl: int, revision: int, kind: int, mask: int, sid: int, flags: int = 0) -> int:
    if not RtlValidSid(k, sid):
        return STATUS_INVALID_SID
    if revision not in (2, 3, 4) or k.memory.u8(acl) > 4:
        return STATUS_REVISION_MISMATCH
    try:
        cursor, end = _acl_end(k, acl)
    except StatusError as error:
        return error.status
    raw = k.memory.read(sid, _sid_length(k, sid))
    entry = struct.pack("<BBHI", kind, flags, 8 + len(raw), mask) + raw
    if cursor + len(entry) > end:
        return STATUS_ALLOTTED_SPACE_EXCEEDED
    k.memory.write(cursor, entry)
    k.memory.put16(acl + 4, k.memory.u16(acl + 4) + 1)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlAddAccessAllowedAce(
    k: Kernel, Acl: PVOID, AceRevision: ULONG, AccessMask: ACCESS_MASK, Sid: PVOID
) -> int:
    return _add_ace(k, Acl, AceRevision, security.ACCESS_ALLOWED_ACE_TYPE, AccessMask, Sid)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlAddAccessAllowedAceEx(
    k: Kernel, Acl: PVOID, AceRevision: ULONG, AceFlags: ULONG, AccessMask: ACCESS_MASK, Sid: PVOID
) -> int:
    return _add_ace(k, Acl, AceRevision, security.ACCESS_ALLOWED_ACE_TYPE, AccessMask, Sid, AceFlags & 0xFF)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlAddAccessDeniedAce(
    k: Kernel, Acl: PVOID, AceRevision: ULONG, AccessMask: ACCESS_MASK, Sid: PVOID
) -> int:
    return _add_ace(k, Acl, AceRevision, security.ACCESS_DENIED_ACE_TYPE, AccessMask, Sid)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlGetAce(k: Kernel, Acl: PVOID, AceIndex: ULONG, Ace: PVOID) -> int:
    count = k.memory.u16(Acl + 4)
    if AceIndex >= count:
        return STATUS_INVALID_PARAMETER
    cursor = Acl + 8
    for _ in range(AceIndex):
        cursor += k.memory.u16(cursor + 2)
    k.memory.put64(Ace, cursor)
    return STATUS_SUCCESS


# Absolute descriptors: Revision 0, Control 2, Owner 8, Group 0x10, Sacl 0x18, Dacl 0x20

_DESCRIPTOR_SIZE = 0x28
_DACL_PRESENT, _DACL_DEFAULTED, _OWNER_DEFAULTED, _GROUP_DEFAULTED = 0x4, 0x8, 0x1, 0x2


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlCreateSecurityDescriptor(k: Kernel, SecurityDescriptor: PVOID, Revision: ULONG) -> int:
    if Revision != 1:
        return STATUS_UNKNOWN_REVISION
    k.memory.write(SecurityDescriptor, b"\1".ljust(_DESCRIPTOR_SIZE, b"\0"))
    return STATUS_SUCCESS


def _set_part(k: Kernel, descriptor: int, offset: int, value: int, set_bits: int, clear_bits: int) -> int:
    memory = k.memory
    if memory.u8(descriptor) != 1:
        return STATUS_UNKNOWN_REVISION
    control = memory.u16(descriptor + 2)
    if control & security.SE_SELF_RELATIVE:
        return STATUS_INVALID_SECURITY_DESCR
    memory.put64(descriptor + offset, value)
    memory.put16(descriptor + 2, control & ~clear_bits | set_bits)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSetDaclSecurityDescriptor(
    k: Kernel, SecurityDescriptor: PVOID, DaclPresent: BOOLEAN, Dacl: PVOID, DaclDefaulted: BOOLEAN
) -> int:
    bits = (_DACL_PRESENT if DaclPresent else 0) | (_DACL_DEFAULTED if DaclDefaulted else 0)
    return _set_part(
        k, SecurityDescriptor, 0x20, Dacl if DaclPresent else 0, bits, _DACL_PRESENT | _DACL_DEFAULTED
    )


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSetOwnerSecurityDescriptor(
    k: Kernel, SecurityDescriptor: PVOID, Owner: PVOID, OwnerDefaulted: BOOLEAN
) -> int:
    bits = _OWNER_DEFAULTED if OwnerDefaulted else 0
    return _set_part(k, SecurityDescriptor, 0x08, Owner, bits, _OWNER_DEFAULTED)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlSetGroupSecurityDescriptor(
    k: Kernel, SecurityDescriptor: PVOID, Group: PVOID, GroupDefaulted: BOOLEAN
) -> int:
    bits = _GROUP_DEFAULTED if GroupDefaulted else 0
    return _set_part(k, SecurityDescriptor, 0x10, Group, bits, _GROUP_DEFAULTED)


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlValidSecurityDescriptor(k: Kernel, SecurityDescriptor: PVOID) -> bool:
    try:
        security.decode(k.memory, SecurityDescriptor)
    except StatusError:
        return False
    return True


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlLengthSecurityDescriptor(k: Kernel, SecurityDescriptor: PVOID) -> int:
    """As it would be in self-relative form."""
    return len(security.encode(security.decode(k.memory, SecurityDescriptor)))


@export(NTOSKRNL, irql=APC_LEVEL)
def RtlGetDaclSecurityDescriptor(
    k: Kernel, SecurityDescriptor: PVOID, DaclPresent: PVOID, Dacl: PVOID, DaclDefaulted: PVOID
) -> int:
    memory = k.memory
    control = memory.u16(SecurityDescriptor + 2)
    memory.put8(DaclPresent, int(bool(control & _DACL_PRESENT)))
    if control & _DACL_PRESENT:
        if control & security.SE_SELF_RELATIVE:
            offset = memory.u32(SecurityDescriptor + 0x10)
            dacl = SecurityDescriptor + offset if offset else 0
        else:
            dacl = memory.u64(SecurityDescriptor + 0x20)
        memory.put64(Dacl, dacl)
        memory.put8(DaclDefaulted, int(bool(control & _DACL_DEFAULTED)))
    return STATUS_SUCCESS


# Tokens


def token_at(k: Kernel, address: int) -> Token:
    """The token behind a PACCESS_TOKEN; anything else is a bugcheck."""
    token: Token = k.objects.get(address, TOKEN).body
    return token


def _new_token(k: Kernel, token: Token) -> int:
    return k.objects.create(TOKEN, token).address


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsReferencePrimaryToken(k: Kernel, Process: PVOID) -> int:
    return _new_token(k, process_at(k, Process).token)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsDereferencePrimaryToken(k: Kernel, PrimaryToken: PVOID) -> None:
    k.objects.dereference(k.objects.get(PrimaryToken, TOKEN))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsReferenceImpersonationToken(
    k: Kernel, Thread: PVOID, CopyOnOpen: PVOID, EffectiveOnly: PVOID, ImpersonationLevel: PVOID
) -> int:
    """NULL if the thread does not impersonate (docs)."""
    impersonation = thread_at(k, Thread).impersonation
    if impersonation is None:
        return 0
    k.memory.put8(CopyOnOpen, 0)
    k.memory.put8(EffectiveOnly, 0)
    k.memory.put32(ImpersonationLevel, 2)
    return _new_token(k, impersonation.token)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def PsDereferenceImpersonationToken(k: Kernel, ImpersonationToken: PVOID) -> None:
    if ImpersonationToken:
        k.objects.dereference(k.objects.get(ImpersonationToken, TOKEN))


_ENABLED_GROUP, _DENY_ONLY_GROUP = 0x7, 0x10
_TOKEN_USER, _TOKEN_GROUPS, _TOKEN_SESSION, _TOKEN_ELEVATION = 1, 2, 12, 20


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeQueryInformationToken(
    k: Kernel, Token_: PVOID, TokenInformationClass: ULONG, TokenInformation: PVOID
) -> int:
    """The caller frees the block it gets; a session id comes in the variable itself (docs)."""
    token = token_at(k, Token_)
    if TokenInformationClass == _TOKEN_SESSION:
        k.memory.put32(TokenInformation, 0)
        return STATUS_SUCCESS
    if TokenInformationClass == _TOKEN_ELEVATION:
        data = struct.pack("<I", int(security.ADMINISTRATORS in token.groups))
        return _give(k, TokenInformation, len(data), lambda _: data)
    if TokenInformationClass == _TOKEN_USER:
        sid = sid_bytes(token.user)
        return _give(k, TokenInformation, 16 + len(sid), lambda a: struct.pack("<QQ", a + 16, 0) + sid)
    if TokenInformationClass == _TOKEN_GROUPS:
        groups = [(sid_bytes(s), _ENABLED_GROUP) for s in sorted(token.groups)]
        groups += [(sid_bytes(s), _DENY_ONLY_GROUP) for s in sorted(token.deny_only)]
        size = 8 + 16 * len(groups) + sum(len(sid) for sid, _ in groups)

        def fill(address: int) -> bytes:
            head, tail = bytearray(struct.pack("<II", len(groups), 0)), bytearray()
            start = address + 8 + 16 * len(groups)
            for sid, attributes in groups:
                head += struct.pack("<QQ", start + len(tail), attributes)
                tail += sid
            return bytes(head + tail)

        return _give(k, TokenInformation, size, fill)
    return STATUS_INVALID_INFO_CLASS


def _give(k: Kernel, target: int, size: int, fill: Fill) -> int:
    block = allocate(k, size, _TAG, paged=True, zero=True)
    if not block:
        return STATUS_NO_MEMORY
    k.memory.write(block, fill(block))
    k.memory.put64(target, block)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeTokenIsAdmin(k: Kernel, Token_: PVOID) -> bool:
    return security.ADMINISTRATORS in token_at(k, Token_).groups


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeTokenIsRestricted(k: Kernel, Token_: PVOID) -> bool:
    """Restricted means restricting SIDs, which the filtered token of an administrator has not."""
    token_at(k, Token_)
    return False


# Subject contexts: ClientToken 0x00, ImpersonationLevel 0x08, PrimaryToken 0x10, ProcessAuditId 0x18


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeCaptureSubjectContext(k: Kernel, SubjectContext: PVOID) -> None:
    thread = k.current
    client = _new_token(k, thread.impersonation.token) if thread.impersonation is not None else 0
    primary = _new_token(k, thread.process.token)
    k.memory.write(
        SubjectContext, struct.pack("<QIIQQ", client, 2 if client else 0, 0, primary, thread.process.id)
    )


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeReleaseSubjectContext(k: Kernel, SubjectContext: PVOID) -> None:
    for offset in (0, 0x10):
        address = k.memory.u64(SubjectContext + offset)
        if address:
            k.objects.dereference(k.objects.get(address, TOKEN))
            k.memory.put64(SubjectContext + offset, 0)


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeLockSubjectContext(k: Kernel, SubjectContext: PVOID) -> None:
    """Tokens never change here."""


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeUnlockSubjectContext(k: Kernel, SubjectContext: PVOID) -> None:
    """Tokens never change here."""


def _subject(k: Kernel, context: int) -> Token:
    return token_at(k, k.memory.u64(context) or k.memory.u64(context + 0x10))


def map_generic(k: Kernel, mask: int, mapping: int) -> int:
    """Replace generic rights by specific ones (GENERIC_MAPPING: read, write, execute, all)."""
    if not mapping or not mask & 0xF000_0000:
        return mask
    read, write, execute, everything = struct.unpack("<4I", k.memory.read(mapping, 16))
    for bit, rights in (
        (0x8000_0000, read),
        (0x4000_0000, write),
        (0x2000_0000, execute),
        (0x1000_0000, everything),
    ):
        if mask & bit:
            mask = mask & ~bit | rights
    return mask


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlMapGenericMask(k: Kernel, AccessMask: PVOID, GenericMapping: PVOID) -> None:
    k.memory.put32(AccessMask, map_generic(k, k.memory.u32(AccessMask), GenericMapping))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeAccessCheck(
    k: Kernel,
    SecurityDescriptor: PVOID,
    SubjectSecurityContext: PVOID,
    SubjectContextLocked: BOOLEAN,
    DesiredAccess: ACCESS_MASK,
    PreviouslyGrantedAccess: ACCESS_MASK,
    Privileges: PVOID,
    GenericMapping: PVOID,
    AccessMode: KPROCESSOR_MODE,
    GrantedAccess: PVOID,
    AccessStatus: PVOID,
) -> bool:
    """Kernel mode is granted everything (docs)."""
    if Privileges:
        k.memory.put64(Privileges, 0)
    desired = map_generic(k, DesiredAccess, GenericMapping)
    if AccessMode == KERNEL_MODE:
        everything = map_generic(k, 0x1000_0000, GenericMapping)
        granted = everything if desired & _MAXIMUM_ALLOWED else desired
        return _decide(k, GrantedAccess, AccessStatus, granted | PreviouslyGrantedAccess, True)
    if not SecurityDescriptor:
        return _decide(k, GrantedAccess, AccessStatus, 0, False)
    descriptor = security.decode(k.memory, SecurityDescriptor)
    token = _subject(k, SubjectSecurityContext)
    wanted = desired & ~PreviouslyGrantedAccess & ~_MAXIMUM_ALLOWED
    if descriptor.owner == token.user or descriptor.owner in token.groups:
        wanted &= ~0x6_0000  # an owner may read and change the descriptor
    if wanted and not descriptor.granted(token, wanted):
        return _decide(k, GrantedAccess, AccessStatus, 0, False)
    granted = desired & ~_MAXIMUM_ALLOWED | PreviouslyGrantedAccess
    if desired & _MAXIMUM_ALLOWED:
        granted |= sum(1 << bit for bit in range(25) if descriptor.granted(token, 1 << bit))
    return _decide(k, GrantedAccess, AccessStatus, granted, bool(granted))


def _decide(k: Kernel, granted_at: int, status_at: int, granted: int, allowed: bool) -> bool:
    k.memory.put32(granted_at, granted)
    k.memory.put32(status_at, STATUS_SUCCESS if allowed else STATUS_ACCESS_DENIED)
    return allowed


def _privilege(number: int) -> str:
    name = security.PRIVILEGES.get(number & 0xFFFF_FFFF, "")
    return f"{name}Privilege"


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SeSinglePrivilegeCheck(k: Kernel, PrivilegeValue: ULONGLONG, PreviousMode: KPROCESSOR_MODE) -> bool:
    """Kernel mode has every privilege (docs)."""
    return PreviousMode == KERNEL_MODE or k.token_of(k.current).has(_privilege(PrivilegeValue))


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def SePrivilegeCheck(
    k: Kernel, RequiredPrivileges: PVOID, SubjectSecurityContext: PVOID, AccessMode: KPROCESSOR_MODE
) -> bool:
    """PRIVILEGE_SET: PrivilegeCount 0, Control 4 (1: all are needed), then LUID and attributes, 12 bytes each."""
    if AccessMode == KERNEL_MODE:
        return True
    count, control = struct.unpack("<II", k.memory.read(RequiredPrivileges, 8))
    token = _subject(k, SubjectSecurityContext)
    held = [
        token.has(_privilege(k.memory.u32(RequiredPrivileges + 8 + 12 * index))) for index in range(count)
    ]
    return all(held) if control & 1 else any(held)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def SeReportSecurityEvent(
    k: Kernel, Flags: ULONG, SourceName: PVOID, UserSid: PVOID, AuditParameters: PVOID
) -> int:
    return STATUS_SUCCESS
