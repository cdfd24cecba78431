"""docs/driver.md says what is true: its bytes are those of the header and of the parser, its tables are complete, its
client in Python runs against the emulated machine."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from harness import builds, config, verbs
from harness.client.protocol import MASK_FILES, Connect, ConnectFlag, Kind, RecordFlag, parse
from harness.config import MachineConfig
from harness.console import Console
from harness.toolchain import cross_compile
from vm.inf.parser import parse as parse_inf

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "driver"
DOCUMENT = ROOT / "docs" / "driver.md"
HEADER = (DRIVER / "downlink_protocol.h").read_text(encoding="utf-8")

PATH = "\\Device\\HarddiskVolume3\\a.txt"
PREFIX = "\\Device\\HarddiskVolume3"
TIME = 134090208000000000
MAGIC = b"BYTESOFTHEWIRE!\0"

SUITE = r"""
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path

from harness.client import files

CLIENT = Path(__file__).with_name("client.py")
LIBRARY = Path(files.__file__).parents[2]


def test_the_client_of_the_document_prints_what_happens():
    with files.scratch_directory() as scratch:
        process = subprocess.Popen(
            [sys.executable, "-u", str(CLIENT), scratch.device("")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
            env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        )
        lines = queue.Queue()
        reader = threading.Thread(target=lambda: [lines.put(line.rstrip()) for line in process.stdout], daemon=True)
        reader.start()
        try:
            assert lines.get(timeout=20) == "listening"
            files.create(scratch / "a", b"12345")
            files.rename(scratch / "a", scratch / "b")
            files.delete(scratch / "b")
            seen = []
            while not (seen and "FILE_DELETED" in seen[-1]):
                seen.append(lines.get(timeout=20))
        finally:
            process.kill()
            process.wait(20)
        text = "\n".join(seen)
        assert "FILE_OPENED" in text and "FILE_WRITTEN" in text, text
        assert any("FILE_RENAMED" in line and line.endswith("-> " + scratch.device("b")) for line in seen), text
"""


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


def block(document: str, language: str, after: str) -> str:
    """The first fenced block of that language behind a heading."""
    start = document.index(f"\n## {after}\n")
    match = re.search(rf"^```{language}\n(.*?)^```$", document[start:], re.DOTALL | re.MULTILINE)
    assert match, f"there is no block of {language} under '{after}'"
    return match[1]


def dumped(text: str) -> bytes:
    """The bytes of a dump whose lines are offset, bytes in hexadecimal, two blanks, explanation."""
    data = b""
    for line in text.splitlines():
        offset, rest = re.fullmatch(r"([0-9A-F]{2})  (.*)", line).groups()  # type: ignore[union-attr]
        assert int(offset, 16) == len(data), line
        data += bytes.fromhex(re.split(r" {2,}", rest)[0])
    return data


def compiled(structure: str, initialisers: str, size: int, directory: Path) -> bytes:
    """What the C compiler makes of the header's structures with these values."""
    source = directory / "probe.c"
    source.write_text(
        '#include <fltKernel.h>\n#include "downlink_protocol.h"\n'
        f"struct WIRE {{ char Magic[16]; {structure} }};\n"
        f'const volatile struct WIRE Wire = {{ "{MAGIC[:-1].decode()}", {initialisers} }};\n'
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        "{ (void)RegistryPath; return Wire.Magic[(ULONG_PTR)DriverObject % 16]; }\n",
        encoding="utf-8",
    )
    image = cross_compile([source], "probe", directory / "out", includes=[DRIVER]).image.read_bytes()
    start = image.index(MAGIC) + len(MAGIC)
    return image[start : start + size]


def units(text: str) -> str:
    return ", ".join(str(unit) for unit in struct.unpack(f"<{len(text)}H", text.encode("utf-16-le")))


def test_the_context_in_the_document_is_what_parser_and_header_make(document: str, tmp_path: Path) -> None:
    data = dumped(block(document, "text", "Connecting"))

    assert (
        data
        == Connect(
            event_mask=MASK_FILES, flags=ConnectFlag.DROP_OLDEST, path_prefix=PREFIX, queue_bytes=0x10000
        ).encode()
    )
    assert data == compiled(
        f"DOWNLINK_CONNECT Connect; unsigned short Prefix[{len(PREFIX)}];",
        "{ .Magic = DOWNLINK_CONNECT_MAGIC, .Size = sizeof(DOWNLINK_CONNECT) + sizeof(Wire.Prefix),"
        " .MinimumVersion = 1, .MaximumVersion = DOWNLINK_PROTOCOL_VERSION, .PathPrefixLength = sizeof(Wire.Prefix),"
        " .EventMask = DOWNLINK_MASK_FILES, .Flags = DOWNLINK_CONNECT_DROP_OLDEST, .QueueBytes = 0x10000 },"
        f" {{ {units(PREFIX)} }}",
        len(data),
        tmp_path,
    )


def test_the_message_in_the_document_is_what_parser_and_header_make(document: str, tmp_path: Path) -> None:
    data = dumped(block(document, "text", "Messages"))

    batch = parse(data)
    [record] = batch.records
    assert (batch.dropped_count, batch.first_dropped, batch.last_dropped) == (3, 5, 7)
    assert (record.kind, record.sequence, record.time) == (Kind.FILE_WRITTEN, 8, TIME)
    assert (record.process_id, record.thread_id, record.value) == (4242, 4711, 5)
    assert (record.flags, record.file_id[:8]) == (RecordFlag.FILE_ID, struct.pack("<Q", 0x0001000000000123))
    assert (record.path, record.volume, record.moment.isoformat()) == (
        PATH,
        PREFIX,
        "2025-12-01T00:00:00+00:00",
    )
    padding = 8 - len(PATH) * 2 % 8
    assert data == compiled(
        f"DOWNLINK_MESSAGE Message; DOWNLINK_RECORD Record; unsigned short Path[{len(PATH)}]; char Padding[{padding}];",
        f"{{ .Size = {len(data)}, .Version = 1, .RecordCount = 1, .DroppedCount = 3, .FirstDropped = 5,"
        f" .LastDropped = 7 }}, {{ .Size = {len(data) - 32}, .Kind = DownlinkFileWritten,"
        f" .Flags = DOWNLINK_RECORD_FILE_ID, .Sequence = 8, .Time = {TIME}, .ProcessId = 4242, .ThreadId = 4711,"
        f" .Value = 5, .FileId = {{ 0x23, 0x01, 0, 0, 0, 0, 0x01 }}, .PathLength = sizeof(Wire.Path),"
        f" .VolumeLength = {len(PREFIX) * 2} }}, {{ {units(PATH)} }}, {{ 0 }}",
        len(data),
        tmp_path,
    )


def test_every_kind_flag_and_detail_of_the_header_is_explained(document: str) -> None:
    names = set(re.findall(r"^    (Downlink\w+) = \d+", HEADER, re.MULTILINE))
    names |= set(re.findall(r"^#define (DOWNLINK_(?:CONNECT|RECORD|SIZE|SET)_\w+) ", HEADER, re.MULTILINE))
    names -= {"DOWNLINK_CONNECT_MAGIC", "DOWNLINK_CONNECT_VALID_FLAGS"}

    assert len(names) >= 20
    missing = {name for name in names if f"`{name}`" not in document and f"`{short(name)}`" not in document}
    assert missing == set(), "explain them in docs/driver.md"


def short(name: str) -> str:
    """As the tables write it: without the prefix that all have."""
    return re.sub(r"^(Downlink|DOWNLINK_[A-Z]+_)", "", name)


def test_every_bound_of_the_header_is_told_with_its_number(document: str) -> None:
    rows = re.findall(
        r"^#define (DOWNLINK_(?:QUEUE|MESSAGE)_BYTES_\w+) (0x[0-9A-F]+)UL", HEADER, re.MULTILINE
    )

    assert len(rows) == 6
    for name, value in rows:
        number = int(value, 16)
        shown = f"{number // 1024} KiB" if number < 1 << 20 else f"{number >> 20} MiB"
        line = next(
            line for line in document.splitlines() if line.startswith("|") and short_bound(name) in line
        )
        assert shown in line, (name, line)


def short_bound(name: str) -> str:
    return "`QueueBytes`" if "_QUEUE_" in name else "`MessageBytes`"


def test_every_registry_value_that_the_inf_writes_or_the_driver_reads_is_explained(document: str) -> None:
    inf = parse_inf((DRIVER / "downlink.inf").read_text(encoding="utf-8"))
    names = {
        entry.text(2)
        for _, entry in inf.entries()
        if entry.text(0).upper() == "HKR" and len(entry.fields) > 2
    }
    for source in (DRIVER / "src").glob("*.c"):
        text = source.read_text(encoding="utf-8")
        if "ZwQueryValueKey" in text or "RtlQueryRegistryValues" in text:
            names |= set(re.findall(r'L"([A-Z]\w+)"', text))

    assert {"SupportedFeatures", "DefaultInstance", "Altitude", "Flags"} <= names
    assert {name for name in names if f"`{name}`" not in document} == set(), "explain them in docs/driver.md"


def test_the_files_and_anchors_that_the_document_links_to_exist(document: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", line[3:]).lower().replace(" ", "-")
        for line in document.splitlines()
        if line.startswith("## ")
    }
    for target in re.findall(r"\]\(([^)]+)\)", document):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif not target.startswith("https://"):
            assert (DOCUMENT.parent / target).is_file(), target
    assert "docs/driver.md" in (DRIVER / "README.md").read_text(encoding="utf-8")


def test_the_diagrams_are_mermaid_with_balanced_braces(document: str) -> None:
    diagrams = re.findall(r"^```mermaid\n(.*?)^```$", document, re.DOTALL | re.MULTILINE)

    assert len(diagrams) >= 1
    for diagram in diagrams:
        assert diagram.splitlines()[0] in ("stateDiagram-v2", "sequenceDiagram", "flowchart LR")
        assert diagram.count("{") == diagram.count("}")


def test_the_client_in_python_runs_against_the_emulated_machine(document: str, tmp_path: Path) -> None:
    suites = tmp_path / "suites"
    suites.mkdir()
    (suites / "client.py").write_text(block(document, "python", "A client in Python"), encoding="utf-8")
    (suites / "test_client.py").write_text(SUITE, encoding="utf-8")
    settings = config.load(ROOT)
    driver = replace(settings.driver("downlink"), suites=suites)
    machine = MachineConfig("driver-docs", settings.machine("emulated").kind, {})
    settings = replace(
        settings,
        drivers=MappingProxyType({"downlink": driver}),
        machines=MappingProxyType({"driver-docs": machine}),
        default_driver="downlink",
        default_machine="driver-docs",
        runs=replace(settings.runs, directory=tmp_path / "runs"),
    )
    out = io.StringIO()

    status = verbs.test(
        settings,
        verbs.Choices(),
        builds.prepare(settings, None, None, None),
        Console(out, io.StringIO(), color=False),
    )

    assert status == 0, out.getvalue()
    assert "1 passed" in out.getvalue()


def test_every_number_of_the_settings_is_that_of_the_driver(document: str) -> None:
    source = (DRIVER / "src" / "settings.c").read_text(encoding="utf-8")
    numbers = re.findall(r'{L"(\w+)", (\w+), (\w+), (\w+)}', source)

    assert len(numbers) >= 4
    for name, default, lowest, highest in numbers:
        row = next(line for line in document.splitlines() if line.startswith(f"| `{name}` "))
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[3] == default, name
        if highest.isdigit():
            assert cells[4] == f"{lowest} to {highest}", name


def test_the_readme_lists_every_source_of_the_driver() -> None:
    listed = re.findall(r"`src/(\w+\.c)`", (DRIVER / "README.md").read_text(encoding="utf-8"))

    assert sorted(listed) == sorted(path.name for path in (DRIVER / "src").glob("*.c"))
