"""Files of the guest over SFTP: sent beside their place and renamed into it, with the host key pinned."""

from __future__ import annotations

import logging
import posixpath
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import IO, Any, TypeVar

import paramiko

from harness.log import Log
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

_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")

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
        if address.ssh_port is None:
            raise GuestError(
                "the guest has no SFTP", hint="give the machine an ssh_port", machine=self._machine
            )
        seconds = max(0.1, min(deadline.remaining, STEP_SECONDS))
        key_file = self._private_key(address)
        try:
            sock = socket.create_connection((address.host, address.ssh_port), timeout=seconds)
            # Without it every small request waits for a delayed acknowledgement: 1 MB/s instead of 30 (measured).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transport = paramiko.Transport(sock)
            self._transport.banner_timeout = self._transport.auth_timeout = seconds
            kind, _, key = (address.host_key or "").partition(" ")
            if key:
                options: Any = self._transport.get_security_options()
                # An RSA key is one kind of key and signs in several ways; the oldest (SHA-1) is not wanted.
                ways = _RSA_SIGNATURES if kind == "ssh-rsa" else (kind,)
                options.key_types = [way for way in ways if way in options.key_types] or options.key_types
            self._transport.start_client(timeout=seconds)
            self._check_host_key(self._transport, kind, key)
            if key_file is not None:
                self._transport.auth_publickey(address.credentials.username, key_file)
            else:
                self._transport.auth_password(address.credentials.username, address.credentials.password)
            self._client = paramiko.SFTPClient.from_transport(self._transport)
        except paramiko.AuthenticationException as error:
            self._disconnect()
            raise self._refused(address) from error
        except _FAILURES as error:
            self._disconnect()
            raise self._failure(error, f"connecting to SFTP at {self.where}") from error

    def _private_key(self, address: GuestAddress) -> paramiko.PKey | None:
        """The key to log on with, None for the password; raises `GuestError` when its file cannot be used."""
        path = address.private_key
        if path is None:
            return None
        try:
            return paramiko.PKey.from_path(path)
        except OSError as error:
            reason = error.strerror or str(error)
        except (paramiko.PasswordRequiredException, TypeError):
            reason = "it is protected by a passphrase"
        except (paramiko.SSHException, paramiko.pkey.UnknownKeyType, ValueError):
            reason = "it holds no private key"
        raise GuestError(
            f"the private key '{path}' cannot be used: {reason}",
            hint="name a key without a passphrase in 'private_key', or leave it out to log on with the password",
            machine=self._machine,
        )

    def _refused(self, address: GuestAddress) -> GuestError:
        if address.private_key is not None:
            return GuestError(
                f"the guest at {self.where} refused the key '{address.private_key}' for SFTP",
                hint="the public key of an administrator belongs into"
                r" C:\ProgramData\ssh\administrators_authorized_keys in the guest, which only Administrators and SYSTEM"
                " may access",
                machine=self._machine,
            )
        return GuestError(
            f"the guest at {self.where} refused the user name or password for SFTP",
            hint="check the machine's user and password; if the machine is ours, its state may be stale: ./inv vm.stop,"
            " then run the command again",
            machine=self._machine,
        )

    def _check_host_key(self, transport: paramiko.Transport, kind: str, key: str) -> None:
        shown = transport.get_remote_server_key()
        if not key or shown.get_name() != kind or shown.get_base64() != key.split(" ")[0]:
            self._disconnect()
            raise GuestError(
                f"the SSH host key at {self.where} is not the one that belongs to this machine ({shown.fingerprint})",
                hint="something else listens there, or the guest was made anew; a machine of ours: ./inv vm.stop, then start it",
                machine=self._machine,
            )

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
