/*
 * The queue of one connection: a ring of finished records, bounded in bytes and allocated once.
 *
 * A producer reserves its place and its sequence number under the queue's spin lock, then fills the place without any
 * lock (paths lie in paged memory), and last marks it ready. The worker takes ready records in order; it waits for a
 * record at the head that is still being filled. Producers never wait for the worker: a full ring drops, and counts.
 */
#include "downlink.h"

typedef enum _DOWNLINK_ENTRY_STATE {
    DownlinkEntryFilling = 0,
    DownlinkEntryReady = 1,
    DownlinkEntryPadding = 2 /* the rest of the ring before it starts over */
} DOWNLINK_ENTRY_STATE;

/* Precedes every record in the ring. */
typedef struct _DOWNLINK_ENTRY {
    ULONG Size; /* with this head, a multiple of 8 */
    volatile LONG State;
} DOWNLINK_ENTRY, *PDOWNLINK_ENTRY;

#define DOWNLINK_ALIGN(bytes) (((bytes) + 7UL) & ~7UL)

static PDOWNLINK_ENTRY DownlinkEntryAt(_In_ const DOWNLINK_QUEUE *Queue, _In_ ULONG Offset)
{
    return (PDOWNLINK_ENTRY)(Queue->Ring + Offset);
}

static DOWNLINK_RECORD *DownlinkRecordOf(_In_ PDOWNLINK_ENTRY Entry)
{
    return (DOWNLINK_RECORD *)(Entry + 1);
}

_Use_decl_annotations_ NTSTATUS DownlinkQueueInitialize(PDOWNLINK_QUEUE Queue, ULONG Bytes, ULONG MessageBytes,
                                                        BOOLEAN DropOldest)
{
    NTSTATUS status = STATUS_SUCCESS;

    RtlZeroMemory(Queue, sizeof(*Queue));
    KeInitializeSpinLock(&Queue->Lock);
    KeInitializeEvent(&Queue->Wake, SynchronizationEvent, FALSE);
    Queue->DropOldest = DropOldest;
    Queue->Capacity = Bytes & ~7UL;
    Queue->RecordMaximum =
        min(Queue->Capacity - (ULONG)sizeof(DOWNLINK_ENTRY), MessageBytes - (ULONG)sizeof(DOWNLINK_MESSAGE)) & ~7UL;
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
    Queue->DroppedCount++;
    if ((Queue->FirstDropped == 0) || (Sequence < Queue->FirstDropped)) {
        Queue->FirstDropped = Sequence;
    }
    if (Sequence > Queue->LastDropped) {
        Queue->LastDropped = Sequence;
    }
}

/* Called with the lock held: frees the entry at the head. */
static VOID DownlinkQueueAdvance(_Inout_ PDOWNLINK_QUEUE Queue)
{
    ULONG size = DownlinkEntryAt(Queue, Queue->Head)->Size;

    Queue->Head += size;
    if (Queue->Head == Queue->Capacity) {
        Queue->Head = 0;
    }
    Queue->Used -= size;
    if (Queue->Used == 0) {
        Queue->Head = 0;
        Queue->Tail = 0;
    }
}

/* Called with the lock held: the entry of the oldest record if it is ready, NULL otherwise. Frees padding. */
static PDOWNLINK_ENTRY DownlinkQueueOldest(_Inout_ PDOWNLINK_QUEUE Queue)
{
    PDOWNLINK_ENTRY entry = NULL;

    while (Queue->Used != 0) {
        entry = DownlinkEntryAt(Queue, Queue->Head);
        if (entry->State != DownlinkEntryPadding) {
            break;
        }
        DownlinkQueueAdvance(Queue);
        entry = NULL;
    }
    /* Acquire: what the producer wrote before it made the record ready is seen by whoever sees it ready. */
    if ((entry != NULL) &&
        (InterlockedCompareExchange(&entry->State, DownlinkEntryReady, DownlinkEntryReady) != DownlinkEntryReady)) {
        entry = NULL;
    }
    return entry;
}

/* Called with the lock held: an entry of that size at the tail, or NULL if there is no room. */
static PDOWNLINK_ENTRY DownlinkQueuePlace(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Size)
{
    PDOWNLINK_ENTRY entry = NULL;
    ULONG room;

    if ((Queue->Used != 0) && (Queue->Tail <= Queue->Head)) {
        room = Queue->Head - Queue->Tail;
    } else {
        room = Queue->Capacity - Queue->Tail;
        if ((Size > room) && (Size <= Queue->Head)) {
            /* Start over at the ring's beginning; what is left at its end becomes padding. */
            if (room != 0) {
                entry = DownlinkEntryAt(Queue, Queue->Tail);
                entry->Size = room;
                entry->State = DownlinkEntryPadding;
                Queue->Used += room;
                entry = NULL;
            }
            Queue->Tail = 0;
            room = Queue->Head;
        }
    }

    if (Size <= room) {
        entry = DownlinkEntryAt(Queue, Queue->Tail);
        entry->Size = Size;
        entry->State = DownlinkEntryFilling;
        Queue->Used += Size;
        Queue->Tail += Size;
        if (Queue->Tail == Queue->Capacity) {
            Queue->Tail = 0;
        }
    }
    return entry;
}

/* Called with the lock held: as DownlinkQueuePlace, but makes room first if the connection wants that. */
static PDOWNLINK_ENTRY DownlinkQueueReserve(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Size)
{
    PDOWNLINK_ENTRY entry = DownlinkQueuePlace(Queue, Size);

    while ((entry == NULL) && Queue->DropOldest) {
        PDOWNLINK_ENTRY oldest = DownlinkQueueOldest(Queue);

        if (oldest != NULL) {
            DownlinkQueueCountDrop(Queue, DownlinkRecordOf(oldest)->Sequence);
            DownlinkQueueAdvance(Queue);
        } else if (Queue->Used != 0) {
            /* The oldest record is still being filled by another processor: it cannot be taken from under it. */
            break;
        }
        entry = DownlinkQueuePlace(Queue, Size);
    }
    return entry;
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

/* Fills a reserved record; all of it is written, so that nothing old of the ring is sent. */
static VOID DownlinkFillRecord(_Out_writes_bytes_(Size) DOWNLINK_RECORD *Record, _In_ ULONG Size,
                               _In_ ULONGLONG Sequence, _In_ PCDOWNLINK_EVENT Event, _In_ USHORT PathBytes,
                               _In_ USHORT SecondPathBytes)
{
    PUCHAR paths = (PUCHAR)(Record + 1);
    ULONG used = (ULONG)sizeof(*Record) + PathBytes + SecondPathBytes;

    RtlZeroMemory(Record, sizeof(*Record));
    Record->Size = Size;
    Record->Kind = Event->Kind;
    Record->Flags = Event->Flags;
    if ((PathBytes < Event->Path.Length) || (SecondPathBytes < Event->SecondPath.Length)) {
        Record->Flags |= DOWNLINK_RECORD_PATH_TRUNCATED;
    }
    Record->Sequence = Sequence;
    Record->Time = Event->Time.QuadPart;
    Record->ProcessId = Event->ProcessId;
    Record->ThreadId = Event->ThreadId;
    Record->Status = Event->Status;
    Record->Detail = Event->Detail;
    Record->Value = Event->Value;
    Record->PathLength = PathBytes;
    Record->SecondPathLength = SecondPathBytes;
    Record->VolumeLength = min(Event->VolumeLength, PathBytes);
    if (PathBytes != 0) {
        RtlCopyMemory(paths, Event->Path.Buffer, PathBytes);
    }
    if (SecondPathBytes != 0) {
        RtlCopyMemory(paths + PathBytes, Event->SecondPath.Buffer, SecondPathBytes);
    }
    RtlZeroMemory((PUCHAR)Record + used, Size - used);
}

_Use_decl_annotations_ VOID DownlinkQueueAppend(PDOWNLINK_QUEUE Queue, PCDOWNLINK_EVENT Event)
{
    PDOWNLINK_ENTRY entry;
    ULONGLONG sequence;
    USHORT pathBytes;
    USHORT secondPathBytes;
    ULONG size;
    KIRQL irql;

    DownlinkFitPaths(Queue->RecordMaximum, Event, &pathBytes, &secondPathBytes);
    size = DOWNLINK_ALIGN((ULONG)sizeof(DOWNLINK_RECORD) + pathBytes + secondPathBytes);

    KeAcquireSpinLock(&Queue->Lock, &irql);
    sequence = ++Queue->Sequence;
    entry = DownlinkQueueReserve(Queue, size + (ULONG)sizeof(DOWNLINK_ENTRY));
    if (entry == NULL) {
        DownlinkQueueCountDrop(Queue, sequence);
    }
    KeReleaseSpinLock(&Queue->Lock, irql);

    if (entry != NULL) {
        DownlinkFillRecord(DownlinkRecordOf(entry), size, sequence, Event, pathBytes, secondPathBytes);
        InterlockedExchange(&entry->State, DownlinkEntryReady);
        if ((Queue->Idle != 0) && (InterlockedExchange(&Queue->Idle, 0) != 0)) {
            KeSetEvent(&Queue->Wake, IO_NO_INCREMENT, FALSE);
        }
    }
}

/* Bytes of the oldest record, 0 if none is ready. With drop-oldest another may have its place a moment later. */
_Use_decl_annotations_ ULONG DownlinkQueuePeek(PDOWNLINK_QUEUE Queue)
{
    PDOWNLINK_ENTRY entry;
    ULONG bytes = 0;
    KIRQL irql;

    KeAcquireSpinLock(&Queue->Lock, &irql);
    entry = DownlinkQueueOldest(Queue);
    if (entry != NULL) {
        bytes = DownlinkRecordOf(entry)->Size;
    }
    KeReleaseSpinLock(&Queue->Lock, irql);
    return bytes;
}

/* Copies a record whose paths do not fit; what is left of them is announced as truncated. */
static ULONG DownlinkCopyCut(_Out_writes_bytes_(Room) PUCHAR Target, _In_ ULONG Room,
                             _In_ const DOWNLINK_RECORD *Source)
{
    DOWNLINK_RECORD *record = (DOWNLINK_RECORD *)Target;
    ULONG size = Room & ~7UL;

    RtlCopyMemory(Target, Source, size);
    record->Size = size;
    record->Flags |= DOWNLINK_RECORD_PATH_TRUNCATED;
    record->PathLength = (USHORT)min(record->PathLength, size - (ULONG)sizeof(*record));
    record->SecondPathLength =
        (USHORT)min(record->SecondPathLength, size - (ULONG)sizeof(*record) - record->PathLength);
    record->VolumeLength = min(record->VolumeLength, record->PathLength);
    return size;
}

/*
 * Packs ready records into a message and returns its length, 0 if no record is ready. Drops are taken over under the
 * same lock as the records, so that a gap before a record is always announced with it or earlier.
 */
_Use_decl_annotations_ ULONG DownlinkQueueTake(PDOWNLINK_QUEUE Queue, PUCHAR Buffer, ULONG BufferBytes)
{
    DOWNLINK_MESSAGE message = {0};
    ULONG length = sizeof(message);
    BOOLEAN more = TRUE;
    KIRQL irql;

    while (more) {
        ULONG copied = 0;

        KeAcquireSpinLock(&Queue->Lock, &irql);
        while (more && (copied < DOWNLINK_COPY_BYTES)) {
            PDOWNLINK_ENTRY entry = DownlinkQueueOldest(Queue);
            ULONG bytes = 0;

            if ((entry == NULL) || (message.RecordCount == MAXUSHORT)) {
                more = FALSE;
            } else if (DownlinkRecordOf(entry)->Size <= BufferBytes - length) {
                bytes = DownlinkRecordOf(entry)->Size;
                RtlCopyMemory(Buffer + length, DownlinkRecordOf(entry), bytes);
            } else if (message.RecordCount == 0) {
                bytes = DownlinkCopyCut(Buffer + length, BufferBytes - length, DownlinkRecordOf(entry));
                more = FALSE;
            } else {
                more = FALSE;
            }

            if (bytes != 0) {
                DownlinkQueueAdvance(Queue);
                message.RecordCount++;
                length += bytes;
                copied += bytes;
            }
        }
        if ((Queue->DroppedCount != 0) && (message.RecordCount != 0)) {
            message.DroppedCount += Queue->DroppedCount;
            message.FirstDropped =
                (message.FirstDropped == 0) ? Queue->FirstDropped : min(message.FirstDropped, Queue->FirstDropped);
            message.LastDropped = max(message.LastDropped, Queue->LastDropped);
            Queue->DroppedCount = 0;
            Queue->FirstDropped = 0;
            Queue->LastDropped = 0;
        }
        KeReleaseSpinLock(&Queue->Lock, irql);
    }

    if (message.RecordCount == 0) {
        length = 0;
    } else {
        message.Size = length;
        message.Version = DOWNLINK_PROTOCOL_VERSION;
        RtlCopyMemory(Buffer, &message, sizeof(message));
    }
    return length;
}

/* For the worker: waits until a record is ready. FALSE when the queue has been closed. */
_Use_decl_annotations_ BOOLEAN DownlinkQueueWait(PDOWNLINK_QUEUE Queue)
{
    while (!Queue->Closed) {
        /* First say that the worker is going to sleep, then look: whoever is not seen now sees the flag. */
        InterlockedExchange(&Queue->Idle, 1);
        if (DownlinkQueuePeek(Queue) != 0) {
            InterlockedExchange(&Queue->Idle, 0);
            break;
        }
        (VOID)KeWaitForSingleObject(&Queue->Wake, Executive, KernelMode, FALSE, NULL);
    }
    return !Queue->Closed;
}

_Use_decl_annotations_ VOID DownlinkQueueClose(PDOWNLINK_QUEUE Queue)
{
    Queue->Closed = TRUE;
    KeSetEvent(&Queue->Wake, IO_NO_INCREMENT, FALSE);
}
