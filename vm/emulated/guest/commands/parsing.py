"""What cmd.exe makes of a command line: variables, quotes, carets, operators, redirections, `if` and groups.

Rules as observed of cmd.exe /C (command-line mode, not batch files): an undefined %VAR% stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

_VARIABLE = re.compile(r"%([^%:]+)(?::(?:~(-?\d*)(?:,(-?\d+))?|(\*?[^=%]+)=([^%]*)))?%")
_IF = re.compile(r"if(?=[\s/(])\s*(?P<fold>/i\s+)?(?P<negated>not\s+)?", re.IGNORECASE)
_WORD = r'(?:"[^"]*"|[^\s()"])+'
_CONDITIONS = (
    ("exist", re.compile(rf"exist\s+(?P<a>{_WORD})\s*", re.IGNORECASE)),
    ("errorlevel", re.compile(r"errorlevel\s+(?P<a>-?\d+)\s*", re.IGNORECASE)),
    ("defined", re.compile(rf"defined\s+(?P<a>{_WORD})\s*", re.IGNORECASE)),
    ("==", re.compile(r'(?P<a>(?:"[^"]*"|[^\s="])*)\s*==\s*(?P<b>(?:"[^"]*"|[^\s()"])*)\s*')),
)
_ELSE = re.compile(r"\s*else(?=[\s(])\s*", re.IGNORECASE)


class CommandSyntaxError(Exception):
    """cmd.exe would refuse the line; `args[0]` is its message."""


class Operator(Enum):
    """What stands between two commands."""

    ALWAYS = "&"
    ON_SUCCESS = "&&"
    ON_FAILURE = "||"


@dataclass(frozen=True, slots=True)
class Redirection:
    """`handle` (0, 1, 2) goes to a file, or to where `duplicate` goes."""

    handle: int
    target: str | None
    append: bool = False
    duplicate: int | None = None


@dataclass(frozen=True, slots=True)
class Simple:
    """One command: its text with quotes and trailing blanks (`echo` shows them), without carets and redirections."""

    text: str
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Commands in parentheses."""

    body: Node
    redirections: tuple[Redirection, ...] = ()


@dataclass(frozen=True, slots=True)
class Pipeline:
    """`a | b | c`."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """`left operator right`."""

    left: Node
    operator: Operator
    right: Node


@dataclass(frozen=True, slots=True)
class If:
    """`if [/i] [not] kind a [b] (then) else (otherwise)`; kind is exist, errorlevel, defined or ==."""

    kind: str
    first: str
    second: str
    negated: bool
    fold: bool
    then: Node
    otherwise: Node | None


Node = Simple | Group | Pipeline | Chain | If


def expand(line: str, variable: Callable[[str], str | None]) -> str:
    """Replace %NAME%, %NAME:~start,length% and %NAME:old=new%; `variable` answers None for undefined names."""

    parts: list[str] = []
    position = 0
    while True:
        start = line.find("%", position)
        if start < 0:
            return "".join([*parts, line[position:]])
        parts.append(line[position:start])
        match = _VARIABLE.match(line, start)
        value = variable(match[1]) if match else None
        if match is None or value is None:
            # The sign stays, and the next one may begin a variable again.
            parts.append("%")
            position = start + 1
            continue
        parts.append(_modified(value, match))
        position = match.end()


def _modified(value: str, match: re.Match[str]) -> str:
    """The part or the replacement that %NAME:…% asks for."""
    if match[2] is not None:
        start = int(match[2] or 0)
        text = value[start:] if start >= -len(value) else value
        return text if match[3] is None else text[: int(match[3])]
    if match[4] is None:
        return value
    old, new = match[4], match[5]
    if not old.startswith("*"):
        return re.sub(re.escape(old), lambda _: new, value, flags=re.IGNORECASE)
    position = value.casefold().find(old[1:].casefold())
    return value if position < 0 else new + value[position + len(old) - 1 :]


def parse(line: str) -> Node | None:
    """The line as a tree; None if there is nothing in it.

    Raises:
        CommandSyntaxError: an operator without its command, an open parenthesis, a redirection to nothing.
    """
    return _Parser(line.strip().replace("\r", " ").replace("\n", " & ")).parse()


def split_arguments(text: str) -> list[str]:
    """Arguments as a C program gets them (CommandLineToArgvW): quotes group, backslashes before a quote count."""
    arguments: list[str] = []
    position, length = 0, len(text)
    while True:
        while position < length and text[position] in " \t":
            position += 1
        if position >= length:
            return arguments
        word: list[str] = []
        quoted = False
        while position < length and (quoted or text[position] not in " \t"):
            character = text[position]
            if character == "\\":
                end = position
                while end < length and text[end] == "\\":
                    end += 1
                count = end - position
                if end < length and text[end] == '"':
                    word.append("\\" * (count // 2))
                    if count % 2:
                        word.append('"')
                        end += 1
                else:
                    word.append("\\" * count)
                position = end
                continue
            if character == '"':
                if quoted and text[position + 1 : position + 2] == '"':
                    word.append('"')
                    position += 2
                else:
                    quoted = not quoted
                    position += 1
                continue
            word.append(character)
            position += 1
        arguments.append("".join(word))


def split_words(text: str) -> list[str]:
    """Arguments as the built-in commands see them: blanks separate, quotes group and are dropped."""
    return [word.replace('"', "") for word in re.findall(r'(?:"[^"]*"?|[^\s"])+', text)]


class _Parser:
    """Recursive descent over the characters of one line."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._position = 0
        self._depth = 0

    def parse(self) -> Node | None:
        self._blanks()
        if self._position >= len(self._line):
            return None
        node = self._chain()
        if self._position < len(self._line):
            raise _unexpected(self._line[self._position])
        return node

    def _chain(self) -> Node:
        left = self._conditional()
        while self._peek("&") and not self._peek("&&"):
            self._position += 1
            self._blanks()
            if self._position >= len(self._line) or self._line[self._position] == ")":
                return left
            left = Chain(left, Operator.ALWAYS, self._conditional())
        return left

    def _conditional(self) -> Node:
        left = self._pipeline()
        while self._peek("&&") or self._peek("||"):
            operator = Operator(self._line[self._position : self._position + 2])
            self._position += 2
            left = Chain(left, operator, self._pipeline())
        return left

    def _pipeline(self) -> Node:
        parts = [self._unit()]
        while self._peek("|") and not self._peek("||"):
            self._position += 1
            parts.append(self._unit())
        return parts[0] if len(parts) == 1 else Pipeline(tuple(parts))

    def _unit(self) -> Node:
        self._blanks()
        while self._peek("@"):
            self._position += 1
            self._blanks()
        if self._position >= len(self._line):
            raise CommandSyntaxError("The syntax of the command is incorrect.")
        if self._peek("("):
            return self._group()
        found = _IF.match(self._line, self._position)
        if found:
            return self._if(found)
        return self._simple()

    def _group(self) -> Group:
        self._position += 1
        self._depth += 1
        self._blanks()
        body = self._chain()
        self._blanks()
        if not self._peek(")"):
            raise CommandSyntaxError("The syntax of the command is incorrect.")
        self._position += 1
        self._depth -= 1
        redirections: list[Redirection] = []
        while True:
            self._blanks()
            redirection = self._redirection()
            if redirection is None:
                return Group(body, tuple(redirections))
            redirections.append(redirection)

    def _if(self, found: re.Match[str]) -> If:
        self._position = found.end()
        tried = ((kind, pattern.match(self._line, self._position)) for kind, pattern in _CONDITIONS)
        kind, condition = next(((kind, match) for kind, match in tried if match), ("", None))
        if condition is None:
            raise CommandSyntaxError("The syntax of the command is incorrect.")
        self._position = condition.end()
        then = self._unit()
        otherwise = None
        follows = _ELSE.match(self._line, self._position) if isinstance(then, Group) else None
        if follows:
            self._position = follows.end()
            otherwise = self._unit()
        first, second = condition["a"], condition["b"] if kind == "==" else ""
        if kind != "==":
            first = first.replace('"', "")
        return If(kind, first, second, bool(found["negated"]), bool(found["fold"]), then, otherwise)

    def _simple(self) -> Simple:
        text: list[str] = []
        redirections: list[Redirection] = []
        while self._position < len(self._line):
            character = self._line[self._position]
            if character == '"':
                end = self._line.find('"', self._position + 1)
                end = len(self._line) - 1 if end < 0 else end
                text.append(self._line[self._position : end + 1])
                self._position = end + 1
                continue
            if character == "^":
                text.append(self._line[self._position + 1 : self._position + 2])
                self._position += 2
                continue
            if character in "&|" or (character == ")" and self._depth):
                break
            fresh = not text or text[-1][-1:].isspace()
            redirection = self._redirection(with_handle=fresh)
            if redirection is not None:
                redirections.append(redirection)
                continue
            text.append(character)
            self._position += 1
        command = "".join(text).lstrip()
        if not command and not redirections:
            raise _unexpected(self._line[self._position : self._position + 1])
        return Simple(command, tuple(redirections))

    def _redirection(self, *, with_handle: bool = True) -> Redirection | None:
        pattern = r"([0-9]?)(>>|>|<)" if with_handle else r"()(>>|>|<)"
        found = re.compile(pattern).match(self._line, self._position)
        if not found:
            return None
        self._position = found.end()
        symbol = found[2]
        handle = int(found[1]) if found[1] else (0 if symbol == "<" else 1)
        copy = re.compile(r"&([0-9])").match(self._line, self._position)
        if copy:
            self._position = copy.end()
            return Redirection(handle, None, duplicate=int(copy[1]))
        self._blanks()
        target = re.compile(r'(?:"[^"]*"|[^\s&|<>()"])+').match(self._line, self._position)
        if not target:
            raise CommandSyntaxError("The syntax of the command is incorrect.")
        self._position = target.end()
        return Redirection(handle, target[0].replace('"', ""), append=symbol == ">>")

    def _blanks(self) -> None:
        while self._position < len(self._line) and self._line[self._position] in " \t,;=":
            self._position += 1

    def _peek(self, text: str) -> bool:
        if text not in ("@", "(", ")"):
            while self._position < len(self._line) and self._line[self._position] in " \t":
                self._position += 1
        return self._line.startswith(text, self._position)


def _unexpected(token: str) -> CommandSyntaxError:
    if not token:
        return CommandSyntaxError("The syntax of the command is incorrect.")
    return CommandSyntaxError(f"{token} was unexpected at this time.")
