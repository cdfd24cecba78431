"""Which commands there are, and how a typed name finds one: built-ins first, then programs of System32 and Python."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vm.emulated.guest.commands import builtins, files
from vm.emulated.guest.commands.bcdedit import bcdedit
from vm.emulated.guest.commands.certutil import certutil
from vm.emulated.guest.commands.cmd import call, cmd
from vm.emulated.guest.commands.fltmc import fltmc
from vm.emulated.guest.commands.language import LOCALISED
from vm.emulated.guest.commands.pnputil import pnputil
from vm.emulated.guest.commands.powershell import powershell
from vm.emulated.guest.commands.python import python
from vm.emulated.guest.commands.reg import reg
from vm.emulated.guest.commands.sc import sc
from vm.emulated.guest.commands.schtasks import schtasks
from vm.emulated.guest.commands.session import Command, Invocation, Session
from vm.emulated.guest.commands.shutdown import shutdown
from vm.emulated.guest.commands.systeminfo import hostname, systeminfo, whoami
from vm.emulated.guest.commands.tar import tar
from vm.emulated.guest.commands.tasks import taskkill, tasklist
from vm.emulated.guest.commands.text import chcp, find, findstr, more, sort
from vm.emulated.guest.commands.timeout import ping, timeout
from vm.emulated.guest.commands.verifier import verifier
from vm.emulated.guest.commands.w32tm import w32tm
from vm.emulated.guest.commands.wevtutil import wevtutil
from vm.emulated.guest.commands.where import where
from vm.emulated.guest.commands.winrm import winrm
from vm.emulated.guest.drive import WindowsPathError

SYSTEM32 = "C:\\Windows\\System32"
PYTHON = "C:\\Python"

BUILTINS: Mapping[str, Command] = {
    "call": call,
    "cd": builtins.change_directory,
    "chdir": builtins.change_directory,
    "cls": builtins.nothing,
    "copy": files.copy,
    "del": files.delete,
    "dir": files.directory,
    "echo": builtins.echo,
    "erase": files.delete,
    "exit": builtins.leave,
    "md": files.make_directory,
    "mkdir": files.make_directory,
    "move": files.move,
    "path": builtins.path,
    "rd": files.remove_directory,
    "rem": builtins.nothing,
    "ren": files.rename,
    "rename": files.rename,
    "rmdir": files.remove_directory,
    "set": builtins.set_variable,
    "title": builtins.nothing,
    "type": files.show,
    "ver": builtins.version,
    "verify": builtins.nothing,
    "vol": builtins.volume,
}

PROGRAMS: Mapping[str, Command] = {
    "bcdedit.exe": bcdedit,
    "certutil.exe": certutil,
    "chcp.com": chcp,
    "cmd.exe": cmd,
    "find.exe": find,
    "findstr.exe": findstr,
    "fltmc.exe": fltmc,
    "hostname.exe": hostname,
    "more.com": more,
    "ping.exe": ping,
    "pnputil.exe": pnputil,
    "powershell.exe": powershell,
    "reg.exe": reg,
    "sc.exe": sc,
    "schtasks.exe": schtasks,
    "shutdown.exe": shutdown,
    "sort.exe": sort,
    "systeminfo.exe": systeminfo,
    "tar.exe": tar,
    "taskkill.exe": taskkill,
    "tasklist.exe": tasklist,
    "timeout.exe": timeout,
    "verifier.exe": verifier,
    "w32tm.exe": w32tm,
    "wevtutil.exe": wevtutil,
    "where.exe": where,
    "whoami.exe": whoami,
    "winrm.cmd": winrm,
}
"""Tools of System32 by file name."""

_EXTENSIONS = (".exe", ".com", ".cmd")
_BUILTIN = re.compile(r'([A-Za-z]+)(?=$|[\s/\\.,;=+:(\[")>])')


def look_up(text: str, session: Session) -> tuple[Command, str, str] | None:
    """The command a line begins with, the name as typed, and the rest of the line; None if there is none."""
    builtin = _BUILTIN.match(text)
    if builtin and builtin[1].casefold() in BUILTINS:
        return BUILTINS[builtin[1].casefold()], builtin[1], text[builtin.end() :]
    found = re.match(r'(?:"([^"]*)"?|([^\s"]+))\s*', text)
    if not found:
        return None
    name = found[1] if found[1] is not None else found[2]
    program = find_program(name, session)
    if program is None:
        return None
    return program, name, text[found.end() :]


def find_program(name: str, session: Session) -> Command | None:
    """The program of that name or path, with or without its extension; None if there is none."""
    directory, _, file = name.replace("/", "\\").rpartition("\\")
    folded = file.casefold()
    names = [folded] if folded.endswith(_EXTENSIONS) else [folded + extension for extension in _EXTENSIONS]
    if directory:
        try:
            where_ = session.guest.drive.absolute(directory, directory=session.directory).casefold()
        except WindowsPathError:
            return None
        if where_ in (PYTHON.casefold(), f"{PYTHON}\\Scripts".casefold()):
            return _available(session, "python.exe", python) if names[0] == "python.exe" else None
        if where_ not in (SYSTEM32.casefold(), "c:\\windows\\sysnative"):
            return None
    elif names[0] in ("python.exe", "python3.exe"):
        return _available(session, names[0], python)
    found = next((candidate for candidate in names if candidate in PROGRAMS), None)
    return None if found is None else _available(session, found, PROGRAMS[found])


def _available(session: Session, program: str, command: Command) -> Command | None:
    """The program in the guest's language and with the faults that concern it; None if it is missing."""
    chaos = session.guest.chaos
    language = session.guest.settings.language if program in LOCALISED else "en"
    if not chaos and language == "en":
        return command
    if chaos.program_missing(program):
        return None

    def run(call: Invocation) -> int:
        call.language = language
        refusal = chaos.on_program(program)
        if refusal is not None:
            call.err(refusal.message)
            return refusal.exit_code
        return chaos.result_of(program, call.arguments, command(call))

    return run
