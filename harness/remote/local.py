"""This host as the guest: commands are child processes of cmd.exe, files are files."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import IO

from harness.log import Log
from harness.remote.channels import CommandResult, Upload, shorten, shown_code, transfer
from harness.remote.process_tree import ProcessTree
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, command_line
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError

CMD: tuple[str, ...] = ("cmd.exe",)

_PIECE_BYTES = 1 << 16
_END_SECONDS = 10.0
"""How long the pipes of a process that was killed may take to close."""


class LocalCommands:
    """Runs commands on this Windows host.

    Args:
        machine: the machine's name, for messages.
        log: gets every command with its duration and exit code.
        program: what is called as cmd.exe is; only tests have another.
        root: directory that holds C: where `program` is another; None = this host's own drives.

    Raises:
        GuestError: this host is not Windows.
    """

    def __init__(
        self, *, machine: str, log: Log, program: Sequence[str] = CMD, root: Path | None = None
    ) -> None:
        if program == CMD:
            _check_host(machine)
        self._machine = machine
        self._log = log
        self._program = tuple(program)
        self._root = root

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline: Deadline,
        stdin: bytes | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_output: bool = True,
    ) -> CommandResult:
        """Run one command and wait for its end; see `Commands.run`."""
        line = command if isinstance(command, str) else command_line(command)
        if len(line) > COMMAND_LINE_CHARACTERS:
            raise GuestError(
                f"a command of {len(line)} characters is too long for cmd.exe", machine=self._machine
            )
        deadline.check(f"'{shorten(line)}' to be started", machine=self._machine)
        started = time.monotonic()
        tree = self._start(line, directory, environment)
        collected = _Collected(on_output, keep_output)
        threads = [
            threading.Thread(target=collected.take_output, args=(tree.process.stdout,), daemon=True),
            threading.Thread(target=collected.take_errors, args=(tree.process.stderr,), daemon=True),
            threading.Thread(target=_feed, args=(tree.process.stdin, stdin or b""), daemon=True),
        ]
        try:
            for thread in threads:
                thread.start()
            ended = tree.wait(deadline, collected.stop)
        except BaseException as error:
            self._log.write(f"! {line}\n{type(error).__name__}: {error}")
            raise
        finally:
            tree.kill()
            for thread in threads:
                thread.join(_END_SECONDS)
        collected.check()
        seconds = time.monotonic() - started
        if ended is None:
            last = collected.output.strip().rpartition("\n")[2]
            said = f"; its last output was '{shorten(last)}'" if last else ""
            message = f"'{shorten(line)}' did not end within {seconds:.0f} s{said}"
            self._log.write(f"! {line}\n{message}")
            raise DeadlineExceededError(message, machine=self._machine)
        result = CommandResult(line, ended, collected.output, collected.errors, seconds)
        self._log.write(f"> {line}\nexit code {shown_code(result.exit_code)} after {seconds:.3f} s")
        if result.exit_code and result.output:
            self._log.write(shorten(result.output, 4000))
        return result

    def close(self) -> None:
        """Nothing is kept between commands."""

    def _start(self, line: str, directory: str | None, environment: Mapping[str, str] | None) -> ProcessTree:
        # Output in UTF-8, as a WinRM shell with that code page gives it; `chcp` sets it for the hidden console.
        told = f'/d /s /c "chcp 65001 >nul & {line}"'
        # A list would be quoted once more on Windows, where a command line is one text.
        arguments = (
            " ".join([*self._program, told])
            if sys.platform == "win32" and self._root is None
            else [*self._program, *told.split(" ", 3)]
        )
        place = None if directory is None else local_path(directory, self._root)
        variables = None if environment is None else {**os.environ, **environment}
        try:
            return ProcessTree.start(arguments, directory=place, environment=variables)
        except OSError as error:
            raise GuestError(
                f"'{shorten(line)}' could not be started: {error.strerror or error}", machine=self._machine
            ) from error


class LocalFiles:
    """Files of this host by their Windows paths.

    Args:
        machine: the machine's name, for messages.
        log: gets every transfer with its size and speed.
        root: directory that holds C: elsewhere; None = this host's own drives.

    Raises:
        GuestError: this host is not Windows, and no `root` stands for its drives.
    """

    def __init__(self, *, machine: str, log: Log, root: Path | None = None) -> None:
        if root is None:
            _check_host(machine)
        self._machine = machine
        self._log = log
        self._root = root

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        """Copy files; see `Files.put`. What is local is never resumed."""
        started = time.monotonic()
        total = count = 0
        for upload in uploads:
            deadline.check(f"'{upload.target}' to be copied", machine=self._machine)
            target = self._path(upload.target)
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                shutil.copyfile(upload.source, part)
                total += part.stat().st_size
                part.replace(target)
            except OSError as error:
                raise self._failure(error, f"copying '{upload.target}'") from error
            count += 1
        self._log.write(transfer("copied", count, total, time.monotonic() - started))
        return total

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        path = self._path(target)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            raise self._failure(error, f"writing '{target}'") from error

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        """Content of a file; see `Files.read_bytes`."""
        try:
            with self._path(source).open("rb") as file:
                file.seek(offset)
                return file.read(-1 if limit is None else limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure(error, f"reading '{source}'") from error

    def size(self, path: str, deadline: Deadline) -> int | None:
        """Size of a file; see `Files.size`."""
        try:
            return self._path(path).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._failure(error, f"looking at '{path}'") from error

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Copy a directory; see `Files.get_tree`."""
        top = self._path(source)
        copied: list[Path] = []
        try:
            for path in sorted(top.rglob("*")) if top.is_dir() else ():
                deadline.check(f"'{source}' to be fetched", machine=self._machine)
                if path.is_file():
                    place = target / path.relative_to(top)
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)
                    copied.append(place)
        except OSError as error:
            raise self._failure(error, f"fetching '{source}'") from error
        return copied

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        for path in paths:
            try:
                self._path(path).unlink(missing_ok=True)
            except NotADirectoryError:
                continue
            except OSError as error:
                raise self._failure(error, f"removing '{path}'") from error

    def close(self) -> None:
        """Nothing is kept open."""

    def _path(self, path: str) -> Path:
        return local_path(path, self._root)

    def _failure(self, error: OSError, doing: str) -> GuestError:
        hint = "run it as an administrator" if isinstance(error, PermissionError) else None
        return GuestError(
            f"{doing} failed on this host: {error.strerror or error}", hint=hint, machine=self._machine
        )


def local_path(path: str, root: Path | None) -> Path:
    r"""A Windows path as a path of this host: itself, or `C:\x` below the directory that stands for C:."""
    return Path(path) if root is None else root.joinpath(*PureWindowsPath(path).parts[1:])


def _check_host(machine: str) -> None:
    """Elsewhere a Windows path would be the name of a file in the working directory."""
    if sys.platform != "win32":
        raise GuestError(
            "this host is not Windows, so it cannot be tested on itself",
            hint="choose another machine: ./inv test --machine emulated",
            machine=machine,
        )


class _Collected:
    """What a process prints, taken by two threads while it runs."""

    def __init__(self, on_output: Callable[[str], None] | None, keep: bool) -> None:
        self._on_output = on_output
        self._keep = keep
        self._output: list[str] = []
        self._errors = bytearray()
        self._failed: BaseException | None = None
        self.stop = threading.Event()
        """Set when nobody wants the rest of the output any more."""

    @property
    def output(self) -> str:
        return "".join(self._output)

    @property
    def errors(self) -> str:
        return self._errors.decode("utf-8-sig", errors="replace")

    def take_output(self, pipe: IO[bytes]) -> None:
        decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        with pipe:
            while piece := os.read(pipe.fileno(), _PIECE_BYTES):
                self._take(decode(piece))
            self._take(decode(b"", True))

    def take_errors(self, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := os.read(pipe.fileno(), _PIECE_BYTES):
                self._errors += piece

    def check(self) -> None:
        """Raise what `on_output` raised."""
        if self._failed is not None:
            raise self._failed

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._keep:
            self._output.append(text)
        if self._on_output is not None and self._failed is None:
            try:
                self._on_output(text)
            except BaseException as error:  # noqa: BLE001  # raised again by `check` in the caller's thread
                self._failed = error
                self.stop.set()


def _feed(pipe: IO[bytes], data: bytes) -> None:
    # A process that ends without reading its input is no failure: its exit code tells.
    with suppress(OSError), pipe:
        pipe.write(data)
