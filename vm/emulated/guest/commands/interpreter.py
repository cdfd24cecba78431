"""Runs what `parsing` understood: looks commands up, connects their streams, keeps the error level."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

from vm.emulated.computer import MachineStoppedError
from vm.emulated.guest.commands import catalog
from vm.emulated.guest.commands.files import matching
from vm.emulated.guest.commands.parsing import (
    Chain,
    CommandSyntaxError,
    Group,
    If,
    Node,
    Operator,
    Pipeline,
    Redirection,
    Simple,
    expand,
    parse,
    split_arguments,
)
from vm.emulated.guest.commands.session import Command, ExitError, Invocation, Session
from vm.emulated.guest.drive import WindowsPathError, break_hard_link
from vm.emulated.guest.status import message_of_win32, win32_of_errno
from vm.emulated.guest.streams import CommandTerminatedError, FileSink, FileSource, Pipe, Sink, Source

log = logging.getLogger(__name__)

MAXIMUM_LINE = 8191
"""Characters of a cmd.exe line (windows-lab.md A.4)."""
EXIT_UNKNOWN_INSIDE = 9009
"""%ERRORLEVEL% after an unknown command; `cmd /c` itself returns 1."""
_ERROR_SHUTDOWN_IN_PROGRESS = 1115
_ERROR_UNHANDLED = 0xE0434352


@dataclass(frozen=True, slots=True)
class Streams:
    """Where one command reads and writes."""

    stdin: Source
    stdout: Sink
    stderr: Sink


def run_line(line: str, session: Session, streams: Streams) -> int:
    """`cmd /c line`: run it in this session and return the exit code (unsigned 32 bit).

    Raises:
        CommandTerminatedError: the command was ended from outside.
    """
    if len(line) > MAXIMUM_LINE:
        return _complain(session, streams, "The command line is too long.")
    interpreter = _Interpreter(session)
    try:
        tree = parse(expand(line, session.variable))
        if tree is None:
            return 0
        code = interpreter.run(tree, streams)
    except CommandSyntaxError as error:
        return _complain(session, streams, str(error))
    except ExitError as exit_:
        return exit_.code & 0xFFFFFFFF
    return 1 if interpreter.unknown else code & 0xFFFFFFFF


def run_program(line: str, session: Session, streams: Streams) -> int | None:
    """CreateProcess without cmd.exe: only tools, no built-ins, no operators; None if there is no such program."""
    found = re.match(r'\s*(?:"([^"]*)"|(\S+))\s*(.*)', line, re.DOTALL)
    if not found:
        return None
    name = found[1] if found[1] is not None else found[2]
    tool = catalog.find_program(name, session)
    if tool is None:
        return None
    call = Invocation(
        name, found[3], split_arguments(found[3]), session, streams.stdin, streams.stdout, streams.stderr
    )
    return _guarded(tool, call) & 0xFFFFFFFF


class _Interpreter:
    def __init__(self, session: Session) -> None:
        self._session = session
        self.unknown = False

    def run(self, node: Node, streams: Streams) -> int:
        self._session.cancellation.check()
        match node:
            case Simple():
                return self._simple(node, streams)
            case Group(body, redirections):
                with self._redirected(redirections, streams) as inner:
                    return 1 if inner is None else self.run(body, inner)
            case Chain(left, operator, right):
                return self._chain(left, operator, right, streams)
            case If():
                return self._if(node, streams)
            case Pipeline(parts):
                return self._pipeline(parts, streams)

    def _chain(self, left: Node, operator: Operator, right: Node, streams: Streams) -> int:
        code = self.run(left, streams)
        if (operator is Operator.ON_SUCCESS and code != 0) or (operator is Operator.ON_FAILURE and code == 0):
            return code
        return self.run(right, streams)

    def _if(self, node: If, streams: Streams) -> int:
        if self._holds(node) != node.negated:
            return self.run(node.then, streams)
        return self.run(node.otherwise, streams) if node.otherwise is not None else self._session.error_level

    def _holds(self, node: If) -> bool:
        match node.kind:
            case "exist":
                try:
                    return bool(matching(node.first, self._session))
                except WindowsPathError:
                    return False
            case "errorlevel":
                return self._session.error_level >= int(node.first)
            case "defined":
                return self._session.variable(node.first) is not None
            case _:
                if node.fold:
                    return node.first.casefold() == node.second.casefold()
                return node.first == node.second

    def _pipeline(self, parts: tuple[Node, ...], streams: Streams) -> int:
        """Each part but the last runs in a thread and a session of its own, as cmd.exe starts processes."""
        source = streams.stdin
        threads: list[threading.Thread] = []
        pipes: list[Pipe] = []
        for part in parts[:-1]:
            pipe = Pipe(self._session.cancellation)
            pipes.append(pipe)
            inner = Streams(source, pipe, streams.stderr)
            thread = threading.Thread(
                target=self._piped, args=(part, inner, pipe), daemon=True, name="guest pipe"
            )
            threads.append(thread)
            thread.start()
            source = pipe
        last = _Interpreter(self._session.child())
        try:
            code = last.run(parts[-1], Streams(source, streams.stdout, streams.stderr))
        finally:
            for pipe in pipes:
                pipe.abandon()
        for thread in threads:
            thread.join()
        self.unknown = last.unknown
        self._session.error_level = code
        return code

    def _piped(self, part: Node, streams: Streams, pipe: Pipe) -> None:
        try:
            _Interpreter(self._session.child()).run(part, streams)
        except (CommandTerminatedError, ExitError):
            log.debug("a part of a pipeline ended early")
        finally:
            pipe.end()

    def _simple(self, node: Simple, streams: Streams) -> int:
        with self._redirected(node.redirections, streams) as inner:
            code = 1 if inner is None else self._call(node.text, inner)
        self._session.error_level = code
        return code

    def _call(self, text: str, streams: Streams) -> int:
        self.unknown = False
        if not text:
            return 0
        found = catalog.look_up(text, self._session)
        if found is None:
            name = re.match(r'"([^"]*)"|\S+', text)
            shown = name[0] if name else text
            error = f"'{shown}' is not recognized as an internal or external command,\r\noperable program or batch file."
            self.unknown = True
            streams.stderr.write(self._session.encode(error + "\r\n"))
            return EXIT_UNKNOWN_INSIDE
        command, typed, tail = found
        call = Invocation(
            typed, tail, split_arguments(tail), self._session, streams.stdin, streams.stdout, streams.stderr
        )
        return _guarded(command, call) & 0xFFFFFFFF

    @contextlib.contextmanager
    def _redirected(
        self, redirections: tuple[Redirection, ...], streams: Streams
    ) -> Iterator[Streams | None]:
        """The streams with the redirections applied in order; None (after a message) if a file cannot be opened."""
        sources: Source = streams.stdin
        sinks: dict[int, Sink] = {1: streams.stdout, 2: streams.stderr}
        with contextlib.ExitStack() as stack:
            for redirection in redirections:
                if redirection.duplicate is not None:
                    sinks[redirection.handle] = sinks.get(redirection.duplicate, FileSink(None))
                    continue
                assert redirection.target is not None
                try:
                    file = self._open(redirection)
                except WindowsPathError as error:
                    streams.stderr.write(self._session.encode(message_of_win32(error.code) + "\r\n"))
                    yield None
                    return
                if file is not None:
                    stack.enter_context(file)
                if redirection.handle == 0:
                    sources = FileSource(file)
                else:
                    sinks[redirection.handle] = FileSink(file, self._session.guest.drive.charge)
            yield Streams(sources, sinks[1], sinks[2])

    def _open(self, redirection: Redirection) -> BinaryIO | None:
        target = cast(str, redirection.target)
        if target.casefold().rstrip(":") == "nul":
            return None
        drive = self._session.guest.drive
        reading = redirection.handle == 0
        path = (
            drive.existing(target, directory=self._session.directory)
            if reading
            else drive.host_path(target, directory=self._session.directory)
        )
        try:
            if reading:
                return path.open("rb")
            break_hard_link(path)
            return path.open("ab" if redirection.append else "wb")
        except OSError as error:
            raise WindowsPathError(5, target) from error


def _guarded(command: Command, call: Invocation) -> int:
    """The edge of a guest program: a fault of its model is its crash, not the machine's."""
    try:
        return command(call)
    except (CommandTerminatedError, ExitError):
        raise
    except WindowsPathError as error:
        call.err(message_of_win32(error.code))
        return 1
    except OSError as error:
        call.err(message_of_win32(win32_of_errno(error.errno)))
        return 1
    except MachineStoppedError:
        call.err(message_of_win32(_ERROR_SHUTDOWN_IN_PROGRESS))
        return _ERROR_SHUTDOWN_IN_PROGRESS
    except Exception as error:
        log.exception("the guest command '%s' failed", call.name)
        call.err(f"{call.name}: the emulated command failed: {type(error).__name__}: {error}")
        return _ERROR_UNHANDLED


def _complain(session: Session, streams: Streams, text: str) -> int:
    streams.stderr.write(session.encode(text + "\r\n"))
    session.error_level = 1
    return 1
