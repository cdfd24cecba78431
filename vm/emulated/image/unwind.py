"""x64 unwind data: RUNTIME_FUNCTION, UNWIND_INFO and the virtual unwind of one frame, as pure functions of an image
and of a way to read memory. Exceptions are the business of `seh`.

Source: "x64 exception handling" in Microsoft's C++ documentation (unwind codes, chained information, epilogues)."""

from __future__ import annotations

import re
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

from vm.emulated.image.pe import Image

ReadMemory = Callable[[int, int], bytes | None]
"""`read(address, size)`: the bytes, or None when one of them cannot be read."""

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
_MASK = 0xFFFFFFFFFFFFFFFF
_MAX_CHAIN = 32
_LONGEST_EPILOGUE = 96
_REX_B = (b"\x41", b"\x49")
_POP = re.compile(rb"([\x40-\x4f]?)([\x58-\x5f])")
# ret, ret n, rep ret; jmp [rip + n] with and without REX.W; REX.W jmp r/m64, which only epilogues use
_RETURN_OR_INDIRECT_JUMP = re.compile(
    rb"[\xc2\xc3]|\xf3\xc3|\xff\x25|[\x48-\x4f]\xff[\x20-\x27\x60-\x67\xa0-\xa7\xe0-\xe7]"
)

EXCEPTION_HANDLER = 0x1
UNWIND_HANDLER = 0x2
_CHAINED = 0x4


class UnwindError(Exception):
    """A frame cannot be unwound: its unwind data is damaged or its stack cannot be read. The message says which."""


class Operation(IntEnum):
    """UWOP_* codes."""

    PUSH_NONVOL = 0
    ALLOC_LARGE = 1
    ALLOC_SMALL = 2
    SET_FPREG = 3
    SAVE_NONVOL = 4
    SAVE_NONVOL_FAR = 5
    EPILOG = 6  # version 2 only; tells nothing that the instructions do not say
    SAVE_XMM128 = 8
    SAVE_XMM128_FAR = 9
    PUSH_MACHFRAME = 10


@dataclass(frozen=True, slots=True)
class Registers:
    """What unwinding needs of a processor context.

    Attributes:
        general: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ... R15.
        xmm: XMM0 ... XMM15 as 128-bit integers; only 6 to 15 ever change by unwinding.
    """

    rip: int
    general: tuple[int, ...]
    xmm: tuple[int, ...] = (0,) * 16

    @property
    def rsp(self) -> int:
        return self.general[RSP]

    def at(self, rip: int, *, rax: int | None = None) -> Registers:
        """The same context with another RIP and, unless None, another RAX."""
        general = self.general if rax is None else (rax & _MASK, *self.general[1:])
        return replace(self, rip=rip, general=general)


@dataclass(frozen=True, slots=True)
class UnwindCode:
    """One unwind operation.

    Attributes:
        offset: offset in the prologue behind the instruction it stands for.
        register: general or XMM register of the operation; the error-code flag of PUSH_MACHFRAME.
        value: bytes allocated, or offset of the saved register from the frame base.
    """

    offset: int
    operation: Operation
    register: int
    value: int


@dataclass(frozen=True, slots=True)
class UnwindInfo:
    """A parsed UNWIND_INFO.

    Attributes:
        frame_register: number of the frame register, 0 for none; `frame_offset` is in bytes.
        handler_rva: the language-specific handler, 0 for none; `handler_data_rva` is where its data begins.
        chained: the function entry this one continues, or None.
    """

    flags: int
    prologue_size: int
    frame_register: int
    frame_offset: int
    codes: tuple[UnwindCode, ...]
    handler_rva: int
    handler_data_rva: int
    chained: RuntimeFunction | None


@dataclass(frozen=True, slots=True)
class RuntimeFunction:
    begin: int
    end: int
    unwind_rva: int


@dataclass(frozen=True, slots=True)
class UnwoundFrame:
    """The result of unwinding one frame.

    Attributes:
        caller: the context right after the call returned.
        establisher_frame: what Windows calls EstablisherFrame: identifies the frame, argument of its funclets.
        function: None for a leaf without unwind data.
        handler_flags: EXCEPTION_HANDLER and UNWIND_HANDLER as far as handlers may run at this RIP; 0 in prologues
            and epilogues.
        info: the UNWIND_INFO that names the handler (of the primary function when it was chained), or None.
    """

    caller: Registers
    establisher_frame: int
    function: RuntimeFunction | None
    handler_flags: int
    info: UnwindInfo | None


class UnwindTable:
    """The unwind data of one image. Parses lazily and keeps what it parsed; keep one per image, not per machine."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._functions = tuple(
            sorted({RuntimeFunction(*e) for e in image.runtime_functions()}, key=lambda f: f.begin)
        )
        self._begins = [function.begin for function in self._functions]
        self._infos: dict[int, UnwindInfo] = {}

    @property
    def functions(self) -> tuple[RuntimeFunction, ...]:
        """All entries in the order of their begin."""
        return self._functions

    def lookup(self, rva: int) -> RuntimeFunction | None:
        """The entry whose range holds `rva`."""
        index = bisect_right(self._begins, rva) - 1
        if index < 0 or rva >= self._functions[index].end:
            return None
        return self._functions[index]

    def info(self, function: RuntimeFunction) -> UnwindInfo:
        """The unwind information of `function`. Raises UnwindError when it is damaged."""
        known = self._infos.get(function.unwind_rva)
        if known is None:
            known = self._infos[function.unwind_rva] = self._parse(function.unwind_rva)
        return known

    def primary(self, function: RuntimeFunction) -> RuntimeFunction:
        """The entry that chained unwind information leads to; `function` itself when it is not chained."""
        for _ in range(_MAX_CHAIN):
            chained = self.info(function).chained
            if chained is None:
                return function
            function = chained
        raise UnwindError(f"the unwind information of {function.begin:#x} is chained in a circle")

    def _parse(self, rva: int) -> UnwindInfo:
        data = self.image.template
        try:
            if rva & 1:  # the entry shares the unwind data of another one
                return self.info(RuntimeFunction(*struct.unpack_from("<III", data, rva & ~1)))
            first, prologue_size, count, frame = struct.unpack_from("<BBBB", data, rva)
            version, flags = first & 7, first >> 3
            if version not in (1, 2):
                raise UnwindError(f"unwind information at {rva:#x} has version {version}")
            codes = _codes(struct.unpack_from(f"<{count}H", data, rva + 4), version)
            tail = rva + 4 + 2 * (count + (count & 1))
            chained = RuntimeFunction(*struct.unpack_from("<III", data, tail)) if flags & _CHAINED else None
            has_handler = chained is None and flags & (EXCEPTION_HANDLER | UNWIND_HANDLER)
            (handler,) = struct.unpack_from("<I", data, tail) if has_handler else (0,)
        except (struct.error, ValueError, IndexError, RecursionError) as error:
            raise UnwindError(f"unwind information at {rva:#x} is damaged") from error
        return UnwindInfo(
            flags=flags,
            prologue_size=prologue_size,
            frame_register=frame & 15,
            frame_offset=16 * (frame >> 4),
            codes=codes,
            handler_rva=handler,
            handler_data_rva=tail + 4 if handler else 0,
            chained=chained,
        )


def virtual_unwind(table: UnwindTable, base: int, registers: Registers, read: ReadMemory) -> UnwoundFrame:
    """Undo the frame that `registers` is in, as RtlVirtualUnwind does, at any instruction of it.

    Args:
        table: of the image that holds RIP.
        base: where that image is loaded.
        registers: at a fault the exact context; for a caller the one that the previous unwind returned.

    Raises:
        UnwindError: damaged unwind data or an unreadable stack.
    """
    rva = registers.rip - base
    function = table.lookup(rva)
    if function is None:
        state = _State(registers, read)
        state.return_to_caller()
        return UnwoundFrame(state.registers(), registers.rsp, None, 0, None)

    info = table.info(function)
    offset = rva - function.begin
    frame = _frame_base(info, offset, registers)
    state = _State(registers, read)
    if offset >= info.prologue_size and state.run_epilogue(table, function, info, rva):
        return UnwoundFrame(state.registers(), frame, function, 0, None)

    in_prologue = offset < info.prologue_size and info.chained is None
    done = offset if offset < info.prologue_size else None
    state.undo(info, frame, done)
    for _ in range(_MAX_CHAIN):
        if info.chained is None:
            break
        info = table.info(info.chained)
        state.undo(info, frame, None)
    else:
        raise UnwindError(f"the unwind information of {function.begin:#x} is chained in a circle")
    if not state.at_machine_frame:
        state.return_to_caller()
    flags = 0 if in_prologue else info.flags & (EXCEPTION_HANDLER | UNWIND_HANDLER)
    return UnwoundFrame(state.registers(), frame, function, flags, info)


def _codes(nodes: tuple[int, ...], version: int) -> tuple[UnwindCode, ...]:
    codes: list[UnwindCode] = []
    index = 0
    while index < len(nodes):
        node = nodes[index]
        offset, operation, operand = node & 0xFF, Operation(node >> 8 & 15), node >> 12
        index += 1
        register, value = operand, 0
        match operation:
            case Operation.EPILOG:
                if version == 1:
                    raise ValueError("UWOP_EPILOG in version 1")
                continue
            case Operation.ALLOC_SMALL:
                value = 8 * operand + 8
            case Operation.ALLOC_LARGE if operand == 0:
                value, index = 8 * nodes[index], index + 1
            case Operation.ALLOC_LARGE | Operation.SAVE_NONVOL_FAR | Operation.SAVE_XMM128_FAR:
                value, index = nodes[index] | nodes[index + 1] << 16, index + 2
            case Operation.SAVE_NONVOL:
                value, index = 8 * nodes[index], index + 1
            case Operation.SAVE_XMM128:
                value, index = 16 * nodes[index], index + 1
        codes.append(UnwindCode(offset, operation, register, value))
    return tuple(codes)


def _frame_base(info: UnwindInfo, offset: int, registers: Registers) -> int:
    """RSP as the prologue left it: from the frame register once that is set, else RSP itself."""
    if info.frame_register == 0:
        return registers.rsp
    is_set = (
        offset >= info.prologue_size
        or info.chained is not None
        or any(code.operation is Operation.SET_FPREG and code.offset <= offset for code in info.codes)
    )
    return (registers.general[info.frame_register] - info.frame_offset) & _MASK if is_set else registers.rsp


class _State:
    """Registers while a frame is being undone."""

    def __init__(self, registers: Registers, read: ReadMemory) -> None:
        self._rip = registers.rip
        self._general = list(registers.general)
        self._xmm = list(registers.xmm)
        self._read = read
        self.at_machine_frame = False

    def registers(self) -> Registers:
        return Registers(self._rip, tuple([value & _MASK for value in self._general]), tuple(self._xmm))

    def return_to_caller(self) -> None:
        self._rip = self._pop()

    def undo(self, info: UnwindInfo, frame: int, done: int | None) -> None:
        """Undo the operations of a prologue; `done` is how far it has run, None for all of it."""
        for code in info.codes:
            if done is not None and code.offset > done:
                continue
            match code.operation:
                case Operation.PUSH_NONVOL:
                    self._general[code.register] = self._pop()
                case Operation.ALLOC_LARGE | Operation.ALLOC_SMALL:
                    self._general[RSP] += code.value
                case Operation.SET_FPREG:
                    self._general[RSP] = self._general[info.frame_register] - info.frame_offset
                case Operation.SAVE_NONVOL | Operation.SAVE_NONVOL_FAR:
                    self._general[code.register] = self._load(frame + code.value, 8)
                case Operation.SAVE_XMM128 | Operation.SAVE_XMM128_FAR:
                    self._xmm[code.register] = self._load(frame + code.value, 16)
                case Operation.PUSH_MACHFRAME:
                    rsp = self._general[RSP] + 8 * (code.register & 1)
                    self._rip = self._load(rsp, 8)
                    self._general[RSP] = self._load(rsp + 24, 8)
                    self.at_machine_frame = True

    def run_epilogue(self, table: UnwindTable, function: RuntimeFunction, info: UnwindInfo, rva: int) -> bool:
        """When `rva` lies in an epilogue, do what is left of it and return True; else change nothing.

        The rules leave an epilogue only these instructions: `add rsp, n` or `lea rsp, [frame + n]`, then pops, then
        `ret` or a jump out of the function.
        """
        code = table.image.template[rva : rva + _LONGEST_EPILOGUE]
        adjustment, position = _stack_adjustment(code, info)
        pops: list[int] = []
        while pop := _POP.match(code, position):
            pops.append((pop[2][0] - 0x58) | (8 if pop[1] in _REX_B else 0))
            position = pop.end()
        if not _leaves_function(table, code[position : position + 7], rva + position, function):
            return False
        if adjustment is not None:
            base, value = adjustment
            self._general[RSP] = (self._general[base] + value) & _MASK
        for register in pops:
            self._general[register] = self._pop()
        self.return_to_caller()
        return True

    def _pop(self) -> int:
        value = self._load(self._general[RSP], 8)
        self._general[RSP] += 8
        return value

    def _load(self, address: int, size: int) -> int:
        data = self._read(address & _MASK, size)
        if data is None:
            raise UnwindError(f"the stack at {address & _MASK:#x} cannot be read")
        return int.from_bytes(data, "little")


def _stack_adjustment(code: bytes, info: UnwindInfo) -> tuple[tuple[int, int] | None, int]:
    """(register, value to add) of the instruction that sets RSP, and how long it is; (None, 0) without one."""
    if code[:3] == b"\x48\x83\xc4":
        return (RSP, int.from_bytes(code[3:4], "little", signed=True)), 4
    if code[:3] == b"\x48\x81\xc4":
        return (RSP, int.from_bytes(code[3:7], "little", signed=True)), 7
    frame = info.frame_register
    if frame and len(code) >= 7 and code[0] & 0xFE == 0x48 and code[1] == 0x8D:  # lea r64, [frame + n]
        modrm, high = code[2], code[0] & 1
        if modrm >> 3 & 7 == RSP and modrm & 7 | high << 3 == frame and modrm & 7 != RSP:
            if modrm >> 6 == 1:
                return (frame, int.from_bytes(code[3:4], "little", signed=True)), 4
            if modrm >> 6 == 2:
                return (frame, int.from_bytes(code[3:7], "little", signed=True)), 7
    return None, 0


def _leaves_function(table: UnwindTable, code: bytes, rva: int, function: RuntimeFunction) -> bool:
    if _RETURN_OR_INDIRECT_JUMP.match(code):
        return True
    if code[:1] == b"\xeb" and len(code) >= 2:
        target = rva + 2 + int.from_bytes(code[1:2], "little", signed=True)
    elif code[:1] == b"\xe9" and len(code) >= 5:
        target = rva + 5 + int.from_bytes(code[1:5], "little", signed=True)
    else:
        return False
    if function.begin <= target < function.end:
        # A jump to its own first instruction is a tail call of itself, unless this is a fragment of a function.
        return target == function.begin and table.info(function).chained is None
    other = table.lookup(target)
    return other is None or table.primary(other).begin != table.primary(function).begin
