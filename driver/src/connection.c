/*
 * A connection's life: made in the connect callback, used by producers under rundown protection and by its worker,
 * ended exactly once, by the disconnect callback or by the unload, whichever comes first.
 */
#include "downlink.h"

static NTSTATUS DownlinkConnectionAllocate(_Inout_ PDOWNLINK_CONNECTION Connection,
                                           _In_ const DOWNLINK_CONNECT *Connect, _In_ PCUNICODE_STRING PathPrefix);
static NTSTATUS DownlinkConnectionStartWorker(_Inout_ PDOWNLINK_CONNECTION Connection);
static VOID DownlinkConnectionStopWorker(_Inout_ PDOWNLINK_CONNECTION Connection);
static VOID DownlinkConnectionRelease(_Inout_ PDOWNLINK_CONNECTION Connection);
static VOID DownlinkConnectionTearDown(_Inout_ PDOWNLINK_CONNECTION Connection, _In_ DOWNLINK_REASON Reason);
static VOID DownlinkFillLifecycleEvent(_Out_ PDOWNLINK_EVENT Event, _In_ USHORT Kind,
                                       _In_ const DOWNLINK_CONNECTION *Connection, _In_ ULONG Detail);
static VOID DownlinkUpdateInterest(VOID);

#pragma alloc_text(INIT, DownlinkInitializeConnections)

_Use_decl_annotations_ VOID DownlinkInitializeConnections(VOID)
{
    ULONG index;

    ExInitializeFastMutex(&Downlink.ConnectionLock);
    for (index = 0; index < DOWNLINK_CONNECTIONS_MAXIMUM; index++) {
        PDOWNLINK_CONNECTION connection = &Downlink.Connections[index];

        KeInitializeEvent(&connection->Ended, NotificationEvent, TRUE);
        /* A free connection is always run down, so that taking one is the same the first time and later. */
        ExInitializeRundownProtection(&connection->Users);
        ExWaitForRundownProtectionRelease(&connection->Users);
    }
}

/* Takes a free connection; NULL if there is none or the driver is on its way out (then *Unloading). */
static PDOWNLINK_CONNECTION DownlinkConnectionTake(_Out_ PBOOLEAN Unloading)
{
    PDOWNLINK_CONNECTION found = NULL;
    ULONG index;

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    *Unloading = Downlink.Unloading;
    for (index = 0; (index < DOWNLINK_CONNECTIONS_MAXIMUM) && !Downlink.Unloading; index++) {
        if (Downlink.Connections[index].State == DownlinkConnectionFree) {
            found = &Downlink.Connections[index];
            found->State = DownlinkConnectionStarting;
            found->Id = ++Downlink.LatestId;
            KeClearEvent(&found->Ended);
            break;
        }
    }
    ExReleaseFastMutex(&Downlink.ConnectionLock);
    return found;
}

/* Makes a connection that is starting active, unless the unload has begun in the meantime. */
static NTSTATUS DownlinkConnectionActivate(_Inout_ PDOWNLINK_CONNECTION Connection, _Out_ PULONG ActiveCount)
{
    NTSTATUS status = STATUS_FLT_DELETING_OBJECT;

    *ActiveCount = 0;
    ExAcquireFastMutex(&Downlink.ConnectionLock);
    if (!Downlink.Unloading) {
        Connection->State = DownlinkConnectionActive;
        *ActiveCount = ++Downlink.ActiveCount;
        status = STATUS_SUCCESS;
    }
    ExReleaseFastMutex(&Downlink.ConnectionLock);
    return status;
}

_Use_decl_annotations_ NTSTATUS DownlinkConnectionBegin(PFLT_PORT ClientPort, const DOWNLINK_CONNECT *Connect,
                                                        PCUNICODE_STRING PathPrefix, PULONG_PTR Id)
{
    NTSTATUS status;
    PDOWNLINK_CONNECTION connection;
    DOWNLINK_EVENT event;
    ULONG activeCount;
    BOOLEAN unloading;

    *Id = 0;
    connection = DownlinkConnectionTake(&unloading);
    if (connection == NULL) {
        status = unloading ? STATUS_FLT_DELETING_OBJECT : STATUS_CONNECTION_COUNT_LIMIT;
        goto Exit;
    }

    connection->ClientPort = ClientPort;
    connection->ProcessId = HandleToULong(PsGetCurrentProcessId());
    connection->Flags = Connect->Flags;

    status = DownlinkConnectionAllocate(connection, Connect, PathPrefix);
    if (!NT_SUCCESS(status)) {
        goto Release;
    }

    status = DownlinkConnectionStartWorker(connection);
    if (!NT_SUCCESS(status)) {
        goto Release;
    }

    /*
     * From here on an unload may end the connection at any moment, also while this function runs on: it waits for
     * the rundown protection that is held until the end of it.
     */
    ExReInitializeRundownProtection(&connection->Users);
    (VOID)ExAcquireRundownProtection(&connection->Users);
    *Id = connection->Id;
    status = DownlinkConnectionActivate(connection, &activeCount);
    if (!NT_SUCCESS(status)) {
        ExReleaseRundownProtection(&connection->Users);
        ExWaitForRundownProtectionRelease(&connection->Users);
        goto StopWorker;
    }

    /* An observer's own arrival is its first record: the queue is filled before producers can see the mask. */
    DownlinkFillLifecycleEvent(&event, DownlinkClientConnected, connection, activeCount);
    if ((Connect->EventMask & DOWNLINK_MASK(DownlinkClientConnected)) != 0) {
        DownlinkQueueAppend(&connection->Queue, &event);
    }
    DownlinkPublish(&event);
    InterlockedExchange(&connection->EventMask, (LONG)Connect->EventMask);
    DownlinkUpdateInterest();
    ExReleaseRundownProtection(&connection->Users);
    goto Exit;

StopWorker:
    DownlinkConnectionStopWorker(connection);
Release:
    /* The Filter Manager disposes of the client port of a refused connection: it is not closed here. */
    connection->ClientPort = NULL;
    DownlinkConnectionRelease(connection);
    *Id = 0;
Exit:
    return status;
}

_Use_decl_annotations_ VOID DownlinkConnectionEnd(ULONG_PTR Id, DOWNLINK_REASON Reason)
{
    PDOWNLINK_CONNECTION connection = NULL;
    ULONG index;

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    for (index = 0; index < DOWNLINK_CONNECTIONS_MAXIMUM; index++) {
        if ((Downlink.Connections[index].Id == Id) && (Downlink.Connections[index].State == DownlinkConnectionActive)) {
            connection = &Downlink.Connections[index];
            connection->State = DownlinkConnectionEnding;
            Downlink.ActiveCount--;
            break;
        }
    }
    ExReleaseFastMutex(&Downlink.ConnectionLock);

    if (connection != NULL) {
        DownlinkConnectionTearDown(connection, Reason);
    }
}

/* Ends all connections and waits for those that are being made or ended by somebody else. */
_Use_decl_annotations_ VOID DownlinkEndConnections(VOID)
{
    ULONG index;

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    Downlink.Unloading = TRUE;
    ExReleaseFastMutex(&Downlink.ConnectionLock);

    for (index = 0; index < DOWNLINK_CONNECTIONS_MAXIMUM; index++) {
        PDOWNLINK_CONNECTION connection = &Downlink.Connections[index];
        ULONG_PTR id;

        ExAcquireFastMutex(&Downlink.ConnectionLock);
        id = connection->Id;
        ExReleaseFastMutex(&Downlink.ConnectionLock);

        DownlinkConnectionEnd(id, DownlinkReasonDriver);
        (VOID)KeWaitForSingleObject(&connection->Ended, Executive, KernelMode, FALSE, NULL);
    }
}

/*
 * Stops producers, ends the port, joins the worker, frees. The order matters: once the protection is run down nobody
 * but the worker reaches the queue, and closing the port is what wakes a worker that waits in FltSendMessage.
 */
static VOID DownlinkConnectionTearDown(PDOWNLINK_CONNECTION Connection, DOWNLINK_REASON Reason)
{
    DOWNLINK_EVENT event;

    InterlockedExchange(&Connection->EventMask, 0);
    ExWaitForRundownProtectionRelease(&Connection->Users);
    /* Once more: the connect callback may have set the mask after it was cleared and before it let go. */
    InterlockedExchange(&Connection->EventMask, 0);
    DownlinkUpdateInterest();

    FltCloseClientPort(Downlink.Filter, &Connection->ClientPort);
    DownlinkConnectionStopWorker(Connection);

    DownlinkFillLifecycleEvent(&event, DownlinkClientDisconnected, Connection, (ULONG)Reason);
    DownlinkConnectionRelease(Connection);
    DownlinkPublish(&event);
}

static NTSTATUS DownlinkConnectionAllocate(PDOWNLINK_CONNECTION Connection, const DOWNLINK_CONNECT *Connect,
                                           PCUNICODE_STRING PathPrefix)
{
    NTSTATUS status;

    status = DownlinkQueueInitialize(&Connection->Queue, Connect->QueueBytes, Connect->MessageBytes,
                                     (Connect->Flags & DOWNLINK_CONNECT_DROP_OLDEST) != 0);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    Connection->MessageBufferBytes = min(Connect->MessageBytes, DOWNLINK_MESSAGE_BUFFER_BYTES);
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

static NTSTATUS DownlinkConnectionStartWorker(PDOWNLINK_CONNECTION Connection)
{
    NTSTATUS status;
    OBJECT_ATTRIBUTES attributes;
    HANDLE thread = NULL;

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

static VOID DownlinkConnectionStopWorker(PDOWNLINK_CONNECTION Connection)
{
    DownlinkQueueClose(&Connection->Queue);
    (VOID)KeWaitForSingleObject(Connection->Worker, Executive, KernelMode, FALSE, NULL);
    ObDereferenceObject(Connection->Worker);
    Connection->Worker = NULL;
    FltObjectDereference(Downlink.Filter);
}

/* Frees what the connection holds and gives it back. */
static VOID DownlinkConnectionRelease(PDOWNLINK_CONNECTION Connection)
{
    if (Connection->PathPrefix.Buffer != NULL) {
        ExFreePoolWithTag(Connection->PathPrefix.Buffer, DOWNLINK_TAG_PREFIX);
        RtlZeroMemory(&Connection->PathPrefix, sizeof(Connection->PathPrefix));
    }
    if (Connection->MessageBuffer != NULL) {
        ExFreePoolWithTag(Connection->MessageBuffer, DOWNLINK_TAG_MESSAGE);
        Connection->MessageBuffer = NULL;
    }
    DownlinkQueueFree(&Connection->Queue);

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    Connection->Id = 0;
    Connection->State = DownlinkConnectionFree;
    ExReleaseFastMutex(&Downlink.ConnectionLock);
    KeSetEvent(&Connection->Ended, IO_NO_INCREMENT, FALSE);
}

static VOID DownlinkFillLifecycleEvent(PDOWNLINK_EVENT Event, USHORT Kind, const DOWNLINK_CONNECTION *Connection,
                                       ULONG Detail)
{
    RtlZeroMemory(Event, sizeof(*Event));
    Event->Kind = Kind;
    Event->Detail = Detail;
    Event->Value = Connection->Id;
    Event->ProcessId = Connection->ProcessId;
    Event->ThreadId = HandleToULong(PsGetCurrentThreadId());
    KeQuerySystemTimePrecise(&Event->Time);
}

/* The unions of all masks. Computed anew each time, so that two changes at once cannot leave a bit behind. */
static VOID DownlinkUpdateInterest(VOID)
{
    LONG interest = 0;
    LONG failureInterest = 0;
    ULONG index;

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    for (index = 0; index < DOWNLINK_CONNECTIONS_MAXIMUM; index++) {
        LONG mask = Downlink.Connections[index].EventMask;

        interest |= mask;
        if ((Downlink.Connections[index].Flags & DOWNLINK_CONNECT_FAILED_OPERATIONS) != 0) {
            failureInterest |= mask;
        }
    }
    InterlockedExchange(&Downlink.Interest, interest);
    InterlockedExchange(&Downlink.FailureInterest, failureInterest);
    ExReleaseFastMutex(&Downlink.ConnectionLock);
}
