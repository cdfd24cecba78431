/*
 * What the files of the driver share: the driver's state, connections, queues and events.
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

#define DOWNLINK_TAG_QUEUE 'qlnD'   /* Dnlq: ring of a connection's queue */
#define DOWNLINK_TAG_MESSAGE 'mlnD' /* Dnlm: message under construction */
#define DOWNLINK_TAG_PREFIX 'plnD'  /* Dnlp: path prefix of a connection */
#define DOWNLINK_TAG_HANDLE 'hlnD'  /* Dnlh: stream-handle context */
#define DOWNLINK_TAG_STREAM 'slnD'  /* Dnls: stream context */

#define DOWNLINK_CONNECTIONS_MAXIMUM 8

/* Message buffer that a connection owns. A record that does not fit gets a buffer of its own for one send. */
#define DOWNLINK_MESSAGE_BUFFER_BYTES 0x6000UL

/* Most bytes that the worker copies out of the ring under one acquisition of the queue's lock. */
#define DOWNLINK_COPY_BYTES 0x1000UL

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
    UNICODE_STRING Path;
    UNICODE_STRING SecondPath;
    USHORT VolumeLength;
} DOWNLINK_EVENT, *PDOWNLINK_EVENT;

typedef const DOWNLINK_EVENT *PCDOWNLINK_EVENT;

/* A bounded ring of records, all of its memory allocated when the connection is made. */
typedef struct _DOWNLINK_QUEUE {
    KSPIN_LOCK Lock;
    PUCHAR Ring;
    ULONG Capacity;       /* bytes, a multiple of 8 */
    ULONG RecordMaximum;  /* longest record that fits into an empty ring and into a message */
    BOOLEAN DropOldest;
    volatile BOOLEAN Closed; /* set once; the worker ends instead of waiting */
    volatile LONG Idle;   /* 1 while the worker waits: whoever makes a record ready resets it and sets Wake */
    KEVENT Wake;          /* synchronisation event */
    _Guarded_by_(Lock) ULONG Head;
    _Guarded_by_(Lock) ULONG Tail;
    _Guarded_by_(Lock) ULONG Used;
    _Guarded_by_(Lock) ULONGLONG Sequence; /* of the latest record that was meant for this queue */
    _Guarded_by_(Lock) ULONGLONG DroppedCount;
    _Guarded_by_(Lock) ULONGLONG FirstDropped;
    _Guarded_by_(Lock) ULONGLONG LastDropped;
} DOWNLINK_QUEUE, *PDOWNLINK_QUEUE;

typedef enum _DOWNLINK_CONNECTION_STATE {
    DownlinkConnectionFree,
    DownlinkConnectionStarting, /* inside the connect callback */
    DownlinkConnectionActive,
    DownlinkConnectionEnding    /* whoever set this state tears the connection down */
} DOWNLINK_CONNECTION_STATE;

/*
 * A connection. The storage is static and is used again; the cookie given to the Filter Manager is the connection's
 * number, so that a late or missing disconnect callback never meets the wrong connection.
 */
typedef struct _DOWNLINK_CONNECTION {
    DOWNLINK_CONNECTION_STATE State; /* guarded by Downlink.ConnectionLock */
    ULONG_PTR Id;                    /* guarded by Downlink.ConnectionLock */
    EX_RUNDOWN_REF Users;
    volatile LONG EventMask;         /* 0 unless active: producers look here first */
    ULONG Flags;                     /* DOWNLINK_CONNECT_* */
    ULONG ProcessId;
    UNICODE_STRING PathPrefix;
    PFLT_PORT ClientPort;            /* the one variable that FltSendMessage and FltCloseClientPort share */
    PETHREAD Worker;
    PUCHAR MessageBuffer;
    ULONG MessageBufferBytes;
    DOWNLINK_QUEUE Queue;
    KEVENT Ended;                    /* notification event, signalled while the connection is free */
} DOWNLINK_CONNECTION, *PDOWNLINK_CONNECTION;

typedef struct _DOWNLINK_DATA {
    PFLT_FILTER Filter;
    PFLT_PORT ServerPort;
    FAST_MUTEX ConnectionLock;
    _Guarded_by_(ConnectionLock) BOOLEAN Unloading;
    _Guarded_by_(ConnectionLock) ULONG_PTR LatestId;
    _Guarded_by_(ConnectionLock) ULONG ActiveCount;
    volatile LONG Interest;          /* kinds that any active connection wants */
    volatile LONG FailureInterest;   /* kinds that any active connection wants also of operations that failed */
    DOWNLINK_CONNECTION Connections[DOWNLINK_CONNECTIONS_MAXIMUM];
} DOWNLINK_DATA;

extern DOWNLINK_DATA Downlink;

/* driver.c */
DRIVER_INITIALIZE DriverEntry;

/* port.c: the server port and its callbacks */
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS DownlinkCreatePort(VOID);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkClosePort(VOID);

/* connection.c: a connection's life */
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkInitializeConnections(VOID);
_IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS
    DownlinkConnectionBegin(_In_ PFLT_PORT ClientPort, _In_ const DOWNLINK_CONNECT *Connect,
                            _In_ PCUNICODE_STRING PathPrefix, _Out_ PULONG_PTR Id);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkConnectionEnd(_In_ ULONG_PTR Id, _In_ DOWNLINK_REASON Reason);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID DownlinkEndConnections(VOID);

/* worker.c: one thread per connection */
KSTART_ROUTINE DownlinkWorker;

/* queue.c */
_IRQL_requires_max_(DISPATCH_LEVEL) NTSTATUS DownlinkQueueInitialize(_Out_ PDOWNLINK_QUEUE Queue, _In_ ULONG Bytes,
                                                                     _In_ ULONG MessageBytes, _In_ BOOLEAN DropOldest);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID DownlinkQueueFree(_Inout_ PDOWNLINK_QUEUE Queue);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkQueueAppend(_Inout_ PDOWNLINK_QUEUE Queue, _In_ PCDOWNLINK_EVENT Event);
_IRQL_requires_max_(DISPATCH_LEVEL) ULONG DownlinkQueuePeek(_Inout_ PDOWNLINK_QUEUE Queue);
_IRQL_requires_max_(DISPATCH_LEVEL) ULONG
    DownlinkQueueTake(_Inout_ PDOWNLINK_QUEUE Queue, _Out_writes_bytes_(BufferBytes) PUCHAR Buffer,
                      _In_ ULONG BufferBytes);
_IRQL_requires_max_(APC_LEVEL) BOOLEAN DownlinkQueueWait(_Inout_ PDOWNLINK_QUEUE Queue);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID DownlinkQueueClose(_Inout_ PDOWNLINK_QUEUE Queue);

/* publish.c: from an event to the queues of those who asked for it */
_IRQL_requires_max_(DISPATCH_LEVEL) BOOLEAN DownlinkIsWanted(_In_ ULONG Mask);
_IRQL_requires_max_(DISPATCH_LEVEL) BOOLEAN DownlinkIsFailureWanted(_In_ ULONG Mask);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkPublish(_In_ PCDOWNLINK_EVENT Event);

/* names.c */
_IRQL_requires_max_(APC_LEVEL) PFLT_FILE_NAME_INFORMATION DownlinkQueryName(_In_ PFLT_CALLBACK_DATA Data);
_IRQL_requires_max_(APC_LEVEL) VOID DownlinkReleaseName(_In_opt_ PFLT_FILE_NAME_INFORMATION Name);
_IRQL_requires_max_(DISPATCH_LEVEL)
    VOID DownlinkSetEventPath(_Inout_ PDOWNLINK_EVENT Event, _In_opt_ PFLT_FILE_NAME_INFORMATION Name);

/* contexts.c: what the driver remembers of a handle and of a stream */
typedef struct _DOWNLINK_HANDLE_CONTEXT {
    volatile LONG64 BytesWritten;  /* through this handle */
    volatile LONG64 BytesReported; /* of them, already in a record */
    volatile LONG FirstReported;   /* 1 once the first write is in a record */
} DOWNLINK_HANDLE_CONTEXT, *PDOWNLINK_HANDLE_CONTEXT;

typedef struct _DOWNLINK_STREAM_CONTEXT {
    volatile LONG DeleteReported; /* 1 once the deletion is in a record */
    volatile LONG IsDirectory;    /* 1 for a directory; looked up before the deletion, when it can still tell */
} DOWNLINK_STREAM_CONTEXT, *PDOWNLINK_STREAM_CONTEXT;

extern const FLT_CONTEXT_REGISTRATION DownlinkContexts[];

_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_HANDLE_CONTEXT
    DownlinkReferenceHandleContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN Create);
_IRQL_requires_max_(APC_LEVEL) PDOWNLINK_STREAM_CONTEXT
    DownlinkReferenceStreamContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN Create);

/* events.c: operation callbacks */
extern const FLT_OPERATION_REGISTRATION DownlinkOperations[];

#endif
