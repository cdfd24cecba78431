/*
 * Names of files: the Filter Manager's normalised name where it can be had safely, the opened name else, none at last.
 */
#include "downlink.h"

/*
 * The name of the operation's file, parsed; NULL if there is none to be had. The Filter Manager itself refuses name
 * queries where they could recurse or deadlock (paging I/O, an operation nested in the file system's own), with
 * STATUS_FLT_INVALID_NAME_REQUEST; a name that it has cached is always safe.
 */
_Use_decl_annotations_ PFLT_FILE_NAME_INFORMATION DownlinkQueryName(PFLT_CALLBACK_DATA Data)
{
    NTSTATUS status;
    PFLT_FILE_NAME_INFORMATION name = NULL;

    status = FltGetFileNameInformation(Data, FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_DEFAULT, &name);
    if (!NT_SUCCESS(status)) {
        status = FltGetFileNameInformation(Data, FLT_FILE_NAME_OPENED | FLT_FILE_NAME_QUERY_ALWAYS_ALLOW_CACHE_LOOKUP,
                                           &name);
    }
    if (NT_SUCCESS(status)) {
        status = FltParseFileNameInformation(name);
        if (!NT_SUCCESS(status)) {
            FltReleaseFileNameInformation(name);
        }
    }
    return NT_SUCCESS(status) ? name : NULL;
}

_Use_decl_annotations_ VOID DownlinkReleaseName(PFLT_FILE_NAME_INFORMATION Name)
{
    if (Name != NULL) {
        FltReleaseFileNameInformation(Name);
    }
}

/* Points the event at the name, which must outlive it. */
_Use_decl_annotations_ VOID DownlinkSetEventPath(PDOWNLINK_EVENT Event, PFLT_FILE_NAME_INFORMATION Name)
{
    if (Name != NULL) {
        Event->Path = Name->Name;
        Event->VolumeLength = Name->Volume.Length;
    } else {
        Event->Flags |= DOWNLINK_RECORD_NO_PATH;
    }
}
