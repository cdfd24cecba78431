/*
 * What the mingw-w64 DDK headers lack beside the Filter Manager itself: SAL annotations, pool flags and the newer
 * file information structures. Everything is guarded, so that a later mingw-w64 that has it wins.
 *
 * Written from documented names, values and layouts; no part of it is Microsoft's text.
 */
#ifndef DOWNLINK_CROSS_NTSUPPLEMENT_H
#define DOWNLINK_CROSS_NTSUPPLEMENT_H

#include <sal.h>
#include <driverspecs.h>

/* SAL that mingw-w64 does not define. Annotations are for the WDK's analysis; here they vanish. */
#ifndef _Flt_CompletionContext_Outptr_
#define _Flt_CompletionContext_Outptr_
#endif
#ifndef _Flt_ConnectionCookie_Outptr_
#define _Flt_ConnectionCookie_Outptr_
#endif
#ifndef _Guarded_by_
#define _Guarded_by_(lock)
#endif
#ifndef _Has_lock_kind_
#define _Has_lock_kind_(kind)
#endif
#ifndef _Acquires_lock_
#define _Acquires_lock_(lock)
#endif
#ifndef _Releases_lock_
#define _Releases_lock_(lock)
#endif
#ifndef _Requires_lock_held_
#define _Requires_lock_held_(lock)
#endif
#ifndef _Requires_lock_not_held_
#define _Requires_lock_not_held_(lock)
#endif
#ifndef _Interlocked_operand_
#define _Interlocked_operand_
#endif
#ifndef _Analysis_assume_
#define _Analysis_assume_(expression) ((void)0)
#endif
#ifndef _IRQL_always_function_max_
#define _IRQL_always_function_max_(irql)
#endif
#ifndef _Dispatch_type_
#define _Dispatch_type_(kind)
#endif
#ifndef _Use_decl_annotations_
#define _Use_decl_annotations_
#endif
#ifndef _Must_inspect_result_
#define _Must_inspect_result_
#endif

/* Pool flags of ExAllocatePool2 (Windows 10 version 2004 and later). The pool comes zeroed unless told otherwise. */
#ifndef POOL_FLAG_NON_PAGED
typedef ULONG64 POOL_FLAGS;
#define POOL_FLAG_USE_QUOTA 0x0000000000000001ULL
#define POOL_FLAG_UNINITIALIZED 0x0000000000000002ULL
#define POOL_FLAG_SESSION 0x0000000000000004ULL
#define POOL_FLAG_CACHE_ALIGNED 0x0000000000000008ULL
#define POOL_FLAG_RAISE_ON_FAILURE 0x0000000000000020ULL
#define POOL_FLAG_NON_PAGED 0x0000000000000040ULL
#define POOL_FLAG_NON_PAGED_EXECUTE 0x0000000000000080ULL
#define POOL_FLAG_PAGED 0x0000000000000100ULL

_Must_inspect_result_ _IRQL_requires_max_(DISPATCH_LEVEL)
NTKERNELAPI PVOID NTAPI ExAllocatePool2(_In_ POOL_FLAGS Flags, _In_ SIZE_T NumberOfBytes, _In_ ULONG Tag);
#endif

/* A read that nothing behind it overtakes (Windows 8 and later). */
#ifndef ReadAcquire
FORCEINLINE LONG ReadAcquire(_In_ LONG const volatile *Source)
{
    return __atomic_load_n(Source, __ATOMIC_ACQUIRE);
}
#endif

/* System time to 100 ns, not to the clock interrupt (Windows 8 and later). */
_IRQL_requires_max_(HIGH_LEVEL) NTKERNELAPI VOID NTAPI KeQuerySystemTimePrecise(_Out_ PLARGE_INTEGER CurrentTime);

/* Deletion with POSIX semantics (Windows 10 version 1607); mingw-w64 has it since version 14. */
#ifndef FILE_DISPOSITION_DELETE
#define FILE_DISPOSITION_DO_NOT_DELETE 0x00000000
#define FILE_DISPOSITION_DELETE 0x00000001
#define FILE_DISPOSITION_POSIX_SEMANTICS 0x00000002
#define FILE_DISPOSITION_FORCE_IMAGE_SECTION_CHECK 0x00000004
#define FILE_DISPOSITION_ON_CLOSE 0x00000008

typedef struct _FILE_DISPOSITION_INFORMATION_EX {
    ULONG Flags;
} FILE_DISPOSITION_INFORMATION_EX, *PFILE_DISPOSITION_INFORMATION_EX;
#endif

#ifndef FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE
#define FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE 0x00000010
#endif

/* FILE_RENAME_INFORMATION.Flags and FILE_LINK_INFORMATION.Flags of the Ex classes. */
#ifndef FILE_RENAME_REPLACE_IF_EXISTS
#define FILE_RENAME_REPLACE_IF_EXISTS 0x00000001
#define FILE_RENAME_POSIX_SEMANTICS 0x00000002
#define FILE_RENAME_SUPPRESS_PIN_STATE_INHERITANCE 0x00000004
#define FILE_RENAME_SUPPRESS_STORAGE_RESERVE_INHERITANCE 0x00000008
#define FILE_RENAME_NO_INCREASE_AVAILABLE_SPACE 0x00000010
#define FILE_RENAME_NO_DECREASE_AVAILABLE_SPACE 0x00000020
#define FILE_RENAME_IGNORE_READONLY_ATTRIBUTE 0x00000040
#endif

#ifndef OBJ_DONT_REPARSE
#define OBJ_DONT_REPARSE 0x00001000
#endif

#ifndef STANDARD_RIGHTS_ALL
#define STANDARD_RIGHTS_ALL 0x001F0000
#endif

#ifndef FSRTL_ALLOCATE_ECP_FLAG_CHARGE_QUOTA
#define FSRTL_ALLOCATE_ECP_FLAG_CHARGE_QUOTA 0x00000001
#endif

/* 128-bit file identifiers; the user-mode winnt.h of mingw-w64 has the first, no kernel header has either. */
#ifndef _FILE_ID_128_DEFINED
#define _FILE_ID_128_DEFINED
typedef struct _FILE_ID_128 {
    UCHAR Identifier[16];
} FILE_ID_128, *PFILE_ID_128;
#endif

typedef struct _FILE_ID_INFORMATION {
    ULONGLONG VolumeSerialNumber;
    FILE_ID_128 FileId;
} FILE_ID_INFORMATION, *PFILE_ID_INFORMATION;

typedef struct _KTRANSACTION KTRANSACTION, *PKTRANSACTION;

/*
 * ntoskrnl exports these variables as POBJECT_TYPE. The WDK declares each as POBJECT_TYPE * without dllimport and its
 * import library binds the name to the import slot, so that `*PsThreadType` is the type. mingw-w64 declares them with
 * dllimport, which adds one more indirection: `*PsThreadType` would read the first bytes of the type object.
 */
#define CmKeyObjectType ((POBJECT_TYPE *)&CmKeyObjectType)
#define ExEventObjectType ((POBJECT_TYPE *)&ExEventObjectType)
#define ExSemaphoreObjectType ((POBJECT_TYPE *)&ExSemaphoreObjectType)
#define IoFileObjectType ((POBJECT_TYPE *)&IoFileObjectType)
#define PsProcessType ((POBJECT_TYPE *)&PsProcessType)
#define PsThreadType ((POBJECT_TYPE *)&PsThreadType)
#define SeTokenObjectType ((POBJECT_TYPE *)&SeTokenObjectType)
#define TmEnlistmentObjectType ((POBJECT_TYPE *)&TmEnlistmentObjectType)
#define TmResourceManagerObjectType ((POBJECT_TYPE *)&TmResourceManagerObjectType)
#define TmTransactionManagerObjectType ((POBJECT_TYPE *)&TmTransactionManagerObjectType)
#define TmTransactionObjectType ((POBJECT_TYPE *)&TmTransactionObjectType)

#endif
