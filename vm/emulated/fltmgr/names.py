"""File names as the Filter Manager tells them: which name a file has, when it may be asked for, and the structures
that hold names in kernel memory. The exports are name_exports.py."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vm.emulated.exports.state import state_of
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import PATH_BYTES_MAXIMUM, fold, parse_path
from vm.emulated.fltmgr.file_objects import FileObject
from vm.emulated.fltmgr.model import Volume
from vm.emulated.fltmgr.requests import Phase, Request
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_FILE_DELETED,
    STATUS_FLT_INVALID_NAME_REQUEST,
    STATUS_FLT_NAME_CACHE_MISS,
    STATUS_INVALID_PARAMETER,
    STATUS_NAME_TOO_LONG,
    STATUS_OBJECT_NAME_NOT_FOUND,
)

if TYPE_CHECKING:
    from vm.emulated.fltmgr.file_nodes import Node
    from vm.emulated.kernel.kernel import Kernel

NORMALIZED, OPENED, SHORT = 1, 2, 3
QUERY_DEFAULT, QUERY_CACHE_ONLY, QUERY_FILESYSTEM_ONLY, QUERY_ALWAYS_ALLOW_CACHE_LOOKUP = (
    0x100,
    0x200,
    0x300,
    0x400,
)
_FLAGS = 0x0700_0000
SIZE = 0x78
NAMES_PARSED, FORMAT, NAME, VOLUME, SHARE, EXTENSION, STREAM, FINAL_COMPONENT, PARENT_DIR = (
    2, 4, 8, 0x18, 0x28, 0x38, 0x48, 0x58, 0x68,
)  # fmt: skip
PARSED_FINAL_COMPONENT, PARSED_EXTENSION, PARSED_STREAM, PARSED_PARENT_DIR = 1, 2, 4, 8
_TAG = "FMfn"
_STRING = struct.Struct("<HH4xQ")


@dataclass(slots=True, eq=False)
class NameInformation:
    """One FLT_FILE_NAME_INFORMATION that a filter holds."""

    address: int
    text: str
    volume_length: int
    """Characters of `text` that name the volume."""
    format: int
    driver: str
    site: int
    references: int = 1


@dataclass(slots=True)
class NameState:
    """Name structures handed out, and names that the Filter Manager has cached."""

    kernel: Kernel
    live: dict[int, NameInformation] = field(default_factory=dict)
    cache: dict[FileObject, dict[int, str]] = field(default_factory=dict)


def name_state(k: Kernel) -> NameState:
    """The name state of a kernel."""
    return state_of(k, NameState)


# Which name


def check_options(options: int) -> tuple[int, int]:
    """(format, method) of FLT_FILE_NAME_OPTIONS.

    Raises:
        StatusError: STATUS_INVALID_PARAMETER.
    """
    kind, method = options & 0xFF, options & 0xFF00
    if (
        kind not in (NORMALIZED, OPENED, SHORT)
        or not QUERY_DEFAULT <= method <= QUERY_ALWAYS_ALLOW_CACHE_LOOKUP
    ):
        raise StatusError(STATUS_INVALID_PARAMETER)
    if options & ~0xFFFF & ~_FLAGS:
        raise StatusError(STATUS_INVALID_PARAMETER)
    return kind, method


def unsafe_reason(k: Kernel, request: Request, kind: int) -> str | None:
    """Why the file system may not be asked for a name now (FltGetFileNameInformation's page), or None."""
    if request.irp_flags & n.IRP_PAGING_IO:
        return "paging I/O"
    if k.current.top_level_irp:
        return "a top-level IRP"
    post = request.walk.phase is Phase.UP
    if request.major == n.IRP_MJ_CLOSE and post:
        return "the post-operation callback of a close"
    if request.major == n.IRP_MJ_CREATE and not post and kind == SHORT:
        return "the short name before the create"
    return None


def find_name(k: Kernel, file: FileObject, kind: int, method: int, unsafe: str | None) -> str:
    """The name of a file, from the cache or from the file system as the method allows.

    Raises:
        StatusError: the query is not allowed now, the cache does not have it, or the file is gone.
    """
    if method in (QUERY_DEFAULT, QUERY_FILESYSTEM_ONLY) and unsafe:
        raise StatusError(STATUS_FLT_INVALID_NAME_REQUEST)
    cached = name_state(k).cache.get(file, {}).get(kind)
    if cached is not None and method != QUERY_FILESYSTEM_ONLY and cached == _name(file, kind, deleted=True):
        return cached
    if method == QUERY_CACHE_ONLY:
        raise StatusError(STATUS_FLT_NAME_CACHE_MISS)
    if unsafe:
        raise StatusError(STATUS_FLT_INVALID_NAME_REQUEST)
    name = _name(file, kind)
    if file.opened is not None:
        name_state(k).cache.setdefault(file, {})[kind] = name
    return name


def forget_cached(k: Kernel, file: FileObject | None) -> None:
    """FltPurgeFileNameInformationCache, and the end of a file object."""
    if file is None:
        name_state(k).cache.clear()
    else:
        name_state(k).cache.pop(file, None)


def _name(file: FileObject, kind: int, *, deleted: bool = False) -> str:
    device = file.volume.device_name
    if file.is_volume_open:
        return device
    opened = file.opened
    if opened is not None:
        if opened.link is not None and opened.link.removed and not deleted:
            raise StatusError(STATUS_FILE_DELETED)
        actual = opened.path()
        if kind == SHORT:
            return _short(actual)
        if kind == OPENED and not file.options & n.FILE_OPEN_BY_FILE_ID:
            typed = file.full_path()
            if fold(typed.rstrip("\\")) == fold(actual.rstrip("\\")):
                return device + typed
        return device + actual
    if file.options & n.FILE_OPEN_BY_FILE_ID:
        return device + _path_of_id(file)
    path = pending_path(file)
    return device + (normalize(file.volume, path) if kind == NORMALIZED else path)


def pending_path(file: FileObject) -> str:
    """Path inside the volume that a create is about to open, from the names in the FILE_OBJECT."""
    name = file.name()
    if file.related is None:
        return name
    related = file.related
    base = related.opened.path() if related.opened is not None else related.full_path()
    base = base.rstrip("\\")
    if not name:
        return base or "\\"
    return base + name if name.startswith(":") else f"{base}\\{name}"


def _path_of_id(file: FileObject) -> str:
    raw = file.name().encode("utf-16-le", "surrogatepass")
    node = file.volume.file_system.nodes.get(int.from_bytes(raw, "little"))
    if node is None or not node.links:
        raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)
    path: str = node.links[0].path()
    return path


def normalize(volume: Volume, path: str) -> str:
    """A path with the spelling that its existing components have on the volume.

    Raises:
        StatusError: the path has no legal form.
    """
    parsed = parse_path(path)
    node: Node | None = volume.file_system.root
    parts = []
    for component in parsed.components:
        link = node.children.get(fold(component)) if node is not None and node.children is not None else None
        parts.append(link.name if link is not None else component)
        node = link.node if link is not None else None
    stream = f":{parsed.stream}" if parsed.stream else ""
    return "\\" + "\\".join(parts) + stream


def _short(path: str) -> str:
    final = path.rpartition("\\")[2].partition(":")[0]
    base, dot, extension = final.rpartition(".")
    if not dot:
        base, extension = final, ""
    legal = final.isascii() and " " not in final and "." not in base
    if not final or len(base) > 8 or len(extension) > 3 or not legal:
        raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)  # the volume makes no 8.3 names
    return final


# Structures


def hand_out(k: Kernel, text: str, volume: Volume, kind: int) -> int:
    """A FLT_FILE_NAME_INFORMATION with one reference, not parsed.

    Raises:
        StatusError: the name does not fit into a UNICODE_STRING: a path on a volume may be as long as that, and the
            volume's name comes on top. Which status Windows has for it is not known.
    """
    raw = text.encode("utf-16-le", "surrogatepass")
    if len(raw) > PATH_BYTES_MAXIMUM:
        raise StatusError(STATUS_NAME_TOO_LONG)
    address = k.pool.allocate(SIZE + len(raw), _TAG, owner="fltmgr", paged=True)
    buffer = address + SIZE
    memory = k.memory
    memory.write(address, struct.pack("<HHI", SIZE, 0, kind))
    put_string(k, address + NAME, buffer, len(raw))
    memory.write(buffer, raw)
    volume_length = len(volume.device_name) if text.startswith(volume.device_name) else 0
    put_string(k, address + VOLUME, buffer if volume_length else 0, 2 * volume_length)
    driver, site = k.caller()
    name_state(k).live[address] = NameInformation(address, text, volume_length, kind, driver, site)
    return address


def put_string(k: Kernel, address: int, buffer: int, length: int) -> None:
    """Write a UNICODE_STRING that is exactly filled; `length` in bytes."""
    k.memory.write(address, _STRING.pack(length, length, buffer if length else 0))


def name_at(k: Kernel, address: int, caller: str) -> NameInformation:
    """The name structure at an address that a driver passed in; anything else bugchecks."""
    found = name_state(k).live.get(address)
    if found is None:
        raise Bugcheck(
            bc.FLTMGR_FILE_SYSTEM,
            0x68,
            address,
            rule=f"{caller} was given {address:#x}, which is not a FLT_FILE_NAME_INFORMATION (any more)",
        )
    return found


def release(k: Kernel, found: NameInformation) -> None:
    """Drop a reference; the last one frees the memory."""
    found.references -= 1
    if not found.references:
        del name_state(k).live[found.address]
        k.pool.free(found.address, _TAG)


def report_leaked_names(k: Kernel, driver: str) -> None:
    """A filter is unregistered: names that its driver still holds are leaks."""
    state = name_state(k)
    for found in [f for f in state.live.values() if f.driver == driver]:
        k.violate(
            "name-leaked",
            f"the driver '{driver}' still holds {found.references} reference(s) on the name '{found.text}' that "
            f"{k.describe(found.site)} asked for",
            driver,
        )
        del state.live[found.address]
        k.pool.free(found.address, _TAG)


@dataclass(frozen=True, slots=True)
class Parts:
    """(offset, length) in characters of the parts of a name."""

    extension: tuple[int, int]
    stream: tuple[int, int]
    final: tuple[int, int]
    parent: tuple[int, int]


def split(text: str, volume_length: int) -> Parts:
    """Where the parts of a name begin and end; the stream begins with its colon, the parent ends with a backslash."""
    slash = text.rfind("\\", volume_length)
    final_start = slash + 1 if slash >= 0 else volume_length
    colon = text.find(":", final_start)
    final_end = colon if colon >= 0 else len(text)
    dot = text.rfind(".", final_start, final_end)
    extension = (dot + 1, final_end - dot - 1) if dot >= 0 else (final_end, 0)
    return Parts(
        extension=extension,
        stream=(final_end, len(text) - final_end),
        final=(final_start, final_end - final_start),
        parent=(volume_length, final_start - volume_length),
    )
