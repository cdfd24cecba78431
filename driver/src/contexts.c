/*
 * What the driver remembers: of an open handle (who the file is, what was changed), of a file and of a stream (that it
 * may be deleted, and whether that was told), of an instance (the volume's name).
 */
#include "downlink.h"

static VOID FLTAPI DownlinkCleanupHandleContext(_In_ PFLT_CONTEXT Context, _In_ FLT_CONTEXT_TYPE ContextType);

const FLT_CONTEXT_REGISTRATION DownlinkContexts[] = {
    {
        .ContextType = FLT_INSTANCE_CONTEXT,
        .Size = FLT_VARIABLE_SIZED_CONTEXTS,
        .PoolTag = DOWNLINK_TAG_INSTANCE,
    },
    {
        .ContextType = FLT_STREAMHANDLE_CONTEXT,
        .ContextCleanupCallback = DownlinkCleanupHandleContext,
        .Size = sizeof(DOWNLINK_HANDLE_CONTEXT),
        .PoolTag = DOWNLINK_TAG_HANDLE,
    },
    {
        .ContextType = FLT_FILE_CONTEXT,
        .Size = sizeof(DOWNLINK_DELETION_CONTEXT),
        .PoolTag = DOWNLINK_TAG_DELETION,
    },
    {
        .ContextType = FLT_STREAM_CONTEXT,
        .Size = sizeof(DOWNLINK_DELETION_CONTEXT),
        .PoolTag = DOWNLINK_TAG_DELETION,
    },
    {.ContextType = FLT_CONTEXT_END},
};

static VOID FLTAPI DownlinkCleanupHandleContext(PFLT_CONTEXT Context, FLT_CONTEXT_TYPE ContextType)
{
    PDOWNLINK_HANDLE_CONTEXT context = Context;

    UNREFERENCED_PARAMETER(ContextType);
    DownlinkForget(&context->Identity);
}

/* The handle's context, referenced; NULL if it has none. */
_Use_decl_annotations_ PDOWNLINK_HANDLE_CONTEXT DownlinkFindHandleContext(PCFLT_RELATED_OBJECTS FltObjects)
{
    PFLT_CONTEXT context = NULL;

    if (!NT_SUCCESS(FltGetStreamHandleContext(FltObjects->Instance, FltObjects->FileObject, &context))) {
        context = NULL;
    }
    return context;
}

/*
 * Gives the handle a context with that identity. Returns the context, referenced, and has taken the identity over;
 * or returns NULL, and the identity is still the caller's. Two threads that both attach one end up with the same.
 */
_Use_decl_annotations_ PDOWNLINK_HANDLE_CONTEXT DownlinkAttachHandleContext(PCFLT_RELATED_OBJECTS FltObjects,
                                                                            PDOWNLINK_IDENTITY Identity)
{
    NTSTATUS status;
    PDOWNLINK_HANDLE_CONTEXT context = NULL;
    PFLT_CONTEXT existing = NULL;

    status = FltAllocateContext(FltObjects->Filter, FLT_STREAMHANDLE_CONTEXT, sizeof(*context), NonPagedPoolNx,
                                (PFLT_CONTEXT *)&context);
    if (!NT_SUCCESS(status)) {
        context = NULL;
        goto Exit;
    }
    RtlZeroMemory(context, sizeof(*context));
    /* Complete before others can see it. */
    context->Identity = *Identity;

    status = FltSetStreamHandleContext(FltObjects->Instance, FltObjects->FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS,
                                       context, &existing);
    if (NT_SUCCESS(status)) {
        Identity->Name = NULL;
        goto Exit;
    }
    context->Identity.Name = NULL;
    FltReleaseContext(context);
    context = NULL;
    if (status == STATUS_FLT_CONTEXT_ALREADY_DEFINED) {
        DownlinkForget(Identity);
        context = existing;
    }

Exit:
    return context;
}

/* The handle's context, referenced, made if it has none; NULL if that is not possible. */
_Use_decl_annotations_ PDOWNLINK_HANDLE_CONTEXT DownlinkReferenceHandleContext(PFLT_CALLBACK_DATA Data,
                                                                               PCFLT_RELATED_OBJECTS FltObjects)
{
    PDOWNLINK_HANDLE_CONTEXT context = DownlinkFindHandleContext(FltObjects);
    DOWNLINK_IDENTITY identity;

    if (context == NULL) {
        DownlinkIdentify(Data, FltObjects, &identity);
        context = DownlinkAttachHandleContext(FltObjects, &identity);
        DownlinkForget(&identity);
    }
    return context;
}

/* Gives the file or the stream a context. Returns the one that it has then, referenced; NULL if that is not possible. */
static PDOWNLINK_DELETION_CONTEXT DownlinkAttachDeletionContext(_In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                                _In_ FLT_CONTEXT_TYPE ContextType)
{
    NTSTATUS status;
    PFLT_CONTEXT context = NULL;
    PFLT_CONTEXT existing = NULL;

    status = FltAllocateContext(FltObjects->Filter, ContextType, sizeof(DOWNLINK_DELETION_CONTEXT), NonPagedPoolNx,
                                &context);
    if (!NT_SUCCESS(status)) {
        context = NULL;
        goto Exit;
    }
    RtlZeroMemory(context, sizeof(DOWNLINK_DELETION_CONTEXT));

    if (ContextType == FLT_FILE_CONTEXT) {
        status = FltSetFileContext(FltObjects->Instance, FltObjects->FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS,
                                   context, &existing);
    } else {
        status = FltSetStreamContext(FltObjects->Instance, FltObjects->FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS,
                                     context, &existing);
    }
    if (!NT_SUCCESS(status)) {
        FltReleaseContext(context);
        context = (status == STATUS_FLT_CONTEXT_ALREADY_DEFINED) ? existing : NULL;
    }

Exit:
    return context;
}

/* The stream's context, referenced; NULL if it has none and none was wanted or could be made. */
_Use_decl_annotations_ PDOWNLINK_DELETION_CONTEXT DownlinkReferenceStreamContext(PCFLT_RELATED_OBJECTS FltObjects,
                                                                                 BOOLEAN Create)
{
    PFLT_CONTEXT context = NULL;

    if (!NT_SUCCESS(FltGetStreamContext(FltObjects->Instance, FltObjects->FileObject, &context))) {
        context = Create ? DownlinkAttachDeletionContext(FltObjects, FLT_STREAM_CONTEXT) : NULL;
    }
    return context;
}

/*
 * The same of the file, whichever of its streams the handle is of. A file system that knows no such contexts has one
 * stream in each file.
 */
_Use_decl_annotations_ PDOWNLINK_DELETION_CONTEXT DownlinkReferenceFileContext(PCFLT_RELATED_OBJECTS FltObjects,
                                                                               BOOLEAN Create)
{
    NTSTATUS status;
    PFLT_CONTEXT context = NULL;

    status = FltGetFileContext(FltObjects->Instance, FltObjects->FileObject, &context);
    if (status == STATUS_NOT_SUPPORTED) {
        context = DownlinkReferenceStreamContext(FltObjects, Create);
    } else if (!NT_SUCCESS(status)) {
        context = Create ? DownlinkAttachDeletionContext(FltObjects, FLT_FILE_CONTEXT) : NULL;
    }
    return context;
}
