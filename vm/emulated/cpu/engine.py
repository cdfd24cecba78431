"""The processor: the Unicorn engine behind a narrow interface (run, trap, fault, save, restore).

The only file that imports Unicorn (GPLv2), so that another engine can take its place. It knows addresses and
registers, not threads or exports. Every quirk handled here was measured and is pinned by tests/vm/test_engine.py.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import unicorn
from unicorn import unicorn_const as uc
from unicorn import x86_const as x86
from unicorn.unicorn_py3.unicorn import uclib

from vm.emulated.cpu.memory import PAGE_SHIFT, USER_PAGES_END, Access, Memory

MAILBOX = 0xFFFF_F700_0000_1000
"""Page through which a trap hands over its arguments and takes its result."""
TRAPS = 0xFFFF_F800_0000_2000
"""Start of the trap stubs, 64 bytes each."""
TRAP_STRIDE = 64
MAXIMUM_TRAPS = 8192
NO_LIMIT = 1 << 40
"""Instruction count that never runs out. A count must always be given: blocks translated without one ignore it later."""

INTERRUPT_CR8 = 0x2F
"""Interrupt that replaces `mov r64, cr8` and `mov cr8, r64`, whose virtual CR8 the engine does not keep."""
INTERRUPT_TIME = 0x2E
"""Interrupt that replaces `rdtsc`, whose host value would make runs differ."""

REGISTERS: Mapping[str, int] = {
    name: getattr(x86, f"UC_X86_REG_{name.upper()}")
    for name in (
        [
            "rax",
            "rcx",
            "rdx",
            "rbx",
            "rsp",
            "rbp",
            "rsi",
            "rdi",
            "r8",
            "r9",
            "r10",
            "r11",
            "r12",
            "r13",
            "r14",
            "r15",
            "rip",
            "eflags",
            "gs_base",
        ]
    )
}
GENERAL = (
    "rax",
    "rcx",
    "rdx",
    "rbx",
    "rsp",
    "rbp",
    "rsi",
    "rdi",
    "r8",
    "r9",
    "r10",
    "r11",
    "r12",
    "r13",
    "r14",
    "r15",
)
"""General registers in the order of their machine numbers."""

_UNMAPPED_FRAME = 1 << 48
_FILL_ACCESS = {16: 1, 17: 2, 18: 4, 19: 1, 20: 2, 21: 4}
_WRITE_TYPES = frozenset((uc.UC_MEM_WRITE_UNMAPPED, uc.UC_MEM_WRITE_PROT))
_FETCH_TYPES = frozenset((uc.UC_MEM_FETCH_UNMAPPED, uc.UC_MEM_FETCH_PROT))


class StopKind(Enum):
    """Why the processor stopped, when it was not a trap."""

    QUANTUM = "quantum"
    FAULT = "fault"
    INTERRUPT = "interrupt"
    INVALID_INSTRUCTION = "invalid instruction"
    HALT = "halt"


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop that is not a trap: where, and for a fault the address and what was tried."""

    kind: StopKind
    pc: int
    address: int = 0
    access: Access = Access.NONE
    interrupt: int = 0
    error: int = 0


_library = ctypes.CDLL(uclib._name)


def _open() -> Any:
    """An engine of the untyped binding."""
    binding: Any = unicorn
    return binding.Uc(binding.UC_ARCH_X86, binding.UC_MODE_64)


def _prototype(name: str, *types: Any) -> Callable[..., int]:
    function = getattr(_library, name)
    function.argtypes = list(types)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]  # ctypes functions are untyped


_HANDLE = ctypes.c_void_p
_uc_emu_start = _prototype(
    "uc_emu_start", _HANDLE, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t
)
_uc_ctl = _prototype("uc_ctl", _HANDLE, ctypes.c_uint32)
_uc_reg_write_batch = _prototype("uc_reg_write_batch", _HANDLE, _HANDLE, _HANDLE, ctypes.c_int)
_uc_reg_read_batch = _prototype("uc_reg_read_batch", _HANDLE, _HANDLE, _HANDLE, ctypes.c_int)
_uc_context_alloc = _prototype("uc_context_alloc", _HANDLE, ctypes.POINTER(ctypes.c_void_p))
_uc_context_free = _prototype("uc_context_free", _HANDLE)
_uc_context_save = _prototype("uc_context_save", _HANDLE, _HANDLE)
_uc_context_restore = _prototype("uc_context_restore", _HANDLE, _HANDLE)
_uc_hook_add = _prototype(
    "uc_hook_add",
    _HANDLE,
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_int,
    _HANDLE,
    _HANDLE,
    ctypes.c_uint64,
    ctypes.c_uint64,
)
_CTL_FLUSH_TLB = uc.UC_CTL_TLB_FLUSH | (uc.UC_CTL_IO_WRITE << 30)


class _TlbEntry(ctypes.Structure):
    _fields_ = (("paddr", ctypes.c_uint64), ("perms", ctypes.c_int))


_FILL = ctypes.CFUNCTYPE(
    ctypes.c_bool, _HANDLE, ctypes.c_uint64, ctypes.c_int, ctypes.POINTER(_TlbEntry), _HANDLE
)
_INVALID = ctypes.CFUNCTYPE(
    ctypes.c_bool, _HANDLE, ctypes.c_int, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, _HANDLE
)
_INTERRUPT = ctypes.CFUNCTYPE(None, _HANDLE, ctypes.c_uint32, _HANDLE)
_BLOCK = ctypes.CFUNCTYPE(None, _HANDLE, ctypes.c_uint64, ctypes.c_uint32, _HANDLE)


class _Batch:
    """A fixed set of registers read or written in one library call."""

    __slots__ = ("_engine", "_ids", "_pointers", "count", "values")

    def __init__(self, handle: int, names: tuple[str, ...]) -> None:
        self._engine = handle
        self.count = len(names)
        self._ids = (ctypes.c_int * self.count)(*(REGISTERS[name] for name in names))
        self.values = (ctypes.c_uint64 * self.count)()
        base = ctypes.addressof(self.values)
        self._pointers = (ctypes.c_void_p * self.count)(*(base + 8 * i for i in range(self.count)))

    def write(self, *values: int) -> None:
        self.values[:] = list(values)
        _uc_reg_write_batch(self._engine, self._ids, self._pointers, self.count)

    def read(self) -> list[int]:
        _uc_reg_read_batch(self._engine, self._ids, self._pointers, self.count)
        return self.values[:]


class Context:
    """Saved registers of one emulated thread; freed with the object."""

    __slots__ = ("handle",)

    def __init__(self, engine: Engine) -> None:
        pointer = ctypes.c_void_p()
        if _uc_context_alloc(engine.handle, ctypes.byref(pointer)):
            raise MemoryError("the engine cannot allocate a context")
        self.handle = pointer.value

    def __del__(self) -> None:
        handle = getattr(self, "handle", None)
        if handle:
            _uc_context_free(handle)
            self.handle = None


class Engine:
    """One x64 processor in long mode at privilege level 0 over a `Memory`.

    `run` executes from an address until a trap, a fault, an interrupt, or the end of the instruction count. `irql` is
    what the virtual CR8 reads and writes; its owner is the scheduler, which exchanges it at a thread switch.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._uc: Any = _open()
        # Without it kernel addresses are cut to 52 bits and never found (unicorn issue 2010).
        self._uc.ctl_set_tlb_mode(uc.UC_TLB_VIRTUAL)
        self.handle: int = self._uc._uch.value
        self._ram_view = ctypes.c_char.from_buffer(memory.ram)
        self._uc.mem_map_ptr(0, memory.size, uc.UC_PROT_ALL, ctypes.addressof(self._ram_view))
        self.irql = 0
        self.timestamp: Callable[[], int] = lambda: 0
        self.on_irql: Callable[[int], None] | None = None
        self._cr8_sites: dict[int, tuple[bool, str]] = {}
        self._time_sites: dict[int, int] = {}
        self._trap_count = 0
        self._hook_error: BaseException | None = None
        self._invalid: tuple[int, int] | None = None
        self._interrupt: int | None = None
        self._hooks: list[object] = []
        self._add_hooks()
        memory.map(MAILBOX, 0x1000, Access.READ_WRITE)
        self._mailbox = memory.physical(MAILBOX)
        self._entry = _Batch(self.handle, ("rsp", "rcx", "rdx", "r8", "r9"))
        self._all = _Batch(self.handle, (*GENERAL, "rip", "eflags"))
        self._one: dict[str, _Batch] = {}
        self.context_saves = 0
        self.fills = 0

    # Traps

    def add_trap(self) -> tuple[int, int]:
        """Make a stub that leaves the engine. Returns (its address, its index from 1); `run` returns that index."""
        index = self._trap_count + 1
        if index > MAXIMUM_TRAPS:
            raise MemoryError("no more trap stubs")
        address = TRAPS + (index - 1) * TRAP_STRIDE
        if address & 0xFFF == 0:
            self.memory.map(address, 0x1000, Access.READ_EXECUTE)
        code = _STUB_HEAD + struct.pack("<I", index) + b"\xf4" + _STUB_TAIL
        self.memory.poke(address, code)
        self._trap_count = index
        return address, index

    def resume_address(self, index: int) -> int:
        """Where to run on after trap `index`: loads the result and returns to the caller of the stub."""
        return TRAPS + (index - 1) * TRAP_STRIDE + _RESUME_OFFSET

    @staticmethod
    def in_stub(pc: int) -> bool:
        """True inside a stub, where the mailbox is in use and no other thread may run."""
        return TRAPS <= pc < TRAPS + MAXIMUM_TRAPS * TRAP_STRIDE

    def set_result(self, value: int) -> None:
        """RAX for the caller of the stub, taken at the resume address; the trap is done with."""
        _DONE.pack_into(self.memory.ram, self._mailbox + 0x28, 0, value & 0xFFFF_FFFF_FFFF_FFFF)

    def acknowledge(self) -> None:
        """The trap is taken note of, its result comes later; needed before anything else runs."""
        _DONE.pack_into(self.memory.ram, self._mailbox + 0x28, 0, 0)

    # Running

    def run(self, pc: int, count: int = NO_LIMIT) -> tuple[int, ...] | Stop:
        """Execute from `pc` until a trap, which must then be answered by `set_result` or `acknowledge`, or a stop.

        Args:
            count: most instructions to execute; exact when it runs out.

        Returns:
            For a trap RCX, RDX, R8, R9, RSP (pointing to the return address) and the index of the trap.

        Raises:
            BaseException: whatever a hook of this class raised, unchanged.
        """
        memory = self.memory
        if memory.stale:
            memory.stale = False
            _uc_ctl(self.handle, _CTL_FLUSH_TLB)
        error = _uc_emu_start(self.handle, pc, 0, 0, count)
        mail = _MAIL.unpack_from(memory.ram, self._mailbox)
        if mail[5]:
            return mail
        return self._stopped(error)

    def _stopped(self, error: int) -> Stop:
        if self._hook_error is not None:
            stored, self._hook_error = self._hook_error, None
            raise stored
        pc = self.get("rip")
        if self._interrupt is not None:
            number, self._interrupt = self._interrupt, None
            return Stop(StopKind.INTERRUPT, pc, interrupt=number)
        if error:
            if self._invalid is not None:
                (kind, address), self._invalid = self._invalid, None
                address = _virtual(address)
                access = (
                    Access.WRITE
                    if kind in _WRITE_TYPES
                    else Access.EXECUTE
                    if kind in _FETCH_TYPES
                    else Access.READ
                )
                return Stop(StopKind.FAULT, pc, address, access, error=error)
            return Stop(StopKind.INVALID_INSTRUCTION, pc, error=error)
        # A `hlt` of the driver itself looks like an expired count, but its mailbox is empty and RIP is behind it.
        if self.memory.is_mapped(pc - 1, Access.EXECUTE) and self._halted(pc):
            return Stop(StopKind.HALT, pc - 1)
        return Stop(StopKind.QUANTUM, pc)

    def _halted(self, pc: int) -> bool:
        return pc - 1 in self.halts

    halts: frozenset[int] | set[int] = frozenset()
    """Addresses of `hlt` instructions in driver code, found when the image was loaded."""

    # Registers

    def start_call(self, rsp: int, rcx: int, rdx: int, r8: int, r9: int) -> None:
        """Set the registers that a function's entry needs."""
        self._entry.write(rsp, rcx, rdx, r8, r9)

    def get(self, name: str) -> int:
        """One register by its lower-case name."""
        return self._batch(name).read()[0]

    def set(self, name: str, value: int) -> None:
        """Set one register by its lower-case name."""
        self._batch(name).write(value & 0xFFFF_FFFF_FFFF_FFFF)

    def registers(self) -> dict[str, int]:
        """All general registers, rip and eflags."""
        return dict(zip((*GENERAL, "rip", "eflags"), self._all.read(), strict=True))

    def set_registers(self, values: Mapping[str, int]) -> None:
        """Set several registers by name."""
        for name, value in values.items():
            self.set(name, value)

    def xmm(self) -> tuple[int, ...]:
        """XMM0 to XMM15 as 128-bit integers."""
        buffer = (ctypes.c_uint8 * 256)()
        _uc_reg_read_batch(self.handle, _XMM_IDS, _pointers(buffer, 16), 16)
        raw = bytes(buffer)
        return tuple(int.from_bytes(raw[i : i + 16], "little") for i in range(0, 256, 16))

    def set_xmm(self, values: Sequence[int]) -> None:
        """Set XMM0 to XMM15."""
        raw = b"".join(value.to_bytes(16, "little") for value in values)
        buffer = (ctypes.c_uint8 * 256).from_buffer_copy(raw)
        _uc_reg_write_batch(self.handle, _XMM_IDS, _pointers(buffer, 16), 16)

    def _batch(self, name: str) -> _Batch:
        batch = self._one.get(name)
        if batch is None:
            batch = self._one[name] = _Batch(self.handle, (name,))
        return batch

    def save(self, context: Context) -> None:
        """Store all registers into `context`."""
        self.context_saves += 1
        _uc_context_save(self.handle, context.handle)

    def restore(self, context: Context) -> None:
        """Load all registers from `context`; the address to run from is given to `run`."""
        _uc_context_restore(self.handle, context.handle)

    # Patched instructions

    def patch_cr8(self, address: int, *, write: bool, register: str) -> None:
        """Replace the 4-byte `mov` between CR8 and `register` at `address` by an interrupt of the same size."""
        self.memory.poke(address, bytes((0xCD, INTERRUPT_CR8, 0x90, 0x90)))
        self._cr8_sites[address + 2] = (write, register)

    def patch_time(self, address: int) -> None:
        """Replace the `rdtsc` at `address` by an interrupt of the same size."""
        self.memory.poke(address, bytes((0xCD, INTERRUPT_TIME)))
        self._time_sites[address + 2] = 0

    # Observation

    def on_block(self, begin: int, end: int, callback: Callable[[int, int], None]) -> None:
        """Call `callback(address, size in bytes)` for each basic block executed in [begin, end).

        Install it before the first instruction runs: blocks translated earlier are not seen.
        """

        def block(_handle: int, address: int, size: int, _data: int) -> None:
            try:
                callback(address, size)
            except BaseException as error:  # noqa: BLE001  # ctypes would print and lose it; run() raises it
                self._fail(error)

        self._add_hook(uc.UC_HOOK_BLOCK, _BLOCK(block), begin, end)

    def close(self) -> None:
        """Release the engine; the object is unusable afterwards."""
        if self.handle:
            self.handle = 0
            del self._uc  # the binding closes the engine with its last reference
            self._hooks.clear()
            del self._ram_view

    # Hooks

    def _add_hook(self, kind: int, callback: Any, begin: int = 1, end: int = 0) -> None:
        hook = ctypes.c_size_t()
        if _uc_hook_add(
            self.handle, ctypes.byref(hook), kind, ctypes.cast(callback, ctypes.c_void_p), None, begin, end
        ):
            raise RuntimeError(f"the engine refuses a hook of type {kind}")
        self._hooks.append(callback)

    def _add_hooks(self) -> None:
        memory = self.memory

        def fill(_handle: int, address: int, kind: int, entry: Any, _data: int) -> bool:
            self.fills += 1
            page = address >> PAGE_SHIFT
            found = (memory.pages if page >= USER_PAGES_END else memory.user_pages).get(page)
            if found is None or not found[1] & _FILL_ACCESS[kind]:
                # An unmapped physical page makes the engine report the exact address; the entry must not stay.
                entry[0].paddr = _UNMAPPED_FRAME | (address & 0xFFFF_FFFF_F000)
                entry[0].perms = 7
                memory.stale = True
                return True
            entry[0].paddr = found[0]
            entry[0].perms = found[1]
            return True

        def invalid(_handle: int, kind: int, address: int, _size: int, _value: int, _data: int) -> bool:
            self._invalid = (kind, address)
            return False

        def interrupt(_handle: int, number: int, _data: int) -> None:
            try:
                self._on_interrupt(number)
            except BaseException as error:  # noqa: BLE001  # ctypes would print and lose it; run() raises it
                self._fail(error)

        self._add_hook(uc.UC_HOOK_TLB_FILL, _FILL(fill))
        self._add_hook(uc.UC_HOOK_MEM_INVALID, _INVALID(invalid))
        self._add_hook(uc.UC_HOOK_INTR, _INTERRUPT(interrupt))

    def _on_interrupt(self, number: int) -> None:
        pc = self.get("rip")
        if number == INTERRUPT_CR8:
            site = self._cr8_sites.get(pc)
            if site is not None:
                write, register = site
                if not write:
                    self.set(register, self.irql)
                else:
                    value = self.get(register) & 0xF
                    self.irql = value
                    if self.on_irql is not None:
                        self.on_irql(value)
                return
        elif number == INTERRUPT_TIME and pc in self._time_sites:
            now = self.timestamp()
            self.set("rax", now & 0xFFFF_FFFF)
            self.set("rdx", now >> 32 & 0xFFFF_FFFF)
            return
        self._interrupt = number
        _library.uc_emu_stop(ctypes.c_void_p(self.handle))

    def _fail(self, error: BaseException) -> None:
        if self._hook_error is None:
            self._hook_error = error
        _library.uc_emu_stop(ctypes.c_void_p(self.handle))


def bare_round_trip(engine: Engine, halt: int) -> Callable[[], int]:
    """A function that enters the engine at a `hlt` and comes back, with nothing of ours around it: a yardstick."""
    handle = engine.handle
    start = _uc_emu_start
    return lambda: start(handle, halt, 0, 0, NO_LIMIT)


def _pointers(buffer: ctypes.Array[ctypes.c_uint8], step: int) -> ctypes.Array[ctypes.c_void_p]:
    base = ctypes.addressof(buffer)
    return (ctypes.c_void_p * (len(buffer) // step))(*range(base, base + len(buffer), step))


_XMM_IDS = (ctypes.c_int * 16)(*(getattr(x86, f"UC_X86_REG_XMM{i}") for i in range(16)))


def _virtual(address: int) -> int:
    """The virtual address behind what the engine reports: the fill hook sent the access to a frame above 2**48."""
    address &= 0xFFFF_FFFF_FFFF
    return address | 0xFFFF_0000_0000_0000 if address & 0x8000_0000_0000 else address


_MAIL = struct.Struct("<6Q")
_DONE = struct.Struct("<QQ")
# mov r11, MAILBOX; mov [r11], rcx; mov [r11+8], rdx; mov [r11+10h], r8; mov [r11+18h], r9; mov [r11+20h], rsp;
# mov dword [r11+28h], index; hlt
_STUB_HEAD = (
    b"\x49\xbb"
    + struct.pack("<Q", MAILBOX)
    + b"\x49\x89\x0b\x49\x89\x53\x08\x4d\x89\x43\x10\x4d\x89\x4b\x18\x49\x89\x63\x20\x41\xc7\x43\x28"
)
# mov r11, MAILBOX; mov rax, [r11+30h]; ret
_STUB_TAIL = b"\x49\xbb" + struct.pack("<Q", MAILBOX) + b"\x49\x8b\x43\x30\xc3"
_RESUME_OFFSET = len(_STUB_HEAD) + 5
