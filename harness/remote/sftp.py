"""Files of the guest over SFTP: sent beside their place and renamed into it, with the host key pinned."""

from __future__ import annotations

import logging
import posixpath
import socket
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import paramiko

from harness.log import Log
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError
from vm.machine import GuestAddress

# Without a handler Python would print the transport's warnings between the lines of the console.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

STEP_SECONDS = 30
"""How long one exchange with the SFTP server may take before the guest counts as not answering."""

PREFETCH_REQUESTS = 64
"""Requests in flight while a file is fetched: as fast as unlimited, without flooding the server."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One file to send: its content and its Windows path in the guest."""

    source: Path
    target: str


class Sftp:
    """Sends and fetches files; connects on first use, from any number of threads one after the other.

    Args:
        address: where the guest answers, with the pinned host key.
        machine: the machine's name, for messages.
        log: gets every transfer with its size and speed.
    """

    def __init__(self, address: GuestAddress, *, machine: str, log: Log) -> None:
        self._address = address
        self._machine = machine
        self._log = log
        self._lock = threading.Lock()
        self._transport: paramiko.Transport | None = None
        self._client: paramiko.SFTPClient | None = None
        self._directories: set[str] = set()
        log.protect(address.credentials.password)

    @property
    def where(self) -> str:
        """Host and port, as messages show them."""
        return f"{self._address.host}:{self._address.ssh_port}"

    def put(self, uploads: Iterable[Upload], deadline: Deadline) -> int:
        """Send files, each as `.part` that is renamed when it is complete; returns the bytes sent.

        Raises:
            GuestError: a file cannot be written, or the guest is not the one whose key is pinned.
            DeadlineExceededError: not all of them arrived in time; what is complete stays.
        """
        started = time.monotonic()
        total = count = 0
        with self._lock:
            for upload in uploads:
                client = self._ready(deadline, f"'{upload.target}' to be sent")
                target = sftp_path(upload.target)
                try:
                    self._make_directories(client, posixpath.dirname(target))
                    attributes = client.put(str(upload.source), target + ".part")
                    client.posix_rename(target + ".part", target)
                except (OSError, paramiko.SSHException, EOFError) as error:
                    raise self._failure(error, f"sending '{upload.target}'") from error
                total += attributes.st_size or 0
                count += 1
        self._log_speed("sent", count, total, time.monotonic() - started)
        return total

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        """Write one small file, replacing an older one."""
        with self._lock:
            client = self._ready(deadline, f"'{target}' to be written")
            path = sftp_path(target)
            try:
                self._make_directories(client, posixpath.dirname(path))
                with client.open(path + ".part", "wb") as file:
                    file.set_pipelined(True)
                    file.write(content)
                client.posix_rename(path + ".part", path)
            except (OSError, paramiko.SSHException, EOFError) as error:
                raise self._failure(error, f"writing '{target}'") from error

    def read_bytes(self, source: str, deadline: Deadline) -> bytes | None:
        """Content of a file in the guest, None when there is none."""
        with self._lock:
            client = self._ready(deadline, f"'{source}' to be read")
            try:
                with client.open(sftp_path(source), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None
            except (OSError, paramiko.SSHException, EOFError) as error:
                raise self._failure(error, f"reading '{source}'") from error

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        """Fetch a directory of the guest into `target`; returns what was fetched, nothing when there is none."""
        started = time.monotonic()
        fetched: list[Path] = []
        with self._lock:
            client = self._ready(deadline, f"'{source}' to be fetched")
            try:
                self._fetch(client, sftp_path(source), target, deadline, fetched)
            except FileNotFoundError:
                return fetched
            except (OSError, paramiko.SSHException, EOFError) as error:
                raise self._failure(error, f"fetching '{source}'") from error
        size = sum(path.stat().st_size for path in fetched)
        self._log_speed("fetched", len(fetched), size, time.monotonic() - started)
        return fetched

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        """Remove files; those that are not there are fine."""
        with self._lock:
            for path in paths:
                client = self._ready(deadline, f"'{path}' to be removed")
                try:
                    with suppress(FileNotFoundError):
                        client.remove(sftp_path(path))
                except (OSError, paramiko.SSHException, EOFError) as error:
                    raise self._failure(error, f"removing '{path}'") from error

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        with self._lock:
            self._disconnect()

    def _fetch(
        self, client: paramiko.SFTPClient, source: str, target: Path, deadline: Deadline, fetched: list[Path]
    ) -> None:
        for entry in client.listdir_attr(source):
            deadline.check(f"'{source}' to be fetched", machine=self._machine)
            path, place = posixpath.join(source, entry.filename), target / _safe_name(entry.filename)
            if stat.S_ISDIR(entry.st_mode or 0):
                self._fetch(client, path, place, deadline, fetched)
            else:
                target.mkdir(parents=True, exist_ok=True)
                client.get(path, str(place), max_concurrent_prefetch_requests=PREFETCH_REQUESTS)
                fetched.append(place)

    def _ready(self, deadline: Deadline, what: str) -> paramiko.SFTPClient:
        deadline.check(what, machine=self._machine)
        if self._client is None or self._transport is None or not self._transport.is_active():
            self._connect(deadline)
        assert self._client is not None
        channel = self._client.get_channel()
        if channel is not None:
            channel.settimeout(max(0.1, min(deadline.remaining, STEP_SECONDS)))
        return self._client

    def _connect(self, deadline: Deadline) -> None:
        self._disconnect()
        address = self._address
        if address.ssh_port is None:
            raise GuestError(
                "the guest has no SFTP", hint="give the machine an ssh_port", machine=self._machine
            )
        seconds = max(0.1, min(deadline.remaining, STEP_SECONDS))
        try:
            sock = socket.create_connection((address.host, address.ssh_port), timeout=seconds)
            # Without it every small request waits for a delayed acknowledgement: 1 MB/s instead of 30 (measured).
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._transport = paramiko.Transport(sock)
            self._transport.banner_timeout = self._transport.auth_timeout = seconds
            kind, _, key = (address.host_key or "").partition(" ")
            if key:
                options: Any = self._transport.get_security_options()
                options.key_types = [kind]
            self._transport.start_client(timeout=seconds)
            self._check_host_key(self._transport, kind, key)
            self._transport.auth_password(address.credentials.username, address.credentials.password)
            self._client = paramiko.SFTPClient.from_transport(self._transport)
        except paramiko.AuthenticationException as error:
            self._disconnect()
            raise GuestError(
                f"the guest at {self.where} refused the user name or password for SFTP",
                hint="the machine's state may be stale: ./inv vm.stop, then run the command again",
                machine=self._machine,
            ) from error
        except (OSError, paramiko.SSHException, EOFError) as error:
            self._disconnect()
            raise self._failure(error, f"connecting to SFTP at {self.where}") from error

    def _check_host_key(self, transport: paramiko.Transport, kind: str, key: str) -> None:
        shown = transport.get_remote_server_key()
        if not key or shown.get_name() != kind or shown.get_base64() != key.split(" ")[0]:
            self._disconnect()
            raise GuestError(
                f"the SSH host key at {self.where} is not the one that belongs to this machine ({shown.fingerprint})",
                hint="something else listens there; ./inv vm.stop, then start the machine again",
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
        return GuestError(f"SFTP failed while {doing}: {reason}", machine=self._machine)

    def _disconnect(self) -> None:
        self._directories.clear()
        client, transport = self._client, self._transport
        self._client = self._transport = None
        for part in (client, transport):
            if part is not None:
                # A guest that went down cannot be told good-bye.
                with suppress(OSError, EOFError, paramiko.SSHException):
                    part.close()

    def _log_speed(self, what: str, count: int, size: int, seconds: float) -> None:
        speed = size / 1e6 / seconds if seconds else 0.0
        self._log.write(f"{what} {count} files, {size} bytes in {seconds:.3f} s ({speed:.1f} MB/s)")


def sftp_path(path: str) -> str:
    r"""`C:\Downlink\x` as SFTP servers on Windows want it: `/C:/Downlink/x`."""
    return "/" + PureWindowsPath(path).as_posix().lstrip("/")


def _safe_name(name: str) -> str:
    """A file name of the guest, which must not lead out of the directory that it is fetched into."""
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):
        raise GuestError(f"the guest has a file with the name {name!r}, which is not fetched")
    return name
