"""Unwind data parsed from known bytes, and the virtual unwind checked at every single instruction that runs."""

from __future__ import annotations

import random
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass

import pytest
import unicorn
from unicorn import x86_const as x86

from vm.emulated.image.pe import Image, Section, parse_image
from vm.emulated.image.seh import Module, scope_table, walk_stack
from vm.emulated.image.unwind import (
    EXCEPTION_HANDLER,
    UNWIND_HANDLER,
    Operation,
    Registers,
    RuntimeFunction,
    UnwindError,
    UnwindTable,
    virtual_unwind,
)

SOURCE = r"""
#define NOINLINE __attribute__((noinline))
extern int _fltused; int _fltused;
volatile int sink;
NOINLINE int Leaf(int x) { return x * 3; }
NOINLINE int Pushes(int a, int b, int c, int d) {
    int p = Leaf(a), q = Leaf(b), r = Leaf(c), s = Leaf(d), t = Leaf(a + b), u = Leaf(c + d), v = Leaf(a + c);
    sink = p; sink = q;
    return Leaf(p + q) + Leaf(r ^ s) + t * u + v;
}
NOINLINE int Large(int x) { volatile char room[9000]; room[x & 1023] = 1; return Pushes(x, room[5], 3, 4) + room[7]; }
NOINLINE int Dynamic(int x) { char *room = __builtin_alloca(x * 16); room[1] = 2; *(volatile char *)room = 1; return Large(x) + room[1]; }
NOINLINE int Xmm(int x) {
    __asm__ volatile("pxor %%xmm6, %%xmm6\n pxor %%xmm15, %%xmm15" ::: "xmm6", "xmm15", "rbx", "r12", "r13", "r14", "r15", "rsi", "rdi");
    return Dynamic(x) + 1;
}
NOINLINE int Tail(int x) { sink = Leaf(x); return Xmm(x + 1); }
NOINLINE int Recursive(int x) { if (x == 0) return Tail(2); int y = Recursive(x - 1); return y + Leaf(x); }
int DriverEntry(void *driver, void *path) { return Recursive(3) + Xmm(4); }
"""
BASE, STACK, STACK_SIZE, RETURN = 0x180000000, 0x200000, 0x40000, 0x1F000
_GENERAL = [x86.UC_X86_REG_RAX, x86.UC_X86_REG_RCX, x86.UC_X86_REG_RDX, x86.UC_X86_REG_RBX, x86.UC_X86_REG_RSP,
            x86.UC_X86_REG_RBP, x86.UC_X86_REG_RSI, x86.UC_X86_REG_RDI, x86.UC_X86_REG_R8, x86.UC_X86_REG_R9,
            x86.UC_X86_REG_R10, x86.UC_X86_REG_R11, x86.UC_X86_REG_R12, x86.UC_X86_REG_R13, x86.UC_X86_REG_R14,
            x86.UC_X86_REG_R15]  # fmt: skip
_NONVOLATILE = (3, 5, 6, 7, 12, 13, 14, 15)
READOBJ = shutil.which("llvm-readobj")


@dataclass
class Activation:
    """What is true about a running function: where it returns to and what its caller's registers are."""

    rip: int
    rsp: int
    nonvolatile: tuple[int, ...]
    xmm: tuple[int, ...]


@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-Os"])
@pytest.mark.parametrize("frame_pointer", ["-fomit-frame-pointer", "-fno-omit-frame-pointer"])
def test_every_instruction_that_runs_unwinds_to_the_true_caller(
    compile_driver, level: str, frame_pointer: str
):
    image = parse_image(compile_driver(SOURCE, compile_flags=(level, frame_pointer)).sys, "test.sys")
    table = UnwindTable(image)
    uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    uc.mem_map(BASE, image.size)
    uc.mem_write(BASE, bytes(image.layout(BASE, lambda dll, symbol: 0)))
    uc.mem_map(STACK, STACK_SIZE)
    uc.mem_map(RETURN, 0x1000)
    uc.mem_write(RETURN, b"\xf4")
    calls: list[Activation] = []
    seen: set[int] = set()
    depths: set[int] = set()
    failures: list[str] = []

    def read(address: int, size: int) -> bytes | None:
        return bytes(uc.mem_read(address, size))

    def on_instruction(_uc: object, address: int, size: int, _data: object) -> None:
        if address == RETURN:
            return
        registers = Registers(
            address,
            tuple(uc.reg_read(number) for number in _GENERAL),
            tuple(uc.reg_read(x86.UC_X86_REG_XMM0 + n) for n in range(16)),
        )
        while calls and registers.rsp >= calls[-1].rsp:  # it returned
            calls.pop()
        returns_to = int.from_bytes(uc.mem_read(registers.rsp, 8), "little")
        if not calls or calls[-1].rsp != registers.rsp + 8:
            function = table.lookup(address - BASE)
            if (function is None or function.begin == address - BASE) and address not in returned_to:
                calls.append(
                    Activation(
                        returns_to,
                        registers.rsp + 8,
                        tuple(registers.general[n] for n in _NONVOLATILE),
                        registers.xmm[6:],
                    )
                )
        returned_to.add(returns_to)
        truth = calls[-1]
        depths.add(len(calls))
        unwound = virtual_unwind(table, BASE, registers, read)
        seen.add(address)
        caller = unwound.caller
        found = Activation(
            caller.rip, caller.rsp, tuple(caller.general[n] for n in _NONVOLATILE), caller.xmm[6:]
        )
        if found != truth:
            failures.append(f"{address - BASE:#x}: {found} is not {truth}")

    returned_to: set[int] = set()
    uc.hook_add(unicorn.UC_HOOK_CODE, on_instruction)
    rsp = STACK + STACK_SIZE - 0x108
    uc.mem_write(rsp, struct.pack("<Q", RETURN))
    for number, register in enumerate(_GENERAL):
        uc.reg_write(register, 0x1111111111 * (number + 1))
    for number in range(16):
        uc.reg_write(x86.UC_X86_REG_XMM0 + number, 0x77 << number)
    uc.reg_write(x86.UC_X86_REG_RSP, rsp)
    uc.emu_start(BASE + image.entry_rva, 0)

    assert failures == []
    assert len(seen) > 120 and max(depths) >= 7
    operations = {code.operation for function in table.functions for code in table.info(function).codes}
    assert {
        Operation.PUSH_NONVOL,
        Operation.ALLOC_LARGE,
        Operation.ALLOC_SMALL,
        Operation.SET_FPREG,
    } <= operations
    assert Operation.SAVE_XMM128 in operations


def test_known_bytes_of_every_operation_are_parsed():
    codes = [
        (0x40, 10, 1, []),  # PUSH_MACHFRAME with error code
        (0x38, 9, 7, [0x0010, 0x0002]),  # SAVE_XMM128_FAR xmm7 at 0x20010
        (0x30, 8, 6, [0x0003]),  # SAVE_XMM128 xmm6 at 0x30
        (0x28, 5, 13, [0x0008, 0x0001]),  # SAVE_NONVOL_FAR r13 at 0x10008
        (0x20, 4, 12, [0x0005]),  # SAVE_NONVOL r12 at 0x28
        (0x18, 3, 0, []),  # SET_FPREG
        (0x14, 2, 3, []),  # ALLOC_SMALL 32
        (0x10, 1, 1, [0x5678, 0x0012]),  # ALLOC_LARGE 0x125678
        (0x08, 1, 0, [0x0300]),  # ALLOC_LARGE 0x1800
        (0x01, 0, 5, []),  # PUSH_NONVOL rbp
    ]
    info = _table(
        _info(1, EXCEPTION_HANDLER | UNWIND_HANDLER, 0x40, 0x25, codes, struct.pack("<II", 0x1010, 99))
    ).info(_ENTRY)
    assert [(c.offset, c.operation.name, c.register, c.value) for c in info.codes] == [
        (0x40, "PUSH_MACHFRAME", 1, 0),
        (0x38, "SAVE_XMM128_FAR", 7, 0x20010),
        (0x30, "SAVE_XMM128", 6, 0x30),
        (0x28, "SAVE_NONVOL_FAR", 13, 0x10008),
        (0x20, "SAVE_NONVOL", 12, 0x28),
        (0x18, "SET_FPREG", 0, 0),
        (0x14, "ALLOC_SMALL", 3, 32),
        (0x10, "ALLOC_LARGE", 1, 0x125678),
        (0x08, "ALLOC_LARGE", 0, 0x1800),
        (0x01, "PUSH_NONVOL", 5, 0),
    ]
    assert (info.frame_register, info.frame_offset, info.prologue_size) == (5, 0x20, 0x40)
    assert info.handler_rva == 0x1010
    assert _IMAGE_OF_LAST[0].template[info.handler_data_rva] == 99


def test_saved_registers_far_and_near_and_a_machine_frame_are_restored():
    codes = [
        (8, 9, 7, [0x0040, 0x0000]),
        (8, 8, 6, [0x0003]),
        (8, 5, 13, [0x0028, 0x0000]),
        (8, 4, 12, [0x0004]),
        (8, 1, 1, [0x0060, 0x0000]),
        (0, 10, 1, []),
    ]
    table = _table(_info(1, 0, 8, 0, codes))
    stack = bytearray(0x100)
    struct.pack_into("<Q", stack, 0x20, 0x12)
    struct.pack_into("<Q", stack, 0x28, 0x13)
    stack[0x30:0x40], stack[0x40:0x50] = b"\x66" * 16, b"\x77" * 16
    struct.pack_into(
        "<6Q", stack, 0x60, 0xE, 0xAAAA, 0x10, 0x202, 0xBBBB, 0x18
    )  # error code, RIP, CS, flags, RSP, SS
    unwound = virtual_unwind(table, BASE, _registers(0x1020), _reader(stack))
    assert (unwound.caller.rip, unwound.caller.rsp) == (0xAAAA, 0xBBBB)
    assert unwound.caller.general[12:14] == (0x12, 0x13)
    assert unwound.caller.xmm[6:8] == (int("66" * 16, 16), int("77" * 16, 16))


def test_half_a_prologue_is_undone_by_half():
    codes = [(8, 2, 1, []), (4, 0, 3, []), (2, 0, 5, [])]  # push rbp; push rbx; sub rsp, 16
    table = _table(_info(1, EXCEPTION_HANDLER, 8, 0, codes, struct.pack("<I", 0x1010)))
    stack = bytearray(struct.pack("<6Q", 0, 0, 0x33, 0x55, 0xCAFE, 0))
    for offset, depth in ((0, 32), (2, 24), (4, 16), (8, 0)):
        unwound = virtual_unwind(table, BASE, _registers(0x1000 + offset, depth), _reader(stack))
        assert (unwound.caller.rip, unwound.caller.rsp) == (0xCAFE, STACK + 40), offset
        assert unwound.handler_flags == (EXCEPTION_HANDLER if offset == 8 else 0)
    assert (unwound.caller.general[3], unwound.caller.general[5]) == (0x33, 0x55)


def test_the_establisher_frame_comes_from_the_frame_register_only_once_that_is_set():
    codes = [(9, 3, 0, []), (4, 2, 3, []), (1, 0, 5, [])]  # push rbp; sub rsp, 32; lea rbp, [rsp+16]
    table = _table(_info(1, EXCEPTION_HANDLER, 9, 0x15, codes, struct.pack("<I", 0x1010)))
    stack = bytearray(struct.pack("<8Q", 0, 0, 0, 0, 0x55, 0xCAFE, 0, 0))
    general = list(_registers(0).general)
    general[4] = STACK  # RSP after `sub`; in the body it may be anything lower
    for rva, rsp, rbp in (
        (0x1004, STACK, 0xBAD),
        (0x1009, STACK, STACK + 16),
        (0x1020, STACK - 64, STACK + 16),
    ):
        general[4], general[5] = rsp, rbp
        unwound = virtual_unwind(table, BASE, Registers(BASE + rva, tuple(general)), _reader(stack))
        assert unwound.establisher_frame == STACK, hex(rva)
        assert (unwound.caller.rip, unwound.caller.rsp, unwound.caller.general[5]) == (
            0xCAFE,
            STACK + 48,
            0x55,
        )


def test_chained_unwind_information_undoes_the_fragment_and_then_the_function():
    primary = _info(1, UNWIND_HANDLER, 2, 0, [(2, 0, 5, [])], struct.pack("<I", 0x1010))  # push rbp
    fragment = _info(
        1, 4, 4, 0, [(4, 4, 6, [2])], struct.pack("<III", 0x1000, 0x1040, 0x1800)
    )  # save rsi at 16
    table = _table(primary, fragment)
    stack = bytearray(struct.pack("<4Q", 0x55, 0xCAFE, 0x66, 0))
    unwound = virtual_unwind(table, BASE, _registers(0x1048), _reader(stack))
    assert (unwound.caller.rip, unwound.caller.rsp) == (0xCAFE, STACK + 16)
    assert (unwound.caller.general[5], unwound.caller.general[6]) == (0x55, 0x66)
    assert unwound.handler_flags == UNWIND_HANDLER
    assert unwound.info is not None and unwound.info.handler_rva == 0x1010
    assert table.primary(table.functions[1]) == table.functions[0]


@pytest.mark.parametrize(
    ("code", "depth", "is_epilogue"),
    [
        ("4883c410 5b 5d c3", 0, True),  # add rsp, 16; pop rbx; pop rbp; ret
        ("4881c410000000 5b 5d c3", 0, True),
        ("5b 5d c3", 16, True),
        ("5b 5d c20800", 16, True),
        ("5b 5d f3c3", 16, True),
        ("5b 5d ff2500000000", 16, True),  # jmp through an import slot
        ("5b 5d 48ffe0", 16, True),  # jmp rax
        ("5b 5d e900400000", 16, True),  # jmp to another function
        ("5b 5d ebdc", 16, True),  # jmp to its own begin: a tail call of itself
        ("5b 5d eb02", 16, False),  # jmp within the function
        ("5b 5d 90", 16, False),
        ("4883c410 90 c3", 0, False),
    ],
)
def test_epilogues_are_told_from_bodies_by_their_instructions(code: str, depth: int, is_epilogue: bool):
    codes = [(8, 2, 1, []), (4, 0, 3, []), (2, 0, 5, [])]
    table = _table(
        _info(1, EXCEPTION_HANDLER, 8, 0, codes, struct.pack("<I", 0x1010)), code=bytes.fromhex(code)
    )
    stack = bytearray(struct.pack("<8Q", 0x1, 0x2, 0x33, 0x55, 0xCAFE, 0x66, 0x77, 0x88))
    unwound = virtual_unwind(table, BASE, _registers(0x1020, depth), _reader(stack))
    assert (unwound.handler_flags == 0) is is_epilogue
    if is_epilogue:
        assert (unwound.caller.rip, unwound.caller.rsp) == (0xCAFE, STACK + 40)
        assert (unwound.caller.general[3], unwound.caller.general[5]) == (0x33, 0x55)


def test_version_2_tells_where_epilogues_are_and_changes_nothing_else():
    codes = [(5, 6, 1, []), (0, 6, 0, []), (4, 2, 1, []), (2, 0, 5, [])]
    info = _table(_info(2, 0, 4, 0, codes)).info(_ENTRY)
    assert [code.operation for code in info.codes] == [Operation.ALLOC_SMALL, Operation.PUSH_NONVOL]


@pytest.mark.parametrize(
    "data",
    [
        bytes((3, 0, 0, 0)),  # version 3
        bytes((1, 0, 1, 0, 0, 0x07, 0, 0)),  # operation 7 does not exist
        bytes((1, 0, 1, 0, 0, 0x06, 0, 0)),  # EPILOG in version 1
        bytes((1, 0, 1, 0, 0, 0x01)),  # ALLOC_LARGE without its operand
    ],
)
def test_damaged_unwind_data_is_an_error_and_not_a_guess(data: bytes):
    with pytest.raises(UnwindError):
        virtual_unwind(_table(data), BASE, _registers(0x1020), _reader(bytearray(64)))


def test_random_unwind_data_ends_a_walk_but_never_raises_and_never_loops():
    chance = random.Random(7)
    endings = set()
    for _ in range(3000):
        first = chance.choice((1, 2, 1 | EXCEPTION_HANDLER << 3, 1 | 4 << 3, chance.randrange(256)))
        info = bytes((first, chance.randrange(20), chance.randrange(8), chance.randrange(256)))
        table = _table(info + chance.randbytes(40), code=chance.randbytes(32))
        module = Module(BASE, table)
        stack = bytearray(
            b"".join(struct.pack("<Q", BASE + chance.randrange(0x1000, 0x1090)) for _ in range(64))
        )
        general = tuple(STACK + 8 * chance.randrange(32) for _ in range(16))
        frames = list(
            walk_stack(
                Registers(BASE + chance.randrange(0x1000, 0x1080), general),
                lambda address, module=module: module if 0 <= address - BASE < 0x2000 else None,
                _reader(stack),
            )
        )
        assert 1 <= len(frames) <= 64 + 2
        for frame in frames:
            if frame.unwound is not None:
                scope_table(table, frame.unwound)
        endings.add((frames[-1].module is None, frames[-1].unwound is None))
    assert len(endings) >= 2


def test_an_unreadable_stack_is_an_error_and_a_chain_in_a_circle_too():
    with pytest.raises(UnwindError, match="cannot be read"):
        virtual_unwind(_table(_info(1, 0, 0, 0, [])), BASE, _registers(0x1020), lambda address, size: None)
    circle = _info(1, 4, 0, 0, [], struct.pack("<III", 0x1000, 0x1040, 0x1800))
    with pytest.raises(UnwindError, match="circle"):
        virtual_unwind(_table(circle), BASE, _registers(0x1020), _reader(bytearray(64)))


def test_an_address_outside_of_every_function_is_a_leaf():
    table = _table(_info(1, 0, 0, 0, []))
    assert table.lookup(0xFFF) is None and table.lookup(0x1040) is None and table.lookup(0x1000) == _ENTRY
    unwound = virtual_unwind(
        table, BASE, _registers(0x1050), _reader(bytearray(struct.pack("<QQ", 0xCAFE, 0)))
    )
    assert (unwound.caller.rip, unwound.caller.rsp, unwound.function) == (0xCAFE, STACK + 8, None)


@pytest.mark.skipif(READOBJ is None, reason="llvm-readobj is not installed on this host")
def test_the_tables_of_a_real_driver_equal_what_llvm_readobj_dumps(compile_driver):
    built = compile_driver(SOURCE, compile_flags=("-O1", "-fno-omit-frame-pointer"))
    table = UnwindTable(parse_image(built.sys, "test.sys"))
    dump = subprocess.run(
        [str(READOBJ), "--unwind", str(built.sys_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    blocks = dump.split("RuntimeFunction {")[1:]
    assert len(blocks) == len(table.functions) >= 7
    for block, function in zip(blocks, table.functions, strict=True):
        info = table.info(function)
        assert int(re.search(r"PrologSize: (\d+)", block)[1]) == info.prologue_size
        dumped = re.findall(r"0x([0-9A-F]{2}): (\w+)(?:.*?size=(\d+))?", block)
        assert [(int(offset, 16), name) for offset, name, _ in dumped] == [
            (code.offset, code.operation.name) for code in info.codes
        ]
        assert [int(size) for _, _, size in dumped if size] == [
            code.value
            for code in info.codes
            if code.operation in (Operation.ALLOC_LARGE, Operation.ALLOC_SMALL)
        ]


_ENTRY = RuntimeFunction(0x1000, 0x1040, 0x1800)
_IMAGE_OF_LAST: list[Image] = []


def _info(version: int, flags: int, prologue: int, frame: int, codes, tail: bytes = b"") -> bytes:
    nodes = b"".join(
        struct.pack(f"<BB{len(extra)}H", offset, info << 4 | operation, *extra)
        for offset, operation, info, extra in codes
    )
    count = len(nodes) // 2
    return bytes((version | flags << 3, prologue, count, frame)) + nodes + bytes(2 * (count & 1)) + tail


def _table(info: bytes, second: bytes = b"", code: bytes = b"\x90") -> UnwindTable:
    """Functions at 0x1000 (unwind data at 0x1800) and, with `second`, at 0x1040 (0x1900); `code` lies at 0x1020."""
    data = bytearray(b"\x90" * 0x1000)
    data[0x20 : 0x20 + len(code)] = code
    data[0x800 : 0x800 + len(info)] = info
    data[0x900 : 0x900 + len(second)] = second
    functions = struct.pack("<III", 0x1000, 0x1040, 0x1800)
    functions += struct.pack("<III", 0x1040, 0x1080, 0x1900) if second else b""
    data[0xA00 : 0xA00 + len(functions)] = functions
    if (
        info[:3] == bytes((1, 0, 1)) and info[5:] == b"\x01"
    ):  # the operand would have to come from behind the image
        data = data[: 0x800 + len(info)]
        data[0x40 : 0x40 + len(functions)] = functions
    section = Section(".text", 0x1000, len(data), bytes(data), True, False, True, False)
    image = Image(
        name="made.sys",
        sha256="",
        base=0x140000000,
        size=0x2000,
        entry_rva=0x1000,
        timestamp=0,
        headers_size=0x400,
        sections=(section,),
        imports=(),
        relocations=(),
        exports=(),
        exception_directory=(0x1A00 if len(data) == 0x1000 else 0x1040, len(functions)),
        debug=None,
        security_cookie_rva=None,
        checksum=0,
        checksum_ok=True,
        is_signed=False,
        template=bytes(0x1000) + bytes(data),
        _base_field=0,
    )
    _IMAGE_OF_LAST[:] = [image]
    return UnwindTable(image)


def _registers(rva: int, depth: int = 0) -> Registers:
    general = [0] * 16
    general[4] = STACK + depth
    return Registers(BASE + rva, tuple(general))


def _reader(stack: bytearray):
    def read(address: int, size: int) -> bytes | None:
        offset = address - STACK
        return bytes(stack[offset : offset + size]) if 0 <= offset <= len(stack) - size else None

    return read
