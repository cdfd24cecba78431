"""The two ways into a guest as protocols, commands and files, and the data that passes through them.

Whatever carries them (WinRM, SFTP, this host itself) is a class of its own beside this module; `Guest` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Protocol

from vm.deadline import Deadline
from vm.errors import GuestError


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest left behind. `exit_code` is unsigned: 0 to 0xFFFFFFFF."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        """Both outputs, for messages: inbox tools write their errors to either."""
        return "\n".join(part.strip() for part in (self.stdout, self.stderr) if part.strip())


@dataclass(frozen=True, slots=True)
class Upload:
    """One file to send: its content and its Windows path in the guest."""

    source: Path
    target: str


class ContentError(GuestError):
    """A file in the guest is missing, or is not what was sent."""


class Commands(Protocol):
    """Runs commands in the guest, from any number of threads."""

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
        """Run one command and wait for its end.

        Args:
            command: program and arguments, quoted for cmd.exe by the channel; or a line that is sent as it is.
            deadline: when it passes, the command and its children are killed in the guest.
            stdin: what the command reads before its input is closed; None for one that reads nothing.
            directory: working directory in the guest.
            environment: variables beside those of the logon.
            on_output: gets each piece of standard output as it arrives.
            keep_output: False leaves standard output out of the result, for a command that prints without end.

        Raises:
            DeadlineExceededError: the command did not end in time.
            ConnectionLostError: the connection broke; whether the command has run is not known.
            ShellGoneError: the guest was restarted meanwhile.
            GuestError: everything else that the channel refuses, with what to do.
        """
        ...

    def close(self) -> None:
        """Give up connections and shells; the next call makes new ones."""
        ...


class Files(Protocol):
    """Reads and writes files of the guest by their Windows paths, from one thread at a time.

    Every method raises `GuestError` for what the guest refuses and `DeadlineExceededError` when time is up.
    """

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        """Send files, each as `.part` that is renamed when it is complete; returns the bytes that were sent.

        Args:
            uploads: where each comes from and goes to; missing directories are made.
            deadline: for all of them; what is complete when it passes stays.
            resume: begin where an earlier attempt has stopped. Only for targets whose name tells their content, and
                whose content is verified afterwards.
        """
        ...

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        ...

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        """Content of a file from the byte `offset` on, at most `limit` bytes; None when there is no such file."""
        ...

    def size(self, path: str, deadline: Deadline) -> int | None:
        """Size of a file in bytes; None when there is no such file."""
        ...

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory into `target`; returns what was fetched, nothing when there is none."""
        ...

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        ...

    def close(self) -> None:
        """Give up the connection; the next call makes another one."""
        ...


def shown_code(code: int) -> str:
    """An exit code as people read it: small ones in decimal, statuses and HRESULTs in hexadecimal."""
    return f"{code}" if code < 0x10000 else f"0x{code:08X}"


def shorten(text: str, limit: int = 120) -> str:
    """`text` for a message: cut, with an ellipsis, when it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def transfer(what: str, count: int, size_bytes: int, seconds: float) -> str:
    """A transfer as the log tells it."""
    speed = size_bytes / 1e6 / seconds if seconds else 0.0
    return f"{what} {count} files, {size_bytes} bytes in {seconds:.3f} s ({speed:.1f} MB/s)"


def safe_name(name: str, machine: str) -> str:
    """A file name of the guest, which must not lead out of the directory that it is fetched into.

    Raises:
        GuestError: it would.
    """
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise GuestError(
            f"the guest has a file with the name {name!r}, which is not fetched", machine=machine
        )
    return name


def parent_of(path: str) -> str:
    """The directory of a Windows path."""
    return str(PureWindowsPath(path).parent)
