"""File names as NTFS sees them: comparison, legality, stream syntax, DOS wildcards. Pure text, no files."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import STATUS_OBJECT_NAME_INVALID

NAME_CHARACTERS_MAXIMUM = 255
"""UTF-16 units in one component."""
PATH_BYTES_MAXIMUM = 0xFFFE
"""What a UNICODE_STRING can hold."""

_ILLEGAL = frozenset('"*/<>?|\\:') | {chr(code) for code in range(32)}
_DATA_TYPES = frozenset(("", "$DATA"))
_INDEX_TYPE = "$INDEX_ALLOCATION"

DOS_STAR = "<"
DOS_QUESTION = ">"
DOS_DOT = '"'


@lru_cache(maxsize=4096)
def fold(name: str) -> str:
    """The upper-case form that names are compared by: character by character, as the volume's table does."""
    return "".join(upper if len(upper := c.upper()) == 1 else c for c in name)


def utf16_units(text: str) -> int:
    """Length in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def check_name(name: str) -> None:
    """Raise `StatusError` if `name` cannot be one component of a path."""
    if not name or name in (".", "..") or not _ILLEGAL.isdisjoint(name):
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    if utf16_units(name) > NAME_CHARACTERS_MAXIMUM:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path inside a volume, taken apart."""

    components: tuple[str, ...]
    stream: str = ""
    """Name of the alternate stream, empty for the unnamed one."""
    directory_syntax: bool = False
    """The path ends in a backslash or names $INDEX_ALLOCATION: only a directory will do."""


def parse_path(path: str) -> FilePath:
    """Take a path inside a volume ("\\dir\\name:stream:$DATA") apart; the empty path is the volume root.

    Raises:
        StatusError: STATUS_OBJECT_NAME_INVALID.
    """
    if path in ("", "\\"):
        return FilePath((), directory_syntax=True)
    if not path.startswith("\\"):
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    trailing = path.endswith("\\")
    components = path[1 : len(path) - trailing].split("\\")
    last, *stream_parts = components[-1].split(":")
    stream, is_index = _stream_of(stream_parts)
    if trailing and stream_parts:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    components[-1] = last
    if last or len(components) > 1 or not stream_parts:
        for component in components:
            check_name(component)
    return FilePath(
        () if components == [""] else tuple(components), stream, directory_syntax=trailing or is_index
    )


def _stream_of(parts: list[str]) -> tuple[str, bool]:
    """(stream name, names a directory's index) from what follows the colons."""
    if not parts:
        return "", False
    if len(parts) > 2 or (len(parts) == 1 and not parts[0]):
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    name = parts[0]
    kind = fold(parts[1]) if len(parts) == 2 else ""
    if len(parts) == 2 and not kind:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    if kind == _INDEX_TYPE and fold(name) in ("", "$I30"):
        return "", True
    if kind not in _DATA_TYPES or (name and utf16_units(name) > NAME_CHARACTERS_MAXIMUM):
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    if "/" in name or "\0" in name:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    return name, False


def has_wildcards(text: str) -> bool:
    """FsRtlDoesNameContainWildCards."""
    return not _WILD.isdisjoint(text)


_WILD = frozenset("*?" + DOS_STAR + DOS_QUESTION + DOS_DOT)


def matches(expression: str, name: str, *, ignore_case: bool = True) -> bool:
    """FsRtlIsNameInExpression: `*`, `?` and the DOS forms `<` (star up to the last dot), `>` (question mark that may
    match nothing at a dot or the end), `"` (dot, or nothing at the end)."""
    if expression == "*":
        return True
    if ignore_case:
        expression, name = fold(expression), fold(name)
    last_dot = name.rfind(".")
    states = _closure({0}, expression, at_end=not name, next_is_dot=name.startswith("."))
    for index, character in enumerate(name):
        reached: set[int] = set()
        for state in states:
            if state < len(expression):
                _step(reached, expression[state], state, character, index, last_dot)
        following = name[index + 1 : index + 2]
        states = _closure(reached, expression, at_end=not following, next_is_dot=following == ".")
        if not states:
            return False
    return len(expression) in states


def _step(reached: set[int], symbol: str, state: int, character: str, index: int, last_dot: int) -> None:
    """Add the states that consuming `character` leads to from `state`."""
    if symbol == "*":
        reached.add(state)
    elif symbol == DOS_STAR:
        # It swallows everything up to the last dot.
        if character != "." or index < last_dot:
            reached.add(state)
    elif symbol == "?":
        reached.add(state + 1)
    elif symbol == DOS_QUESTION:
        if character != ".":
            reached.add(state + 1)
    elif symbol == DOS_DOT:
        if character == ".":
            reached.add(state + 1)
    elif symbol == character:
        reached.add(state + 1)


def _closure(states: set[int], expression: str, *, at_end: bool, next_is_dot: bool) -> set[int]:
    """All states reachable without consuming a character."""
    found = set(states)
    pending = list(states)
    while pending:
        state = pending.pop()
        if state >= len(expression):
            continue
        symbol = expression[state]
        empty = (
            symbol in ("*", DOS_STAR)
            or (symbol == DOS_QUESTION and (at_end or next_is_dot))
            or (symbol == DOS_DOT and at_end)
        )
        if empty and state + 1 not in found:
            found.add(state + 1)
            pending.append(state + 1)
    return found
