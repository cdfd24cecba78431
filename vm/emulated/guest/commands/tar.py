"""`tar`: the libarchive tar that Windows has had since version 1803, as far as archives of plain files need it."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.drive import WindowsPathError, break_hard_link
from vm.emulated.guest.status import message_of_win32, win32_of_errno

_CHUNK_BYTES = 1 << 20
_MODES = "xct"
_FLAGS = "zvpka"
_VALUES = "fC"


_Content = Callable[[], IO[bytes] | None]
"""Opens what a file in an archive holds."""


class _UsageError(Exception):
    """The command line is wrong; the text says how."""


@dataclass(slots=True)
class _Options:
    mode: str = ""
    gzip: bool = False
    by_suffix: bool = False
    """-a: the archive's name says what it is."""
    verbose: bool = False
    archive: str | None = None
    directory: str | None = None
    operands: list[str] = field(default_factory=list)


def tar(call: Invocation) -> int:
    """`tar -xf|-cf|-tf archive [-z] [-a] [-v] [-C directory] [names]`; 1 when anything failed."""
    try:
        options = _parse(call.arguments)
        archive = call.guest.drive.host_path(options.archive or "", directory=call.session.directory)
        base = call.guest.drive.host_path(options.directory or ".", directory=call.session.directory)
        if not base.is_dir():
            raise _UsageError(f"could not chdir to '{options.directory}'")
        match options.mode:
            case "c":
                return _create(call, options, archive, base)
            case _:
                return _read(call, options, archive, base)
    except _UsageError as error:
        call.err(f"tar: {error}")
    except WindowsPathError as error:
        call.err(f"tar: Error opening archive: Failed to open '{error.path}'")
    return 1


def _parse(words: list[str]) -> _Options:
    options = _Options()
    waiting = list(words)
    first = True
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("-") and not (first and word[:1] in _MODES):
            options.operands.append(word)
            continue
        first = False
        letters = word.lstrip("-")
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _MODES:
                options.mode = letter
            elif letter in _FLAGS:
                options.gzip |= letter == "z"
                options.verbose |= letter == "v"
                options.by_suffix |= letter == "a"
            elif letter in _VALUES:
                value, letters = (letters or (waiting.pop(0) if waiting else "")), ""
                if not value:
                    raise _UsageError(f"Option -{letter} requires an argument")
                if letter == "f":
                    options.archive = value
                else:
                    options.directory = value
            else:
                raise _UsageError(f"Option -{letter} is not supported")
    if not options.mode:
        raise _UsageError("Must specify one of -c, -r, -t, -u, -x")
    if options.archive is None:
        # Windows' default is a tape drive that nobody has.
        raise _UsageError("Error opening archive: Failed to open '\\\\.\\tape0'")
    return options


def _read(call: Invocation, options: _Options, archive: Path, base: Path) -> int:
    shown = options.archive
    code = 0
    try:
        with _opened(archive) as entries:
            for entry, content in entries:
                call.session.cancellation.check()
                if options.operands and not _chosen(entry.name, options.operands):
                    continue
                if options.mode == "t":
                    call.out(entry.name)
                elif not _extract(call, entry, content, base):
                    code = 1
                elif options.verbose:
                    call.err(f"x {entry.name}")
    except FileNotFoundError:
        call.err(f"tar: Error opening archive: Failed to open '{shown}'")
        return 1
    except tarfile.ReadError as error:
        unknown = str(error).startswith("file could not be opened")
        call.err(
            "tar: Error opening archive: Unrecognized archive format"
            if unknown
            else "tar: Truncated input file"
        )
        call.err("tar: Error exit delayed from previous errors.")
        return 1
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile):
        call.err("tar: Truncated input file (needed more bytes, only 0 available)")
        return 1
    if code:
        call.err("tar: Error exit delayed from previous errors.")
    return code


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, _Content]]]:
    """The entries of a tar (compressed or not) or zip archive, which bsdtar tells apart by what is in it."""
    if not zipfile.is_zipfile(archive):
        with tarfile.open(archive, "r:*") as packed:
            yield ((entry, _member(packed, entry)) for entry in packed)
        return
    with zipfile.ZipFile(archive) as zipped:
        yield ((_as_entry(entry), _zip_member(zipped, entry)) for entry in zipped.infolist())


def _member(packed: tarfile.TarFile, entry: tarfile.TarInfo) -> _Content:
    return lambda: packed.extractfile(entry)


def _zip_member(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Content:
    return lambda: zipped.open(entry)


def _as_entry(entry: zipfile.ZipInfo) -> tarfile.TarInfo:
    """What of an entry matters here, in the form that tar archives have it."""
    result = tarfile.TarInfo(entry.filename)
    result.type = tarfile.DIRTYPE if entry.is_dir() else tarfile.REGTYPE
    if stat.S_ISLNK(entry.external_attr >> 16):
        result.type = tarfile.SYMTYPE
    result.size = entry.file_size
    result.mtime = time.mktime((*entry.date_time, 0, 0, -1))
    return result


def _chosen(name: str, operands: list[str]) -> bool:
    """True if an operand names the entry or a directory above it."""
    wanted = [operand.replace("\\", "/").rstrip("/") for operand in operands]
    return any(name.rstrip("/") == operand or name.startswith(f"{operand}/") for operand in wanted)


def _extract(call: Invocation, entry: tarfile.TarInfo, content: _Content, base: Path) -> bool:
    """Write one entry below `base`; False, after a message, when that cannot be."""
    drive = call.guest.drive
    # A backslash is a separator on Windows, whoever wrote the archive.
    parts = [part for part in entry.name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        call.err(f"tar: {entry.name}: Path contains '..'")
        return False
    if entry.issym() or entry.islnk():
        call.err(f"tar: {entry.name}: Can't create link")
        return False
    names = parts if entry.isdir() else parts[:-1]
    try:
        place = drive.windows_path(base)
        for name in names:
            place = f"{place.rstrip(chr(92))}\\{name}"
            drive.host_path(place).mkdir(exist_ok=True)
        if entry.isdir() or not parts:
            return True
        target = drive.host_path(f"{place.rstrip(chr(92))}\\{parts[-1]}")
        source = content()
        if source is None:
            return True
        break_hard_link(target)
        with target.open("wb") as file:
            while data := source.read(_CHUNK_BYTES):
                drive.charge(len(data))
                file.write(data)
        os.utime(target, (entry.mtime, entry.mtime))
    except WindowsPathError as error:
        call.err(f"tar: {entry.name}: {message_of_win32(error.code)}")
        return False
    except OSError as error:
        call.err(f"tar: {entry.name}: {message_of_win32(win32_of_errno(error.errno))}")
        return False
    return True


def _create(call: Invocation, options: _Options, archive: Path, base: Path) -> int:
    if not options.operands:
        raise _UsageError("no files or directories specified")
    if options.by_suffix and archive.suffix.casefold() == ".zip":
        return _create_zip(call, options, archive, base)
    zipped = options.gzip or (options.by_suffix and archive.name.casefold().endswith((".gz", ".tgz")))
    code = 0
    try:
        with tarfile.open(archive, "w:gz" if zipped else "w") as packed:
            for name in options.operands:
                host = call.guest.drive.host_path(name, directory=call.guest.drive.windows_path(base))
                if not host.exists():
                    call.err(f"tar: {name}: Couldn't find file: No such file or directory")
                    code = 1
                    continue
                packed.add(host, arcname=name.replace("\\", "/"), filter=_plain)
    except OSError as error:
        call.err(f"tar: {message_of_win32(win32_of_errno(error.errno))}")
        return 1
    if code:
        call.err("tar: Error exit delayed from previous errors.")
    return code


def _create_zip(call: Invocation, options: _Options, archive: Path, base: Path) -> int:
    code = 0
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in options.operands:
            host = call.guest.drive.host_path(name, directory=call.guest.drive.windows_path(base))
            if not host.exists():
                call.err(f"tar: {name}: Couldn't find file: No such file or directory")
                code = 1
                continue
            files = [host, *sorted(host.rglob("*"))] if host.is_dir() else [host]
            for file in files:
                if not file.is_symlink():
                    below = file.relative_to(host).as_posix()
                    shown = name.replace("\\", "/").rstrip("/")
                    zipped.write(file, shown if below == "." else f"{shown}/{below}")
    if code:
        call.err("tar: Error exit delayed from previous errors.")
    return code


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files and directories only, owned by nobody of the host."""
    if not (entry.isfile() or entry.isdir()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
