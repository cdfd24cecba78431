/*
 * What a connection owns while it lives: its queue, its message buffer, its prefix and its worker.
 */
#include "downlink.h"

#pragma alloc_text(PAGE, DownlinkConnectionCharge)
#pragma alloc_text(PAGE, DownlinkConnectionAllocate)
#pragma alloc_text(PAGE, DownlinkConnectionFreeResources)
#pragma alloc_text(PAGE, DownlinkConnectionStartWorker)
#pragma alloc_text(PAGE, DownlinkConnectionStopWorker)

static ULONG DownlinkMessageBufferBytes(_In_ const DOWNLINK_CONNECT *Connect)
{
    return min(Connect->MessageBytes, DOWNLINK_MESSAGE_BUFFER_BYTES);
}

/* Bytes of pool that a connection holds from its beginning to its end. */
_Use_decl_annotations_ SIZE_T DownlinkConnectionCharge(const DOWNLINK_CONNECT *Connect, PCUNICODE_STRING PathPrefix)
{
    PAGED_CODE();

    return (SIZE_T)Connect->QueueBytes + DownlinkMessageBufferBytes(Connect) + PathPrefix->Length;
}

/* On failure the caller frees what has been allocated. */
_Use_decl_annotations_ NTSTATUS DownlinkConnectionAllocate(PDOWNLINK_CONNECTION Connection,
                                                           const DOWNLINK_CONNECT *Connect, PCUNICODE_STRING PathPrefix)
{
    NTSTATUS status;

    PAGED_CODE();

    status = DownlinkQueueInitialize(&Connection->Queue, Connect->QueueBytes, Connect->MessageBytes,
                                     (Connect->Flags & DOWNLINK_CONNECT_DROP_OLDEST) != 0);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    Connection->StatisticsInterval = 0;
    if ((Connect->EventMask & DOWNLINK_MASK_STATISTICS) != 0) {
        Connection->StatisticsInterval = Connect->StatisticsIntervalMs * DOWNLINK_MILLISECOND;
    }
    Connection->MessageBufferBytes = DownlinkMessageBufferBytes(Connect);
    Connection->MessageBuffer =
        ExAllocatePool2(POOL_FLAG_NON_PAGED, Connection->MessageBufferBytes, DOWNLINK_TAG_MESSAGE);
    if (Connection->MessageBuffer == NULL) {
        status = STATUS_INSUFFICIENT_RESOURCES;
        goto Exit;
    }

    if (PathPrefix->Length != 0) {
        Connection->PathPrefix.Buffer = ExAllocatePool2(POOL_FLAG_PAGED, PathPrefix->Length, DOWNLINK_TAG_PREFIX);
        if (Connection->PathPrefix.Buffer == NULL) {
            status = STATUS_INSUFFICIENT_RESOURCES;
            goto Exit;
        }
        RtlCopyMemory(Connection->PathPrefix.Buffer, PathPrefix->Buffer, PathPrefix->Length);
        Connection->PathPrefix.Length = PathPrefix->Length;
        Connection->PathPrefix.MaximumLength = PathPrefix->Length;
    }

Exit:
    return status;
}

_Use_decl_annotations_ VOID DownlinkConnectionFreeResources(PDOWNLINK_CONNECTION Connection)
{
    PAGED_CODE();

    if (Connection->PathPrefix.Buffer != NULL) {
        ExFreePoolWithTag(Connection->PathPrefix.Buffer, DOWNLINK_TAG_PREFIX);
        RtlZeroMemory(&Connection->PathPrefix, sizeof(Connection->PathPrefix));
    }
    if (Connection->MessageBuffer != NULL) {
        ExFreePoolWithTag(Connection->MessageBuffer, DOWNLINK_TAG_MESSAGE);
        Connection->MessageBuffer = NULL;
    }
    DownlinkQueueFree(&Connection->Queue);
}

_Use_decl_annotations_ NTSTATUS DownlinkConnectionStartWorker(PDOWNLINK_CONNECTION Connection)
{
    NTSTATUS status;
    OBJECT_ATTRIBUTES attributes;
    HANDLE thread = NULL;

    PAGED_CODE();

    /* The worker's reference on the filter: sends need it, and an unload joins the worker before it could wait. */
    status = FltObjectReference(Downlink.Filter);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    InitializeObjectAttributes(&attributes, NULL, OBJ_KERNEL_HANDLE, NULL, NULL);
    status = PsCreateSystemThread(&thread, THREAD_ALL_ACCESS, &attributes, NULL, NULL, DownlinkWorker, Connection);
    if (!NT_SUCCESS(status)) {
        FltObjectDereference(Downlink.Filter);
        goto Exit;
    }

    status =
        ObReferenceObjectByHandle(thread, SYNCHRONIZE, *PsThreadType, KernelMode, (PVOID *)&Connection->Worker, NULL);
    if (!NT_SUCCESS(status)) {
        /* Cannot happen with a handle that was just made; if it does, the handle serves to join the worker. */
        DownlinkQueueClose(&Connection->Queue);
        (VOID)ZwWaitForSingleObject(thread, FALSE, NULL);
        FltObjectDereference(Downlink.Filter);
    }
    ZwClose(thread);

Exit:
    return status;
}

_Use_decl_annotations_ VOID DownlinkConnectionStopWorker(PDOWNLINK_CONNECTION Connection)
{
    PAGED_CODE();

    DownlinkQueueClose(&Connection->Queue);
    (VOID)KeWaitForSingleObject(Connection->Worker, Executive, KernelMode, FALSE, NULL);
    ObDereferenceObject(Connection->Worker);
    Connection->Worker = NULL;
    FltObjectDereference(Downlink.Filter);
}
