/*
 * Opens: what became of the file, and what is remembered of the handle and of a deletion at its end.
 */
#include "downlink.h"

static BOOLEAN DownlinkIsFileCreate(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
static VOID DownlinkPublishOpen(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects);
static VOID DownlinkPublishFailedOpen(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                      _In_opt_ PFLT_FILE_NAME_INFORMATION Name);

#pragma alloc_text(PAGE, DownlinkPreCreate)
#pragma alloc_text(PAGE, DownlinkPostCreate)
#pragma alloc_text(PAGE, DownlinkIsFileCreate)
#pragma alloc_text(PAGE, DownlinkPublishOpen)
#pragma alloc_text(PAGE, DownlinkPublishFailedOpen)

#define DOWNLINK_MASK_OPENED DOWNLINK_MASK(DownlinkFileOpened)

_Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCreate(PFLT_CALLBACK_DATA Data,
                                                                          PCFLT_RELATED_OBJECTS FltObjects,
                                                                          PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;

    PAGED_CODE();
    *CompletionContext = NULL;

    /* A deletion at close has to be remembered even if nobody listens yet. */
    if (DownlinkIsFileCreate(Data, FltObjects) &&
        (DownlinkIsWanted(DOWNLINK_MASK_OPENED | DOWNLINK_MASK_WRITES) ||
         FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DELETE_ON_CLOSE))) {
        if (DownlinkIsOutcomeWanted(DOWNLINK_MASK_OPENED, STATUS_UNSUCCESSFUL)) {
            /* Of an open that fails there is no file to ask for its name. */
            *CompletionContext = DownlinkQueryName(Data);
        }
        callbackStatus = FLT_PREOP_SUCCESS_WITH_CALLBACK;
    }
    return callbackStatus;
}

_Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCreate(PFLT_CALLBACK_DATA Data,
                                                                            PCFLT_RELATED_OBJECTS FltObjects,
                                                                            PVOID CompletionContext,
                                                                            FLT_POST_OPERATION_FLAGS Flags)
{
    PFLT_FILE_NAME_INFORMATION requestedName = CompletionContext;

    PAGED_CODE();

    /* A reparse is not the end of the open: it comes again under another name. A volume shows only now. */
    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) || (Data->IoStatus.Status == STATUS_REPARSE) ||
        !DownlinkIsFileCreate(Data, FltObjects)) {
        goto Exit;
    }

    if (!NT_SUCCESS(Data->IoStatus.Status)) {
        DownlinkPublishFailedOpen(Data, FltObjects, requestedName);
        goto Exit;
    }
    if (FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DELETE_ON_CLOSE)) {
        DownlinkMarkForDeletion(FltObjects);
    }
    DownlinkPublishOpen(Data, FltObjects);

Exit:
    DownlinkReleaseName(requestedName);
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/*
 * Volumes and paging files are no files that anybody wants to hear of, and the directory that a rename opens to move
 * something into is part of that rename.
 */
static BOOLEAN DownlinkIsFileCreate(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    PAGED_CODE();

    return !FlagOn(Data->Iopb->OperationFlags, SL_OPEN_PAGING_FILE | SL_OPEN_TARGET_DIRECTORY) &&
           !DownlinkIsVolumeOpen(FltObjects);
}

/* Looks up who the file is, once: for the record of the open, and for everything that is written through the handle. */
static VOID DownlinkPublishOpen(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    BOOLEAN isOpenWanted = DownlinkIsWanted(DOWNLINK_MASK_OPENED);
    BOOLEAN isWriter = FltObjects->FileObject->WriteAccess && DownlinkIsWanted(DOWNLINK_MASK_WRITES);
    DOWNLINK_IDENTITY identity;
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if (!isOpenWanted && !isWriter) {
        return;
    }
    if (isOpenWanted) {
        DownlinkFillEvent(&event, DownlinkFileOpened, Data, Data->IoStatus.Status);
        event.Detail = (ULONG)Data->IoStatus.Information;
    }
    DownlinkIdentify(Data, FltObjects, &identity);
    if (isOpenWanted) {
        DownlinkPublishFile(FltObjects, &event, &identity);
    }
    if (isWriter) {
        PDOWNLINK_HANDLE_CONTEXT context = DownlinkAttachHandleContext(FltObjects, &identity);

        if (context != NULL) {
            FltReleaseContext(context);
        }
    }
    DownlinkForget(&identity);
}

static VOID DownlinkPublishFailedOpen(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                      PFLT_FILE_NAME_INFORMATION Name)
{
    DOWNLINK_IDENTITY identity = {.Name = Name};
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if (DownlinkIsOutcomeWanted(DOWNLINK_MASK_OPENED, Data->IoStatus.Status)) {
        if (FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DIRECTORY_FILE)) {
            identity.Flags |= DOWNLINK_RECORD_DIRECTORY;
        }
        DownlinkFillEvent(&event, DownlinkFileOpened, Data, Data->IoStatus.Status);
        DownlinkPublishFile(FltObjects, &event, &identity);
    }
}

/* From now on every cleanup of the file, by whichever stream, looks whether it has been deleted. */
_Use_decl_annotations_ VOID DownlinkMarkForDeletion(PCFLT_RELATED_OBJECTS FltObjects)
{
    PDOWNLINK_DELETION_CONTEXT context = DownlinkReferenceFileContext(FltObjects, TRUE);

    if (context != NULL) {
        FltReleaseContext(context);
    }
}
