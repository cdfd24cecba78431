"""`wevtutil`: queries of the event logs by XPath, what a log holds, export and clearing."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.drive import break_hard_link
from vm.emulated.guest.event_query import QueryError, parse_query
from vm.emulated.guest.events import LOGS, Event

_ERROR_INVALID_PARAMETER = 87
_ERROR_FILE_EXISTS = 80
_ERROR_EVT_INVALID_QUERY = 15001
_ERROR_EVT_CHANNEL_NOT_FOUND = 15007
_LEVELS = {1: "Critical", 2: "Error", 3: "Warning", 4: "Information"}
_RECORD_BYTES = 512


class _FailedError(Exception):
    """The verb fails with this Win32 code and sentence."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def wevtutil(call: Invocation) -> int:
    """`wevtutil el | gli LOG | qe LOG [/q:..] [/f:xml|text] [/c:n] [/rd:true] [/e:root] | epl LOG FILE | cl LOG`."""
    words = list(call.arguments)
    verb = _VERBS.get(words[0].casefold().lstrip("/-")) if words else None
    if verb is None:
        call.err("Invalid command.  Run 'wevtutil /?' for help.")
        return _ERROR_INVALID_PARAMETER
    options, plain = {}, []
    for word in words[1:]:
        if word[:1] in "/-" and ":" in word:
            name, _, value = word[1:].partition(":")
            options[_NAMES.get(name.casefold(), name.casefold())] = value
        elif word[:1] in "/-":
            options[_NAMES.get(word[1:].casefold(), word[1:].casefold())] = "true"
        else:
            plain.append(word)
    try:
        verb(call, plain, options)
    except _FailedError as error:
        call.err(error.text)
        return error.code
    return 0


def _list(call: Invocation, words: list[str], options: Mapping[str, str]) -> None:
    for name in LOGS:
        call.out(name)


def _information(call: Invocation, words: list[str], options: Mapping[str, str]) -> None:
    events = call.guest.events.read(_log(call, words))
    created = _time(call.guest.events.created)
    written = _time(events[-1].time) if events else created
    call.out(f"creationTime: {created}\nlastAccessTime: {written}\nlastWriteTime: {written}")
    size = 69632 + len(events) * _RECORD_BYTES
    call.out(f"fileSize: {size}\nattributes: 32\nnumberOfLogRecords: {len(events)}")
    # An empty log has no oldest record, and the line is not there.
    if events:
        call.out(f"oldestRecordNumber: {events[0].record}")


def _query(call: Invocation, words: list[str], options: Mapping[str, str]) -> None:
    shape = options.get("format", "xml").casefold()
    if shape not in ("xml", "text", "renderedxml"):
        raise _FailedError(_ERROR_INVALID_PARAMETER, "The parameter is incorrect.")
    events = _selected(call, words, options)
    if options.get("reversedirection", "false").casefold() == "true":
        events.reverse()
    count = options.get("count")
    if count is not None:
        if not count.isdecimal() or int(count) == 0:
            raise _FailedError(
                _ERROR_INVALID_PARAMETER, f"Invalid option value {count}. The parameter is incorrect."
            )
        events = events[: int(count)]
    element = options.get("element", "")
    if element and shape != "text":
        call.out(f"<{element}>")
    for index, event in enumerate(events):
        if shape == "text":
            _text(call, index, event)
        else:
            call.out(event.xml())
    if element and shape != "text":
        call.out(f"</{element}>")


def _export(call: Invocation, words: list[str], options: Mapping[str, str]) -> None:
    if len(words) != 2:
        raise _FailedError(
            _ERROR_INVALID_PARAMETER, "Too few arguments are specified. The parameter is incorrect."
        )
    target = call.guest.drive.host_path(words[1], directory=call.session.directory)
    if target.exists() and options.get("overwrite", "false").casefold() != "true":
        raise _FailedError(_ERROR_FILE_EXISTS, "Failed to export log. The file exists.")
    lines = [event.xml() for event in _selected(call, words[:1], options)]
    # The binary format is of no use here: who reads it looks for the same XML.
    data = "\r\n".join(
        ["<?xml version='1.0' encoding='utf-8'?>", "<Events>", *lines, "</Events>", ""]
    ).encode()
    break_hard_link(target)
    call.guest.drive.charge(len(data))
    target.write_bytes(data)


def _clear(call: Invocation, words: list[str], options: Mapping[str, str]) -> None:
    call.guest.events.clear(_log(call, words))


_VERBS: Mapping[str, Callable[[Invocation, list[str], Mapping[str, str]], None]] = {
    "el": _list,
    "enum-logs": _list,
    "gli": _information,
    "get-log-info": _information,
    "qe": _query,
    "query-events": _query,
    "epl": _export,
    "export-log": _export,
    "cl": _clear,
    "clear-log": _clear,
}
_NAMES = {
    "q": "query",
    "f": "format",
    "c": "count",
    "rd": "reversedirection",
    "e": "element",
    "ow": "overwrite",
}


def _log(call: Invocation, words: list[str]) -> str:
    if not words:
        raise _FailedError(
            _ERROR_INVALID_PARAMETER, "Too few arguments are specified. The parameter is incorrect."
        )
    name = call.guest.events.name_of(words[0])
    if name is None:
        raise _FailedError(
            _ERROR_EVT_CHANNEL_NOT_FOUND,
            f"Failed to read events from log {words[0]}. The specified channel could not be found.",
        )
    return name


def _selected(call: Invocation, words: list[str], options: Mapping[str, str]) -> list[Event]:
    events = call.guest.events.read(_log(call, words))
    try:
        wanted = parse_query(options.get("query", "*"))
    except QueryError as error:
        raise _FailedError(
            _ERROR_EVT_INVALID_QUERY, "Failed to read events. The specified query is invalid."
        ) from error
    return [event for event in events if wanted(event)]


def _text(call: Invocation, index: int, event: Event) -> None:
    call.out(f"Event[{index}]")
    call.out(f"  Log Name: {event.log}\n  Source: {event.provider}\n  Date: {_time(event.time)}")
    call.out(f"  Event ID: {event.id}\n  Task: N/A\n  Level: {_LEVELS[event.level]}\n  Opcode: Info")
    call.out(f"  Keyword: Classic\n  User: N/A\n  User Name: N/A\n  Computer: {event.computer}")
    call.out(f"  Description: \n{event.message}\n")


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S.%f}Z"
