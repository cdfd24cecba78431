"""The guest: commands, files and boot identity behind one object, whatever carries them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from harness.log import Log
from harness.remote.addresses import CurrentAddress
from harness.remote.channels import CommandResult, Commands, ContentError, Files, Upload, shown_code
from harness.remote.local import LocalCommands, LocalFiles
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, command_line
from harness.remote.repeating import repeated
from harness.remote.sftp import Sftp
from harness.remote.sync import Sync, synchronise
from harness.remote.winrm import WinRm
from harness.remote.winrm_files import WinRmFiles
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError, MachineError
from vm.machine import Channel, GuestAddress
from vm.waiting import wait_until

BOOT_KEY = r"HKLM\SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
BOOT_VALUE = "BootId"
"""Windows counts its boots in this value."""

_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")


class Guest:
    """One running guest. Close it (or use it as a context manager) when it is not needed any more.

    Args:
        address: where it answers and how to log on; or a function that tells it, asked again after a lost connection.
        machine: the machine's name, for messages.
        log: gets every command and transfer.
        commands, files: the ways into the guest; by default those that the address asks for: over WinRM and SFTP, over
            WinRM alone where there is no SSH, or this host itself.
    """

    def __init__(
        self,
        address: GuestAddress | Callable[[], GuestAddress],
        *,
        machine: str,
        log: Log | None = None,
        commands: Commands | None = None,
        files: Files | None = None,
    ) -> None:
        self.machine = machine
        self.log = log or Log()
        self._address = CurrentAddress(address)
        self._commands = commands
        self._files = files

    @property
    def commands(self) -> Commands:
        """What runs commands in it."""
        if self._commands is None:
            if self._address.get().channel is Channel.LOCAL:
                self._commands = LocalCommands(machine=self.machine, log=self.log)
            else:
                self._commands = WinRm(self._address, machine=self.machine, log=self.log)
        return self._commands

    @property
    def files(self) -> Files:
        """What reads and writes its files."""
        if self._files is None:
            address = self._address.get()
            if address.channel is Channel.LOCAL:
                self._files = LocalFiles(machine=self.machine, log=self.log)
            elif address.ssh_port is None:
                self._files = WinRmFiles(self.commands, machine=self.machine, log=self.log)
            else:
                self._files = Sftp(self._address, machine=self.machine, log=self.log)
        return self._files

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
        stdin: bytes | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_output: bool = True,
        repeatable: bool = False,
    ) -> CommandResult:
        """Run one command; see `Commands.run`. With `check`, an exit code other than 0 is a `GuestError`.

        With `repeatable` it is run once more when the connection was lost in it: for commands that only ask.
        """

        def once() -> CommandResult:
            return self.commands.run(
                command,
                deadline=deadline,
                stdin=stdin,
                directory=directory,
                environment=environment,
                on_output=on_output,
                keep_output=keep_output,
            )

        result = repeated(self, once) if repeatable else once()
        if check and result.exit_code:
            raise failure(result, self.machine)
        return result

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        """Send files; returns the bytes sent. See `Files.put`."""
        return self.files.put(uploads, deadline, resume=resume)

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        self.files.put_bytes(content, target, deadline)

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        """Content of a file in the guest from `offset` on, at most `limit` bytes; None when there is none."""
        return self.files.read_bytes(source, deadline, offset=offset, limit=limit)

    def size(self, path: str, deadline: Deadline) -> int | None:
        """Size of a file in bytes; None when there is none."""
        return self.files.size(path, deadline)

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory into `target`; returns what was fetched."""
        return self.files.get_tree(source, target, deadline)

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        self.files.remove(paths, deadline)

    def sync(
        self,
        files: Mapping[str, Path],
        root: str,
        deadline: Deadline,
        *,
        manifest: str,
        digests: Mapping[str, str] | None = None,
    ) -> Sync:
        """Make a directory of the guest hold `files`, sending only what changed; see `synchronise`."""
        return synchronise(self, files, root, deadline, manifest=manifest, digests=digests)

    def verify(self, digests: Mapping[str, str], deadline: Deadline) -> None:
        """Have the guest itself compute the SHA-256 of files and compare.

        Args:
            digests: SHA-256 in hex by Windows path.

        Raises:
            ContentError: a file is missing or differs; names the first one.
        """
        for group in _groups(tuple(digests)):
            line = " & ".join(_hash_command(path) for path in group)
            result = self.run(line, deadline=deadline, check=False, repeatable=True)
            found = _digests(result.stdout)
            if len(found) != len(group):
                # One of them could not be read, and the sequence has one exit code only: ask for each.
                found = [_first(_digests(self._hash(path, deadline))) for path in group]
            for path, seen in zip(group, found, strict=True):
                if not seen:
                    raise ContentError(f"'{path}' is not in the guest", machine=self.machine)
                if seen != digests[path].lower():
                    raise ContentError(
                        f"'{path}' in the guest is not what was sent: its SHA-256 is {seen[:16]}…"
                        f" instead of {digests[path][:16]}…",
                        hint="a disk or a filter in the guest changed it; look at 'fltmc filters'",
                        machine=self.machine,
                    )

    def boot_identity(self, deadline: Deadline) -> str:
        """What tells one boot of this guest from the next."""
        command = ["reg", "query", BOOT_KEY, "/v", BOOT_VALUE]
        result = self.run(command, deadline=deadline, repeatable=True)
        words = result.stdout.split()
        if BOOT_VALUE not in words[:-1]:
            raise GuestError("the guest does not tell which boot this is", machine=self.machine)
        return words[-1]

    def reconnect(self) -> None:
        """Forget all connections and shells; the next call makes new ones, where the guest answers then."""
        self.close()
        self._address.forget()

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
            except (GuestError, MachineError, DeadlineExceededError) as error:
                self.reconnect()
                return str(error)
            return f"still the boot {identity}" if identity == previous else None

        wait_until(probe, "the guest to come back", deadline, machine=self.machine)
        return identity

    def close(self) -> None:
        """Close all connections."""
        for channel in (self._commands, self._files):
            if channel is not None:
                channel.close()

    def _hash(self, path: str, deadline: Deadline) -> str:
        return self.run(_hash_command(path), deadline=deadline, check=False, repeatable=True).stdout


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
