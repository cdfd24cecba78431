/*
 * Driver code for the tests of the kernel model: small routines, each called by a test with up to four arguments.
 * The entry point fills a table with their addresses.
 */
#include <fltKernel.h>

#define NOINLINE __attribute__((noinline))

static volatile LONG Counter;
static KSPIN_LOCK CounterLock;
static FAST_MUTEX CounterMutex;

/* Exceptions */

static NOINLINE ULONG ReadUser(volatile ULONG *address)
{
    return *address;
}

static ULONG_PTR CatchFault(volatile ULONG *address)
{
    NTSTATUS status = STATUS_SUCCESS;
    ULONG_PTR a = (ULONG_PTR)address * 3, b = a ^ 0x55;

    __try {
        (VOID)ReadUser(address);
    } __except (EXCEPTION_EXECUTE_HANDLER) {
        status = GetExceptionCode();
    }
    return ((a ^ 0x55) == b) ? (ULONG_PTR)(ULONG)status : 0;
}

static volatile ULONG_PTR SeenAddress;
static volatile LONG Finally;

static LONG SelectiveFilter(PEXCEPTION_POINTERS Pointers, NTSTATUS Wanted)
{
    SeenAddress = Pointers->ExceptionRecord->NumberParameters == 2
                      ? Pointers->ExceptionRecord->ExceptionInformation[1]
                      : 0;
    return (Pointers->ExceptionRecord->ExceptionCode == Wanted) ? EXCEPTION_EXECUTE_HANDLER
                                                                : EXCEPTION_CONTINUE_SEARCH;
}

static NOINLINE VOID ProbeWithFinally(PVOID address, SIZE_T length)
{
    __try {
        ProbeForRead(address, length, 1);
        (VOID)ReadUser(address);
    } __finally {
        Finally += AbnormalTermination() ? 100 : 1;
    }
}

static ULONG_PTR CatchAcross(PVOID address, SIZE_T length, NTSTATUS wanted)
{
    NTSTATUS status = STATUS_SUCCESS;

    Finally = 0;
    __try {
        ProbeWithFinally(address, length);
    } __except (SelectiveFilter(GetExceptionInformation(), wanted)) {
        status = GetExceptionCode();
    }
    return ((ULONG_PTR)Finally << 32) | (ULONG)status;
}

static ULONG_PTR SeenByFilter(VOID)
{
    return SeenAddress;
}

static NOINLINE VOID RaiseIt(NTSTATUS status)
{
    ExRaiseStatus(status);
}

static ULONG_PTR CatchRaised(NTSTATUS status)
{
    NTSTATUS caught = STATUS_SUCCESS;

    __try {
        RaiseIt(status);
    } __except (EXCEPTION_EXECUTE_HANDLER) {
        caught = GetExceptionCode();
    }
    return (ULONG)caught;
}

static LONG FilterThatFails(volatile ULONG *address)
{
    __try {
        (VOID)ReadUser(address);
    } __except (EXCEPTION_EXECUTE_HANDLER) {
        return EXCEPTION_EXECUTE_HANDLER;
    }
    return EXCEPTION_CONTINUE_SEARCH;
}

static ULONG_PTR CatchInFilter(volatile ULONG *address)
{
    NTSTATUS caught = STATUS_SUCCESS;

    __try {
        RaiseIt(STATUS_INVALID_PARAMETER);
    } __except (FilterThatFails(address)) {
        caught = GetExceptionCode();
    }
    return (ULONG)caught;
}

static LONG FilterThatRaises(VOID)
{
    RaiseIt(STATUS_NOT_FOUND);
    return EXCEPTION_CONTINUE_SEARCH;
}

static ULONG_PTR CatchOutOfFilter(VOID)
{
    NTSTATUS caught = STATUS_SUCCESS;

    __try {
        __try {
            RaiseIt(STATUS_INVALID_PARAMETER);
        } __except (FilterThatRaises()) {
            caught = STATUS_UNSUCCESSFUL;
        }
    } __except (EXCEPTION_EXECUTE_HANDLER) {
        caught = GetExceptionCode();
    }
    return (ULONG)caught;
}

static LONG Repair(PEXCEPTION_POINTERS Pointers, PVOID good)
{
    Pointers->ContextRecord->Rcx = (ULONG64)good;
    return EXCEPTION_CONTINUE_EXECUTION;
}

static ULONG_PTR ContinueAfterRepair(volatile ULONG *bad, volatile ULONG *good)
{
    ULONG value = 0;

    __try {
        value = ReadUser(bad);
    } __except (Repair(GetExceptionInformation(), (PVOID)good)) {
        value = 1;
    }
    return value;
}

static ULONG_PTR RaiseUncaught(NTSTATUS status)
{
    RaiseIt(status);
    return 0;
}

/* Races */

static ULONG_PTR IncrementUnlocked(LONG times)
{
    for (LONG i = 0; i < times; i++) {
        LONG value = Counter;
        if (value < 0) { /* keeps the load and the store apart: otherwise it is one instruction */
            return 1;
        }
        Counter = value + 1;
    }
    return 0;
}

static ULONG_PTR IncrementLocked(LONG times)
{
    for (LONG i = 0; i < times; i++) {
        KIRQL irql;
        LONG value;

        KeAcquireSpinLock(&CounterLock, &irql);
        value = Counter;
        if (value < 0) {
            KeBugCheck(0xE2);
        }
        Counter = value + 1;
        KeReleaseSpinLock(&CounterLock, irql);
    }
    return 0;
}

static ULONG_PTR IncrementUnderMutex(LONG times)
{
    for (LONG i = 0; i < times; i++) {
        LONG value;

        ExAcquireFastMutex(&CounterMutex);
        value = Counter;
        if (value < 0) {
            KeBugCheck(0xE2);
        }
        Counter = value + 1;
        ExReleaseFastMutex(&CounterMutex);
    }
    return 0;
}

static ULONG_PTR SetCounter(LONG value)
{
    LONG old = Counter;

    Counter = value;
    KeInitializeSpinLock(&CounterLock);
    ExInitializeFastMutex(&CounterMutex);
    return (ULONG_PTR)old;
}

static ULONG_PTR LeaveAtDispatch(VOID)
{
    KIRQL irql;

    KeRaiseIrql(DISPATCH_LEVEL, &irql);
    return KeGetCurrentIrql();
}

static ULONG_PTR Recurse(ULONG_PTR depth)
{
    volatile UCHAR local[512];

    local[depth & 511] = (UCHAR)depth;
    if (depth == MAXULONG) {
        return 0;
    }
    return Recurse(depth + 1) + local[(depth + 1) & 511];
}

static ULONG_PTR SpinForEver(VOID)
{
    for (;;) {
        Counter += 0;
    }
}

static ULONG_PTR WorkAndCall(LONG rounds)
{
    for (LONG i = 0; i < rounds; i++) {
        for (LONG j = 0; j < 20000; j++) {
            Counter += 0;
        }
        (VOID)KeQueryTimeIncrement();
    }
    return 7;
}

static ULONG_PTR LookasideRoundTrip(VOID)
{
    static NPAGED_LOOKASIDE_LIST list;
    PVOID first, second;

    ExInitializeNPagedLookasideList(&list, NULL, NULL, 0, 64, 'tseT', 0);
    first = ExAllocateFromNPagedLookasideList(&list);
    second = ExAllocateFromNPagedLookasideList(&list);
    if ((first == NULL) || (second == NULL) || (first == second)) {
        return 0;
    }
    ExFreeToNPagedLookasideList(&list, first);
    ExFreeToNPagedLookasideList(&list, second);
    ExDeleteNPagedLookasideList(&list);
    return 1;
}

NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)
{
    PVOID *table = (PVOID *)(PVOID)DriverObject;

    UNREFERENCED_PARAMETER(RegistryPath);
    table[0] = CatchFault;
    table[1] = CatchAcross;
    table[2] = SeenByFilter;
    table[3] = CatchRaised;
    table[4] = CatchInFilter;
    table[5] = CatchOutOfFilter;
    table[6] = ContinueAfterRepair;
    table[7] = RaiseUncaught;
    table[8] = IncrementUnlocked;
    table[9] = IncrementLocked;
    table[10] = IncrementUnderMutex;
    table[11] = SetCounter;
    table[12] = LeaveAtDispatch;
    table[13] = Recurse;
    table[14] = SpinForEver;
    table[15] = LookasideRoundTrip;
    table[16] = WorkAndCall;
    return STATUS_SUCCESS;
}
