/*
 * Driver entry, registration with the Filter Manager, instances and unload.
 */
#include "downlink.h"

DOWNLINK_DATA Downlink;

static NTSTATUS FLTAPI DownlinkUnload(_In_ FLT_FILTER_UNLOAD_FLAGS Flags);
static NTSTATUS FLTAPI DownlinkInstanceSetup(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ FLT_INSTANCE_SETUP_FLAGS Flags,
                                             _In_ DEVICE_TYPE VolumeDeviceType,
                                             _In_ FLT_FILESYSTEM_TYPE VolumeFilesystemType);
static NTSTATUS FLTAPI DownlinkInstanceQueryTeardown(_In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                     _In_ FLT_INSTANCE_QUERY_TEARDOWN_FLAGS Flags);

#pragma alloc_text(INIT, DriverEntry)
#pragma alloc_text(PAGE, DownlinkUnload)
#pragma alloc_text(PAGE, DownlinkInstanceSetup)
#pragma alloc_text(PAGE, DownlinkInstanceQueryTeardown)

static const FLT_REGISTRATION DownlinkRegistration = {
    .Size = sizeof(FLT_REGISTRATION),
    .Version = FLT_REGISTRATION_VERSION,
    .ContextRegistration = DownlinkContexts,
    .OperationRegistration = DownlinkOperations,
    .FilterUnloadCallback = DownlinkUnload,
    .InstanceSetupCallback = DownlinkInstanceSetup,
    .InstanceQueryTeardownCallback = DownlinkInstanceQueryTeardown,
};

_Use_decl_annotations_ NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)
{
    NTSTATUS status;

    UNREFERENCED_PARAMETER(RegistryPath);

    DownlinkInitializeConnections();

    status = FltRegisterFilter(DriverObject, &DownlinkRegistration, &Downlink.Filter);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    status = DownlinkCreatePort();
    if (!NT_SUCCESS(status)) {
        goto Unregister;
    }

    status = FltStartFiltering(Downlink.Filter);
    if (!NT_SUCCESS(status)) {
        goto ClosePort;
    }
    goto Exit;

ClosePort:
    /* A client may have connected already: the port goes as it does at unload. */
    DownlinkClosePort();
Unregister:
    FltUnregisterFilter(Downlink.Filter);
    Downlink.Filter = NULL;
Exit:
    return status;
}

/*
 * Unload, at any moment and with any number of clients: no new connections, no producers, no workers; only then may
 * the Filter Manager tear the instances down, which waits for callbacks that are still running.
 */
static _Use_decl_annotations_ NTSTATUS FLTAPI DownlinkUnload(FLT_FILTER_UNLOAD_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();

    DownlinkClosePort();
    FltUnregisterFilter(Downlink.Filter);
    Downlink.Filter = NULL;
    return STATUS_SUCCESS;
}

/* Local disks with a file system that has stable names; network redirectors and optical media are left alone. */
static _Use_decl_annotations_ NTSTATUS FLTAPI DownlinkInstanceSetup(PCFLT_RELATED_OBJECTS FltObjects,
                                                                    FLT_INSTANCE_SETUP_FLAGS Flags,
                                                                    DEVICE_TYPE VolumeDeviceType,
                                                                    FLT_FILESYSTEM_TYPE VolumeFilesystemType)
{
    NTSTATUS status = STATUS_FLT_DO_NOT_ATTACH;

    UNREFERENCED_PARAMETER(FltObjects);
    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();

    if (VolumeDeviceType == FILE_DEVICE_DISK_FILE_SYSTEM) {
        switch (VolumeFilesystemType) {
        case FLT_FSTYPE_NTFS:
        case FLT_FSTYPE_REFS:
        case FLT_FSTYPE_FAT:
        case FLT_FSTYPE_EXFAT:
            status = STATUS_SUCCESS;
            break;
        default:
            break;
        }
    }
    return status;
}

static _Use_decl_annotations_ NTSTATUS FLTAPI DownlinkInstanceQueryTeardown(PCFLT_RELATED_OBJECTS FltObjects,
                                                                            FLT_INSTANCE_QUERY_TEARDOWN_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(FltObjects);
    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();
    return STATUS_SUCCESS;
}
