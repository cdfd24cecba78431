"""The guest: commands, files and boot identity behind one object."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from harness.log import Log
from harness.remote.polling import wait_until
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, command_line
from harness.remote.sftp import Sftp, Upload
from harness.remote.winrm import CommandResult, WinRm, shown_code
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import GuestAddress

BOOT_KEY = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
BOOT_VALUE = "BootId"
"""Windows counts its boots in this value."""

_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")


class Guest:
    """One running guest. Close it (or use it as a context manager) when it is not needed any more.

    Args:
        address: where it answers and how to log on.
        machine: the machine's name, for messages.
        log: gets every command and transfer.
    """

    def __init__(self, address: GuestAddress, *, machine: str, log: Log | None = None) -> None:
        self.machine = machine
        self.log = log or Log()
        self._winrm = WinRm(address, machine=machine, log=self.log)
        self._sftp = Sftp(address, machine=machine, log=self.log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline: Deadline,
        check: bool = True,
        stdin: bytes = b"",
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_output: bool = True,
    ) -> CommandResult:
        """Run one command; see `WinRm.run`. With `check`, an exit code other than 0 is a `GuestError`."""
        result = self._winrm.run(
            command,
            deadline=deadline,
            stdin=stdin,
            directory=directory,
            environment=environment,
            on_output=on_output,
            keep_output=keep_output,
        )
        if check and result.exit_code:
            raise failure(result, self.machine)
        return result

    def put(self, uploads: Iterable[Upload], deadline: Deadline) -> int:
        """Send files; returns the bytes sent. See `Sftp.put`."""
        return self._sftp.put(uploads, deadline)

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        self._sftp.put_bytes(content, target, deadline)

    def read_bytes(self, source: str, deadline: Deadline) -> bytes | None:
        """Content of a file in the guest, None when there is none."""
        return self._sftp.read_bytes(source, deadline)

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory into `target`; returns what was fetched."""
        return self._sftp.get_tree(source, target, deadline)

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        self._sftp.remove(paths, deadline)

    def verify(self, digests: Mapping[str, str], deadline: Deadline) -> None:
        """Have the guest itself compute the SHA-256 of files and compare.

        Args:
            digests: SHA-256 in hex by Windows path.

        Raises:
            GuestError: a file is missing or differs; names the first one.
        """
        for group in _groups(tuple(digests)):
            line = " & ".join(_hash_command(path) for path in group)
            result = self.run(line, deadline=deadline, check=False)
            found = _digests(result.stdout)
            if len(found) != len(group):
                # One of them could not be read, and the sequence has one exit code only: ask for each.
                found = [_first(_digests(self._hash(path, deadline))) for path in group]
            for path, seen in zip(group, found, strict=True):
                if not seen:
                    raise GuestError(f"'{path}' is not in the guest", machine=self.machine)
                if seen != digests[path].lower():
                    raise GuestError(
                        f"'{path}' in the guest is not what was sent: its SHA-256 is {seen[:16]}…"
                        f" instead of {digests[path][:16]}…",
                        hint="a disk or a filter in the guest changed it; look at 'fltmc filters'",
                        machine=self.machine,
                    )

    def boot_identity(self, deadline: Deadline) -> str:
        """What tells one boot of this guest from the next."""
        result = self.run(["reg", "query", BOOT_KEY, "/v", BOOT_VALUE], deadline=deadline)
        words = result.stdout.split()
        if BOOT_VALUE not in words[:-1]:
            raise GuestError("the guest does not tell which boot this is", machine=self.machine)
        return words[-1]

    def reconnect(self) -> None:
        """Forget all connections and shells; the next call makes new ones."""
        self.close()

    def wait_for_boot(self, previous: str | None, deadline: Deadline) -> str:
        """Wait until the guest answers, with another boot identity than `previous`; returns the new one.

        Raises:
            DeadlineExceededError: it did not come back; says what was last seen.
        """
        identity = ""

        def probe() -> str | None:
            nonlocal identity
            try:
                identity = self.boot_identity(deadline.sooner(seconds=10))
            except (GuestError, DeadlineExceededError) as error:
                self.reconnect()
                return str(error)
            return f"still the boot {identity}" if identity == previous else None

        wait_until(probe, "the guest to come back", deadline, machine=self.machine)
        return identity

    def close(self) -> None:
        """Close all connections."""
        self._winrm.close()
        self._sftp.close()

    def _hash(self, path: str, deadline: Deadline) -> str:
        return self.run(_hash_command(path), deadline=deadline, check=False).stdout


def failure(result: CommandResult, machine: str, *, hint: str | None = None) -> GuestError:
    """The error for a command that returned something other than 0, with the last line that it printed."""
    program = result.command.split(" ", 1)[0]
    said = result.output.strip().splitlines()
    text = f": {said[-1].strip()}" if said else ""
    code = result.exit_code
    shown = shown_code(code)
    if not hint and code in (1, 9009) and "is not recognized" in result.output:
        hint = f"'{program}' is not installed in the guest, or not in its PATH"
    return GuestError(
        f"'{result.command[:160]}' returned {shown}{text}", exit_code=code, hint=hint, machine=machine
    )


def _hash_command(path: str) -> str:
    return command_line(["certutil", "-hashfile", path, "SHA256"])


def _digests(output: str) -> list[str]:
    """The digests in the output of certutil, whose other lines are in the guest's language."""
    lines = (line.strip().replace(" ", "") for line in output.splitlines())
    return [line.lower() for line in lines if _SHA256.match(line)]


def _first(found: list[str]) -> str:
    return found[0] if found else ""


def _groups(paths: Sequence[str]) -> list[list[str]]:
    """The paths in groups whose commands fit one line of cmd.exe."""
    groups: list[list[str]] = []
    length = COMMAND_LINE_CHARACTERS
    for path in paths:
        needed = len(_hash_command(path)) + len(" & ")
        if length + needed > COMMAND_LINE_CHARACTERS - 100:
            groups.append([])
            length = 0
        groups[-1].append(path)
        length += needed
    return groups
