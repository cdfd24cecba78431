"""An NTFS-like file system in memory: opening, closing, deleting, data and directories. It knows no kernel.

Renames and links live in file_links.py, names in file_names.py, the data in file_nodes.py. Every failure is a
`StatusError` with the NTSTATUS that NTFS gives.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import FilePath, check_name, fold, matches, parse_path
from vm.emulated.fltmgr.file_nodes import CLUSTER_BYTES, Link, Node, Open, Stream, Times
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_CANNOT_DELETE,
    STATUS_DELETE_PENDING,
    STATUS_DIRECTORY_NOT_EMPTY,
    STATUS_DISK_FULL,
    STATUS_END_OF_FILE,
    STATUS_FILE_CLOSED,
    STATUS_FILE_IS_A_DIRECTORY,
    STATUS_INVALID_DEVICE_REQUEST,
    STATUS_INVALID_PARAMETER,
    STATUS_MEDIA_WRITE_PROTECTED,
    STATUS_NO_MORE_FILES,
    STATUS_NO_SUCH_FILE,
    STATUS_NOT_A_DIRECTORY,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_OBJECT_PATH_NOT_FOUND,
    STATUS_SHARING_VIOLATION,
)

ROOT_ID = 0x0005_0000_0000_0005
"""File id of the root directory: record 5, sequence 5, as on NTFS."""
_FIRST_RECORD = 0x28
_WRITERS = n.FILE_WRITE_DATA | n.FILE_APPEND_DATA
_READERS = n.FILE_READ_DATA | n.FILE_EXECUTE
_REPLACING = frozenset((n.FILE_SUPERSEDE, n.FILE_OVERWRITE, n.FILE_OVERWRITE_IF))
_MUST_EXIST = frozenset((n.FILE_OPEN, n.FILE_OVERWRITE))


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """What IRP_MJ_CREATE asks for. `path` is inside the volume; with `related` it is below that open directory."""

    path: str
    access: int
    share: int = 0
    disposition: int = n.FILE_OPEN
    options: int = 0
    attributes: int = 0
    allocation: int = 0
    related: Open | None = None
    file_id: int | None = None
    """For FILE_OPEN_BY_FILE_ID; the path is not used then."""
    target_directory: bool = False
    """SL_OPEN_TARGET_DIRECTORY: open the directory that contains the last component."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that a directory query returns."""

    name: str
    node: Node


class FileSystem:
    """One volume.

    Args:
        now: the time, 100 ns since 1601-01-01 UTC.
        capacity_bytes: room for data; a request that needs more fails with STATUS_DISK_FULL.
        security: self-relative security descriptor that new files get.
        read_only: every change fails with STATUS_MEDIA_WRITE_PROTECTED.
    """

    def __init__(
        self,
        now: Callable[[], int],
        *,
        capacity_bytes: int = 1 << 30,
        label: str = "Data",
        serial: int = 0x4411_2026,
        security: bytes = b"",
        read_only: bool = False,
    ) -> None:
        self.now = now
        self.capacity_bytes = capacity_bytes
        self.label = label
        self.serial = serial
        self.security = security
        self.read_only = read_only
        self.used_bytes = 0
        self.nodes: dict[int, Node] = {}
        self._next_record = _FIRST_RECORD
        self.created = now()
        self.root = self._new_node(n.FILE_ATTRIBUTE_DIRECTORY, directory=True, node_id=ROOT_ID)

    # Opening

    def open(self, request: OpenRequest) -> tuple[Open, int]:
        """Open or create.

        Returns:
            The open and the Information of the I/O status block (FILE_OPENED, FILE_CREATED, ...).

        Raises:
            StatusError: as NTFS fails it; nothing has changed then.
        """
        options = request.options
        if options & n.FILE_DELETE_ON_CLOSE and not request.access & n.DELETE:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if options & n.FILE_DIRECTORY_FILE and options & n.FILE_NON_DIRECTORY_FILE:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if request.file_id is not None:
            return self._open_by_id(request)
        path, parent = self._resolve(request)
        if not path.components:
            node = parent
            link = request.related.link if request.related is not None else None
            return self._open_existing(request, path, node, link if node is not self.root else None)
        name = path.components[-1]
        assert parent.children is not None
        found = parent.children.get(fold(name))
        if found is not None:
            if found.delete_pending:
                raise StatusError(STATUS_DELETE_PENDING)
            return self._open_existing(request, path, found.node, found)
        return self._create(request, path, parent, name)

    def _resolve(self, request: OpenRequest) -> tuple[FilePath, Node]:
        """The parsed path and the directory that its last component is looked up in."""
        text = request.path
        start = self.root
        if request.related is not None:
            if text.startswith("\\"):
                raise StatusError(STATUS_OBJECT_NAME_INVALID)
            start = request.related.node
            if text and not text.startswith(":"):
                text = "\\" + text
                if not start.is_directory:
                    raise StatusError(STATUS_OBJECT_PATH_NOT_FOUND)
            elif text:
                return parse_path("\\" + text), start
        path = parse_path(text)
        if request.target_directory and path.components:
            parent = self._directory(start, path.components[:-1])
            return FilePath((), directory_syntax=True), parent
        return path, self._directory(start, path.components[:-1])

    def _directory(self, start: Node, components: tuple[str, ...]) -> Node:
        node = start
        for component in components:
            link = node.children.get(fold(component)) if node.children is not None else None
            if link is None or not link.node.is_directory:
                raise StatusError(STATUS_OBJECT_PATH_NOT_FOUND)
            if link.delete_pending:
                raise StatusError(STATUS_DELETE_PENDING)
            node = link.node
        return node

    def _open_by_id(self, request: OpenRequest) -> tuple[Open, int]:
        node = self.nodes.get(request.file_id or 0)
        if node is None:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if request.disposition != n.FILE_OPEN:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if node is not self.root and all(link.delete_pending for link in node.links):
            raise StatusError(STATUS_DELETE_PENDING)
        return self._open_existing(request, FilePath(()), node, node.links[0] if node.links else None)

    def _open_existing(
        self, request: OpenRequest, path: FilePath, node: Node, link: Link | None
    ) -> tuple[Open, int]:
        options, disposition = request.options, request.disposition
        stream = node.stream(path.stream)
        if stream is not None and stream.delete_pending:
            raise StatusError(STATUS_DELETE_PENDING)
        if path.stream and options & n.FILE_DIRECTORY_FILE:
            raise StatusError(STATUS_NOT_A_DIRECTORY)
        if not node.is_directory and path.directory_syntax:
            raise StatusError(STATUS_OBJECT_NAME_INVALID)
        if stream is None:
            return self._create_stream(request, path, node, link)
        if disposition == n.FILE_CREATE:
            raise StatusError(STATUS_OBJECT_NAME_COLLISION)
        is_directory = node.is_directory and not path.stream
        if is_directory and disposition in _REPLACING:
            raise StatusError(
                STATUS_INVALID_PARAMETER if options & n.FILE_DIRECTORY_FILE else STATUS_OBJECT_NAME_COLLISION
            )
        if options & n.FILE_DIRECTORY_FILE and not node.is_directory:
            raise StatusError(STATUS_NOT_A_DIRECTORY)
        if options & n.FILE_NON_DIRECTORY_FILE and is_directory:
            raise StatusError(STATUS_FILE_IS_A_DIRECTORY)
        self._check_read_only(request, node, is_directory)
        if options & n.FILE_DELETE_ON_CLOSE and node is self.root:
            raise StatusError(STATUS_CANNOT_DELETE)
        needed = request.access
        if disposition == n.FILE_SUPERSEDE:
            needed |= n.DELETE
        elif disposition in _REPLACING:
            needed |= n.FILE_WRITE_DATA
        _check_share(stream, needed, request.share)
        information = n.FILE_OPENED
        if disposition in _REPLACING:
            self._replace(request, node, stream)
            information = n.FILE_SUPERSEDED if disposition == n.FILE_SUPERSEDE else n.FILE_OVERWRITTEN
        return self._opened(request, node, stream, link), information

    def _check_read_only(self, request: OpenRequest, node: Node, is_directory: bool) -> None:
        if self.read_only and (request.access & (_WRITERS | n.DELETE) or request.disposition in _REPLACING):
            raise StatusError(STATUS_MEDIA_WRITE_PROTECTED)
        if node.read_only and not is_directory:
            if request.access & _WRITERS or request.disposition in _REPLACING:
                raise StatusError(STATUS_ACCESS_DENIED)
            if request.options & n.FILE_DELETE_ON_CLOSE:
                raise StatusError(STATUS_CANNOT_DELETE)
        protected = node.attributes & (n.FILE_ATTRIBUTE_HIDDEN | n.FILE_ATTRIBUTE_SYSTEM)
        if request.disposition in (n.FILE_OVERWRITE, n.FILE_OVERWRITE_IF) and protected & ~request.attributes:
            raise StatusError(STATUS_ACCESS_DENIED)

    def _replace(self, request: OpenRequest, node: Node, stream: Stream) -> None:
        """Overwrite or supersede: the data goes, and with the unnamed stream all others that nobody has open."""
        self._resize(stream, 0, 0)
        stream.data.clear()
        attributes = request.attributes & n.SETTABLE_ATTRIBUTES | n.FILE_ATTRIBUTE_ARCHIVE
        if stream.name == "":
            for key in [k for k, s in node.streams.items() if k and not s.opens]:
                self._resize(node.streams[key], 0, 0)
                del node.streams[key]
            node.extended = b""
            node.attributes = (
                attributes
                if request.disposition == n.FILE_SUPERSEDE
                else attributes | node.attributes & (n.FILE_ATTRIBUTE_HIDDEN | n.FILE_ATTRIBUTE_SYSTEM)
            )
        self._reserve(stream, request.allocation)
        now = self.now()
        node.times.write = node.times.change = node.times.access = now

    def _create(self, request: OpenRequest, path: FilePath, parent: Node, name: str) -> tuple[Open, int]:
        options = request.options
        if request.disposition in _MUST_EXIST:
            raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)
        directory = bool(options & n.FILE_DIRECTORY_FILE)
        if directory and (
            request.disposition in _REPLACING or request.attributes & n.FILE_ATTRIBUTE_TEMPORARY
        ):
            raise StatusError(STATUS_INVALID_PARAMETER)
        if directory and path.stream:
            raise StatusError(STATUS_NOT_A_DIRECTORY)
        if path.directory_syntax and not directory:
            raise StatusError(STATUS_OBJECT_NAME_INVALID)
        self.check_writable()
        self.check_parent(parent)
        attributes = request.attributes & n.SETTABLE_ATTRIBUTES
        if options & n.FILE_DELETE_ON_CLOSE and attributes & n.FILE_ATTRIBUTE_READONLY:
            raise StatusError(STATUS_CANNOT_DELETE)
        check_name(name)
        self._check_room(request.allocation)
        attributes |= n.FILE_ATTRIBUTE_DIRECTORY if directory else n.FILE_ATTRIBUTE_ARCHIVE
        node = self._new_node(attributes, directory=directory)
        link = self.add_link(node, parent, name)
        stream = node.streams[""]
        if path.stream:
            stream = node.streams[fold(path.stream)] = Stream(path.stream)
        self._reserve(stream, request.allocation)
        return self._opened(request, node, stream, link), n.FILE_CREATED

    def _create_stream(
        self, request: OpenRequest, path: FilePath, node: Node, link: Link | None
    ) -> tuple[Open, int]:
        if request.disposition in _MUST_EXIST:
            raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)
        self.check_writable()
        if node.read_only and not node.is_directory:
            raise StatusError(STATUS_ACCESS_DENIED)
        self._check_room(request.allocation)
        stream = node.streams[fold(path.stream)] = Stream(path.stream)
        self._reserve(stream, request.allocation)
        node.times.change = self.now()
        return self._opened(request, node, stream, link), n.FILE_CREATED

    def _opened(self, request: OpenRequest, node: Node, stream: Stream, link: Link | None) -> Open:
        opened = Open(node, stream, link, request.access, request.share, request.options)
        opened.delete_on_close = bool(request.options & n.FILE_DELETE_ON_CLOSE)
        stream.opens.append(opened)
        if link is not None:
            link.opens += 1
        return opened

    # Closing

    def cleanup(self, opened: Open) -> bool:
        """The last handle is closed: sharing ends, a pending delete happens.

        Returns:
            True if the file, the stream or the name that this handle was opened by is gone now.
        """
        if opened.cleaned_up:
            return False
        opened.cleaned_up = True
        stream, link, node = opened.stream, opened.link, opened.node
        stream.opens.remove(opened)
        if link is not None:
            link.opens -= 1
        if opened.delete_on_close:
            if stream.name:
                stream.delete_pending = True
            elif link is not None and not (node.is_directory and node.children):
                link.delete_pending = True
        if stream.delete_pending and not stream.opens:
            self._drop_stream(node, stream)
            return True
        if link is None or link.removed or not link.delete_pending:
            return False
        if (opened.posix_delete or not link.opens) and not (node.is_directory and node.children):
            self.remove_link(link)
            return True
        return False

    def close(self, opened: Open) -> None:
        """The file object is gone: a file without names and without opens is forgotten."""
        if not opened.cleaned_up:
            self.cleanup(opened)
        self.forget_if_unused(opened.node)

    def set_delete(self, opened: Open, flags: int) -> None:
        """FileDispositionInformation(Ex): FILE_DISPOSITION_* flags, without DELETE the mark is taken back.

        Raises:
            StatusError: the file cannot be deleted.
        """
        self.check_writable()
        node, link = opened.node, opened.link
        if flags & n.FILE_DISPOSITION_ON_CLOSE:
            if not opened.options & n.FILE_DELETE_ON_CLOSE:
                raise StatusError(STATUS_INVALID_PARAMETER)
            opened.delete_on_close = bool(flags & n.FILE_DISPOSITION_DELETE)
            return
        if not flags & n.FILE_DISPOSITION_DELETE:
            opened.posix_delete = False
            if opened.stream.name:
                opened.stream.delete_pending = False
            elif link is not None:
                link.delete_pending = False
            return
        if opened.stream.name:
            opened.stream.delete_pending = True
            return
        if link is None:
            raise StatusError(STATUS_CANNOT_DELETE)
        if node.read_only and not flags & n.FILE_DISPOSITION_IGNORE_READONLY_ATTRIBUTE:
            raise StatusError(STATUS_CANNOT_DELETE)
        if node.children:
            raise StatusError(STATUS_DIRECTORY_NOT_EMPTY)
        link.delete_pending = True
        if flags & n.FILE_DISPOSITION_POSIX_SEMANTICS:
            opened.posix_delete = True

    # Data

    def read(self, opened: Open, offset: int, length: int) -> bytes:
        """Up to `length` bytes.

        Raises:
            StatusError: STATUS_END_OF_FILE at or behind the end, STATUS_INVALID_DEVICE_REQUEST on a directory.
        """
        self._check_data(opened)
        stream = opened.stream
        if offset < 0:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if length == 0:
            return b""
        if offset >= stream.size:
            raise StatusError(STATUS_END_OF_FILE)
        count = min(length, stream.size - offset)
        data = bytes(stream.data[offset : offset + count])
        return data.ljust(count, b"\0")

    def write(self, opened: Open, offset: int, data: bytes) -> int:
        """Write at `offset`; -1 is the end of the file. Returns the offset used.

        Raises:
            StatusError: STATUS_DISK_FULL, and nothing is written.
        """
        self._check_data(opened)
        self.check_writable()
        stream = opened.stream
        if offset == -1 or not opened.access & n.FILE_WRITE_DATA:
            offset = stream.size
        if offset < 0:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if not data:
            return offset
        end = offset + len(data)
        if end > stream.size:
            self._resize(stream, end, stream.reserved)
        if len(stream.data) < offset:
            stream.data.extend(bytes(offset - len(stream.data)))
        stream.data[offset:end] = data
        self._modified(opened)
        return offset

    def set_end_of_file(self, opened: Open, size: int) -> None:
        """FileEndOfFileInformation."""
        self._check_data(opened)
        self.check_writable()
        if size < 0:
            raise StatusError(STATUS_INVALID_PARAMETER)
        stream = opened.stream
        self._resize(stream, size, stream.reserved if size >= stream.size else 0)
        del stream.data[size:]
        self._modified(opened)

    def set_allocation(self, opened: Open, size: int) -> None:
        """FileAllocationInformation: an allocation below the end of the file moves the end."""
        self._check_data(opened)
        self.check_writable()
        if size < 0:
            raise StatusError(STATUS_INVALID_PARAMETER)
        stream = opened.stream
        rounded = (size + CLUSTER_BYTES - 1) // CLUSTER_BYTES * CLUSTER_BYTES
        self._resize(stream, min(stream.size, size), rounded)
        del stream.data[stream.size :]
        self._modified(opened)

    def _check_data(self, opened: Open) -> None:
        if opened.node.is_directory and not opened.stream.name:
            raise StatusError(STATUS_INVALID_DEVICE_REQUEST)

    def _modified(self, opened: Open) -> None:
        node = opened.node
        node.attributes |= 0 if node.is_directory else n.FILE_ATTRIBUTE_ARCHIVE
        if not opened.times_frozen:
            node.times.write = node.times.change = node.times.access = self.now()

    # Directories

    def query_directory(self, opened: Open, pattern: str | None, *, restart: bool, most: int) -> list[Entry]:
        """The next entries, at most `most`, in the order of their folded names, "." and ".." first.

        The first query sets the expression; a restart may change it.

        Raises:
            StatusError: STATUS_NO_SUCH_FILE if the first query finds nothing, STATUS_NO_MORE_FILES at the end.
        """
        node = opened.node
        if node.children is None or opened.stream.name:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if opened.cleaned_up:
            raise StatusError(STATUS_FILE_CLOSED)
        first = opened.pattern is None or restart
        if opened.pattern is None or (restart and pattern):
            opened.pattern = pattern or "*"
        if first:
            opened.position = None
        expression = opened.pattern
        found: list[Entry] = []
        for key, entry in self._entries_after(node, opened.position):
            if matches(expression, entry.name):
                if len(found) == most:
                    break
                found.append(entry)
            opened.position = key
        if not found:
            raise StatusError(STATUS_NO_SUCH_FILE if first else STATUS_NO_MORE_FILES)
        return found

    def continue_after(self, opened: Open, entry: Entry) -> None:
        """Go back to an entry of the last query: the next one starts behind it."""
        opened.position = f"\0{entry.name}" if entry.name in (".", "..") else fold(entry.name)

    def _entries_after(self, node: Node, position: str | None) -> list[tuple[str, Entry]]:
        assert node.children is not None
        entries: list[tuple[str, Entry]] = []
        if node.links:
            entries = [("\0.", Entry(".", node)), ("\0..", Entry("..", node.links[0].parent))]
        keys = sorted(node.children)
        entries += [(key, Entry(node.children[key].name, node.children[key].node)) for key in keys]
        if position is None:
            return entries
        return entries[bisect.bisect_right([key for key, _ in entries], position) :]

    # Attributes

    def set_basic(self, opened: Open, times: tuple[int, int, int, int], attributes: int) -> None:
        """FileBasicInformation: 0 leaves a value, -1 stops and -2 resumes the moving of times by this handle.

        Raises:
            StatusError: STATUS_INVALID_PARAMETER for an attribute that does not fit the object.
        """
        self.check_writable()
        node = opened.node
        if any(value < -2 for value in times):
            raise StatusError(STATUS_INVALID_PARAMETER)
        if attributes:
            if attributes & n.FILE_ATTRIBUTE_DIRECTORY and not node.is_directory:
                raise StatusError(STATUS_INVALID_PARAMETER)
            if attributes & n.FILE_ATTRIBUTE_TEMPORARY and node.is_directory:
                raise StatusError(STATUS_INVALID_PARAMETER)
            kept = node.attributes & n.FILE_ATTRIBUTE_DIRECTORY
            node.attributes = attributes & n.SETTABLE_ATTRIBUTES | kept
        creation, access, write, change = times
        node.times = Times(
            creation if creation > 0 else node.times.creation,
            access if access > 0 else node.times.access,
            write if write > 0 else node.times.write,
            change if change > 0 else self.now(),
        )
        if -1 in times or write > 0:
            opened.times_frozen = True
        elif -2 in times:
            opened.times_frozen = False

    # Shared with file_links.py

    def check_writable(self) -> None:
        """Raise `StatusError` on a read-only volume."""
        if self.read_only:
            raise StatusError(STATUS_MEDIA_WRITE_PROTECTED)

    def check_parent(self, parent: Node) -> None:
        """Raise `StatusError` if nothing can be added to a directory that is about to go, or is gone."""
        if parent is not self.root and (not parent.links or parent.links[0].delete_pending):
            raise StatusError(STATUS_DELETE_PENDING)

    def add_link(self, node: Node, parent: Node, name: str) -> Link:
        """Give a file a name."""
        assert parent.children is not None
        link = Link(parent, name, node)
        node.links.append(link)
        parent.children[fold(name)] = link
        parent.times.write = parent.times.change = self.now()
        return link

    def remove_link(self, link: Link) -> None:
        """Take a name away; the file goes with its last name once nobody has it open."""
        assert link.parent.children is not None
        link.removed = True
        link.parent.children.pop(fold(link.name), None)
        link.parent.times.write = link.parent.times.change = self.now()
        link.node.links.remove(link)
        link.node.times.change = self.now()
        self.forget_if_unused(link.node)

    def forget_if_unused(self, node: Node) -> None:
        """Give the space back of a file that has neither a name nor an open handle."""
        if node is self.root or node.links or node.is_open or node.id not in self.nodes:
            return
        for stream in node.streams.values():
            self._resize(stream, 0, 0)
        del self.nodes[node.id]

    def _drop_stream(self, node: Node, stream: Stream) -> None:
        self._resize(stream, 0, 0)
        node.streams.pop(fold(stream.name), None)
        node.times.change = self.now()

    def _new_node(self, attributes: int, *, directory: bool, node_id: int | None = None) -> Node:
        now = self.now()
        if node_id is None:
            node_id = 0x0001_0000_0000_0000 | self._next_record
            self._next_record += 1
        node = Node(node_id, attributes, Times(now, now, now, now), self.security)
        node.streams[""] = Stream("")
        if directory:
            node.children = {}
        self.nodes[node_id] = node
        return node

    def _check_room(self, more: int) -> None:
        if more < 0:
            raise StatusError(STATUS_INVALID_PARAMETER)
        if more and self.used_bytes + more > self.capacity_bytes:
            raise StatusError(STATUS_DISK_FULL)

    def _reserve(self, stream: Stream, size: int) -> None:
        if size:
            self._resize(stream, stream.size, (size + CLUSTER_BYTES - 1) // CLUSTER_BYTES * CLUSTER_BYTES)

    def _resize(self, stream: Stream, size: int, reserved: int) -> None:
        """Change size and reservation together, or nothing if the volume is too full."""
        before, old_size, old_reserved = stream.allocation, stream.size, stream.reserved
        stream.size, stream.reserved = size, reserved
        change = stream.allocation - before
        if change > 0 and self.used_bytes + change > self.capacity_bytes:
            stream.size, stream.reserved = old_size, old_reserved
            raise StatusError(STATUS_DISK_FULL)
        self.used_bytes += change


def _check_share(stream: Stream, access: int, share: int) -> None:
    """IoCheckShareAccess: only opens that read, write or delete take part."""
    reads, writes, deletes = access & _READERS, access & _WRITERS, access & n.DELETE
    if not (reads or writes or deletes):
        return
    for other in stream.opens:
        theirs = other.access
        if not theirs & (_READERS | _WRITERS | n.DELETE):
            continue
        if (
            (reads and not other.share & n.FILE_SHARE_READ)
            or (writes and not other.share & n.FILE_SHARE_WRITE)
            or (deletes and not other.share & n.FILE_SHARE_DELETE)
            or (theirs & _READERS and not share & n.FILE_SHARE_READ)
            or (theirs & _WRITERS and not share & n.FILE_SHARE_WRITE)
            or (theirs & n.DELETE and not share & n.FILE_SHARE_DELETE)
        ):
            raise StatusError(STATUS_SHARING_VIOLATION)
