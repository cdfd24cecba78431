/*
 * The queue of one connection, as its worker sees it: waiting for records and packing them into messages.
 *
 * The worker takes ready records in order; it waits for a record at the head that is still being filled.
 */
#include "downlink.h"

/* Bytes of the oldest record, 0 if none is ready. With drop-oldest another may have its place a moment later. */
static ULONG DownlinkQueuePeek(_Inout_ PDOWNLINK_QUEUE Queue)
{
    const DOWNLINK_RECORD *record;
    ULONG bytes = 0;
    KIRQL irql;

    KeAcquireSpinLock(&Queue->Lock, &irql);
    record = DownlinkQueueOldest(Queue);
    if (record != NULL) {
        bytes = record->Size;
    }
    KeReleaseSpinLock(&Queue->Lock, irql);
    return bytes;
}

/*
 * Called with the lock held: how many of the ready records at the head lie in a row and have room in so many bytes.
 * A row ends where the ring starts over, at a record that is being filled, or after DOWNLINK_COPY_BYTES.
 */
static ULONG DownlinkQueueRow(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Room, _In_ ULONG MaximumCount,
                              _Out_ PULONG Bytes)
{
    ULONG count = 0;
    ULONG end;

    *Bytes = 0;
    if (DownlinkQueueOldest(Queue) != NULL) {
        end = Queue->Head + min(Queue->Used, Queue->Capacity - Queue->Head);
        while ((Queue->Head + *Bytes < end) && (*Bytes < DOWNLINK_COPY_BYTES) && (count < MaximumCount)) {
            ULONG size = DownlinkRingSize(Queue, Queue->Head + *Bytes);

            if (((size & (DOWNLINK_RING_FILLING | DOWNLINK_RING_PADDING)) != 0) || (size > Room - *Bytes)) {
                break;
            }
            *Bytes += size;
            count++;
        }
    }
    return count;
}

/* Called with the lock held: takes the oldest record, whose paths do not fit; what is cut off is announced. */
static ULONG DownlinkQueueTakeCut(_Inout_ PDOWNLINK_QUEUE Queue, _Out_writes_bytes_(Room) PUCHAR Target,
                                  _In_ ULONG Room)
{
    const DOWNLINK_RECORD *source = DownlinkQueueOldest(Queue);
    DOWNLINK_RECORD *record = (DOWNLINK_RECORD *)Target;
    ULONG size = Room & ~7UL;

    if (source == NULL) {
        return 0;
    }
    RtlCopyMemory(Target, source, size);
    record->Size = size;
    record->Flags |= DOWNLINK_RECORD_PATH_TRUNCATED;
    record->PathLength = (USHORT)min(record->PathLength, size - (ULONG)sizeof(*record));
    record->SecondPathLength =
        (USHORT)min(record->SecondPathLength, size - (ULONG)sizeof(*record) - record->PathLength);
    record->VolumeLength = min(record->VolumeLength, record->PathLength);
    DownlinkQueueAdvance(Queue, source->Size);
    Queue->Pending--;
    return size;
}

/* Called with the lock held: hands the drops over to the message, so that a gap is told with what follows it. */
static VOID DownlinkQueueTakeDrops(_Inout_ PDOWNLINK_QUEUE Queue, _Inout_ DOWNLINK_MESSAGE *Message)
{
    if (Queue->DroppedCount != 0) {
        Message->DroppedCount += Queue->DroppedCount;
        Message->FirstDropped =
            (Message->FirstDropped == 0) ? Queue->FirstDropped : min(Message->FirstDropped, Queue->FirstDropped);
        Message->LastDropped = max(Message->LastDropped, Queue->LastDropped);
        Queue->DroppedCount = 0;
        Queue->FirstDropped = 0;
        Queue->LastDropped = 0;
    }
}

/*
 * Packs ready records into a message and returns its length, 0 if no record is ready. Drops are taken over under the
 * same lock as the records, so that a gap before a record is always announced with it or earlier.
 */
_Use_decl_annotations_ ULONG DownlinkQueueTake(PDOWNLINK_QUEUE Queue, PUCHAR Buffer, ULONG BufferBytes,
                                               PULONG RecordCount)
{
    DOWNLINK_MESSAGE message = {0};
    ULONG length = sizeof(message);
    BOOLEAN more;
    ULONG count;
    ULONG bytes;
    KIRQL irql;

    do {
        KeAcquireSpinLock(&Queue->Lock, &irql);
        count = DownlinkQueueRow(Queue, BufferBytes - length, MAXUSHORT - message.RecordCount, &bytes);
        if (count != 0) {
            RtlCopyMemory(Buffer + length, Queue->Ring + Queue->Head, bytes);
            DownlinkQueueAdvance(Queue, bytes);
            Queue->Pending -= count;
        } else if (message.RecordCount == 0) {
            /* None ready, or one that does not fit into an empty message. */
            bytes = DownlinkQueueTakeCut(Queue, Buffer + length, BufferBytes - length);
            message.RecordCount = (bytes != 0) ? 1 : 0;
        }
        message.RecordCount = (USHORT)(message.RecordCount + count);
        if (message.RecordCount != 0) {
            DownlinkQueueTakeDrops(Queue, &message);
        }
        more = (count != 0) && (Queue->Used != 0);
        KeReleaseSpinLock(&Queue->Lock, irql);
        length += bytes;
    } while (more);

    *RecordCount = message.RecordCount;
    if (message.RecordCount == 0) {
        length = 0;
    } else {
        message.Size = length;
        message.Version = DOWNLINK_PROTOCOL_VERSION;
        *(DOWNLINK_MESSAGE *)Buffer = message;
    }
    return length;
}

/*
 * For the worker: waits until a record is ready, the queue is closed or the time is over. FALSE when it is closed; else
 * HeadBytes is the size of the oldest record, 0 if none is ready.
 */
_Use_decl_annotations_ BOOLEAN DownlinkQueueWait(PDOWNLINK_QUEUE Queue, PLARGE_INTEGER Timeout, PULONG HeadBytes)
{
    NTSTATUS status = STATUS_SUCCESS;

    *HeadBytes = 0;
    while (!Queue->Closed && (status != STATUS_TIMEOUT)) {
        /* First say that the worker is going to sleep, then look: whoever is not seen now sees the flag. */
        InterlockedExchange(&Queue->Idle, 1);
        *HeadBytes = DownlinkQueuePeek(Queue);
        if (*HeadBytes != 0) {
            break;
        }
        status = KeWaitForSingleObject(&Queue->Wake, Executive, KernelMode, FALSE, Timeout);
    }
    InterlockedExchange(&Queue->Idle, 0);
    return !Queue->Closed;
}

_Use_decl_annotations_ VOID DownlinkQueueClose(PDOWNLINK_QUEUE Queue)
{
    Queue->Closed = TRUE;
    KeSetEvent(&Queue->Wake, IO_NO_INCREMENT, FALSE);
}
