/*
 * A complete client of the Downlink driver: prints one line for every file that is opened, changed, renamed or deleted.
 *
 *   listen [path prefix]          for example: listen \Device\HarddiskVolume3\data
 *
 * Run it elevated: the port lets only SYSTEM and administrators in. Link it with fltlib.lib.
 */
#include <windows.h>

#include <fltuser.h>

#include <fcntl.h>
#include <io.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "downlink_protocol.h"

#define MESSAGE_BYTES DOWNLINK_MESSAGE_BYTES_DEFAULT
#define PREFIX_CHARACTERS_MAXIMUM 1024

/* What FilterGetMessage writes: the Filter Manager's header, then the driver's message. */
typedef struct _RECEIVED {
    FILTER_MESSAGE_HEADER Header;
    UCHAR Message[MESSAGE_BYTES];
} RECEIVED;

static const wchar_t *KindName(unsigned short Kind)
{
    switch (Kind) {
    case DownlinkFileOpened:
        return L"opened";
    case DownlinkFileWritten:
        return L"written";
    case DownlinkFileSizeSet:
        return L"size set";
    case DownlinkFileRenamed:
        return L"renamed";
    case DownlinkFileLinked:
        return L"linked";
    case DownlinkFileDeleted:
        return L"deleted";
    case DownlinkFileAttributesSet:
        return L"attributes set";
    case DownlinkFileSecuritySet:
        return L"security set";
    case DownlinkFileClosed:
        return L"closed";
    default:
        /* A newer driver may know more kinds; whoever does not ask for them does not get them. */
        return L"something else";
    }
}

/* Connect and say what is wanted. Zero for a size means the driver's default. */
static HRESULT Connect(const wchar_t *Prefix, HANDLE *Port)
{
    unsigned char context[sizeof(DOWNLINK_CONNECT) + PREFIX_CHARACTERS_MAXIMUM * sizeof(wchar_t)];
    DOWNLINK_CONNECT connect = {0};
    size_t prefixBytes = wcslen(Prefix) * sizeof(wchar_t);

    if (prefixBytes > sizeof(context) - sizeof(connect)) {
        return HRESULT_FROM_WIN32(ERROR_FILENAME_EXCED_RANGE);
    }

    connect.Magic = DOWNLINK_CONNECT_MAGIC;
    connect.Size = (unsigned short)(sizeof(connect) + prefixBytes);
    connect.MinimumVersion = DOWNLINK_PROTOCOL_VERSION;
    connect.MaximumVersion = DOWNLINK_PROTOCOL_VERSION;
    connect.PathPrefixLength = (unsigned short)prefixBytes;
    connect.EventMask = DOWNLINK_MASK_FILES;
    connect.MessageBytes = MESSAGE_BYTES;
    memcpy(context, &connect, sizeof(connect));
    memcpy(context + sizeof(connect), Prefix, prefixBytes);

    return FilterConnectCommunicationPort(DOWNLINK_PORT_NAME, 0, context, connect.Size, NULL, Port);
}

static void PrintRecord(const DOWNLINK_RECORD *Record)
{
    const wchar_t *path = (const wchar_t *)(Record + 1);
    int characters = Record->PathLength / (int)sizeof(wchar_t);
    int secondCharacters = Record->SecondPathLength / (int)sizeof(wchar_t);

    /* Paths have no terminator: their lengths are all there is. */
    wprintf(L"%8llu  %-14ls  %6u  %.*ls", Record->Sequence, KindName(Record->Kind), Record->ProcessId, characters,
            path);
    if (secondCharacters != 0) {
        wprintf(L"  ->  %.*ls", secondCharacters, path + characters);
    }
    wprintf(L"\n");
}

/* Walk a message; FALSE if it contradicts itself. Lengths are checked although the driver is trusted: it costs nothing. */
static BOOL PrintMessage(const unsigned char *Data)
{
    const DOWNLINK_MESSAGE *message = (const DOWNLINK_MESSAGE *)Data;
    size_t offset = sizeof(*message);

    if (message->Version != DOWNLINK_PROTOCOL_VERSION || message->Size < sizeof(*message) ||
        message->Size > MESSAGE_BYTES) {
        return FALSE;
    }
    if (message->DroppedCount != 0) {
        wprintf(L"%llu records were dropped, between %llu and %llu\n", message->DroppedCount, message->FirstDropped,
                message->LastDropped);
    }

    for (unsigned int index = 0; index < message->RecordCount; index++) {
        const DOWNLINK_RECORD *record = (const DOWNLINK_RECORD *)(Data + offset);

        if (message->Size - offset < sizeof(*record) || record->Size > message->Size - offset ||
            record->Size < sizeof(*record) + record->PathLength + record->SecondPathLength) {
            return FALSE;
        }
        PrintRecord(record);
        offset += record->Size;
    }
    fflush(stdout);
    return TRUE;
}

int wmain(int argc, wchar_t **argv)
{
    RECEIVED *received = NULL;
    HANDLE port = NULL;
    HRESULT result;

    /* Names hold any 16-bit unit: UTF-8 shows most of them, whatever the console's code page is. */
    (void)_setmode(_fileno(stdout), _O_U8TEXT);

    result = Connect(argc > 1 ? argv[1] : L"", &port);
    if (FAILED(result)) {
        wprintf(L"cannot connect to '%ls': 0x%08lX\n", DOWNLINK_PORT_NAME, result);
        if (result == HRESULT_FROM_WIN32(ERROR_FILE_NOT_FOUND)) {
            wprintf(L"the driver is not loaded: fltmc load Downlink\n");
        } else if (result == E_ACCESSDENIED) {
            wprintf(L"run it as administrator\n");
        }
        goto Exit;
    }

    received = malloc(sizeof(*received));
    if (received == NULL) {
        result = E_OUTOFMEMORY;
        goto Exit;
    }

    for (;;) {
        /* Without an OVERLAPPED it waits. It ends with E_HANDLE when the driver is unloaded. */
        result = FilterGetMessage(port, &received->Header, sizeof(*received), NULL);
        if (FAILED(result)) {
            wprintf(L"the connection ended: 0x%08lX\n", result);
            break;
        }
        if (!PrintMessage(received->Message)) {
            result = E_UNEXPECTED;
            wprintf(L"a message is not what the protocol says\n");
            break;
        }
    }

Exit:
    free(received);
    if (port != NULL) {
        CloseHandle(port);
    }
    return FAILED(result) ? 1 : 0;
}
