"""Files of a guest without SSH, over WinRM alone: raw through the standard input of Receive-File.ps1, and back in base64.

Receive-File.ps1 itself gets there by inbox tools: as base64 through findstr into a file that certutil decodes. No script
text is ever composed, and the guest needs no Python.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from harness.log import Log
from harness.remote.channels import CommandResult, Commands, Upload, parent_of, safe_name, transfer
from harness.remote.faults import ConnectionLostError, ShellGoneError
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, quotable, quote
from harness.remote.scripts import NO_SUCH_FILE, SCRIPTS, SOURCES, script_line, script_path
from harness.remote.sync import TAR
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.powershell.script import ParameterValue, Script, ScriptError, answer

RECEIVE = Script(SOURCES / "Receive-File.ps1")
READ = Script(SOURCES / "Read-File.ps1")

PIECE_BYTES = 4 << 20
"""What one call of Read-File.ps1 brings: large against PowerShell's start, small against its memory."""

CLEANUP_SECONDS = 10

_HINTS = {
    "disk-full": "make room on the guest's C:",
    "access-denied": "the user has to be an administrator of the guest",
    "in-use": "a process in the guest has the file open",
    "content-differs": "a disk or a filter in the guest changed it; look at 'fltmc filters'",
}


class WinRmFiles:
    """Sends and fetches files through commands, from one thread at a time.

    Args:
        commands: what runs them.
        machine: the machine's name, for messages.
        log: gets every transfer with its size and speed.
    """

    def __init__(self, commands: Commands, *, machine: str, log: Log) -> None:
        self._commands = commands
        self._machine = machine
        self._log = log
        self._there: set[str] = set()

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        """Send files; see `Files.put`."""
        started = time.monotonic()
        total = count = 0
        for upload in uploads:
            total += self._send(upload.source.read_bytes(), upload.target, deadline, resume=resume)
            count += 1
        self._log.write(transfer("sent", count, total, time.monotonic() - started))
        return total

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one file, replacing an older one."""
        self._send(content, target, deadline, resume=False)

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        """Content of a file; see `Files.read_bytes`."""
        pieces: list[bytes] = []
        taken = 0
        while limit is None or taken < limit:
            count = PIECE_BYTES if limit is None else min(PIECE_BYTES, limit - taken)
            found = self._script(
                READ,
                {"Path": source, "Offset": offset + taken, "Count": count},
                deadline,
                f"reading '{source}'",
            )
            if not found["exists"]:
                return None
            piece = base64.b64decode(found["data"])
            pieces.append(piece)
            taken += len(piece)
            if len(piece) < count:
                break
        return b"".join(pieces)

    def size(self, path: str, deadline: Deadline) -> int | None:
        """Size of a file; see `Files.size`."""
        found = self._script(READ, {"Path": path, "Count": 0}, deadline, f"looking at '{path}'")
        return int(found["size"]) if found["exists"] else None

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory, packed by the guest's tar into one archive; see `Files.get_tree`."""
        started = time.monotonic()
        packed = str(SCRIPTS.parent / f"fetch-{secrets.token_hex(8)}.tgz")
        absent = 3
        line = (
            f"if exist {quote(source + chr(92))} ({TAR} -czf {quote(packed)} -C {quote(source)} .)"
            f" else (exit {absent})"
        )
        result = self._run(line, deadline)
        if result.exit_code == absent and not result.output:
            return []
        try:
            if result.exit_code:
                raise GuestError(
                    f"'{source}' could not be packed in the guest{_last_line(result)}",
                    exit_code=result.exit_code,
                    machine=self._machine,
                )
            content = self.read_bytes(packed, deadline) or b""
        finally:
            with suppress(GuestError, DeadlineExceededError):
                self.remove([packed], Deadline.after(seconds=CLEANUP_SECONDS))
        fetched = self._unpacked(content, target)
        size = sum(path.stat().st_size for path in fetched)
        self._log.write(transfer("fetched", len(fetched), size, time.monotonic() - started))
        return fetched

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        for group in _groups(
            [f"(if exist {self._quoted(path)} del /f /q {self._quoted(path)})" for path in paths]
        ):
            result = self._run(" & ".join(group), deadline)
            # `del` returns 0 also when it could not; it says so on standard error.
            if result.exit_code or result.stderr.strip():
                raise GuestError(
                    f"a file in the guest could not be removed: {result.output.splitlines()[0]}",
                    exit_code=result.exit_code,
                    machine=self._machine,
                )

    def close(self) -> None:
        """What was brought into the guest may be gone when it is used again."""
        self._there.clear()

    def _send(self, content: bytes, target: str, deadline: Deadline, *, resume: bool) -> int:
        """Write a file; goes on where a lost connection has stopped, since the whole is hashed at the end."""
        doing = f"sending '{target}'"
        parameters: dict[str, ParameterValue] = {
            "Path": target,
            "Length": len(content),
            "Sha256": hashlib.sha256(content).hexdigest(),
        }
        begin = self._resumable(content, target, deadline) if resume else 0
        sent = 0
        for attempt in (1, 2):
            rest = content[begin:]
            try:
                done = self._script(RECEIVE, {**parameters, "Append": begin > 0}, deadline, doing, rest)
            except (ConnectionLostError, ShellGoneError) as error:
                if attempt == 2 or deadline.passed:
                    raise
                self._log.write(f"connection renewed after '{error}' while {doing}")
                before = begin
                begin = self._resumable(content, target, deadline)
                sent += max(0, begin - before)
                continue
            if not done["complete"]:
                raise GuestError(
                    f"'{target}' is not complete in the guest: {done['length']} of {len(content)} bytes arrived",
                    machine=self._machine,
                )
            return sent + len(rest)
        raise AssertionError("unreachable")

    def _resumable(self, content: bytes, target: str, deadline: Deadline) -> int:
        """How much of the file lies in the guest already, beside its place."""
        there = self.size(f"{target}.part", deadline) or 0
        # All of it without its name: it may be anything, so it is sent once more.
        return there if there < len(content) else 0

    def _script(
        self,
        script: Script,
        parameters: Mapping[str, ParameterValue],
        deadline: Deadline,
        doing: str,
        stdin: bytes | None = None,
    ) -> dict[str, Any]:
        content = script.path.read_bytes()
        path = script_path(content, script.path.name)
        try:
            line = script_line(script, path, parameters, self._machine)
            for _ in (1, 2):
                if path not in self._there:
                    self._bring(path, content, deadline)
                    self._there.add(path)
                # What writes to a file is repeated by `_send`, which looks first how far it has come.
                run = self._run if stdin is None else self._run_once
                result = run(line, deadline, stdin)
                if result.exit_code != NO_SUCH_FILE:
                    break
                # The guest was restored meanwhile. Without its file nothing has run.
                self._there.discard(path)
            found: dict[str, Any] = answer(
                script, result.exit_code, result.stdout, result.stderr, self._machine
            )
        except ScriptError as error:
            raise GuestError(
                f"the guest failed while {doing}: {error.message}",
                hint=_HINTS.get(error.code) or error.hint,
                machine=self._machine,
            ) from error
        return found

    def _bring(self, path: str, content: bytes, deadline: Deadline) -> None:
        """Have one of the two scripts in the guest, with nothing but what Windows brings along."""
        digest = hashlib.sha256(content).hexdigest()
        if self._digest(path, deadline) == digest:
            return
        encoded, directory = quote(f"{path}.b64"), quote(parent_of(path))
        steps = (
            (f'(if not exist {directory} mkdir {directory}) & findstr "^" > {encoded}', _lines(content)),
            (f"certutil -f -decode {encoded} {quote(path)} && del /q {encoded}", None),
        )
        for line, stdin in steps:
            result = self._run(line, deadline, stdin)
        if self._digest(path, deadline) != digest:
            raise GuestError(
                f"the script '{PureWindowsPath(path).name}' arrived damaged in the guest{_last_line(result)}",
                hint="is there room on its C:, and is the user an administrator?",
                machine=self._machine,
            )

    def _digest(self, path: str, deadline: Deadline) -> str:
        result = self._run(["certutil", "-hashfile", path, "SHA256"], deadline)
        lines = [line.replace(" ", "").strip().lower() for line in result.stdout.splitlines()]
        return next((line for line in lines if len(line) == 64 and set(line) <= set("0123456789abcdef")), "")

    def _run(
        self, command: Sequence[str] | str, deadline: Deadline, stdin: bytes | None = None
    ) -> CommandResult:
        """Run a command that may run twice, and does when the connection was lost in it."""
        try:
            return self._run_once(command, deadline, stdin)
        except (ConnectionLostError, ShellGoneError) as error:
            if deadline.passed:
                raise
            self._log.write(f"once more: {error.message}")
            return self._run_once(command, deadline, stdin)

    def _run_once(
        self, command: Sequence[str] | str, deadline: Deadline, stdin: bytes | None = None
    ) -> CommandResult:
        return self._commands.run(command, deadline=deadline, stdin=stdin)

    def _unpacked(self, content: bytes, target: Path) -> list[Path]:
        """The files of an archive that the guest has packed, none of which may lead out of `target`."""
        fetched: list[Path] = []
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            try:
                with tarfile.open(fileobj=file, mode="r:*") as tar:
                    for entry in tar:
                        source = tar.extractfile(entry) if entry.isfile() else None
                        if source is None:
                            continue
                        parts = PurePosixPath(entry.name).parts
                        place = target.joinpath(*(safe_name(part, self._machine) for part in parts))
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(source.read())
                        fetched.append(place)
            except tarfile.TarError as error:
                raise GuestError(
                    f"the guest packed its files badly: {error}", machine=self._machine
                ) from error
        return fetched

    def _quoted(self, path: str) -> str:
        if not quotable(path):
            raise GuestError(f"{path!r} cannot be a path in the guest", machine=self._machine)
        return quote(path)


def _last_line(result: CommandResult) -> str:
    """What a command that failed said last, to follow a sentence."""
    said = result.output.strip().splitlines()
    return f": {said[-1].strip()}" if said and result.exit_code else ""


def _lines(content: bytes) -> bytes:
    """Base64 in lines that findstr takes."""
    return base64.encodebytes(content).replace(b"\n", b"\r\n")


def _groups(commands: Sequence[str]) -> Iterator[list[str]]:
    """Commands in groups that fit one line of cmd.exe."""
    group: list[str] = []
    length = 0
    for command in commands:
        if group and length + len(command) > COMMAND_LINE_CHARACTERS - 100:
            yield group
            group, length = [], 0
        group.append(command)
        length += len(command) + len(" & ")
    if group:
        yield group
