/*
 * The end of a handle: totals of what was written, that a changed file was closed, and what has really been deleted.
 */
#include "downlink.h"

/* What the pre-operation callback keeps for its post-operation callback: afterwards there may be no file to ask. */
typedef struct _DOWNLINK_DELETION {
    DOWNLINK_IDENTITY Identity;
    ULONG Links;          /* names of the file, 0 if it cannot tell */
    ULONG RemainingLinks; /* those of them that are not about to be deleted */
    USHORT StreamBytes;   /* at the end of the name: the stream's, 0 if the handle is of the file itself */
    BOOLEAN IsPosixDelete;
} DOWNLINK_DELETION, *PDOWNLINK_DELETION;

static VOID DownlinkPublishTotals(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                  _Inout_ PDOWNLINK_HANDLE_CONTEXT Context);
static PDOWNLINK_DELETION DownlinkBeginDeletion(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
static BOOLEAN DownlinkHasDeleted(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Inout_ PDOWNLINK_DELETION Deletion);
static USHORT DownlinkStreamBytes(_In_opt_ PFLT_FILE_NAME_INFORMATION Name);
static ULONG DownlinkCountLinks(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Out_opt_ PULONG Remaining);
static BOOLEAN DownlinkIsFileGone(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN IsPosixDelete);
static BOOLEAN DownlinkIsFirstReport(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ BOOLEAN IsStream);

#pragma alloc_text(PAGE, DownlinkPreCleanup)
#pragma alloc_text(PAGE, DownlinkPostCleanup)
#pragma alloc_text(PAGE, DownlinkPublishTotals)
#pragma alloc_text(PAGE, DownlinkBeginDeletion)
#pragma alloc_text(PAGE, DownlinkHasDeleted)
#pragma alloc_text(PAGE, DownlinkStreamBytes)
#pragma alloc_text(PAGE, DownlinkCountLinks)
#pragma alloc_text(PAGE, DownlinkIsFileGone)
#pragma alloc_text(PAGE, DownlinkIsFirstReport)

_Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCleanup(PFLT_CALLBACK_DATA Data,
                                                                           PCFLT_RELATED_OBJECTS FltObjects,
                                                                           PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;
    PDOWNLINK_HANDLE_CONTEXT handleContext;
    PDOWNLINK_DELETION_CONTEXT deletionContext;

    PAGED_CODE();
    *CompletionContext = NULL;

    if (DownlinkIsVolumeOpen(FltObjects)) {
        goto Exit;
    }
    if (DownlinkIsWanted(DOWNLINK_MASK_WRITES)) {
        handleContext = DownlinkFindHandleContext(FltObjects);
        if (handleContext != NULL) {
            DownlinkPublishTotals(Data, FltObjects, handleContext);
            FltReleaseContext(handleContext);
        }
    }
    if (DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileDeleted))) {
        /* A mark that was set while no instance of ours was attached shows in the file object. */
        deletionContext = DownlinkReferenceFileContext(FltObjects, FltObjects->FileObject->DeletePending);
        if (deletionContext != NULL) {
            FltReleaseContext(deletionContext);
            *CompletionContext = DownlinkBeginDeletion(Data, FltObjects);
            callbackStatus = FLT_PREOP_SYNCHRONIZE;
        }
    }

Exit:
    return callbackStatus;
}

_Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCleanup(PFLT_CALLBACK_DATA Data,
                                                                             PCFLT_RELATED_OBJECTS FltObjects,
                                                                             PVOID CompletionContext,
                                                                             FLT_POST_OPERATION_FLAGS Flags)
{
    PDOWNLINK_DELETION deletion = CompletionContext;
    DOWNLINK_DELETION unknown = {0};
    PDOWNLINK_DELETION known = (deletion != NULL) ? deletion : &unknown;
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if (!FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) && NT_SUCCESS(Data->IoStatus.Status) && DownlinkMayQueryFile() &&
        DownlinkHasDeleted(FltObjects, known)) {
        DownlinkFillEvent(&event, DownlinkFileDeleted, Data, STATUS_SUCCESS);
        DownlinkPublishFile(FltObjects, &event, &known->Identity);
    }
    if (deletion != NULL) {
        DownlinkForget(&deletion->Identity);
        ExFreePoolWithTag(deletion, DOWNLINK_TAG_OPERATION);
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/* Totals of the handle's writes, and that a changed file was closed; before the file may be gone. */
static VOID DownlinkPublishTotals(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                  PDOWNLINK_HANDLE_CONTEXT Context)
{
    LONG64 written = InterlockedExchangeAdd64(&Context->BytesWritten, 0);
    LONG64 unreported = written - InterlockedExchange64(&Context->BytesReported, written);
    LONG changes = InterlockedExchange(&Context->Changes, 0);
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if ((unreported > 0) && DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileWritten))) {
        DownlinkFillEvent(&event, DownlinkFileWritten, Data, STATUS_SUCCESS);
        event.Value = (ULONGLONG)unreported;
        DownlinkPublishHandle(Data, FltObjects, &event, Context);
    }
    if ((changes != 0) && DownlinkIsWanted(DOWNLINK_MASK_CLOSED)) {
        DownlinkFillEvent(&event, DownlinkFileClosed, Data, STATUS_SUCCESS);
        event.Detail = (ULONG)changes;
        event.Value = (ULONGLONG)written;
        DownlinkPublishHandle(Data, FltObjects, &event, Context);
    }
}

/* NULL if there is no memory, or if the file must not be asked now: then a deletion is told without its name. */
static PDOWNLINK_DELETION DownlinkBeginDeletion(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    PDOWNLINK_DELETION deletion = NULL;
    PDOWNLINK_HANDLE_CONTEXT handleContext;

    PAGED_CODE();

    if (DownlinkMayQueryFile()) {
        deletion = ExAllocatePool2(POOL_FLAG_PAGED, sizeof(*deletion), DOWNLINK_TAG_OPERATION);
    }
    if (deletion != NULL) {
        DownlinkIdentify(Data, FltObjects, &deletion->Identity);
        deletion->Links = DownlinkCountLinks(FltObjects, &deletion->RemainingLinks);
        deletion->StreamBytes = DownlinkStreamBytes(deletion->Identity.Name);
        handleContext = DownlinkFindHandleContext(FltObjects);
        if (handleContext != NULL) {
            deletion->IsPosixDelete = handleContext->IsPosixDelete != 0;
            FltReleaseContext(handleContext);
        }
    }
    return deletion;
}

/*
 * The file is told as deleted once, in the cleanup that removed it; a file with several names, once for each name, in
 * the cleanup that made their number smaller. A handle of a stream may be the last one that kept its file: the stream
 * has gone alone only if names of the file were to remain.
 */
static BOOLEAN DownlinkHasDeleted(PCFLT_RELATED_OBJECTS FltObjects, PDOWNLINK_DELETION Deletion)
{
    BOOLEAN isStream = FALSE;
    BOOLEAN hasDeleted;

    PAGED_CODE();

    if (DownlinkIsFileGone(FltObjects, Deletion->IsPosixDelete)) {
        isStream = (Deletion->StreamBytes != 0) && (Deletion->RemainingLinks != 0);
        hasDeleted = DownlinkIsFirstReport(FltObjects, isStream);
    } else {
        hasDeleted = (Deletion->Links > 1) && (DownlinkCountLinks(FltObjects, NULL) < Deletion->Links);
    }
    Deletion->Identity.HiddenBytes = isStream ? 0 : Deletion->StreamBytes;
    return hasDeleted;
}

/* Bytes at the end of a name that are the stream's, its colon included. */
static USHORT DownlinkStreamBytes(PFLT_FILE_NAME_INFORMATION Name)
{
    PAGED_CODE();

    if ((Name == NULL) || !NT_SUCCESS(FltParseFileNameInformation(Name))) {
        return 0;
    }
    return Name->Stream.Length;
}

/* How many names the file has, those about to be deleted included; 0 where the file system does not tell. */
static ULONG DownlinkCountLinks(PCFLT_RELATED_OBJECTS FltObjects, PULONG Remaining)
{
    NTSTATUS status;
    FILE_STANDARD_LINK_INFORMATION links;

    PAGED_CODE();

    status = FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &links, sizeof(links),
                                     FileStandardLinkInformation, NULL);
    if (!NT_SUCCESS(status)) {
        links.TotalNumberOfLinks = 0;
        links.NumberOfAccessibleLinks = 0;
    }
    if (Remaining != NULL) {
        *Remaining = links.NumberOfAccessibleLinks;
    }
    return links.TotalNumberOfLinks;
}

/*
 * Whether a cleanup has removed the file: the file system says so of a handle to a deleted file. A POSIX deletion, which
 * leaves other handles alive, shows as a file that is to be deleted and has no name left; without POSIX semantics that
 * would only say that it will be deleted in the last cleanup, if nobody takes the mark back.
 */
static BOOLEAN DownlinkIsFileGone(PCFLT_RELATED_OBJECTS FltObjects, BOOLEAN IsPosixDelete)
{
    NTSTATUS status;
    FILE_STANDARD_INFORMATION standard;

    PAGED_CODE();

    RtlZeroMemory(&standard, sizeof(standard));
    status = FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &standard, sizeof(standard),
                                     FileStandardInformation, NULL);
    return (status == STATUS_FILE_DELETED) ||
           (IsPosixDelete && NT_SUCCESS(status) && standard.DeletePending && (standard.NumberOfLinks == 0));
}

/* TRUE for the first cleanup that finds the file, or the stream, gone; with other handles alive there are more of them. */
static BOOLEAN DownlinkIsFirstReport(PCFLT_RELATED_OBJECTS FltObjects, BOOLEAN IsStream)
{
    PDOWNLINK_DELETION_CONTEXT context;
    BOOLEAN isFirst = FALSE;

    PAGED_CODE();

    context =
        IsStream ? DownlinkReferenceStreamContext(FltObjects, TRUE) : DownlinkReferenceFileContext(FltObjects, FALSE);
    if (context != NULL) {
        isFirst = InterlockedExchange(&context->Reported, 1) == 0;
        FltReleaseContext(context);
    }
    return isFirst;
}
