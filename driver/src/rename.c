/*
 * Renames and hard links: two names, of which one can only be had before the operation.
 */
#include "downlink.h"

/* What the pre-operation callback keeps for its post-operation callback. */
struct _DOWNLINK_NAME_CHANGE {
    DOWNLINK_IDENTITY Identity;             /* the file, with its name before */
    PFLT_FILE_NAME_INFORMATION Destination; /* the name that was asked for; NULL if it could not be had */
};

/* One layout serves both. */
C_ASSERT(FIELD_OFFSET(FILE_RENAME_INFORMATION, RootDirectory) == FIELD_OFFSET(FILE_LINK_INFORMATION, RootDirectory));
C_ASSERT(FIELD_OFFSET(FILE_RENAME_INFORMATION, FileName) == FIELD_OFFSET(FILE_LINK_INFORMATION, FileName));

static PFLT_FILE_NAME_INFORMATION DownlinkQueryDestination(_In_ PFLT_CALLBACK_DATA Data,
                                                           _In_ PCFLT_RELATED_OBJECTS FltObjects);

#pragma alloc_text(PAGE, DownlinkBeginNameChange)
#pragma alloc_text(PAGE, DownlinkPublishNameChange)
#pragma alloc_text(PAGE, DownlinkEndNameChange)
#pragma alloc_text(PAGE, DownlinkQueryDestination)

/* NULL if there is no memory. */
_Use_decl_annotations_ PDOWNLINK_NAME_CHANGE DownlinkBeginNameChange(PFLT_CALLBACK_DATA Data,
                                                                     PCFLT_RELATED_OBJECTS FltObjects)
{
    PDOWNLINK_NAME_CHANGE change;

    PAGED_CODE();

    change = ExAllocatePool2(POOL_FLAG_PAGED, sizeof(*change), DOWNLINK_TAG_OPERATION);
    if (change != NULL) {
        DownlinkIdentify(Data, FltObjects, &change->Identity);
        change->Destination = DownlinkQueryDestination(Data, FltObjects);
    }
    return change;
}

/* After a rename the file itself tells its new name; of a link, and of what failed, it is the name asked for. */
_Use_decl_annotations_ VOID DownlinkPublishNameChange(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects,
                                                      USHORT Kind, PDOWNLINK_NAME_CHANGE Change)
{
    PFLT_FILE_NAME_INFORMATION newName = NULL;
    DOWNLINK_IDENTITY unknown = {0};
    DOWNLINK_EVENT event;

    PAGED_CODE();

    if (!DownlinkIsOutcomeWanted(DOWNLINK_MASK(Kind), Data->IoStatus.Status)) {
        return;
    }
    DownlinkFillEvent(&event, Kind, Data, Data->IoStatus.Status);
    if ((Kind == DownlinkFileRenamed) && NT_SUCCESS(Data->IoStatus.Status)) {
        newName = DownlinkQueryName(Data);
    }
    if (newName != NULL) {
        event.SecondPath = newName->Name;
    } else if ((Change != NULL) && (Change->Destination != NULL)) {
        event.SecondPath = Change->Destination->Name;
    }
    DownlinkPublishFile(FltObjects, &event, (Change != NULL) ? &Change->Identity : &unknown);
    DownlinkReleaseName(newName);
}

_Use_decl_annotations_ VOID DownlinkEndNameChange(PDOWNLINK_NAME_CHANGE Change)
{
    PAGED_CODE();

    if (Change != NULL) {
        DownlinkForget(&Change->Identity);
        DownlinkReleaseName(Change->Destination);
        ExFreePoolWithTag(Change, DOWNLINK_TAG_OPERATION);
    }
}

/* The full name that a rename or link asks for. The I/O manager and the file system do not trust these lengths either. */
static PFLT_FILE_NAME_INFORMATION DownlinkQueryDestination(PFLT_CALLBACK_DATA Data, PCFLT_RELATED_OBJECTS FltObjects)
{
    const FILE_RENAME_INFORMATION *rename = Data->Iopb->Parameters.SetFileInformation.InfoBuffer;
    ULONG length = Data->Iopb->Parameters.SetFileInformation.Length;
    PFLT_FILE_NAME_INFORMATION name = NULL;
    NTSTATUS status;

    PAGED_CODE();

    if ((length < FIELD_OFFSET(FILE_RENAME_INFORMATION, FileName)) ||
        (rename->FileNameLength > length - FIELD_OFFSET(FILE_RENAME_INFORMATION, FileName)) ||
        !DownlinkMayQueryFile()) {
        goto Exit;
    }
    status = FltGetDestinationFileNameInformation(FltObjects->Instance, FltObjects->FileObject, rename->RootDirectory,
                                                  (PWSTR)rename->FileName, rename->FileNameLength,
                                                  FLT_FILE_NAME_NORMALIZED | FLT_FILE_NAME_QUERY_DEFAULT, &name);
    if (!NT_SUCCESS(status)) {
        name = NULL;
    }

Exit:
    return name;
}
