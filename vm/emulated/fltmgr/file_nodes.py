"""What lies on a volume: files and directories, their names, their streams, and who has them open."""

from __future__ import annotations

from dataclasses import dataclass, field

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import fold

CLUSTER_BYTES = 4096


@dataclass(slots=True)
class Times:
    """The four time stamps, 100 ns since 1601-01-01 UTC."""

    creation: int
    access: int
    write: int
    change: int


@dataclass(slots=True, eq=False)
class Stream:
    """One data stream. Bytes from len(data) up to `size` read as zeros."""

    name: str
    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    reserved: int = 0
    """Bytes allocated beyond what the size needs."""
    opens: list[Open] = field(default_factory=list)
    """Handles that are open and not yet cleaned up."""
    delete_pending: bool = False

    @property
    def allocation(self) -> int:
        """Bytes on disk: whole clusters."""
        return max(_clusters(self.size), self.reserved)


@dataclass(slots=True, eq=False)
class Link:
    """One name of a file in one directory."""

    parent: Node
    name: str
    node: Node
    opens: int = 0
    """Handles opened by this name and not yet cleaned up."""
    delete_pending: bool = False
    removed: bool = False

    def path(self) -> str:
        """Path inside the volume."""
        parts = [self.name]
        node = self.parent
        while node.links:
            parts.append(node.links[0].name)
            node = node.links[0].parent
        return "\\" + "\\".join(reversed(parts))


@dataclass(slots=True, eq=False)
class Node:
    """One file or directory."""

    id: int
    attributes: int
    times: Times
    security: bytes
    streams: dict[str, Stream] = field(default_factory=dict)
    """By folded name; the unnamed one has the name ""."""
    links: list[Link] = field(default_factory=list)
    children: dict[str, Link] | None = None
    """Names in a directory by folded name; None for files."""
    extended: bytes = b""
    """FILE_FULL_EA_INFORMATION list."""

    @property
    def is_directory(self) -> bool:
        return self.children is not None

    @property
    def id128(self) -> bytes:
        """FILE_ID_128: the 64-bit id, zero extended, little endian."""
        return self.id.to_bytes(16, "little")

    @property
    def read_only(self) -> bool:
        return bool(self.attributes & n.FILE_ATTRIBUTE_READONLY)

    @property
    def is_open(self) -> bool:
        """True while a handle is open on any of its streams."""
        return any(stream.opens for stream in self.streams.values())

    @property
    def shown_attributes(self) -> int:
        """Attributes as queries tell them: NORMAL when there is none."""
        return self.attributes or n.FILE_ATTRIBUTE_NORMAL

    def stream(self, name: str) -> Stream | None:
        return self.streams.get(fold(name))


@dataclass(slots=True, eq=False)
class Open:
    """One open of a stream: what a file object's context pointers lead to."""

    node: Node
    stream: Stream
    link: Link | None
    """Name it was opened by; None for the root directory."""
    access: int
    share: int
    options: int
    delete_on_close: bool = False
    posix_delete: bool = False
    """FILE_DISPOSITION_POSIX_SEMANTICS was asked for through this handle."""
    cleaned_up: bool = False
    pattern: str | None = None
    """Directory enumeration: the expression, None before the first query."""
    position: str | None = None
    """Directory enumeration: key of the last entry returned."""
    enumerated: bool = False
    times_frozen: bool = False
    """Times set explicitly through this handle are not moved by its later writes."""

    def path(self) -> str:
        """Path inside the volume by which it was opened, as it is now."""
        base = self.link.path() if self.link is not None else "\\"
        return f"{base}:{self.stream.name}" if self.stream.name else base


def _clusters(size: int) -> int:
    return (size + CLUSTER_BYTES - 1) // CLUSTER_BYTES * CLUSTER_BYTES
