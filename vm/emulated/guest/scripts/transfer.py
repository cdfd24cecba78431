"""Receive-File.ps1 and Read-File.ps1: files through standard input and output where there is no SSH."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from vm.emulated.guest.drive import ERROR_ACCESS_DENIED, WindowsPathError, break_hard_link
from vm.emulated.guest.scripts.call import ScriptCall, ScriptRefusal, script
from vm.emulated.guest.status import hresult_of_win32, win32_of_errno

_CHUNK_BYTES = 1 << 20
_CODES = {112: "disk-full", 5: "access-denied", 32: "in-use"}


@script("Receive-File")
def receive_file(call: ScriptCall) -> object:
    """What Receive-File.ps1 does and answers."""
    path, length = call.text("Path"), call.number("Length")
    drive = call.guest.drive
    try:
        target = _with_parents(call, drive.absolute(path))
        part = target.with_name(target.name + ".part")
        break_hard_link(part)
        with part.open("ab" if call.switch("Append") else "wb") as file:
            while data := call.invocation.stdin.read(_CHUNK_BYTES):
                drive.charge(len(data))
                file.write(data)
        arrived = part.stat().st_size
        if arrived > length:
            part.unlink()
            raise ScriptRefusal("too-long", f"'{path}' got {arrived} bytes instead of {length}")
        if arrived == length:
            _complete(part, target, path, call.text("Sha256"))
    except OSError as error:
        win32 = win32_of_errno(error.errno)
        raise ScriptRefusal(
            _CODES.get(win32, "not-written"), str(error.strerror or error), hresult=hresult_of_win32(win32)
        ) from error
    return {"length": arrived, "complete": arrived == length}


@script("Read-File")
def read_file(call: ScriptCall) -> object:
    """What Read-File.ps1 answers."""
    path, count = call.text("Path"), call.number("Count")
    found: dict[str, object] = {"exists": False, "size": 0, "data": ""}
    try:
        host = call.guest.drive.existing(path)
    except WindowsPathError:
        return found
    if host.is_dir():
        return found
    try:
        with host.open("rb") as file:
            found |= {"exists": True, "size": file.seek(0, 2)}
            if count:
                file.seek(call.number("Offset"))
                found["data"] = base64.b64encode(file.read(count)).decode("ascii")
    except OSError as error:
        denied = win32_of_errno(error.errno) == ERROR_ACCESS_DENIED
        raise ScriptRefusal(
            "access-denied" if denied else "not-read", str(error.strerror or error)
        ) from error
    return found


def _with_parents(call: ScriptCall, full: str) -> Path:
    """The host path of a file whose directories may be missing; they are made."""
    drive = call.guest.drive
    names = full[3:].split("\\")
    for depth in range(1, len(names)):
        directory = drive.host_path(full[:3] + "\\".join(names[:depth]))
        directory.mkdir(exist_ok=True)
    return drive.host_path(full)


def _complete(part: Path, target: Path, path: str, sha256: str) -> None:
    with part.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest().upper()
    if seen != sha256.upper():
        part.unlink()
        raise ScriptRefusal("content-differs", f"'{path}' is not what was sent: its SHA-256 is {seen}")
    part.replace(target)
