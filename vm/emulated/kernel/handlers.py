"""Structured exception handling on emulated threads: runs the plans of `image.seh` (filters, `__finally`, unwind)."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import TYPE_CHECKING

from vm.emulated.cpu.engine import GENERAL
from vm.emulated.cpu.memory import MemoryFaultError
from vm.emulated.image.pe import Image
from vm.emulated.image.seh import (
    ContinueExecution,
    Funclet,
    FuncletKind,
    Interruption,
    Module,
    Resume,
    plan_exception,
)
from vm.emulated.image.unwind import Registers, UnwindTable
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck, GuestException
from vm.emulated.kernel.status import STATUS_NONCONTINUABLE_EXCEPTION
from vm.emulated.kernel.threads import Call, GuestFrame, KThread, Model, ModelFrame

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

CONTEXT_SIZE = 0x4D0
_CONTEXT_GENERAL, _CONTEXT_RIP, _CONTEXT_FLAGS, _CONTEXT_XMM = 0x78, 0xF8, 0x44, 0x1A0
"""Offsets in CONTEXT (x64): Rax and the others in machine order, Rip, EFlags, Xmm0."""
RECORD_SIZE = 0x98
EXCEPTION_NONCONTINUABLE = 1
_RSP = GENERAL.index("rsp")


@lru_cache(maxsize=64)
def unwind_table(image: Image) -> UnwindTable:
    """The unwind data of an image, parsed once for all machines."""
    return UnwindTable(image)


def funclet_stack(rsp: int) -> int:
    """RSP behind a funclet's return address, from that of the driver frame below (see Scheduler.begin_call)."""
    return (rsp - 0x28) & ~0xF


class Dispatch:
    """One exception on its way: the driver frame it happened in, and the funclet that runs for it."""

    __slots__ = ("guest", "interruption")

    def __init__(self, guest: GuestFrame) -> None:
        self.guest = guest
        self.interruption: Interruption | None = None


class Handlers:
    """Exceptions of one kernel's threads that are being handled."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._active: dict[int, list[Dispatch]] = {}

    def find_module(self, address: int) -> Module | None:
        """The driver image at an address, as the unwinder wants it."""
        driver = self.kernel.image_of(address)
        return Module(driver.base, unwind_table(driver.image)) if driver is not None else None

    def read(self, address: int, size: int) -> bytes | None:
        """Memory for the unwinder; None where there is none."""
        try:
            return self.kernel.memory.read(address, size)
        except MemoryFaultError:
            return None

    def registers(self, frame: GuestFrame, *, in_export: bool) -> Registers:
        """Context of the running thread's innermost driver frame.

        Args:
            in_export: it has called an export (the context is then the one behind the call), else it runs itself.
        """
        engine = self.kernel.engine
        values = engine.registers()
        general = [values[name] for name in GENERAL]
        if not in_export:
            return Registers(values["rip"], tuple(general), engine.xmm())
        general[_RSP] = frame.rsp + 8
        return Registers(self.kernel.memory.u64(frame.rsp), tuple(general), engine.xmm())

    def dispatch(self, thread: KThread, error: GuestException, pc: int, *, raised_by_export: bool) -> None:
        """Push the frame that looks for a handler; the thread runs it next."""
        guest = thread.frames[-1]
        assert isinstance(guest, GuestFrame), "exceptions happen in driver code or in an export it called"
        registers = self.registers(guest, in_export=raised_by_export)
        if not raised_by_export:
            registers = registers.at(pc)
        state = Dispatch(guest)
        generator = self._run(thread, error, pc, registers, state, raised_by_export)
        self._active.setdefault(thread.id, []).append(state)
        thread.frames.append(ModelFrame(generator, "exception dispatcher"))

    def _run(
        self,
        thread: KThread,
        error: GuestException,
        pc: int,
        registers: Registers,
        state: Dispatch,
        noncontinuable: bool,
    ) -> Model:
        guest, saved_rsp = state.guest, state.guest.rsp
        pointers = self._store(thread, error, pc, registers, noncontinuable)
        guest.rsp = pointers  # funclets run below what the exception was described with
        crossings = self._crossings(thread, state)
        plan = plan_exception(
            error.status,
            registers,
            self.find_module,
            self.read,
            across=lambda context: crossings.get(context.rsp),
            first_is_caller=noncontinuable,
        )
        answer: int | None = None
        while True:
            try:
                request: Funclet = plan.send(answer)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                outcome = end.value
                break
            state.interruption = request.interruption
            kind = "exception filter" if request.kind is FuncletKind.FILTER else "__finally block"
            answer = yield Call(request.address, request.arguments(pointers), kind)
            state.interruption = None
        if isinstance(outcome, Resume):
            self._resume(thread, state, outcome)
            return None
        if isinstance(outcome, ContinueExecution) and not noncontinuable:
            self._continue(thread, state, pointers)
            return None
        # Nobody handles it: the stack of the crash is the one at the exception.
        thread.frames.pop()
        self._active[thread.id].remove(state)
        guest.rsp = saved_rsp
        if isinstance(outcome, ContinueExecution):
            error = GuestException(STATUS_NONCONTINUABLE_EXCEPTION)
        self.kernel.exceptions.unhandled(thread, error, pc)
        return None

    def _crossings(self, thread: KThread, state: Dispatch) -> dict[int, Interruption]:
        """For each funclet that runs below this exception: RSP when a walk comes out of it -> what it interrupted."""
        return {
            funclet_stack(outer.guest.rsp): outer.interruption
            for outer in self._active[thread.id]
            if outer is not state and outer.interruption is not None
        }

    def _store(
        self, thread: KThread, error: GuestException, pc: int, registers: Registers, noncontinuable: bool
    ) -> int:
        """Write CONTEXT, EXCEPTION_RECORD and EXCEPTION_POINTERS below the stack pointer; the address of the last."""
        memory = self.kernel.memory
        context = (registers.rsp - 0x80 - CONTEXT_SIZE) & ~0xF
        record = context - 0xA0
        pointers = record - 0x10
        if pointers < thread.stack_limit + 0x400:
            raise Bugcheck(
                bc.UNEXPECTED_KERNEL_MODE_TRAP,
                8,
                registers.rsp,
                rule=f"the kernel stack of thread '{thread.name}' overflowed while an exception was raised",
            )
        memory.write(context, bytes(CONTEXT_SIZE))
        memory.put32(context + 0x30, 0x10_000B)  # CONTEXT_FULL
        memory.put32(context + _CONTEXT_FLAGS, self.kernel.engine.get("eflags"))
        memory.write(context + _CONTEXT_GENERAL, struct.pack("<16Q", *registers.general))
        memory.put64(context + _CONTEXT_RIP, registers.rip)
        memory.write(context + _CONTEXT_XMM, b"".join(x.to_bytes(16, "little") for x in registers.xmm))
        words = error.information[:15]
        head = struct.pack(
            "<IIQQII",
            error.status,
            EXCEPTION_NONCONTINUABLE if noncontinuable else 0,
            0,
            pc,
            len(words),
            0,
        )
        memory.write(record, (head + struct.pack(f"<{len(words)}Q", *words)).ljust(RECORD_SIZE, b"\0"))
        memory.put64(pointers, record)
        memory.put64(pointers + 8, context)
        return pointers

    def _load(self, guest: GuestFrame, registers: Registers) -> None:
        engine = self.kernel.engine
        engine.set_registers(dict(zip(GENERAL, registers.general, strict=True)))
        engine.set_xmm(registers.xmm)
        guest.pc = registers.rip
        guest.rsp = registers.rsp
        guest.reset_rsp = False
        guest.result = None

    def _resume(self, thread: KThread, state: Dispatch, outcome: Resume) -> None:
        """Drop the funclets that the handler lies below, and go on at the handler."""
        active = self._active[thread.id]
        position = active.index(state) - outcome.crossed
        target = active[position].guest
        own = thread.frames.pop()
        while thread.frames[-1] is not target:
            dropped = thread.frames.pop()
            if isinstance(dropped, GuestFrame):
                self.kernel.forget_call(thread)
            else:
                dropped.generator.close()
        thread.frames.append(own)
        del active[position:]
        self._load(target, outcome.registers)

    def _continue(self, thread: KThread, state: Dispatch, pointers: int) -> None:
        """A filter has mended it: go on with the context as it is now."""
        memory = self.kernel.memory
        context = memory.u64(pointers + 8)
        general = struct.unpack("<16Q", memory.read(context + _CONTEXT_GENERAL, 128))
        raw = memory.read(context + _CONTEXT_XMM, 256)
        xmm = tuple(int.from_bytes(raw[i : i + 16], "little") for i in range(0, 256, 16))
        self._active[thread.id].remove(state)
        self._load(state.guest, Registers(memory.u64(context + _CONTEXT_RIP), general, xmm))
