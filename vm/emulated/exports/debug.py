"""Debug output, assertions, bugchecks, raised exceptions, tracing, versions, and what compilers link to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.exports.declare import (
    BOOLEAN,
    NTOSKRNL,
    NTSTATUS,
    PVOID,
    UCHAR,
    ULONG,
    ULONG_PTR,
    ULONGLONG,
    VarArgs,
    alias,
    export,
)
from vm.emulated.exports.printf import ArgumentList, Arguments, format_text
from vm.emulated.exports.state import state_of
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException, bugcheck_name
from vm.emulated.kernel.status import (
    STATUS_ACCESS_VIOLATION,
    STATUS_ASSERTION_FAILURE,
    STATUS_BREAKPOINT,
    STATUS_DATATYPE_MISALIGNMENT,
    STATUS_INVALID_HANDLE,
    STATUS_INVALID_PARAMETER,
    STATUS_REVISION_MISMATCH,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import APC_LEVEL, DISPATCH_LEVEL, HIGH_LEVEL, PASSIVE_LEVEL

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_DPFLTR_ERROR_LEVEL = 0
_BUFFER = 512
"""DbgPrint sends at most so many bytes (docs)."""


def _print(k: Kernel, text_address: int, arguments: Arguments, prefix: str = "") -> int:
    def unicode_used() -> None:
        if k.engine.irql > PASSIVE_LEVEL:
            k.violate(
                "dbgprint.unicode",
                f"DbgPrint was called with a Unicode conversion at IRQL {k.engine.irql}; that needs PASSIVE_LEVEL",
                k.caller()[0],
            )

    text = k.memory.c_string(text_address).decode("cp1252", "replace")
    k.debug_print(prefix + format_text(k.memory, text, arguments, on_unicode=unicode_used)[:_BUFFER])
    return STATUS_SUCCESS


class DebugFilters:
    """Which (component, level bit) of DbgPrintEx are shown; errors always are."""

    def __init__(self, k: Kernel) -> None:
        self.masks: dict[int, int] = {}

    def shown(self, component: int, level: int) -> bool:
        """True if output of this component and level appears."""
        bit = 1 << level if level < 32 else level
        return bool((self.masks.get(component, 0) | 1 << _DPFLTR_ERROR_LEVEL) & bit)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgPrint(k: Kernel, Format: PVOID, Arguments_: VarArgs) -> int:
    """Shown whatever the filter says: on a test machine the line was meant to be seen."""
    return _print(k, Format, Arguments_)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgPrintEx(k: Kernel, ComponentId: ULONG, Level: ULONG, Format: PVOID, Arguments_: VarArgs) -> int:
    if not state_of(k, DebugFilters).shown(ComponentId, Level):
        return STATUS_SUCCESS
    return _print(k, Format, Arguments_)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def vDbgPrintEx(k: Kernel, ComponentId: ULONG, Level: ULONG, Format: PVOID, arglist: PVOID) -> int:
    if not state_of(k, DebugFilters).shown(ComponentId, Level):
        return STATUS_SUCCESS
    return _print(k, Format, ArgumentList(k.memory, arglist))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def vDbgPrintExWithPrefix(
    k: Kernel, Prefix: PVOID, ComponentId: ULONG, Level: ULONG, Format: PVOID, arglist: PVOID
) -> int:
    if not state_of(k, DebugFilters).shown(ComponentId, Level):
        return STATUS_SUCCESS
    prefix = k.memory.c_string(Prefix).decode("cp1252", "replace")
    return _print(k, Format, ArgumentList(k.memory, arglist), prefix)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgQueryDebugFilterState(k: Kernel, ComponentId: ULONG, Level: ULONG) -> int:
    return int(state_of(k, DebugFilters).shown(ComponentId, Level))


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgSetDebugFilterState(k: Kernel, ComponentId: ULONG, Level: ULONG, State: BOOLEAN) -> int:
    masks = state_of(k, DebugFilters).masks
    bit = 1 << Level if Level < 32 else Level
    old = masks.get(ComponentId, 0)
    masks[ComponentId] = old | bit if State else old & ~bit
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KdRefreshDebuggerNotPresent(k: Kernel) -> bool:
    return True


# Stops


def _bugcheck(k: Kernel, code: int, *parameters: int) -> None:
    where = k.describe(k.caller()[1])
    values = ", ".join(f"{parameter:#x}" for parameter in parameters)
    raise Bugcheck(
        code,
        *parameters,
        rule=f"the driver called KeBugCheckEx({bugcheck_name(code)}, {values}) at {where}",
    )


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeBugCheck(k: Kernel, BugCheckCode: ULONG) -> None:
    _bugcheck(k, BugCheckCode, 0, 0, 0, 0)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def KeBugCheckEx(
    k: Kernel,
    BugCheckCode: ULONG,
    BugCheckParameter1: ULONG_PTR,
    BugCheckParameter2: ULONG_PTR,
    BugCheckParameter3: ULONG_PTR,
    BugCheckParameter4: ULONG_PTR,
) -> None:
    _bugcheck(k, BugCheckCode, BugCheckParameter1, BugCheckParameter2, BugCheckParameter3, BugCheckParameter4)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgBreakPoint(k: Kernel) -> None:
    """Without a debugger a breakpoint is an exception that nobody expects."""
    raise GuestException(STATUS_BREAKPOINT)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def DbgBreakPointWithStatus(k: Kernel, Status: ULONG) -> None:
    raise GuestException(STATUS_BREAKPOINT)


@export(NTOSKRNL, irql=HIGH_LEVEL)
def RtlAssert(
    k: Kernel, FailedAssertion: PVOID, FileName: PVOID, LineNumber: ULONG, MutableMessage: PVOID
) -> None:
    text = k.memory.c_string(FailedAssertion).decode("cp1252", "replace")
    file = k.memory.c_string(FileName).decode("cp1252", "replace") if FileName else "?"
    k.debug_print(f"*** Assertion failed: {text}\n***   Source File: {file}, line {LineNumber}\n")
    k.violate("assertion", f"the assertion '{text}' failed ({file}:{LineNumber})", k.caller()[0])
    raise GuestException(STATUS_ASSERTION_FAILURE)


# Raised exceptions


@export(NTOSKRNL, irql=APC_LEVEL)
def ExRaiseStatus(k: Kernel, Status: NTSTATUS) -> None:
    raise GuestException(Status)


RtlRaiseStatus = alias(ExRaiseStatus, "RtlRaiseStatus")


@export(NTOSKRNL, irql=APC_LEVEL)
def ExRaiseAccessViolation(k: Kernel) -> None:
    raise GuestException(STATUS_ACCESS_VIOLATION)


@export(NTOSKRNL, irql=APC_LEVEL)
def ExRaiseDatatypeMisalignment(k: Kernel) -> None:
    raise GuestException(STATUS_DATATYPE_MISALIGNMENT)


@export(NTOSKRNL, irql=DISPATCH_LEVEL)
def RtlRaiseException(k: Kernel, ExceptionRecord: PVOID) -> None:
    """EXCEPTION_RECORD: ExceptionCode 0x00, NumberParameters 0x18, ExceptionInformation 0x20."""
    memory = k.memory
    count = min(memory.u32(ExceptionRecord + 0x18), 15)
    raise GuestException(
        memory.u32(ExceptionRecord), *(memory.u64(ExceptionRecord + 0x20 + 8 * i) for i in range(count))
    )


@export(NTOSKRNL, irql=HIGH_LEVEL)
def FsRtlIsNtstatusExpected(k: Kernel, Ntstatus: NTSTATUS) -> bool:
    """FALSE for the exceptions that mean a bug (docs)."""
    return Ntstatus not in (0x8000_0002, 0xC000_0005, 0xC000_001D, 0xC000_00AA)


@export(NTOSKRNL, irql=HIGH_LEVEL, name="__C_specific_handler")
def c_specific_handler(
    k: Kernel, ExceptionRecord: PVOID, EstablisherFrame: PVOID, ContextRecord: PVOID, Dispatcher: PVOID
) -> int:
    """Named by unwind data; the machine's own dispatcher reads the scope tables, so nobody calls it."""
    return 1  # ExceptionContinueSearch


@export(NTOSKRNL, irql=HIGH_LEVEL, name="_local_unwind")
def local_unwind(k: Kernel, TargetFrame: PVOID, TargetIp: PVOID) -> None:
    raise Bugcheck(
        bc.KMODE_EXCEPTION_NOT_HANDLED,
        STATUS_INVALID_PARAMETER,
        TargetIp,
        rule="the driver left a __try block by a jump (_local_unwind), which the emulated machine does not model",
    )


@export(NTOSKRNL, irql=HIGH_LEVEL, name="__chkstk")
def chkstk(k: Kernel) -> None:
    """Kernel stacks are committed as a whole; the guard page below catches what is too much."""


@export(NTOSKRNL, irql=HIGH_LEVEL, name="__security_check_cookie")
def security_check_cookie(k: Kernel, StackCookie: ULONG_PTR) -> None:
    """Drivers link their own; an export is there for those that do not."""


# Event tracing: providers are accepted and never enabled


class TraceProviders:
    """Registered ETW providers: handle -> driver."""

    def __init__(self, k: Kernel) -> None:
        self.handles: dict[int, str] = {}
        self.next = 1


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def EtwRegister(
    k: Kernel, ProviderId: PVOID, EnableCallback: PVOID, CallbackContext: PVOID, RegHandle: PVOID
) -> int:
    providers = state_of(k, TraceProviders)
    handle = providers.next
    providers.next += 1
    providers.handles[handle] = k.caller()[0]
    k.memory.put64(RegHandle, handle)
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def EtwUnregister(k: Kernel, RegHandle: ULONGLONG) -> int:
    """A handle that is not registered is Verifier's 0xDC (docs of bugcheck 0xC4)."""
    if state_of(k, TraceProviders).handles.pop(RegHandle, None) is None:
        if RegHandle == 0:
            return STATUS_INVALID_HANDLE
        raise Bugcheck(
            bc.DRIVER_VERIFIER_DETECTED_VIOLATION,
            0xDC,
            RegHandle,
            rule=f"EtwUnregister was called with the handle {RegHandle:#x}, which is not registered",
        )
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwWrite(
    k: Kernel,
    RegHandle: ULONGLONG,
    EventDescriptor: PVOID,
    ActivityId: PVOID,
    UserDataCount: ULONG,
    UserData: PVOID,
) -> int:
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwWriteTransfer(
    k: Kernel,
    RegHandle: ULONGLONG,
    EventDescriptor: PVOID,
    ActivityId: PVOID,
    RelatedActivityId: PVOID,
    UserDataCount: ULONG,
    UserData: PVOID,
) -> int:
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwWriteString(
    k: Kernel, RegHandle: ULONGLONG, Level: UCHAR, Keyword: ULONGLONG, ActivityId: PVOID, String: PVOID
) -> int:
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwEventEnabled(k: Kernel, RegHandle: ULONGLONG, EventDescriptor: PVOID) -> bool:
    return False


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwProviderEnabled(k: Kernel, RegHandle: ULONGLONG, Level: UCHAR, Keyword: ULONGLONG) -> bool:
    return False


@export(NTOSKRNL, irql=HIGH_LEVEL)
def EtwActivityIdControl(k: Kernel, ControlCode: ULONG, ActivityId: PVOID) -> int:
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def EtwSetInformation(
    k: Kernel,
    RegHandle: ULONGLONG,
    InformationClass: ULONG,
    EventInformation: PVOID,
    InformationLength: ULONG,
) -> int:
    return STATUS_SUCCESS


# Versions


_MAJOR, _MINOR, _BUILD = 10, 0, 26100
_NTDDI = 0x0A00_0010


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlGetVersion(k: Kernel, VersionInformation: PVOID) -> int:
    """OSVERSIONINFOW (0x114 bytes) or OSVERSIONINFOEXW (0x11C): the size says which."""
    memory = k.memory
    size = memory.u32(VersionInformation)
    for offset, value in ((4, _MAJOR), (8, _MINOR), (12, _BUILD), (16, 2)):
        memory.put32(VersionInformation + offset, value)
    memory.write(VersionInformation + 20, bytes(256))
    if size == 0x11C:
        memory.write(VersionInformation + 0x114, bytes((0, 0, 0, 0, 0, 1, 1, 0)))
    return STATUS_SUCCESS


@export(NTOSKRNL, irql=HIGH_LEVEL)
def PsGetVersion(
    k: Kernel, MajorVersion: PVOID, MinorVersion: PVOID, BuildNumber: PVOID, CSDVersion: PVOID
) -> bool:
    """FALSE: a free build."""
    for address, value in ((MajorVersion, _MAJOR), (MinorVersion, _MINOR), (BuildNumber, _BUILD)):
        if address:
            k.memory.put32(address, value)
    if CSDVersion:
        k.memory.put16(CSDVersion, 0)
    return False


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlIsNtDdiVersionAvailable(k: Kernel, Version: ULONG) -> bool:
    """Sub-version bits (the low byte) must be zero (docs)."""
    return not Version & 0xFF and Version <= _NTDDI & 0xFFFF_FF00


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def RtlVerifyVersionInfo(k: Kernel, VersionInfo: PVOID, TypeMask: ULONG, ConditionMask: ULONGLONG) -> int:
    """Major, minor and build are compared, three condition bits each: = > >= < <= (1 to 5)."""
    memory = k.memory
    mine = (_MINOR, _MAJOR, _BUILD)
    wanted = (
        memory.u32(VersionInfo + 8),
        memory.u32(VersionInfo + 4),
        memory.u32(VersionInfo + 12),
    )
    order = [index for index in (1, 0, 2) if TypeMask & 1 << index]
    if not order:
        return STATUS_INVALID_PARAMETER
    condition = ConditionMask >> 3 * order[0] & 7
    a, b = tuple(mine[i] for i in order), tuple(wanted[i] for i in order)
    met = {1: a == b, 2: a > b, 3: a >= b, 4: a < b, 5: a <= b}.get(condition)
    if met is None:
        return STATUS_INVALID_PARAMETER
    return STATUS_SUCCESS if met else STATUS_REVISION_MISMATCH


@export(NTOSKRNL, irql=PASSIVE_LEVEL)
def ExIsProcessorFeaturePresent(k: Kernel, ProcessorFeature: ULONG) -> bool:
    return ProcessorFeature in (2, 3, 6, 8, 9, 10, 12, 13, 14)
