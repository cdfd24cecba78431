"""Built-in commands of cmd.exe that work on files: dir, type, copy, move, ren, del, mkdir, rmdir."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vm.emulated.guest.commands.parsing import split_words
from vm.emulated.guest.commands.session import Invocation, Session
from vm.emulated.guest.drive import (
    ERROR_ACCESS_DENIED,
    ERROR_DIRECTORY,
    ERROR_FILE_NOT_FOUND,
    ERROR_PATH_NOT_FOUND,
    WindowsPathError,
    break_hard_link,
)

_CHUNK_BYTES = 65536


def matching(pattern: str, session: Session) -> list[Path]:
    """Host files that a path, possibly with wildcards in its last name, stands for; sorted without case."""
    drive = session.guest.drive
    text = pattern.replace("/", "\\")
    if not re.search(r"[*?]", text):
        host = drive.host_path(text, directory=session.directory)
        return [host] if host.exists() else []
    directory, slash, name = text.rpartition("\\")
    parent = drive.host_path(directory + slash or ".", directory=session.directory)
    if not parent.is_dir():
        raise WindowsPathError(ERROR_PATH_NOT_FOUND, pattern)
    wanted = re.compile(fnmatch.translate("*" if name == "*.*" else name.replace("[", "[[]")), re.IGNORECASE)
    found = [entry for entry in parent.iterdir() if wanted.match(entry.name)]
    return sorted(found, key=lambda entry: entry.name.casefold())


def directory(call: Invocation) -> int:
    """`dir [/b] [/s] [/a[:d|-d]] [path]`."""
    switches, operands = _operands(call.tail)
    bare = "/b" in switches
    recursive = "/s" in switches
    kinds = next((switch[2:].lstrip(":") for switch in switches if switch.startswith("/a")), "")
    pattern = operands[0] if operands else "."
    hosts = matching(pattern, call.session)
    if len(hosts) == 1 and hosts[0].is_dir() and not re.search(r"[*?]", pattern):
        top, listed = hosts[0], sorted(hosts[0].iterdir(), key=lambda entry: entry.name.casefold())
    elif hosts:
        top, listed = hosts[0].parent, hosts
    else:
        call.err("File Not Found")
        return 1
    groups = [(top, listed)]
    if recursive:
        groups += [
            (
                Path(parent),
                sorted((Path(parent, name) for name in [*names, *others]), key=lambda e: e.name.casefold()),
            )
            for parent, names, others in os.walk(top)
            if Path(parent) != top
        ]
    for parent, entries in groups:
        chosen = [entry for entry in entries if _wanted(entry, kinds)]
        if bare:
            for entry in chosen:
                call.out(call.guest.drive.windows_path(entry) if recursive else entry.name)
        else:
            _list(call, parent, chosen)
    return 0


def show(call: Invocation) -> int:
    """`type files`."""
    _, operands = _operands(call.tail)
    if not operands:
        call.err("The syntax of the command is incorrect.")
        return 1
    for pattern in operands:
        found = [path for path in matching(pattern, call.session) if path.is_file()]
        if not found:
            if matching(pattern, call.session):
                raise WindowsPathError(ERROR_ACCESS_DENIED, pattern)
            raise WindowsPathError(ERROR_FILE_NOT_FOUND, pattern)
        for path in found:
            if len(found) > 1:
                call.err(f"\n{path.name}\n\n")
            with path.open("rb") as file:
                while data := file.read(_CHUNK_BYTES):
                    call.stdout.write(data)
    return 0


def make_directory(call: Invocation) -> int:
    """`mkdir paths`: makes missing parents too."""
    _, operands = _operands(call.tail)
    if not operands:
        call.err("The syntax of the command is incorrect.")
        return 1
    code = 0
    for path in operands:
        full = call.guest.drive.absolute(path, directory=call.session.directory)
        names = full[3:].split("\\")
        for depth in range(1, len(names) + 1):
            host = call.guest.drive.host_path(full[:3] + "\\".join(names[:depth]))
            if not host.exists():
                host.mkdir()
            elif depth == len(names) or not host.is_dir():
                call.err(f"A subdirectory or file {path} already exists.")
                code = 1
                break
    return code


def remove_directory(call: Invocation) -> int:
    """`rmdir [/s] [/q] paths`; without /q there is nobody to answer, so /s implies it."""
    switches, operands = _operands(call.tail)
    if not operands:
        call.err("The syntax of the command is incorrect.")
        return 1
    code = 0
    for path in operands:
        host = call.guest.drive.host_path(path, directory=call.session.directory, follow=False)
        if host == call.guest.drive.root:
            raise WindowsPathError(ERROR_ACCESS_DENIED, path)
        if not host.exists():
            raise WindowsPathError(ERROR_FILE_NOT_FOUND, path)
        if host.is_symlink():
            host.unlink()
        elif not host.is_dir():
            raise WindowsPathError(ERROR_DIRECTORY, path)
        elif "/s" in switches:
            shutil.rmtree(host)
        elif any(host.iterdir()):
            call.err("The directory is not empty.")
            code = 145
        else:
            host.rmdir()
    return code


def delete(call: Invocation) -> int:
    """`del [/f] [/q] [/s] paths`: like cmd.exe it exits with 0 also when nothing matched."""
    _, operands = _operands(call.tail)
    if not operands:
        call.err("The syntax of the command is incorrect.")
        return 1
    for pattern in operands:
        found = matching(pattern, call.session)
        if not found:
            call.err(f"Could Not Find {call.guest.drive.absolute_pattern(pattern, call.session.directory)}")
        for path in found:
            targets = [entry for entry in path.iterdir() if not entry.is_dir()] if path.is_dir() else [path]
            if path.is_dir() and re.search(r"[*?]", pattern):
                continue
            for target in targets:
                target.unlink()
    return 0


def copy(call: Invocation) -> int:
    """`copy [/y] [/b] source [target]`, also `copy /b a+b target`."""
    _, operands = _operands(call.tail)
    if not 1 <= len(operands) <= 2:
        call.err("The syntax of the command is incorrect.")
        return 1
    joined = "+" in operands[0]
    target = operands[1] if len(operands) == 2 else "."
    sources: list[Path] = []
    for pattern in operands[0].split("+") if joined else [operands[0]]:
        found = [path for path in matching(pattern, call.session) if path.is_file()]
        if not found:
            raise WindowsPathError(ERROR_FILE_NOT_FOUND, pattern)
        sources += found
    place = call.guest.drive.host_path(target, directory=call.session.directory)
    if joined:
        data = b"".join(path.read_bytes() for path in sources)
        break_hard_link(place)
        call.guest.drive.charge(len(data))
        place.write_bytes(data)
        count = 1
    else:

        def act(source: Path, target: Path) -> None:
            call.guest.drive.charge(source.stat().st_size)
            _copy_file(source, target)

        count = _each(sources, place, operands[0], call, act)
    call.out(f"{count:>9} file(s) copied.")
    return 0


def move(call: Invocation) -> int:
    """`move [/y] source [target]`."""
    _, operands = _operands(call.tail)
    if not 1 <= len(operands) <= 2:
        call.err("The syntax of the command is incorrect.")
        return 1
    sources = matching(operands[0], call.session)
    if not sources:
        raise WindowsPathError(ERROR_FILE_NOT_FOUND, operands[0])
    target = operands[1] if len(operands) == 2 else "."
    place = call.guest.drive.host_path(target, directory=call.session.directory)
    directories = sum(path.is_dir() for path in sources)
    count = _each(sources, place, operands[0], call, _move_file)
    call.out(f"{count:>9} {'dir' if directories == count else 'file'}(s) moved.")
    return 0


def rename(call: Invocation) -> int:
    """`ren path name`."""
    _, operands = _operands(call.tail)
    if len(operands) != 2 or re.search(r"[\\/:*?]", operands[1]):
        call.err("The syntax of the command is incorrect.")
        return 1
    source = call.guest.drive.existing(operands[0], directory=call.session.directory)
    parent = call.guest.drive.windows_path(source.parent)
    target = call.guest.drive.host_path(operands[1], directory=parent)
    if target.exists() and not target.samefile(source):
        call.err("A duplicate file name exists, or the file\ncannot be found.")
        return 1
    source.rename(source.parent / operands[1])
    return 0


def _each(
    sources: list[Path], place: Path, shown: str, call: Invocation, act: Callable[[Path, Path], None]
) -> int:
    if len(sources) > 1 and not place.is_dir():
        raise WindowsPathError(ERROR_FILE_NOT_FOUND, shown)
    for source in sources:
        target = place / source.name if place.is_dir() else place
        if target.exists() and target.samefile(source):
            call.err("The file cannot be copied onto itself.")
            return 0
        if re.search(r"[*?]", shown):
            call.out(call.guest.drive.windows_path(source))
        act(source, target)
    return len(sources)


def _copy_file(source: Path, target: Path) -> None:
    break_hard_link(target)
    shutil.copyfile(source, target)
    shutil.copystat(source, target)


def _move_file(source: Path, target: Path) -> None:
    source.replace(target)


def _operands(tail: str) -> tuple[set[str], list[str]]:
    """Switches (folded) and paths; a switch may stick to the one before (`/s/q`)."""
    switches: set[str] = set()
    operands: list[str] = []
    for word in split_words(tail):
        if re.fullmatch(r"(/-?[a-zA-Z](:?-?[a-zA-Z]*)?)+", word):
            switches |= {part.casefold() for part in re.findall(r"/[^/]+", word)}
        else:
            operands.append(word)
    return switches, operands


def _wanted(entry: Path, kinds: str) -> bool:
    if "-d" in kinds:
        return not entry.is_dir()
    return entry.is_dir() if "d" in kinds else True


def _list(call: Invocation, parent: Path, entries: list[Path]) -> None:
    call.out(" Volume in drive C is Windows")
    call.out(" Volume Serial Number is D011-1CE0")
    call.out(f"\n Directory of {call.guest.drive.windows_path(parent)}\n")
    files = directories = total = 0
    for entry in entries:
        status = entry.lstat()
        stamp = time.strftime("%m/%d/%Y  %I:%M %p", time.localtime(status.st_mtime))
        if entry.is_dir():
            directories += 1
            call.out(f"{stamp}    {'<DIR>':<15}{entry.name}")
        else:
            files += 1
            total += status.st_size
            call.out(f"{stamp}    {status.st_size:>14,} {entry.name}")
    free = shutil.disk_usage(call.guest.drive.root).free
    call.out(f"{files:>16} File(s) {total:>14,} bytes")
    call.out(f"{directories:>16} Dir(s)  {free:>14,} bytes free")
