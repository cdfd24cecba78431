"""What the machine relies on in the engine: each quirk that was measured, so that a change of the pin is noticed."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from vm.emulated.cpu.engine import Context, Engine, Stop, StopKind
from vm.emulated.cpu.memory import Access, Memory, MemoryFaultError

CODE = 0xFFFF_F805_0000_0000
DATA = 0xFFFF_B000_0000_0000
STACK = 0xFFFF_A000_0001_0000


@pytest.fixture
def engine() -> Iterator[Engine]:
    memory = Memory(4 << 20)
    engine = Engine(memory)
    memory.map(CODE, 0x2000, Access.READ_EXECUTE)
    memory.map(DATA, 0x1000, Access.READ_WRITE)
    memory.map(STACK - 0x1000, 0x1000, Access.READ_WRITE)
    engine.set("rsp", STACK - 0x100)
    yield engine
    engine.close()
    memory.close()


def code(engine: Engine, raw: bytes, at: int = CODE) -> int:
    engine.memory.poke(at, raw)
    return at


def movabs(register: int, value: int) -> bytes:
    """mov r64, imm64 for RAX (0) to RDI (7); 10 bytes."""
    return bytes((0x48, 0xB8 + register)) + struct.pack("<Q", value)


def test_kernel_addresses_are_not_cut(engine: Engine) -> None:
    engine.memory.put64(DATA + 8, 0x1122_3344_5566_7788)
    stop = engine.run(code(engine, movabs(1, DATA + 8) + b"\x48\x8b\x01\x90"), 2)
    assert isinstance(stop, Stop) and stop.kind is StopKind.QUANTUM
    assert engine.get("rax") == 0x1122_3344_5566_7788


@pytest.mark.parametrize("count", range(1, 9))
def test_an_instruction_count_is_exact(engine: Engine, count: int) -> None:
    engine.set("rax", 0)
    stop = engine.run(code(engine, b"\x48\xff\xc0" * 16), count)
    assert engine.get("rax") == count
    assert stop == Stop(StopKind.QUANTUM, CODE + 3 * count)


def test_a_count_is_respected_by_code_that_has_run_before(engine: Engine) -> None:
    start = code(engine, b"\x48\xff\xc0" * 16 + b"\xeb\xce")
    engine.set("rax", 0)
    for expected in (100, 107, 110):
        engine.run(start if expected == 100 else engine.get("rip"), expected - engine.get("rax") or 1)
    assert engine.get("rax") < 111


def test_flags_survive_a_stop_between_compare_and_branch(engine: Engine) -> None:
    # xor eax,eax; cmp eax,eax; je +2; jmp $; inc eax
    start = code(engine, b"\x31\xc0\x39\xc0\x74\x02\xeb\xfe\xff\xc0\x90")
    first = engine.run(start, 2)
    assert isinstance(first, Stop)
    engine.run(first.pc, 2)
    assert engine.get("rax") == 1


@pytest.mark.parametrize(
    ("instruction", "access"),
    [(b"\x8b\x01", Access.READ), (b"\x89\x01", Access.WRITE), (b"\xff\xe1", Access.EXECUTE)],
)
def test_a_fault_names_address_access_and_instruction(
    engine: Engine, instruction: bytes, access: Access
) -> None:
    address = DATA + 0x5123
    stop = engine.run(code(engine, movabs(1, address) + instruction))
    assert isinstance(stop, Stop)
    assert (stop.kind, stop.address, stop.access) == (StopKind.FAULT, address, access)
    assert stop.pc == (address if access is Access.EXECUTE else CODE + 10)


def test_a_write_to_a_read_only_page_and_a_jump_to_data_fault(engine: Engine) -> None:
    engine.memory.protect(DATA, 0x1000, Access.READ)
    write = engine.run(code(engine, movabs(1, DATA) + b"\x89\x01"))
    jump = engine.run(code(engine, movabs(1, DATA) + b"\xff\xe1", CODE + 0x100))
    assert isinstance(write, Stop) and isinstance(jump, Stop)
    assert (write.kind, write.access) == (StopKind.FAULT, Access.WRITE)
    assert (jump.kind, jump.access) == (StopKind.FAULT, Access.EXECUTE)


def test_a_read_across_the_end_of_a_mapping_faults(engine: Engine) -> None:
    stop = engine.run(code(engine, movabs(1, DATA + 0xFFC) + b"\x48\x8b\x01"))
    assert isinstance(stop, Stop)
    assert stop.kind is StopKind.FAULT
    assert stop.address in (DATA + 0xFFC, DATA + 0x1000)


def test_memory_that_was_unmapped_faults_although_it_was_just_read(engine: Engine) -> None:
    start = code(engine, movabs(1, DATA) + b"\x8b\x01\x90")
    assert engine.run(start, 3) == Stop(StopKind.QUANTUM, CODE + 13)
    engine.memory.unmap(DATA, 0x1000)
    stop = engine.run(start, 3)
    assert isinstance(stop, Stop) and stop.kind is StopKind.FAULT and stop.address == DATA


def test_memory_mapped_after_a_fault_is_found(engine: Engine) -> None:
    start = code(engine, movabs(1, DATA + 0x8000) + b"\x8b\x01\x90")
    first = engine.run(start, 3)
    assert isinstance(first, Stop) and first.kind is StopKind.FAULT
    engine.memory.map(DATA + 0x8000, 0x1000, Access.READ_WRITE)
    assert engine.run(first.pc, 2) == Stop(StopKind.QUANTUM, CODE + 13)


def test_an_alias_shows_the_same_memory(engine: Engine) -> None:
    engine.memory.alias(DATA + 0x10_0000, DATA, 0x1000, Access.READ_WRITE)
    engine.run(code(engine, movabs(0, 77) + movabs(1, DATA + 0x10_0010) + b"\x89\x01\x90"), 3)
    assert engine.memory.u32(DATA + 0x10) == 77


def test_the_user_half_follows_the_current_process(engine: Engine) -> None:
    address = 0x0000_0100_0000_0000
    tables = []
    for value in (1, 2):
        table = {address >> 12: (engine.memory.allocate_frame(), int(Access.READ_WRITE))}
        engine.memory.switch_user(table)
        engine.memory.put32(address, value)
        tables.append(table)
    start, seen = code(engine, movabs(1, address) + b"\x8b\x01\x90"), []
    for table in tables:
        engine.memory.switch_user(table)
        engine.run(start, 2)
        seen.append(engine.get("rax"))
    assert seen == [1, 2]


def test_cr8_is_the_irql(engine: Engine) -> None:
    # mov rax, cr8; mov rcx, 2; mov cr8, rcx; nop
    start = code(engine, b"\x44\x0f\x20\xc0" + movabs(1, 2) + b"\x44\x0f\x22\xc1\x90\x90")
    engine.patch_cr8(start, write=False, register="rax")
    engine.patch_cr8(start + 14, write=True, register="rcx")
    engine.irql = 1
    stop = engine.run(start, 6)
    assert isinstance(stop, Stop) and stop.kind is StopKind.QUANTUM
    assert (engine.get("rax"), engine.irql) == (1, 2)


def test_the_time_stamp_is_the_machine_s_own(engine: Engine) -> None:
    start = code(engine, b"\x0f\x31\x90\x90")
    engine.patch_time(start)
    engine.timestamp = lambda: 0x5_0000_0007
    engine.run(start, 2)
    assert (engine.get("rax"), engine.get("rdx")) == (7, 5)


@pytest.mark.parametrize(("raw", "number"), [(b"\xcc", 3), (b"\xcd\x29", 0x29), (b"\xcd\x2c", 0x2C)])
def test_interrupts_come_out_with_their_number(engine: Engine, raw: bytes, number: int) -> None:
    stop = engine.run(code(engine, raw + b"\x90"))
    assert isinstance(stop, Stop)
    assert (stop.kind, stop.interrupt) == (StopKind.INTERRUPT, number)


def test_an_invalid_instruction_and_a_division_by_zero_stop(engine: Engine) -> None:
    invalid = engine.run(code(engine, b"\x0f\x0b"))
    assert isinstance(invalid, Stop) and invalid.kind is StopKind.INVALID_INSTRUCTION
    divided = engine.run(code(engine, b"\x31\xc9\xf7\xf1\x90", CODE + 0x100))
    assert isinstance(divided, Stop) and (divided.kind, divided.interrupt) == (StopKind.INTERRUPT, 0)


def test_a_trap_hands_over_arguments_and_takes_the_result(engine: Engine) -> None:
    address, index = engine.add_trap()
    # mov rcx,5; mov rdx,6; mov rax,trap; call rax; inc rax; nop
    start = code(engine, movabs(1, 5) + movabs(2, 6) + movabs(0, address) + b"\xff\xd0\x48\xff\xc0\x90")
    trapped = engine.run(start)
    assert isinstance(trapped, tuple)
    rcx, rdx, _, _, rsp, number = trapped
    assert (rcx, rdx, engine.memory.u64(rsp), number) == (5, 6, start + 32, index)
    engine.set_result(0x1_0000_0000)
    stop = engine.run(engine.resume_address(index), 4)
    assert isinstance(stop, Stop)
    assert engine.get("rax") == 0x1_0000_0001


def test_an_error_in_a_hook_comes_out_of_run(engine: Engine) -> None:
    def fail(_address: int, _size: int) -> None:
        raise LookupError("from the hook")

    engine.on_block(CODE, CODE + 0x1000, fail)
    with pytest.raises(LookupError, match="from the hook"):
        engine.run(code(engine, b"\x90\x90\xeb\xfc"), 100)


def test_blocks_are_reported_by_address_and_size(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    engine.on_block(CODE, CODE + 0x1000, lambda address, size: seen.append((address, size)))
    engine.run(code(engine, b"\x90\xeb\x00\x90\x90\xeb\xfe"), 4)
    assert seen[:2] == [(CODE, 3), (CODE + 3, 4)]


def test_a_saved_context_brings_all_registers_back(engine: Engine) -> None:
    context = Context(engine)
    values = tuple(range(1, 17))
    engine.set("rbx", 1234)
    engine.set_xmm(values)
    engine.save(context)
    engine.set("rbx", 0)
    engine.set_xmm([0] * 16)
    engine.restore(context)
    assert engine.get("rbx") == 1234
    assert engine.xmm() == values


def test_the_model_s_own_access_is_checked_like_the_processor_s(engine: Engine) -> None:
    memory = engine.memory
    memory.protect(DATA, 0x1000, Access.READ)
    with pytest.raises(MemoryFaultError) as write:
        memory.write(DATA + 4, b"x")
    with pytest.raises(MemoryFaultError) as read:
        memory.read(DATA + 0xFFF, 2)
    assert (write.value.address, write.value.access) == (DATA + 4, Access.WRITE)
    assert read.value.address == DATA + 0x1000


def test_a_write_that_ends_outside_changes_nothing(engine: Engine) -> None:
    with pytest.raises(MemoryFaultError):
        engine.memory.write(DATA + 0xFFC, b"12345678")
    assert engine.memory.read(DATA + 0xFFC, 4) == bytes(4)
