"""Built-in commands of cmd.exe that change or show the session: echo, set, cd, ver, exit and the like."""

from __future__ import annotations

import re

from vm.emulated.guest.boot import WINDOWS_VERSION
from vm.emulated.guest.commands.session import ExitError, Invocation
from vm.emulated.guest.drive import ERROR_DIRECTORY, ERROR_PATH_NOT_FOUND, WindowsPathError


def echo(call: Invocation) -> int:
    """`echo text`, `echo.`, `echo on|off`."""
    tail = call.tail
    text = tail[1:] if tail[:1] in (" ", "\t", ".", ":", "(", ",", ";", "=", "/", "[", "+") else tail
    if not tail.strip():
        call.out("ECHO is on.")
    elif tail[:1].isspace() and text.strip().casefold() in ("on", "off"):
        return 0
    else:
        call.out(text)
    return call.session.error_level


def set_variable(call: Invocation) -> int:
    """`set`, `set prefix`, `set name=value`, `set "name=value"`; /a and /p are not there."""
    text = call.tail.strip()
    if re.match(r"/[ap]\b", text, re.IGNORECASE):
        call.err("set /a and set /p are not available on the emulated machine.")
        return 1
    quoted = text.startswith('"') and '"' in text[1:]
    text = text[1 : text.rindex('"')] if quoted else call.tail.lstrip()
    name, equals, value = text.partition("=")
    if equals:
        if not name:
            call.err("The syntax of the command is incorrect.")
            return 1
        if value:
            call.session.set_variable(name, value)
            return 0
        return 0 if call.session.remove_variable(name) else 1
    prefix = text.strip().casefold()
    shown = [pair for pair in call.session.environment.items() if pair[0].casefold().startswith(prefix)]
    for key, content in shown:
        call.out(f"{key}={content}")
    if not shown:
        call.err(f"Environment variable {text.strip()} not defined")
        return 1
    return 0


def change_directory(call: Invocation) -> int:
    """`cd`, `cd /d path`."""
    text = re.sub(r"^\s*/d\b", "", call.tail, flags=re.IGNORECASE).strip().strip('"')
    if not text:
        call.out(call.session.directory)
        return 0
    drive = call.guest.drive
    full = drive.absolute(text, directory=call.session.directory)
    host = drive.host_path(full)
    if not host.exists():
        raise WindowsPathError(ERROR_PATH_NOT_FOUND, text)
    if not host.is_dir():
        raise WindowsPathError(ERROR_DIRECTORY, text)
    call.session.directory = drive.windows_path(host)
    return 0


def version(call: Invocation) -> int:
    """`ver`."""
    call.out()
    call.out(f"Microsoft Windows [Version {WINDOWS_VERSION}]")
    return 0


def volume(call: Invocation) -> int:
    """`vol`."""
    call.out(" Volume in drive C is Windows")
    call.out(" Volume Serial Number is D011-1CE0")
    return 0


def path(call: Invocation) -> int:
    """`path`: shows it; changing it has no meaning here."""
    call.out(f"PATH={call.session.environment.get('Path') or ''}")
    return 0


def leave(call: Invocation) -> int:
    """`exit [/b] [code]`."""
    text = re.sub(r"^\s*/b\b", "", call.tail, flags=re.IGNORECASE).strip()
    if not text:
        raise ExitError(call.session.error_level)
    number = re.match(r"-?\d+", text)
    raise ExitError(int(number[0]) if number else 0)


def nothing(call: Invocation) -> int:
    """`rem`, `cls`, `title`: nothing that a pipe could show."""
    return call.session.error_level
