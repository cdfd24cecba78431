"""Stack traces of emulated threads: the frames of the model by name, driver code by unwinding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.cpu.engine import GENERAL
from vm.emulated.image.seh import StackFrame, walk_stack
from vm.emulated.image.unwind import Registers
from vm.emulated.kernel.threads import GuestFrame, KThread

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_MOST_FRAMES = 64
_RSP = GENERAL.index("rsp")


def stack_trace(kernel: Kernel, thread: KThread) -> list[str]:
    """The frames of a thread, innermost first, symbolised where symbols are known."""
    lines: list[str] = []
    walk = _Walk(kernel, thread)
    for frame in reversed(thread.frames):
        if isinstance(frame, GuestFrame):
            lines += walk.lines(frame)
            if frame.name:
                lines.append(f"({frame.name})")
        else:
            lines.append(frame.name)
        if len(lines) > _MOST_FRAMES:
            break
    return lines


class _Walk:
    """Unwinds the driver frames of a thread one after the other; the registers that one leaves are the next one's."""

    def __init__(self, kernel: Kernel, thread: KThread) -> None:
        self.kernel = kernel
        engine = kernel.engine
        self._running = kernel.scheduler.current is thread
        values = engine.registers() if self._running else {}
        self._rsp = values.get("rsp", 0)
        self._general = tuple(values.get(name, 0) for name in GENERAL)

    def lines(self, frame: GuestFrame) -> list[str]:
        """What one driver frame of the thread consists of, innermost function first."""
        kernel = self.kernel
        handlers = kernel.exceptions.handlers
        found: list[str] = []
        inside = kernel.image_of(frame.pc) is not None
        if inside and not self._running:
            return [
                kernel.describe(frame.pc),
                *self._scan(frame),
            ]  # stopped by preemption: RSP is in its context
        rip, rsp = (frame.pc, self._rsp) if inside else (_word(kernel, frame.rsp), frame.rsp + 8)
        general = (*self._general[:_RSP], rsp, *self._general[_RSP + 1 :])
        last: StackFrame | None = None
        for last in walk_stack(
            Registers(rip, general), handlers.find_module, handlers.read, first_is_caller=not inside
        ):
            if last.module is not None:
                found.append(kernel.describe(last.registers.rip, is_return=last.is_caller))
        if last is None or last.module is not None or last.registers.rip != kernel.scheduler.return_address:
            # The unwind data do not lead back to the kernel (damaged stack, foreign code): show what can be found.
            return [kernel.describe(frame.pc), *self._scan(frame)] if inside else self._scan(frame)
        self._general = last.registers.general
        return found

    def _scan(self, frame: GuestFrame) -> list[str]:
        return [self.kernel.describe(a, is_return=True) for a in return_addresses(self.kernel, frame)]


def _word(kernel: Kernel, address: int) -> int:
    return kernel.memory.u64(address) if kernel.memory.is_mapped(address) else 0


def return_addresses(kernel: Kernel, frame: GuestFrame) -> list[int]:
    """Addresses on the stack that lie behind a call instruction of a driver: a guess, for when unwind data do not help."""
    found: list[int] = []
    memory = kernel.memory
    address = frame.rsp
    for _ in range(512):
        if not memory.is_mapped(address):
            break
        value = memory.u64(address)
        if value == kernel.scheduler.return_address:
            break
        if kernel.image_of(value) is not None and _behind_a_call(kernel, value):
            found.append(value)
        address += 8
    return found


def _behind_a_call(kernel: Kernel, address: int) -> bool:
    memory = kernel.memory
    if not memory.is_mapped(address - 6) or not memory.is_mapped(address - 1):
        return False
    code = memory.read(address - 6, 6)
    return (
        code[1] == 0xE8
        or code[0:2] == b"\xff\x15"
        or (code[4] == 0xFF and code[5] & 0x38 == 0x10)
        or code[3:5] == b"\x41\xff"
    )
