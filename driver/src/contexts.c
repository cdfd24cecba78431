/*
 * What the driver remembers of an open handle (bytes written) and of a stream (that it may be deleted).
 */
#include "downlink.h"

const FLT_CONTEXT_REGISTRATION DownlinkContexts[] = {
    {
        .ContextType = FLT_STREAMHANDLE_CONTEXT,
        .Size = sizeof(DOWNLINK_HANDLE_CONTEXT),
        .PoolTag = DOWNLINK_TAG_HANDLE,
    },
    {
        .ContextType = FLT_STREAM_CONTEXT,
        .Size = sizeof(DOWNLINK_STREAM_CONTEXT),
        .PoolTag = DOWNLINK_TAG_STREAM,
    },
    {.ContextType = FLT_CONTEXT_END},
};

typedef NTSTATUS(FLTAPI *PDOWNLINK_GET_CONTEXT)(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                _Outptr_ PFLT_CONTEXT *Context);
typedef NTSTATUS(FLTAPI *PDOWNLINK_SET_CONTEXT)(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                _In_ FLT_SET_CONTEXT_OPERATION Operation, _In_ PFLT_CONTEXT NewContext,
                                                _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);

/*
 * The context of that type, referenced; the caller releases it. NULL if there is none and none was wanted, could be
 * allocated or is supported by the file. Two threads that both make one end up with the same.
 */
static PFLT_CONTEXT DownlinkReferenceContext(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ FLT_CONTEXT_TYPE Type,
                                             _In_ SIZE_T Size, _In_ PDOWNLINK_GET_CONTEXT Get,
                                             _In_ PDOWNLINK_SET_CONTEXT Set, _In_ BOOLEAN Create)
{
    NTSTATUS status;
    PFLT_CONTEXT context = NULL;
    PFLT_CONTEXT existing = NULL;

    status = Get(FltObjects->Instance, FltObjects->FileObject, &context);
    if (NT_SUCCESS(status) || !Create) {
        goto Exit;
    }

    status = FltAllocateContext(FltObjects->Filter, Type, Size, NonPagedPoolNx, &context);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }
    RtlZeroMemory(context, Size);

    status = Set(FltObjects->Instance, FltObjects->FileObject, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, &existing);
    if (!NT_SUCCESS(status)) {
        FltReleaseContext(context);
        context = existing;
        if (status == STATUS_FLT_CONTEXT_ALREADY_DEFINED) {
            status = STATUS_SUCCESS;
        }
    }

Exit:
    return NT_SUCCESS(status) ? context : NULL;
}

_Use_decl_annotations_ PDOWNLINK_HANDLE_CONTEXT DownlinkReferenceHandleContext(PCFLT_RELATED_OBJECTS FltObjects,
                                                                               BOOLEAN Create)
{
    return DownlinkReferenceContext(FltObjects, FLT_STREAMHANDLE_CONTEXT, sizeof(DOWNLINK_HANDLE_CONTEXT),
                                    FltGetStreamHandleContext, FltSetStreamHandleContext, Create);
}

_Use_decl_annotations_ PDOWNLINK_STREAM_CONTEXT DownlinkReferenceStreamContext(PCFLT_RELATED_OBJECTS FltObjects,
                                                                               BOOLEAN Create)
{
    return DownlinkReferenceContext(FltObjects, FLT_STREAM_CONTEXT, sizeof(DOWNLINK_STREAM_CONTEXT),
                                    FltGetStreamContext, FltSetStreamContext, Create);
}
