"""Arguments as cmd.exe and the C runtime of Windows read them."""

from __future__ import annotations

from collections.abc import Sequence

COMMAND_LINE_CHARACTERS = 8191
"""Longest line that cmd.exe takes."""

_NOT_QUOTABLE = frozenset('"%\r\n\0')
"""cmd.exe expands or ends at these inside quotes, too; nothing the harness needs has them."""

_NEEDS_QUOTES = frozenset(" \t&|<>^()!;,=@`'")


def command_line(arguments: Sequence[str]) -> str:
    """The arguments as one line for cmd.exe.

    Raises:
        ValueError: an argument has a character that cmd.exe would change and that no quoting saves.
    """
    return " ".join(quote(argument) for argument in arguments)


def quotable(argument: str) -> bool:
    """True when the argument reaches a program unchanged."""
    return not set(argument) & _NOT_QUOTABLE


def quote(argument: str) -> str:
    """One argument, in quotes where it needs them."""
    if not quotable(argument):
        raise ValueError(f"{argument!r} cannot be passed through cmd.exe")
    if argument and not set(argument) & _NEEDS_QUOTES:
        return argument
    # A backslash in front of the closing quote would escape it in the C runtime's reading of the line.
    trailing = len(argument) - len(argument.rstrip("\\"))
    return '"' + argument + "\\" * trailing + '"'
