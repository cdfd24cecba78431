/*
 * Instances: which volumes the driver attaches to, and what it remembers of them.
 */
#include "downlink.h"

static BOOLEAN DownlinkIsFileSystemWanted(_In_ FLT_FILESYSTEM_TYPE Type);
static BOOLEAN DownlinkIsRemovable(_In_ PFLT_VOLUME Volume);
static VOID DownlinkRememberVolumeName(_In_ PCFLT_RELATED_OBJECTS FltObjects);

#pragma alloc_text(PAGE, DownlinkInstanceSetup)
#pragma alloc_text(PAGE, DownlinkInstanceQueryTeardown)
#pragma alloc_text(PAGE, DownlinkIsFileSystemWanted)
#pragma alloc_text(PAGE, DownlinkIsRemovable)
#pragma alloc_text(PAGE, DownlinkRememberVolumeName)

/* Local disks with a file system that the settings name; network redirectors and optical media are left alone. */
_Use_decl_annotations_ NTSTATUS FLTAPI DownlinkInstanceSetup(PCFLT_RELATED_OBJECTS FltObjects,
                                                             FLT_INSTANCE_SETUP_FLAGS Flags,
                                                             DEVICE_TYPE VolumeDeviceType,
                                                             FLT_FILESYSTEM_TYPE VolumeFilesystemType)
{
    NTSTATUS status = STATUS_FLT_DO_NOT_ATTACH;

    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();

    if ((VolumeDeviceType == FILE_DEVICE_DISK_FILE_SYSTEM) && DownlinkIsFileSystemWanted(VolumeFilesystemType) &&
        (FlagOn(Downlink.Settings.FileSystems, DOWNLINK_FILESYSTEM_REMOVABLE) ||
         !DownlinkIsRemovable(FltObjects->Volume))) {
        DownlinkRememberVolumeName(FltObjects);
        status = STATUS_SUCCESS;
    }
    DownlinkDebug(DOWNLINK_DEBUG_STATE, "volume with device type %u, file system %u: status 0x%08X\n",
                  (ULONG)VolumeDeviceType, (ULONG)VolumeFilesystemType, (ULONG)status);
    return status;
}

/* Anybody may detach an instance: nothing in flight depends on it. */
_Use_decl_annotations_ NTSTATUS FLTAPI DownlinkInstanceQueryTeardown(PCFLT_RELATED_OBJECTS FltObjects,
                                                                     FLT_INSTANCE_QUERY_TEARDOWN_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(FltObjects);
    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();

    return STATUS_SUCCESS;
}

static BOOLEAN DownlinkIsFileSystemWanted(FLT_FILESYSTEM_TYPE Type)
{
    ULONG bit;

    PAGED_CODE();

    switch (Type) {
    case FLT_FSTYPE_NTFS:
        bit = DOWNLINK_FILESYSTEM_NTFS;
        break;
    case FLT_FSTYPE_REFS:
        bit = DOWNLINK_FILESYSTEM_REFS;
        break;
    case FLT_FSTYPE_FAT:
        bit = DOWNLINK_FILESYSTEM_FAT;
        break;
    case FLT_FSTYPE_EXFAT:
        bit = DOWNLINK_FILESYSTEM_EXFAT;
        break;
    default:
        bit = 0;
        break;
    }
    return (Downlink.Settings.FileSystems & bit) != 0;
}

/* A volume that cannot tell is taken for a fixed disk. */
static BOOLEAN DownlinkIsRemovable(PFLT_VOLUME Volume)
{
    NTSTATUS status;
    FLT_VOLUME_PROPERTIES properties;
    ULONG length;

    PAGED_CODE();

    /* The names behind the structure are not asked for: STATUS_BUFFER_OVERFLOW is what is expected. */
    status = FltGetVolumeProperties(Volume, &properties, sizeof(properties), &length);
    return (NT_SUCCESS(status) || (status == STATUS_BUFFER_OVERFLOW)) &&
           FlagOn(properties.DeviceCharacteristics, FILE_REMOVABLE_MEDIA);
}

/* Keeps the volume's name with the instance, for events of files without a name. They do without it if need be. */
static VOID DownlinkRememberVolumeName(PCFLT_RELATED_OBJECTS FltObjects)
{
    NTSTATUS status;
    PDOWNLINK_INSTANCE_CONTEXT context = NULL;
    UNICODE_STRING name;
    ULONG length = 0;

    PAGED_CODE();

    status = FltGetVolumeName(FltObjects->Volume, NULL, &length);
    if ((status != STATUS_BUFFER_TOO_SMALL) || (length > DOWNLINK_PATH_BYTES_MAXIMUM)) {
        goto Exit;
    }
    status = FltAllocateContext(FltObjects->Filter, FLT_INSTANCE_CONTEXT,
                                FIELD_OFFSET(DOWNLINK_INSTANCE_CONTEXT, VolumeName) + length, NonPagedPoolNx,
                                (PFLT_CONTEXT *)&context);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }
    name.Buffer = context->VolumeName;
    name.Length = 0;
    name.MaximumLength = (USHORT)length;
    status = FltGetVolumeName(FltObjects->Volume, &name, NULL);
    if (NT_SUCCESS(status)) {
        context->VolumeNameLength = name.Length;
        (VOID)FltSetInstanceContext(FltObjects->Instance, FLT_SET_CONTEXT_KEEP_IF_EXISTS, context, NULL);
    }
    FltReleaseContext(context);

Exit:
    return;
}
