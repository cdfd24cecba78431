"""A PowerShell file as a syntax tree, and the questions that rules ask it. Knows no rule.

The grammar is `tree-sitter-pwsh`. It is PowerShell 7's, so what only 7 understands parses, too; a rule refuses that.
It takes some valid one-line forms for errors (`begin {} process {}`, `switch`, an unquoted `-a:b;c`): write one clause
per line and quote such arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tree_sitter
import tree_sitter_pwsh

Node = tree_sitter.Node

_LANGUAGE = tree_sitter.Language(tree_sitter_pwsh.language())
_FUNCTIONS = ("function_statement", "class_statement")
_HELP_SECTION = re.compile(r"^\s*\.([A-Za-z]+)(?:[ \t]+(\S+))?[ \t\r]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, order=True)
class Complaint:
    """One broken rule: where, which, and what to do about it."""

    line: int
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a `param` block; `type` is "" when it has none."""

    name: str
    type: str
    line: int


@dataclass(frozen=True)
class Source:
    """One file: its bytes, and the tree they make."""

    name: str
    data: bytes

    @classmethod
    def read(cls, path: Path, root: Path) -> Source:
        return cls(path.relative_to(root).as_posix(), path.read_bytes())

    @cached_property
    def root(self) -> Node:
        return tree_sitter.Parser(_LANGUAGE).parse(self.data).root_node

    @property
    def is_script(self) -> bool:
        """A `.ps1`, which is called as a process; modules (`.psm1`) are only loaded."""
        return self.name.lower().endswith(".ps1")

    @property
    def text(self) -> str:
        return self.data.decode("utf-8-sig", errors="replace")

    def nodes(self, *types: str) -> Iterator[Node]:
        """All nodes of these types, in the order of the text."""
        return (node for node in walk(self.root) if node.type in types)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Parameters of the script itself, not of its functions."""
        block = self.parameter_block
        return tuple(declared(block)) if block else ()

    @property
    def parameter_block(self) -> Node | None:
        return next((child for child in self.root.children if child.type == "param_block"), None)

    @cached_property
    def help(self) -> dict[str, tuple[int, str]]:
        """Sections of the comment-based help as {"PARAMETER NAME" or "SYNOPSIS": (line, text)}, names in capitals."""
        for comment in self.nodes("comment"):
            text = said(comment)
            if text.startswith("<#") and ".SYNOPSIS" in text.upper():
                return _sections(text, line_of(comment))
        return {}

    def statements(self) -> Iterator[Node]:
        """Statements whose output is the script's: not those of functions, script blocks or subexpressions."""
        return _statements(self.root)

    def function_names(self) -> set[str]:
        """Names of its own functions, in small letters."""
        return {said(name).lower() for name in self.nodes("function_name")}


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it, in the order of the text."""
    waiting = [node]
    while waiting:
        current = waiting.pop()
        yield current
        waiting.extend(reversed(current.children))


def find(node: Node, *types: str) -> Iterator[Node]:
    """Nodes of these types at or below `node`."""
    return (child for child in walk(node) if child.type in types)


def said(node: Node) -> str:
    """The text of a node."""
    return (node.text or b"").decode("utf-8", errors="replace")


def line_of(node: Node) -> int:
    """Its first line, counted from 1."""
    return int(node.start_point[0]) + 1


def declared(node: Node) -> Iterator[Parameter]:
    """All parameters that are declared at or below `node`."""
    for found in find(node, "script_parameter"):
        yield _parameter(found)
        # The grammar takes `$A = 'x', [int]$B` for one parameter with a list as its default.
        for default in find(found, "script_parameter_default"):
            for values in default.children:
                if values.type == "array_literal_expression":
                    yield from filter(None, map(_swallowed, values.named_children[1:]))


def _swallowed(value: Node) -> Parameter | None:
    match = re.fullmatch(r"(?:\[([\w.\[\]]+)\]\s*)?\$(\w+)", said(value).strip())
    return Parameter(match[2], (match[1] or "").lower(), line_of(value)) if match else None


def _parameter(node: Node) -> Parameter:
    variable = next(child for child in node.children if child.type == "variable")
    types = [
        said(literal).strip("[]").lower() for literal in find(node, "type_literal") if _types(literal, node)
    ]
    return Parameter(said(variable).lstrip("$"), types[-1] if types else "", line_of(variable))


def command_name(command: Node) -> str:
    """The name of a command as it is written, "" when it is computed (`& $tool`)."""
    named = next(find(command, "command_name", "path_command_name"), None)
    first = command.children[0] if command.children else None
    if named is None or first is None or not _starts_within(named, command):
        return ""
    return said(named).strip("'\"")


def arguments(command: Node) -> list[str]:
    """The words of a command after its name, as they are written."""
    elements = next((child for child in command.children if child.type == "command_elements"), None)
    words = elements.children if elements else []
    return [said(word) for word in words if word.type != "command_argument_sep"]


def scope(node: Node) -> Node:
    """The function that holds `node`, or the whole file."""
    current = node
    while current.parent is not None and current.type not in _FUNCTIONS:
        current = current.parent
    return current


def next_statement(node: Node) -> Node | None:
    """The statement after the one that holds `node`, in the same block."""
    current = node
    while current.parent is not None and current.parent.type != "statement_list":
        current = current.parent
    following = current.next_named_sibling
    while following is not None and following.type == "comment":
        following = following.next_named_sibling
    return following


def _types(literal: Node, declaration: Node) -> bool:
    """True for the type of the parameter, not for one inside an attribute's arguments or the default value."""
    return (
        literal.parent is not None
        and literal.parent.type == "attribute"
        and literal.parent.parent is not None
        and literal.parent.parent.parent == declaration
    )


def _starts_within(named: Node, command: Node) -> bool:
    """True unless the name that was found belongs to a command in an argument."""
    elements = next((child for child in command.children if child.type == "command_elements"), None)
    return elements is None or named.start_byte < elements.start_byte


def _statements(node: Node) -> Iterator[Node]:
    for child in node.children:
        if child.type == "statement_list":
            for statement in child.named_children:
                if statement.type in _FUNCTIONS or statement.type == "comment":
                    continue
                yield statement
                if statement.type != "pipeline":
                    yield from _statements(statement)
        elif child.type not in ("pipeline", "param_block", *_FUNCTIONS):
            yield from _statements(child)


def _sections(text: str, first_line: int) -> dict[str, tuple[int, str]]:
    found = list(_HELP_SECTION.finditer(text))
    ends = [*(match.start() for match in found[1:]), text.rfind("#>")] if found else []
    return {
        " ".join(filter(None, (match[1], match[2]))).upper(): (
            first_line + text.count("\n", 0, match.start(1)),
            text[match.end() : end].strip(),
        )
        for match, end in zip(found, ends, strict=True)
    }
