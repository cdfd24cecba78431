/*
 * The thread of one connection: takes records from the queue, packs them into a message, sends it, again and again.
 *
 * Only this thread ever waits for user mode. A client that stops reading costs this thread and its queue, no more.
 */
#include "downlink.h"

#define DOWNLINK_SECONDS(seconds) ((LONGLONG)(seconds) * 10000000LL)
#define DOWNLINK_MILLISECONDS(milliseconds) ((LONGLONG)(milliseconds) * 10000LL)

/* A message that is not fetched within this time is offered again. */
#define DOWNLINK_SEND_TIMEOUT DOWNLINK_SECONDS(1)

/* Pause before a send is repeated that failed for want of memory. */
#define DOWNLINK_SEND_PAUSE DOWNLINK_MILLISECONDS(20)

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
        if ((status == STATUS_SUCCESS) || (status == STATUS_PORT_DISCONNECTED) ||
            (status == STATUS_THREAD_IS_TERMINATING)) {
            break;
        }
        if (Connection->Queue.Closed) {
            status = STATUS_PORT_DISCONNECTED;
            break;
        }
        if (status != STATUS_TIMEOUT) {
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

_Use_decl_annotations_ VOID NTAPI DownlinkWorker(PVOID StartContext)
{
    PDOWNLINK_CONNECTION connection = StartContext;
    NTSTATUS status = STATUS_SUCCESS;

    while (NT_SUCCESS(status) && DownlinkQueueWait(&connection->Queue)) {
        ULONG bufferBytes;
        ULONG length;
        PUCHAR buffer = DownlinkChooseBuffer(connection, DownlinkQueuePeek(&connection->Queue), &bufferBytes);

        length = DownlinkQueueTake(&connection->Queue, buffer, bufferBytes);
        if (length != 0) {
            status = DownlinkSend(connection, buffer, length);
        }
        if (buffer != connection->MessageBuffer) {
            ExFreePoolWithTag(buffer, DOWNLINK_TAG_MESSAGE);
        }
    }

    PsTerminateSystemThread(STATUS_SUCCESS);
}
