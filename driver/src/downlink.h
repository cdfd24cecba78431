/*
 * What the files of the driver share: the driver's state, connections, queues, events and what is known of files.
 *
 * Locks and references, in order of acquisition:
 *   Downlink.ConnectionLock   fast mutex; guards the state of all connections, never held while waiting.
 *   DOWNLINK_CONNECTION.Users rundown protection; whoever uses a connection's queue from an I/O callback holds it, and
 *                             DownlinkConnectionEnd waits for it before anything of the connection is freed.
 *   DOWNLINK_QUEUE.Lock       spin lock; guards the ring's bookkeeping. Held for a few dozen instructions, except by
 *                             the worker, which copies at most DOWNLINK_COPY_BYTES (or one record) under it.
 */
#ifndef DOWNLINK_H
#define DOWNLINK_H

#include <fltKernel.h>

#include "downlink_protocol.h"

#define DOWNLINK_TAG_CONNECTION 'clnD' /* Dnlc: table of connections */
#define DOWNLINK_TAG_DELETION 'dlnD'   /* Dnld: file or stream context */
#define DOWNLINK_TAG_HANDLE 'hlnD'     /* Dnlh: stream-handle context */
#define DOWNLINK_TAG_INSTANCE 'ilnD'   /* Dnli: instance context */
#define DOWNLINK_TAG_MESSAGE 'mlnD'    /* Dnlm: message under construction */
#define DOWNLINK_TAG_OPERATION 'olnD'  /* Dnlo: what a pre-operation callback keeps for its post-operation callback */
#define DOWNLINK_TAG_PREFIX 'plnD'     /* Dnlp: path prefix of a connection */
#define DOWNLINK_TAG_QUEUE 'qlnD'      /* Dnlq: ring of a connection's queue */
#define DOWNLINK_TAG_REGISTRY 'rlnD'   /* Dnlr: registry value, security descriptor */

/* Message buffer that a connection owns. A record that does not fit gets a buffer of its own for one send. */
#define DOWNLINK_MESSAGE_BUFFER_BYTES 0x6000UL

/* Most bytes that the worker copies out of the ring under one acquisition of the queue's lock, but for one record. */
#define DOWNLINK_COPY_BYTES 0x1000UL

#define DOWNLINK_MILLISECOND 10000LL /* in the kernel's unit of time, 100 ns */

/*
 * Settings, read once at load from the service's Parameters key. settings.c has their names, defaults and bounds.
 */
#define DOWNLINK_FILESYSTEM_NTFS 0x00000001UL
#define DOWNLINK_FILESYSTEM_REFS 0x00000002UL
#define DOWNLINK_FILESYSTEM_FAT 0x00000004UL
#define DOWNLINK_FILESYSTEM_EXFAT 0x00000008UL
#define DOWNLINK_FILESYSTEM_REMOVABLE 0x00000100UL /* also on removable media */
#define DOWNLINK_FILESYSTEM_VALID 0x0000010FUL

typedef struct _DOWNLINK_SETTINGS {
    ULONG MaximumConnections;
    SIZE_T MemoryBudget; /* bytes, for the queues and message buffers of all connections */
    ULONG FileSystems;   /* DOWNLINK_FILESYSTEM_* */
    ULONG DebugLevel;    /* DOWNLINK_DEBUG_* */
    PSECURITY_DESCRIPTOR PortSecurity; /* NULL: the Filter Manager's default; freed when the port has been made */
} DOWNLINK_SETTINGS, *PDOWNLINK_SETTINGS;

#define DOWNLINK_DEBUG_ERROR 1   /* what went wrong */
#define DOWNLINK_DEBUG_STATE 2   /* load, unload, instances, connections */
#define DOWNLINK_DEBUG_MESSAGE 3 /* every message */
#define DOWNLINK_DEBUG_MAXIMUM 3

/* A line for the debugger if the registry asks for that level; nothing by default. */
#define DownlinkDebug(level, ...)                                                                                      \
    do {                                                                                                               \
        if (Downlink.Settings.DebugLevel >= (level)) {                                                                 \
            DbgPrintEx(DPFLTR_IHVDRIVER_ID, DPFLTR_ERROR_LEVEL, "Downlink: " __VA_ARGS__);                             \
        }                                                                                                              \
    } while (0)

/* FILE_ID_128 as it is copied. */
typedef struct _DOWNLINK_FILE_ID {
    ULONGLONG Low;
    ULONGLONG High;
} DOWNLINK_FILE_ID;

/*
 * One event on its way to the queues. Paths may lie in paged memory: they are read at IRQL <= APC_LEVEL only. Paths
 * belong to the caller.
 */
typedef struct _DOWNLINK_EVENT {
    USHORT Kind;
    USHORT Flags;
    NTSTATUS Status;
    ULONG Detail;
    ULONGLONG Value;
    LARGE_INTEGER Time;
    ULONG ProcessId;
    ULONG ThreadId;
    DOWNLINK_FILE_ID FileId;
    UNICODE_STRING Path;
    UNICODE_STRING SecondPath;
    USHORT VolumeLength;
} DOWNLINK_EVENT, *PDOWNLINK_EVENT;

typedef const DOWNLINK_EVENT *PCDOWNLINK_EVENT;

/* What a record's Size carries while it lies in the ring. A row of records without them can be sent as it is. */
#define DOWNLINK_RING_FILLING 0x80000000UL
#define DOWNLINK_RING_PADDING 0x40000000UL /* no record: the rest of the ring before it starts over */

/* A bounded ring of records, all of its memory allocated when the connection is made. */
typedef struct _DOWNLINK_QUEUE {
    KSPIN_LOCK Lock;
    PUCHAR Ring;
    ULONG Capacity;      /* bytes, a multiple of 8 */
    ULONG RecordMaximum; /* longest record that fits into an empty ring and into a message */
    BOOLEAN DropOldest;
    volatile BOOLEAN Closed; /* set once; the worker ends instead of waiting */
    volatile LONG Idle;      /* 1 while the worker waits: whoever makes a record ready resets it and sets Wake */
    KEVENT Wake;             /* synchronisation event */
    _Guarded_by_(Lock) ULONG Head;
    _Guarded_by_(Lock) ULONG Tail;
    _Guarded_by_(Lock) ULONG Used;
    _Guarded_by_(Lock) ULONG HighWater;
    _Guarded_by_(Lock) ULONG Pending;         /* records in the ring */
    _Guarded_by_(Lock) ULONGLONG Sequence;    /* of the latest record that was meant for this queue */
    _Guarded_by_(Lock) ULONGLONG Queued;      /* records that found a place */
    _Guarded_by_(Lock) ULONGLONG DroppedTotal;
    _Guarded_by_(Lock) ULONGLONG DroppedCount; /* since the previous message, as are the next two */
    _Guarded_by_(Lock) ULONGLONG FirstDropped;
    _Guarded_by_(Lock) ULONGLONG LastDropped;
    ULONGLONG Sent;     /* records; these three are the worker's alone */
    ULONGLONG Messages;
    ULONGLONG Bytes;
} DOWNLINK_QUEUE, *PDOWNLINK_QUEUE;

typedef enum _DOWNLINK_CONNECTION_STATE {
    DownlinkConnectionFree,
    DownlinkConnectionStarting, /* inside the connect callback */
    DownlinkConnectionActive,
    DownlinkConnectionEnding    /* whoever set this state tears the connection down */
} DOWNLINK_CONNECTION_STATE;

/*
 * A connection. The storage lives as long as the driver and is used again; the cookie given to the Filter Manager is
 * the connection's number, so that a late or missing disconnect callback never meets the wrong connection.
 */
typedef struct _DOWNLINK_CONNECTION {
    DOWNLINK_CONNECTION_STATE State; /* guarded by Downlink.ConnectionLock, as are the next two */
    ULONG_PTR Id;
    SIZE_T Charge;                   /* bytes of the memory budget */
    EX_RUNDOWN_REF Users;
    volatile LONG EventMask;         /* 0 unless active: producers look here first */
    ULONG Flags;                     /* DOWNLINK_CONNECT_* */
    ULONG ProcessId;
    UNICODE_STRING PathPrefix;
    PFLT_PORT ClientPort;            /* the one variable that FltSendMessage and FltCloseClientPort share */
    PETHREAD Worker;
    PUCHAR MessageBuffer;
    ULONG MessageBufferBytes;
    LONGLONG StatisticsInterval;     /* 100 ns, 0 if no statistics are wanted */
    LONGLONG StatisticsDue;          /* system time; the worker's alone */
    DOWNLINK_QUEUE Queue;
    KEVENT Ended;                    /* notification event, signalled while the connection is free */
} DOWNLINK_CONNECTION, *PDOWNLINK_CONNECTION;

typedef struct _DOWNLINK_DATA {
    DOWNLINK_SETTINGS Settings;
    PFLT_FILTER Filter;
    PFLT_PORT ServerPort;
    FAST_MUTEX ConnectionLock;
    _Guarded_by_(ConnectionLock) BOOLEAN Unloading;
    _Guarded_by_(ConnectionLock) ULONG_PTR LatestId;
    _Guarded_by_(ConnectionLock) ULONG ActiveCount;
    _Guarded_by_(ConnectionLock) SIZE_T MemoryUsed; /* sum of all charges */
    volatile LONG Interest;        /* kinds that any active connection wants */
    volatile LONG FailureInterest; /* kinds that any active connection wants also of operations that failed */
    volatile LONG NameGeneration;  /* counts renames: names that were taken earlier may be wrong */
    ULONG ConnectionCount;         /* entries of Connections */
    PDOWNLINK_CONNECTION Connections;
} DOWNLINK_DATA;

extern DOWNLINK_DATA Downlink;

/* driver.c */
DRIVER_INITIALIZE DriverEntry;

/* settings.c: the service's Parameters key */
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS
    DownlinkReadSettings(_In_ PCUNICODE_STRING RegistryPath, _Out_ PDOWNLINK_SETTINGS Settings);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkFreeSettings(_Inout_ PDOWNLINK_SETTINGS Settings);

/* sddl.c: who may connect, as text */
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS
    DownlinkParseSecurity(_In_reads_(Length) PCWCH Text, _In_ ULONG Length, _Outptr_ PSECURITY_DESCRIPTOR *Descriptor);

/* instances.c: volumes that the driver attaches to */
typedef struct _DOWNLINK_INSTANCE_CONTEXT {
    USHORT VolumeNameLength; /* bytes */
    WCHAR VolumeName[ANYSIZE_ARRAY];
} DOWNLINK_INSTANCE_CONTEXT, *PDOWNLINK_INSTANCE_CONTEXT;

NTSTATUS FLTAPI DownlinkInstanceSetup(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ FLT_INSTANCE_SETUP_FLAGS Flags,
                                      _In_ DEVICE_TYPE VolumeDeviceType, _In_ FLT_FILESYSTEM_TYPE VolumeFilesystemType);
NTSTATUS FLTAPI DownlinkInstanceQueryTeardown(_In_ PCFLT_RELATED_OBJECTS FltObjects,
                                              _In_ FLT_INSTANCE_QUERY_TEARDOWN_FLAGS Flags);

/* port.c: the server port and its callbacks */
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS DownlinkCreatePort(VOID);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkClosePort(VOID);

/* connection.c: a connection's life */
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS DownlinkInitializeConnections(VOID);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkFreeConnections(VOID);
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS
    DownlinkConnectionBegin(_In_ PFLT_PORT ClientPort, _In_ const DOWNLINK_CONNECT *Connect,
                            _In_ PCUNICODE_STRING PathPrefix, _Out_ PULONG_PTR Id);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkConnectionEnd(_In_ ULONG_PTR Id, _In_ DOWNLINK_REASON Reason);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkEndConnections(VOID);

/* resources.c: what a connection owns while it lives */
_IRQL_requires_max_(PASSIVE_LEVEL)
    SIZE_T DownlinkConnectionCharge(_In_ const DOWNLINK_CONNECT *Connect, _In_ PCUNICODE_STRING PathPrefix);
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS
    DownlinkConnectionAllocate(_Inout_ PDOWNLINK_CONNECTION Connection, _In_ const DOWNLINK_CONNECT *Connect,
                               _In_ PCUNICODE_STRING PathPrefix);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkConnectionFreeResources(_Inout_ PDOWNLINK_CONNECTION Connection);
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS DownlinkConnectionStartWorker(_Inout_ PDOWNLINK_CONNECTION Connection);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkConnectionStopWorker(_Inout_ PDOWNLINK_CONNECTION Connection);

/* worker.c: one thread per connection */
KSTART_ROUTINE DownlinkWorker;

/* queue.c: the side of the producers */
_IRQL_requires_max_(DISPATCH_LEVEL) NTSTATUS DownlinkQueueInitialize(_Out_ PDOWNLINK_QUEUE Queue, _In_ ULONG Bytes,
                                                                     _In_ ULONG MessageBytes, _In_ BOOLEAN DropOldest);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID DownlinkQueueFree(_Inout_ PDOWNLINK_QUEUE Queue);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkQueueAppend(_Inout_ PDOWNLINK_QUEUE Queue, _In_ PCDOWNLINK_EVENT Event);
_IRQL_requires_max_(DISPATCH_LEVEL)
    VOID DownlinkQueueAppendStatistics(_Inout_ PDOWNLINK_QUEUE Queue, _In_ PCDOWNLINK_EVENT Event);

/* queue.c, message.c: with the queue's lock held */
_IRQL_requires_(DISPATCH_LEVEL) VOID DownlinkQueueAdvance(_Inout_ PDOWNLINK_QUEUE Queue, _In_ ULONG Bytes);
_IRQL_requires_(DISPATCH_LEVEL) const DOWNLINK_RECORD *DownlinkQueueOldest(_Inout_ PDOWNLINK_QUEUE Queue);

/* Acquire: what the producer wrote before it made the record ready is seen by whoever sees it ready. */
FORCEINLINE ULONG DownlinkRingSize(_In_ const DOWNLINK_QUEUE *Queue, _In_ ULONG Offset)
{
    return (ULONG)ReadAcquire((volatile LONG *)(Queue->Ring + Offset));
}

/* message.c: the side of the worker */
_IRQL_requires_max_(DISPATCH_LEVEL) ULONG
    DownlinkQueueTake(_Inout_ PDOWNLINK_QUEUE Queue, _Out_writes_bytes_(BufferBytes) PUCHAR Buffer,
                      _In_ ULONG BufferBytes, _Out_ PULONG RecordCount);
_IRQL_requires_max_(APC_LEVEL) BOOLEAN
    DownlinkQueueWait(_Inout_ PDOWNLINK_QUEUE Queue, _In_opt_ PLARGE_INTEGER Timeout, _Out_ PULONG HeadBytes);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID DownlinkQueueClose(_Inout_ PDOWNLINK_QUEUE Queue);

/* publish.c: from an event to the queues of those who asked for it */
_IRQL_requires_max_(DISPATCH_LEVEL) BOOLEAN DownlinkIsWanted(_In_ ULONG Mask);
_IRQL_requires_max_(DISPATCH_LEVEL) BOOLEAN DownlinkIsOutcomeWanted(_In_ ULONG Mask, _In_ NTSTATUS Status);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkPublish(_In_ PCDOWNLINK_EVENT Event);

/*
 * files.c: what is known of a file. The name is referenced; it is NULL if none could be had safely. The generation
 * was read before the name was asked for, so that a rename in between shows.
 */
typedef struct _DOWNLINK_IDENTITY {
    PFLT_FILE_NAME_INFORMATION Name;
    LONG NameGeneration;
    USHORT Flags;      /* DOWNLINK_RECORD_DIRECTORY, DOWNLINK_RECORD_FILE_ID */
    USHORT HiddenBytes; /* at the end of the name, that are not told: a stream, where it is the file that matters */
    DOWNLINK_FILE_ID FileId;
} DOWNLINK_IDENTITY, *PDOWNLINK_IDENTITY;

_IRQL_requires_max_(APC_LEVEL) PFLT_FILE_NAME_INFORMATION DownlinkQueryName(_In_ PFLT_CALLBACK_DATA Data);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkReleaseName(_In_opt_ PFLT_FILE_NAME_INFORMATION Name);
_IRQL_requires_max_(APC_LEVEL) BOOLEAN DownlinkMayQueryFile(VOID);
_IRQL_requires_max_(APC_LEVEL)
    VOID DownlinkIdentify(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                          _Out_ PDOWNLINK_IDENTITY Identity);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkForget(_Inout_ PDOWNLINK_IDENTITY Identity);

/* contexts.c: what the driver remembers of a handle and of a stream */
typedef struct _DOWNLINK_HANDLE_CONTEXT {
    DOWNLINK_IDENTITY Identity;    /* never changes; the name may be out of date */
    volatile LONG64 BytesWritten;  /* through this handle */
    volatile LONG64 BytesReported; /* of them, already in a record */
    volatile LONG FirstReported;   /* 1 once the first write is in a record */
    volatile LONG IsPosixDelete;   /* 1 after a disposition with POSIX semantics */
    volatile LONG Changes;         /* DOWNLINK_MASK of the kinds of change that were made through this handle */
} DOWNLINK_HANDLE_CONTEXT, *PDOWNLINK_HANDLE_CONTEXT;

/* A file has one from the moment that it, or a stream of it, may be deleted; a stream when it is about to go alone. */
typedef struct _DOWNLINK_DELETION_CONTEXT {
    volatile LONG Reported; /* 1 once the deletion is in a record */
} DOWNLINK_DELETION_CONTEXT, *PDOWNLINK_DELETION_CONTEXT;

extern const FLT_CONTEXT_REGISTRATION DownlinkContexts[];

_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_HANDLE_CONTEXT
    DownlinkFindHandleContext(_In_ PCFLT_RELATED_OBJECTS FltObjects);
_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_HANDLE_CONTEXT
    DownlinkAttachHandleContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Inout_ PDOWNLINK_IDENTITY Identity);
_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_HANDLE_CONTEXT
    DownlinkReferenceHandleContext(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_DELETION_CONTEXT
    DownlinkReferenceStreamContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN Create);
_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_DELETION_CONTEXT
    DownlinkReferenceFileContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN Create);

/* operations.c: the table of callbacks, and what they have in common */
extern const FLT_OPERATION_REGISTRATION DownlinkOperations[];

_IRQL_requires_max_(DISPATCH_LEVEL) VOID DownlinkFillEvent(_Out_ PDOWNLINK_EVENT Event, _In_ USHORT Kind,
                                                           _In_ PFLT_CALLBACK_DATA Data, _In_ NTSTATUS Status);
_IRQL_requires_max_(APC_LEVEL)
    VOID DownlinkPublishFile(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Inout_ PDOWNLINK_EVENT Event,
                             _In_ const DOWNLINK_IDENTITY *Identity);
_IRQL_requires_max_(APC_LEVEL)
    VOID DownlinkPublishHandle(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                               _Inout_ PDOWNLINK_EVENT Event, _In_opt_ const DOWNLINK_HANDLE_CONTEXT *Context);
_IRQL_requires_max_(DISPATCH_LEVEL) BOOLEAN DownlinkIsVolumeOpen(_In_ PCFLT_RELATED_OBJECTS FltObjects);

/* Kinds of change that a handle remembers until it is closed. */
#define DOWNLINK_MASK_CLOSED DOWNLINK_MASK(DownlinkFileClosed)
#define DOWNLINK_MASK_WRITES (DOWNLINK_MASK(DownlinkFileWritten) | DOWNLINK_MASK_CLOSED)

/* create.c, write.c, change.c, rename.c, cleanup.c: operation callbacks */
#define DOWNLINK_PRE_OPERATION(name)                                                                                   \
    FLT_PREOP_CALLBACK_STATUS FLTAPI name(_Inout_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,      \
                                          _Outptr_result_maybenull_ PVOID *CompletionContext)
#define DOWNLINK_POST_OPERATION(name)                                                                                  \
    FLT_POSTOP_CALLBACK_STATUS FLTAPI name(_Inout_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,     \
                                           _In_opt_ PVOID CompletionContext, _In_ FLT_POST_OPERATION_FLAGS Flags)

DOWNLINK_PRE_OPERATION(DownlinkPreCreate);
DOWNLINK_POST_OPERATION(DownlinkPostCreate);
DOWNLINK_PRE_OPERATION(DownlinkPreWrite);
DOWNLINK_POST_OPERATION(DownlinkPostWrite);
DOWNLINK_PRE_OPERATION(DownlinkPreSetInformation);
DOWNLINK_POST_OPERATION(DownlinkPostSetInformation);
DOWNLINK_PRE_OPERATION(DownlinkPreSetSecurity);
DOWNLINK_POST_OPERATION(DownlinkPostSetSecurity);
DOWNLINK_PRE_OPERATION(DownlinkPreCleanup);
DOWNLINK_POST_OPERATION(DownlinkPostCleanup);

/* create.c */
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkMarkForDeletion(_In_ PCFLT_RELATED_OBJECTS FltObjects);

/* rename.c: names before and after, from the pre- to the post-operation callback */
typedef struct _DOWNLINK_NAME_CHANGE DOWNLINK_NAME_CHANGE, *PDOWNLINK_NAME_CHANGE;

_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_NAME_CHANGE
    DownlinkBeginNameChange(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
_IRQL_requires_max_(APC_LEVEL)
    VOID DownlinkPublishNameChange(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                   _In_ USHORT Kind, _In_opt_ PDOWNLINK_NAME_CHANGE Change);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkEndNameChange(_In_opt_ PDOWNLINK_NAME_CHANGE Change);

#endif
