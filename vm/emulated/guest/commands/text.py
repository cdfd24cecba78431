"""Tools that read text: findstr, find, more, sort, and chcp, which says how text is encoded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from vm.emulated.guest.commands.files import matching
from vm.emulated.guest.commands.session import Invocation, codec_of
from vm.emulated.guest.drive import ERROR_FILE_NOT_FOUND, WindowsPathError

_CHUNK_BYTES = 65536


def chcp(call: Invocation) -> int:
    """`chcp [number]`."""
    if not call.arguments:
        call.out(f"Active code page: {call.session.code_page}")
        return 0
    try:
        number = int(call.arguments[0])
        codec_of(number)
    except (ValueError, LookupError):
        call.out("Invalid code page")
        return 1
    call.session.code_page = number
    call.out(f"Active code page: {number}")
    return 0


def findstr(call: Invocation) -> int:
    """`findstr [/i /v /n /b /e /x /l /r /m /c:text] strings [files]`: matching lines, byte for byte; 1 if none."""
    flags: set[str] = set()
    patterns: list[str] = []
    files: list[str] = []
    for word in call.arguments:
        if word[:3].casefold() in ("/c:", "/g:", "/f:"):
            if word[1].casefold() != "c":
                call.err(f"FINDSTR: {word[:2]} is not available on the emulated machine")
                return 2
            patterns.append(word[3:])
            flags.add("c")
        elif re.fullmatch(r"/[a-zA-Z]+", word):
            flags |= set(word[1:].casefold())
        elif not patterns:
            patterns = word.split()
        else:
            files.append(word)
    if not patterns or flags - set("ivnbexlrmsc"):
        call.err("FINDSTR: Bad command line")
        return 2
    literal = "l" in flags or ("c" in flags and "r" not in flags)
    expression = re.compile(
        b"|".join(b"(?:" + _anchored(pattern, literal, flags, call) + b")" for pattern in patterns),
        re.IGNORECASE if "i" in flags else 0,
    )
    hits = 0
    wanted = "v" not in flags
    for name, batches in _batched_inputs(call, files):
        prefix = call.session.encode(f"{name}:") if name and len(files) > 1 else b""
        number = 0
        for batch in batches:
            shown: list[bytes] = []
            for line in batch:
                number += 1
                if (expression.search(line.rstrip(b"\r\n")) is not None) == wanted:
                    shown += [prefix, b"%d:" % number if "n" in flags else b"", line]
                    if not line.endswith(b"\n"):
                        shown.append(b"\r\n")
            if shown and "m" in flags:
                hits += 1
                call.out(name)
                break
            if shown:
                hits += 1
                call.stdout.write(b"".join(shown))
    return 0 if hits else 1


def find(call: Invocation) -> int:
    """`find [/v /c /n /i] "string" [files]`; 1 if no line has it."""
    flags = {word[1:].casefold() for word in call.arguments if re.fullmatch(r"/[a-zA-Z]+", word)}
    plain = [word for word in call.arguments if not re.fullmatch(r"/[a-zA-Z]+", word)]
    if not plain or flags - {"v", "c", "n", "i"}:
        call.err("FIND: Parameter format not correct")
        return 2
    wanted = call.session.encode(plain[0])
    hits = 0
    for name, lines in _inputs(call, plain[1:]):
        count = 0
        if name and "c" not in flags:
            call.out(f"\n---------- {name.upper()}")
        for number, line in enumerate(lines, 1):
            present = wanted.lower() in line.lower() if "i" in flags else wanted in line
            if present != ("v" in flags):
                count += 1
                if "c" not in flags:
                    shown = (b"[%d]" % number if "n" in flags else b"") + line
                    call.stdout.write(shown if shown.endswith(b"\n") else shown + b"\r\n")
        if "c" in flags:
            call.out(f"\n---------- {name.upper()}: {count}" if name else str(count))
        hits += count
    return 0 if hits else 1


def more(call: Invocation) -> int:
    """`more [files]`: passes text through; line ends become CR LF."""
    files = [word for word in call.arguments if not re.match(r"[/+]", word)]
    for _, lines in _inputs(call, files):
        for line in lines:
            call.stdout.write(line.rstrip(b"\r\n") + b"\r\n")
    return 0


def sort(call: Invocation) -> int:
    """`sort [/r] [file]`."""
    files = [word for word in call.arguments if not word.startswith("/")]
    lines = [call.session.decode(line).rstrip("\r\n") for _, part in _inputs(call, files) for line in part]
    reverse = "/r" in {word.casefold() for word in call.arguments}
    for line in sorted(lines, key=str.casefold, reverse=reverse):
        call.out(line)
    return 0


def _inputs(call: Invocation, files: list[str]) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and lines (with their ends) of each file; standard input without a name if there are none."""
    for name, batches in _batched_inputs(call, files):
        yield name, chain.from_iterable(batches)


def _batched_inputs(call: Invocation, files: list[str]) -> Iterator[tuple[str, Iterator[list[bytes]]]]:
    """As `_inputs`, with the lines in groups of what was read at once."""
    if not files:
        yield "", _lines(call.stdin.read)
        return
    for pattern in files:
        found = [path for path in matching(pattern, call.session) if path.is_file()]
        if not found:
            raise WindowsPathError(ERROR_FILE_NOT_FOUND, pattern)
        for path in found:
            yield (path.name if len(found) > 1 else pattern), _file_lines(path)


def _lines(read: Callable[[int], bytes]) -> Iterator[list[bytes]]:
    rest = b""
    while data := read(_CHUNK_BYTES):
        *whole, rest = (rest + data).split(b"\n")
        if whole:
            yield [line + b"\n" for line in whole]
    if rest:
        yield [rest]


def _file_lines(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        yield from _lines(file.read)


def _anchored(pattern: str, literal: bool, flags: set[str], call: Invocation) -> bytes:
    text = re.escape(call.session.encode(pattern)) if literal else _expression(call.session.encode(pattern))
    before = b"^" if flags & {"b", "x"} else b""
    after = b"$" if flags & {"e", "x"} else b""
    return before + text + after


def _expression(pattern: bytes) -> bytes:
    """findstr's small regular expressions: . * ^ $ [class] \\< \\> and \\x for a literal x."""
    parts: list[bytes] = []
    position = 0
    while position < len(pattern):
        character = pattern[position : position + 1]
        if character == b"\\":
            following = pattern[position + 1 : position + 2]
            parts.append(rb"\b" if following in (b"<", b">") else re.escape(following or b"\\"))
            position += 2
            continue
        if character == b"[" and b"]" in pattern[position + 2 :]:
            end = pattern.index(b"]", position + 2)
            inner = pattern[position + 1 : end].replace(b"\\", b"\\\\").replace(b"[", b"\\[")
            parts.append(b"[" + inner + b"]")
            position = end + 1
            continue
        if character == b"*" and not parts:
            parts.append(re.escape(character))
        else:
            parts.append(character if character in b".*^$" else re.escape(character))
        position += 1
    return b"".join(parts)
