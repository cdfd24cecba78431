/*
 * Writes: the first of a handle is told at once, the others are added up and told when the handle is closed.
 */
#include "downlink.h"

static FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkSafePostWrite(_Inout_ PFLT_CALLBACK_DATA Data,
                                                               _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                               _In_opt_ PVOID CompletionContext,
                                                               _In_ FLT_POST_OPERATION_FLAGS Flags);

_Use_decl_annotations_ FLT_PREOP_CALLBACK_STATUS FLTAPI DownlinkPreWrite(PFLT_CALLBACK_DATA Data,
                                                                         PCFLT_RELATED_OBJECTS FltObjects,
                                                                         PVOID *CompletionContext)
{
    *CompletionContext = NULL;

    if (!DownlinkIsWanted(DOWNLINK_MASK_WRITES) || DownlinkIsVolumeOpen(FltObjects) ||
        FlagOn(Data->Iopb->IrpFlags, IRP_PAGING_IO | IRP_SYNCHRONOUS_PAGING_IO)) {
        return FLT_PREOP_SUCCESS_NO_CALLBACK;
    }
    return FLT_PREOP_SUCCESS_WITH_CALLBACK;
}

/* An asynchronous write may complete at DISPATCH_LEVEL: it is told from where names may be touched. */
_Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkPostWrite(PFLT_CALLBACK_DATA Data,
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
        /* Cannot be deferred; the operation is complete. */
        callbackStatus = FLT_POSTOP_FINISHED_PROCESSING;
    }

Exit:
    return callbackStatus;
}

static VOID DownlinkPublishWrite(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                 _In_opt_ const DOWNLINK_HANDLE_CONTEXT *Context)
{
    DOWNLINK_EVENT event;

    DownlinkFillEvent(&event, DownlinkFileWritten, Data, Data->IoStatus.Status);
    event.Value = NT_SUCCESS(Data->IoStatus.Status) ? Data->IoStatus.Information : 0;
    DownlinkPublishHandle(Data, FltObjects, &event, Context);
}

static _Use_decl_annotations_ FLT_POSTOP_CALLBACK_STATUS FLTAPI DownlinkSafePostWrite(PFLT_CALLBACK_DATA Data,
                                                                                      PCFLT_RELATED_OBJECTS FltObjects,
                                                                                      PVOID CompletionContext,
                                                                                      FLT_POST_OPERATION_FLAGS Flags)
{
    PDOWNLINK_HANDLE_CONTEXT context = NULL;
    LONG64 bytes = (LONG64)Data->IoStatus.Information;

    UNREFERENCED_PARAMETER(CompletionContext);
    UNREFERENCED_PARAMETER(Flags);

    if (!NT_SUCCESS(Data->IoStatus.Status)) {
        if (DownlinkIsOutcomeWanted(DOWNLINK_MASK(DownlinkFileWritten), Data->IoStatus.Status)) {
            context = DownlinkFindHandleContext(FltObjects);
            DownlinkPublishWrite(Data, FltObjects, context);
        }
        goto Exit;
    }

    context = DownlinkReferenceHandleContext(Data, FltObjects);
    if (context == NULL) {
        /* No place to add up: every write is told. */
        DownlinkPublishWrite(Data, FltObjects, NULL);
        goto Exit;
    }

    InterlockedExchangeAdd64(&context->BytesWritten, bytes);
    InterlockedOr(&context->Changes, (LONG)DOWNLINK_MASK(DownlinkFileWritten));
    if ((context->FirstReported == 0) && (InterlockedExchange(&context->FirstReported, 1) == 0)) {
        InterlockedExchangeAdd64(&context->BytesReported, bytes);
        DownlinkPublishWrite(Data, FltObjects, context);
    }

Exit:
    if (context != NULL) {
        FltReleaseContext(context);
    }
    return FLT_POSTOP_FINISHED_PROCESSING;
}
