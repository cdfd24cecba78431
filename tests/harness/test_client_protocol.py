"""The Python side of the wire protocol against the C header, compiled, and against malformed bytes."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.client import protocol
from harness.client.protocol import (
    CONNECT_LAYOUT,
    MESSAGE_LAYOUT,
    RECORD_LAYOUT,
    STATISTICS_LAYOUT,
    Connect,
    ConnectFlag,
    Kind,
    ProtocolError,
    Reason,
    RecordFlag,
    SetFlag,
    SizeKind,
    Statistics,
    parse,
    parse_padded,
)

HEADER = Path(__file__).resolve().parents[2] / "driver" / "downlink_protocol.h"

CONSTANTS = {
    "DOWNLINK_PROTOCOL_VERSION": protocol.VERSION,
    "DOWNLINK_CONNECT_MAGIC": protocol.CONNECT_MAGIC,
    "DOWNLINK_MASK_FILES": protocol.MASK_FILES,
    "DOWNLINK_MASK_LIFECYCLE": protocol.MASK_LIFECYCLE,
    "DOWNLINK_MASK_STATISTICS": protocol.MASK_STATISTICS,
    "DOWNLINK_MASK_ALL": protocol.MASK_ALL,
    **{f"DOWNLINK_SIZE_{kind.name}": kind for kind in SizeKind},
    **{f"DOWNLINK_SET_{flag.name}": flag for flag in SetFlag},
    "DOWNLINK_STATISTICS_INTERVAL_MINIMUM": protocol.STATISTICS_INTERVAL_MINIMUM,
    "DOWNLINK_STATISTICS_INTERVAL_MAXIMUM": protocol.STATISTICS_INTERVAL_MAXIMUM,
    "DOWNLINK_CONNECT_FAILED_OPERATIONS": ConnectFlag.FAILED_OPERATIONS,
    "DOWNLINK_CONNECT_INCLUDE_OWN_PROCESS": ConnectFlag.INCLUDE_OWN_PROCESS,
    "DOWNLINK_CONNECT_DROP_OLDEST": ConnectFlag.DROP_OLDEST,
    "DOWNLINK_CONNECT_VALID_FLAGS": sum(ConnectFlag),
    "DOWNLINK_QUEUE_BYTES_MINIMUM": protocol.QUEUE_BYTES_MINIMUM,
    "DOWNLINK_QUEUE_BYTES_DEFAULT": protocol.QUEUE_BYTES_DEFAULT,
    "DOWNLINK_QUEUE_BYTES_MAXIMUM": protocol.QUEUE_BYTES_MAXIMUM,
    "DOWNLINK_MESSAGE_BYTES_MINIMUM": protocol.MESSAGE_BYTES_MINIMUM,
    "DOWNLINK_MESSAGE_BYTES_DEFAULT": protocol.MESSAGE_BYTES_DEFAULT,
    "DOWNLINK_MESSAGE_BYTES_MAXIMUM": protocol.MESSAGE_BYTES_MAXIMUM,
    "DOWNLINK_PATH_BYTES_MAXIMUM": protocol.PATH_BYTES_MAXIMUM,
    "DOWNLINK_RECORD_DIRECTORY": RecordFlag.DIRECTORY,
    "DOWNLINK_RECORD_NO_PATH": RecordFlag.NO_PATH,
    "DOWNLINK_RECORD_PATH_TRUNCATED": RecordFlag.PATH_TRUNCATED,
    "DOWNLINK_RECORD_FILE_ID": RecordFlag.FILE_ID,
}
ENUMERATORS = {
    **{"Downlink" + kind.name.title().replace("_", ""): kind for kind in Kind},
    **{"DownlinkReason" + reason.name.title().replace("_", ""): reason for reason in Reason},
}
STRUCTURES = {
    "DOWNLINK_CONNECT": CONNECT_LAYOUT,
    "DOWNLINK_MESSAGE": MESSAGE_LAYOUT,
    "DOWNLINK_RECORD": RECORD_LAYOUT,
    "DOWNLINK_STATISTICS": STATISTICS_LAYOUT,
}
NOT_NUMBERS = {"DOWNLINK_PROTOCOL_H", "DOWNLINK_PORT_NAME", "DOWNLINK_MASK"}


def declared_fields(text: str, structure: str) -> list[str]:
    body = re.search(rf"typedef struct _{structure} {{(.*?)}} {structure};", text, re.S)
    assert body is not None
    return re.findall(r"^\s+[\w ]+? (\w+)(?:\[\d+\])?;", body.group(1), re.M)


@pytest.fixture(scope="module")
def header() -> str:
    return HEADER.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compiled(header: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every constant, enumerator, size and offset of the header, as a compiler for x64 Windows sees it."""
    names = set(re.findall(r"^#define (DOWNLINK_\w+)", header, re.M)) - NOT_NUMBERS
    enumerators = re.findall(r"^\s+(Downlink\w+) =", header, re.M)
    expressions = {name: name for name in (*names, *enumerators)}
    for structure in STRUCTURES:
        expressions[f"sizeof.{structure}"] = f"sizeof({structure})"
        for field in declared_fields(header, structure):
            expressions[f"{structure}.{field}"] = f"__builtin_offsetof({structure}, {field})"
            expressions[f"{structure}.{field}.size"] = f"sizeof((({structure} *)0)->{field})"
    keys = list(expressions)
    lines = [f'#include "{HEADER.as_posix()}"']
    lines += [
        f"const unsigned long long probe_{i} = (unsigned long long)({expressions[k]});"
        for i, k in enumerate(keys)
    ]
    source = tmp_path_factory.mktemp("probe") / "probe.c"
    source.write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "ziglang", "clang", "-target", "x86_64-w64-windows-gnu"]
    result = subprocess.run(
        [*command, "-S", "-O0", "-o", "-", str(source)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = re.findall(r"^probe_(\d+):\n\s+\.quad\s+(\d+)", result.stdout, re.M)
    values = {keys[int(i)]: int(value) for i, value in found}
    assert len(values) == len(keys)
    return values


def test_every_constant_of_the_header_is_known_with_its_value(compiled: dict[str, int]) -> None:
    in_header = {
        name: value for name, value in compiled.items() if name.startswith("DOWNLINK_") and "." not in name
    }
    assert in_header == {name: int(value) for name, value in CONSTANTS.items()}


def test_every_enumerator_of_the_header_is_known_with_its_value(compiled: dict[str, int]) -> None:
    in_header = {name: value for name, value in compiled.items() if name.startswith("Downlink")}
    assert in_header == {name: int(value) for name, value in ENUMERATORS.items()}


def test_the_mask_of_a_kind_is_its_bit() -> None:
    assert Kind.FILE_OPENED.bit == 2
    assert sum(kind.bit for kind in Kind) == protocol.MASK_ALL


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_field_has_the_place_and_the_size_that_the_compiler_gives_it(
    structure: str, compiled: dict[str, int], header: str
) -> None:
    layout = STRUCTURES[structure]
    codes = re.findall(r"\d*[A-Za-z]", layout.format.lstrip("<"))
    offsets, position = [], 0
    for code in codes:
        size = struct.calcsize("<" + code)
        offsets.append((position, size))
        position += size
    fields = declared_fields(header, structure)
    assert [(compiled[f"{structure}.{f}"], compiled[f"{structure}.{f}.size"]) for f in fields] == offsets
    assert compiled[f"sizeof.{structure}"] == layout.size


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_documented_order_of_fields_is_that_of_the_header(structure: str, header: str) -> None:
    source = Path(protocol.__file__).read_text(encoding="utf-8")
    name = structure.removeprefix("DOWNLINK_") + "_LAYOUT"
    documented = re.search(rf'{name}: Final = .*?\n"""(.*?)"""', source, re.S)
    assert documented is not None
    assert re.findall(r"\w+", documented.group(1)) == declared_fields(header, structure)


def test_the_port_s_name_is_that_of_the_header(header: str) -> None:
    assert f'L"{protocol.PORT_NAME}"'.replace("\\", "\\\\") in header


def record(
    *,
    kind: int = 1,
    path: bytes = b"",
    second: bytes = b"",
    sequence: int = 1,
    volume: int = 0,
    pad: int | None = None,
) -> bytes:
    used = 72 + len(path) + len(second)
    size = used + (-used % 8 if pad is None else pad)
    head = RECORD_LAYOUT.pack(
        size,
        kind,
        0,
        sequence,
        2**62,
        4,
        8,
        0xC0000022 - 2**32,
        2,
        2**63,
        bytes(range(16)),
        len(path),
        len(second),
        volume,
        0,
    )
    return head + path + second + bytes(size - used)


def message(*records: bytes, count: int | None = None, dropped: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    body = b"".join(records)
    head = MESSAGE_LAYOUT.pack(32 + len(body), 1, len(records) if count is None else count, *dropped)
    return head + body


def test_a_message_is_read_field_by_field() -> None:
    path, second = "\\Device\\V\\ä".encode("utf-16-le"), "\\b".encode("utf-16-le")
    batch = parse(message(record(kind=4, path=path, second=second, sequence=7, volume=18), dropped=(2, 3, 6)))
    (read,) = batch.records
    assert (batch.dropped_count, batch.first_dropped, batch.last_dropped) == (2, 3, 6)
    assert (read.kind, read.sequence, read.path, read.second_path) == (
        Kind.FILE_RENAMED,
        7,
        "\\Device\\V\\ä",
        "\\b",
    )
    assert (read.volume, read.status, read.value) == ("\\Device\\V", 0xC0000022, 2**63)
    assert (read.process_id, read.thread_id, read.detail, read.file_id) == (4, 8, 2, bytes(range(16)))


def test_a_time_is_that_of_windows_epoch() -> None:
    unix = record()[:16] + struct.pack("<q", 116444736000000000) + record()[24:]
    assert parse(message(unix)).records[0].moment.isoformat() == "1970-01-01T00:00:00+00:00"


def statistics(path: bytes = b"", counters: int = 56) -> bytes:
    head = RECORD_LAYOUT.pack(
        72 + counters + len(path), 18, 0, 9, 0, 0, 0, 0, 0, 0, bytes(16), len(path), 0, 0, 0
    )
    return head + STATISTICS_LAYOUT.pack(*range(1, 10))[:counters] + path


def test_a_statistics_record_carries_its_counters_instead_of_paths() -> None:
    (read,) = parse(message(statistics())).records
    assert (read.kind, read.path) == (Kind.STATISTICS, "")
    assert read.statistics == Statistics(*range(1, 10))
    assert parse(message(record())).records[0].statistics is None


def test_a_kind_that_is_not_known_is_kept_as_its_number() -> None:
    assert parse(message(record(kind=99))).records[0].kind == 99


def test_a_name_with_an_unpaired_surrogate_survives() -> None:
    (read,) = parse(message(record(path=b"\x00\xd8a\x00"))).records
    assert read.path.encode("utf-16-le", "surrogatepass") == b"\x00\xd8a\x00"


def test_a_padded_buffer_is_read_up_to_the_message_s_own_size() -> None:
    data = message(record())
    assert parse_padded(data + bytes(1000)) == parse(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(message()[:31], id="head cut"),
        pytest.param(message(record())[:-1], id="record cut"),
        pytest.param(message(record()) + b"\0", id="a byte more"),
        pytest.param(message(record(), count=2), id="a record less than counted"),
        pytest.param(message(record(), record(), count=1), id="a record more than counted"),
        pytest.param(message(record(pad=8)), id="padding of eight"),
        pytest.param(message(record(path=b"a")), id="path of odd length"),
        pytest.param(message(record(volume=2)), id="volume longer than the path"),
        pytest.param(message(dropped=(1, 0, 0)), id="dropped without range"),
        pytest.param(message(dropped=(0, 1, 2)), id="range without dropped"),
        pytest.param(message(dropped=(3, 1, 2)), id="more dropped than the range holds"),
        pytest.param(message(dropped=(1, 2, 1)), id="range the wrong way round"),
        pytest.param(message(record(path=b"ab"))[:-1] + b"x", id="padding that is not zero"),
        pytest.param(struct.pack("<IHHQQQ", 32, 2, 0, 0, 0, 0), id="another version"),
        pytest.param(message(b"\0" * 72), id="record of size zero"),
        pytest.param(message(statistics(counters=48)), id="statistics cut"),
        pytest.param(message(statistics(path=b"12345678")), id="statistics with a path"),
    ],
)
def test_what_contradicts_itself_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(data)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        parse(data)
    except ProtocolError:
        return


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_good_message_with_one_byte_changed_is_read_or_refused_and_nothing_else(
    data: st.DataObject,
) -> None:
    good = bytearray(message(record(path=b"a\0b\0", volume=2), record(sequence=2)))
    good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(good))
    except ProtocolError:
        return


@given(
    st.text(st.characters(codec="utf-16-le"), max_size=50),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
def test_a_connection_context_states_its_own_size_and_that_of_its_prefix(
    prefix: str, mask: int, queue: int
) -> None:
    data = Connect(event_mask=mask, path_prefix=prefix, queue_bytes=queue).encode()
    fields = CONNECT_LAYOUT.unpack_from(data)
    assert fields[:2] == (0x4B4E4C44, len(data))
    assert data[CONNECT_LAYOUT.size :].decode("utf-16-le") == prefix
    assert (fields[4], fields[5], fields[7]) == (len(data) - CONNECT_LAYOUT.size, mask, queue)


def test_a_prefix_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Connect(path_prefix="x" * 40000).encode()
