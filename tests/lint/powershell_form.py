"""Rules about the head of a file: its version, help, parameters and preferences."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.lint.powershell_source import (
    Complaint,
    Source,
    arguments,
    command_name,
    declared,
    find,
    line_of,
    said,
    walk,
)

_SECRET = re.compile(
    r"(password|passwd|passphrase|pwd|secret|credentials?|token|apikey|privatekey)$", re.IGNORECASE
)
_SECRET_TYPES = ("securestring", "pscredential")
_ANY_TYPE = ("object", "psobject", "system.object")


def syntax(source: Source) -> Iterator[Complaint]:
    """The grammar accepts every line, and every brace, quote and parenthesis is closed."""
    for node in source.nodes("ERROR"):
        yield Complaint(line_of(node), "syntax", f"is not understood: {said(node).strip()[:60]!r}")
    if source.root.has_error and not any(source.nodes("ERROR")):
        missing = next((node for node in walk(source.root) if node.is_missing), source.root)
        yield Complaint(line_of(missing), "syntax", f"'{missing.type}' is missing")


def ascii_only(source: Source) -> Iterator[Complaint]:
    """Windows PowerShell reads a file without a byte order mark in the ANSI code page: stay with ASCII."""
    for number, line in enumerate(source.data.splitlines(), 1):
        if not line.isascii():
            yield Complaint(
                number, "ascii", "has a character outside of ASCII, which Windows PowerShell misreads"
            )


def version(source: Source) -> Iterator[Complaint]:
    """Scripts say that Windows PowerShell 5.1 is enough for them."""
    stated = [re.sub(r"\s+", " ", said(node).strip().lower()) for node in source.nodes("requires_statement")]
    if source.is_script and "#requires -version 5.1" not in stated:
        yield Complaint(1, "requires", "has no '#Requires -Version 5.1'")


def comment_help(source: Source) -> Iterator[Complaint]:
    """There is a synopsis, and a sentence for each parameter of the script and for no other."""
    if not source.is_script:
        return
    if not source.help.get("SYNOPSIS", (0, ""))[1]:
        yield Complaint(1, "help", "has no comment-based help with a .SYNOPSIS")
    known = {f"PARAMETER {found.name.upper()}" for found in source.parameters}
    for found in source.parameters:
        if not source.help.get(f"PARAMETER {found.name.upper()}", (0, ""))[1]:
            yield Complaint(
                found.line,
                "help",
                f"does not describe its parameter '{found.name}' (.PARAMETER {found.name})",
            )
    for section, (line, _) in source.help.items():
        if section.startswith("PARAMETER") and section not in known:
            yield Complaint(line, "help", f"describes '{section.title()}', which it does not have")


def cmdlet_binding(source: Source) -> Iterator[Complaint]:
    """`[CmdletBinding()] param(...)`: an unknown parameter is refused instead of ignored."""
    block = source.parameter_block
    attributes = [said(name).lower() for name in find(block, "attribute_name")] if block else []
    if source.is_script and "cmdletbinding" not in attributes:
        line = line_of(block) if block else 1
        yield Complaint(line, "cmdlet-binding", "has no '[CmdletBinding()] param(...)' block")


def parameter_types(source: Source) -> Iterator[Complaint]:
    """Every parameter has a type that says something, in functions, too."""
    for found in declared(source.root):
        if not found.type or found.type in _ANY_TYPE:
            yield Complaint(found.line, "parameter-type", f"'{found.name}' has no type of its own")


def no_secrets(source: Source) -> Iterator[Complaint]:
    """Command lines are seen by everyone on a machine: a secret comes on standard input."""
    for found in source.parameters:
        kind = found.type.rpartition(".")[2]
        if kind in _SECRET_TYPES or (kind != "switch" and _SECRET.search(found.name)):
            yield Complaint(
                found.line,
                "secret-parameter",
                f"takes '{found.name}' as a parameter; read it from standard input",
            )


def strict_mode(source: Source) -> Iterator[Complaint]:
    """`Set-StrictMode -Version Latest` comes before every other command."""
    for command in source.nodes("command"):
        words = [word.lower() for word in arguments(command)]
        if command_name(command).lower() != "set-strictmode" or words[:2] != ["-version", "latest"]:
            yield Complaint(line_of(command), "strict-mode", "comes before 'Set-StrictMode -Version Latest'")
        return
    yield Complaint(1, "strict-mode", "has no 'Set-StrictMode -Version Latest'")


def preferences(source: Source) -> Iterator[Complaint]:
    """Stop at the first error; no progress records, which end up on standard error of a remote shell."""
    wanted = {"ErrorActionPreference": "Stop", "ProgressPreference": "SilentlyContinue"}
    assigned: dict[str, str] = {}
    for statement in source.statements():
        match = re.fullmatch(r"\$(\w+)\s*=\s*['\"](\w+)['\"]", said(statement).strip())
        if match:
            assigned.setdefault(match[1].lower(), match[2].lower())
    for name, value in wanted.items():
        # Progress is a matter of the process, so a module leaves it to the script.
        if name == "ProgressPreference" and not source.is_script:
            continue
        if assigned.get(name.lower()) != value.lower():
            yield Complaint(1, "preference", f"has no \"${name} = '{value}'\" at its start")


RULES = (
    syntax,
    ascii_only,
    version,
    comment_help,
    cmdlet_binding,
    parameter_types,
    no_secrets,
    strict_mode,
    preferences,
)
