/*
 * The queue of one connection, as producers see it: a ring of finished records, bounded in bytes and allocated once.
 *
 * A producer reserves its place and its sequence number under the queue's spin lock, then fills the place without any
 * lock (paths lie in paged memory), and last marks it ready. A full ring drops, and counts; producers never wait. A
 * ready record lies in the ring as it goes over the wire. Its first field, Size, carries the state meanwhile.
 */
#include "downlink.h"

#define DOWNLINK_ALIGN(bytes) (((bytes) + 7UL) & ~7UL)

C_ASSERT(sizeof(((DOWNLINK_RECORD *)0)->FileId) == sizeof(DOWNLINK_FILE_ID));
C_ASSERT((sizeof(DOWNLINK_RECORD) + sizeof(DOWNLINK_STATISTICS)) % 8 == 0);

/* A statistics record is never cut: it fits into the smallest message, and into the smallest ring. */
C_ASSERT(sizeof(DOWNLINK_RECORD) + sizeof(DOWNLINK_STATISTICS) <=
         DOWNLINK_MESSAGE_BYTES_MINIMUM - sizeof(DOWNLINK_MESSAGE));

_Use_decl_annotations_ NTSTATUS DownlinkQueueInitialize(PDOWNLINK_QUEUE Queue, ULONG Bytes, ULONG MessageBytes,
                                                        BOOLEAN DropOldest)
{
    NTSTATUS status = STATUS_SUCCESS;

    RtlZeroMemory(Queue, sizeof(*Queue));
    KeInitializeSpinLock(&Queue->Lock);
    KeInitializeEvent(&Queue->Wake, SynchronizationEvent, FALSE);
    Queue->DropOldest = DropOldest;
    Queue->Capacity = Bytes & ~7UL;
    Queue->RecordMaximum = min(Queue->Capacity, MessageBytes - (ULONG)sizeof(DOWNLINK_MESSAGE)) & ~7UL;
    Queue->Ring = ExAllocatePool2(POOL_FLAG_NON_PAGED, Queue->Capacity, DOWNLINK_TAG_QUEUE);
    if (Queue->Ring == NULL) {
        status = STATUS_INSUFFICIENT_RESOURCES;
    }
    return status;
}

_Use_decl_annotations_ VOID DownlinkQueueFree(PDOWNLINK_QUEUE Queue)
{
    if (Queue->Ring != NULL) {
        ExFreePoolWithTag(Queue->Ring, DOWNLINK_TAG_QUEUE);
        Queue->Ring = NULL;
    }
}

/* Called with the lock held. */
static VOID DownlinkQueueCountDrop(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONGLONG Sequence)
{
    Queue->DroppedTotal++;
    Queue->DroppedCount++;
    if ((Queue->FirstDropped == 0) || (Sequence < Queue->FirstDropped)) {
        Queue->FirstDropped = Sequence;
    }
    if (Sequence > Queue->LastDropped) {
        Queue->LastDropped = Sequence;
    }
}

/* Called with the lock held: gives back bytes at the head. */
_Use_decl_annotations_ VOID DownlinkQueueAdvance(PDOWNLINK_QUEUE Queue, ULONG Bytes)
{
    Queue->Head += Bytes;
    if (Queue->Head == Queue->Capacity) {
        Queue->Head = 0;
    }
    Queue->Used -= Bytes;
    if (Queue->Used == 0) {
        Queue->Head = 0;
        Queue->Tail = 0;
    }
}

/* Called with the lock held: the oldest record if it is ready, NULL otherwise. Gives padding back. */
_Use_decl_annotations_ const DOWNLINK_RECORD *DownlinkQueueOldest(PDOWNLINK_QUEUE Queue)
{
    const DOWNLINK_RECORD *record = NULL;
    ULONG size;

    while (Queue->Used != 0) {
        size = DownlinkRingSize(Queue, Queue->Head);
        if ((size & DOWNLINK_RING_PADDING) == 0) {
            if ((size & DOWNLINK_RING_FILLING) == 0) {
                record = (const DOWNLINK_RECORD *)(Queue->Ring + Queue->Head);
            }
            break;
        }
        DownlinkQueueAdvance(Queue, size & ~DOWNLINK_RING_PADDING);
    }
    return record;
}

/* Called with the lock held: a record of that size at the tail, or NULL if there is no room. */
static DOWNLINK_RECORD *DownlinkQueuePlace(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Size)
{
    DOWNLINK_RECORD *record = NULL;
    ULONG room;

    if ((Queue->Used != 0) && (Queue->Tail <= Queue->Head)) {
        room = Queue->Head - Queue->Tail;
    } else {
        room = Queue->Capacity - Queue->Tail;
        if ((Size > room) && (Size <= Queue->Head)) {
            /* Start over at the ring's beginning; what is left at its end becomes padding. */
            *(volatile ULONG *)(Queue->Ring + Queue->Tail) = room | DOWNLINK_RING_PADDING;
            Queue->Used += room;
            Queue->Tail = 0;
            room = Queue->Head;
        }
    }

    if (Size <= room) {
        record = (DOWNLINK_RECORD *)(Queue->Ring + Queue->Tail);
        *(volatile ULONG *)&record->Size = Size | DOWNLINK_RING_FILLING;
        Queue->Used += Size;
        Queue->Tail += Size;
        if (Queue->Tail == Queue->Capacity) {
            Queue->Tail = 0;
        }
    }
    return record;
}

/* Called with the lock held: as DownlinkQueuePlace, but makes room first if the connection wants that. */
static DOWNLINK_RECORD *DownlinkQueueReserve(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Size)
{
    DOWNLINK_RECORD *record = DownlinkQueuePlace(Queue, Size);

    while ((record == NULL) && Queue->DropOldest) {
        const DOWNLINK_RECORD *oldest = DownlinkQueueOldest(Queue);

        if (oldest != NULL) {
            DownlinkQueueCountDrop(Queue, oldest->Sequence);
            Queue->Pending--;
            DownlinkQueueAdvance(Queue, oldest->Size);
        } else if (Queue->Used != 0) {
            /* The oldest record is still being filled by another processor: it cannot be taken from under it. */
            break;
        }
        record = DownlinkQueuePlace(Queue, Size);
    }
    return record;
}

/* Called with the lock held: a sequence number and, unless the record is dropped, a place for it. */
static DOWNLINK_RECORD *DownlinkQueueEnter(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Size, _Out_ PULONGLONG Sequence)
{
    DOWNLINK_RECORD *record;

    *Sequence = ++Queue->Sequence;
    record = DownlinkQueueReserve(Queue, Size);
    if (record != NULL) {
        Queue->Queued++;
        Queue->Pending++;
        Queue->HighWater = max(Queue->HighWater, Queue->Used);
    } else {
        DownlinkQueueCountDrop(Queue, *Sequence);
    }
    return record;
}

/* Shares the bytes that a record has for its paths: each gets what it needs, or half of what there is. */
static VOID DownlinkFitPaths(_In_ ULONG RecordMaximum, _In_ PCDOWNLINK_EVENT Event, _Out_ PUSHORT PathBytes,
                             _Out_ PUSHORT SecondPathBytes)
{
    ULONG available = RecordMaximum - (ULONG)sizeof(DOWNLINK_RECORD);
    ULONG first = Event->Path.Length;
    ULONG second = Event->SecondPath.Length;

    if (first + second > available) {
        ULONG half = available / 2;

        if (first <= half) {
            second = available - first;
        } else if (second <= half) {
            first = available - second;
        } else {
            first = half;
            second = half;
        }
    }
    *PathBytes = (USHORT)(first & ~1UL);
    *SecondPathBytes = (USHORT)(second & ~1UL);
}

/* Fills the head of a reserved record, all of it but Size: nothing old of the ring is ever sent. */
static VOID DownlinkFillHead(_Inout_ DOWNLINK_RECORD *Record, _In_ ULONGLONG Sequence, _In_ PCDOWNLINK_EVENT Event)
{
    Record->Kind = Event->Kind;
    Record->Flags = Event->Flags;
    Record->Sequence = Sequence;
    Record->Time = Event->Time.QuadPart;
    Record->ProcessId = Event->ProcessId;
    Record->ThreadId = Event->ThreadId;
    Record->Status = Event->Status;
    Record->Detail = Event->Detail;
    Record->Value = Event->Value;
    *(DOWNLINK_FILE_ID *)Record->FileId = Event->FileId;
    Record->PathLength = 0;
    Record->SecondPathLength = 0;
    Record->VolumeLength = 0;
    Record->Reserved = 0;
}

static VOID DownlinkFillPaths(_Inout_ DOWNLINK_RECORD *Record, _In_ ULONG Size, _In_ PCDOWNLINK_EVENT Event,
                              _In_ USHORT PathBytes, _In_ USHORT SecondPathBytes)
{
    PUCHAR paths = (PUCHAR)(Record + 1);

    if (Size > sizeof(*Record)) {
        /* The padding is somewhere in the last 8 bytes. */
        *(PULONGLONG)((PUCHAR)Record + Size - sizeof(ULONGLONG)) = 0;
    }
    if ((PathBytes < Event->Path.Length) || (SecondPathBytes < Event->SecondPath.Length)) {
        Record->Flags |= DOWNLINK_RECORD_PATH_TRUNCATED;
    }
    Record->PathLength = PathBytes;
    Record->SecondPathLength = SecondPathBytes;
    Record->VolumeLength = min(Event->VolumeLength, PathBytes);
    if (PathBytes != 0) {
        RtlCopyMemory(paths, Event->Path.Buffer, PathBytes);
    }
    if (SecondPathBytes != 0) {
        RtlCopyMemory(paths + PathBytes, Event->SecondPath.Buffer, SecondPathBytes);
    }
}

/* Makes a filled record visible to the worker, and wakes it if it sleeps. */
static VOID DownlinkQueueFinish(_Inout_ PDOWNLINK_QUEUE Queue, _Inout_ DOWNLINK_RECORD *Record, _In_ ULONG Size)
{
    InterlockedExchange((volatile LONG *)&Record->Size, (LONG)Size);
    if ((Queue->Idle != 0) && (InterlockedExchange(&Queue->Idle, 0) != 0)) {
        KeSetEvent(&Queue->Wake, IO_NO_INCREMENT, FALSE);
    }
}

_Use_decl_annotations_ VOID DownlinkQueueAppend(PDOWNLINK_QUEUE Queue, PCDOWNLINK_EVENT Event)
{
    DOWNLINK_RECORD *record;
    ULONGLONG sequence;
    USHORT pathBytes;
    USHORT secondPathBytes;
    ULONG size;
    KIRQL irql;

    DownlinkFitPaths(Queue->RecordMaximum, Event, &pathBytes, &secondPathBytes);
    size = DOWNLINK_ALIGN((ULONG)sizeof(DOWNLINK_RECORD) + pathBytes + secondPathBytes);

    KeAcquireSpinLock(&Queue->Lock, &irql);
    record = DownlinkQueueEnter(Queue, size, &sequence);
    KeReleaseSpinLock(&Queue->Lock, irql);

    if (record != NULL) {
        DownlinkFillHead(record, sequence, Event);
        DownlinkFillPaths(record, size, Event, pathBytes, secondPathBytes);
        DownlinkQueueFinish(Queue, record, size);
    }
}

/*
 * Appends a record with the queue's counters as they were just before it. Only the worker calls this, between two
 * messages: whatever is neither dropped nor pending then has been fetched.
 */
_Use_decl_annotations_ VOID DownlinkQueueAppendStatistics(PDOWNLINK_QUEUE Queue, PCDOWNLINK_EVENT Event)
{
    const ULONG size = sizeof(DOWNLINK_RECORD) + sizeof(DOWNLINK_STATISTICS);
    DOWNLINK_RECORD *record;
    DOWNLINK_STATISTICS statistics;
    ULONGLONG sequence;
    KIRQL irql;

    KeAcquireSpinLock(&Queue->Lock, &irql);
    record = DownlinkQueueEnter(Queue, size, &sequence);
    statistics.Queued = Queue->Queued - 1;
    statistics.Sent = Queue->Sent;
    statistics.Dropped = Queue->DroppedTotal;
    statistics.Messages = Queue->Messages;
    statistics.Bytes = Queue->Bytes;
    statistics.PendingRecords = Queue->Pending - 1;
    statistics.QueueBytes = Queue->Capacity;
    statistics.UsedBytes = Queue->Used - size;
    statistics.HighWaterBytes = Queue->HighWater;
    KeReleaseSpinLock(&Queue->Lock, irql);

    if (record != NULL) {
        DownlinkFillHead(record, sequence, Event);
        *(DOWNLINK_STATISTICS *)(record + 1) = statistics;
        DownlinkQueueFinish(Queue, record, size);
    }
}
