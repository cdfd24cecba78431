/*
 * Who may connect, as text: a small and strict part of the security descriptor definition language.
 *
 *   D:[P](type;;rights;;;sid)...
 *
 * type    A allows, D denies
 * rights  GA or 0x1F0001 (all that a connection takes), GR (which alone is not enough to connect), or another hexadecimal
 *         mask within 0x1F0001
 * sid     SY, BA, LS, NS, WD, AN or S-1-...
 *
 * Everything else is refused with STATUS_INVALID_SECURITY_DESCR, and so is a description that allows Everyone or
 * Anonymous anything, or that allows nobody.
 */
#include "downlink.h"

#define DOWNLINK_ACE_MAXIMUM 16
#define DOWNLINK_SUBAUTHORITY_MAXIMUM 15

/* A SID with as many parts as there can be. */
typedef struct _DOWNLINK_SID {
    UCHAR Revision;
    UCHAR SubAuthorityCount;
    UCHAR IdentifierAuthority[6];
    ULONG SubAuthority[DOWNLINK_SUBAUTHORITY_MAXIMUM];
} DOWNLINK_SID, *PDOWNLINK_SID;

#define DOWNLINK_SID_BYTES(count) (FIELD_OFFSET(DOWNLINK_SID, SubAuthority) + (count) * (ULONG)sizeof(ULONG))

C_ASSERT(FIELD_OFFSET(DOWNLINK_SID, SubAuthority) == FIELD_OFFSET(SID, SubAuthority));
C_ASSERT(DOWNLINK_SID_BYTES(DOWNLINK_SUBAUTHORITY_MAXIMUM) == sizeof(DOWNLINK_SID));
C_ASSERT(FIELD_OFFSET(ACCESS_ALLOWED_ACE, SidStart) == FIELD_OFFSET(ACCESS_DENIED_ACE, SidStart));

/* What is left of the text. */
typedef struct _DOWNLINK_READER {
    PCWCH Next;
    PCWCH End;
} DOWNLINK_READER, *PDOWNLINK_READER;

typedef struct _DOWNLINK_ALIAS {
    PCWSTR Name;
    UCHAR SubAuthorityCount;
    UCHAR Authority;
    ULONG SubAuthority[2];
} DOWNLINK_ALIAS;

static const DOWNLINK_ALIAS DownlinkAliases[] = {
    {L"SY", 1, 5, {18, 0}},   /* local system */
    {L"BA", 2, 5, {32, 544}}, /* built-in administrators */
    {L"LS", 1, 5, {19, 0}},   /* local service */
    {L"NS", 1, 5, {20, 0}},   /* network service */
    {L"WD", 1, 1, {0, 0}},    /* everyone */
    {L"AN", 1, 5, {7, 0}},    /* anonymous */
};

static BOOLEAN DownlinkReadText(_Inout_ PDOWNLINK_READER Reader, _In_ PCWSTR Text);
static BOOLEAN DownlinkReadDigits(_Inout_ PDOWNLINK_READER Reader, _In_ ULONG Base, _In_ ULONGLONG Maximum,
                                  _Out_ PULONGLONG Value);
static BOOLEAN DownlinkReadRights(_Inout_ PDOWNLINK_READER Reader, _Out_ PACCESS_MASK Mask);
static BOOLEAN DownlinkReadSid(_Inout_ PDOWNLINK_READER Reader, _Out_ PDOWNLINK_SID Sid);
static BOOLEAN DownlinkReadSidParts(_Inout_ PDOWNLINK_READER Reader, _Out_ PDOWNLINK_SID Sid);
static BOOLEAN DownlinkIsAnybody(_In_ const DOWNLINK_SID *Sid);
static BOOLEAN DownlinkReadAce(_Inout_ PDOWNLINK_READER Reader, _Inout_ PACL Acl, _Inout_ PBOOLEAN Allows);
static BOOLEAN DownlinkReadAcl(_Inout_ PDOWNLINK_READER Reader, _Inout_ PACL Acl);

#pragma alloc_text(INIT, DownlinkParseSecurity)
#pragma alloc_text(INIT, DownlinkReadText)
#pragma alloc_text(INIT, DownlinkReadDigits)
#pragma alloc_text(INIT, DownlinkReadRights)
#pragma alloc_text(INIT, DownlinkReadSid)
#pragma alloc_text(INIT, DownlinkReadSidParts)
#pragma alloc_text(INIT, DownlinkIsAnybody)
#pragma alloc_text(INIT, DownlinkReadAce)
#pragma alloc_text(INIT, DownlinkReadAcl)

/* An absolute descriptor with its ACL in one block of pool; the caller frees it. */
_Use_decl_annotations_ NTSTATUS DownlinkParseSecurity(PCWCH Text, ULONG Length, PSECURITY_DESCRIPTOR *Descriptor)
{
    const ULONG aclBytes =
        sizeof(ACL) + DOWNLINK_ACE_MAXIMUM * (FIELD_OFFSET(ACCESS_ALLOWED_ACE, SidStart) + sizeof(DOWNLINK_SID));
    NTSTATUS status;
    DOWNLINK_READER reader = {Text, Text + Length};
    PSECURITY_DESCRIPTOR descriptor;
    PACL acl;

    *Descriptor = NULL;
    descriptor = ExAllocatePool2(POOL_FLAG_PAGED, sizeof(SECURITY_DESCRIPTOR) + aclBytes, DOWNLINK_TAG_REGISTRY);
    if (descriptor == NULL) {
        status = STATUS_INSUFFICIENT_RESOURCES;
        goto Exit;
    }

    acl = (PACL)((PUCHAR)descriptor + sizeof(SECURITY_DESCRIPTOR));
    acl->AclRevision = ACL_REVISION;
    acl->AclSize = sizeof(ACL);
    if (!DownlinkReadAcl(&reader, acl)) {
        status = STATUS_INVALID_SECURITY_DESCR;
        goto Free;
    }

    status = RtlCreateSecurityDescriptor(descriptor, SECURITY_DESCRIPTOR_REVISION);
    if (NT_SUCCESS(status)) {
        status = RtlSetDaclSecurityDescriptor(descriptor, TRUE, acl, FALSE);
    }
    if (NT_SUCCESS(status) && !RtlValidSecurityDescriptor(descriptor)) {
        status = STATUS_INVALID_SECURITY_DESCR;
    }
    if (NT_SUCCESS(status)) {
        *Descriptor = descriptor;
        goto Exit;
    }

Free:
    ExFreePoolWithTag(descriptor, DOWNLINK_TAG_REGISTRY);
Exit:
    return status;
}

/* All of the text. */
static BOOLEAN DownlinkReadAcl(PDOWNLINK_READER Reader, PACL Acl)
{
    BOOLEAN allows = FALSE;

    if (!DownlinkReadText(Reader, L"D:")) {
        return FALSE;
    }
    (VOID)DownlinkReadText(Reader, L"P");
    while (Reader->Next != Reader->End) {
        if ((Acl->AceCount == DOWNLINK_ACE_MAXIMUM) || !DownlinkReadAce(Reader, Acl, &allows)) {
            return FALSE;
        }
    }
    return allows;
}

/* One entry, appended to the ACL, which has room for it. */
static BOOLEAN DownlinkReadAce(PDOWNLINK_READER Reader, PACL Acl, PBOOLEAN Allows)
{
    PACCESS_ALLOWED_ACE ace = (PACCESS_ALLOWED_ACE)((PUCHAR)Acl + Acl->AclSize);
    DOWNLINK_SID sid;
    ACCESS_MASK mask;
    UCHAR type;

    if (DownlinkReadText(Reader, L"(A;;")) {
        type = ACCESS_ALLOWED_ACE_TYPE;
    } else if (DownlinkReadText(Reader, L"(D;;")) {
        type = ACCESS_DENIED_ACE_TYPE;
    } else {
        return FALSE;
    }
    if (!DownlinkReadRights(Reader, &mask) || !DownlinkReadText(Reader, L";;;") || !DownlinkReadSid(Reader, &sid) ||
        !DownlinkReadText(Reader, L")")) {
        return FALSE;
    }
    if (type == ACCESS_ALLOWED_ACE_TYPE) {
        if (DownlinkIsAnybody(&sid)) {
            return FALSE;
        }
        *Allows = TRUE;
    }

    ace->Header.AceType = type;
    ace->Header.AceFlags = 0;
    ace->Header.AceSize =
        (USHORT)(FIELD_OFFSET(ACCESS_ALLOWED_ACE, SidStart) + DOWNLINK_SID_BYTES(sid.SubAuthorityCount));
    ace->Mask = mask;
    RtlCopyMemory(&ace->SidStart, &sid, DOWNLINK_SID_BYTES(sid.SubAuthorityCount));
    Acl->AclSize += ace->Header.AceSize;
    Acl->AceCount++;
    return TRUE;
}

static BOOLEAN DownlinkReadText(PDOWNLINK_READER Reader, PCWSTR Text)
{
    PCWCH next = Reader->Next;

    while ((*Text != UNICODE_NULL) && (next != Reader->End) && (*next == *Text)) {
        next++;
        Text++;
    }
    if (*Text != UNICODE_NULL) {
        return FALSE;
    }
    Reader->Next = next;
    return TRUE;
}

/* At least one digit; upper and lower case alike; FALSE if the number is greater than the maximum. */
static BOOLEAN DownlinkReadDigits(PDOWNLINK_READER Reader, ULONG Base, ULONGLONG Maximum, PULONGLONG Value)
{
    PCWCH begin = Reader->Next;

    *Value = 0;
    while (Reader->Next != Reader->End) {
        WCHAR character = *Reader->Next;
        ULONG digit;

        if ((character >= L'0') && (character <= L'9')) {
            digit = (ULONG)(character - L'0');
        } else if ((character >= L'A') && (character <= L'F')) {
            digit = (ULONG)(character - L'A') + 10;
        } else if ((character >= L'a') && (character <= L'f')) {
            digit = (ULONG)(character - L'a') + 10;
        } else {
            break;
        }
        if ((digit >= Base) || (*Value > (Maximum - digit) / Base)) {
            return FALSE;
        }
        *Value = *Value * Base + digit;
        Reader->Next++;
    }
    return Reader->Next != begin;
}

static BOOLEAN DownlinkReadRights(PDOWNLINK_READER Reader, PACCESS_MASK Mask)
{
    ULONGLONG value;

    *Mask = 0;
    if (DownlinkReadText(Reader, L"GA")) {
        *Mask = FLT_PORT_ALL_ACCESS;
    } else if (DownlinkReadText(Reader, L"GR")) {
        *Mask = FLT_PORT_CONNECT | STANDARD_RIGHTS_READ;
    } else if (DownlinkReadText(Reader, L"0x") && DownlinkReadDigits(Reader, 16, FLT_PORT_ALL_ACCESS, &value) &&
               ((value & ~(ULONGLONG)FLT_PORT_ALL_ACCESS) == 0)) {
        *Mask = (ACCESS_MASK)value;
    }
    return *Mask != 0;
}

static BOOLEAN DownlinkReadSid(PDOWNLINK_READER Reader, PDOWNLINK_SID Sid)
{
    ULONG index;

    RtlZeroMemory(Sid, sizeof(*Sid));
    Sid->Revision = SID_REVISION;
    if (DownlinkReadText(Reader, L"S-1-")) {
        return DownlinkReadSidParts(Reader, Sid);
    }
    for (index = 0; index < RTL_NUMBER_OF(DownlinkAliases); index++) {
        const DOWNLINK_ALIAS *alias = &DownlinkAliases[index];

        if (DownlinkReadText(Reader, alias->Name)) {
            Sid->SubAuthorityCount = alias->SubAuthorityCount;
            Sid->IdentifierAuthority[5] = alias->Authority;
            Sid->SubAuthority[0] = alias->SubAuthority[0];
            Sid->SubAuthority[1] = alias->SubAuthority[1];
            return TRUE;
        }
    }
    return FALSE;
}

/* What follows "S-1-": the authority, decimal or hexadecimal, and 1 to 15 decimal parts. */
static BOOLEAN DownlinkReadSidParts(PDOWNLINK_READER Reader, PDOWNLINK_SID Sid)
{
    const ULONG base = DownlinkReadText(Reader, L"0x") ? 16 : 10;
    ULONGLONG value;
    ULONG index;

    if (!DownlinkReadDigits(Reader, base, 0xFFFFFFFFFFFFULL, &value)) {
        return FALSE;
    }
    for (index = 0; index < sizeof(Sid->IdentifierAuthority); index++) {
        Sid->IdentifierAuthority[index] = (UCHAR)(value >> (8 * (sizeof(Sid->IdentifierAuthority) - 1 - index)));
    }
    while (DownlinkReadText(Reader, L"-")) {
        if ((Sid->SubAuthorityCount == DOWNLINK_SUBAUTHORITY_MAXIMUM) ||
            !DownlinkReadDigits(Reader, 10, MAXULONG, &value)) {
            return FALSE;
        }
        Sid->SubAuthority[Sid->SubAuthorityCount++] = (ULONG)value;
    }
    return Sid->SubAuthorityCount != 0;
}

/* Everyone (S-1-1-0) or Anonymous (S-1-5-7), however they were written. */
static BOOLEAN DownlinkIsAnybody(const DOWNLINK_SID *Sid)
{
    static const UCHAR zeros[5] = {0};

    return (Sid->SubAuthorityCount == 1) && RtlEqualMemory(Sid->IdentifierAuthority, zeros, sizeof(zeros)) &&
           (((Sid->IdentifierAuthority[5] == 1) && (Sid->SubAuthority[0] == 0)) ||
            ((Sid->IdentifierAuthority[5] == 5) && (Sid->SubAuthority[0] == 7)));
}
