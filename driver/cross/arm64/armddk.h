/*
 * The kernel's processor-specific interface for Arm64, which mingw-w64's wdm.h takes from a header of this name and
 * does not have. Included by wdm.h alone, through the wrapper beside this file.
 *
 * Interrupt levels and the current thread are asked of the kernel's exports, not read from processor state: there is
 * no CR8 here, and the layout of the processor control region is nothing that a driver should know.
 *
 * Written from documented names, values and prototypes; no part of it is Microsoft's text.
 */
#ifndef DOWNLINK_CROSS_ARM64_ARMDDK_H
#define DOWNLINK_CROSS_ARM64_ARMDDK_H

#define PASSIVE_LEVEL 0
#define LOW_LEVEL 0
#define APC_LEVEL 1
#define DISPATCH_LEVEL 2
#define CLOCK_LEVEL 13
#define IPI_LEVEL 14
#define DRS_LEVEL 14
#define POWER_LEVEL 14
#define PROFILE_LEVEL 15
#define HIGH_LEVEL 15

#define PAGE_SIZE 0x1000
#define PAGE_SHIFT 12L

/* The page that user mode shares lies where it does on x64. */
#define KI_USER_SHARED_DATA 0xFFFFF78000000000ULL
#define SharedUserData ((PKUSER_SHARED_DATA const)KI_USER_SHARED_DATA)

typedef struct _KFLOATING_SAVE {
    ULONG Dummy;
} KFLOATING_SAVE, *PKFLOATING_SAVE;

NTKERNELAPI KIRQL NTAPI KeGetCurrentIrql(VOID);
NTKERNELAPI VOID NTAPI KeLowerIrql(IN KIRQL NewIrql);
NTKERNELAPI KIRQL NTAPI KfRaiseIrql(IN KIRQL NewIrql);
NTKERNELAPI KIRQL NTAPI KeRaiseIrqlToDpcLevel(VOID);
#define KeRaiseIrql(NewIrql, OldIrql) (*(OldIrql) = KfRaiseIrql(NewIrql))

NTKERNELAPI PKTHREAD NTAPI KeGetCurrentThread(VOID);

/* wdm.h leaves these to each processor's header when it takes the processor for an Arm. */
NTKERNELAPI KIRQL NTAPI KeAcquireSpinLockRaiseToDpc(IN OUT PKSPIN_LOCK SpinLock);
NTKERNELAPI VOID NTAPI KeAcquireSpinLockAtDpcLevel(IN OUT PKSPIN_LOCK SpinLock);
NTKERNELAPI VOID NTAPI KeReleaseSpinLock(IN OUT PKSPIN_LOCK SpinLock, IN KIRQL NewIrql);
NTKERNELAPI VOID NTAPI KeReleaseSpinLockFromDpcLevel(IN OUT PKSPIN_LOCK SpinLock);
#define KeAcquireSpinLock(SpinLock, OldIrql) (*(OldIrql) = KeAcquireSpinLockRaiseToDpc(SpinLock))

/* BRK with the code that Windows takes for a failed assertion. */
void __break(int);
#define DbgRaiseAssertionFailure() __break(0xF001)

#define YieldProcessor() __asm__ __volatile__("yield" ::: "memory")

#define KeFlushIoBuffers(Mdl, ReadOperation, DmaOperation)

#endif
