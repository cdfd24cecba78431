/*
 * A connection's life: made in the connect callback, used by producers under rundown protection and by its worker,
 * ended exactly once, by the disconnect callback or by the unload, whichever comes first.
 */
#include "downlink.h"

static VOID DownlinkConnectionRelease(_Inout_ PDOWNLINK_CONNECTION Connection);
static VOID DownlinkConnectionTearDown(_Inout_ PDOWNLINK_CONNECTION Connection, _In_ DOWNLINK_REASON Reason);
static VOID DownlinkFillLifecycleEvent(_Out_ PDOWNLINK_EVENT Event, _In_ USHORT Kind,
                                       _In_ const DOWNLINK_CONNECTION *Connection, _In_ ULONG Detail);
static VOID DownlinkUpdateInterest(VOID);

#pragma alloc_text(INIT, DownlinkInitializeConnections)
#pragma alloc_text(PAGE, DownlinkFreeConnections)

_Use_decl_annotations_ NTSTATUS DownlinkInitializeConnections(VOID)
{
    NTSTATUS status = STATUS_SUCCESS;
    ULONG index;

    ExInitializeFastMutex(&Downlink.ConnectionLock);
    Downlink.Connections =
        ExAllocatePool2(POOL_FLAG_NON_PAGED, Downlink.Settings.MaximumConnections * sizeof(DOWNLINK_CONNECTION),
                        DOWNLINK_TAG_CONNECTION);
    if (Downlink.Connections == NULL) {
        status = STATUS_INSUFFICIENT_RESOURCES;
        goto Exit;
    }
    Downlink.ConnectionCount = Downlink.Settings.MaximumConnections;
    for (index = 0; index < Downlink.ConnectionCount; index++) {
        PDOWNLINK_CONNECTION connection = &Downlink.Connections[index];

        KeInitializeEvent(&connection->Ended, NotificationEvent, TRUE);
        /* A free connection is always run down, so that taking one is the same the first time and later. */
        ExInitializeRundownProtection(&connection->Users);
        ExWaitForRundownProtectionRelease(&connection->Users);
    }

Exit:
    return status;
}

/* For a filter that is no longer registered: nobody can reach a connection any more. */
_Use_decl_annotations_ VOID DownlinkFreeConnections(VOID)
{
    PAGED_CODE();

    Downlink.ConnectionCount = 0;
    ExFreePoolWithTag(Downlink.Connections, DOWNLINK_TAG_CONNECTION);
    Downlink.Connections = NULL;
}

/* Takes a free connection and the memory that it will need from the budget. */
static NTSTATUS DownlinkConnectionTake(_In_ SIZE_T Charge, _Outptr_ PDOWNLINK_CONNECTION *Connection)
{
    NTSTATUS status = STATUS_CONNECTION_COUNT_LIMIT;
    ULONG index;

    *Connection = NULL;
    ExAcquireFastMutex(&Downlink.ConnectionLock);
    for (index = 0; index < Downlink.ConnectionCount; index++) {
        PDOWNLINK_CONNECTION connection = &Downlink.Connections[index];

        if (connection->State == DownlinkConnectionFree) {
            status = STATUS_SUCCESS;
            *Connection = connection;
            break;
        }
    }
    if (Downlink.Unloading) {
        status = STATUS_FLT_DELETING_OBJECT;
    } else if (NT_SUCCESS(status) && (Charge > Downlink.Settings.MemoryBudget - Downlink.MemoryUsed)) {
        status = STATUS_INSUFFICIENT_RESOURCES;
    }
    if (NT_SUCCESS(status)) {
        (*Connection)->State = DownlinkConnectionStarting;
        (*Connection)->Id = ++Downlink.LatestId;
        (*Connection)->Charge = Charge;
        Downlink.MemoryUsed += Charge;
        KeClearEvent(&(*Connection)->Ended);
    }
    ExReleaseFastMutex(&Downlink.ConnectionLock);
    return status;
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

    *Id = 0;
    status = DownlinkConnectionTake(DownlinkConnectionCharge(Connect, PathPrefix), &connection);
    if (!NT_SUCCESS(status)) {
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
    for (index = 0; index < Downlink.ConnectionCount; index++) {
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

    for (index = 0; index < Downlink.ConnectionCount; index++) {
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

    /* The protection first: the connect callback holds it until it has set the mask. */
    ExWaitForRundownProtectionRelease(&Connection->Users);
    InterlockedExchange(&Connection->EventMask, 0);
    DownlinkUpdateInterest();

    /* Without effect if the worker has done so. */
    FltCloseClientPort(Downlink.Filter, &Connection->ClientPort);
    DownlinkConnectionStopWorker(Connection);
    DownlinkDebug(DOWNLINK_DEBUG_STATE, "connection %Iu ends: reason %u, %I64u records sent, %I64u dropped\n",
                  Connection->Id, (ULONG)Reason, Connection->Queue.Sent, Connection->Queue.DroppedTotal);

    DownlinkFillLifecycleEvent(&event, DownlinkClientDisconnected, Connection, (ULONG)Reason);
    DownlinkConnectionRelease(Connection);
    DownlinkPublish(&event);
}

/* Frees what the connection holds and gives it back. */
static VOID DownlinkConnectionRelease(PDOWNLINK_CONNECTION Connection)
{
    DownlinkConnectionFreeResources(Connection);

    ExAcquireFastMutex(&Downlink.ConnectionLock);
    Downlink.MemoryUsed -= Connection->Charge;
    Connection->Charge = 0;
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
    for (index = 0; index < Downlink.ConnectionCount; index++) {
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
