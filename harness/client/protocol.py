"""The wire protocol of `driver/downlink_protocol.h`: build a connection context, read messages and records.

A test compiles the C header and compares every number here with it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum, IntFlag
from typing import Final

PORT_NAME: Final = "\\DownlinkPort"
VERSION: Final = 1
CONNECT_MAGIC: Final = 0x4B4E4C44

QUEUE_BYTES_MINIMUM: Final = 0x1000
QUEUE_BYTES_DEFAULT: Final = 0x40000
QUEUE_BYTES_MAXIMUM: Final = 0x400000
MESSAGE_BYTES_MINIMUM: Final = 0x400
MESSAGE_BYTES_DEFAULT: Final = 0x10000
MESSAGE_BYTES_MAXIMUM: Final = 0x40000
PATH_BYTES_MAXIMUM: Final = 0xFFFE
STATISTICS_INTERVAL_MINIMUM: Final = 100
STATISTICS_INTERVAL_MAXIMUM: Final = 86_400_000
"""Milliseconds."""

CONNECT_LAYOUT: Final = struct.Struct("<IHHHHIIIII")
"""Magic, Size, MinimumVersion, MaximumVersion, PathPrefixLength, EventMask, Flags, QueueBytes, MessageBytes,
StatisticsIntervalMs."""

MESSAGE_LAYOUT: Final = struct.Struct("<IHHQQQ")
"""Size, Version, RecordCount, DroppedCount, FirstDropped, LastDropped."""

RECORD_LAYOUT: Final = struct.Struct("<IHHQqIIiIQ16sHHHH")
"""Size, Kind, Flags, Sequence, Time, ProcessId, ThreadId, Status, Detail, Value, FileId, PathLength,
SecondPathLength, VolumeLength, Reserved."""

STATISTICS_LAYOUT: Final = struct.Struct("<QQQQQIIII")
"""Queued, Sent, Dropped, Messages, Bytes, PendingRecords, QueueBytes, UsedBytes, HighWaterBytes."""


class Kind(IntEnum):
    """DOWNLINK_KIND."""

    FILE_OPENED = 1
    FILE_WRITTEN = 2
    FILE_SIZE_SET = 3
    FILE_RENAMED = 4
    FILE_LINKED = 5
    FILE_DELETED = 6
    FILE_ATTRIBUTES_SET = 7
    FILE_SECURITY_SET = 8
    FILE_CLOSED = 9
    CLIENT_CONNECTED = 16
    CLIENT_DISCONNECTED = 17
    STATISTICS = 18

    @property
    def bit(self) -> int:
        """The bit of DOWNLINK_CONNECT.EventMask that selects this kind."""
        return 1 << self


MASK_FILES: Final = 0x000003FE
MASK_LIFECYCLE: Final = 0x00030000
MASK_STATISTICS: Final = 0x00040000
MASK_ALL: Final = 0x000703FE


class SizeKind(IntEnum):
    """DOWNLINK_SIZE_*: which size was set (`detail` of FILE_SIZE_SET)."""

    END_OF_FILE = 1
    ALLOCATION = 2


class SetFlag(IntFlag):
    """DOWNLINK_SET_*: what was set (`detail` of FILE_ATTRIBUTES_SET)."""

    CREATION_TIME = 1
    LAST_ACCESS_TIME = 2
    LAST_WRITE_TIME = 4
    CHANGE_TIME = 8
    ATTRIBUTES = 16


class Reason(IntEnum):
    """DOWNLINK_REASON: why a connection ended."""

    HANDLE_CLOSED = 1
    DRIVER = 2


class ConnectFlag(IntFlag):
    """Flags of DOWNLINK_CONNECT."""

    FAILED_OPERATIONS = 1
    INCLUDE_OWN_PROCESS = 2
    DROP_OLDEST = 4


class RecordFlag(IntFlag):
    """Flags of DOWNLINK_RECORD."""

    DIRECTORY = 1
    NO_PATH = 2
    PATH_TRUNCATED = 4
    FILE_ID = 8


class ProtocolError(ValueError):
    """Bytes that are not what the protocol allows; the message says at which offset."""


@dataclass(frozen=True, slots=True)
class Connect:
    """DOWNLINK_CONNECT: what a client asks for. Zero means the driver's default for the three sizes."""

    event_mask: int = MASK_ALL
    flags: int = 0
    path_prefix: str = ""
    queue_bytes: int = 0
    message_bytes: int = 0
    statistics_interval_ms: int = 0
    minimum_version: int = VERSION
    maximum_version: int = VERSION

    def encode(self) -> bytes:
        """The connection context.

        Raises:
            ValueError: the prefix does not fit into the 16-bit size.
        """
        prefix = self.path_prefix.encode("utf-16-le", "surrogatepass")
        size = CONNECT_LAYOUT.size + len(prefix)
        if size > 0xFFFF:
            raise ValueError(f"a path prefix of {len(prefix)} bytes does not fit into a connection context")
        head = CONNECT_LAYOUT.pack(
            CONNECT_MAGIC,
            size,
            self.minimum_version,
            self.maximum_version,
            len(prefix),
            self.event_mask,
            self.flags,
            self.queue_bytes,
            self.message_bytes,
            self.statistics_interval_ms,
        )
        return head + prefix


@dataclass(frozen=True, slots=True)
class Statistics:
    """DOWNLINK_STATISTICS: counters since the connection was made; sizes in bytes.

    `sent + dropped + pending_records` is always one less than the record's sequence number.
    """

    queued: int
    sent: int
    dropped: int
    messages: int
    message_bytes: int
    pending_records: int
    queue_bytes: int
    used_bytes: int
    high_water_bytes: int


@dataclass(frozen=True, slots=True)
class Record:
    """DOWNLINK_RECORD. `kind` is the bare number when this library does not know it."""

    kind: Kind | int
    flags: RecordFlag
    sequence: int
    time: int
    """UTC, in units of 100 ns since 1601-01-01."""
    process_id: int
    thread_id: int
    status: int
    """NTSTATUS of the operation, unsigned 32 bit."""
    detail: int
    value: int
    file_id: bytes
    path: str
    second_path: str
    volume: str
    """The part at the start of `path` that names the volume's device."""
    size: int
    """Bytes of the record on the wire."""
    statistics: Statistics | None = None
    """The counters of a STATISTICS record, None in every other."""

    @property
    def moment(self) -> datetime:
        """`time` as an aware datetime, cut to microseconds."""
        return datetime(1601, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.time // 10)


@dataclass(frozen=True, slots=True)
class Batch:
    """DOWNLINK_MESSAGE and its records."""

    records: tuple[Record, ...]
    dropped_count: int
    first_dropped: int
    last_dropped: int
    version: int = VERSION


def parse(data: bytes) -> Batch:
    """A message of the driver (without FILTER_MESSAGE_HEADER).

    Raises:
        ProtocolError: sizes, counts or reserved fields contradict each other. Nothing else is ever raised,
            whatever the bytes are.
    """
    if len(data) < MESSAGE_LAYOUT.size:
        raise ProtocolError(
            f"a message of {len(data)} bytes is shorter than its head of {MESSAGE_LAYOUT.size}"
        )
    size, version, count, dropped, first, last = MESSAGE_LAYOUT.unpack_from(data)
    if size != len(data):
        raise ProtocolError(f"the message states {size} bytes, {len(data)} came")
    if version != VERSION:
        raise ProtocolError(f"the message has version {version}, this library understands {VERSION}")
    if dropped == 0 and (first or last):
        raise ProtocolError(f"nothing was dropped, but the range is {first} to {last}")
    if dropped and not (1 <= first <= last and dropped <= last - first + 1):
        raise ProtocolError(f"{dropped} records dropped do not fit the range {first} to {last}")
    records = []
    offset = MESSAGE_LAYOUT.size
    for _ in range(count):
        record = parse_record(data, offset)
        records.append(record)
        offset += record.size
    if offset != len(data):
        raise ProtocolError(f"{len(data) - offset} bytes follow the last of {count} records")
    return Batch(tuple(records), dropped, first, last, version)


def parse_padded(data: bytes) -> Batch:
    """A message at the start of a buffer that is longer, as a synchronous request leaves it; raises as `parse` does."""
    if len(data) < MESSAGE_LAYOUT.size:
        return parse(data)
    (size,) = struct.unpack_from("<I", data)
    return parse(data[:size])


def parse_record(data: bytes, offset: int = 0) -> Record:
    """One record at `offset`.

    Raises:
        ProtocolError: it does not fit into the data, or contradicts itself.
    """
    if len(data) - offset < RECORD_LAYOUT.size:
        raise ProtocolError(f"the record at offset {offset} is cut short")
    (
        size,
        kind,
        flags,
        sequence,
        time,
        process_id,
        thread_id,
        status,
        detail,
        value,
        file_id,
        path_length,
        second_length,
        volume_length,
        reserved,
    ) = RECORD_LAYOUT.unpack_from(data, offset)
    paths_end = RECORD_LAYOUT.size + path_length + second_length
    if kind == Kind.STATISTICS:
        if path_length or second_length:
            raise ProtocolError(f"the statistics record at offset {offset} has a path")
        paths_end += STATISTICS_LAYOUT.size
    if size % 8 or size > len(data) - offset or not paths_end <= size < paths_end + 8:
        raise ProtocolError(
            f"the record at offset {offset} states {size} bytes for paths that end at {paths_end}"
        )
    if path_length % 2 or second_length % 2 or volume_length % 2 or volume_length > path_length:
        raise ProtocolError(f"the record at offset {offset} has a path of an impossible length")
    if reserved or any(data[offset + paths_end : offset + size]):
        raise ProtocolError(f"the record at offset {offset} has padding that is not zero")
    start = offset + RECORD_LAYOUT.size
    counters = STATISTICS_LAYOUT.unpack_from(data, start) if kind == Kind.STATISTICS else None
    path = data[start : start + path_length]
    second = data[start + path_length : start + path_length + second_length]
    return Record(
        kind=Kind(kind) if kind in _KINDS else kind,
        flags=RecordFlag(flags),
        sequence=sequence,
        time=time,
        process_id=process_id,
        thread_id=thread_id,
        status=status & 0xFFFFFFFF,
        detail=detail,
        value=value,
        file_id=file_id,
        path=_text(path),
        second_path=_text(second),
        volume=_text(path[:volume_length]),
        size=size,
        statistics=None if counters is None else Statistics(*counters),
    )


_KINDS: Final = frozenset(int(kind) for kind in Kind)


def _text(data: bytes) -> str:
    # NTFS names are any 16-bit units, unpaired surrogates included: they must survive, and encode back the same.
    return data.decode("utf-16-le", "surrogatepass")
