/*
 * What is known of a file: its name, its identifier, whether it is a directory; asked for only where that is safe.
 */
#include "downlink.h"

C_ASSERT(sizeof(DOWNLINK_FILE_ID) == sizeof(FILE_ID_128));

static BOOLEAN DownlinkQueryFileId(_In_ PCFLT_RELATED_OBJECTS FltObjects, _Out_ DOWNLINK_FILE_ID *FileId);

/*
 * The name of the operation's file: the normalised one where it can be had, the opened one else, NULL at last. The
 * Filter Manager itself refuses name queries where they could recurse or deadlock (paging I/O, an operation nested in
 * the file system's own) with STATUS_FLT_INVALID_NAME_REQUEST; a name that it has cached is always safe.
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
    if (!NT_SUCCESS(status)) {
        name = NULL;
    }
    return name;
}

_Use_decl_annotations_ VOID DownlinkReleaseName(PFLT_FILE_NAME_INFORMATION Name)
{
    if (Name != NULL) {
        FltReleaseFileNameInformation(Name);
    }
}

/*
 * Whether the file system may be asked about a file now: its answer arrives by a kernel APC at PASSIVE_LEVEL, and a
 * thread with a top-level IRP is inside the file system already, maybe with locks that the question needs.
 */
_Use_decl_annotations_ BOOLEAN DownlinkMayQueryFile(VOID)
{
    return (KeGetCurrentIrql() == PASSIVE_LEVEL) && (IoGetTopLevelIrp() == NULL) && !KeAreAllApcsDisabled();
}

_Use_decl_annotations_ VOID DownlinkIdentify(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                             PDOWNLINK_IDENTITY Identity)
{
    BOOLEAN isDirectory = FALSE;

    *Identity = (DOWNLINK_IDENTITY){.NameGeneration = Downlink.NameGeneration};
    Identity->Name = DownlinkQueryName(Data);
    if (DownlinkMayQueryFile()) {
        if (DownlinkQueryFileId(FltObjects, &Identity->FileId)) {
            Identity->Flags |= DOWNLINK_RECORD_FILE_ID;
        }
        if (NT_SUCCESS(FltIsDirectory(FltObjects->FileObject, FltObjects->Instance, &isDirectory)) && isDirectory) {
            Identity->Flags |= DOWNLINK_RECORD_DIRECTORY;
        }
    }
}

_Use_decl_annotations_ VOID DownlinkForget(PDOWNLINK_IDENTITY Identity)
{
    DownlinkReleaseName(Identity->Name);
    Identity->Name = NULL;
}

/* The 128-bit identifier where the volume has one, the 64-bit one else. */
static BOOLEAN DownlinkQueryFileId(PCFLT_RELATED_OBJECTS FltObjects, DOWNLINK_FILE_ID *FileId)
{
    NTSTATUS status;
    FILE_ID_INFORMATION information;
    FILE_INTERNAL_INFORMATION internal;

    status = FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &information, sizeof(information),
                                     FileIdInformation, NULL);
    if (NT_SUCCESS(status)) {
        *FileId = *(const DOWNLINK_FILE_ID *)&information.FileId;
        goto Exit;
    }
    status = FltQueryInformationFile(FltObjects->Instance, FltObjects->FileObject, &internal, sizeof(internal),
                                     FileInternalInformation, NULL);
    if (NT_SUCCESS(status)) {
        FileId->Low = (ULONGLONG)internal.IndexNumber.QuadPart;
        FileId->High = 0;
    }

Exit:
    return NT_SUCCESS(status);
}
