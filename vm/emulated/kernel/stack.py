"""Stack traces of emulated threads: the frames of the model by name, driver code by unwinding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vm.emulated.kernel.threads import GuestFrame, KThread

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

_MOST_FRAMES = 64


def stack_trace(kernel: Kernel, thread: KThread) -> list[str]:
    """The frames of a thread, innermost first, symbolised where symbols are known."""
    lines: list[str] = []
    for frame in reversed(thread.frames):
        if isinstance(frame, GuestFrame):
            lines += _driver_frames(kernel, frame)
        else:
            lines.append(frame.name)
        if len(lines) > _MOST_FRAMES:
            break
    return lines


def _driver_frames(kernel: Kernel, frame: GuestFrame) -> list[str]:
    lines = []
    if kernel.image_of(frame.pc) is not None:
        lines.append(kernel.describe(frame.pc))
    lines += [kernel.describe(address) for address in return_addresses(kernel, frame)]
    if frame.name:
        lines.append(f"({frame.name})")
    return lines


def return_addresses(kernel: Kernel, frame: GuestFrame) -> list[int]:
    """Addresses on the stack that lie behind a call instruction of a driver; used until unwind data say better."""
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
