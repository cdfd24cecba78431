/*
 * A small minifilter for the tests of the I/O path: tells by DbgPrint what it sees, with names, stream-handle
 * contexts, a swapped write buffer, a posted read and a deferred completion.
 */
#include <fltkernel.h>

#define WATCH_TAG 'hctW'

typedef struct _WATCH_HANDLE {
    ULONG Writes;
    ULONG Bytes;
} WATCH_HANDLE, *PWATCH_HANDLE;

static PFLT_FILTER Filter;

DRIVER_INITIALIZE DriverEntry;

static VOID FLTAPI ContextCleanup(PFLT_CONTEXT Context, FLT_CONTEXT_TYPE ContextType)
{
    PWATCH_HANDLE handle = Context;

    UNREFERENCED_PARAMETER(ContextType);
    DbgPrint("context gone: %lu writes, %lu bytes\n", handle->Writes, handle->Bytes);
}

static FLT_PREOP_CALLBACK_STATUS FLTAPI PreCreate(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                  PVOID *CompletionContext)
{
    UNREFERENCED_PARAMETER(FltObjects);
    if (FlagOn(Data->Iopb->OperationFlags, SL_OPEN_TARGET_DIRECTORY)) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    *CompletionContext = (PVOID)(ULONG_PTR)(Data->Iopb->Parameters.Create.Options >> 24);
    return FLT_PREOP_SUCCESS_WITH_CALLBACK;
}

static FLT_POSTOP_CALLBACK_STATUS FLTAPI PostCreate(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                    PVOID CompletionContext, FLT_POST_OPERATION_FLAGS Flags)
{
    PFLT_FILE_NAME_INFORMATION name;
    PWATCH_HANDLE handle;
    NTSTATUS status;

    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) || !NT_SUCCESS(Data->IoStatus.Status)) {
        return FLT_POSTOP_FINISHED_PROCESSING;
    }
    status = FltGetFileNameInformation(Data, FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_DEFAULT, &name);
    if (NT_SUCCESS(status)) {
        status = FltParseFileNameInformation(name);
        if (NT_SUCCESS(status)) {
            DbgPrint("%lu opened %wZ in %wZ as %lu, asked for %lu\n", FltGetRequestorProcessId(Data),
                     &name->FinalComponent, &name->ParentDir, (ULONG)Data->IoStatus.Information,
                     (ULONG)(ULONG_PTR)CompletionContext);
        }
        FltReleaseFileNameInformation(name);
    }
    status = FltAllocateContext(Filter, FLT_STREAMHANDLE_CONTEXT, sizeof(WATCH_HANDLE), PagedPool,
                                (PFLT_CONTEXT *)&handle);
    if (NT_SUCCESS(status)) {
        RtlZeroMemory(handle, sizeof(*handle));
        (VOID)FltSetStreamHandleContext(FltObjects->Instance, FltObjects->FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS,
                                        handle, NULL);
        FltReleaseContext(handle);
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}

/* Every write goes out with its first byte replaced by an asterisk, from a buffer of our own. */
static FLT_PREOP_CALLBACK_STATUS FLTAPI PreWrite(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                 PVOID *CompletionContext)
{
    PFLT_IO_PARAMETER_BLOCK iopb = Data->Iopb;
    ULONG length = iopb->Parameters.Write.Length;
    PUCHAR swapped;

    UNREFERENCED_PARAMETER(FltObjects);
    if (length == 0 || FlagOn(iopb->IrpFlags, IRP_PAGING_IO)) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    swapped = ExAllocatePoolWithTag(NonPagedPoolNx, length, WATCH_TAG);
    if (swapped == NULL) {
        Data->IoStatus.Status = STATUS_INSUFFICIENT_RESOURCES;
        Data->IoStatus.Information = 0;
        return FLT_PREOP_COMPLETE;
    }
    RtlCopyMemory(swapped, iopb->Parameters.Write.WriteBuffer, length);
    swapped[0] = '*';
    iopb->Parameters.Write.WriteBuffer = swapped;
    iopb->Parameters.Write.MdlAddress = NULL;
    FltSetCallbackDataDirty(Data);
    *CompletionContext = swapped;
    return FLT_PREOP_SUCCESS_WITH_CALLBACK;
}

static FLT_POSTOP_CALLBACK_STATUS FLTAPI SafePostWrite(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                       PVOID CompletionContext, FLT_POST_OPERATION_FLAGS Flags)
{
    PWATCH_HANDLE handle;

    UNREFERENCED_PARAMETER(Flags);
    ExFreePoolWithTag(CompletionContext, WATCH_TAG);
    if (NT_SUCCESS(FltGetStreamHandleContext(FltObjects->Instance, FltObjects->FileObject, (PFLT_CONTEXT *)&handle))) {
        handle->Writes += 1;
        handle->Bytes += (ULONG)Data->IoStatus.Information;
        FltReleaseContext(handle);
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}

static FLT_POSTOP_CALLBACK_STATUS FLTAPI PostWrite(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                   PVOID CompletionContext, FLT_POST_OPERATION_FLAGS Flags)
{
    FLT_POSTOP_CALLBACK_STATUS result = FLT_POSTOP_FINISHED_PROCESSING;

    if (FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING)) {
        ExFreePoolWithTag(CompletionContext, WATCH_TAG);
    } else if (!FltDoCompletionProcessingWhenSafe(Data, FltObjects, CompletionContext, Flags, SafePostWrite,
                                                  &result)) {
        ExFreePoolWithTag(CompletionContext, WATCH_TAG);
    }
    return result;
}

static VOID FLTAPI ReadWorker(PFLT_DEFERRED_IO_WORKITEM Item, PFLT_CALLBACK_DATA Data, PVOID Context)
{
    UNREFERENCED_PARAMETER(Context);
    DbgPrint("read of %lu bytes goes on in process %lu\n", Data->Iopb->Parameters.Read.Length,
             (ULONG)(ULONG_PTR)PsGetCurrentProcessId());
    FltFreeDeferredIoWorkItem(Item);
    FltCompletePendedPreOperation(Data, FLT_PREOP_SUCCESS_NO_CALLBACK, NULL);
}

static FLT_PREOP_CALLBACK_STATUS FLTAPI PreRead(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                PVOID *CompletionContext)
{
    PFLT_DEFERRED_IO_WORKITEM item = FltAllocateDeferredIoWorkItem();

    UNREFERENCED_PARAMETER(FltObjects);
    UNREFERENCED_PARAMETER(CompletionContext);
    if (item == NULL) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    if (!NT_SUCCESS(FltLockUserBuffer(Data)) ||
        !NT_SUCCESS(FltQueueDeferredIoWorkItem(item, Data, ReadWorker, DelayedWorkQueue, NULL))) {
        FltFreeDeferredIoWorkItem(item);
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    return FLT_PREOP_PENDING;
}

static FLT_POSTOP_CALLBACK_STATUS FLTAPI PostCleanup(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                     PVOID CompletionContext, FLT_POST_OPERATION_FLAGS Flags)
{
    FILE_STANDARD_INFORMATION standard;

    UNREFERENCED_PARAMETER(Data);
    UNREFERENCED_PARAMETER(CompletionContext);
    if (!FlagOn(Flags, FLTFL_POST_OPERATION_DRAINING) &&
        FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &standard, sizeof(standard),
                                FileStandardInformation, NULL) == STATUS_FILE_DELETED) {
        DbgPrint("deleted\n");
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}

static const FLT_OPERATION_REGISTRATION Operations[] = {
    {.MajorFunction = IRP_MJ_CREATE, .PreOperation = PreCreate, .PostOperation = PostCreate},
    {.MajorFunction = IRP_MJ_WRITE, .PreOperation = PreWrite, .PostOperation = PostWrite},
    {.MajorFunction = IRP_MJ_READ, .PreOperation = PreRead},
    {.MajorFunction = IRP_MJ_CLEANUP, .PostOperation = PostCleanup},
    {.MajorFunction = IRP_MJ_OPERATION_END},
};

static const FLT_CONTEXT_REGISTRATION Contexts[] = {
    {.ContextType = FLT_STREAMHANDLE_CONTEXT,
     .ContextCleanupCallback = ContextCleanup,
     .Size = sizeof(WATCH_HANDLE),
     .PoolTag = WATCH_TAG},
    {.ContextType = FLT_CONTEXT_END},
};

static NTSTATUS FLTAPI Unload(FLT_FILTER_UNLOAD_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(Flags);
    FltUnregisterFilter(Filter);
    return STATUS_SUCCESS;
}

static const FLT_REGISTRATION Registration = {
    .Size = sizeof(FLT_REGISTRATION),
    .Version = FLT_REGISTRATION_VERSION,
    .ContextRegistration = Contexts,
    .OperationRegistration = Operations,
    .FilterUnloadCallback = Unload,
};

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)
{
    NTSTATUS status = FltRegisterFilter(DriverObject, &Registration, &Filter);

    UNREFERENCED_PARAMETER(RegistryPath);
    if (NT_SUCCESS(status)) {
        status = FltStartFiltering(Filter);
        if (!NT_SUCCESS(status)) {
            FltUnregisterFilter(Filter);
        }
    }
    return status;
}
