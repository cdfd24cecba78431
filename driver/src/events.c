/*
 * Operation callbacks: what happens to files becomes events. No callback waits for anything but the file system.
 */
#include "downlink.h"

static FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCreate(_Inout_ PFLT_CALLBACK_DATA Data,
                                                          _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                          _Outptr_result_maybenull_ PVOID *CompletionContext);
static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCreate(_Inout_ PFLT_CALLBACK_DATA Data,
                                                            _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                            _In_opt_ PVOID CompletionContext,
                                                            _In_ FLT_POST_OPERATION_FLAGS Flags);
static FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreWrite(_Inout_ PFLT_CALLBACK_DATA Data,
                                                         _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                         _Outptr_result_maybenull_ PVOID *CompletionContext);
static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostWrite(_Inout_ PFLT_CALLBACK_DATA Data,
                                                           _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                           _In_opt_ PVOID CompletionContext,
                                                           _In_ FLT_POST_OPERATION_FLAGS Flags);
static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkSafePostWrite(_Inout_ PFLT_CALLBACK_DATA Data,
                                                               _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                               _In_opt_ PVOID CompletionContext,
                                                               _In_ FLT_POST_OPERATION_FLAGS Flags);
static FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreSetInformation(_Inout_ PFLT_CALLBACK_DATA Data,
                                                                  _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                                  _Outptr_result_maybenull_ PVOID *CompletionContext);
static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostSetInformation(_Inout_ PFLT_CALLBACK_DATA Data,
                                                                    _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                                    _In_opt_ PVOID CompletionContext,
                                                                    _In_ FLT_POST_OPERATION_FLAGS Flags);
static FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCleanup(_Inout_ PFLT_CALLBACK_DATA Data,
                                                           _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                           _Outptr_result_maybenull_ PVOID *CompletionContext);
static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCleanup(_Inout_ PFLT_CALLBACK_DATA Data,
                                                             _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                             _In_opt_ PVOID CompletionContext,
                                                             _In_ FLT_POST_OPERATION_FLAGS Flags);

#pragma alloc_text(PAGE, DownlinkPreCreate)
#pragma alloc_text(PAGE, DownlinkPostCreate)
#pragma alloc_text(PAGE, DownlinkPreSetInformation)
#pragma alloc_text(PAGE, DownlinkPostSetInformation)
#pragma alloc_text(PAGE, DownlinkPreCleanup)
#pragma alloc_text(PAGE, DownlinkPostCleanup)

const FLT_OPERATION_REGISTRATION DownlinkOperations[] = {
    {
        .MajorFunction = IRP_MJ_CREATE,
        .PreOperation = DownlinkPreCreate,
        .PostOperation = DownlinkPostCreate,
    },
    {
        .MajorFunction = IRP_MJ_WRITE,
        .Flags = FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO,
        .PreOperation = DownlinkPreWrite,
        .PostOperation = DownlinkPostWrite,
    },
    {
        .MajorFunction = IRP_MJ_SET_INFORMATION,
        .Flags = FLTFL_OPERATION_REGISTRATION_SKIP_PAGING_IO,
        .PreOperation = DownlinkPreSetInformation,
        .PostOperation = DownlinkPostSetInformation,
    },
    {
        .MajorFunction = IRP_MJ_CLEANUP,
        .PreOperation = DownlinkPreCleanup,
        .PostOperation = DownlinkPostCleanup,
    },
    {.MajorFunction = IRP_MJ_OPERATION_END},
};

/* What all events of an operation have in common. Before an operation its own status says nothing yet. */
static VOID DownlinkFillEvent(_Out_ PDOWNLINK_EVENT Event, _In_ USHORT Kind, _In_ PFLT_CALLBACK_DATA Data,
                              _In_ NTSTATUS Status)
{
    RtlZeroMemory(Event, sizeof(*Event));
    Event->Kind = Kind;
    Event->Status = Status;
    Event->ProcessId = FltGetRequestorProcessId(Data);
    Event->ThreadId = HandleToULong((Data->Thread != NULL) ? PsGetThreadId(Data->Thread) : PsGetCurrentThreadId());
    KeQuerySystemTimePrecise(&Event->Time);
}

/* Marks the event if the file is a directory; a file that cannot tell counts as none. */
static VOID DownlinkFlagDirectory(_Inout_ PDOWNLINK_EVENT Event, _In_ PCFLT_RELATED_OBJECTS FltObjects)
{
    BOOLEAN isDirectory = FALSE;

    if (NT_SUCCESS(FltIsDirectory(FltObjects->FileObject, FltObjects->Instance, &isDirectory)) && isDirectory) {
        Event->Flags |= DOWNLINK_RECORD_DIRECTORY;
    }
}

/*
 * Volumes and paging files are no files that anybody wants to hear of, and the directory that a rename opens to move
 * something into is part of that rename.
 */
static BOOLEAN DownlinkIsFileCreate(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects)
{
    return !FlagOn(Data->Iopb->OperationFlags, SL_OPEN_PAGING_FILE | SL_OPEN_TARGET_DIRECTORY) &&
           !FlagOn(FltObjects->FileObject->Flags, FO_VOLUME_OPEN);
}

static _Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCreate(PFLT_CALLBACK_DATA Data,
                                                                                 PCFLT_RELATED_OBJECTS FltObjects,
                                                                                 PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;

    PAGED_CODE();
    *CompletionContext = NULL;

    /* A deletion at close has to be remembered even if nobody listens yet. */
    if (DownlinkIsFileCreate(Data, FltObjects) &&
        (DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileOpened)) ||
         FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DELETE_ON_CLOSE))) {
        if (DownlinkIsFailureWanted(DOWNLINK_MASK(DownlinkFileOpened))) {
            /* Of an open that fails there is no file to ask for its name. */
            *CompletionContext = DownlinkQueryName(Data);
        }
        callbackStatus = FLT_PREOP_SUCCESS_WITH_CALLBACK;
    }
    return callbackStatus;
}

static VOID DownlinkMarkForDeletion(_In_ PCFLT_RELATED_OBJECTS FltObjects)
{
    PDOWNLINK_STREAM_CONTEXT context = DownlinkReferenceStreamContext(FltObjects, TRUE);

    if (context != NULL) {
        FltReleaseContext(context);
    }
}

static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCreate(PFLT_CALLBACK_DATA Data,
                                                                                   PCFLT_RELATED_OBJECTS FltObjects,
                                                                                   PVOID CompletionContext,
                                                                                   FLT_POST_OPERATION_FLAGS Flags)
{
    BOOLEAN succeeded = NT_SUCCESS(Data->IoStatus.Status);
    PFLT_FILE_NAME_INFORMATION requestedName = CompletionContext;
    PFLT_FILE_NAME_INFORMATION name = NULL;
    DOWNLINK_EVENT event;

    PAGED_CODE();

    /* A reparse is not the end of the open: it comes again under another name. A volume shows only now. */
    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) || (Data->IoStatus.Status == STATUS_REPARSE) ||
        !DownlinkIsFileCreate(Data, FltObjects)) {
        goto Exit;
    }

    if (succeeded && FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DELETE_ON_CLOSE)) {
        DownlinkMarkForDeletion(FltObjects);
    }

    if (succeeded ? DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileOpened))
                  : DownlinkIsFailureWanted(DOWNLINK_MASK(DownlinkFileOpened))) {
        DownlinkFillEvent(&event, DownlinkFileOpened, Data, Data->IoStatus.Status);
        if (succeeded) {
            event.Detail = (ULONG)Data->IoStatus.Information;
            DownlinkFlagDirectory(&event, FltObjects);
            name = DownlinkQueryName(Data);
        } else if (FlagOn(Data->Iopb->Parameters.Create.Options, FILE_DIRECTORY_FILE)) {
            event.Flags |= DOWNLINK_RECORD_DIRECTORY;
        }
        DownlinkSetEventPath(&event, (name != NULL) ? name : requestedName);
        DownlinkPublish(&event);
        DownlinkReleaseName(name);
    }

Exit:
    DownlinkReleaseName(requestedName);
    return FLT_POSTOP_FINISHED_PROCESSING;
}

#define DOWNLINK_MASK_WRITES (DOWNLINK_MASK(DownlinkFileWritten) | DOWNLINK_MASK(DownlinkFileClosed))

static _Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreWrite(PFLT_CALLBACK_DATA Data,
                                                                                PCFLT_RELATED_OBJECTS FltObjects,
                                                                                PVOID *CompletionContext)
{
    *CompletionContext = NULL;

    if (!DownlinkIsWanted(DOWNLINK_MASK_WRITES) || (FltObjects->FileObject == NULL) ||
        FlagOn(FltObjects->FileObject->Flags, FO_VOLUME_OPEN) ||
        FlagOn(Data->Iopb->IrpFlags, IRP_PAGING_IO | IRP_SYNCHRONOUS_PAGING_IO)) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    return FLT_PREOP_SUCCESS_WITH_CALLBACK;
}

/* An asynchronous write may complete at DISPATCH_LEVEL: names are taken where they can be. */
static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostWrite(PFLT_CALLBACK_DATA Data,
                                                                                  PCFLT_RELATED_OBJECTS FltObjects,
                                                                                  PVOID CompletionContext,
                                                                                  FLT_POST_OPERATION_FLAGS Flags)
{
    FLT_POSTOP_CALLBACK_STATUS callbackStatus = FLT_POSTOP_FINISHED_PROCESSING;

    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING)) {
        goto Exit;
    }
    if (KeGetCurrentIrql() <= APC_LEVEL) {
        callbackStatus = DownlinkSafePostWrite(Data, FltObjects, CompletionContext, Flags);
    } else if (!FltDoCompletionProcessingWhenSafe(Data, FltObjects, CompletionContext, Flags, DownlinkSafePostWrite,
                                                  &callbackStatus)) {
        /* Cannot be deferred; the Filter Manager has set the status to be returned. */
        callbackStatus = FLT_POSTOP_FINISHED_PROCESSING;
    }

Exit:
    return callbackStatus;
}

static VOID DownlinkPublishWrite(_In_ PFLT_CALLBACK_DATA Data, _In_ USHORT Kind, _In_ NTSTATUS Status,
                                 _In_ ULONGLONG Value)
{
    PFLT_FILE_NAME_INFORMATION name;
    DOWNLINK_EVENT event;

    DownlinkFillEvent(&event, Kind, Data, Status);
    event.Value = Value;
    name = DownlinkQueryName(Data);
    DownlinkSetEventPath(&event, name);
    DownlinkPublish(&event);
    DownlinkReleaseName(name);
}

/* The first write of a handle is told at once, the others are added up and told when the handle is closed. */
static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkSafePostWrite(PFLT_CALLBACK_DATA Data,
                                                                                      PCFLT_RELATED_OBJECTS FltObjects,
                                                                                      PVOID CompletionContext,
                                                                                      FLT_POST_OPERATION_FLAGS Flags)
{
    PDOWNLINK_HANDLE_CONTEXT context;
    LONG64 bytes = (LONG64)Data->IoStatus.Information;

    UNREFERENCED_PARAMETER(CompletionContext);
    UNREFERENCED_PARAMETER(Flags);

    if (!NT_SUCCESS(Data->IoStatus.Status)) {
        if (DownlinkIsFailureWanted(DOWNLINK_MASK(DownlinkFileWritten))) {
            DownlinkPublishWrite(Data, DownlinkFileWritten, Data->IoStatus.Status, 0);
        }
        goto Exit;
    }

    context = DownlinkReferenceHandleContext(FltObjects, TRUE);
    if (context == NULL) {
        /* No place to add up: every write is told. */
        DownlinkPublishWrite(Data, DownlinkFileWritten, STATUS_SUCCESS, (ULONGLONG)bytes);
        goto Exit;
    }

    InterlockedExchangeAdd64(&context->BytesWritten, bytes);
    if ((context->FirstReported == 0) && (InterlockedExchange(&context->FirstReported, 1) == 0)) {
        InterlockedExchangeAdd64(&context->BytesReported, bytes);
        DownlinkPublishWrite(Data, DownlinkFileWritten, STATUS_SUCCESS, (ULONGLONG)bytes);
    }
    FltReleaseContext(context);

Exit:
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/* What a set-information request is to the driver. */
static BOOLEAN DownlinkIsRename(_In_ FILE_INFORMATION_CLASS Class)
{
    return (Class == FileRenameInformation) || (Class == FileRenameInformationEx);
}

static BOOLEAN DownlinkIsDisposition(_In_ FILE_INFORMATION_CLASS Class)
{
    return (Class == FileDispositionInformation) || (Class == FileDispositionInformationEx);
}

/* The old name of a rename can only be had before it. Both kinds are handled in the requestor's thread afterwards. */
static _Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI
DownlinkPreSetInformation(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects, PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;
    FILE_INFORMATION_CLASS class = Data->Iopb->Parameters.SetFileInformation.FileInformationClass;

    UNREFERENCED_PARAMETER(FltObjects);
    PAGED_CODE();
    *CompletionContext = NULL;

    if (DownlinkIsRename(class) && DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileRenamed))) {
        *CompletionContext = DownlinkQueryName(Data);
        callbackStatus = FLT_PREOP_SYNCHRONIZE;
    } else if (DownlinkIsDisposition(class)) {
        callbackStatus = FLT_PREOP_SYNCHRONIZE;
    }
    return callbackStatus;
}

static VOID DownlinkPublishRename(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                  _In_opt_ PFLT_FILE_NAME_INFORMATION OldName)
{
    PFLT_FILE_NAME_INFORMATION newName = NULL;
    DOWNLINK_EVENT event;

    DownlinkFillEvent(&event, DownlinkFileRenamed, Data, Data->IoStatus.Status);
    DownlinkFlagDirectory(&event, FltObjects);
    DownlinkSetEventPath(&event, OldName);
    if (NT_SUCCESS(Data->IoStatus.Status)) {
        newName = DownlinkQueryName(Data);
        if (newName != NULL) {
            event.SecondPath = newName->Name;
        }
    }
    DownlinkPublish(&event);
    DownlinkReleaseName(newName);
}

static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostSetInformation(
    PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects, PVOID CompletionContext, FLT_POST_OPERATION_FLAGS Flags)
{
    PFLT_FILE_NAME_INFORMATION oldName = CompletionContext;

    PAGED_CODE();

    if (!FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING)) {
        if (DownlinkIsRename(Data->Iopb->Parameters.SetFileInformation.FileInformationClass)) {
            DownlinkPublishRename(Data, FltObjects, oldName);
        } else if (NT_SUCCESS(Data->IoStatus.Status)) {
            /* Whether it set or took back the mark: what really happened is looked up at cleanup. */
            DownlinkMarkForDeletion(FltObjects);
        }
    }
    DownlinkReleaseName(oldName);
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/* Keeps with the stream whether it is a directory. */
static VOID DownlinkRememberDirectory(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Inout_ PDOWNLINK_STREAM_CONTEXT Context)
{
    BOOLEAN isDirectory = FALSE;

    if (NT_SUCCESS(FltIsDirectory(FltObjects->FileObject, FltObjects->Instance, &isDirectory)) && isDirectory) {
        Context->IsDirectory = 1;
    }
}

/* Totals of the handle's writes, told in the cleanup of the handle, before the file may be gone. */
static VOID DownlinkPublishTotals(_In_ PFLT_CALLBACK_DATA Data, _Inout_ PDOWNLINK_HANDLE_CONTEXT Context)
{
    LONG64 written = InterlockedExchangeAdd64(&Context->BytesWritten, 0);
    LONG64 unreported = written - InterlockedExchange64(&Context->BytesReported, written);

    if ((unreported > 0) && DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileWritten))) {
        DownlinkPublishWrite(Data, DownlinkFileWritten, STATUS_SUCCESS, (ULONGLONG)unreported);
    }
    if (DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileClosed))) {
        DownlinkPublishWrite(Data, DownlinkFileClosed, STATUS_SUCCESS, (ULONGLONG)written);
    }
}

static _Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreCleanup(PFLT_CALLBACK_DATA Data,
                                                                                  PCFLT_RELATED_OBJECTS FltObjects,
                                                                                  PVOID *CompletionContext)
{
    FLT_PREOP_CALLBACK_STATUS callbackStatus = FLT_PREOP_SUCCESS_NO_CALLBACK;
    PDOWNLINK_HANDLE_CONTEXT handleContext;
    PDOWNLINK_STREAM_CONTEXT streamContext;

    PAGED_CODE();
    *CompletionContext = NULL;

    if (DownlinkIsWanted(DOWNLINK_MASK_WRITES)) {
        handleContext = DownlinkReferenceHandleContext(FltObjects, FALSE);
        if (handleContext != NULL) {
            DownlinkPublishTotals(Data, handleContext);
            FltReleaseContext(handleContext);
        }
    }

    if (DownlinkIsWanted(DOWNLINK_MASK(DownlinkFileDeleted))) {
        streamContext = DownlinkReferenceStreamContext(FltObjects, FALSE);
        if (streamContext != NULL) {
            /* The name has to be taken now: afterwards there may be no file to ask. */
            *CompletionContext = DownlinkQueryName(Data);
            DownlinkRememberDirectory(FltObjects, streamContext);
            FltReleaseContext(streamContext);
            callbackStatus = FLT_PREOP_SYNCHRONIZE;
        }
    }
    return callbackStatus;
}

/*
 * Whether the cleanup has removed the file: the file system says so of a handle to a deleted file, and a POSIX
 * deletion, which leaves other handles alive, shows as a file that is to be deleted and has no name left.
 */
static BOOLEAN DownlinkIsDeleted(_In_ PCFLT_RELATED_OBJECTS FltObjects)
{
    NTSTATUS status;
    FILE_STANDARD_INFORMATION standard;

    RtlZeroMemory(&standard, sizeof(standard));
    status = FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &standard, sizeof(standard),
                                     FileStandardInformation, NULL);
    return (status == STATUS_FILE_DELETED) ||
           (NT_SUCCESS(status) && standard.DeletePending && (standard.NumberOfLinks == 0));
}

static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostCleanup(PFLT_CALLBACK_DATA Data,
                                                                                    PCFLT_RELATED_OBJECTS FltObjects,
                                                                                    PVOID CompletionContext,
                                                                                    FLT_POST_OPERATION_FLAGS Flags)
{
    PFLT_FILE_NAME_INFORMATION name = CompletionContext;
    PDOWNLINK_STREAM_CONTEXT context = NULL;
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) || !NT_SUCCESS(Data->IoStatus.Status) ||
        !DownlinkIsDeleted(FltObjects)) {
        goto Exit;
    }

    context = DownlinkReferenceStreamContext(FltObjects, FALSE);
    if ((context != NULL) && (InterlockedExchange(&context->DeleteReported, 1) == 0)) {
        DownlinkFillEvent(&event, DownlinkFileDeleted, Data, STATUS_SUCCESS);
        if (context->IsDirectory != 0) {
            event.Flags |= DOWNLINK_RECORD_DIRECTORY;
        }
        DownlinkSetEventPath(&event, name);
        DownlinkPublish(&event);
    }

Exit:
    if (context != NULL) {
        FltReleaseContext(context);
    }
    DownlinkReleaseName(name);
    return FLT_POSTOP_FINISHED_PROCESSING;
}
