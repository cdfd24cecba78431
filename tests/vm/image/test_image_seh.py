"""Exceptions in real driver code: compiled by zig, executed by Unicorn, dispatched by the plans of `seh`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import unicorn
from unicorn import x86_const as x86

from vm.emulated.image.pdb import Symbols, read_symbols
from vm.emulated.image.pe import parse_image
from vm.emulated.image.seh import (
    Across,
    ContinueExecution,
    FuncletKind,
    Interruption,
    Module,
    Resume,
    StackFrame,
    Unhandled,
    plan_exception,
    plan_unwind,
    read_scope_table,
    walk_stack,
)
from vm.emulated.image.unwind import Registers, UnwindTable

SOURCE = r"""
#define IMPORT __declspec(dllimport)
#define NOINLINE __attribute__((noinline))
IMPORT void Trace(long long);
IMPORT void Raise(unsigned long code);
IMPORT void Repair(void);
IMPORT long long Opaque(long long);
extern int _fltused; int _fltused;

static NOINLINE void Innermost(int how, int *pointer) {
    __try {
        if (how == 1) Raise(0xC0000001);
        if (how == 2) *pointer = 5;
        Trace(10);
    } __finally {
        Trace(_abnormal_termination() ? 11 : 12);
    }
    Trace(13);
}

static int Filter(int how, unsigned long code) {
    Trace(0x20000000LL + (code & 0xFF));
    return how == 3 ? 1 : 0;
}

static NOINLINE void Middle(int how, int *pointer) {
    volatile char local[3000];
    local[how & 15] = 1;
    __try {
        __try {
            Innermost(how & 3, pointer);
        } __except (Filter(how >> 4, _exception_code())) {
            Trace(21);
        }
    } __finally {
        Trace(22);
    }
    Trace(23 + local[(how + 1) & 15] * 0);
}

int Nested(int how, int *pointer) {
    long long a = Opaque(1), b = Opaque(2), c = Opaque(3), d = Opaque(4), e = Opaque(5), f = Opaque(6);
    int result = 0;
    __try {
        Middle(how, pointer);
        result = 1;
    } __except (1) {
        Trace(30);
        result = _exception_code();
    }
    Trace(a + 10 * b + 100 * c + 1000 * d + 10000 * e + 100000 * f);
    return result;
}

int Repaired(int *pointer) {
    int value = 0;
    __try {
        value = *pointer;
    } __except (Repair(), -1) {
        value = -1;
    }
    return value;
}

int FaultInFinally(int *pointer) {
    __try {
        __try {
            __try {
                Raise(0xC0000010);
            } __finally {
                Trace(1);
                *pointer = 1;
                Trace(99);
            }
        } __finally {
            Trace(2);
        }
    } __except (1) {
        Trace(3);
        return _exception_code();
    }
    return 0;
}

int FaultInFilter(int *pointer) {
    __try {
        __try {
            Raise(0xC0000011);
        } __except (*pointer) {
            Trace(99);
        }
    } __except (1) {
        return _exception_code();
    }
    return 0;
}

int HandledInFinally(int *pointer) {
    __try {
        __try {
            Raise(0xC0000012);
        } __finally {
            __try {
                *pointer = 1;
            } __except (_exception_code() == 0xC0000005) {
                Trace(1);
            }
            Trace(2);
        }
    } __except (1) {
        return _exception_code();
    }
    return 0;
}

int Twice(int *pointer) {
    int count = 0;
    for (int i = 0; i < 2; i++) {
        __try {
            *pointer = 1;
        } __except (1) {
            count++;
        }
    }
    return count;
}

static NOINLINE void UsesXmm(int *pointer) {
    __asm__ volatile("pxor %%xmm6, %%xmm6\n pcmpeqd %%xmm9, %%xmm9" ::: "xmm6", "xmm9");
    *pointer = 1;
}
int KeepsXmm(int *pointer, unsigned long long *out) {
    __asm__ volatile("movq %0, %%xmm6\n movq %1, %%xmm9" :: "r"(0x1122334455667788ULL), "r"(0x99AABBCCDDEEFF00ULL) : "xmm6", "xmm9");
    __try { UsesXmm(pointer); } __except (1) { Trace(1); }
    __asm__ volatile("movq %%xmm6, %0\n movq %%xmm9, %1" : "=r"(out[0]), "=r"(out[1]));
    return 0;
}
int NoHandler(int *pointer) { __try { Raise(0xC0000022); } __finally { Trace(1); } return 0; }
int DriverEntry(void *driver, void *path) { return 0; }
void *table[] = { Nested, Repaired, FaultInFinally, FaultInFilter, HandledInFinally, Twice, KeepsXmm, NoHandler };
IMPORT int __C_specific_handler(void);
"""
IMPORTS = {"ntoskrnl.exe": ["Trace", "Raise", "Repair", "Opaque", "__C_specific_handler"]}

BASE, STUBS, STACK, STACK_SIZE, DATA, BAD, RETURN = (
    0x180000000,
    0x10000,
    0x200000,
    0x20000,
    0x300000,
    0x666000,
    0x1F000,
)
ACCESS_VIOLATION = 0xC0000005
_GENERAL = [x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RSP,
            x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI, x86.UC_X86_REG_R8, x86.UC_X86_REG_R9,
            x86.UC_X86_REG_R10, x86.UC_X86_REG_R11, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14,
            x86.UC_X86_REG_R15]  # fmt: skip


class _RaisedError(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class _DroppedError(Exception):
    """Unwinds the Python side of funclets that an exception inside of them left for good."""

    def __init__(self, registers: Registers, crossed: int) -> None:
        self.registers, self.crossed = registers, crossed


class _UnhandledError(Exception):
    def __init__(self, frames: tuple[StackFrame, ...]) -> None:
        self.frames = frames


@dataclass
class Guest:
    """The smallest machine that can run driver code with exceptions."""

    module: Module
    symbols: Symbols
    trace: list[int] = field(default_factory=list)
    requests: list[FuncletKind] = field(default_factory=list)
    on_instruction: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        image = self.module.table.image
        self.uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
        self.stubs: dict[int, str] = {}
        for number, entry in enumerate(image.imports):
            self.stubs[STUBS + 16 * number] = entry.symbol
        addresses = {symbol: address for address, symbol in self.stubs.items()}
        self.uc.mem_map(BASE, image.size)
        self.uc.mem_write(BASE, bytes(image.layout(BASE, lambda dll, symbol: addresses[symbol])))
        self.uc.mem_map(STUBS, 0x10000)
        self.uc.mem_write(STUBS, b"\xf4" * 0x10000)
        self.uc.mem_map(STACK, STACK_SIZE)
        self.uc.mem_map(DATA, 0x1000)
        self.active: list[tuple[int, Interruption]] = []
        if self.on_instruction is not None:
            self.uc.hook_add(
                unicorn.UC_HOOK_CODE, lambda uc, address, size, data: self.on_instruction(address)
            )

    def run(self, name: str, *arguments: int) -> int:
        rva = self.symbols.address(name)
        assert rva is not None
        return self.call(BASE + rva, arguments, STACK + STACK_SIZE - 0x100) & 0xFFFFFFFF

    def call(self, address: int, arguments: tuple[int, ...], rsp: int) -> int:
        self.write(rsp - 8, RETURN)
        registers = [0x5A5A5A5A00 + n for n in range(16)]
        for register, value in zip((1, 2, 8, 9), arguments, strict=False):
            registers[register] = value
        registers[4] = rsp - 8
        self.load(Registers(address, tuple(registers), tuple(range(16))))
        while True:
            try:
                if self.step():
                    return self.uc.reg_read(x86.UC_X86_REG_RAX)
            except _RaisedError as exception:
                self.load(self.dispatch(exception.code))

    def step(self) -> bool:
        """Run to the next event; True when the call has returned."""
        try:
            self.uc.emu_start(self.uc.reg_read(x86.UC_X86_REG_RIP), 0)
        except unicorn.UcError:
            raise _RaisedError(ACCESS_VIOLATION) from None
        stop = self.uc.reg_read(x86.UC_X86_REG_RIP) - 1
        if stop == RETURN:
            return True
        rsp, argument = self.uc.reg_read(x86.UC_X86_REG_RSP), self.uc.reg_read(x86.UC_X86_REG_RCX)
        self.uc.reg_write(x86.UC_X86_REG_RIP, self.quad(rsp))
        self.uc.reg_write(x86.UC_X86_REG_RSP, rsp + 8)
        for volatile in (0, 2, 8, 9, 10, 11):  # what an export may destroy, it destroys
            self.uc.reg_write(_GENERAL[volatile], 0xBAD0BAD0 + volatile)
        match self.stubs[stop]:
            case "Trace":
                self.trace.append(argument & 0xFFFFFFFF)
            case "Raise":
                raise _RaisedError(argument)
            case "Repair":
                self.uc.mem_map(BAD, 0x1000)
                self.write(BAD, 77)
            case "Opaque":
                self.uc.reg_write(x86.UC_X86_REG_RAX, argument)
            case name:
                raise AssertionError(f"{name} was called")
        return False

    def dispatch(self, code: int) -> Registers:
        registers = self.registers()
        record = DATA + 0x800
        self.write(DATA + 0x700, record)
        self.uc.mem_write(record, struct.pack("<II", code, 0))
        plan = plan_exception(
            code,
            registers,
            self.find,
            self.read,
            across=self.across,
            first_is_caller=code != ACCESS_VIOLATION,
        )
        try:
            request = next(plan)
            while True:
                self.requests.append(request.kind)
                rsp = (registers.rsp - 0x400) & ~15
                self.active.append((rsp, request.interruption))
                result = self.call(request.address, request.arguments(DATA + 0x700), rsp)
                self.active.pop()
                request = plan.send(result)
        except _DroppedError as dropped:
            self.active.pop()
            if dropped.crossed > 1:
                raise _DroppedError(dropped.registers, dropped.crossed - 1) from None
            return dropped.registers
        except StopIteration as end:
            outcome = end.value
        if isinstance(outcome, Resume):
            if outcome.crossed:
                raise _DroppedError(outcome.registers, outcome.crossed)
            return outcome.registers
        if isinstance(outcome, ContinueExecution):
            return registers
        raise _UnhandledError(outcome.frames)

    @property
    def across(self) -> Across:
        return lambda registers: next((i for rsp, i in self.active if rsp == registers.rsp), None)

    def find(self, address: int) -> Module | None:
        return self.module if 0 <= address - BASE < self.module.table.image.size else None

    def read(self, address: int, size: int) -> bytes | None:
        try:
            return bytes(self.uc.mem_read(address, size))
        except unicorn.UcError:
            return None

    def registers(self) -> Registers:
        return Registers(
            self.uc.reg_read(x86.UC_X86_REG_RIP),
            tuple(self.uc.reg_read(number) for number in _GENERAL),
            tuple(self.uc.reg_read(x86.UC_X86_REG_XMM0 + n) for n in range(16)),
        )

    def load(self, registers: Registers) -> None:
        self.uc.reg_write(x86.UC_X86_REG_RIP, registers.rip)
        for number, value in zip(_GENERAL, registers.general, strict=True):
            self.uc.reg_write(number, value)
        for number, value in enumerate(registers.xmm):
            self.uc.reg_write(x86.UC_X86_REG_XMM0 + number, value)

    def quad(self, address: int) -> int:
        return int.from_bytes(self.uc.mem_read(address, 8), "little")

    def write(self, address: int, value: int) -> None:
        self.uc.mem_write(address, struct.pack("<Q", value))


@pytest.fixture(scope="module", params=["-O0", "-O1", "-O2"])
def loaded(compile_driver, request) -> tuple[Module, Symbols]:
    built = compile_driver(SOURCE, IMPORTS, compile_flags=(request.param,))
    image = parse_image(built.sys, "test.sys")
    return Module(BASE, UnwindTable(image)), read_symbols(built.pdb_path, image=image)


@pytest.fixture
def guest(loaded: tuple[Module, Symbols]) -> Guest:
    return Guest(*loaded)


SAVED = 654321


def test_without_an_exception_nothing_is_dispatched(guest: Guest):
    assert guest.run("Nested", 0, DATA) == 1
    assert guest.trace == [10, 12, 13, 22, 23, SAVED]
    assert guest.requests == []


def test_a_raised_status_passes_a_refusing_filter_and_runs_every_finally_on_the_way_to_the_outer_frame(
    guest: Guest,
):
    assert guest.run("Nested", 1, DATA) == 0xC0000001
    assert guest.trace == [0x20000001, 11, 22, 30, SAVED]
    assert guest.requests == [FuncletKind.FILTER, FuncletKind.FINALLY, FuncletKind.FINALLY]


def test_a_filter_in_the_middle_takes_the_exception_and_the_frames_above_go_on(guest: Guest):
    assert guest.run("Nested", 0x31, DATA) == 1
    assert guest.trace == [0x20000001, 11, 21, 22, 23, SAVED]


def test_a_fault_of_an_inline_store_is_dispatched_like_a_raised_status(guest: Guest):
    assert guest.run("Nested", 2, BAD) == ACCESS_VIOLATION
    assert guest.trace == [0x20000005, 11, 22, 30, SAVED]


def test_a_filter_may_repair_the_cause_and_continue(guest: Guest):
    assert guest.run("Repaired", BAD) == 77


def test_a_fault_in_a_finally_goes_on_from_the_next_outer_scope(guest: Guest):
    assert guest.run("FaultInFinally", BAD) == ACCESS_VIOLATION
    assert guest.trace == [1, 2, 3]
    assert guest.active == []


def test_a_fault_in_a_filter_goes_to_the_next_outer_handler(guest: Guest):
    assert guest.run("FaultInFilter", BAD) == ACCESS_VIOLATION
    assert guest.trace == []


def test_an_exception_handled_inside_of_a_finally_does_not_end_the_outer_unwind(guest: Guest):
    assert guest.run("HandledInFinally", BAD) == 0xC0000012
    assert guest.trace == [1, 2]


def test_a_handler_works_again_the_second_time(guest: Guest):
    assert guest.run("Twice", BAD) == 2


def test_xmm_registers_that_a_frame_saved_are_restored(guest: Guest):
    assert guest.run("KeepsXmm", BAD, DATA) == 0
    assert (guest.quad(DATA), guest.quad(DATA + 8)) == (0x1122334455667788, 0x99AABBCCDDEEFF00)


def test_an_exception_without_a_handler_is_unhandled_with_its_stack_and_no_finally_is_run(guest: Guest):
    with pytest.raises(_UnhandledError) as refusal:
        guest.run("NoHandler", BAD)
    assert guest.trace == []
    frames = refusal.value.frames
    locations = [
        guest.symbols.lookup(frame.rva - frame.is_caller) for frame in frames if frame.rva is not None
    ]
    assert [location.function for location in locations if location] == ["NoHandler"]
    assert frames[-1].module is None and frames[-1].registers.rip == RETURN


def test_the_stack_is_walked_from_the_innermost_call_to_the_kernels_return_address(
    loaded: tuple[Module, Symbols],
):
    stacks: list[list[str]] = []

    class Watching(Guest):
        def step(self) -> bool:
            done = super().step()
            if not done and self.trace[-1:] == [10] and not stacks:
                frames = list(walk_stack(self.registers(), self.find, self.read, first_is_caller=True))
                assert frames[-1].registers.rip == RETURN
                places = [
                    self.symbols.lookup(frame.rva - frame.is_caller) for frame in frames[:-1] if frame.rva
                ]
                stacks.append([place.function for place in places if place])
            return done

    guest = Watching(*loaded)
    guest.run("Nested", 0, DATA)
    assert stacks == [["Innermost", "Middle", "Nested"]]


def test_the_stack_of_a_finally_goes_on_in_the_frame_it_belongs_to(loaded: tuple[Module, Symbols]):
    stacks: list[list[tuple[str, bool, int]]] = []

    class Watching(Guest):
        def step(self) -> bool:
            done = super().step()
            if not done and self.trace[-1:] == [22] and not stacks:
                frames = walk_stack(
                    self.registers(), self.find, self.read, across=self.across, first_is_caller=True
                )
                named = [(self.symbols.lookup(f.rva - f.is_caller), f) for f in frames if f.rva is not None]
                stacks.append([(place.function, f.is_caller, f.crossed) for place, f in named if place])
            return done

    Watching(*loaded).run("Nested", 1, DATA)
    (stack,) = stacks
    assert stack[-2:] == [("Middle", True, 1), ("Nested", True, 1)]
    assert len(stack) > 2 and all("Middle" in name and crossed == 0 for name, _, crossed in stack[:-2])


def test_a_local_unwind_runs_the_finally_blocks_between_two_frames_only(loaded: tuple[Module, Symbols]):
    guest = Guest(*loaded)
    guest.run("Nested", 0, DATA)
    guest.trace.clear()
    outcomes: list[Resume | Unhandled] = []

    class Leaving(Guest):
        def dispatch(self, code: int) -> Registers:
            registers = self.registers()
            frames = list(walk_stack(registers, self.find, self.read))
            middle = next(f for f in frames[1:] if self.symbols.lookup(f.rva - 1).function == "Middle")
            plan = plan_unwind(registers, middle.unwound.establisher_frame, 0x1234, 7, self.find, self.read)
            try:
                request = next(plan)
                while True:
                    self.requests.append(request.kind)
                    request = plan.send(0)
            except StopIteration as end:
                outcomes.append(end.value)
            raise _UnhandledError(tuple(frames))

    leaving = Leaving(*loaded)
    with pytest.raises(_UnhandledError):
        leaving.run("Nested", 1, DATA)
    (outcome,) = outcomes
    assert isinstance(outcome, Resume)
    assert outcome.registers.rip == 0x1234 and outcome.registers.general[0] == 7
    assert leaving.requests == [FuncletKind.FINALLY, FuncletKind.FINALLY]


def test_a_frame_that_is_not_on_the_stack_is_no_target(guest: Guest):
    registers = Registers(RETURN, (0,) * 16)
    plan = plan_unwind(registers, 0xDEAD, 0, 0, guest.find, guest.read)
    with pytest.raises(StopIteration) as end:
        next(plan)
    assert isinstance(end.value.value, Unhandled)


def test_handler_data_that_is_no_scope_table_has_no_scopes(guest: Guest):
    table = guest.module.table
    for rva in (0, 0x40, table.image.size - 4, table.image.size + 100):
        assert read_scope_table(table, rva) == ()
