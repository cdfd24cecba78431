/*
 * Driver entry, registration with the Filter Manager, and unload.
 */
#include "downlink.h"

DOWNLINK_DATA Downlink;

static NTSTATUS FLTAPI DownlinkUnload(_In_ FLT_FILTER_UNLOAD_FLAGS Flags);

#pragma alloc_text(INIT, DriverEntry)
#pragma alloc_text(PAGE, DownlinkUnload)

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

    status = DownlinkReadSettings(RegistryPath, &Downlink.Settings);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    status = DownlinkInitializeConnections();
    if (!NT_SUCCESS(status)) {
        goto FreeSettings;
    }

    status = FltRegisterFilter(DriverObject, &DownlinkRegistration, &Downlink.Filter);
    if (!NT_SUCCESS(status)) {
        goto FreeConnections;
    }

    status = DownlinkCreatePort();
    if (!NT_SUCCESS(status)) {
        goto Unregister;
    }

    status = FltStartFiltering(Downlink.Filter);
    if (!NT_SUCCESS(status)) {
        goto ClosePort;
    }
    DownlinkDebug(DOWNLINK_DEBUG_STATE, "loaded; at most %u connections, %Iu bytes\n",
                  Downlink.Settings.MaximumConnections, Downlink.Settings.MemoryBudget);
    goto FreeSettings;

ClosePort:
    /* A client may have connected already: the port goes as it does at unload. */
    DownlinkClosePort();
Unregister:
    FltUnregisterFilter(Downlink.Filter);
    Downlink.Filter = NULL;
FreeConnections:
    DownlinkFreeConnections();
FreeSettings:
    /* The port has a copy of the descriptor. */
    DownlinkFreeSettings(&Downlink.Settings);
Exit:
    return status;
}

/*
 * Unload, wanted or mandatory, at any moment and with any number of clients: no new connections, no producers, no
 * workers; only then may the Filter Manager tear the instances down, which waits for callbacks that are still running.
 */
static _Use_decl_annotations_ NTSTATUS FLTAPI DownlinkUnload(FLT_FILTER_UNLOAD_FLAGS Flags)
{
    UNREFERENCED_PARAMETER(Flags);
    PAGED_CODE();

    DownlinkDebug(DOWNLINK_DEBUG_STATE, "unloading, flags 0x%X\n", (ULONG)Flags);
    DownlinkClosePort();
    FltUnregisterFilter(Downlink.Filter);
    Downlink.Filter = NULL;
    /* The last disconnect callback has returned. */
    DownlinkFreeConnections();
    return STATUS_SUCCESS;
}
