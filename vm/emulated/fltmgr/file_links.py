"""Renames and hard links on a `FileSystem`."""

from __future__ import annotations

from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.file_names import check_name, fold, utf16_units
from vm.emulated.fltmgr.file_nodes import Link, Node, Open
from vm.emulated.fltmgr.filesystem import FileSystem
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_DELETE_PENDING,
    STATUS_FILE_IS_A_DIRECTORY,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_SUPPORTED,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_INVALID,
)

STATUS_TOO_MANY_LINKS = 0xC000_0265
LINKS_MAXIMUM = 1024
"""Names one file may have on NTFS."""


def rename(fs: FileSystem, opened: Open, parent: Node, name: str, flags: int) -> None:
    """FileRenameInformation(Ex): give the name the file was opened by another directory or spelling.

    Args:
        parent: the target directory.
        flags: FILE_RENAME_*; without REPLACE_IF_EXISTS an existing target fails the call.

    Raises:
        StatusError: as NTFS fails it; nothing has changed then.
    """
    fs.check_writable()
    if name.startswith(":"):
        _rename_stream(opened, name[1:])
        return
    link = opened.link
    if link is None or link.removed or opened.stream.name:
        raise StatusError(STATUS_INVALID_PARAMETER)
    if link.delete_pending:
        raise StatusError(STATUS_DELETE_PENDING)
    check_name(name)
    node = opened.node
    if node.is_directory:
        if _is_inside(parent, node):
            raise StatusError(STATUS_INVALID_PARAMETER)
        if not flags & n.FILE_RENAME_POSIX_SEMANTICS and _has_open_descendant(node):
            raise StatusError(STATUS_ACCESS_DENIED)
    fs.check_parent(parent)
    target = _children(parent).get(fold(name))
    if target is link:
        link.name = name
    else:
        if target is not None and target.node is node:
            fs.remove_link(target)
        elif target is not None:
            _make_way(fs, target, flags)
        _children(link.parent).pop(fold(link.name), None)
        now = fs.now()
        for directory in (link.parent, parent):
            directory.times.write = directory.times.change = now
        link.parent, link.name = parent, name
        _children(parent)[fold(name)] = link
    node.times.change = fs.now()
    if not node.is_directory:
        node.attributes |= n.FILE_ATTRIBUTE_ARCHIVE


def hard_link(fs: FileSystem, opened: Open, parent: Node, name: str, flags: int) -> None:
    """FileLinkInformation: one more name.

    Raises:
        StatusError: the file is a directory, the name is taken, the file has 1024 names.
    """
    fs.check_writable()
    node = opened.node
    if node.is_directory:
        raise StatusError(STATUS_FILE_IS_A_DIRECTORY)
    if opened.link is not None and opened.link.delete_pending:
        raise StatusError(STATUS_DELETE_PENDING)
    check_name(name)
    fs.check_parent(parent)
    target = _children(parent).get(fold(name))
    if target is not None:
        if target.node is node and flags & n.FILE_RENAME_REPLACE_IF_EXISTS:
            target.name = name
            return
        _make_way(fs, target, flags)
    if len(node.links) >= LINKS_MAXIMUM:
        raise StatusError(STATUS_TOO_MANY_LINKS)
    fs.add_link(node, parent, name)
    node.times.change = fs.now()


def _make_way(fs: FileSystem, target: Link, flags: int) -> None:
    """Remove what has the wanted name."""
    if not flags & n.FILE_RENAME_REPLACE_IF_EXISTS:
        raise StatusError(STATUS_OBJECT_NAME_COLLISION)
    posix = bool(flags & n.FILE_RENAME_POSIX_SEMANTICS)
    if target.delete_pending:
        raise StatusError(STATUS_DELETE_PENDING)
    if target.node.is_directory and (not posix or target.node.children):
        raise StatusError(STATUS_ACCESS_DENIED)
    if target.node.read_only and not flags & n.FILE_RENAME_IGNORE_READONLY_ATTRIBUTE:
        raise StatusError(STATUS_ACCESS_DENIED)
    if target.node.is_open and not posix:
        raise StatusError(STATUS_ACCESS_DENIED)
    fs.remove_link(target)


def _rename_stream(opened: Open, name: str) -> None:
    """Rename an alternate stream; to and from the unnamed one is not supported here."""
    if name.upper().endswith(":$DATA"):
        name = name[: -len(":$DATA")]
    if not opened.stream.name or not name:
        raise StatusError(STATUS_NOT_SUPPORTED)
    if ":" in name or "/" in name or "\\" in name or utf16_units(name) > 255:
        raise StatusError(STATUS_OBJECT_NAME_INVALID)
    streams = opened.node.streams
    taken = streams.get(fold(name))
    if taken is not None and taken is not opened.stream:
        raise StatusError(STATUS_OBJECT_NAME_COLLISION)
    del streams[fold(opened.stream.name)]
    opened.stream.name = name
    streams[fold(name)] = opened.stream


def _children(directory: Node) -> dict[str, Link]:
    if directory.children is None:
        raise StatusError(STATUS_INVALID_PARAMETER)
    return directory.children


def _is_inside(directory: Node, ancestor: Node) -> bool:
    """True if `directory` is `ancestor` or lies below it."""
    while directory is not ancestor:
        if not directory.links:
            return False
        directory = directory.links[0].parent
    return True


def _has_open_descendant(directory: Node) -> bool:
    assert directory.children is not None
    for link in directory.children.values():
        if link.node.is_open or (link.node.children is not None and _has_open_descendant(link.node)):
            return True
    return False
