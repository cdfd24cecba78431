"""Pool, strings, formatting, memory, time, registry and security through their export stubs."""

from __future__ import annotations

import struct

import pytest

from tests.vm.kernel_bench import Bench
from vm.emulated.exports.declare import NTOSKRNL, PVOID, ULONG, export
from vm.emulated.exports.names import name_matches
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_BUFFER_OVERFLOW,
    STATUS_BUFFER_TOO_SMALL,
    STATUS_NO_MORE_ENTRIES,
    STATUS_OBJECT_NAME_NOT_FOUND,
)
from vm.emulated.kernel.threads import Model
from vm.emulated.registry import RegistryValue

TAG = int.from_bytes(b"Test", "little")
NON_PAGED, PAGED, UNINITIALIZED = 0x40, 0x100, 0x2
SERVICE = "\\Registry\\Machine\\System\\CurrentControlSet\\Services\\Probe"


@pytest.fixture
def bench() -> Bench:
    return Bench.make()


# Pool


def test_pool_is_zeroed_unless_asked_for_otherwise(bench: Bench) -> None:
    zeroed = bench.run("ExAllocatePool2", NON_PAGED, 32, TAG)
    raw = bench.run("ExAllocatePool2", NON_PAGED | UNINITIALIZED, 32, TAG)
    assert bench.kernel.memory.read(zeroed, 32) == bytes(32)
    assert bench.kernel.memory.read(raw, 32) != bytes(32)


@pytest.mark.parametrize("flags", [0, NON_PAGED | PAGED, NON_PAGED | 0x8000])
def test_pool_flags_that_make_no_sense_give_null(bench: Bench, flags: int) -> None:
    assert bench.run("ExAllocatePool2", flags, 32, TAG) == 0


def test_paged_pool_at_dispatch_level_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(
        bench.call("KeRaiseIrqlToDpcLevel"), bench.call("ExAllocatePool2", PAGED, 32, TAG)
    )
    assert (report.name, report.parameters[0]) == ("DRIVER_VERIFIER_DETECTED_VIOLATION", 1)


def test_a_tag_of_zero_is_a_bugcheck(bench: Bench) -> None:
    report = bench.crash_of(bench.call("ExAllocatePool2", NON_PAGED, 32, 0))
    assert (report.name, report.parameters[0]) == ("BAD_POOL_CALLER", 0x9B)


def test_a_block_freed_twice_or_with_another_tag_is_a_bugcheck(bench: Bench) -> None:
    block = bench.run("ExAllocatePool2", NON_PAGED, 32, TAG)
    report = bench.crash_of(bench.call("ExFreePoolWithTag", block, int.from_bytes(b"Othr", "little")))
    assert "with the tag 'Othr'" in report.rule
    other = Bench.make()
    block = other.run("ExAllocatePool2", NON_PAGED, 32, TAG)
    assert "freed twice" in other.crash_of(*[other.call("ExFreePoolWithTag", block, TAG)] * 2).rule


def test_an_allocation_that_is_made_to_fail_returns_null(bench: Bench) -> None:
    bench.kernel.pool.refuse = lambda size, tag, driver: tag == "Test"
    assert bench.run("ExAllocatePool2", NON_PAGED, 32, TAG) == 0
    assert bench.run("ExAllocatePool2", NON_PAGED, 32, TAG + 1) != 0


def test_more_pool_than_the_machine_has_returns_null(bench: Bench) -> None:
    assert bench.run("ExAllocatePool2", NON_PAGED, 1 << 40, TAG) == 0


def test_a_lookaside_list_allocates_what_it_was_made_for(bench: Bench) -> None:
    lookaside = bench.room(0x80)

    def use() -> Model:
        yield bench.call("ExInitializeLookasideListEx", lookaside, 0, 0, 512, 0, 100, TAG, 0)
        block = yield bench.call("ExAllocateFromLookasideListEx", lookaside)
        size = bench.kernel.pool.live[block].size
        yield bench.call("ExFreeToLookasideListEx", lookaside, block)
        return size, block in bench.kernel.pool.live

    assert bench.model(use()) == (100, False)


# Strings


@pytest.mark.parametrize(
    ("first", "second", "ignore", "expected"),
    [("a", "A", 0, False), ("a", "A", 1, True), ("äß", "Äß", 1, True), ("a", "ab", 1, False)],
)
def test_equality_of_counted_strings(
    bench: Bench, first: str, second: str, ignore: int, expected: bool
) -> None:
    result = bench.run("RtlEqualUnicodeString", bench.unicode(first), bench.unicode(second), ignore)
    assert bool(result) is expected


def test_a_prefix_may_be_the_whole_string_but_not_longer(bench: Bench) -> None:
    path = bench.unicode("\\Device\\HarddiskVolume2")
    assert bench.run("RtlPrefixUnicodeString", bench.unicode("\\device"), path, 1) == 1
    assert bench.run("RtlPrefixUnicodeString", bench.unicode("\\device"), path, 0) == 0
    assert bench.run("RtlPrefixUnicodeString", path, bench.unicode("\\Device"), 1) == 0


def test_appending_beyond_the_buffer_is_an_error_and_changes_nothing(bench: Bench) -> None:
    target = bench.unicode("ab", room=8)
    assert bench.run("RtlAppendUnicodeToString", target, bench.wide("cd")) == 0
    assert bench.run("RtlAppendUnicodeToString", target, bench.wide("e")) == STATUS_BUFFER_TOO_SMALL
    assert bench.kernel.memory.unicode_string(target) == "abcd"


def test_copying_cuts_and_terminates_where_there_is_room(bench: Bench) -> None:
    target = bench.unicode("", room=6)
    bench.run("RtlCopyUnicodeString", target, bench.unicode("abcdef"))
    assert bench.kernel.memory.unicode_string(target) == "abc"


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [("42", 0, 42), (" 0x1F", 0, 31), ("-1", 10, 0xFFFF_FFFF), ("12x", 10, 12), ("777", 8, 511), ("", 10, 0)],
)
def test_numbers_are_read_as_far_as_they_go(bench: Bench, text: str, base: int, value: int) -> None:
    at = bench.room(4)
    assert bench.run("RtlUnicodeStringToInteger", bench.unicode(text), base, at) == 0
    assert bench.kernel.memory.u32(at) == value


def test_a_guid_survives_the_way_to_text_and_back(bench: Bench) -> None:
    guid, text, back = bench.put(bytes(range(16))), bench.room(16), bench.room(16)
    assert bench.run("RtlStringFromGUID", guid, text) == 0
    assert bench.kernel.memory.unicode_string(text) == "{03020100-0504-0706-0809-0A0B0C0D0E0F}"
    assert bench.run("RtlGUIDFromString", text, back) == 0
    assert bench.kernel.memory.read(back, 16) == bytes(range(16))


def test_utf_8_conversion_says_when_it_replaced_something(bench: Bench) -> None:
    source, target, size = (
        bench.put("a\ud800b".encode("utf-16-le", "surrogatepass")),
        bench.room(16),
        bench.room(4),
    )
    assert bench.run("RtlUnicodeToUTF8N", target, 16, size, source, 6) == 0x107
    assert bench.kernel.memory.read(target, 5) == b"a\xef\xbf\xbdb"


@pytest.mark.parametrize(
    ("format_", "arguments", "expected"),
    [
        ("%d|%5d|%-5d|%05d", (7, 7, 7, 7), "7|    7|7    |00007"),
        ("%u %x %X %#x", (0xFFFF_FFFF, 255, 255, 255), "4294967295 ff FF 0xff"),
        ("%I64x %lld %hu", (1 << 40, 2**64 - 1, 0x1_0005), "10000000000 -1 5"),
        ("%p", (0x10,), "0000000000000010"),
        ("100%% %c", (65,), "100% A"),
        ("%.3d", (5,), "005"),
    ],
)
def test_formatting_of_numbers(bench: Bench, format_: str, arguments: tuple[int, ...], expected: str) -> None:
    bench.run("DbgPrint", bench.ansi(format_), *arguments)
    assert bench.kernel.debug_lines == [expected]


def test_formatting_of_strings_of_every_kind(bench: Bench) -> None:
    counted = bench.unicode("counted")
    narrow = bench.put(struct.pack("<HHIQ", 3, 3, 0, bench.put(b"ansi")))
    arguments = (bench.ansi("narrow"), bench.wide("wide"), bench.wide("big"), counted, narrow, 0)
    bench.run("DbgPrint", bench.ansi("%s %ws %S %wZ %Z %s"), *arguments)
    assert bench.kernel.debug_lines == ["narrow wide big counted ans (null)"]


def test_a_printed_text_that_does_not_fit_is_cut_and_returns_minus_one(bench: Bench) -> None:
    buffer = bench.room(16)
    assert bench.run("_snwprintf", buffer, 4, bench.wide("%s-%d"), bench.wide("abc"), 12) == 0xFFFF_FFFF
    assert bench.kernel.memory.read(buffer, 8).decode("utf-16-le") == "abc-"
    assert bench.run("_snprintf", buffer, 16, bench.ansi("%d"), 12) == 2


def test_a_unicode_conversion_above_passive_level_is_a_violation(bench: Bench) -> None:
    def use() -> Model:
        yield bench.call("KeRaiseIrqlToDpcLevel")
        yield bench.call("DbgPrint", bench.ansi("%ws"), bench.wide("x"))
        yield bench.call("KeLowerIrql", 0)

    bench.model(use())
    assert [v.rule for v in bench.kernel.violations] == ["dbgprint.unicode"]


@pytest.mark.parametrize(
    ("expression", "name", "expected"),
    [
        ("*", "", True),
        ("*.TXT", "A.TXT", True),
        ("*.TXT", "A.TXT.BAK", False),
        ("A?C", "ABC", True),
        ("A?C", "AC", False),
        ("<.TXT", "A.B.TXT", True),
        ('FOO"', "FOO", True),
        ("A>>>", "AB", True),
        ("A>>>.B", "AX.B", True),
        ("*AB*C", "XABYC", True),
    ],
)
def test_name_expressions(expression: str, name: str, expected: bool) -> None:
    assert name_matches(expression, name) is expected


# Memory and time


def test_overlapping_memcpy_is_a_bugcheck_and_memmove_is_not(bench: Bench) -> None:
    data = bench.put(b"abcdef")
    bench.run("memmove", data + 1, data, 5)
    assert bench.kernel.memory.read(data, 6) == b"aabcde"
    assert bench.crash_of(bench.call("memcpy", data + 1, data, 5)).parameters[0] == 0xF0


def test_copying_from_freed_pool_names_the_block(bench: Bench) -> None:
    def use() -> Model:
        block = yield bench.call("ExAllocatePool2", NON_PAGED, 32, TAG)
        yield bench.call("ExFreePoolWithTag", block, TAG)
        yield bench.call("memcpy", bench.room(32), block, 32)

    report = bench.crash(use())
    assert report.name == "DRIVER_PAGE_FAULT_IN_FREED_SPECIAL_POOL"
    assert "'Test'" in report.rule


def test_an_mdl_maps_the_same_memory_a_second_time(bench: Bench) -> None:
    def use() -> Model:
        block = yield bench.call("ExAllocatePool2", NON_PAGED, 6000, TAG)
        mdl = yield bench.call("IoAllocateMdl", block, 6000, 0, 0, 0)
        yield bench.call("MmProbeAndLockPages", mdl, 0, 1)
        view = yield bench.call("MmMapLockedPagesSpecifyCache", mdl, 0, 1, 0, 0, 16)
        bench.kernel.memory.write(view + 5000, b"seen")
        seen = bench.kernel.memory.read(block + 5000, 4)
        yield bench.call("MmUnlockPages", mdl)
        gone = bench.kernel.memory.is_mapped(view)
        yield bench.call("IoFreeMdl", mdl)
        return view != block, seen, gone

    assert bench.model(use()) == (True, b"seen", False)


def test_freeing_an_mdl_with_locked_pages_is_a_bugcheck(bench: Bench) -> None:
    def use() -> Model:
        block = yield bench.call("ExAllocatePool2", NON_PAGED, 100, TAG)
        mdl = yield bench.call("IoAllocateMdl", block, 100, 0, 0, 0)
        yield bench.call("MmProbeAndLockPages", mdl, 0, 0)
        yield bench.call("IoFreeMdl", mdl)

    assert "MmUnlockPages" in bench.crash(use()).rule


def test_a_time_survives_the_way_to_fields_and_back(bench: Bench) -> None:
    time, fields, back = bench.put(struct.pack("<Q", 0x01DC_7AB5_1234_0000)), bench.room(16), bench.room(8)
    bench.run("RtlTimeToTimeFields", time, fields)
    assert bench.run("RtlTimeFieldsToTime", fields, back) == 1
    assert abs(bench.kernel.memory.u64(back) - 0x01DC_7AB5_1234_0000) < 10_000
    bench.run("RtlTimeToTimeFields", bench.room(8), fields)
    assert struct.unpack("<8h", bench.kernel.memory.read(fields, 16)) == (1601, 1, 1, 0, 0, 0, 0, 1)


def test_a_routine_is_found_by_name_and_an_unknown_one_is_null(bench: Bench) -> None:
    known = bench.run("MmGetSystemRoutineAddress", bench.unicode("KeSetEvent"))
    assert known == bench.import_("KeSetEvent")
    assert bench.run("MmGetSystemRoutineAddress", bench.unicode("KeDoTheImpossible")) == 0


# Registry


def open_key(bench: Bench, path: str = SERVICE, access: int = 0xF003F) -> int:
    at = bench.room(8)
    assert bench.run("ZwOpenKey", at, access, bench.attributes(path)) == 0
    return bench.kernel.memory.u64(at)


def test_a_value_is_queried_in_two_steps_as_drivers_do(bench: Bench) -> None:
    bench.kernel.registry.set_dword(SERVICE, "Limit", 4711)
    key, buffer, length = open_key(bench), bench.room(64), bench.room(4)
    name = bench.unicode("limit")
    assert bench.run("ZwQueryValueKey", key, name, 2, buffer, 0, length) == STATUS_BUFFER_TOO_SMALL
    assert bench.kernel.memory.u32(length) == 16
    assert bench.run("ZwQueryValueKey", key, name, 2, buffer, 14, length) == STATUS_BUFFER_OVERFLOW
    assert bench.run("ZwQueryValueKey", key, name, 2, buffer, 16, length) == 0
    assert struct.unpack("<4I", bench.kernel.memory.read(buffer, 16)) == (0, 4, 4, 4711)


def test_missing_keys_and_values_are_not_found(bench: Bench) -> None:
    at = bench.room(8)
    assert bench.run("ZwOpenKey", at, 1, bench.attributes(SERVICE)) == STATUS_OBJECT_NAME_NOT_FOUND
    bench.kernel.registry.create_key(SERVICE)
    key, missing = open_key(bench), bench.unicode("None")
    status = bench.run("ZwQueryValueKey", key, missing, 2, bench.room(32), 32, at)
    assert status == STATUS_OBJECT_NAME_NOT_FOUND


def test_a_key_opened_to_read_cannot_be_written(bench: Bench) -> None:
    bench.kernel.registry.create_key(SERVICE)
    key = open_key(bench, access=1)
    value = bench.put(bytes(4))
    assert bench.run("ZwSetValueKey", key, bench.unicode("x"), 0, 4, value, 4) == STATUS_ACCESS_DENIED


def test_keys_are_created_under_a_root_and_enumerated(bench: Bench) -> None:
    bench.kernel.registry.create_key(SERVICE)
    root, at, disposition = open_key(bench), bench.room(8), bench.room(4)
    for name in ("Beta", "Alpha"):
        attributes = bench.attributes(name, 0x240, root)
        assert bench.run("ZwCreateKey", at, 0xF003F, attributes, 0, 0, 0, disposition) == 0
        assert bench.kernel.memory.u32(disposition) == 1
    buffer, length = bench.room(64), bench.room(4)
    assert bench.run("ZwEnumerateKey", root, 0, 0, buffer, 64, length) == 0
    assert bench.kernel.memory.read(buffer + 16, 10).decode("utf-16-le") == "Alpha"
    assert bench.run("ZwEnumerateKey", root, 2, 0, buffer, 64, length) == STATUS_NO_MORE_ENTRIES


def test_a_query_table_stores_values_directly_and_takes_defaults(bench: Bench) -> None:
    registry = bench.kernel.registry
    registry.set_dword(SERVICE, "Limit", 9)
    registry.set_value(SERVICE, "Name", RegistryValue.string("probe"))
    limit, text, missing = bench.room(4), bench.unicode("", room=32), bench.room(4)

    def row(name: str, target: int, default_type: int = 0, default: int = 0) -> bytes:
        return struct.pack(
            "<QIIQQIIQII", 0, 0x20, 0, bench.wide(name), target, default_type, 0, default, 4, 0
        )

    table = bench.put(
        row("Limit", limit)
        + row("Name", text)
        + row("Absent", missing, 4, bench.put(struct.pack("<I", 33)))
        + bytes(0x38)
    )
    assert bench.run("RtlQueryRegistryValues", 0, bench.wide(SERVICE), table, 0, 0) == 0
    memory = bench.kernel.memory
    assert (memory.u32(limit), memory.unicode_string(text), memory.u32(missing)) == (9, "probe", 33)


# Security


def test_an_access_list_built_by_a_driver_decides_as_it_says(bench: Bench) -> None:
    admins = bench.put(security.sid_bytes(security.ADMINISTRATORS))
    acl, descriptor = bench.room(64), bench.room(0x28)
    context, granted, status = bench.room(0x20), bench.room(4), bench.room(4)
    process = bench.kernel.create_process(100, "a.exe", security.ADMINISTRATOR_TOKEN.restricted())

    def check(desired: int) -> Model:
        yield bench.call("RtlCreateAcl", acl, 64, 2)
        yield bench.call("RtlAddAccessAllowedAce", acl, 2, 0x3, admins)
        yield bench.call("RtlCreateSecurityDescriptor", descriptor, 1)
        yield bench.call("RtlSetDaclSecurityDescriptor", descriptor, 1, acl, 0)
        yield bench.call("SeCaptureSubjectContext", context)
        answer = yield bench.call(
            "SeAccessCheck", descriptor, context, 0, desired, 0, 0, 0, 1, granted, status
        )
        yield bench.call("SeReleaseSubjectContext", context)
        return answer, bench.kernel.memory.u32(status)

    kernel = bench.kernel
    assert kernel.run(check(1)) == (1, 0)
    assert kernel.run(check(4)) == (0, STATUS_ACCESS_DENIED)
    assert kernel.run(check(1), "restricted", process) == (0, STATUS_ACCESS_DENIED)


def test_a_sid_is_shown_as_text(bench: Bench) -> None:
    sid, text = bench.put(security.sid_bytes(security.LAB_USER)), bench.unicode("", room=128)
    assert bench.run("RtlConvertSidToUnicodeString", text, sid, 0) == 0
    assert bench.kernel.memory.unicode_string(text) == security.LAB_USER


def test_the_exported_sids_lie_where_the_structure_has_them(bench: Bench) -> None:
    memory = bench.kernel.memory
    exports = memory.u64(bench.import_("SeExports"))
    assert memory.u64(exports + 8 * 8) == 10  # SeLoadDriverPrivilege
    assert security.sid_text(memory, memory.u64(exports + 8 * 33)) == security.SYSTEM
    assert security.sid_text(memory, memory.u64(exports + 8 * 34)) == security.ADMINISTRATORS


# Tables and bitmaps


def test_a_generic_table_keeps_its_elements_in_the_driver_s_order(bench: Bench) -> None:
    memory = bench.kernel.memory

    @export(NTOSKRNL, irql=2)
    def Compare(k: Kernel, Table: PVOID, First: PVOID, Second: PVOID) -> int:  # noqa: N802, N803
        a, b = k.memory.u32(First), k.memory.u32(Second)
        return 2 if a == b else 0 if a < b else 1

    @export(NTOSKRNL, irql=2)
    def Allocate(k: Kernel, Table: PVOID, Size: ULONG) -> int:  # noqa: N802, N803
        return k.pool.allocate(Size, "Tabl", owner="test")

    @export(NTOSKRNL, irql=2)
    def Free(k: Kernel, Table: PVOID, Buffer: PVOID) -> None:  # noqa: N802, N803
        k.pool.free(Buffer, "Tabl")

    routines = [bench.kernel.python_function(f) for f in (Compare, Allocate, Free)]
    table, new, restart = bench.room(0x68), bench.room(1), bench.room(8)
    keys = [bench.put(struct.pack("<I", n)) for n in (30, 10, 20, 10)]

    def use() -> Model:
        yield bench.call("RtlInitializeGenericTableAvl", table, *routines, 0)
        fresh = []
        for key in keys:
            yield bench.call("RtlInsertElementGenericTableAvl", table, key, 4, new)
            fresh.append(memory.u8(new))
        deleted = yield bench.call("RtlDeleteElementGenericTableAvl", table, keys[2])
        missing = yield bench.call("RtlLookupElementGenericTableAvl", table, keys[2])
        found = []
        while element := (yield bench.call("RtlEnumerateGenericTableWithoutSplayingAvl", table, restart)):
            found.append(memory.u32(element))
        return fresh, deleted, missing, found, (yield bench.call("RtlNumberGenericTableElementsAvl", table))

    assert bench.model(use()) == ([1, 1, 1, 0], 1, 0, [10, 30], 2)


def test_a_bitmap_finds_clear_runs_from_the_hint_on(bench: Bench) -> None:
    header, buffer = bench.room(16), bench.room(8)
    bench.run("RtlInitializeBitMap", header, buffer, 40)
    bench.run("RtlSetBits", header, 3, 4)
    assert bench.run("RtlFindClearBitsAndSet", header, 4, 0) == 7
    assert bench.run("RtlFindClearBits", header, 3, 39) == 0
    assert bench.run("RtlFindClearBits", header, 30, 0) == 0xFFFF_FFFF
    assert bench.run("RtlNumberOfSetBits", header) == 8
