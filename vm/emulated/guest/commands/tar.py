"""`tar`: the libarchive tar that Windows has had since version 1803, as far as archives of plain files need it."""

from __future__ import annotations

import gzip
import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

from vm.emulated.guest.commands.session import Invocation
from vm.emulated.guest.drive import WindowsPathError, break_hard_link
from vm.emulated.guest.status import message_of_win32, win32_of_errno

_CHUNK_BYTES = 1 << 20
_MODES = "xct"
_FLAGS = "zvpk"
_VALUES = "fC"


class _UsageError(Exception):
    """The command line is wrong; the text says how."""


@dataclass(slots=True)
class _Options:
    mode: str = ""
    gzip: bool = False
    verbose: bool = False
    archive: str | None = None
    directory: str | None = None
    operands: list[str] = field(default_factory=list)


def tar(call: Invocation) -> int:
    """`tar -xf|-cf|-tf archive [-z] [-v] [-C directory] [names]`; 1 when anything failed."""
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
        with tarfile.open(archive, "r:*") as packed:
            for entry in packed:
                call.session.cancellation.check()
                if options.operands and entry.name not in options.operands:
                    continue
                if options.mode == "t":
                    call.out(entry.name)
                elif not _extract(call, packed, entry, base):
                    code = 1
                elif options.verbose:
                    call.err(f"x {entry.name}")
    except FileNotFoundError:
        call.err(f"tar: Error opening archive: Failed to open '{shown}'")
        return 1
    except tarfile.ReadError as error:
        unknown = "unexpected end" not in str(error) and "truncated" not in str(error)
        call.err(
            "tar: Error opening archive: Unrecognized archive format"
            if unknown
            else "tar: Truncated input file"
        )
        call.err("tar: Error exit delayed from previous errors.")
        return 1
    except (EOFError, gzip.BadGzipFile):
        call.err("tar: Truncated input file (needed more bytes, only 0 available)")
        return 1
    if code:
        call.err("tar: Error exit delayed from previous errors.")
    return code


def _extract(call: Invocation, packed: tarfile.TarFile, entry: tarfile.TarInfo, base: Path) -> bool:
    """Write one entry below `base`; False, after a message, when that cannot be."""
    drive = call.guest.drive
    parts = [part for part in entry.name.split("/") if part not in ("", ".")]
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
        source = packed.extractfile(entry)
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
    code = 0
    try:
        with tarfile.open(archive, "w:gz" if options.gzip else "w") as packed:
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


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files and directories only, owned by nobody of the host."""
    if not (entry.isfile() or entry.isdir()):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
