/*
 * The table of operation callbacks, and what they have in common. No callback waits for anything but the file system.
 */
#include "downlink.h"

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
        .MajorFunction = IRP_MJ_SET_SECURITY,
        .PreOperation = DownlinkPreSetSecurity,
        .PostOperation = DownlinkPostSetSecurity,
    },
    {
        .MajorFunction = IRP_MJ_CLEANUP,
        .PreOperation = DownlinkPreCleanup,
        .PostOperation = DownlinkPostCleanup,
    },
    {.MajorFunction = IRP_MJ_OPERATION_END},
};

/* What all events of an operation have in common. Before an operation its own status says nothing yet. */
_Use_decl_annotations_ VOID DownlinkFillEvent(PDOWNLINK_EVENT Event, USHORT Kind, PFLT_CALLBACK_DATA Data,
                                              NTSTATUS Status)
{
    *Event = (DOWNLINK_EVENT){.Kind = Kind, .Status = Status};
    Event->ProcessId = FltGetRequestorProcessId(Data);
    Event->ThreadId = HandleToULong((Data->Thread != NULL) ? PsGetThreadId(Data->Thread) : PsGetCurrentThreadId());
    KeQuerySystemTimePrecise(&Event->Time);
}

/* Whether the operation is on a volume as a whole: no file, no name, nobody's business. */
_Use_decl_annotations_ BOOLEAN DownlinkIsVolumeOpen(PCFLT_RELATED_OBJECTS FltObjects)
{
    return (FltObjects->FileObject == NULL) || FlagOn(FltObjects->FileObject->Flags, FO_VOLUME_OPEN);
}

/* Publishes an event of a file without a name: what is left is the volume, and the identifier if there is one. */
static VOID DownlinkPublishNameless(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Inout_ PDOWNLINK_EVENT Event)
{
    PDOWNLINK_INSTANCE_CONTEXT context = NULL;

    Event->Flags |= DOWNLINK_RECORD_NO_PATH;
    if (NT_SUCCESS(FltGetInstanceContext(FltObjects->Instance, (PFLT_CONTEXT *)&context))) {
        Event->Path.Buffer = context->VolumeName;
        Event->Path.Length = context->VolumeNameLength;
        Event->Path.MaximumLength = context->VolumeNameLength;
        Event->VolumeLength = context->VolumeNameLength;
    } else {
        context = NULL;
    }
    DownlinkPublish(Event);
    if (context != NULL) {
        FltReleaseContext(context);
    }
}

/* Publishes an event of a file that is known. */
_Use_decl_annotations_ VOID DownlinkPublishFile(PCFLT_RELATED_OBJECTS FltObjects, PDOWNLINK_EVENT Event,
                                                const DOWNLINK_IDENTITY *Identity)
{
    Event->Flags |= Identity->Flags;
    Event->FileId = Identity->FileId;
    if (Identity->Name != NULL) {
        Event->Path = Identity->Name->Name;
        Event->Path.Length -= Identity->HiddenBytes;
        Event->VolumeLength = Identity->Name->Volume.Length;
        DownlinkPublish(Event);
    } else {
        DownlinkPublishNameless(FltObjects, Event);
    }
}

/*
 * Publishes an event of a handle. Its context knows the file, so that no name has to be asked for, unless there was a
 * rename since; without a context everything is asked for.
 */
_Use_decl_annotations_ VOID DownlinkPublishHandle(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                  PDOWNLINK_EVENT Event, const DOWNLINK_HANDLE_CONTEXT *Context)
{
    DOWNLINK_IDENTITY identity;

    if (Context == NULL) {
        DownlinkIdentify(Data, FltObjects, &identity);
    } else if ((Context->Identity.Name != NULL) && (Context->Identity.NameGeneration == Downlink.NameGeneration)) {
        DownlinkPublishFile(FltObjects, Event, &Context->Identity);
        return;
    } else {
        identity = Context->Identity;
        identity.Name = DownlinkQueryName(Data);
    }
    DownlinkPublishFile(FltObjects, Event, &identity);
    DownlinkForget(&identity);
}
