/*
 * Settings: values of the service's Parameters key, read once at load. What is missing, of the wrong type or out of
 * bounds becomes something sane; only who may connect is never guessed.
 */
#include "downlink.h"

typedef struct _DOWNLINK_NUMBER {
    PCWSTR Name;
    ULONG Default;
    ULONG Minimum;
    ULONG Maximum;
} DOWNLINK_NUMBER;

static const DOWNLINK_NUMBER DownlinkMaximumConnections = {L"MaximumConnections", 8, 1, 64};
static const DOWNLINK_NUMBER DownlinkMemoryBudget = {L"MemoryBudgetKilobytes", 16384, 256, 1048576};
static const DOWNLINK_NUMBER DownlinkFileSystems = {L"FileSystems", 0xF, 0, MAXULONG};
static const DOWNLINK_NUMBER DownlinkDebugLevel = {L"DebugLevel", 0, 0, DOWNLINK_DEBUG_MAXIMUM};

/* Longest value that is read, in bytes: a security descriptor of some twenty entries. */
#define DOWNLINK_VALUE_BYTES_MAXIMUM 2048UL

static NTSTATUS DownlinkOpenParameters(_In_ PCUNICODE_STRING RegistryPath, _Out_ PHANDLE Key);
static NTSTATUS DownlinkReadValue(_In_ HANDLE Key, _In_ PCWSTR Name, _Outptr_ PKEY_VALUE_PARTIAL_INFORMATION *Value);
static ULONG DownlinkReadNumber(_In_opt_ HANDLE Key, _In_ const DOWNLINK_NUMBER *Number);
static NTSTATUS DownlinkReadPortSecurity(_In_ HANDLE Key, _Outptr_result_maybenull_ PSECURITY_DESCRIPTOR *Descriptor);

#pragma alloc_text(INIT, DownlinkReadSettings)
#pragma alloc_text(INIT, DownlinkOpenParameters)
#pragma alloc_text(INIT, DownlinkReadValue)
#pragma alloc_text(INIT, DownlinkReadNumber)
#pragma alloc_text(INIT, DownlinkReadPortSecurity)
#pragma alloc_text(PAGE, DownlinkFreeSettings)

_Use_decl_annotations_ NTSTATUS DownlinkReadSettings(PCUNICODE_STRING RegistryPath, PDOWNLINK_SETTINGS Settings)
{
    NTSTATUS status;
    HANDLE key = NULL;

    RtlZeroMemory(Settings, sizeof(*Settings));

    /* A service without Parameters is in order; a key that cannot be read might say who may connect. */
    status = DownlinkOpenParameters(RegistryPath, &key);
    if (!NT_SUCCESS(status) && (status != STATUS_OBJECT_NAME_NOT_FOUND)) {
        goto Exit;
    }

    Settings->DebugLevel = DownlinkReadNumber(key, &DownlinkDebugLevel);
    Settings->MaximumConnections = DownlinkReadNumber(key, &DownlinkMaximumConnections);
    Settings->MemoryBudget = (SIZE_T)DownlinkReadNumber(key, &DownlinkMemoryBudget) * 1024;
    Settings->FileSystems = DownlinkReadNumber(key, &DownlinkFileSystems) & DOWNLINK_FILESYSTEM_VALID;
    status = STATUS_SUCCESS;
    if (key != NULL) {
        status = DownlinkReadPortSecurity(key, &Settings->PortSecurity);
        ZwClose(key);
    }

Exit:
    if (!NT_SUCCESS(status)) {
        /* Told in any case: without it nobody would know why the driver does not load. */
        DbgPrintEx(DPFLTR_IHVDRIVER_ID, DPFLTR_ERROR_LEVEL, "Downlink: the settings are refused, status 0x%08X\n",
                   (ULONG)status);
    }
    return status;
}

_Use_decl_annotations_ VOID DownlinkFreeSettings(PDOWNLINK_SETTINGS Settings)
{
    PAGED_CODE();

    if (Settings->PortSecurity != NULL) {
        ExFreePoolWithTag(Settings->PortSecurity, DOWNLINK_TAG_REGISTRY);
        Settings->PortSecurity = NULL;
    }
}

static NTSTATUS DownlinkOpenParameters(PCUNICODE_STRING RegistryPath, PHANDLE Key)
{
    NTSTATUS status;
    HANDLE service = NULL;
    OBJECT_ATTRIBUTES attributes;
    UNICODE_STRING path = *RegistryPath;
    UNICODE_STRING name = RTL_CONSTANT_STRING(L"Parameters");

    *Key = NULL;
    InitializeObjectAttributes(&attributes, &path, OBJ_KERNEL_HANDLE | OBJ_CASE_INSENSITIVE, NULL, NULL);
    status = ZwOpenKey(&service, KEY_READ, &attributes);
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    InitializeObjectAttributes(&attributes, &name, OBJ_KERNEL_HANDLE | OBJ_CASE_INSENSITIVE, service, NULL);
    status = ZwOpenKey(Key, KEY_READ, &attributes);
    ZwClose(service);

Exit:
    return status;
}

/* A value in pool; the caller frees it. */
static NTSTATUS DownlinkReadValue(HANDLE Key, PCWSTR Name, PKEY_VALUE_PARTIAL_INFORMATION *Value)
{
    const ULONG size = FIELD_OFFSET(KEY_VALUE_PARTIAL_INFORMATION, Data) + DOWNLINK_VALUE_BYTES_MAXIMUM;
    NTSTATUS status;
    PKEY_VALUE_PARTIAL_INFORMATION value;
    UNICODE_STRING name;
    ULONG length;

    *Value = NULL;
    value = ExAllocatePool2(POOL_FLAG_PAGED, size, DOWNLINK_TAG_REGISTRY);
    if (value == NULL) {
        status = STATUS_INSUFFICIENT_RESOURCES;
        goto Exit;
    }

    RtlInitUnicodeString(&name, Name);
    status = ZwQueryValueKey(Key, &name, KeyValuePartialInformation, value, size, &length);
    if (!NT_SUCCESS(status)) {
        ExFreePoolWithTag(value, DOWNLINK_TAG_REGISTRY);
        goto Exit;
    }
    *Value = value;

Exit:
    return status;
}

static ULONG DownlinkReadNumber(HANDLE Key, const DOWNLINK_NUMBER *Number)
{
    PKEY_VALUE_PARTIAL_INFORMATION value = NULL;
    ULONG number = Number->Default;

    if ((Key != NULL) && NT_SUCCESS(DownlinkReadValue(Key, Number->Name, &value))) {
        if ((value->Type == REG_DWORD) && (value->DataLength == sizeof(number))) {
            RtlCopyMemory(&number, value->Data, sizeof(number));
            number = min(max(number, Number->Minimum), Number->Maximum);
        }
        ExFreePoolWithTag(value, DOWNLINK_TAG_REGISTRY);
    }
    return number;
}

/*
 * Who may connect. Without the value it is the Filter Manager's default. A value that is not a good description lets
 * nobody in by mistake: the driver does not load.
 */
static NTSTATUS DownlinkReadPortSecurity(HANDLE Key, PSECURITY_DESCRIPTOR *Descriptor)
{
    NTSTATUS status;
    PKEY_VALUE_PARTIAL_INFORMATION value = NULL;
    PCWCH text;
    ULONG length;

    *Descriptor = NULL;
    status = DownlinkReadValue(Key, L"PortSecurity", &value);
    if (status == STATUS_OBJECT_NAME_NOT_FOUND) {
        status = STATUS_SUCCESS;
        goto Exit;
    }
    if (status == STATUS_BUFFER_OVERFLOW) {
        status = STATUS_INVALID_SECURITY_DESCR;
    }
    if (!NT_SUCCESS(status)) {
        goto Exit;
    }

    text = (PCWCH)value->Data;
    length = value->DataLength / sizeof(WCHAR);
    if ((value->Type != REG_SZ) || ((value->DataLength % sizeof(WCHAR)) != 0)) {
        status = STATUS_INVALID_SECURITY_DESCR;
    } else {
        if ((length != 0) && (text[length - 1] == UNICODE_NULL)) {
            length--;
        }
        status = DownlinkParseSecurity(text, length, Descriptor);
    }
    ExFreePoolWithTag(value, DOWNLINK_TAG_REGISTRY);

Exit:
    return status;
}
