"""`python`: a real process of the guest's own interpreter, with its paths translated and nothing of the host's.

The process sees host paths (there is no other file system it could see); suites must not depend on them.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from pathlib import Path
from typing import IO

from vm.emulated.guest.commands.session import Invocation, Session
from vm.emulated.guest.drive import ERROR_FILE_NOT_FOUND, WindowsPathError
from vm.emulated.guest.processes import GuestProcess
from vm.emulated.guest.python_image import interpreter
from vm.emulated.guest.streams import CommandTerminatedError, Sink

log = logging.getLogger(__name__)

_CHUNK_BYTES = 65536
_LISTS = frozenset({"pythonpath"})
_HOST_VARIABLES = ("SYSTEMROOT", "WINDIR") if os.name == "nt" else ()
"""Without them Python does not start on a Windows host."""


def python(call: Invocation) -> int:
    """Run the guest's Python and pass its streams through, byte for byte."""
    session = call.session
    program = interpreter(call.guest.drive.root)
    if not program.exists():
        raise WindowsPathError(ERROR_FILE_NOT_FOUND, "C:\\Python\\python.exe")
    merged = call.stdout is call.stderr
    process = call.guest.processes.start(
        [str(program), *translate_arguments(call.arguments, session)],
        image="python.exe",
        command_line=f"{call.name} {call.tail}".rstrip(),
        environment=environment(session),
        directory=call.guest.drive.existing(session.directory),
        merge_stderr=merged,
    )
    kill = process.kill
    session.cancellation.add(kill)
    stop = threading.Event()
    pumps = [_pump(process.stdout, call.stdout)]
    if process.stderr is not None:
        pumps.append(_pump(process.stderr, call.stderr))
    feeder = threading.Thread(target=_feed, args=(call, process, stop), daemon=True, name="guest stdin")
    feeder.start()
    try:
        code = call.guest.processes.finish(process)
    finally:
        session.cancellation.remove(kill)
        stop.set()
        call.stdin.wake()
        for pump in pumps:
            pump.join()
        feeder.join()
    session.cancellation.check()
    return code


def environment(session: Session) -> dict[str, str]:
    """What a process of this session gets: the client's own variables, TEMP, PATH, and the way to the kernel."""
    drive = session.guest.drive
    temporary = drive.host_path("C:\\Windows\\Temp")
    temporary.mkdir(parents=True, exist_ok=True)
    variables = {
        "PATH": str(interpreter(drive.root).parent),
        "TEMP": str(temporary),
        "TMP": str(temporary),
        "TMPDIR": str(temporary),
        "COMPUTERNAME": session.guest.settings.computer_name,
        "USERNAME": session.guest.settings.username,
        **{name: os.environ[name] for name in _HOST_VARIABLES if name in os.environ},
        **session.guest.client_environment(),
    }
    for name, value in session.environment.items():
        if name.casefold() in session.given and name.casefold() not in ("path", "temp", "tmp"):
            variables[_exported(name)] = _translated_value(name, value, session)
    return variables


def translate_arguments(arguments: list[str], session: Session) -> list[str]:
    """Guest paths among the arguments as host paths; code after -c stays as it is."""
    translated = []
    code = False
    for argument in arguments:
        translated.append(argument if code else _translated(argument, session))
        code = argument == "-c" and "-m" not in arguments[: len(translated)]
    return translated


def _translated(argument: str, session: Session) -> str:
    prefix, path = "", argument
    option = re.match(r"(--?[\w-]+=|@)", argument)
    if option:
        prefix, path = option[0], argument[option.end() :]
    path, node, rest = path.partition("::")
    drive = session.guest.drive
    relative = "\\" in path and re.fullmatch(r"[\w.\- ]+(\\[\w.\- ]+)+\\?", path) is not None
    if not drive.owns_path(path) and not (relative and _first_exists(path, session)):
        return argument
    try:
        return f"{prefix}{_host(path, session)}{node}{rest}"
    except WindowsPathError:
        return argument


def _host(path: str, session: Session) -> Path:
    """The host path also of something whose parents do not exist yet."""
    drive = session.guest.drive
    full = drive.absolute(path, directory=session.directory)
    names = full[3:].split("\\") if len(full) > 3 else []
    missing: list[str] = []
    while True:
        try:
            return drive.host_path(full[:3] + "\\".join(names)).joinpath(*reversed(missing))
        except WindowsPathError as error:
            if error.code != 3 or not names:
                raise
            missing.append(names.pop())


def _first_exists(path: str, session: Session) -> bool:
    try:
        return session.guest.drive.host_path(path.split("\\")[0], directory=session.directory).exists()
    except WindowsPathError:
        return False


def _translated_value(name: str, value: str, session: Session) -> str:
    if name.casefold() in _LISTS:
        parts = [part for part in value.split(";") if part]
        return os.pathsep.join(str(_host(part, session)) for part in parts)
    if session.guest.drive.owns_path(value):
        return str(_host(value, session))
    return value


def _exported(name: str) -> str:
    """Names have no case on Windows and have one here: Python's own are upper case wherever they are read."""
    return name.upper()


def _pump(pipe: IO[bytes], sink: Sink) -> threading.Thread:
    def run() -> None:
        dropped = False
        with pipe:
            while data := pipe.read(_CHUNK_BYTES):
                if dropped:
                    continue
                try:
                    sink.write(data)
                except (CommandTerminatedError, OSError) as error:
                    # The process must not block on output that nobody takes; it is being ended or the disk is full.
                    log.debug("output of a guest process is dropped: %s", error)
                    dropped = True

    thread = threading.Thread(target=run, daemon=True, name="guest output")
    thread.start()
    return thread


def _feed(call: Invocation, process: GuestProcess, stop: threading.Event) -> None:
    with process.stdin as pipe:
        try:
            while data := call.stdin.read(_CHUNK_BYTES, stop):
                _write_all(pipe, data)
        except (CommandTerminatedError, OSError) as error:
            # What a process does not read before it ends is lost, as with any pipe.
            log.debug("input of a guest process ended early: %s", error)


def _write_all(pipe: IO[bytes], data: bytes) -> None:
    """The pipe is unbuffered, so a write may take a part only."""
    view = memoryview(data)
    while view:
        view = view[pipe.write(view) or 0 :]
