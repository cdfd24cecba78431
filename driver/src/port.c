/*
 * The server port: who may connect, with which context, and what the Filter Manager calls when they come and go.
 *
 * The port has no message callback. A client can connect, receive and leave; it cannot send anything.
 */
#include "downlink.h"

static NTSTATUS FLTAPI DownlinkConnectNotify(_In_ PFLT_PORT ClientPort, _In_opt_ PVOID ServerPortCookie,
                                             _In_reads_bytes_opt_(SizeOfContext) PVOID ConnectionContext,
                                             _In_ ULONG SizeOfContext,
                                             _Outptr_result_maybenull_ PVOID *ConnectionPortCookie);
static VOID FLTAPI DownlinkDisconnectNotify(_In_opt_ PVOID ConnectionCookie);
static NTSTATUS DownlinkCheckContext(_In_reads_bytes_opt_(SizeOfContext) const VOID *Context, _In_ ULONG SizeOfContext,
                                     _Out_ DOWNLINK_CONNECT *Connect, _Out_ PUNICODE_STRING PathPrefix);

#pragma alloc_text(PAGE, DownlinkCreatePort)
#pragma alloc_text(PAGE, DownlinkClosePort)
#pragma alloc_text(PAGE, DownlinkConnectNotify)
#pragma alloc_text(PAGE, DownlinkDisconnectNotify)
#pragma alloc_text(PAGE, DownlinkCheckContext)

_Use_decl_annotations_ NTSTATUS DownlinkCreatePort(VOID)
{
    NTSTATUS status;
    PSECURITY_DESCRIPTOR defaultDescriptor = NULL;
    OBJECT_ATTRIBUTES attributes;
    UNICODE_STRING name = RTL_CONSTANT_STRING(DOWNLINK_PORT_NAME);

    PAGED_CODE();

    if (Downlink.Settings.PortSecurity == NULL) {
        /* SYSTEM and Administrators; less than FLT_PORT_ALL_ACCESS would deny even them. */
        status = FltBuildDefaultSecurityDescriptor(&defaultDescriptor, FLT_PORT_ALL_ACCESS);
        if (!NT_SUCCESS(status)) {
            goto Exit;
        }
    }

    InitializeObjectAttributes(&attributes, &name, OBJ_KERNEL_HANDLE | OBJ_CASE_INSENSITIVE, NULL,
                               (defaultDescriptor != NULL) ? defaultDescriptor : Downlink.Settings.PortSecurity);
    status = FltCreateCommunicationPort(Downlink.Filter, &Downlink.ServerPort, &attributes, NULL, DownlinkConnectNotify,
                                        DownlinkDisconnectNotify, NULL, (LONG)Downlink.ConnectionCount);
    if (defaultDescriptor != NULL) {
        FltFreeSecurityDescriptor(defaultDescriptor);
    }

Exit:
    return status;
}

/* Closes both ends: first the door, then every connection that is inside. Must precede FltUnregisterFilter. */
_Use_decl_annotations_ VOID DownlinkClosePort(VOID)
{
    PAGED_CODE();

    FltCloseCommunicationPort(Downlink.ServerPort);
    Downlink.ServerPort = NULL;
    DownlinkEndConnections();
}

/* Runs in the client's process. On failure the Filter Manager disposes of the client port; nothing may be left here. */
static _Use_decl_annotations_ NTSTATUS FLTAPI DownlinkConnectNotify(PFLT_PORT ClientPort, PVOID ServerPortCookie,
                                                                    PVOID ConnectionContext, ULONG SizeOfContext,
                                                                    PVOID *ConnectionPortCookie)
{
    NTSTATUS status;
    DOWNLINK_CONNECT connect;
    UNICODE_STRING pathPrefix;
    ULONG_PTR id = 0;

    UNREFERENCED_PARAMETER(ServerPortCookie);
    PAGED_CODE();

    *ConnectionPortCookie = NULL;

    status = DownlinkCheckContext(ConnectionContext, SizeOfContext, &connect, &pathPrefix);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    status = DownlinkConnectionBegin(ClientPort, &connect, &pathPrefix, &id);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }
    *ConnectionPortCookie = (PVOID)id;

Exit:
    DownlinkDebug(DOWNLINK_DEBUG_STATE, "process %u connects: number %Iu, status 0x%08X\n",
                  HandleToULong(PsGetCurrentProcessId()), id, (ULONG)status);
    return status;
}

/*
 * The client closed its last handle, or the filter is being unloaded. After an unload has ended the connection this
 * may come or not come: the number is then no longer known, and there is nothing to do.
 */
static _Use_decl_annotations_ VOID FLTAPI DownlinkDisconnectNotify(PVOID ConnectionCookie)
{
    PAGED_CODE();

    DownlinkConnectionEnd((ULONG_PTR)ConnectionCookie, DownlinkReasonHandleClosed);
}

static BOOLEAN DownlinkIsWithin(_In_ ULONG Value, _In_ ULONG Minimum, _In_ ULONG Maximum)
{
    return (Value >= Minimum) && (Value <= Maximum);
}

/*
 * Checks a context and copies it: after this nobody reads the caller's buffer, except the prefix, which stays there
 * and is copied when the connection is made.
 */
static _Use_decl_annotations_ NTSTATUS DownlinkCheckContext(const VOID *Context, ULONG SizeOfContext,
                                                            DOWNLINK_CONNECT *Connect, PUNICODE_STRING PathPrefix)
{
    NTSTATUS status = STATUS_INVALID_PARAMETER;

    PAGED_CODE();

    RtlZeroMemory(Connect, sizeof(*Connect));
    RtlZeroMemory(PathPrefix, sizeof(*PathPrefix));

    if ((Context == NULL) || (SizeOfContext < sizeof(*Connect))) {
        goto Exit;
    }
    RtlCopyMemory(Connect, Context, sizeof(*Connect));

    if ((Connect->Magic != DOWNLINK_CONNECT_MAGIC) || (Connect->MinimumVersion > Connect->MaximumVersion)) {
        goto Exit;
    }

    /* The version comes before everything that a later version may define otherwise. */
    if (!DownlinkIsWithin(DOWNLINK_PROTOCOL_VERSION, Connect->MinimumVersion, Connect->MaximumVersion)) {
        status = STATUS_REVISION_MISMATCH;
        goto Exit;
    }

    if ((Connect->Size != SizeOfContext) ||
        ((ULONG)Connect->PathPrefixLength + (ULONG)sizeof(*Connect) != SizeOfContext) ||
        ((Connect->PathPrefixLength % sizeof(WCHAR)) != 0) || ((Connect->EventMask & ~DOWNLINK_MASK_ALL) != 0) ||
        ((Connect->Flags & ~DOWNLINK_CONNECT_VALID_FLAGS) != 0)) {
        goto Exit;
    }

    if (Connect->QueueBytes == 0) {
        Connect->QueueBytes = DOWNLINK_QUEUE_BYTES_DEFAULT;
    }
    if (Connect->MessageBytes == 0) {
        Connect->MessageBytes = DOWNLINK_MESSAGE_BYTES_DEFAULT;
    }
    if (!DownlinkIsWithin(Connect->QueueBytes, DOWNLINK_QUEUE_BYTES_MINIMUM, DOWNLINK_QUEUE_BYTES_MAXIMUM) ||
        !DownlinkIsWithin(Connect->MessageBytes, DOWNLINK_MESSAGE_BYTES_MINIMUM, DOWNLINK_MESSAGE_BYTES_MAXIMUM) ||
        ((Connect->StatisticsIntervalMs != 0) &&
         !DownlinkIsWithin(Connect->StatisticsIntervalMs, DOWNLINK_STATISTICS_INTERVAL_MINIMUM,
                           DOWNLINK_STATISTICS_INTERVAL_MAXIMUM))) {
        goto Exit;
    }

    PathPrefix->Buffer = (PWCH)((ULONG_PTR)Context + sizeof(*Connect));
    PathPrefix->Length = Connect->PathPrefixLength;
    PathPrefix->MaximumLength = Connect->PathPrefixLength;
    status = STATUS_SUCCESS;

Exit:
    return status;
}
