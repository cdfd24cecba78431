"""The C: drive of the guest: Windows paths on one side, files below one host directory on the other.

Everything that touches files for the guest (SFTP, inbox commands, starting python) asks this module for the host path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

ERROR_FILE_NOT_FOUND = 2
ERROR_PATH_NOT_FOUND = 3
ERROR_ACCESS_DENIED = 5
ERROR_INVALID_DRIVE = 15
ERROR_INVALID_NAME = 123
ERROR_DIRECTORY = 267

_ILLEGAL = frozenset('<>:"|?*') | frozenset(map(chr, range(32)))
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)]
)
_MAXIMUM_NAME = 255


class WindowsPathError(Exception):
    """A path cannot be used; `code` is the Win32 error Windows gives for it, `path` what was asked for."""

    def __init__(self, code: int, path: str) -> None:
        super().__init__(f"'{path}' cannot be used (error {code})")
        self.code = code
        self.path = path


class Drive:
    """One drive letter whose root is a host directory.

    Names are looked up without case and created with the case they were given. Nothing outside of the root can be
    reached: `..` stops at the root as on Windows, and a symbolic link that leads out is refused as access denied.
    """

    def __init__(self, root: Path, letter: str = "C", on_write: Callable[[int], None] | None = None) -> None:
        """
        Args:
            on_write: told of every write with its size in bytes before it happens; may raise OSError.
        """
        self._root = root.resolve()
        self._letter = letter.upper()
        self._on_write = on_write

    @property
    def root(self) -> Path:
        """The host directory that is `C:\\`."""
        return self._root

    @property
    def letter(self) -> str:
        """The drive letter without colon."""
        return self._letter

    def charge(self, size: int) -> None:
        """So many bytes are about to be written to the drive.

        Raises:
            OSError: ENOSPC, they do not fit.
        """
        if self._on_write is not None:
            self._on_write(size)

    def absolute(self, path: str, *, directory: str | None = None) -> str:
        """The full Windows path without `.` and `..`, e.g. ``C:\\Downlink\\suites``; slashes become backslashes.

        Args:
            path: absolute, drive-relative (``\\x``) or relative.
            directory: full path that relative ones start from; the root if None.

        Raises:
            WindowsPathError: ERROR_INVALID_DRIVE for another drive or a network path, ERROR_INVALID_NAME for a
                character, device or name that Windows does not take.
        """
        text = path.replace("/", "\\")
        for prefix in ("\\\\?\\", "\\??\\", "\\\\.\\"):
            text = text.removeprefix(prefix)
        if text.startswith("\\\\"):
            raise WindowsPathError(ERROR_INVALID_DRIVE, path)
        base: list[str] = []
        if len(text) >= 2 and text[1] == ":" and text[0].isalpha():
            if text[0].upper() != self._letter:
                raise WindowsPathError(ERROR_INVALID_DRIVE, path)
            relative = not text[2:].startswith("\\")
            text = text[2:]
        else:
            relative = not text.startswith("\\")
        if relative and directory is not None:
            base = [name for name in directory[2:].split("\\") if name]
        for part in text.split("\\"):
            if part in ("", "."):
                continue
            if part == "..":
                del base[-1:]
                continue
            base.append(_checked_name(part, path))
        return f"{self._letter}:\\" + "\\".join(base)

    def absolute_pattern(self, pattern: str, directory: str) -> str:
        """As `absolute` for a path whose last name may hold wildcards."""
        parent, slash, name = pattern.replace("/", "\\").rpartition("\\")
        full = self.absolute(parent + slash or ".", directory=directory)
        return f"{full.rstrip(chr(92))}\\{name}"

    def host_path(self, path: str, *, directory: str | None = None, follow: bool = True) -> Path:
        """The host file of a Windows path; it need not exist, but its parent directory must.

        Args:
            follow: whether a symbolic link in the last place is followed; one inside of the path always is.

        Raises:
            WindowsPathError: as `absolute`; ERROR_PATH_NOT_FOUND if a parent is missing or no directory;
                ERROR_ACCESS_DENIED if a symbolic link leads out of the drive.
        """
        full = self.absolute(path, directory=directory)
        names = [name for name in full[3:].split("\\") if name]
        current = self._root
        for index, name in enumerate(names):
            last = index == len(names) - 1
            if not current.is_dir():
                raise WindowsPathError(ERROR_PATH_NOT_FOUND, path)
            found = self._find(current, name)
            if found is None:
                if not last:
                    raise WindowsPathError(ERROR_PATH_NOT_FOUND, path)
                return current / name
            current = current / found
            if current.is_symlink() and (follow or not last):
                current = self._inside(current, path)
        return current

    def existing(self, path: str, *, directory: str | None = None) -> Path:
        """As `host_path`, but ERROR_FILE_NOT_FOUND if the last name does not exist either."""
        found = self.host_path(path, directory=directory)
        if not found.exists():
            raise WindowsPathError(ERROR_FILE_NOT_FOUND, path)
        return found

    def windows_path(self, host: Path) -> str:
        """The Windows path of a host file below the root; ValueError for any other."""
        parts = host.relative_to(self._root).parts
        return f"{self._letter}:\\" + "\\".join(parts)

    def owns_path(self, text: str) -> bool:
        """True if the text is an absolute path on this drive ("C:\\…" or "C:/…")."""
        return len(text) >= 3 and text[0].upper() == self._letter and text[1] == ":" and text[2] in "\\/"

    def _find(self, directory: Path, name: str) -> str | None:
        if os.path.lexists(directory / name):
            return name
        wanted = name.casefold()
        with os.scandir(directory) as entries:
            return next((entry.name for entry in entries if entry.name.casefold() == wanted), None)

    def _inside(self, link: Path, path: str) -> Path:
        try:
            target = link.resolve()
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise WindowsPathError(ERROR_ACCESS_DENIED, path) from error
        if target != self._root and self._root not in target.parents:
            raise WindowsPathError(ERROR_ACCESS_DENIED, path)
        return target


def break_hard_link(file: Path) -> None:
    """Give the file contents of its own before it is written in place.

    The guest's Python is hard-linked from a cache that all machines share; a write through one name would change
    every machine.
    """
    try:
        status = file.lstat()
    except FileNotFoundError:
        return
    if status.st_nlink < 2 or not file.is_file() or file.is_symlink():
        return
    copy = file.with_name(f"{file.name}.{os.getpid()}.own")
    shutil.copy2(file, copy)
    copy.replace(file)


def _checked_name(name: str, path: str) -> str:
    trimmed = name.rstrip(" .")
    stem = trimmed.split(".", 1)[0].rstrip(" ").casefold()
    if not trimmed or len(trimmed) > _MAXIMUM_NAME or stem in _DEVICES or not _ILLEGAL.isdisjoint(trimmed):
        raise WindowsPathError(ERROR_INVALID_NAME, path)
    return trimmed
