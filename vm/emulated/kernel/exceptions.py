"""Processor faults and structured exceptions: which bugcheck they are, or which handler of the driver takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.cpu.engine import Stop, StopKind
from vm.emulated.cpu.memory import Access, MemoryFaultError
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.handlers import Handlers
from vm.emulated.kernel.status import (
    STATUS_ACCESS_VIOLATION,
    STATUS_ASSERTION_FAILURE,
    STATUS_BREAKPOINT,
    STATUS_ILLEGAL_INSTRUCTION,
    STATUS_INTEGER_DIVIDE_BY_ZERO,
    STATUS_PRIVILEGED_INSTRUCTION,
    status_name,
)
from vm.emulated.kernel.threads import DISPATCH_LEVEL, GuestFrame, KThread

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

USER_END = 0x0000_8000_0000_0000
_VERB = {Access.READ: "read", Access.WRITE: "wrote to", Access.EXECUTE: "executed"}
_INTERRUPTS = {
    0: STATUS_INTEGER_DIVIDE_BY_ZERO,
    3: STATUS_BREAKPOINT,
    0x2C: STATUS_ASSERTION_FAILURE,
    0x2D: STATUS_BREAKPOINT,
    6: STATUS_ILLEGAL_INSTRUCTION,
    13: STATUS_PRIVILEGED_INSTRUCTION,
}
_FAST_FAIL = 0x29


class Exceptions:
    """Turns stops of the processor into structured exceptions or bugchecks."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.handlers = Handlers(kernel)

    def processor_stop(self, thread: KThread, frame: GuestFrame, stop: Stop) -> None:
        """Driver code stopped at `stop.pc` for another reason than a trap."""
        if stop.kind is StopKind.FAULT:
            self._fault(thread, stop.pc, stop.address, stop.access, "driver code")
        elif stop.kind is StopKind.INTERRUPT:
            if stop.interrupt == _FAST_FAIL:
                code = self.kernel.engine.get("rcx") & 0xFFFF_FFFF
                raise Bugcheck(
                    bc.KERNEL_SECURITY_CHECK_FAILURE,
                    code,
                    rule=f"the driver called __fastfail({code}): it found its own data damaged",
                )
            status = _INTERRUPTS.get(stop.interrupt, STATUS_ILLEGAL_INSTRUCTION)
            self.dispatch(thread, GuestException(status), stop.pc)
        elif stop.kind is StopKind.HALT:
            raise Bugcheck(
                bc.DPC_WATCHDOG_VIOLATION,
                stop.pc,
                rule="the driver executed 'hlt', which stops the processor",
            )
        else:
            self.dispatch(thread, GuestException(STATUS_ILLEGAL_INSTRUCTION), stop.pc)

    def model_fault(self, thread: KThread, export: str, fault: MemoryFaultError) -> None:
        """An export of the model touched bad memory that the driver gave it: the driver's fault at the call."""
        frame = thread.guest_frame()
        assert frame is not None
        self._fault(thread, self.kernel.memory.u64(frame.rsp), fault.address, fault.access, export)

    def raise_from_export(self, thread: KThread, error: GuestException) -> None:
        """An export raises a structured exception in its caller."""
        frame = thread.guest_frame()
        assert frame is not None
        return_address = self.kernel.memory.u64(frame.rsp)
        self.dispatch(thread, error, return_address - 1, export_return=return_address)

    def _fault(self, thread: KThread, pc: int, address: int, access: Access, who: str) -> None:
        kernel = self.kernel
        irql = kernel.engine.irql
        verb = _VERB.get(access, "touched")
        if address < USER_END:
            if irql >= DISPATCH_LEVEL:
                what = "a NULL pointer" if address < 0x1_0000 else "user memory"
                raise Bugcheck(
                    bc.DRIVER_IRQL_NOT_LESS_OR_EQUAL,
                    address,
                    irql,
                    int(access),
                    pc,
                    rule=f"{who} {verb} {address:#x} ({what}) at IRQL {irql}",
                )
            code = 8 if access is Access.EXECUTE else 1 if access is Access.WRITE else 0
            self.dispatch(thread, GuestException(STATUS_ACCESS_VIOLATION, code, address), pc)
            return
        self.kernel_fault(pc, address, access, who)

    def kernel_fault(self, pc: int, address: int, access: Access, who: str) -> None:
        """Bugcheck for an access to an address of the kernel half that is not allowed."""
        kernel = self.kernel
        irql = kernel.engine.irql
        verb = _VERB.get(access, "touched")
        operation = 1 if access is Access.WRITE else 8 if access is Access.EXECUTE else 0
        block = kernel.pool.block_of(address)
        if block is not None and not kernel.memory.is_mapped(address):
            where = kernel.describe(block.site) if block.site else "the kernel"
            if block.freed_at is not None:
                freed = kernel.describe(block.freed_at) if block.freed_at else "the kernel"
                raise Bugcheck(
                    bc.DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL,
                    address,
                    operation,
                    pc,
                    rule=f"{who} {verb} {address:#x}, which is inside the {block.size}-byte block '{block.tag}' allocated by "
                    f"{where} and already freed by {freed}",
                )
            raise Bugcheck(
                bc.DRIVER_PAGE_FAULT_BEYOND_END_OF_ALLOCATION,
                address,
                operation,
                pc,
                rule=f"{who} {verb} {address:#x}, {address - block.address - block.size} bytes behind the end of the "
                f"{block.size}-byte block '{block.tag}' allocated by {where}",
            )
        item = kernel.objects.by_address.get(address & ~0xFF)
        if item is not None:
            raise Bugcheck(
                bc.PAGE_FAULT_IN_NONPAGED_AREA,
                address,
                operation,
                pc,
                rule=f"{who} looked into an opaque object of type '{item.type}' at {address:#x}",
            )
        if kernel.memory.is_mapped(address, Access.NONE):
            if access is Access.EXECUTE:
                raise Bugcheck(
                    bc.ATTEMPTED_EXECUTE_OF_NOEXECUTE_MEMORY,
                    address,
                    pc,
                    rule=f"{who} jumped to data at {address:#x}",
                )
            raise Bugcheck(
                bc.ATTEMPTED_WRITE_TO_READONLY_MEMORY,
                address,
                pc,
                rule=f"{who} {verb} read-only memory at {address:#x}",
            )
        stack = kernel.stack_owner(address)
        if stack is not None:
            raise Bugcheck(
                bc.UNEXPECTED_KERNEL_MODE_TRAP,
                8,
                address,
                rule=f"the kernel stack of thread '{stack.name}' overflowed",
            )
        unloaded = kernel.unloaded_image(address)
        if unloaded is not None:
            raise Bugcheck(
                bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS,
                address,
                operation,
                pc,
                rule=f"{who} {verb} {address:#x} inside the driver '{unloaded}', which is unloaded",
            )
        discarded = kernel.image_of(address)
        if discarded is not None:
            raise Bugcheck(
                bc.PAGE_FAULT_IN_NONPAGED_AREA,
                address,
                operation,
                pc,
                rule=f"{who} {verb} {kernel.describe(address)}, whose section was discarded after DriverEntry",
            )
        code = bc.DRIVER_IRQL_NOT_LESS_OR_EQUAL if irql >= DISPATCH_LEVEL else bc.PAGE_FAULT_IN_NONPAGED_AREA
        raise Bugcheck(
            code, address, irql, operation, pc, rule=f"{who} {verb} {address:#x}, which is no valid address"
        )

    def dispatch(
        self, thread: KThread, error: GuestException, pc: int, *, export_return: int | None = None
    ) -> None:
        """Find a handler of the driver for a structured exception and run it, or bugcheck.

        Args:
            pc: where the exception is said to have happened.
            export_return: return address of the export that raised it; None for the processor's own.
        """
        self.handlers.dispatch(thread, error, pc, raised_by_export=export_return is not None)

    def unhandled(self, thread: KThread, error: GuestException, pc: int) -> None:
        """No handler takes the exception: the bugcheck that Windows shows for it."""
        detail = ""
        if error.status == STATUS_ACCESS_VIOLATION and len(error.information) == 2:
            kind, address = error.information
            verb = {0: "read", 1: "wrote to", 8: "executed"}[kind]
            what = "a NULL pointer" if address < 0x1_0000 else "user memory without a handler"
            detail = f": it {verb} {address:#x}, {what}"
        code = bc.SYSTEM_THREAD_EXCEPTION_NOT_HANDLED if thread.is_system else bc.SYSTEM_SERVICE_EXCEPTION
        parameters = (error.status, pc, 0, 0)
        raise Bugcheck(
            code,
            *parameters,
            rule=f"the driver raised {status_name(error.status)} at {self.kernel.describe(pc)}{detail}, and nothing handles it",
        )
