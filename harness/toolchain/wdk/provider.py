"""The one way in which the toolchain `wdk` reaches Windows: its tools, files and variables.

Everything else in this package takes a `Provider`, so that tests put transcripts and a made-up file tree in its place.
Paths are `PurePath`: those of Windows are `PureWindowsPath` on every host, those of a checkout are the host's own.
"""

from __future__ import annotations

import codecs
import fnmatch
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Protocol

from harness.remote.process_tree import ProcessTree
from vm.deadline import Deadline
from vm.errors import BuildError, DeadlineExceededError

log = logging.getLogger(__name__)

_DRAIN_SECONDS = 10.0
"""How long the pipes of a process tree that was ended may take to close."""
_SECRET_OPTIONS = frozenset({"/p", "-p", "/csppassword", "-apikey", "-password"})
"""Options of signtool and nuget whose value is the next argument and a secret. MSBuild's `/p:NAME=VALUE` is one word."""
_MASK = "***"


class Variables(Mapping[str, str]):
    """Environment variables as Windows sees them: names in any case are the same name."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._names = {name.upper(): name for name in variables}
        self._values = {name.upper(): value for name, value in variables.items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name.upper()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.values())

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        # Values may be secrets, and objects turn up in tracebacks.
        return f"Variables({len(self)})"


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool did. `command` has no secrets; `exit_code` is 32 bits without a sign; `seconds` is its duration."""

    command: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        """Both streams, for people and for `messages.explain`."""
        return "\n".join(part for part in (self.stdout.rstrip(), self.stderr.rstrip()) if part)


class Provider(Protocol):
    """Windows, as far as locating and running the kit's tools needs it."""

    @property
    def is_windows(self) -> bool:
        """Whether there is a Windows to ask at all."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of this process, their names in any case."""

    def run(
        self,
        tool: str | PurePath,
        arguments: Sequence[str],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        deadline: Deadline,
        stdin: bytes = b"",
    ) -> ToolResult:
        """Run a tool to its end, with everything that it starts.

        Args:
            tool: path, or name to be found on PATH.
            arguments: without the tool itself.
            directory: working directory; None = this process's.
            environment: all variables of the tool; None = this process's.
            deadline: the tool and what it started are ended then.
            stdin: what it reads.

        Raises:
            BuildError: it cannot be started. A failure of the tool is no error here: look at `exit_code`.
            DeadlineExceededError: it did not end in time.
        """

    def find(self, name: str) -> PurePath | None:
        """The program of that name on PATH."""

    def exists(self, path: PurePath) -> bool:
        """Whether there is a file or directory."""

    def read_text(self, path: PurePath) -> str:
        """A text file, in UTF-8 with or without a mark.

        Raises:
            OSError: it cannot be read.
        """

    def glob(self, directory: PurePath, pattern: str) -> tuple[PurePath, ...]:
        """Entries of a directory whose names fit, in any case, sorted; none if there is no such directory."""


class WindowsProvider:
    """This host, by its own processes and files. It works on any host, where it finds no Windows tools.

    Args:
        variables: in place of this process's environment.
    """

    def __init__(self, variables: Mapping[str, str] | None = None) -> None:
        self._environment = Variables(os.environ if variables is None else variables)

    @property
    def is_windows(self) -> bool:
        """Whether this host is Windows."""
        return sys.platform == "win32"

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables of this process."""
        return self._environment

    def run(
        self,
        tool: str | PurePath,
        arguments: Sequence[str],
        *,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
        deadline: Deadline,
        stdin: bytes = b"",
    ) -> ToolResult:
        """Run a tool; see `Provider.run`."""
        command = shown_command(tool, arguments)
        name = tool_name(tool)
        deadline.check(f"'{name}' to be started")
        started = time.monotonic()
        variables = dict(self._environment if environment is None else environment)
        try:
            tree = ProcessTree.start([str(tool), *arguments], directory=directory, environment=variables)
        except OSError as error:
            log.info("%s: not started, %s", " ".join(command), error)
            raise BuildError(
                f"'{name}' cannot be started: {error.strerror or error}",
                hint="./inv doctor says which tools were found",
            ) from error
        pipes = _Pipes(tree, stdin)
        try:
            exit_code = tree.wait(deadline, threading.Event())
        finally:
            # Also after a good end: mspdbsrv.exe and other servers inherit the pipes and would hold them open.
            tree.kill()
            pipes.join()
        seconds = time.monotonic() - started
        if exit_code is None:
            log.info("%s: ended after %.1f s, it was not done", " ".join(command), seconds)
            last = decode(pipes.stdout).rstrip().rpartition("\n")[2]
            said = f"; its last line was '{last}'" if last else ""
            raise DeadlineExceededError(
                f"'{name}' did not end within {seconds:.0f} s{said}",
                hint="the log of the run has its command line",
            )
        log.info("%s: exit code %d after %.1f s", " ".join(command), exit_code, seconds)
        return ToolResult(command, exit_code, decode(pipes.stdout), decode(pipes.stderr), seconds)

    def find(self, name: str) -> PurePath | None:
        """The program of that name on PATH."""
        found = shutil.which(name, path=self._environment.get("PATH", ""))
        return Path(found) if found else None

    def exists(self, path: PurePath) -> bool:
        """Whether there is a file or directory; what may not be looked at is not there."""
        try:
            return Path(path).exists()
        except OSError:
            return False

    def read_text(self, path: PurePath) -> str:
        """A text file."""
        return Path(path).read_text(encoding="utf-8-sig")

    def glob(self, directory: PurePath, pattern: str) -> tuple[PurePath, ...]:
        """Entries of a directory whose names fit."""
        try:
            names = [entry.name for entry in Path(directory).iterdir()]
        except OSError:
            return ()
        return tuple(sorted(directory / name for name in names if fits(name, pattern)))


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern of `*` and `?`, in any case."""
    return fnmatch.fnmatchcase(name.lower(), pattern.lower())


def tool_name(tool: str | PurePath) -> str:
    """The tool's name as people know it: "msbuild" of either kind of path."""
    name = str(tool).replace("\\", "/").rpartition("/")[2]
    return name[:-4] if name.lower().endswith(".exe") else name


def shown_command(tool: str | PurePath, arguments: Sequence[str]) -> tuple[str, ...]:
    """A command for logs and errors: values of options that take a secret are masked."""
    shown = [str(tool)]
    hidden = False
    for argument in arguments:
        shown.append(_MASK if hidden else argument)
        hidden = argument.lower() in _SECRET_OPTIONS
    return tuple(shown)


def decode(data: bytes) -> str:
    """What a tool printed, as text with `\\n` at line ends.

    MSBuild writes UTF-8 (it is told so by DOTNET_CLI_UI_LANGUAGE, see `Kit.environment`), the tools below it and the
    kit's own write the OEM code page, so every line is decoded for itself; what is UTF-16 throughout is taken as that.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif len(data) >= 4 and data[1::2].count(0) * 2 > len(data[1::2]):
        text = data.decode("utf-16-le", errors="replace")
    else:
        text = "\n".join(map(_decode_line, data.removeprefix(codecs.BOM_UTF8).split(b"\n")))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode_line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("oem" if sys.platform == "win32" else "cp437", errors="replace")


class _Pipes:
    """Reads both streams of a process while it runs, and feeds it."""

    def __init__(self, tree: ProcessTree, stdin: bytes) -> None:
        self._collected = (bytearray(), bytearray())
        process = tree.process
        assert process.stdin and process.stdout and process.stderr
        self._threads = (
            threading.Thread(target=_read, args=(process.stdout, self._collected[0]), daemon=True),
            threading.Thread(target=_read, args=(process.stderr, self._collected[1]), daemon=True),
            threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until everything that was printed has been read."""
        for thread in self._threads:
            thread.join(_DRAIN_SECONDS)

    @property
    def stdout(self) -> bytes:
        """What was printed so far."""
        return bytes(self._collected[0])

    @property
    def stderr(self) -> bytes:
        """What was printed to the other stream so far."""
        return bytes(self._collected[1])


def _read(pipe: IO[bytes], into: bytearray) -> None:
    with pipe:
        while piece := os.read(pipe.fileno(), 1 << 16):
            into += piece


def _feed(pipe: IO[bytes], data: bytes) -> None:
    # A process that ends without reading its input is no failure: its exit code tells.
    with suppress(OSError), pipe:
        pipe.write(data)
