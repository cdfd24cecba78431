/*
 * Changes other than writes: sizes, attributes and time stamps, security; and the parting of the ways of what set-
 * information requests can be.
 */
#include "downlink.h"

C_ASSERT(sizeof(FILE_END_OF_FILE_INFORMATION) == sizeof(LARGE_INTEGER));
C_ASSERT(sizeof(FILE_ALLOCATION_INFORMATION) == sizeof(LARGE_INTEGER));

static USHORT DownlinkKindOfChange(_In_ PFLT_CALLBACK_DATA Data);
static VOID DownlinkRememberChange(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                   _In_ USHORT Kind);
static VOID DownlinkPublishChange(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ USHORT Kind,
                                  _In_ ULONG Detail, _In_ ULONGLONG Value);
static VOID DownlinkRememberDisposition(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
static VOID DownlinkPublishSize(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
static VOID DownlinkPublishAttributes(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);

#pragma alloc_text(PAGE, DownlinkPreSetInformation)
#pragma alloc_text(PAGE, DownlinkPostSetInformation)
#pragma alloc_text(PAGE, DownlinkPreSetSecurity)
#pragma alloc_text(PAGE, DownlinkPostSetSecurity)
#pragma alloc_text(PAGE, DownlinkKindOfChange)
#pragma alloc_text(PAGE, DownlinkRememberChange)
#pragma alloc_text(PAGE, DownlinkPublishChange)
#pragma alloc_text(PAGE, DownlinkRememberDisposition)
#pragma alloc_text(PAGE, DownlinkPublishSize)
#pragma alloc_text(PAGE, DownlinkPublishAttributes)

/*
 * Before: only now the names can be had that a rename or link is about to change. Everything is handled in the
 * requestor's thread afterwards. A deletion has to be remembered, and a rename to be counted, even if nobody listens.
 */
_Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreSetInformation(PFLT_CALLBACK_DATA Data,
                                                                                  PCFLT_RELATED_OBJECTS FltObjects,
                                                                                  PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;
    USHORT kind;

    PAGED_CODE();
    *CompletionContext = NULL;

    if (DownlinkIsVolumeOpen(FltObjects)) {
        goto Exit;
    }
    kind = DownlinkKindOfChange(Data);
    switch (kind) {
    case DownlinkFileRenamed:
    case DownlinkFileLinked:
        if (DownlinkIsWanted(DOWNLINK_MASK(kind))) {
            *CompletionContext = DownlinkBeginNameChange(Data, FltObjects);
        }
        callbackStatus = FLT_PREOP_SYNCHRONIZE;
        break;
    case DownlinkFileDeleted:
        callbackStatus = FLT_PREOP_SYNCHRONIZE;
        break;
    case DownlinkFileSizeSet:
    case DownlinkFileAttributesSet:
        if (DownlinkIsWanted(DOWNLINK_MASK(kind) | DOWNLINK_MASK_CLOSED)) {
            callbackStatus = FLT_PREOP_SYNCHRONIZE;
        }
        break;
    default:
        break;
    }

Exit:
    return callbackStatus;
}

_Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostSetInformation(PFLT_CALLBACK_DATA Data,
                                                                                    PCFLT_RELATED_OBJECTS FltObjects,
                                                                                    PVOID CompletionContext,
                                                                                    FLT_POST_OPERATION_FLAGS Flags)
{
    PDOWNLINK_NAME_CHANGE change = CompletionContext;
    USHORT kind;

    PAGED_CODE();

    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING)) {
        goto Exit;
    }
    kind = DownlinkKindOfChange(Data);
    switch (kind) {
    case DownlinkFileRenamed:
        if (NT_SUCCESS(Data->IoStatus.Status)) {
            /* Before the event: whoever sees that reads no old name any more. */
            InterlockedIncrement(&Downlink.NameGeneration);
        }
        DownlinkPublishNameChange(Data, FltObjects, kind, change);
        DownlinkRememberChange(Data, FltObjects, kind);
        break;
    case DownlinkFileLinked:
        DownlinkPublishNameChange(Data, FltObjects, kind, change);
        DownlinkRememberChange(Data, FltObjects, kind);
        break;
    case DownlinkFileDeleted:
        if (NT_SUCCESS(Data->IoStatus.Status)) {
            /* Whether it set or took back the mark: what really happened is looked up at cleanup. */
            DownlinkMarkForDeletion(FltObjects);
            DownlinkRememberDisposition(Data, FltObjects);
        }
        break;
    case DownlinkFileSizeSet:
        DownlinkPublishSize(Data, FltObjects);
        break;
    case DownlinkFileAttributesSet:
        DownlinkPublishAttributes(Data, FltObjects);
        break;
    default:
        break;
    }

Exit:
    DownlinkEndNameChange(change);
    return FLT_POSTOP_FINISHED_PROCESSING;
}

_Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreSetSecurity(PFLT_CALLBACK_DATA Data,
                                                                               PCFLT_RELATED_OBJECTS FltObjects,
                                                                               PVOID *CompletionContext)
{
    UNREFERENCED_PARAMETER(Data);
    PAGED_CODE();
    *CompletionContext = NULL;

    if (DownlinkIsVolumeOpen(FltObjects) ||
        !DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileSecuritySet) | DOWNLINK_MASK_CLOSED)) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    return FLT_PREOP_SYNCHRONIZE;
}

_Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostSetSecurity(PFLT_CALLBACK_DATA Data,
                                                                                 PCFLT_RELATED_OBJECTS FltObjects,
                                                                                 PVOID CompletionContext,
                                                                                 FLT_POST_OPERATION_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(CompletionContext);
    PAGED_CODE();

    if (!FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING)) {
        DownlinkPublishChange(Data, FltObjects, DownlinkFileSecuritySet, 0,
                              Data->Iopb->Parameters.SetSecurity.SecurityInformation);
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/* The kind of event that a set-information request is, 0 for one that is not told. */
static USHORT DownlinkKindOfChange(PFLT_CALLBACK_DATA Data)
{
    USHORT kind = 0;

    PAGED_CODE();

    switch (Data->Iopb->Parameters.SetFileInformation.FileInformationClass) {
    case FileRenameInformation:
    case FileRenameInformationEx:
    case FileRenameInformationBypassAccessCheck:
    case FileRenameInformationExBypassAccessCheck:
        kind = DownlinkFileRenamed;
        break;
    case FileLinkInformation:
    case FileLinkInformationEx:
    case FileLinkInformationBypassAccessCheck:
    case FileLinkInformationExBypassAccessCheck:
        kind = DownlinkFileLinked;
        break;
    case FileDispositionInformation:
    case FileDispositionInformationEx:
        kind = DownlinkFileDeleted;
        break;
    case FileEndOfFileInformation:
        /* The cache manager moves the valid data length so; the file has its size already. */
        if (!Data->Iopb->Parameters.SetFileInformation.AdvanceOnly) {
            kind = DownlinkFileSizeSet;
        }
        break;
    case FileAllocationInformation:
        kind = DownlinkFileSizeSet;
        break;
    case FileBasicInformation:
        kind = DownlinkFileAttributesSet;
        break;
    default:
        break;
    }
    return kind;
}

/* Keeps a change with its handle, for the record of the handle's close. */
static VOID DownlinkRememberChange(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects, USHORT Kind)
{
    PDOWNLINK_HANDLE_CONTEXT context;

    PAGED_CODE();

    if (NT_SUCCESS(Data->IoStatus.Status) && DownlinkIsWanted(DOWNLINK_MASK_CLOSED)) {
        context = DownlinkReferenceHandleContext(Data, FltObjects);
        if (context != NULL) {
            InterlockedOr(&context->Changes, (LONG)DOWNLINK_MASK(Kind));
            FltReleaseContext(context);
        }
    }
}

static VOID DownlinkPublishChange(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects, USHORT Kind, ULONG Detail,
                                  ULONGLONG Value)
{
    PDOWNLINK_HANDLE_CONTEXT context;
    DOWNLINK_EVENT event;

    PAGED_CODE();

    DownlinkRememberChange(Data, FltObjects, Kind);
    if (DownlinkIsOutcomeWanted(DOWNLINK_MASK(Kind), Data->IoStatus.Status)) {
        DownlinkFillEvent(&event, Kind, Data, Data->IoStatus.Status);
        event.Detail = Detail;
        event.Value = Value;
        context = DownlinkFindHandleContext(FltObjects);
        DownlinkPublishHandle(Data, FltObjects, &event, context);
        if (context != NULL) {
            FltReleaseContext(context);
        }
    }
}

/* Keeps with its handle whether a deletion has POSIX semantics: then the handle's own cleanup removes the name. */
static VOID DownlinkRememberDisposition(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    const ULONG posix = FILE_DISPOSITION_DELETE | FILE_DISPOSITION_POSIX_SEMANTICS;
    const FILE_DISPOSITION_INFORMATION_EX *disposition = Data->Iopb->Parameters.SetFileInformation.InfoBuffer;
    PDOWNLINK_HANDLE_CONTEXT context;

    PAGED_CODE();

    if ((Data->Iopb->Parameters.SetFileInformation.FileInformationClass == FileDispositionInformationEx) &&
        (Data->Iopb->Parameters.SetFileInformation.Length >= sizeof(*disposition))) {
        context = DownlinkReferenceHandleContext(Data, FltObjects);
        if (context != NULL) {
            InterlockedExchange(&context->IsPosixDelete, (disposition->Flags & posix) == posix);
            FltReleaseContext(context);
        }
    }
}

static VOID DownlinkPublishSize(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    const VOID *buffer = Data->Iopb->Parameters.SetFileInformation.InfoBuffer;
    ULONG detail = DOWNLINK_SIZE_END_OF_FILE;

    PAGED_CODE();

    if (Data->Iopb->Parameters.SetFileInformation.FileInformationClass == FileAllocationInformation) {
        detail = DOWNLINK_SIZE_ALLOCATION;
    }
    if (Data->Iopb->Parameters.SetFileInformation.Length >= sizeof(LARGE_INTEGER)) {
        DownlinkPublishChange(Data, FltObjects, DownlinkFileSizeSet, detail,
                              (ULONGLONG)((const LARGE_INTEGER *)buffer)->QuadPart);
    }
}

/* 0 leaves a time stamp as it is, -1 and -2 say who keeps it up to date: none of them sets it. */
static BOOLEAN DownlinkIsTimeSet(_In_ LARGE_INTEGER Time)
{
    return (Time.QuadPart != 0) && (Time.QuadPart != -1) && (Time.QuadPart != -2);
}

static VOID DownlinkPublishAttributes(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    const FILE_BASIC_INFORMATION *basic = Data->Iopb->Parameters.SetFileInformation.InfoBuffer;
    ULONG detail = 0;

    PAGED_CODE();

    if (Data->Iopb->Parameters.SetFileInformation.Length >= sizeof(*basic)) {
        detail |= DownlinkIsTimeSet(basic->CreationTime) ? DOWNLINK_SET_CREATION_TIME : 0;
        detail |= DownlinkIsTimeSet(basic->LastAccessTime) ? DOWNLINK_SET_LAST_ACCESS_TIME : 0;
        detail |= DownlinkIsTimeSet(basic->LastWriteTime) ? DOWNLINK_SET_LAST_WRITE_TIME : 0;
        detail |= DownlinkIsTimeSet(basic->ChangeTime) ? DOWNLINK_SET_CHANGE_TIME : 0;
        detail |= (basic->FileAttributes != 0) ? DOWNLINK_SET_ATTRIBUTES : 0;
    }
    if (detail != 0) {
        DownlinkPublishChange(Data, FltObjects, DownlinkFileAttributesSet, detail, basic->FileAttributes);
    }
}
