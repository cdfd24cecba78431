"""The cross headers describe the real Filter Manager: every known number is asserted, compiled and compared."""

from __future__ import annotations

import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import pefile
import pytest

from harness.toolchain import cross_compile
from vm.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
CROSS = ROOT / "driver" / "cross"
TABLE = Path(__file__).with_name("filter_manager_layout.txt")
MAGIC = (0x6B6E696C6E776F64, 0x74756F79616C2121)


@dataclass(frozen=True, slots=True)
class Layout:
    """The table of known numbers: sizes of types, (offset, size) of fields, values of constants."""

    sizes: dict[str, int]
    fields: dict[tuple[str, str], tuple[int, int]]
    constants: dict[str, int]


@pytest.fixture(scope="module")
def known() -> Layout:
    sizes: dict[str, int] = {}
    fields: dict[tuple[str, str], tuple[int, int]] = {}
    constants: dict[str, int] = {}
    current = ""
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+)\s+sizeof=0x([0-9A-F]+) \(\d+\)", line):
            current = match[1]
            sizes[current] = int(match[2], 16)
        elif match := re.fullmatch(r"\s+\+0x([0-9A-F]+) ([\w.]+)\s+size (\d+)", line):
            fields[current, match[2]] = (int(match[1], 16), int(match[3]))
        elif match := re.fullmatch(r"\s+(\w+)\s+0x([0-9A-F]+)", line):
            constants[match[1]] = int(match[2], 16)
        else:
            assert line in ("", "CONSTANTS"), f"a line of the table that nobody understands: {line!r}"
    return Layout(sizes, fields, constants)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def compile_probe(text: str, directory: Path, cache: Path, cross: Path = CROSS) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "probe.c"
    source.write_text(text, encoding="utf-8")
    return cross_compile(
        [source], "probe", directory, includes=[ROOT / "driver"], cross=cross, cache=cache
    ).image


def evaluate(expressions: list[str], includes: str, directory: Path, cache: Path) -> list[int]:
    """Values that the compiler gives to constant expressions, read out of the image that it made."""
    rows = ",\n".join(f"(unsigned long long)({expression})" for expression in expressions)
    image = compile_probe(
        f"{includes}\n"
        f"static const volatile unsigned long long Table[] = {{0x{MAGIC[0]:X}, 0x{MAGIC[1]:X},\n{rows}}};\n"
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        "{ (void)RegistryPath; return (NTSTATUS)Table[(ULONG_PTR)DriverObject % 8]; }\n",
        directory,
        cache,
    )
    data = image.read_bytes()
    start = data.index(struct.pack("<QQ", *MAGIC)) + 16
    return list(struct.unpack_from(f"<{len(expressions)}Q", data, start))


def test_the_table_is_complete(known: Layout) -> None:
    assert (len(known.sizes), len(known.fields), len(known.constants)) == (33, 251, 122)


def test_every_known_size_offset_and_constant_is_asserted_in_the_header(known: Layout) -> None:
    text = (CROSS / "fltkernel_layout.h").read_text(encoding="utf-8")
    sizes = re.findall(r"^LAYOUT_SIZE\((\w+), 0x([0-9A-F]+)\);$", text, re.MULTILINE)
    fields = re.findall(r"^LAYOUT_FIELD\((\w+), ([\w.]+), 0x([0-9A-F]+), (\d+)\);$", text, re.MULTILINE)
    constants = re.findall(r"^LAYOUT_VALUE\((\w+), 0x([0-9A-F]+)\);$", text, re.MULTILINE)

    assert {name: int(size, 16) for name, size in sizes} == known.sizes
    assert {(kind, name): (int(at, 16), int(size)) for kind, name, at, size in fields} == known.fields
    assert {name: int(value, 16) for name, value in constants} == known.constants


def test_the_layout_is_asserted_whenever_the_header_is_included() -> None:
    text = (CROSS / "fltkernel.h").read_text(encoding="utf-8")
    assert re.search(r'^#include "fltkernel_layout.h"$', text, re.MULTILINE)


def test_the_compiler_sees_the_known_sizes_offsets_and_constants(
    known: Layout, tmp_path: Path, cache: Path
) -> None:
    wanted: list[tuple[str, int]] = [(f"sizeof({name})", size) for name, size in known.sizes.items()]
    for (kind, field), (offset, size) in known.fields.items():
        wanted.append((f"__builtin_offsetof({kind}, {field})", offset))
        wanted.append((f"sizeof((({kind} *)0)->{field})", size))
    wanted += [(f"(unsigned int)({name})", value) for name, value in known.constants.items()]

    # The asserts are switched off, so that this is a second witness and not the first one again.
    seen = evaluate(
        [expression for expression, _ in wanted],
        "#define DOWNLINK_CROSS_FLTKERNEL_LAYOUT_H\n#include <fltkernel.h>",
        tmp_path,
        cache,
    )

    wrong = [
        (expression, value, got)
        for (expression, value), got in zip(wanted, seen, strict=True)
        if value != got
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "changed", "named"),
    [
        (
            "LAYOUT_SIZE(FLT_REGISTRATION, 0x70);",
            "LAYOUT_SIZE(FLT_REGISTRATION, 0x68);",
            "size of FLT_REGISTRATION",
        ),
        (
            "LAYOUT_FIELD(FLT_CALLBACK_DATA, Iopb, 0x10, 8);",
            "LAYOUT_FIELD(FLT_CALLBACK_DATA, Iopb, 0x18, 8);",
            "layout of FLT_CALLBACK_DATA.Iopb",
        ),
        (
            "LAYOUT_VALUE(FLT_PREOP_COMPLETE, 0x4);",
            "LAYOUT_VALUE(FLT_PREOP_COMPLETE, 0x5);",
            "value of FLT_PREOP_COMPLETE",
        ),
    ],
)
def test_a_wrong_number_stops_the_build(
    line: str, changed: str, named: str, tmp_path: Path, cache: Path
) -> None:
    cross = tmp_path / "cross"
    shutil.copytree(CROSS, cross)
    layout = cross / "fltkernel_layout.h"
    text = layout.read_text(encoding="utf-8")
    assert line in text
    layout.write_text(text.replace(line, changed), encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        compile_probe("#include <fltKernel.h>\n", tmp_path / "probe", cache, cross)

    assert named in caught.value.output


def test_every_declared_function_can_be_imported(tmp_path: Path, cache: Path) -> None:
    filter_manager = declared_functions(CROSS / "fltkernel_functions.h", r"\b(Flt[A-Z]\w*)\(")
    kernel = declared_functions(CROSS / "ntsupplement.h", r"NTAPI\s+(\w+)\(")
    assert exports_of(CROSS / "fltmgr.def") == filter_manager
    assert exports_of(CROSS / "ntoskrnl.def") == kernel
    table = ", ".join(f"(PVOID)(ULONG_PTR){name}" for name in sorted(filter_manager | kernel))

    image = compile_probe(
        "#include <fltKernel.h>\n"
        f"static PVOID volatile Table[] = {{{table}}};\n"
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        "{ (void)RegistryPath; return Table[(ULONG_PTR)DriverObject % 8] != NULL; }\n",
        tmp_path,
        cache,
    )

    imported = {
        (entry.dll.decode().lower(), symbol.name.decode())
        for entry in pefile.PE(str(image)).DIRECTORY_ENTRY_IMPORT
        for symbol in entry.imports
    }
    assert imported == {("fltmgr.sys", name) for name in filter_manager} | {
        ("ntoskrnl.exe", name) for name in kernel
    }


def declared_functions(header: Path, pattern: str) -> set[str]:
    text = header.read_text(encoding="utf-8")
    return {name for name in re.findall(pattern, text) if f"#define {name}" not in text}


def exports_of(definition: Path) -> set[str]:
    lines = definition.read_text(encoding="utf-8").splitlines()
    return {line for line in lines[lines.index("EXPORTS") + 1 :] if line}


@pytest.mark.parametrize("spelling", ["fltkernel.h", "fltKernel.h"])
def test_both_spellings_of_the_header_work_and_may_be_included_twice(
    spelling: str, tmp_path: Path, cache: Path
) -> None:
    image = compile_probe(
        f"#include <{spelling}>\n#include <fltkernel.h>\n#include <fltKernel.h>\n"
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        "{ (void)DriverObject; (void)RegistryPath; return STATUS_SUCCESS; }\n",
        tmp_path,
        cache,
    )
    assert image.is_file()


def test_the_wire_structures_lie_where_their_comments_say(tmp_path: Path, cache: Path) -> None:
    text = (ROOT / "driver" / "downlink_protocol.h").read_text(encoding="utf-8")
    wanted: list[tuple[str, int]] = []
    for body, name, size in re.findall(
        r"typedef struct \w+ \{(.*?)\} (\w+);\s*/\* 0x([0-9A-F]+) \*/", text, re.DOTALL
    ):
        wanted.append((f"sizeof({name})", int(size, 16)))
        for field, offset in re.findall(r"(\w+)(?:\[\d+\])?;\s*/\* 0x([0-9A-F]+)", body):
            wanted.append((f"__builtin_offsetof({name}, {field})", int(offset, 16)))

    seen = evaluate(
        [expression for expression, _ in wanted],
        '#include <fltKernel.h>\n#include "downlink_protocol.h"',
        tmp_path,
        cache,
    )

    assert len(wanted) == 4 + 10 + 6 + 15 + 9
    assert seen == [value for _, value in wanted]
