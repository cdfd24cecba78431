"""Rules about what may stand in the body of a file: readable, and the same on every machine and in PowerShell 5.1."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.lint.powershell_source import (
    Complaint,
    Source,
    arguments,
    command_name,
    find,
    line_of,
    said,
    scope,
)

# Aliases of Windows PowerShell 5.1 (`Get-Alias` there); 'sc' and 'curl' hide programs of the same name.
_ALIASES = frozenset(
    re.findall(
        r"\S+",
        """
        % ? ac asnp cat cd chdir clc clear clhy cli clp cls clv cnsn compare copy cp cpi cpp curl cvpa dbp del diff dir
        dnsn ebp echo epal epcsv epsn erase etsn exsn fc fhx fl foreach ft fw gal gbp gc gci gcm gcs gdr ghy gi gjb gl gm
        gmo gp gps gpv group gsn gsnp gsv gtz gu gv gwmi h history icm iex ihy ii ipal ipcsv ipmo ipsn irm ise iwmi iwr
        kill lp ls man md measure mi mount move mp mv nal ndr ni nmo npssc nsn nv ogv oh popd ps pushd pwd r rbp rcjb rcsn
        rd rdr ren ri rjb rm rmdir rmo rni rnp rp rsn rsnp rujb rv rvpa rwmi sajb sal saps sasv sbp sc select set shcm si
        sl sleep sls sort sp spjb spps spsv start stz sujb sv swmi tee trcm type wget where wjb write
        """,
    )
)
_FORBIDDEN = {
    "write-host": "writes what nobody reads; the answer says it",
    "invoke-expression": "runs text as code; call the command with its arguments",
    "read-host": "waits for a person; nobody is there",
    "out-host": "writes what nobody reads; the answer says it",
    "start-transcript": "writes down everything, secrets, too",
}
# Parameters that only PowerShell 6 and later have.
_LATER_PARAMETERS = {
    "convertfrom-json": ("-ashashtable", "-depth", "-noenumerate"),
    "convertto-json": ("-asarray", "-enumsasstrings", "-escapehandling"),
    "foreach-object": ("-parallel", "-throttlelimit"),
    "get-content": ("-asbytestream",),
    "set-content": ("-asbytestream",),
    "invoke-webrequest": ("-skipcertificatecheck", "-skiphttperrorcheck"),
    "invoke-restmethod": ("-skipcertificatecheck", "-skiphttperrorcheck", "-statuscodevariable"),
    "join-path": ("-additionalchildpath",),
    "split-path": ("-leafbase", "-extension"),
}
_LATER_COMMANDS = (
    "join-string",
    "test-json",
    "get-uptime",
    "start-threadjob",
    "remove-alias",
    "get-error",
    "remove-service",
)
_LATER_NODES = {
    "ternary_expression": "'? :'",
    "null_coalesce_expression": "'??'",
    "pipeline_chain_tail": "'&&' and '||'",
}
_LATER_VARIABLES = ("$iswindows", "$islinux", "$ismacos", "$iscoreclr", "$psstyle")
_COMMAND = re.compile(r"[A-Za-z]+-[A-Za-z]\w*|[\w.-]+\.exe|.*[\\/].+\.(exe|ps1)", re.IGNORECASE)
_DRIVE = re.compile(r"(?<![A-Za-z])([A-Za-z]:)[\\/]")
_IN_EVERY_GUEST = re.compile(r"C:[\\/](Downlink|Python)\b|(?<=['\"])[DE]:[\\/](?=['\"])", re.IGNORECASE)
"""What lies at the same place in every guest by design (docs/architecture.md): our files, Python, two volumes."""
_TEXT = ("string_literal", "generic_token", "path_command_name", "command_name")


def aliases(source: Source) -> Iterator[Complaint]:
    """Commands have their full names."""
    for command in source.nodes("command"):
        name = command_name(command).lower()
        if name in _ALIASES and name not in source.function_names():
            yield Complaint(line_of(command), "alias", f"uses the alias '{name}'")


def command_names(source: Source) -> Iterator[Complaint]:
    """A command is a cmdlet, a function of the file or a program with its `.exe`: what else it could be differs by machine.

    This also sees keywords that are misspelt, which are commands to the grammar.
    """
    for command in source.nodes("command"):
        name = command_name(command)
        plain = name.lower()
        if not plain or plain.startswith("$") or re.match(r"[\d\"'(]", plain):
            continue  # computed, or a value that the grammar takes for a command (`foreach ($i in 1..3)`)
        known = plain in source.function_names() or plain in _ALIASES
        if not known and not _COMMAND.fullmatch(name):
            yield Complaint(
                line_of(command), "command", f"'{name}' is no cmdlet, own function or program with '.exe'"
            )


def forbidden_commands(source: Source) -> Iterator[Complaint]:
    """Nothing writes past the answer, waits for a person or runs text."""
    for command in source.nodes("command"):
        name = command_name(command).lower()
        if name in _FORBIDDEN:
            yield Complaint(line_of(command), name, _FORBIDDEN[name])


def continuations(source: Source) -> Iterator[Complaint]:
    """No line ends in a backtick: one blank behind it changes what the command means."""
    for separator in source.nodes("command_argument_sep"):
        if re.search(r"`\r?\n", said(separator)):
            yield Complaint(line_of(separator), "backtick", "continues a line with a backtick; use splatting")


def drives(source: Source) -> Iterator[Complaint]:
    """Directories come from parameters and the environment, not from the drive letters of one machine."""
    for node in source.nodes(*_TEXT):
        if node.type != "string_literal" and any(child.type == "string_literal" for child in find(node)):
            continue
        text = _IN_EVERY_GUEST.sub("", said(node))
        if match := _DRIVE.search(text):
            yield Complaint(
                line_of(node), "drive", f"names the drive '{match[1]}'; use $env:SystemRoot or a parameter"
            )


def later_versions(source: Source) -> Iterator[Complaint]:
    """What PowerShell 5.1 does not have."""
    for node in source.nodes(*_LATER_NODES):
        yield Complaint(
            line_of(node),
            "powershell-7",
            f"uses {_LATER_NODES[node.type]}, which Windows PowerShell 5.1 does not have",
        )
    for operator in source.nodes("assignment_operator"):
        if said(operator) == "??=":
            yield Complaint(
                line_of(operator), "powershell-7", "uses '??=', which Windows PowerShell 5.1 does not have"
            )
    for variable in source.nodes("variable"):
        if said(variable).lower() in _LATER_VARIABLES:
            yield Complaint(
                line_of(variable),
                "powershell-7",
                f"uses '{said(variable)}', which Windows PowerShell 5.1 does not have",
            )
    for command in source.nodes("command"):
        name = command_name(command).lower()
        later = [word for word in arguments(command) if word.lower() in _LATER_PARAMETERS.get(name, ())]
        for word in later + ([name] if name in _LATER_COMMANDS else []):
            yield Complaint(
                line_of(command), "powershell-7", f"uses '{word}', which Windows PowerShell 5.1 does not have"
            )


def lonely_try(source: Source) -> Iterator[Complaint]:
    """The grammar takes `try {}` alone, PowerShell does not."""
    for node in source.nodes("try_statement"):
        if not any(child.type in ("catch_clauses", "finally_clause") for child in node.children):
            yield Complaint(line_of(node), "try", "has neither 'catch' nor 'finally'")


def silent_catch(source: Source) -> Iterator[Complaint]:
    """An error that is caught leaves a trace."""
    for clause in source.nodes("catch_clause"):
        if not any(find(clause, "statement_list")):
            yield Complaint(line_of(clause), "empty-catch", "swallows an error without a trace")


def global_state(source: Source) -> Iterator[Complaint]:
    """A script leaves nothing behind in the session that called it."""
    for variable in source.nodes("variable"):
        if said(variable).lower().startswith("$global:"):
            yield Complaint(line_of(variable), "global", f"uses '{said(variable)}'")


def native_commands(source: Source) -> Iterator[Complaint]:
    """`Stop` does not see the exit code of a program, and turns its standard error into an exception once redirected."""
    for command in source.nodes("command"):
        if not command_name(command).lower().endswith(".exe"):
            continue
        around = scope(command)
        if not any(said(variable).lower() == "$lastexitcode" for variable in find(around, "variable")):
            yield Complaint(
                line_of(command),
                "exit-code",
                f"does not look at $LASTEXITCODE after '{command_name(command)}'",
            )
        redirected = any("2>" in said(found) for found in find(command, "redirection"))
        if redirected and not re.search(
            r"\$ErrorActionPreference\s*=\s*['\"](Continue|SilentlyContinue)['\"]", said(around)
        ):
            message = "redirects the standard error of a program, which throws while $ErrorActionPreference is 'Stop'"
            yield Complaint(line_of(command), "native-stderr", message)


RULES = (
    aliases,
    command_names,
    forbidden_commands,
    continuations,
    drives,
    later_versions,
    lonely_try,
    silent_catch,
    global_state,
    native_commands,
)
