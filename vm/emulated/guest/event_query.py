"""Event queries: the part of XPath 1.0 that the event log takes, as far as selecting by System fields and data goes.

`*`, `*[System[EventRecordID > 5]]`, `*[System[Provider[@Name='X'] and (EventID=41 or EventID=1001)]]`,
`*[System[TimeCreated[@SystemTime>='2026-11-21T00:00:00.000Z']]]`, `*[EventData[Data[@Name='param1']='x']]`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from vm.emulated.guest.events import Event

Predicate = Callable[[Event], bool]
_TOKEN = re.compile(
    r"\s*(?:(?P<text>'[^']*'|\"[^\"]*\")|(?P<number>\d+)|(?P<word>@?[A-Za-z]\w*)|(?P<mark>!=|<=|>=|[\[\]()=<>*/.]))"
)
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBERS: dict[str, Callable[[Event], int]] = {
    "EventRecordID": lambda event: event.record,
    "EventID": lambda event: event.id,
    "Level": lambda event: event.level,
}
_TEXTS: dict[str, Callable[[Event], str]] = {
    "Computer": lambda event: event.computer,
    "Channel": lambda event: event.log,
}
_ATTRIBUTES: dict[tuple[str, str], Callable[[Event], str]] = {
    ("Provider", "@Name"): lambda event: event.provider,
    ("TimeCreated", "@SystemTime"): lambda event: event.system_time,
}


class QueryError(Exception):
    """The query is not one that the event log takes (or not one that this module knows)."""


def parse_query(text: str) -> Predicate:
    """A query as a function of events; QueryError if it cannot be read."""
    parser = _Parser(text.strip() or "*")
    result = parser.query()
    parser.end()
    return result


def _moment(text: str) -> str:
    """A time in UTC with all seven digits of its fraction, so that texts compare as times do."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return f"{whole}.{fraction:0<7}"


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise QueryError(f"'{text[position:]}' cannot be read")
            self._tokens.append(match[0].strip())
            position = match.end()
        self._position = 0

    def end(self) -> None:
        if self._next is not None:
            raise QueryError(f"'{self._next}' is left over")

    def query(self) -> Predicate:
        if self._next == "Event":
            self._take("Event")
        else:
            self._take("*")
        if self._next is None:
            return lambda event: True
        return self._bracket(self._section)

    @property
    def _next(self) -> str | None:
        return self._tokens[self._position] if self._position < len(self._tokens) else None

    def _take(self, wanted: str | None = None) -> str:
        token = self._next
        if token is None or (wanted is not None and token != wanted):
            raise QueryError(f"'{wanted or 'more'}' is missing")
        self._position += 1
        return token

    def _bracket(self, inner: Callable[[], Predicate]) -> Predicate:
        self._take("[")
        result = self._or(inner)
        self._take("]")
        return result

    def _or(self, inner: Callable[[], Predicate]) -> Predicate:
        parts = [self._and(inner)]
        while self._next == "or":
            self._take()
            parts.append(self._and(inner))
        return lambda event: any(part(event) for part in parts)

    def _and(self, inner: Callable[[], Predicate]) -> Predicate:
        parts = [self._factor(inner)]
        while self._next == "and":
            self._take()
            parts.append(self._factor(inner))
        return lambda event: all(part(event) for part in parts)

    def _factor(self, inner: Callable[[], Predicate]) -> Predicate:
        if self._next == "(":
            self._take()
            result = self._or(inner)
            self._take(")")
            return result
        return inner()

    def _section(self) -> Predicate:
        name = self._take()
        if name == "System":
            if self._next == "/":
                self._take()
                return self._system()
            return self._bracket(self._system)
        if name == "EventData":
            return self._bracket(self._data)
        raise QueryError(f"'{name}' is no part of an event")

    def _system(self) -> Predicate:
        name = self._take()
        if name in _NUMBERS:
            return self._compared(_NUMBERS[name], int)
        if name in _TEXTS:
            return self._compared(_TEXTS[name], str)
        if name in ("Provider", "TimeCreated"):
            return self._bracket(lambda: self._attribute(name))
        raise QueryError(f"'{name}' is no field of System")

    def _attribute(self, element: str) -> Predicate:
        name = self._take()
        read = _ATTRIBUTES.get((element, name))
        if read is None:
            raise QueryError(f"'{element}' has no '{name}'")
        return self._compared(read, str, _moment if name == "@SystemTime" else lambda text: text)

    def _data(self) -> Predicate:
        self._take("Data")
        wanted: str | None = None
        if self._next == "[":
            self._take()
            self._take("@Name")
            self._take("=")
            wanted = self._string()
            self._take("]")
        self._take("=")
        value = self._string()
        return lambda event: any(text == value and wanted in (None, name) for name, text in event.data)

    def _compared(
        self, read: Callable[[Event], Any], kind: type, normal: Callable[[Any], Any] = lambda value: value
    ) -> Predicate:
        comparison = _COMPARISONS.get(self._take())
        if comparison is None:
            raise QueryError("a comparison is missing")
        value: Any = self._string() if kind is str else self._number()
        return lambda event: comparison(normal(read(event)), normal(value))

    def _string(self) -> str:
        token = self._take()
        if token[:1] not in "'\"":
            raise QueryError(f"'{token}' is no text")
        return token[1:-1]

    def _number(self) -> int:
        token = self._take().strip("'\"")
        if not token.isdecimal():
            raise QueryError(f"'{token}' is no number")
        return int(token)
