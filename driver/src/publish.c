/*
 * From an event to the queues of the connections that asked for it.
 */
#include "downlink.h"

_Use_decl_annotations_ BOOLEAN DownlinkIsWanted(ULONG Mask)
{
    return ((ULONG)Downlink.Interest & Mask) != 0;
}

/* Whether an operation that ended so is wanted. */
_Use_decl_annotations_ BOOLEAN DownlinkIsOutcomeWanted(ULONG Mask, NTSTATUS Status)
{
    return ((ULONG)(NT_SUCCESS(Status) ? Downlink.Interest : Downlink.FailureInterest) & Mask) != 0;
}

/* The volume's own case rules are those of NTFS and FAT as Windows uses them: case-insensitive. */
static BOOLEAN DownlinkIsBelow(_In_ PCUNICODE_STRING Prefix, _In_ PCUNICODE_STRING Path)
{
    return (Path->Length != 0) && RtlPrefixUnicodeString(Prefix, Path, TRUE);
}

/* Whether a connection wants an event; its rundown protection is held. */
static BOOLEAN DownlinkMatches(_In_ const DOWNLINK_CONNECTION *Connection, _In_ PCDOWNLINK_EVENT Event)
{
    ULONG bit = DOWNLINK_MASK(Event->Kind);

    if (((ULONG)Connection->EventMask & bit) == 0) {
        return FALSE;
    }
    if ((bit & DOWNLINK_MASK_FILES) == 0) {
        return TRUE;
    }
    if (!NT_SUCCESS(Event->Status) && ((Connection->Flags & DOWNLINK_CONNECT_FAILED_OPERATIONS) == 0)) {
        return FALSE;
    }
    if ((Event->ProcessId == Connection->ProcessId) &&
        ((Connection->Flags & DOWNLINK_CONNECT_INCLUDE_OWN_PROCESS) == 0)) {
        return FALSE;
    }
    if (Connection->PathPrefix.Length == 0) {
        return TRUE;
    }
    if ((Event->Flags & DOWNLINK_RECORD_NO_PATH) != 0) {
        /* Nobody can say that the event lies outside the prefix, unless that is on another volume. */
        return DownlinkIsBelow(&Event->Path, &Connection->PathPrefix) ||
               DownlinkIsBelow(&Connection->PathPrefix, &Event->Path) || (Event->Path.Length == 0);
    }
    return DownlinkIsBelow(&Connection->PathPrefix, &Event->Path) ||
           DownlinkIsBelow(&Connection->PathPrefix, &Event->SecondPath);
}

_Use_decl_annotations_ VOID DownlinkPublish(PCDOWNLINK_EVENT Event)
{
    ULONG index;

    for (index = 0; index < Downlink.ConnectionCount; index++) {
        PDOWNLINK_CONNECTION connection = &Downlink.Connections[index];

        /* A look without protection spares those who do not care; the look that counts comes under it. */
        if (((ULONG)connection->EventMask & DOWNLINK_MASK(Event->Kind)) == 0) {
            continue;
        }
        if (!ExAcquireRundownProtection(&connection->Users)) {
            continue;
        }
        if (DownlinkMatches(connection, Event)) {
            DownlinkQueueAppend(&connection->Queue, Event);
        }
        ExReleaseRundownProtection(&connection->Users);
    }
}
