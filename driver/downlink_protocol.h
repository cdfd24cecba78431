/*
 * The wire contract between the Downlink minifilter and its clients.
 *
 * A client connects to DOWNLINK_PORT_NAME with a DOWNLINK_CONNECT as connection context and from then on only
 * receives: one DOWNLINK_MESSAGE per Filter Manager message, followed by its records. There is nothing that a client
 * could send; the port has no message callback.
 *
 * All integers are little endian. Every structure has explicit padding and is zeroed before it is filled. The same
 * header serves kernel and user mode; it needs the Windows basic types only.
 */
#ifndef DOWNLINK_PROTOCOL_H
#define DOWNLINK_PROTOCOL_H

#define DOWNLINK_PORT_NAME L"\\DownlinkPort"

/* Versions: a driver serves exactly one; a client states the range that it understands. */
#define DOWNLINK_PROTOCOL_VERSION 1

#define DOWNLINK_CONNECT_MAGIC 0x4B4E4C44 /* "DLNK" as it lies in memory */

/* Kinds of record. The bit (1 << kind) selects a kind in DOWNLINK_CONNECT.EventMask. */
typedef enum _DOWNLINK_KIND {
    DownlinkFileOpened = 1,          /* Detail: FILE_SUPERSEDED .. FILE_OVERWRITTEN of the I/O status block */
    DownlinkFileWritten = 2,         /* Value: bytes written by this record's operations */
    DownlinkFileSizeSet = 3,         /* Value: the new size; Detail: DOWNLINK_SIZE_* */
    DownlinkFileRenamed = 4,         /* Path: before; second path: after */
    DownlinkFileLinked = 5,          /* Path: the existing name; second path: the new hard link */
    DownlinkFileDeleted = 6,         /* what has happened: the file, or this name of it, is gone */
    DownlinkFileAttributesSet = 7,   /* Value: the new attributes, 0 if only time stamps were set;
                                        Detail: DOWNLINK_SET_* */
    DownlinkFileSecuritySet = 8,     /* Value: the SECURITY_INFORMATION that was set */
    DownlinkFileClosed = 9,          /* after a change; Value: total bytes written through the handle;
                                        Detail: DOWNLINK_MASK of the kinds of change that were made through it */
    DownlinkClientConnected = 16,    /* ProcessId: the client's; Value: connection id; Detail: connections now */
    DownlinkClientDisconnected = 17, /* ProcessId: the client's; Value: connection id; Detail: DOWNLINK_REASON */
    DownlinkStatistics = 18          /* every StatisticsIntervalMs; a DOWNLINK_STATISTICS follows the record's head */
} DOWNLINK_KIND;

#define DOWNLINK_MASK(kind) (1UL << (kind))
#define DOWNLINK_MASK_FILES 0x000003FEUL
#define DOWNLINK_MASK_LIFECYCLE 0x00030000UL
#define DOWNLINK_MASK_STATISTICS 0x00040000UL
#define DOWNLINK_MASK_ALL 0x000703FEUL

/* Which size was set (Detail of DownlinkFileSizeSet). */
#define DOWNLINK_SIZE_END_OF_FILE 1 /* truncated or extended */
#define DOWNLINK_SIZE_ALLOCATION 2  /* a smaller one than the file also truncates it */

/* What was set (Detail of DownlinkFileAttributesSet), any of them. */
#define DOWNLINK_SET_CREATION_TIME 0x00000001UL
#define DOWNLINK_SET_LAST_ACCESS_TIME 0x00000002UL
#define DOWNLINK_SET_LAST_WRITE_TIME 0x00000004UL
#define DOWNLINK_SET_CHANGE_TIME 0x00000008UL
#define DOWNLINK_SET_ATTRIBUTES 0x00000010UL

/* Why a connection ended (Detail of DownlinkClientDisconnected). */
typedef enum _DOWNLINK_REASON {
    DownlinkReasonHandleClosed = 1, /* the client closed its last handle, exited or was killed */
    DownlinkReasonDriver = 2        /* the driver closed its end, as it does when it is unloaded */
} DOWNLINK_REASON;

/* Flags of DOWNLINK_CONNECT. */
#define DOWNLINK_CONNECT_FAILED_OPERATIONS 0x00000001UL   /* report operations that failed, too */
#define DOWNLINK_CONNECT_INCLUDE_OWN_PROCESS 0x00000002UL /* report the client's own operations, too */
#define DOWNLINK_CONNECT_DROP_OLDEST 0x00000004UL         /* when the queue is full, make room instead of refusing */
#define DOWNLINK_CONNECT_VALID_FLAGS 0x00000007UL

/* Bounds of what a client may ask for, in bytes. Zero in the context means the default. */
#define DOWNLINK_QUEUE_BYTES_MINIMUM 0x00001000UL
#define DOWNLINK_QUEUE_BYTES_DEFAULT 0x00040000UL
#define DOWNLINK_QUEUE_BYTES_MAXIMUM 0x00400000UL
#define DOWNLINK_MESSAGE_BYTES_MINIMUM 0x00000400UL
#define DOWNLINK_MESSAGE_BYTES_DEFAULT 0x00010000UL
#define DOWNLINK_MESSAGE_BYTES_MAXIMUM 0x00040000UL

/* Bounds of the interval of statistics, in milliseconds. Zero in the context means none. */
#define DOWNLINK_STATISTICS_INTERVAL_MINIMUM 100UL
#define DOWNLINK_STATISTICS_INTERVAL_MAXIMUM 86400000UL

/* Longest path in one record, in bytes, volume included; a longer one is cut and the record says so. */
#define DOWNLINK_PATH_BYTES_MAXIMUM 0xFFFE

/*
 * Connection context. The path prefix (UTF-16, no terminator, may be empty) follows at offset 32; the context's
 * length must be exactly Size. A bad context is refused: unknown version with STATUS_REVISION_MISMATCH, everything
 * else with STATUS_INVALID_PARAMETER. A good one is refused with STATUS_INSUFFICIENT_RESOURCES when its queue does not
 * fit into what is left of the driver's memory budget, with STATUS_CONNECTION_COUNT_LIMIT when all places are taken.
 */
typedef struct _DOWNLINK_CONNECT {
    unsigned int Magic;                /* 0x00 DOWNLINK_CONNECT_MAGIC */
    unsigned short Size;               /* 0x04 of this structure and the prefix, in bytes */
    unsigned short MinimumVersion;     /* 0x06 */
    unsigned short MaximumVersion;     /* 0x08 */
    unsigned short PathPrefixLength;   /* 0x0A in bytes, even */
    unsigned int EventMask;            /* 0x0C */
    unsigned int Flags;                /* 0x10 */
    unsigned int QueueBytes;           /* 0x14 */
    unsigned int MessageBytes;         /* 0x18 most bytes in one message, FILTER_MESSAGE_HEADER not counted */
    unsigned int StatisticsIntervalMs; /* 0x1C 0 = none; they are sent if EventMask has their bit, too */
} DOWNLINK_CONNECT;                    /* 0x20 */

/*
 * Head of every message. Sequence numbers start at 1 and count every record that was meant for the connection, also
 * those that were dropped: a gap in the numbers is always announced by the next message's DroppedCount.
 */
typedef struct _DOWNLINK_MESSAGE {
    unsigned int Size;                /* 0x00 of the message with its records, in bytes */
    unsigned short Version;           /* 0x04 DOWNLINK_PROTOCOL_VERSION */
    unsigned short RecordCount;       /* 0x06 */
    unsigned long long DroppedCount;  /* 0x08 records dropped since the previous message */
    unsigned long long FirstDropped;  /* 0x10 sequence number of the first of them, 0 if none */
    unsigned long long LastDropped;   /* 0x18 sequence number of the last of them, 0 if none */
} DOWNLINK_MESSAGE;                   /* 0x20 */

/* Flags of DOWNLINK_RECORD. */
#define DOWNLINK_RECORD_DIRECTORY 0x0001      /* the object is a directory */
#define DOWNLINK_RECORD_NO_PATH 0x0002        /* no name could be had safely; the path is the volume's at most */
#define DOWNLINK_RECORD_PATH_TRUNCATED 0x0004 /* the path was longer than DOWNLINK_PATH_BYTES_MAXIMUM */
#define DOWNLINK_RECORD_FILE_ID 0x0008        /* FileId is valid */

/*
 * One event. The path (UTF-16, no terminator) follows at offset 72, the second path directly behind it, then zeros up
 * to Size. A DownlinkStatistics record has no paths; a DOWNLINK_STATISTICS follows at offset 72 instead.
 */
typedef struct _DOWNLINK_RECORD {
    unsigned int Size;               /* 0x00 of the record with its paths, a multiple of 8, in bytes */
    unsigned short Kind;             /* 0x04 DOWNLINK_KIND */
    unsigned short Flags;            /* 0x06 DOWNLINK_RECORD_* */
    unsigned long long Sequence;     /* 0x08 per connection, from 1 */
    long long Time;                  /* 0x10 UTC, 100 ns since 1601-01-01, at completion of the operation */
    unsigned int ProcessId;          /* 0x18 requestor */
    unsigned int ThreadId;           /* 0x1C */
    int Status;                      /* 0x20 NTSTATUS of the operation */
    unsigned int Detail;             /* 0x24 by kind */
    unsigned long long Value;        /* 0x28 by kind */
    unsigned char FileId[16];        /* 0x30 FILE_ID_128, little endian */
    unsigned short PathLength;       /* 0x40 in bytes */
    unsigned short SecondPathLength; /* 0x42 in bytes */
    unsigned short VolumeLength;     /* 0x44 bytes at the start of the path that name the volume device */
    unsigned short Reserved;         /* 0x46 zero */
} DOWNLINK_RECORD;                   /* 0x48 */

/*
 * Counters of a connection since it was made, as they were when the statistics record got its sequence number:
 * Sent + Dropped + PendingRecords == Sequence - 1, always. The record passes through the queue like any other, so that
 * it may be dropped, and so that none is made while the client does not fetch.
 */
typedef struct _DOWNLINK_STATISTICS {
    unsigned long long Queued;   /* 0x00 records that found a place in the queue, also if they were dropped later */
    unsigned long long Sent;     /* 0x08 records that the client has fetched */
    unsigned long long Dropped;  /* 0x10 records that it will never see */
    unsigned long long Messages; /* 0x18 that it has fetched */
    unsigned long long Bytes;    /* 0x20 of these messages */
    unsigned int PendingRecords; /* 0x28 in the queue now */
    unsigned int QueueBytes;     /* 0x2C the queue's capacity; a record takes its Size of it */
    unsigned int UsedBytes;      /* 0x30 of the queue now */
    unsigned int HighWaterBytes; /* 0x34 most that was ever used */
} DOWNLINK_STATISTICS;           /* 0x38 */

#endif
