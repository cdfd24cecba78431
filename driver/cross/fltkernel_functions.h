/*
 * Functions of the Filter Manager. fltmgr.def lists the same names for the linker.
 */
#ifndef DOWNLINK_CROSS_FLTKERNEL_FUNCTIONS_H
#define DOWNLINK_CROSS_FLTKERNEL_FUNCTIONS_H

#include "fltkernel_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Filter. */
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltRegisterFilter(_In_ PDRIVER_OBJECT Driver, _In_ CONST FLT_REGISTRATION *Registration,
                      _Outptr_ PFLT_FILTER *RetFilter);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltUnregisterFilter(_In_ PFLT_FILTER Filter);
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI FltStartFiltering(_In_ PFLT_FILTER Filter);
_Must_inspect_result_ NTSTATUS FLTAPI FltLoadFilter(_In_ PCUNICODE_STRING FilterName);
_Must_inspect_result_ NTSTATUS FLTAPI FltUnloadFilter(_In_ PCUNICODE_STRING FilterName);
PVOID FLTAPI FltGetRoutineAddress(_In_ PCSTR FltMgrRoutineName);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetFilterFromName(_In_ PCUNICODE_STRING FilterName,
                                                           _Outptr_ PFLT_FILTER *RetFilter);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetFilterInformation(_In_ PFLT_FILTER Filter,
                                                              _In_ FILTER_INFORMATION_CLASS InformationClass,
                                                              _Out_writes_bytes_to_opt_(BufferSize, *BytesReturned)
                                                                  PVOID Buffer,
                                                              _In_ ULONG BufferSize, _Out_ PULONG BytesReturned);

/* References. */
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI FltObjectReference(_Inout_ PVOID FltObject);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltObjectDereference(_Inout_ PVOID FltObject);

/* Volumes and instances. */
_Must_inspect_result_ NTSTATUS FLTAPI FltAttachVolume(_Inout_ PFLT_FILTER Filter, _Inout_ PFLT_VOLUME Volume,
                                                      _In_opt_ PCUNICODE_STRING InstanceName,
                                                      _Outptr_opt_result_maybenull_ PFLT_INSTANCE *RetInstance);
_Must_inspect_result_ NTSTATUS FLTAPI FltAttachVolumeAtAltitude(
    _Inout_ PFLT_FILTER Filter, _Inout_ PFLT_VOLUME Volume, _In_ PCUNICODE_STRING Altitude,
    _In_opt_ PCUNICODE_STRING InstanceName, _Outptr_opt_result_maybenull_ PFLT_INSTANCE *RetInstance);
_Must_inspect_result_ NTSTATUS FLTAPI FltDetachVolume(_Inout_ PFLT_FILTER Filter, _Inout_ PFLT_VOLUME Volume,
                                                      _In_opt_ PCUNICODE_STRING InstanceName);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeFromName(_In_ PFLT_FILTER Filter, _In_ PCUNICODE_STRING VolumeName,
                                                           _Outptr_ PFLT_VOLUME *RetVolume);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeFromInstance(_In_ PFLT_INSTANCE Instance,
                                                               _Outptr_ PFLT_VOLUME *RetVolume);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeFromFileObject(_In_ PFLT_FILTER Filter, _In_ PFILE_OBJECT FileObject,
                                                                 _Outptr_ PFLT_VOLUME *RetVolume);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeName(_In_ PFLT_VOLUME Volume, _Inout_opt_ PUNICODE_STRING VolumeName,
                                                       _Out_opt_ PULONG BufferSizeNeeded);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeGuidName(_In_ PFLT_VOLUME Volume,
                                                           _Inout_opt_ PUNICODE_STRING VolumeGuidName,
                                                           _Out_opt_ PULONG BufferSizeNeeded);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeProperties(
    _In_ PFLT_VOLUME Volume,
    _Out_writes_bytes_to_opt_(VolumePropertiesLength, *LengthReturned) PFLT_VOLUME_PROPERTIES VolumeProperties,
    _In_ ULONG VolumePropertiesLength, _Out_ PULONG LengthReturned);
_Must_inspect_result_ NTSTATUS FLTAPI FltIsVolumeWritable(_In_ PVOID FltObject, _Out_ PBOOLEAN IsWritable);
_Must_inspect_result_ NTSTATUS FLTAPI FltIsVolumeSnapshot(_In_ PVOID FltObject, _Out_ PBOOLEAN IsSnapshotVolume);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetFileSystemType(_In_ PVOID FltObject,
                                                           _Out_ PFLT_FILESYSTEM_TYPE FileSystemType);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetDiskDeviceObject(_In_ PFLT_VOLUME Volume,
                                                             _Outptr_ PDEVICE_OBJECT *DiskDeviceObject);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetDeviceObject(_In_ PFLT_VOLUME Volume,
                                                         _Outptr_ PDEVICE_OBJECT *DeviceObject);
_Must_inspect_result_ NTSTATUS FLTAPI FltEnumerateVolumes(_In_ PFLT_FILTER Filter,
                                                          _Out_writes_to_opt_(VolumeListSize, *NumberVolumesReturned)
                                                              PFLT_VOLUME *VolumeList,
                                                          _In_ ULONG VolumeListSize,
                                                          _Out_ PULONG NumberVolumesReturned);
_Must_inspect_result_ NTSTATUS FLTAPI
FltEnumerateInstances(_In_opt_ PFLT_VOLUME Volume, _In_opt_ PFLT_FILTER Filter,
                      _Out_writes_to_opt_(InstanceListSize, *NumberInstancesReturned) PFLT_INSTANCE *InstanceList,
                      _In_ ULONG InstanceListSize, _Out_ PULONG NumberInstancesReturned);
_Must_inspect_result_ NTSTATUS FLTAPI FltEnumerateFilters(_Out_writes_to_opt_(FilterListSize, *NumberFiltersReturned)
                                                              PFLT_FILTER *FilterList,
                                                          _In_ ULONG FilterListSize,
                                                          _Out_ PULONG NumberFiltersReturned);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeInstanceFromName(_In_opt_ PFLT_FILTER Filter, _In_ PFLT_VOLUME Volume,
                                                                   _In_opt_ PCUNICODE_STRING InstanceName,
                                                                   _Outptr_ PFLT_INSTANCE *RetInstance);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetInstanceInformation(_In_ PFLT_INSTANCE Instance,
                                                                _In_ INSTANCE_INFORMATION_CLASS InformationClass,
                                                                _Out_writes_bytes_to_opt_(BufferSize, *BytesReturned)
                                                                    PVOID Buffer,
                                                                _In_ ULONG BufferSize, _Out_ PULONG BytesReturned);
LONG FLTAPI FltCompareInstanceAltitudes(_In_ PFLT_INSTANCE Instance1, _In_ PFLT_INSTANCE Instance2);
_Must_inspect_result_ NTSTATUS FLTAPI FltQueryVolumeInformation(_In_ PFLT_INSTANCE Instance,
                                                                _Out_ PIO_STATUS_BLOCK Iosb,
                                                                _Out_writes_bytes_(Length) PVOID FsInformation,
                                                                _In_ ULONG Length,
                                                                _In_ FS_INFORMATION_CLASS FsInformationClass);

/* Contexts. */
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltAllocateContext(_In_ PFLT_FILTER Filter, _In_ FLT_CONTEXT_TYPE ContextType, _In_ SIZE_T ContextSize,
                       _In_ POOL_TYPE PoolType, _Outptr_result_bytebuffer_(ContextSize) PFLT_CONTEXT *ReturnedContext);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID FLTAPI FltReferenceContext(_In_ PFLT_CONTEXT Context);
_IRQL_requires_max_(DISPATCH_LEVEL) VOID FLTAPI FltReleaseContext(_In_ PFLT_CONTEXT Context);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltDeleteContext(_In_ PFLT_CONTEXT Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetVolumeContext(_In_ PFLT_VOLUME Volume,
                                                          _In_ FLT_SET_CONTEXT_OPERATION Operation,
                                                          _In_ PFLT_CONTEXT NewContext,
                                                          _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetInstanceContext(_In_ PFLT_INSTANCE Instance,
                                                            _In_ FLT_SET_CONTEXT_OPERATION Operation,
                                                            _In_ PFLT_CONTEXT NewContext,
                                                            _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetFileContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                        _In_ FLT_SET_CONTEXT_OPERATION Operation,
                                                        _In_ PFLT_CONTEXT NewContext,
                                                        _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetStreamContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                          _In_ FLT_SET_CONTEXT_OPERATION Operation,
                                                          _In_ PFLT_CONTEXT NewContext,
                                                          _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetStreamHandleContext(_In_ PFLT_INSTANCE Instance,
                                                                _In_ PFILE_OBJECT FileObject,
                                                                _In_ FLT_SET_CONTEXT_OPERATION Operation,
                                                                _In_ PFLT_CONTEXT NewContext,
                                                                _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetVolumeContext(_In_ PFLT_FILTER Filter, _In_ PFLT_VOLUME Volume,
                                                          _Outptr_ PFLT_CONTEXT *Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetInstanceContext(_In_ PFLT_INSTANCE Instance,
                                                            _Outptr_ PFLT_CONTEXT *Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetFileContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                        _Outptr_ PFLT_CONTEXT *Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetStreamContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                          _Outptr_ PFLT_CONTEXT *Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetStreamHandleContext(_In_ PFLT_INSTANCE Instance,
                                                                _In_ PFILE_OBJECT FileObject,
                                                                _Outptr_ PFLT_CONTEXT *Context);
_Must_inspect_result_ NTSTATUS FLTAPI FltDeleteVolumeContext(_In_ PFLT_FILTER Filter, _In_ PFLT_VOLUME Volume,
                                                             _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltDeleteInstanceContext(_In_ PFLT_INSTANCE Instance,
                                                               _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltDeleteFileContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                           _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltDeleteStreamContext(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                             _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltDeleteStreamHandleContext(
    _In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject, _Outptr_opt_result_maybenull_ PFLT_CONTEXT *OldContext);
VOID FLTAPI FltGetContexts(_In_ PCFLT_RELATED_OBJECTS FltObjects, _In_ FLT_CONTEXT_TYPE DesiredContexts,
                           _Out_ PFLT_RELATED_CONTEXTS Contexts);
VOID FLTAPI FltReleaseContexts(_In_ PFLT_RELATED_CONTEXTS Contexts);
BOOLEAN FLTAPI FltSupportsFileContexts(_In_ PFILE_OBJECT FileObject);
BOOLEAN FLTAPI FltSupportsFileContextsEx(_In_ PFILE_OBJECT FileObject, _In_opt_ PFLT_INSTANCE Instance);
BOOLEAN FLTAPI FltSupportsStreamContexts(_In_ PFILE_OBJECT FileObject);
BOOLEAN FLTAPI FltSupportsStreamHandleContexts(_In_ PFILE_OBJECT FileObject);

/* Callback data and operations. */
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltSetCallbackDataDirty(_Inout_ PFLT_CALLBACK_DATA Data);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltClearCallbackDataDirty(_Inout_ PFLT_CALLBACK_DATA Data);
BOOLEAN FLTAPI FltIsCallbackDataDirty(_In_ PFLT_CALLBACK_DATA Data);
BOOLEAN FLTAPI FltIsOperationSynchronous(_In_ PFLT_CALLBACK_DATA CallbackData);
BOOLEAN FLTAPI FltIs32bitProcess(_In_opt_ PFLT_CALLBACK_DATA CallbackData);
ULONG FLTAPI FltGetRequestorProcessId(_In_ PFLT_CALLBACK_DATA CallbackData);
HANDLE FLTAPI FltGetRequestorProcessIdEx(_In_ PFLT_CALLBACK_DATA CallbackData);
PEPROCESS FLTAPI FltGetRequestorProcess(_In_ PFLT_CALLBACK_DATA CallbackData);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetRequestorSessionId(_In_ PFLT_CALLBACK_DATA CallbackData,
                                                               _Out_ PULONG SessionId);
_Must_inspect_result_ NTSTATUS FLTAPI FltLockUserBuffer(_In_ PFLT_CALLBACK_DATA CallbackData);
_Must_inspect_result_ NTSTATUS FLTAPI FltDecodeParameters(_In_ PFLT_CALLBACK_DATA CallbackData,
                                                          _Outptr_opt_ PMDL **MdlAddressPointer,
                                                          _Outptr_opt_result_bytebuffer_(**Length) PVOID **Buffer,
                                                          _Outptr_opt_ PULONG *Length,
                                                          _Out_opt_ LOCK_OPERATION *DesiredAccess);
PMDL FLTAPI FltGetSwappedBufferMdlAddress(_In_ PFLT_CALLBACK_DATA CallbackData);
VOID FLTAPI FltRetainSwappedBufferMdlAddress(_In_ PFLT_CALLBACK_DATA CallbackData);
BOOLEAN FLTAPI FltDoCompletionProcessingWhenSafe(_In_ PFLT_CALLBACK_DATA Data, _In_ PCFLT_RELATED_OBJECTS FltObjects,
                                                 _In_opt_ PVOID CompletionContext, _In_ FLT_POST_OPERATION_FLAGS Flags,
                                                 _In_ PFLT_POST_OPERATION_CALLBACK SafePostCallback,
                                                 _Out_ PFLT_POSTOP_CALLBACK_STATUS RetPostOperationStatus);
VOID FLTAPI FltCompletePendedPreOperation(_In_ PFLT_CALLBACK_DATA CallbackData,
                                          _In_ FLT_PREOP_CALLBACK_STATUS CallbackStatus, _In_opt_ PVOID Context);
VOID FLTAPI FltCompletePendedPostOperation(_In_ PFLT_CALLBACK_DATA CallbackData);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetCancelCompletion(_In_ PFLT_CALLBACK_DATA CallbackData,
                                                             _In_ PFLT_COMPLETE_CANCELED_CALLBACK CanceledCallback);
_Must_inspect_result_ NTSTATUS FLTAPI FltClearCancelCompletion(_In_ PFLT_CALLBACK_DATA CallbackData);
BOOLEAN FLTAPI FltCancelIo(_In_ PFLT_CALLBACK_DATA CallbackData);
VOID FLTAPI FltCancelFileOpen(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject);
VOID FLTAPI FltReissueSynchronousIo(_In_ PFLT_INSTANCE InitiatingInstance, _In_ PFLT_CALLBACK_DATA CallbackData);
_Must_inspect_result_ NTSTATUS FLTAPI FltAllocateCallbackData(_In_ PFLT_INSTANCE Instance,
                                                              _In_opt_ PFILE_OBJECT FileObject,
                                                              _Outptr_ PFLT_CALLBACK_DATA *RetNewCallbackData);
VOID FLTAPI FltFreeCallbackData(_In_ PFLT_CALLBACK_DATA CallbackData);
VOID FLTAPI FltReuseCallbackData(_Inout_ PFLT_CALLBACK_DATA CallbackData);
VOID FLTAPI FltPerformSynchronousIo(_Inout_ PFLT_CALLBACK_DATA CallbackData);
_Must_inspect_result_ NTSTATUS FLTAPI FltPerformAsynchronousIo(_Inout_ PFLT_CALLBACK_DATA CallbackData,
                                                               _In_ PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                                                               _In_ PVOID CallbackContext);
PCHAR FLTAPI FltGetIrpName(_In_ UCHAR IrpMajorCode);

/* File names. */
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltGetFileNameInformation(_In_ PFLT_CALLBACK_DATA CallbackData, _In_ FLT_FILE_NAME_OPTIONS NameOptions,
                              _Outptr_ PFLT_FILE_NAME_INFORMATION *FileNameInformation);
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltGetFileNameInformationUnsafe(_In_ PFILE_OBJECT FileObject, _In_opt_ PFLT_INSTANCE Instance,
                                    _In_ FLT_FILE_NAME_OPTIONS NameOptions,
                                    _Outptr_ PFLT_FILE_NAME_INFORMATION *FileNameInformation);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI
    FltReleaseFileNameInformation(_In_ PFLT_FILE_NAME_INFORMATION FileNameInformation);
VOID FLTAPI FltReferenceFileNameInformation(_In_ PFLT_FILE_NAME_INFORMATION FileNameInformation);
_Must_inspect_result_ NTSTATUS FLTAPI
FltParseFileNameInformation(_Inout_ PFLT_FILE_NAME_INFORMATION FileNameInformation);
_Must_inspect_result_ NTSTATUS FLTAPI FltParseFileName(_In_ PCUNICODE_STRING FileName,
                                                       _Inout_opt_ PUNICODE_STRING Extension,
                                                       _Inout_opt_ PUNICODE_STRING Stream,
                                                       _Inout_opt_ PUNICODE_STRING FinalComponent);
_Must_inspect_result_ NTSTATUS FLTAPI
FltGetTunneledName(_In_ PFLT_CALLBACK_DATA CallbackData, _In_ PFLT_FILE_NAME_INFORMATION FileNameInformation,
                   _Outptr_result_maybenull_ PFLT_FILE_NAME_INFORMATION *RetTunneledFileNameInformation);
_Must_inspect_result_ NTSTATUS FLTAPI FltGetDestinationFileNameInformation(
    _In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject, _In_opt_ HANDLE RootDirectory,
    _In_reads_bytes_(FileNameLength) PWSTR FileName, _In_ ULONG FileNameLength, _In_ FLT_FILE_NAME_OPTIONS NameOptions,
    _Outptr_ PFLT_FILE_NAME_INFORMATION *RetFileNameInformation);
_Must_inspect_result_ NTSTATUS FLTAPI FltCheckAndGrowNameControl(_Inout_ PFLT_NAME_CONTROL NameCtrl,
                                                                 _In_ USHORT NewSize);
_Must_inspect_result_ NTSTATUS FLTAPI FltPurgeFileNameInformationCache(_In_ PFLT_INSTANCE Instance,
                                                                       _In_opt_ PFILE_OBJECT FileObject);

/* Communication ports. */
_Must_inspect_result_ _IRQL_requires_max_(PASSIVE_LEVEL) NTSTATUS FLTAPI
    FltCreateCommunicationPort(_In_ PFLT_FILTER Filter, _Outptr_ PFLT_PORT *ServerPort,
                               _In_ POBJECT_ATTRIBUTES ObjectAttributes, _In_opt_ PVOID ServerPortCookie,
                               _In_ PFLT_CONNECT_NOTIFY ConnectNotifyCallback,
                               _In_ PFLT_DISCONNECT_NOTIFY DisconnectNotifyCallback,
                               _In_opt_ PFLT_MESSAGE_NOTIFY MessageNotifyCallback, _In_ LONG MaxConnections);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID FLTAPI FltCloseCommunicationPort(_In_ PFLT_PORT ServerPort);
_IRQL_requires_max_(PASSIVE_LEVEL) VOID FLTAPI
    FltCloseClientPort(_In_ PFLT_FILTER Filter, _Inout_ PFLT_PORT *ClientPort);
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltSendMessage(_In_ PFLT_FILTER Filter, _In_ PFLT_PORT *ClientPort,
                   _In_reads_bytes_(SenderBufferLength) PVOID SenderBuffer, _In_ ULONG SenderBufferLength,
                   _Out_writes_bytes_opt_(*ReplyLength) PVOID ReplyBuffer, _Inout_opt_ PULONG ReplyLength,
                   _In_opt_ PLARGE_INTEGER Timeout);
_Must_inspect_result_ _IRQL_requires_max_(APC_LEVEL) NTSTATUS FLTAPI
    FltBuildDefaultSecurityDescriptor(_Outptr_ PSECURITY_DESCRIPTOR *SecurityDescriptor,
                                      _In_ ACCESS_MASK DesiredAccess);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltFreeSecurityDescriptor(_In_ PSECURITY_DESCRIPTOR SecurityDescriptor);

/* Work items. */
PFLT_GENERIC_WORKITEM FLTAPI FltAllocateGenericWorkItem(VOID);
VOID FLTAPI FltFreeGenericWorkItem(_In_ PFLT_GENERIC_WORKITEM FltWorkItem);
_Must_inspect_result_ NTSTATUS FLTAPI FltQueueGenericWorkItem(_In_ PFLT_GENERIC_WORKITEM FltWorkItem,
                                                              _In_ PVOID FltObject,
                                                              _In_ PFLT_GENERIC_WORKITEM_ROUTINE WorkerRoutine,
                                                              _In_ WORK_QUEUE_TYPE QueueType, _In_opt_ PVOID Context);
PFLT_DEFERRED_IO_WORKITEM FLTAPI FltAllocateDeferredIoWorkItem(VOID);
VOID FLTAPI FltFreeDeferredIoWorkItem(_In_ PFLT_DEFERRED_IO_WORKITEM FltWorkItem);
_Must_inspect_result_ NTSTATUS FLTAPI FltQueueDeferredIoWorkItem(_In_ PFLT_DEFERRED_IO_WORKITEM FltWorkItem,
                                                                 _In_ PFLT_CALLBACK_DATA Data,
                                                                 _In_ PFLT_DEFERRED_IO_WORKITEM_ROUTINE WorkerRoutine,
                                                                 _In_ WORK_QUEUE_TYPE QueueType, _In_ PVOID Context);

/* I/O of the minifilter's own, sent below its instance. */
_Must_inspect_result_ NTSTATUS FLTAPI
FltCreateFile(_In_ PFLT_FILTER Filter, _In_opt_ PFLT_INSTANCE Instance, _Out_ PHANDLE FileHandle,
              _In_ ACCESS_MASK DesiredAccess, _In_ POBJECT_ATTRIBUTES ObjectAttributes,
              _Out_ PIO_STATUS_BLOCK IoStatusBlock, _In_opt_ PLARGE_INTEGER AllocationSize, _In_ ULONG FileAttributes,
              _In_ ULONG ShareAccess, _In_ ULONG CreateDisposition, _In_ ULONG CreateOptions,
              _In_reads_bytes_opt_(EaLength) PVOID EaBuffer, _In_ ULONG EaLength, _In_ ULONG Flags);
_Must_inspect_result_ NTSTATUS FLTAPI FltCreateFileEx(
    _In_ PFLT_FILTER Filter, _In_opt_ PFLT_INSTANCE Instance, _Out_ PHANDLE FileHandle,
    _Outptr_opt_ PFILE_OBJECT *FileObject, _In_ ACCESS_MASK DesiredAccess, _In_ POBJECT_ATTRIBUTES ObjectAttributes,
    _Out_ PIO_STATUS_BLOCK IoStatusBlock, _In_opt_ PLARGE_INTEGER AllocationSize, _In_ ULONG FileAttributes,
    _In_ ULONG ShareAccess, _In_ ULONG CreateDisposition, _In_ ULONG CreateOptions,
    _In_reads_bytes_opt_(EaLength) PVOID EaBuffer, _In_ ULONG EaLength, _In_ ULONG Flags);
_Must_inspect_result_ NTSTATUS FLTAPI FltReadFile(_In_ PFLT_INSTANCE InitiatingInstance, _In_ PFILE_OBJECT FileObject,
                                                  _In_opt_ PLARGE_INTEGER ByteOffset, _In_ ULONG Length,
                                                  _Out_writes_bytes_to_(Length, *BytesRead) PVOID Buffer,
                                                  _In_ FLT_IO_OPERATION_FLAGS Flags, _Out_opt_ PULONG BytesRead,
                                                  _In_opt_ PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                                                  _In_opt_ PVOID CallbackContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltWriteFile(_In_ PFLT_INSTANCE InitiatingInstance, _In_ PFILE_OBJECT FileObject,
                                                   _In_opt_ PLARGE_INTEGER ByteOffset, _In_ ULONG Length,
                                                   _In_reads_bytes_(Length) PVOID Buffer,
                                                   _In_ FLT_IO_OPERATION_FLAGS Flags, _Out_opt_ PULONG BytesWritten,
                                                   _In_opt_ PFLT_COMPLETED_ASYNC_IO_CALLBACK CallbackRoutine,
                                                   _In_opt_ PVOID CallbackContext);
_Must_inspect_result_ NTSTATUS FLTAPI FltFlushBuffers(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject);
_Must_inspect_result_ NTSTATUS FLTAPI FltQueryInformationFile(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                              _Out_writes_bytes_to_(Length, *LengthReturned)
                                                                  PVOID FileInformation,
                                                              _In_ ULONG Length,
                                                              _In_ FILE_INFORMATION_CLASS FileInformationClass,
                                                              _Out_opt_ PULONG LengthReturned);
_Must_inspect_result_ NTSTATUS FLTAPI FltSetInformationFile(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                            _In_reads_bytes_(Length) PVOID FileInformation,
                                                            _In_ ULONG Length,
                                                            _In_ FILE_INFORMATION_CLASS FileInformationClass);
_Must_inspect_result_ NTSTATUS FLTAPI FltQuerySecurityObject(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                             _In_ SECURITY_INFORMATION SecurityInformation,
                                                             _Inout_updates_bytes_opt_(Length)
                                                                 PSECURITY_DESCRIPTOR SecurityDescriptor,
                                                             _In_ ULONG Length, _Out_opt_ PULONG LengthNeeded);
_Must_inspect_result_ NTSTATUS FLTAPI FltFsControlFile(_In_ PFLT_INSTANCE Instance, _In_ PFILE_OBJECT FileObject,
                                                       _In_ ULONG FsControlCode,
                                                       _In_reads_bytes_opt_(InputBufferLength) PVOID InputBuffer,
                                                       _In_ ULONG InputBufferLength,
                                                       _Out_writes_bytes_to_opt_(OutputBufferLength, *LengthReturned)
                                                           PVOID OutputBuffer,
                                                       _In_ ULONG OutputBufferLength, _Out_opt_ PULONG LengthReturned);
_Must_inspect_result_ NTSTATUS FLTAPI FltIsDirectory(_In_ PFILE_OBJECT FileObject, _In_ PFLT_INSTANCE Instance,
                                                     _Out_ PBOOLEAN IsDirectory);
_Must_inspect_result_ NTSTATUS FLTAPI FltClose(_In_ HANDLE FileHandle);
PVOID FLTAPI FltAllocatePoolAlignedWithTag(_In_ PFLT_INSTANCE Instance, _In_ POOL_TYPE PoolType,
                                           _In_ SIZE_T NumberOfBytes, _In_ ULONG Tag);
VOID FLTAPI FltFreePoolAlignedWithTag(_In_ PFLT_INSTANCE Instance, _In_ PVOID Buffer, _In_ ULONG Tag);

/* Push locks and resources. */
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltInitializePushLock(_Out_ PULONG_PTR PushLock);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltDeletePushLock(_In_ PULONG_PTR PushLock);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltAcquirePushLockExclusive(_Inout_ PULONG_PTR PushLock);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltAcquirePushLockShared(_Inout_ PULONG_PTR PushLock);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltReleasePushLock(_Inout_ PULONG_PTR PushLock);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltAcquireResourceExclusive(_Inout_ PERESOURCE Resource);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltAcquireResourceShared(_Inout_ PERESOURCE Resource);
_IRQL_requires_max_(APC_LEVEL) VOID FLTAPI FltReleaseResource(_Inout_ PERESOURCE Resource);

#ifdef __cplusplus
}
#endif

#endif
