/*
 * The thread of one connection: takes records from the queue, packs them into a message, sends it, again and again.
 *
 * Only this thread ever waits for user mode. A client that stops reading costs this thread and its queue, no more.
 */
#include "downlink.h"

/* A message that is not fetched within this time is offered again. */
#define DOWNLINK_SEND_TIMEOUT (1000 * DOWNLINK_MILLISECOND)

/* Pause before a send is repeated that failed for want of memory. */
#define DOWNLINK_SEND_PAUSE (20 * DOWNLINK_MILLISECOND)

/*
 * Offers one message until the client has it or the connection has ended. STATUS_TIMEOUT is a success code and means
 * that nobody fetched the message.
 */
static NTSTATUS DownlinkSend(_Inout_ PDOWNLINK_CONNECTION Connection, _In_reads_bytes_(Length) PUCHAR Message,
                             _In_ ULONG Length)
{
    NTSTATUS status;
    LARGE_INTEGER timeout;
    LARGE_INTEGER pause;

    pause.QuadPart = -DOWNLINK_SEND_PAUSE;
    for (;;) {
        timeout.QuadPart = -DOWNLINK_SEND_TIMEOUT;
        status = FltSendMessage(Downlink.Filter, &Connection->ClientPort, Message, Length, NULL, NULL, &timeout);
        DownlinkDebug(DOWNLINK_DEBUG_MESSAGE, "connection %Iu: %u bytes, status 0x%08X\n", Connection->Id, Length,
                      (ULONG)status);
        if ((status == STATUS_SUCCESS) || (status == STATUS_PORT_DISCONNECTED) ||
            (status == STATUS_THREAD_IS_TERMINATING)) {
            break;
        }
        if (Connection->Queue.Closed) {
            status = STATUS_PORT_DISCONNECTED;
            break;
        }
        if (status != STATUS_TIMEOUT) {
            DownlinkDebug(DOWNLINK_DEBUG_ERROR, "connection %Iu cannot send, status 0x%08X\n", Connection->Id,
                          (ULONG)status);
            KeDelayExecutionThread(KernelMode, FALSE, &pause);
        }
    }
    return status;
}

/*
 * The buffer for the next message: the connection's own, or, when the record at the head is longer, one for this
 * message only. Without memory for that the own buffer has to do, and the record's paths are cut.
 */
static PUCHAR DownlinkChooseBuffer(_In_ const DOWNLINK_CONNECTION *Connection, _In_ ULONG HeadBytes,
                                   _Out_ PULONG BufferBytes)
{
    PUCHAR buffer = NULL;
    ULONG needed = HeadBytes + (ULONG)sizeof(DOWNLINK_MESSAGE);

    if (needed > Connection->MessageBufferBytes) {
        buffer = ExAllocatePool2(POOL_FLAG_NON_PAGED, needed, DOWNLINK_TAG_MESSAGE);
        *BufferBytes = needed;
    }
    if (buffer == NULL) {
        buffer = Connection->MessageBuffer;
        *BufferBytes = Connection->MessageBufferBytes;
    }
    return buffer;
}

/* Takes one message out of the queue and sends it; without a ready record there is nothing to do. */
static NTSTATUS DownlinkSendNext(_Inout_ PDOWNLINK_CONNECTION Connection, _In_ ULONG HeadBytes)
{
    NTSTATUS status = STATUS_SUCCESS;
    PDOWNLINK_QUEUE queue = &Connection->Queue;
    ULONG bufferBytes;
    ULONG recordCount;
    ULONG length;
    PUCHAR buffer = DownlinkChooseBuffer(Connection, HeadBytes, &bufferBytes);

    length = DownlinkQueueTake(queue, buffer, bufferBytes, &recordCount);
    if (length != 0) {
        status = DownlinkSend(Connection, buffer, length);
        if (status == STATUS_SUCCESS) {
            queue->Sent += recordCount;
            queue->Messages++;
            queue->Bytes += length;
        }
    }
    if (buffer != Connection->MessageBuffer) {
        ExFreePoolWithTag(buffer, DOWNLINK_TAG_MESSAGE);
    }
    return status;
}

/*
 * How long the worker may sleep before the next statistics record is due, appending one if it is due now. A clock that
 * was set does not matter for longer than one interval.
 */
static PLARGE_INTEGER DownlinkKeepStatistics(_Inout_ PDOWNLINK_CONNECTION Connection, _Out_ PLARGE_INTEGER Timeout)
{
    DOWNLINK_EVENT event;
    LONGLONG left;

    Timeout->QuadPart = 0;
    if (Connection->StatisticsInterval == 0) {
        return NULL;
    }

    RtlZeroMemory(&event, sizeof(event));
    KeQuerySystemTimePrecise(&event.Time);
    left = Connection->StatisticsDue - event.Time.QuadPart;
    if ((left <= 0) || (left > Connection->StatisticsInterval)) {
        event.Kind = DownlinkStatistics;
        event.ThreadId = HandleToULong(PsGetCurrentThreadId());
        event.ProcessId = HandleToULong(PsGetCurrentProcessId());
        DownlinkQueueAppendStatistics(&Connection->Queue, &event);
        Connection->StatisticsDue = event.Time.QuadPart + Connection->StatisticsInterval;
        left = Connection->StatisticsInterval;
    }
    Timeout->QuadPart = -left;
    return Timeout;
}

_Use_decl_annotations_ VOID NTAPI DownlinkWorker(PVOID StartContext)
{
    PDOWNLINK_CONNECTION connection = StartContext;
    NTSTATUS status = STATUS_SUCCESS;
    LARGE_INTEGER now;
    LARGE_INTEGER timeout;
    ULONG headBytes;

    KeQuerySystemTimePrecise(&now);
    connection->StatisticsDue = now.QuadPart + connection->StatisticsInterval;

    while (NT_SUCCESS(status) &&
           DownlinkQueueWait(&connection->Queue, DownlinkKeepStatistics(connection, &timeout), &headBytes)) {
        status = DownlinkSendNext(connection, headBytes);
    }

    if (!connection->Queue.Closed && (status != STATUS_PORT_DISCONNECTED)) {
        /* Nobody will send any more: the client is to learn of it instead of waiting for ever. */
        DownlinkDebug(DOWNLINK_DEBUG_ERROR, "connection %Iu is given up, status 0x%08X\n", connection->Id,
                      (ULONG)status);
        InterlockedExchange(&connection->EventMask, 0);
        FltCloseClientPort(Downlink.Filter, &connection->ClientPort);
    }
    PsTerminateSystemThread(STATUS_SUCCESS);
}
