"""The SFTP side of the C: drive: Windows sshd's path rules and answers over `Drive`."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import paramiko
from paramiko import SFTPAttributes, SFTPHandle, SFTPServer, SFTPServerInterface
from paramiko.sftp import SFTP_FAILURE, SFTP_NO_SUCH_FILE, SFTP_OK, SFTP_PERMISSION_DENIED

from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.drive import (
    ERROR_ACCESS_DENIED,
    ERROR_FILE_NOT_FOUND,
    ERROR_INVALID_DRIVE,
    ERROR_INVALID_NAME,
    ERROR_PATH_NOT_FOUND,
    Drive,
    WindowsPathError,
    break_hard_link,
)

log = logging.getLogger(__name__)

_CODES = {
    ERROR_FILE_NOT_FOUND: SFTP_NO_SUCH_FILE,
    ERROR_PATH_NOT_FOUND: SFTP_NO_SUCH_FILE,
    ERROR_INVALID_DRIVE: SFTP_NO_SUCH_FILE,
    ERROR_ACCESS_DENIED: SFTP_PERMISSION_DENIED,
    ERROR_INVALID_NAME: SFTP_FAILURE,
}
_DRIVES = "/"
"""The directory that holds the drive letters."""

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")


class SftpFiles(SFTPServerInterface):
    """One SFTP session; paramiko calls it from one thread."""

    def __init__(
        self, server: paramiko.ServerInterface, drive: Drive, home: str, chaos: Chaos, cut: Callable[[], None]
    ) -> None:
        """
        Args:
            cut: closes the connection of this session at once.
        """
        super().__init__(server)
        self._drive = drive
        self._home = home
        self._chaos = chaos
        self._cut = cut
        self._ended = False

    def canonicalize(self, path: str) -> str:
        """realpath: "/C:/dir/name", relative paths from the user's home."""
        if path in ("", "."):
            return self._shown(self._home)
        if path.rstrip("/") == "":
            return _DRIVES
        try:
            return self._shown(self._windows(path))
        except WindowsPathError:
            return path

    def list_folder(self, path: str) -> list[SFTPAttributes] | int:
        if self.canonicalize(path) == _DRIVES:
            return [_attributes(self._drive.root, f"{self._drive.letter}:")]

        def act() -> list[SFTPAttributes]:
            directory = self._host(path)
            if not directory.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, "not a directory")
            return [_attributes(entry, entry.name) for entry in sorted(directory.iterdir())]

        return _answer(act)

    def stat(self, path: str) -> SFTPAttributes | int:
        return self._stat(path, follow=True)

    def lstat(self, path: str) -> SFTPAttributes | int:
        return self._stat(path, follow=False)

    def open(self, path: str, flags: int, attr: SFTPAttributes) -> SFTPHandle | int:
        def act() -> SFTPHandle:
            host = self._host(path)
            if host.is_dir():
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            if flags & (os.O_WRONLY | os.O_RDWR):
                break_hard_link(host)
            descriptor = os.open(
                host, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o644
            )
            return _Handle(descriptor, flags, self._admit)

        return _answer(act)

    def remove(self, path: str) -> int:
        def act() -> int:
            host = self._host(path, follow=False)
            if host.is_dir() and not host.is_symlink():
                return SFTP_FAILURE
            host.unlink()
            return SFTP_OK

        return _answer(act)

    def rename(self, oldpath: str, newpath: str) -> int:
        """SSH_FXP_RENAME: never over an existing file."""
        return _answer(lambda: self._rename(oldpath, newpath, replace=False))

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        """posix-rename@openssh.com: replaces an existing file."""
        return _answer(lambda: self._rename(oldpath, newpath, replace=True))

    def mkdir(self, path: str, attr: SFTPAttributes) -> int:
        def act() -> int:
            self._host(path).mkdir()
            return SFTP_OK

        return _answer(act)

    def rmdir(self, path: str) -> int:
        def act() -> int:
            host = self._host(path, follow=False)
            if host == self._drive.root:
                return SFTP_PERMISSION_DENIED
            host.rmdir()
            return SFTP_OK

        return _answer(act)

    def chattr(self, path: str, attr: SFTPAttributes) -> int:
        """setstat: size and times; owners and modes mean nothing on NTFS and are accepted."""

        def act() -> int:
            _change(self._host(path), attr)
            return SFTP_OK

        return _answer(act)

    def _admit(self, size: int) -> int:
        """How many of so many bytes are to be written; OSError if none can be."""
        if self._ended:
            # What the client had sent before the cut is still read; nothing of it may reach the disk.
            raise ConnectionAbortedError(errno.ECONNABORTED, "the connection closes")
        self._drive.charge(size)
        try:
            return self._chaos.on_upload(size)
        except ConnectionAbortedError:
            self._ended = True
            self._cut()
            raise

    def _stat(self, path: str, *, follow: bool) -> SFTPAttributes | int:
        if self.canonicalize(path) == _DRIVES:
            return _attributes(self._drive.root, _DRIVES)
        return _answer(lambda: _attributes(self._host(path, follow=follow), None))

    def _rename(self, old: str, new: str, *, replace: bool) -> int:
        source = self._host(old, follow=False)
        target = self._host(new, follow=False)
        source.lstat()
        # A name that differs in case only is the same file to Windows, and gets its new spelling.
        same = os.path.lexists(target) and target.samefile(source)
        if same:
            target = target.parent / self._windows(new).rpartition("\\")[2]
        elif os.path.lexists(target) and (not replace or target.is_dir()):
            return SFTP_FAILURE
        source.replace(target)
        return SFTP_OK

    def _windows(self, path: str) -> str:
        """The Windows path; backslashes are refused as Windows' sshd does not take them for separators."""
        if "\\" in path:
            raise WindowsPathError(ERROR_INVALID_NAME, path)
        text = path
        if text.startswith("/"):
            text = text.lstrip("/")
            if len(text) < 2 or text[1] != ":":
                # "/dir" is a drive letter that does not exist.
                raise WindowsPathError(ERROR_INVALID_DRIVE, path)
        if len(text) == 2:
            text += "/"
        return self._drive.absolute(text, directory=self._home)

    def _host(self, path: str, *, follow: bool = True) -> Path:
        return self._drive.host_path(self._windows(path), follow=follow)

    def _shown(self, windows: str) -> str:
        return "/" + windows.replace("\\", "/")


class _Handle(SFTPHandle):
    """One open file."""

    def __init__(self, descriptor: int, flags: int, admit: Callable[[int], int]) -> None:
        super().__init__(flags)
        self._admit = admit
        writes = flags & (os.O_WRONLY | os.O_RDWR)
        reads = not flags & os.O_WRONLY
        mode = "rb" if not writes else "r+b" if reads else "ab" if flags & os.O_APPEND else "wb"
        self._file = os.fdopen(descriptor, mode)
        if reads:
            self.readfile = self._file
        if writes:
            self.writefile = self._file

    def write(self, offset: int, data: Buffer) -> int:
        def act() -> int:
            view = memoryview(data)
            return int(super(_Handle, self).write(offset, view[: self._admit(len(view))]))

        return _answer(act)

    def stat(self) -> SFTPAttributes | int:
        return _answer(lambda: SFTPAttributes.from_stat(os.fstat(self._file.fileno())))

    def chattr(self, attr: SFTPAttributes) -> int:
        def act() -> int:
            if attr.st_size is not None:
                self._file.truncate(attr.st_size)
            if attr.st_mtime is not None and os.utime in os.supports_fd:
                os.utime(self._file.fileno(), (attr.st_atime or attr.st_mtime, attr.st_mtime))
            return SFTP_OK

        return _answer(act)


def _answer(act: Callable[[], T]) -> T | int:
    try:
        return act()
    except WindowsPathError as error:
        return _CODES.get(error.code, SFTP_FAILURE)
    except OSError as error:
        log.debug("SFTP: %s", error)
        return SFTPServer.convert_errno(error.errno) if error.errno is not None else SFTP_FAILURE


def _attributes(host: Path, name: str | None) -> SFTPAttributes:
    attributes = SFTPAttributes.from_stat(
        host.lstat() if name is not None and host.is_symlink() else host.stat(), name
    )
    # Owners of the host have no meaning in the guest.
    attributes.st_uid = attributes.st_gid = 0
    return attributes


def _change(host: Path, attr: SFTPAttributes) -> None:
    host.stat()
    if attr.st_size is not None:
        break_hard_link(host)
        os.truncate(host, attr.st_size)
    if attr.st_mtime is not None:
        os.utime(host, (attr.st_atime if attr.st_atime is not None else attr.st_mtime, attr.st_mtime))
