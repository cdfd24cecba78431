"""Bugchecks: how the model says that a driver did what must never happen."""

from __future__ import annotations

KMODE_EXCEPTION_NOT_HANDLED = 0x1E
IRQL_NOT_GREATER_OR_EQUAL = 0x09
MAXIMUM_WAIT_OBJECTS_EXCEEDED = 0x0C
IRQL_NOT_LESS_OR_EQUAL = 0x0A
SPIN_LOCK_ALREADY_OWNED = 0x0F
SPIN_LOCK_NOT_OWNED = 0x10
SPIN_LOCK_INIT_FAILURE = 0x81
TIMER_OR_DPC_INVALID = 0xC7
REFERENCE_BY_POINTER = 0x18
BAD_POOL_HEADER = 0x19
MUTEX_ALREADY_OWNED = 0xBF
SYSTEM_SERVICE_EXCEPTION = 0x3B
MULTIPLE_IRP_COMPLETE_REQUESTS = 0x44
PAGE_FAULT_IN_NONPAGED_AREA = 0x50
THREAD_NOT_MUTEX_OWNER = 0x11
UNEXPECTED_KERNEL_MODE_TRAP = 0x7F
NMI_HARDWARE_FAILURE = 0x80
SYSTEM_THREAD_EXCEPTION_NOT_HANDLED = 0x7E
INVALID_PROCESS_ATTACH_ATTEMPT = 0x05
INVALID_KERNEL_HANDLE = 0x93
ATTEMPTED_SWITCH_FROM_DPC = 0xB8
SPECIAL_POOL_DETECTED_MEMORY_CORRUPTION = 0xC1
BAD_POOL_CALLER = 0xC2
DRIVER_VERIFIER_DETECTED_VIOLATION = 0xC4
DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS = 0xCE
DRIVER_IRQL_NOT_LESS_OR_EQUAL = 0xD1
DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL = 0xD5
DRIVER_PAGE_FAULT_BEYOND_END_OF_ALLOCATION = 0xD6
IRQL_UNEXPECTED_VALUE = 0xC8
RESOURCE_NOT_OWNED = 0xE3
ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY = 0xFC
ATTEMPTED_WRITE_TO_READONLY_MEMORY = 0xBE
FLTMGR_FILE_SYSTEM = 0xF5
MANUALLY_INITIATED_CRASH = 0xE2
DPC_WATCHDOG_VIOLATION = 0x133
KERNEL_SECURITY_CHECK_FAILURE = 0x139
THREAD_TERMINATE_HELD_MUTEX = 0x4000008A
APC_INDEX_MISMATCH = 0x01
KERNEL_APC_PENDING_DURING_EXIT = 0x20
WORKER_THREAD_RETURNED_AT_BAD_IRQL = 0xE1
SYSTEM_EXIT_OWNED_MUTEX = 0x39

_NAMES = {value: name for name, value in list(globals().items()) if name.isupper() and isinstance(value, int)}


def bugcheck_name(code: int) -> str:
    """The symbolic name of a bugcheck code, as the debugger shows it."""
    return _NAMES.get(code, f"{code:#x}")


class Bugcheck(BaseException):  # the Windows term; not an Exception, so that no handler swallows it
    """The machine stops here.

    Args:
        code: bugcheck code, for example 0xC4.
        parameters: its four parameters; missing ones are zero.
        rule: what was broken, one sentence in the words of a driver developer.
    """

    def __init__(self, code: int, *parameters: int, rule: str) -> None:
        super().__init__(f"{bugcheck_name(code)} ({code:#x}): {rule}")
        self.code = code
        padded = (*parameters, 0, 0, 0, 0)[:4]
        self.parameters = (padded[0], padded[1], padded[2], padded[3])
        self.rule = rule


class GuestException(Exception):  # noqa: N818  # a structured exception of the driver's world
    """A structured exception raised at the driver's call site: ExRaiseStatus, a probe of a bad user address.

    Args:
        status: the exception code.
        information: exception information words (for an access violation: 0 read, 1 write, 8 execute; the address).
    """

    def __init__(self, status: int, *information: int) -> None:
        super().__init__(f"exception {status:#010x}")
        self.status = status
        self.information = information
