"""What `./inv listen` shows: one line per event, in columns and colours, or the events as JSON; and the last line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

from harness.client.listen import KINDS
from harness.client.protocol import Kind, Reason, SetFlag, SizeKind
from harness.console import Console

Event = Mapping[str, Any]

_DISPOSITIONS = MappingProxyType({0: "superseded", 1: "opened", 2: "created", 3: "overwritten"})
"""FILE_SUPERSEDED and the others: the Information of a create (wdm.h)."""

_SECURITY = MappingProxyType({1: "owner", 2: "group", 4: "access list", 8: "audit list", 16: "label"})
"""SECURITY_INFORMATION (winnt.h)."""

_ATTRIBUTES = MappingProxyType(
    {
        0x1: "read-only",
        0x2: "hidden",
        0x4: "system",
        0x10: "directory",
        0x20: "archive",
        0x80: "normal",
        0x100: "temporary",
        0x200: "sparse",
        0x400: "reparse point",
        0x800: "compressed",
        0x1000: "offline",
        0x2000: "not indexed",
        0x4000: "encrypted",
    }
)
"""FILE_ATTRIBUTE_* (winnt.h)."""

_STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "opened": ("dim",),
        "closed": ("dim",),
        "created": ("green",),
        "linked": ("green",),
        "deleted": ("red",),
        "overwritten": ("yellow",),
        "superseded": ("yellow",),
        "renamed": ("bold",),
    }
)
_WORD_CHARACTERS = 12
_WORDS = MappingProxyType({kind: word for word, kind in KINDS.items()})


class ListenView:
    """Shows events as they come and counts them.

    Args:
        console: where to; colours only where that has them.
        as_json: one JSON object per line instead of text.
    """

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console = console
        self._json = as_json
        self._counts: Counter[str] = Counter()
        self._dropped = 0

    def start(self, service: str, machine: str) -> None:
        """The connection is made."""
        if self._json:
            self._console.line(json.dumps({"event": "listening", "driver": service, "machine": machine}))
        else:
            self._console.line(f"listening to '{service}' on the machine '{machine}'; Ctrl-C ends it")

    def event(self, event: Event) -> None:
        """Show a record, or that records were dropped."""
        if event["event"] == "record":
            self._counts[event["kind"]] += 1
        else:
            self._dropped += event["count"]
        self._console.line(json.dumps(event) if self._json else self._text(event))

    def end(self, seconds: float, reason: str | None = None) -> None:
        """The last line: what came in how many seconds, and why it ended if that was not the user's wish."""
        events = sum(self._counts.values())
        if self._json:
            summary: dict[str, Any] = {
                "event": "summary",
                "events": events,
                "kinds": dict(self._counts),
                "dropped": self._dropped,
                "seconds": round(seconds, 3),
            }
            self._console.line(json.dumps(summary | ({"reason": reason} if reason else {})))
            return
        if self._console.terminal and not reason:
            self._console.line()  # below the ^C that the terminal shows
        kinds = ", ".join(f"{count} {kind}" for kind, count in self._counts.most_common())
        dropped = f"{self._dropped} dropped"
        if self._dropped:
            dropped = self._console.style(dropped, "yellow", "bold")
        if reason:
            self._console.line(self._console.style(f"ended: {reason}", "yellow", "bold"))
        self._console.line(
            f"{_counted(events, 'event')} in {seconds:.1f} s{f' ({kinds})' if kinds else ''}, {dropped}"
        )

    def _text(self, event: Event) -> str:
        if event["event"] == "dropped":
            first, last = event["first"], event["last"]
            which = f"number {first}" if first == last else f"between numbers {first} and {last}"
            text = f"{_counted(event['count'], 'event')} dropped, {which}: the queue was full"
            return self._console.style(text, "yellow", "bold")
        word, subject, details = _told(event)
        if event["status"] >= 0x80000000:
            details = (*details, self._console.style(event["status_name"], "red"))
        time = datetime.fromisoformat(event["time"]).strftime("%H:%M:%S.%f")[:-3]
        styles = _STYLES.get(word, ())
        shown = word.ljust(_WORD_CHARACTERS)
        return "  ".join(
            part
            for part in (
                self._console.style(time, "dim"),
                self._console.style(f"{event['process_id']:>6}", "dim"),
                self._console.style(shown, *styles) if styles else shown,
                subject,
                ", ".join(details),
            )
            if part
        )


def printable(text: str) -> str:
    """Names as they are, but nothing that moves a terminal's cursor, and no half of a surrogate pair."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text
    )


def _told(event: Event) -> tuple[str, str, tuple[str, ...]]:
    """The verb, the object, and the details of a record."""
    word, value, detail = event["kind"], event["value"], event["detail"]
    kind = KINDS.get(word)
    path = _path(event)
    match kind:
        case Kind.FILE_OPENED:
            return _DISPOSITIONS.get(detail, f"opened ({detail})"), path, ()
        case Kind.FILE_WRITTEN:
            return word, path, (_counted(value, "byte"),)
        case Kind.FILE_SIZE_SET:
            return (
                "allocated" if detail == SizeKind.ALLOCATION else "size set",
                path,
                (_counted(value, "byte"),),
            )
        case Kind.FILE_RENAMED | Kind.FILE_LINKED:
            return word, f"{path} -> {printable(event.get('second_path', '?'))}", ()
        case Kind.FILE_DELETED:
            return word, path, ()
        case Kind.FILE_ATTRIBUTES_SET:
            return word, path, (*_bits(value, _ATTRIBUTES), *_times(detail))
        case Kind.FILE_SECURITY_SET:
            return word, path, _bits(value, _SECURITY)
        case Kind.FILE_CLOSED:
            changes = tuple(_WORDS[kind] for kind in Kind if detail & kind.bit)
            return word, path, (*changes, *((_counted(value, "byte"),) if value else ()))
        case Kind.CLIENT_CONNECTED:
            return word, f"client {value}", (f"{detail} now",)
        case Kind.CLIENT_DISCONNECTED:
            why = "ended by the driver" if detail == Reason.DRIVER else "closed by the client"
            return word, f"client {value}", (why,)
        case Kind.STATISTICS:
            return word, "", _statistics(event["statistics"])
    return word, path, (f"value {value}", f"detail {detail}")


def _path(event: Event) -> str:
    flags = event["flags"]
    path = printable(event["path"])
    if "NO_PATH" in flags:
        number = f" {event['file_id']}" if "file_id" in event else ""
        return f"{path or '?'} (name unknown{', file' + number if number else ''})"
    if "PATH_TRUNCATED" in flags:
        return path + "..."
    return path + "\\" if "DIRECTORY" in flags and not path.endswith("\\") else path


def _statistics(counters: Mapping[str, int]) -> tuple[str, ...]:
    return (
        f"{counters['sent']} sent in {_counted(counters['messages'], 'message')}",
        f"{counters['pending_records']} pending",
        f"{counters['dropped']} dropped",
        f"queue {_kilobytes(counters['used_bytes'])} of {_kilobytes(counters['queue_bytes'])},"
        f" at most {_kilobytes(counters['high_water_bytes'])}",
    )


def _bits(value: int, names: Mapping[int, str]) -> tuple[str, ...]:
    known = tuple(name for bit, name in names.items() if value & bit)
    rest = value & ~sum(names)
    return (*known, *((f"0x{rest:X}",) if rest else ()))


def _times(detail: int) -> tuple[str, ...]:
    return tuple(
        flag.name.lower().replace("_", " ")
        for flag in SetFlag
        if flag.name and flag & detail and flag is not SetFlag.ATTRIBUTES
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _kilobytes(count: int) -> str:
    return f"{count / 1024:.1f} KiB"
