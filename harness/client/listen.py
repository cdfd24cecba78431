"""Runs in the guest for `./inv listen`: connects to the driver and prints what it reports as JSON, one object per line.

What to listen for comes as JSON in the environment variable DOWNLINK_LISTEN, because a command line of cmd.exe cannot
carry every path. The process ends when the driver is unloaded, or when the host ends it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final, Self, TextIO

from harness.client import binding as bindings
from harness.client import ntstatus
from harness.client.binding import Binding
from harness.client.errors import DisconnectedError, PortError
from harness.client.port import HEADER_BYTES, Port
from harness.client.protocol import (
    MASK_FILES,
    MESSAGE_BYTES_DEFAULT,
    PORT_NAME,
    Batch,
    Connect,
    ConnectFlag,
    Kind,
    ProtocolError,
    Record,
    RecordFlag,
    parse,
)

VARIABLE: Final = "DOWNLINK_LISTEN"

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "opened": Kind.FILE_OPENED,
        "written": Kind.FILE_WRITTEN,
        "size": Kind.FILE_SIZE_SET,
        "renamed": Kind.FILE_RENAMED,
        "linked": Kind.FILE_LINKED,
        "deleted": Kind.FILE_DELETED,
        "attributes": Kind.FILE_ATTRIBUTES_SET,
        "security": Kind.FILE_SECURITY_SET,
        "closed": Kind.FILE_CLOSED,
        "connected": Kind.CLIENT_CONNECTED,
        "disconnected": Kind.CLIENT_DISCONNECTED,
        "statistics": Kind.STATISTICS,
    }
)
"""The kinds of records by the words that people use for them."""

_WORDS: Final = MappingProxyType({kind: word for word, kind in KINDS.items()})

CONNECTING: Final = "connect"
"""`step` of an error event: the driver did not take the connection, or there is none."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to listen for.

    Attributes:
        port: name of the driver's communication port.
        event_mask: the kinds, as DOWNLINK_CONNECT.EventMask has them.
        path: only what lies at or below it, "D:\\\\dir" or "\\\\Device\\\\..."; empty for everything.
        failed: operations that failed, too.
        statistics_ms: interval of the statistics in milliseconds; 0 for none.
    """

    port: str = PORT_NAME
    event_mask: int = MASK_FILES
    path: str = ""
    failed: bool = False
    statistics_ms: int = 0

    def encode(self) -> str:
        """The value of the environment variable."""
        return json.dumps(asdict(self))

    @classmethod
    def decode(cls, text: str) -> Self:
        """The request out of the environment variable; an empty one asks for the default."""
        return cls(**json.loads(text or "{}"))


class Volumes:
    """Device names as people know them: "\\\\Device\\\\HarddiskVolume2\\\\a" is "D:\\\\a"."""

    def __init__(self, binding: Binding) -> None:
        self._binding = binding
        self._letters: dict[str, str] = {}

    def readable(self, path: str, volume: str) -> str:
        """The path with its drive letter, or as it is when the volume has none."""
        if not volume or not path.startswith(volume):
            return path
        if volume not in self._letters:
            # A volume that came later, or the first one at all; one without a letter is not asked for again.
            found = {known.device_name: known.dos_name or "" for known in self._binding.volumes()}
            self._letters |= found
            self._letters.setdefault(volume, "")
        letter = self._letters[volume]
        return letter + path[len(volume) :] if letter else path


def main() -> int:
    """Listen until the connection ends; the exit status is 1 when it could not be made."""
    out = sys.stdout
    try:
        listen(Request.decode(os.environ.get(VARIABLE, "")), bindings.current(), out)
    except _ListenError as error:
        _print(out, [{"event": "error", "step": error.step, "message": str(error), "code": error.code}])
        return 1
    return 0


def listen(request: Request, binding: Binding, out: TextIO) -> None:
    """Print events until the driver ends the connection."""
    prefix = _prefix(request.path, binding)
    flags = ConnectFlag.FAILED_OPERATIONS if request.failed else 0
    try:
        context = Connect(
            event_mask=request.event_mask,
            flags=flags,
            path_prefix=prefix,
            statistics_interval_ms=request.statistics_ms,
        ).encode()
        port = Port.connect(request.port, context)
    except PortError as error:
        raise _ListenError(str(error), CONNECTING, error.hresult) from error
    except ValueError as error:
        raise _ListenError(str(error), "path") from error
    with port:
        _print(out, [{"event": "listening", "process_id": os.getpid()}])
        volumes = Volumes(binding)
        try:
            while True:
                message = port.get_message(size=HEADER_BYTES + MESSAGE_BYTES_DEFAULT)
                _print(out, events(parse(message.data), prefix, volumes))
        except DisconnectedError:
            _print(out, [{"event": "ended", "reason": "the driver was unloaded"}])
        except (PortError, ProtocolError) as error:
            raise _ListenError(str(error), "receive", getattr(error, "hresult", 0)) from error


def events(batch: Batch, prefix: str, volumes: Volumes) -> Iterator[dict[str, Any]]:
    """What is printed for one message."""
    if batch.dropped_count:
        yield {
            "event": "dropped",
            "count": batch.dropped_count,
            "first": batch.first_dropped,
            "last": batch.last_dropped,
        }
    for record in batch.records:
        if _within(record, prefix):
            yield described(record, volumes)


def described(record: Record, volumes: Volumes) -> dict[str, Any]:
    """A record as a JSON object: names instead of numbers where there are names, paths with drive letters."""
    kind = _WORDS[record.kind] if isinstance(record.kind, Kind) else f"kind {record.kind}"
    event: dict[str, Any] = {
        "event": "record",
        "kind": kind,
        "sequence": record.sequence,
        "time": record.moment.isoformat(timespec="microseconds"),
        "process_id": record.process_id,
        "thread_id": record.thread_id,
        "status": record.status,
        "status_name": ntstatus.name(record.status),
        "flags": [flag.name for flag in RecordFlag if flag in record.flags],
        "detail": record.detail,
        "value": record.value,
        "path": volumes.readable(record.path, record.volume),
        "device_path": record.path,
        "volume": record.volume,
    }
    if RecordFlag.FILE_ID in record.flags:
        event["file_id"] = f"0x{int.from_bytes(record.file_id, 'little'):016X}"
    if record.second_path:
        event["second_path"] = volumes.readable(record.second_path, record.volume)
        event["second_device_path"] = record.second_path
    if record.statistics is not None:
        event["statistics"] = asdict(record.statistics)
    return event


class _ListenError(Exception):
    """Why listening did not begin or did not go on: at which step, and the HRESULT where there is one."""

    def __init__(self, message: str, step: str, code: int = 0) -> None:
        super().__init__(message)
        self.step = step
        self.code = code


def _prefix(path: str, binding: Binding) -> str:
    """The path as the driver reports it."""
    if not path or path.startswith("\\"):
        return path
    try:
        return binding.device_path(path)
    except (PortError, ValueError) as error:
        raise _ListenError(f"'{path}' cannot be watched: {error}", "path") from error


def _within(record: Record, prefix: str) -> bool:
    """False for "D:\\directory" when "D:\\dir" is watched: the driver compares characters, not names."""
    if not prefix or not record.path or RecordFlag.NO_PATH in record.flags:
        return True
    below = prefix.casefold()
    for path in (record.path.casefold(), record.second_path.casefold()):
        # The rest of a path that is below begins a name of its own; "D:\dir:stream" belongs to "D:\dir", too.
        if path.startswith(below) and path[len(below) : len(below) + 1] in ("", "\\", ":"):
            return True
    return False


def _print(out: TextIO, lines: Any) -> None:
    """Everything of one message with one flush; JSON in ASCII, so that no code page can change a name."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if text:
        out.write(text)
        out.flush()


if __name__ == "__main__":
    sys.exit(main())
