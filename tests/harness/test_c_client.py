"""The example client in C: compiles without a warning for both architectures and links with what Windows has.

A C runtime of mingw-w64 would take minutes to build the first time. The client is linked with import libraries instead,
made here from the names that it uses; start-up code is left out, for nobody runs the result.
"""

from __future__ import annotations

from pathlib import Path

import pefile
import pytest

from harness.toolchain.zig import default_cache
from harness.toolchain.zig_executable import Zig
from vm.deadline import Deadline
from vm.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "driver" / "clients" / "listen.c"

TARGETS = {
    "x64": ("x86_64-unknown-windows-gnu", "x86_64-windows-any", "i386:x86-64", 0x8664),
    "arm64": ("aarch64-unknown-windows-gnu", "aarch64-windows-any", "arm64", 0xAA64),
}
LIBRARIES = {
    "kernel32.dll": ("CloseHandle",),
    "ucrtbase.dll": (
        "__acrt_iob_func",
        "__stdio_common_vfwprintf",
        "_fileno",
        "_setmode",
        "fflush",
        "free",
        "malloc",
        "memcpy",
        "memset",
        "wcslen",
    ),
}


@pytest.fixture(scope="module")
def zig() -> Zig:
    return Zig.find(default_cache())


def compile_unit(zig: Zig, architecture: str, directory: Path, source: Path = CLIENT) -> Path:
    target, headers, _, _ = TARGETS[architecture]
    include = zig.library / "libc" / "include"
    system = (zig.library / "include", include / headers, include / "any-windows-any")
    made = directory / f"{source.stem}.obj"
    arguments = [
        "clang",
        f"--target={target}",
        "-std=c17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-O1",
        "-fms-extensions",
    ]
    arguments += [
        "-fno-stack-protector",
        "-nostdinc",
        "-D_UCRT=",
        "-D_WIN32_WINNT=0x0A00",
        "-I",
        str(ROOT / "driver"),
    ]
    arguments += [part for path in system for part in ("-isystem", str(path))]
    zig.run(
        [*arguments, "-c", str(source), "-o", str(made)],
        f"compile '{source.name}'",
        Deadline.after(seconds=60),
    )
    return made


def import_library(zig: Zig, architecture: str, definition: Path, directory: Path) -> Path:
    library = directory / f"{definition.stem}.lib"
    zig.run(
        ["dlltool", "-m", TARGETS[architecture][2], "-d", str(definition), "-l", str(library)],
        f"make an import library of '{definition.name}'",
        Deadline.after(seconds=60),
    )
    return library


@pytest.mark.parametrize("architecture", list(TARGETS))
def test_the_client_compiles_without_a_warning_and_links(zig: Zig, architecture: str, tmp_path: Path) -> None:
    libraries = [
        import_library(
            zig, architecture, zig.library / "libc" / "mingw" / "lib-common" / "fltlib.def", tmp_path
        )
    ]
    for name, exports in LIBRARIES.items():
        definition = tmp_path / f"{name.removesuffix('.dll')}.def"
        definition.write_text(f'LIBRARY "{name}"\nEXPORTS\n' + "\n".join(exports) + "\n", encoding="utf-8")
        libraries.append(import_library(zig, architecture, definition, tmp_path))
    # wprintf is an inline function of the Universal CRT; mingw-w64 has it in units of their own.
    runtime = zig.library / "libc" / "mingw" / "stdio"
    sources = (CLIENT, runtime / "ucrt_wprintf.c", runtime / "ucrt___local_stdio_printf_options.c")
    made = [compile_unit(zig, architecture, tmp_path, source) for source in sources]
    program = tmp_path / "listen.exe"

    zig.run(
        [
            "lld-link",
            "/subsystem:console",
            "/entry:wmain",
            "/nodefaultlib",
            "/wx",
            f"/out:{program}",
        ]
        + [str(part) for part in (*made, *libraries)],
        "link 'listen.exe'",
        Deadline.after(seconds=60),
    )

    image = pefile.PE(str(program))
    imported = {
        entry.dll.decode().lower(): {symbol.name.decode() for symbol in entry.imports}
        for entry in image.DIRECTORY_ENTRY_IMPORT
    }
    assert image.FILE_HEADER.Machine == TARGETS[architecture][3]
    # It connects and receives; there is nothing that it could send.
    assert imported["fltlib.dll"] == {"FilterConnectCommunicationPort", "FilterGetMessage"}
    assert imported["kernel32.dll"] == {"CloseHandle"}


def test_a_client_that_uses_what_the_protocol_does_not_have_does_not_compile(
    zig: Zig, tmp_path: Path
) -> None:
    changed = tmp_path / "listen.c"
    text = CLIENT.read_text(encoding="utf-8")
    assert "connect.EventMask" in text
    changed.write_text(text.replace("connect.EventMask", "connect.Mask"), encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        compile_unit(zig, "x64", tmp_path, changed)

    assert "no member named 'Mask'" in caught.value.output


def test_the_client_names_every_kind_of_file_event() -> None:
    header = (ROOT / "driver" / "downlink_protocol.h").read_text(encoding="utf-8")
    text = CLIENT.read_text(encoding="utf-8")
    kinds = [word for word in header.split() if word.startswith("DownlinkFile") and word.isidentifier()]

    assert len(kinds) >= 9
    for kind in kinds:
        assert f"case {kind}:" in text, kind
