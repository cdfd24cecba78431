"""Files of the guest over SFTP: sent beside their place and renamed into it, with the host key pinned."""

from __future__ import annotations

import logging
import posixpath
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import IO, TypeVar

import paramiko

from harness.log import Log
from harness.remote import ssh
from harness.remote.addresses import CurrentAddress
from harness.remote.channels import Upload as Upload
from harness.remote.channels import safe_name, transfer
from harness.remote.faults import ConnectionLostError
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import GuestAddress

# Without a handler Python would print the transport's warnings between the lines of the console.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

STEP_SECONDS = 30
"""How long one exchange with the SFTP server may take before the guest counts as not answering."""

PREFETCH_REQUESTS = 64
"""Requests in flight while a file is fetched: as fast as unlimited, without flooding the server."""


PACKET_BYTES = 32768
"""What paramiko writes at once; Win32-OpenSSH has a bug above 100 kB."""

_HINTS = (
    ("bytes arrived", "make room on the guest's C:"),
    (
        "protocol banner",
        "does sshd run in the guest (Get-Service sshd)? Without 'ssh_port' files go through WinRM, which is slower",
    ),
    ("Connection refused", "does sshd run in the guest, and does its firewall let it be reached?"),
    ("Permission denied", "the user has to be an administrator of the guest"),
    ("Failure", "a process in the guest may have the file open, or its disk is full"),
)
"""What helps, by what SSH or the operating system says."""

_FAILURES = (OSError, paramiko.SSHException, EOFError)
_LOST = (ConnectionError, paramiko.SSHException, EOFError)
"""Of these, those after which nobody knows what the guest has done."""
_T = TypeVar("_T")


class Sftp:
    """Sends and fetches files; connects on first use, from any number of threads one after the other.

    Args:
        address: where the guest answers, with the pinned host key.
        machine: the machine's name, for messages.
        log: gets every transfer with its size and speed.
    """

    def __init__(self, address: GuestAddress | CurrentAddress, *, machine: str, log: Log) -> None:
        self._address = address if isinstance(address, CurrentAddress) else CurrentAddress(address)
        self._machine = machine
        self._log = log
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._client: paramiko.SFTPClient | None = None
        self._directories: set[str] = set()

    @property
    def where(self) -> str:
        """Host and port, as messages show them."""
        address = self._address.get()
        return f"{address.host}:{address.ssh_port}"

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        """Send files; see `Files.put`."""
        started = time.monotonic()
        total = count = 0
        # Commands may have removed directories since the last call.
        self._directories.clear()
        for upload in uploads:
            target = sftp_path(upload.target)
            # After a lost connection within one file, what has arrived already counts when it may be resumed.
            total += self._do(
                deadline,
                f"sending '{upload.target}'",
                lambda client, u=upload, t=target: self._send(client, u, t, deadline, resume),  # type: ignore[misc]
            )
            count += 1
        self._log.write(transfer("sent", count, total, time.monotonic() - started))
        return total

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        path = sftp_path(target)

        def write(client: paramiko.SFTPClient) -> None:
            self._directories.clear()
            self._make_directories(client, posixpath.dirname(path))
            with client.open(path + ".part", "wb") as file:
                file.set_pipelined(True)
                file.write(content)
            _check_size(client, path + ".part", len(content))
            client.posix_rename(path + ".part", path)

        self._do(deadline, f"writing '{target}'", write)

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        """Content of a file; see `Files.read_bytes`."""

        def read(client: paramiko.SFTPClient) -> bytes | None:
            try:
                with client.open(sftp_path(source), "rb") as file:
                    if offset:
                        file.seek(offset)
                    elif limit is None:
                        file.prefetch(max_concurrent_requests=PREFETCH_REQUESTS)
                    return file.read(limit)
            except FileNotFoundError:
                return None

        return self._do(deadline, f"reading '{source}'", read)

    def size(self, path: str, deadline: Deadline) -> int | None:
        """Size of a file; see `Files.size`."""
        return self._do(deadline, f"looking at '{path}'", lambda client: _size(client, sftp_path(path)))

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory; see `Files.get_tree`."""
        started = time.monotonic()

        def fetch(client: paramiko.SFTPClient) -> list[Path]:
            fetched: list[Path] = []
            with suppress(FileNotFoundError):
                self._fetch(client, sftp_path(source), target, deadline, fetched)
            return fetched

        found = self._do(deadline, f"fetching '{source}'", fetch)
        size = sum(path.stat().st_size for path in found)
        self._log.write(transfer("fetched", len(found), size, time.monotonic() - started))
        return found

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""

        def delete(client: paramiko.SFTPClient, path: str) -> None:
            with suppress(FileNotFoundError):
                client.remove(sftp_path(path))

        for path in paths:
            self._do(deadline, f"removing '{path}'", lambda client, p=path: delete(client, p))  # type: ignore[misc]

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        with self._lock:
            self._disconnect()

    def _do(self, deadline: Deadline, doing: str, action: Callable[[paramiko.SFTPClient], _T]) -> _T:
        """Carry `action` out, once more over a new connection when the old one was lost.

        All that is done here may be done twice: files are written beside their place, and reading changes nothing.
        """
        with self._lock:
            for attempt in (1, 2):
                fresh = self._client is None
                try:
                    return action(self._ready(deadline, doing))
                except _FAILURES as error:
                    gone = self._is_lost(error)
                    if gone:
                        self._disconnect()
                    # A connection that was lost as soon as it was made is no idle one that the guest has dropped.
                    if attempt == 2 or not gone or fresh or deadline.passed:
                        raise self._failure(error, doing) from error
                    self._log.write(f"connection renewed after '{error}' while {doing}")
        raise AssertionError("unreachable")

    def _is_lost(self, error: Exception) -> bool:
        """True when the connection is at fault, not what was asked for."""
        active = self._transport is not None and self._transport.is_active()
        return not active or isinstance(
            error, EOFError | paramiko.SSHException | ConnectionError | TimeoutError
        )

    def _send(
        self, client: paramiko.SFTPClient, upload: Upload, target: str, deadline: Deadline, resume: bool
    ) -> int:
        """Write one file beside its place and move it there; returns the bytes that were sent."""
        self._make_directories(client, posixpath.dirname(target))
        part = target + ".part"
        with upload.source.open("rb") as source:
            size = source.seek(0, 2)
            there = (_size(client, part) or 0) if resume else 0
            begin = there if there <= size else 0
            source.seek(begin)
            with client.open(part, "r+b" if begin else "wb") as file:
                file.set_pipelined(True)
                file.seek(begin)
                self._write(file, source, upload.target, deadline)
        _check_size(client, part, size)
        client.posix_rename(part, target)
        return size - begin

    def _write(self, file: paramiko.SFTPFile, source: IO[bytes], name: str, deadline: Deadline) -> None:
        while piece := source.read(PACKET_BYTES):
            deadline.check(f"'{name}' to be sent", machine=self._machine)
            file.write(piece)

    def _fetch(
        self, client: paramiko.SFTPClient, source: str, target: Path, deadline: Deadline, fetched: list[Path]
    ) -> None:
        for entry in client.listdir_attr(source):
            deadline.check(f"'{source}' to be fetched", machine=self._machine)
            path, place = (
                posixpath.join(source, entry.filename),
                target / safe_name(entry.filename, self._machine),
            )
            if stat.S_ISDIR(entry.st_mode or 0):
                self._fetch(client, path, place, deadline, fetched)
            else:
                target.mkdir(parents=True, exist_ok=True)
                client.get(path, str(place), max_concurrent_prefetch_requests=PREFETCH_REQUESTS)
                fetched.append(place)

    def _ready(self, deadline: Deadline, doing: str) -> paramiko.SFTPClient:
        deadline.check(f"SFTP to finish {doing}", machine=self._machine)
        if self._client is None or self._transport is None or not self._transport.is_active():
            self._connect(deadline)
        assert self._client is not None
        channel = self._client.get_channel()
        if channel is not None:
            channel.settimeout(max(0.1, min(deadline.remaining, STEP_SECONDS)))
        return self._client

    def _connect(self, deadline: Deadline) -> None:
        self._disconnect()
        address = self._address.refresh()
        self._log.protect(address.credentials.password)
        seconds = max(0.1, min(deadline.remaining, STEP_SECONDS))
        try:
            self._transport = ssh.connect(address, seconds=seconds, machine=self._machine)
            self._client = paramiko.SFTPClient.from_transport(self._transport)
        except _FAILURES as error:
            self._disconnect()
            raise self._failure(error, f"connecting to SFTP at {self.where}") from error

    def _make_directories(self, client: paramiko.SFTPClient, directory: str) -> None:
        if directory in self._directories or directory.count("/") < 2:
            return
        try:
            client.stat(directory)
        except FileNotFoundError:
            self._make_directories(client, posixpath.dirname(directory))
            client.mkdir(directory)
        self._directories.add(directory)

    def _failure(self, error: Exception, doing: str) -> GuestError | DeadlineExceededError:
        if isinstance(error, TimeoutError):
            return DeadlineExceededError(
                f"the guest did not answer in time while {doing}", machine=self._machine
            )
        reason = getattr(error, "strerror", None) or str(error) or "the connection was closed"
        kind = ConnectionLostError if isinstance(error, _LOST) else GuestError
        return kind(f"SFTP failed while {doing}: {reason}", hint=_hint(reason), machine=self._machine)

    def _disconnect(self) -> None:
        self._directories.clear()
        client, transport = self._client, self._transport
        self._client = self._transport = None
        for part in (client, transport):
            if part is not None:
                # A guest that went down cannot be told good-bye.
                with suppress(OSError, EOFError, paramiko.SSHException):
                    part.close()


def _hint(reason: str) -> str | None:
    return next((hint for words, hint in _HINTS if words in reason), None)


def sftp_path(path: str) -> str:
    r"""`C:\Downlink\x` as SFTP servers on Windows want it: `/C:/Downlink/x`."""
    return "/" + PureWindowsPath(path).as_posix().lstrip("/")


def _check_size(client: paramiko.SFTPClient, path: str, size: int) -> None:
    """Pipelined writes do not tell of a full disk: raise `OSError` when less has arrived than was sent."""
    if (arrived := _size(client, path)) != size:
        raise OSError(f"{arrived} of {size} bytes arrived")


def _size(client: paramiko.SFTPClient, path: str) -> int | None:
    try:
        return client.stat(path).st_size
    except FileNotFoundError:
        return None
