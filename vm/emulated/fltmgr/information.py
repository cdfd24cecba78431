"""File and volume information classes as bytes, x64 layouts of wdm.h and ntifs.h: what queries return."""

from __future__ import annotations

import struct
from collections.abc import Callable

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_nodes import CLUSTER_BYTES, Node, Open, Stream
from vm.emulated.fltmgr.file_objects import FileObject
from vm.emulated.fltmgr.filesystem import Entry, FileSystem
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_BUFFER_OVERFLOW,
    STATUS_INFO_LENGTH_MISMATCH,
    STATUS_INVALID_INFO_CLASS,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
)

_BASIC = struct.Struct("<qqqqI4x")
_STANDARD = struct.Struct("<qqIBB2x")
_NETWORK = struct.Struct("<qqqqqqI4x")


def _encode(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


def _sizes(node: Node, stream: Stream) -> tuple[int, int]:
    if node.is_directory and not stream.name:
        return 0, 0
    return stream.allocation, stream.size


def _basic(file: FileObject, opened: Open) -> bytes:
    times = opened.node.times
    return _BASIC.pack(times.creation, times.access, times.write, times.change, opened.node.shown_attributes)


def _delete_pending(opened: Open) -> bool:
    if opened.stream.name:
        return opened.stream.delete_pending
    return opened.link is not None and (opened.link.delete_pending or opened.link.removed)


def _standard(file: FileObject, opened: Open) -> bytes:
    node = opened.node
    allocation, size = _sizes(node, opened.stream)
    links = sum(not link.delete_pending for link in node.links)
    if node is file.volume.file_system.root:
        links = 1
    return _STANDARD.pack(
        allocation, size, links, _delete_pending(opened), node.is_directory and not opened.stream.name
    )


def _internal(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<Q", opened.node.id)


def _access(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<I", file.access)


def _name(file: FileObject, opened: Open) -> bytes:
    raw = _encode(opened.path())
    return struct.pack("<I", len(raw)) + raw


def _position(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<q", file.position)


def _mode(file: FileObject, opened: Open) -> bytes:
    kept = (
        n.FILE_WRITE_THROUGH
        | n.FILE_SEQUENTIAL_ONLY
        | n.FILE_NO_INTERMEDIATE_BUFFERING
        | n.FILE_SYNCHRONOUS_IO_ALERT
        | n.FILE_SYNCHRONOUS_IO_NONALERT
        | n.FILE_DELETE_ON_CLOSE
    )
    return struct.pack("<I", file.options & kept)


def _ea(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<I", len(opened.node.extended))


def _alignment(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<I", 0)


def _all(file: FileObject, opened: Open) -> bytes:
    return b"".join(
        part(file, opened)
        for part in (_basic, _standard, _internal, _ea, _access, _position, _mode, _alignment, _name)
    )


def _streams(file: FileObject, opened: Open) -> bytes:
    found = []
    for stream in opened.node.streams.values():
        if opened.node.is_directory and not stream.name:
            continue
        raw = _encode(f":{stream.name}:$DATA")
        found.append((struct.pack("<Iqq", len(raw), stream.size, stream.allocation), raw))
    return _chain(found)


def _chain(entries: list[tuple[bytes, bytes]]) -> bytes:
    """Entries that begin with NextEntryOffset, each on an 8-byte boundary."""
    data = bytearray()
    for position, (head, raw) in enumerate(entries):
        body = head + raw
        last = position == len(entries) - 1
        size = 4 + len(body)
        padding = 0 if last else -size % 8
        data += struct.pack("<I", 0 if last else size + padding) + body + bytes(padding)
    return bytes(data)


def _network_open(file: FileObject, opened: Open) -> bytes:
    times, node = opened.node.times, opened.node
    return _NETWORK.pack(
        times.creation,
        times.access,
        times.write,
        times.change,
        *_sizes(node, opened.stream),
        node.shown_attributes,
    )


def _attribute_tag(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<II", opened.node.shown_attributes, 0)


def _links(file: FileObject, opened: Open) -> bytes:
    entries = []
    for link in opened.node.links:
        name = _encode(link.name)
        entries.append((struct.pack("<QI", link.parent.id, len(name) // 2), name))
    # The NextEntryOffset of FILE_LINK_ENTRY_INFORMATION is followed by an 8-aligned member.
    data = bytearray()
    for position, (head, raw) in enumerate(entries):
        last = position == len(entries) - 1
        body = b"\0\0\0\0" + head + raw
        size = 4 + len(body)
        padding = 0 if last else -size % 8
        data += struct.pack("<I", 0 if last else size + padding) + body + bytes(padding)
    return struct.pack("<II", 8 + len(data), len(entries)) + bytes(data)


def _standard_link(file: FileObject, opened: Open) -> bytes:
    visible = sum(not link.delete_pending for link in opened.node.links)
    return struct.pack(
        "<IIBB2x", visible, len(opened.node.links), _delete_pending(opened), opened.node.is_directory
    )


def _id(file: FileObject, opened: Open) -> bytes:
    return struct.pack("<Q", file.volume.file_system.serial) + opened.node.id128


def _stat(file: FileObject, opened: Open) -> bytes:
    node, times = opened.node, opened.node.times
    return struct.pack(
        "<QqqqqqqIIII",
        node.id,
        times.creation,
        times.access,
        times.write,
        times.change,
        *_sizes(node, opened.stream),
        node.shown_attributes,
        0,
        len(node.links),
        file.access,
    )


_QUERIES: dict[int, tuple[int, Callable[[FileObject, Open], bytes]]] = {
    n.FileBasicInformation: (0x28, _basic),
    n.FileStandardInformation: (0x18, _standard),
    n.FileInternalInformation: (8, _internal),
    n.FileEaInformation: (4, _ea),
    n.FileAccessInformation: (4, _access),
    n.FileNameInformation: (8, _name),
    n.FileNormalizedNameInformation: (8, _name),
    n.FilePositionInformation: (8, _position),
    n.FileModeInformation: (4, _mode),
    n.FileAlignmentInformation: (4, _alignment),
    n.FileAllInformation: (0x68, _all),
    n.FileStreamInformation: (0x20, _streams),
    n.FileNetworkOpenInformation: (0x38, _network_open),
    n.FileAttributeTagInformation: (8, _attribute_tag),
    n.FileHardLinkInformation: (8, _links),
    n.FileStandardLinkInformation: (0xC, _standard_link),
    n.FileIdInformation: (0x18, _id),
    n.FileStatInformation: (0x48, _stat),
}
"""Class -> (least length the I/O manager accepts, encoder)."""


def query(file: FileObject, opened: Open, information_class: int, length: int) -> tuple[int, bytes]:
    """(status, bytes) of a query; STATUS_BUFFER_OVERFLOW with what fits when a name does not.

    Raises:
        StatusError: unknown class, or the buffer is too small for the fixed part.
    """
    if information_class == n.FileAlternateNameInformation:
        raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND)  # the volume makes no short names
    found = _QUERIES.get(information_class)
    if found is None:
        raise StatusError(STATUS_INVALID_INFO_CLASS)
    least, encoder = found
    if length < least:
        raise StatusError(STATUS_INFO_LENGTH_MISMATCH)
    data = encoder(file, opened)
    if len(data) > length:
        return STATUS_BUFFER_OVERFLOW, data[:length]
    return STATUS_SUCCESS, data


# Directories


def _entry_head(entry: Entry, index: int) -> bytes:
    node, times = entry.node, entry.node.times
    allocation, size = _sizes(node, node.streams[""])
    raw = _encode(entry.name)
    return struct.pack(
        "<IqqqqqqII",
        index,
        times.creation,
        times.access,
        times.write,
        times.change,
        size,
        allocation,
        node.shown_attributes,
        len(raw),
    )


def directory_entry(entry: Entry, information_class: int) -> bytes:
    """One entry without its NextEntryOffset.

    Raises:
        StatusError: STATUS_INVALID_INFO_CLASS.
    """
    raw = _encode(entry.name)
    head = _entry_head(entry, 0)
    node = entry.node
    match information_class:
        case n.FileNamesInformation:
            return struct.pack("<II", 0, len(raw)) + raw
        case n.FileDirectoryInformation:
            return head + raw
        case n.FileFullDirectoryInformation:
            return head + struct.pack("<I", 0) + raw
        case n.FileBothDirectoryInformation:
            return head + struct.pack("<IBB", 0, 0, 0) + bytes(24) + raw
        case n.FileIdBothDirectoryInformation:
            return (
                head + struct.pack("<IBB", 0, 0, 0) + bytes(24) + b"\0\0" + struct.pack("<Q", node.id) + raw
            )
        case n.FileIdFullDirectoryInformation:
            return head + struct.pack("<I4xQ", 0, node.id) + raw
        case n.FileIdExtdDirectoryInformation:
            return head + struct.pack("<II", 0, 0) + node.id128 + raw
    raise StatusError(STATUS_INVALID_INFO_CLASS)


# Volumes


def query_volume(fs: FileSystem, name: str, information_class: int, length: int) -> tuple[int, bytes]:
    """(status, bytes) of a volume query; `name` is the file system's name.

    Raises:
        StatusError: unknown class, or the buffer is too small for the fixed part.
    """
    total = fs.capacity_bytes // CLUSTER_BYTES
    free = max(fs.capacity_bytes - fs.used_bytes, 0) // CLUSTER_BYTES
    match information_class:
        case n.FileFsVolumeInformation:
            raw = _encode(fs.label)
            least, data = (
                0x18,
                struct.pack("<qIIBB", fs.created, fs.serial & 0xFFFF_FFFF, len(raw), 1, 0) + raw,
            )
        case n.FileFsSizeInformation:
            least, data = 0x18, struct.pack("<qqII", total, free, CLUSTER_BYTES // 512, 512)
        case n.FileFsFullSizeInformation:
            least, data = 0x20, struct.pack("<qqqII", total, free, free, CLUSTER_BYTES // 512, 512)
        case n.FileFsDeviceInformation:
            least, data = 8, struct.pack("<II", 7, 0x20)  # FILE_DEVICE_DISK, FILE_DEVICE_IS_MOUNTED
        case n.FileFsAttributeInformation:
            raw = _encode(name)
            attributes = 0x0000_0001 | 0x0002 | 0x0004 | 0x0008 | 0x0004_0000 | 0x0040_0000 | 0x0100_0000
            if fs.read_only:
                attributes |= 0x0008_0000
            least, data = 0xC, struct.pack("<IiI", attributes, 255, len(raw)) + raw
        case n.FileFsSectorSizeInformation:
            least, data = 0x1C, struct.pack("<7I", 512, 4096, 4096, 512, 0x3, 0, 0)
        case n.FileFsObjectIdInformation:
            least, data = 0x40, struct.pack("<Q", fs.serial).ljust(0x40, b"\0")
        case _:
            raise StatusError(STATUS_INVALID_INFO_CLASS)
    if length < least:
        raise StatusError(STATUS_INFO_LENGTH_MISMATCH)
    if len(data) > length:
        return STATUS_BUFFER_OVERFLOW, data[:length]
    return STATUS_SUCCESS, data
