"""Rules about what a script prints and how it ends: one line of JSON and an exit code (`vm/powershell/script.py`)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.lint.powershell_source import (
    Complaint,
    Node,
    Source,
    arguments,
    command_name,
    find,
    line_of,
    next_statement,
    said,
    scope,
)

# Verbs of commands that hand on objects; what they return at the top of a script ends up on standard output.
_TELLING = (
    "Compare|ConvertFrom|ConvertTo|Find|ForEach|Format|Get|Group|Import|Invoke|Join|Measure|New|Out|Read|Resolve|"
    "Select|Sort|Split|Start-Job|Test|Where|Write-Output|Checkpoint"
)
_TELLS = re.compile(rf"({_TELLING})(-|$)", re.IGNORECASE)
_JSON_OPTIONS = (("-compress", "is not on one line"), ("-depth", "is cut off below the second level"))
_QUIET = (
    "import-module",
    "out-null",
    "out-file",
    "set-content",
    "add-content",
    "export-csv",
    "export-clixml",
    "export-certificate",
)
_ENCODES = re.compile(
    r"\[\^\\x20-\\x7e\]|^\s*\[Console\]::OutputEncoding\s*=.*UTF8", re.IGNORECASE | re.MULTILINE
)
_PRINTS = re.compile(r"\[(System\.)?Console\]::(Out\.)?Write(Line)?\b", re.IGNORECASE)


def answers(source: Source) -> Iterator[Complaint]:
    """There is an answer for success and one for failure."""
    if not source.is_script:
        return
    values = set(_answer_values(source))
    for value in ("$true", "$false"):
        if value not in values and "computed" not in values:
            yield Complaint(1, "answer", f"never answers with 'ok = {value}'")


def answer_form(source: Source) -> Iterator[Complaint]:
    """JSON is one line (`-Compress`) and complete (`-Depth`: the default cuts off below the second level)."""
    for command in source.nodes("command"):
        if command_name(command).lower() != "convertto-json":
            continue
        words = [word.lower() for word in arguments(command)]
        # What a script block hands on is read by the script itself; only what leaves it must be complete.
        options = _JSON_OPTIONS if not _within(command, "script_block_expression") else _JSON_OPTIONS[:1]
        for option, why in options:
            if option not in words:
                yield Complaint(line_of(command), "answer-form", f"JSON without '{option}' {why}")


def answer_encoding(source: Source) -> Iterator[Complaint]:
    """Standard output has the code page of the console: an answer is ASCII, or the console is told UTF-8 before."""
    if source.is_script and not _ENCODES.search(source.text):
        message = (
            "prints in the console's code page; escape what is not ASCII, or set [Console]::OutputEncoding"
        )
        yield Complaint(1, "answer-encoding", message)


def one_answer(source: Source) -> Iterator[Complaint]:
    """What follows a printed answer is the exit: so there is exactly one.

    An own function that prints as its last act is allowed; then the exit follows where it is called.
    """
    printers = set()
    for node in _printing(source):
        following, function = next_statement(node), scope(node)
        if following is None and function.type == "function_statement" and _within_body(node, function):
            printers.add(said(next(find(function, "function_name"))).lower())
        elif following is None or not _leaves(following):
            yield Complaint(line_of(node), "one-answer", "prints without an 'exit' right after it")
    for command in source.nodes("command"):
        if command_name(command).lower() in printers:
            following = next_statement(command)
            if following is None or not _leaves(following):
                yield Complaint(line_of(command), "one-answer", "answers without an 'exit' right after it")


def stray_output(source: Source) -> Iterator[Complaint]:
    """Nothing but the answer gets to standard output."""
    if not source.is_script:
        return
    for statement in source.statements():
        if statement.type == "pipeline" and _speaks(statement, source) and not _is_answer(statement):
            short = said(statement).strip().splitlines()[0][:60]
            yield Complaint(line_of(statement), "stray-output", f"prints beside the answer: {short!r}")


def explicit_exit(source: Source) -> Iterator[Complaint]:
    """Every way through a script ends with `exit` and a code, 0 or 1: PowerShell's own choice says little."""
    for node in filter(_is_exit, source.nodes("flow_control_statement")):
        code = said(node).strip()[len("exit") :].strip()
        if not code or (re.fullmatch(r"-?\d+", code) and code not in ("0", "1")):
            yield Complaint(line_of(node), "exit", f"exits with '{code or 'nothing'}' and not with 0 or 1")
    if source.is_script and not _ends(_body(source.root), _leaving_functions(source)):
        yield Complaint(
            line_of(source.root) if not source.root.children else _last_line(source),
            "exit",
            "ends without an 'exit'",
        )


def _answer_values(source: Source) -> Iterator[str]:
    """What the files' hash tables say for `ok`: "$true", "$false" or "computed"."""
    for entry in source.nodes("hash_entry"):
        key = next(find(entry, "key_expression"), None)
        if key is not None and said(key).strip("'\" ").lower() == "ok":
            value = said(entry).partition("=")[2].strip(" ;\r\n").lower()
            yield value if value in ("$true", "$false") else "computed"


def _printing(source: Source) -> Iterator[Node]:
    """Statements that print: an answer at the top of a script, and the console anywhere."""
    for pipeline in source.nodes("pipeline"):
        if (
            pipeline.parent is not None
            and pipeline.parent.type == "statement_list"
            and _PRINTS.match(said(pipeline).strip())
        ):
            yield pipeline
    for statement in source.statements():
        if (
            statement.type == "pipeline"
            and _is_answer(statement)
            and not _PRINTS.match(said(statement).strip())
        ):
            yield statement


def _is_answer(pipeline: Node) -> bool:
    """True for a pipeline whose output is JSON, or that writes to the console itself."""
    if _assigned(pipeline):
        return False
    if _PRINTS.match(said(pipeline).strip()):
        return True
    last = _commands(pipeline)[-1:]
    names = [command_name(command).lower() for command in last]
    if names == ["write-output"]:
        names = [command_name(command).lower() for command in find(last[0], "command")][1:]
    return "convertto-json" in names


def _speaks(pipeline: Node, source: Source) -> bool:
    """True when a statement puts something on standard output, as far as its form tells."""
    if _assigned(pipeline):
        return False
    commands = _commands(pipeline)
    if commands:
        name = command_name(commands[-1])
        if name.lower() in _QUIET:
            return False
        # What an own function called Invoke-Something returns, its name does not tell.
        own = name.lower() in source.function_names() and name.lower().startswith("invoke-")
        return name.lower().endswith(".exe") or (bool(_TELLS.match(name)) and not own)
    text = said(pipeline).strip()
    # A method may return nothing; a variable, a string, a number or a property always prints.
    return (
        not any(find(pipeline, "invocation_expression"))
        and not text.endswith(("++", "--"))
        and not text.startswith("[void]")
    )


def _assigned(pipeline: Node) -> bool:
    return any(child.type == "assignment_expression" for child in pipeline.children)


def _commands(pipeline: Node) -> list[Node]:
    """Commands of a pipeline itself, not of what is inside its arguments."""
    return [
        part
        for chain in pipeline.children
        if chain.type == "pipeline_chain"
        for part in chain.children
        if part.type == "command"
    ]


def _within(node: Node, kind: str) -> bool:
    """True for a node somewhere inside one of this type."""
    current = node.parent
    while current is not None and current.type != kind:
        current = current.parent
    return current is not None


def _within_body(node: Node, function: Node) -> bool:
    """True for a statement of a function itself, not of a block in it."""
    body = next(find(function, "script_block_body"), None)
    return node in _body(body)


def _is_exit(node: Node) -> bool:
    return node.type == "flow_control_statement" and any(child.type == "exit" for child in node.children)


def _leaves(node: Node) -> bool:
    """True for `exit`, `return`, and an `if` that does nothing else but choose the code."""
    if node.type == "if_statement":
        blocks = list(find(node, "statement_block"))
        return all(statements and all(map(_is_exit, statements)) for statements in map(_body, blocks))
    return node.type == "flow_control_statement" and any(
        child.type in ("exit", "return") for child in node.children
    )


def _leaving_functions(source: Source) -> set[str]:
    """Names of own functions whose every way ends the process."""
    found: set[str] = set()
    for function in source.nodes("function_statement"):
        name = next(find(function, "function_name"), None)
        body = next(find(function, "script_block_body"), None)
        if name is not None and body is not None and _ends(_body(body), found):
            found.add(said(name).lower())
    return found


def _body(node: Node | None) -> list[Node]:
    """Statements of a block."""
    lists = [child for child in node.children if child.type == "statement_list"] if node is not None else []
    return [
        statement for listed in lists for statement in listed.named_children if statement.type != "comment"
    ]


def _ends(statements: list[Node], leaving: set[str]) -> bool:
    """True when no way through these statements comes out at their end without `exit`."""
    if not statements:
        return False
    last = statements[-1]
    if last.type == "try_statement":
        blocks = [child for child in last.children if child.type == "statement_block"]
        catches = [child for child in last.children if child.type == "catch_clauses"]
        caught = [
            _block(clause) for each in catches for clause in each.children if clause.type == "catch_clause"
        ]
        finals = [_block(child) for child in last.children if child.type == "finally_clause"]
        if any(_ends(_body(block), leaving) for block in finals):
            return True
        return bool(caught) and all(_ends(_body(block), leaving) for block in [*blocks[:1], *caught])
    if last.type == "if_statement":
        blocks = [child for child in last.children if child.type == "statement_block"]
        clauses = [clause for clause in find(last, "elseif_clause", "else_clause") if _belongs(clause, last)]
        has_else = any(clause.type == "else_clause" for clause in clauses)
        return has_else and all(_ends(_body(block), leaving) for block in [*blocks, *map(_block, clauses)])
    if last.type == "pipeline":
        return any(command_name(command).lower() in leaving for command in _commands(last)[:1])
    return _is_exit(last)


def _block(node: Node) -> Node | None:
    return next((child for child in node.children if child.type == "statement_block"), None)


def _belongs(clause: Node, statement: Node) -> bool:
    """True for a clause of this `if`, not of one inside it."""
    parent = clause.parent
    while parent is not None and parent.type in ("elseif_clauses", "else_clauses"):
        parent = parent.parent
    return parent == statement


def _last_line(source: Source) -> int:
    return len(source.data.rstrip().splitlines())


RULES = (answers, answer_form, answer_encoding, one_answer, stray_output, explicit_exit)
