"""A small model of files and of what the driver tells of them: from random steps to requests and expected records.

It knows nothing of the driver's sources: names belong to links, links to files, handles to both, and every request
makes the records that `downlink_protocol.h` promises for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from harness.client import files, ntstatus
from harness.client.protocol import Kind, SetFlag, SizeKind

NAMES: Final = ("a", "B b", "\u00fc-\u6587", "lone-\ud800", "n" * 120)
WRITES_MAXIMUM: Final = 3000
Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class Step:
    """One random choice; `where`, `what` and `amount` are taken modulo what there is to choose from."""

    verb: str
    actor: int
    where: int
    what: int
    amount: int


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the agent's `perform`."""

    actor: int
    verb: str
    arguments: tuple[Any, ...]
    status: int = ntstatus.SUCCESS
    """The NTSTATUS that it must end with."""


@dataclass(frozen=True, slots=True)
class Told:
    """One record as it must come. Paths are relative to the directory of the test."""

    kind: Kind
    actor: int
    path: str
    second: str = ""
    value: int = 0
    detail: int = 0
    directory: bool = False
    status: int = ntstatus.SUCCESS
    node: int | None = None
    """Which file it is of: equal numbers have equal file ids, others have other ones. None for no file at all."""


@dataclass(slots=True, eq=False)
class Node:
    """A file or directory."""

    number: int
    directory: bool = False
    size: int = 0


@dataclass(slots=True, eq=False)
class Link:
    """One name of a node; `parent` is None for the names in the test's own directory."""

    node: Node
    name: str
    parent: Link | None
    pending: bool = False

    @property
    def path(self) -> str:
        return f"{self.parent.path}\\{self.name}" if self.parent else self.name


@dataclass(slots=True, eq=False)
class Handle:
    """An open file."""

    number: int
    actor: int
    link: Link
    position: int = 0
    first_write_told: bool = False
    written: int = 0
    untold: int = 0
    changes: int = 0


@dataclass(slots=True)
class Tree:
    """The model. `take` turns a step into requests and records, or into nothing if it makes no sense now."""

    failures: bool = False
    """Whether failed operations are told."""
    links: list[Link] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    nodes: int = 0
    opens: int = 0

    def take(self, step: Step) -> None:
        getattr(self, f"_{step.verb}")(step)

    def finish(self) -> None:
        """Close what is still open, the oldest first."""
        for handle in list(self.handles):
            self._end(handle)

    def contents(self) -> dict[str, int | None]:
        """Sizes of the files that there are, None for directories."""
        return {link.path: None if link.node.directory else link.node.size for link in self.links}

    # Steps, one method per verb.

    def _create(self, step: Step) -> None:
        parent, name = self._parent(step.where), self._name(step.what)
        taken = self._find(parent, name)
        if taken is None:
            link = self._add(parent, name)
            self._begin(step.actor, link, files.CREATE, files.CREATED)
        elif not taken.pending and not taken.node.directory:
            self._fail(step.actor, "create", taken.path, ntstatus.OBJECT_NAME_COLLISION)

    def _open(self, step: Step) -> None:
        link = self._file(step.where)
        if link is None:
            self._fail(step.actor, "open", "missing", ntstatus.OBJECT_NAME_NOT_FOUND)
            return
        dispositions = (
            (files.OPEN, files.OPENED),
            (files.OPEN_IF, files.OPENED),
            (files.OVERWRITE, files.OVERWRITTEN),
            (files.OVERWRITE_IF, files.OVERWRITTEN),
            (files.SUPERSEDE, files.SUPERSEDED),
        )
        disposition, result = dispositions[step.what % len(dispositions)]
        if result != files.OPENED:
            link.node.size = 0
        self._begin(step.actor, link, disposition, result)

    def _close(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is not None:
            self._end(handle)

    def _write(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is None:
            return
        count = 1 + step.amount % WRITES_MAXIMUM
        offset = step.what % 5000
        self._ask(handle, "write", offset, count)
        handle.link.node.size = max(handle.link.node.size, offset + count)
        handle.written += count
        handle.changes |= Kind.FILE_WRITTEN.bit
        if handle.first_write_told:
            handle.untold += count
        else:
            handle.first_write_told = True
            self._tell(handle, Kind.FILE_WRITTEN, value=count)

    def _set_size(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is None:
            return
        size = step.amount % 5000
        self._ask(handle, "set_size", size)
        handle.link.node.size = size
        self._change(handle, Kind.FILE_SIZE_SET, value=size, detail=SizeKind.END_OF_FILE)

    def _set_attributes(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is None:
            return
        attributes = (0, files.ATTRIBUTE_HIDDEN, files.ATTRIBUTE_NORMAL)[step.what % 3]
        time = 0 if attributes and step.amount % 2 else 116444736000000000 + step.amount
        self._ask(handle, "set_attributes", attributes, time)
        detail = (SetFlag.ATTRIBUTES if attributes else 0) | (SetFlag.CREATION_TIME if time else 0)
        self._change(handle, Kind.FILE_ATTRIBUTES_SET, value=attributes, detail=int(detail))

    def _set_security(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is not None:
            self._ask(handle, "set_security")
            self._change(handle, Kind.FILE_SECURITY_SET, value=files.DACL_SECURITY_INFORMATION)

    def _rename(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is None or handle.link.pending:
            return
        parent, name = self._parent(step.what), self._name(step.amount)
        taken = self._find(parent, name)
        old, new = handle.link.path, self._path(parent, name)
        if taken is None:
            self._ask(handle, "rename", new)
            self._tell(handle, Kind.FILE_RENAMED, second=new)
            handle.link.parent, handle.link.name = parent, name
            handle.changes |= Kind.FILE_RENAMED.bit
        elif taken is not handle.link and not taken.pending:
            self._refuse(handle, "rename", Kind.FILE_RENAMED, old, new)

    def _link(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is None or handle.link.pending:
            return
        parent, name = self._parent(step.what), self._name(step.amount)
        taken = self._find(parent, name)
        new = self._path(parent, name)
        if taken is None:
            self._ask(handle, "link", new)
            self._change(handle, Kind.FILE_LINKED, second=new)
            self.links.append(Link(handle.link.node, name, parent))
        elif taken.node is not handle.link.node and not taken.pending:
            self._refuse(handle, "link", Kind.FILE_LINKED, handle.link.path, new)

    def _delete(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is not None:
            handle.link.pending = True
            self._ask(handle, "set_delete", True)

    def _undelete(self, step: Step) -> None:
        handle = self._handle(step.where)
        if handle is not None:
            handle.link.pending = False
            self._ask(handle, "set_delete", False)

    def _make_directory(self, step: Step) -> None:
        parent, name = self._parent(step.where), self._name(step.what)
        if self._find(parent, name) is None and self._depth(parent) < 3:
            link = self._add(parent, name, directory=True)
            self._request(step.actor, "mkdir", link.path)
            self._tell_of(link, step.actor, Kind.FILE_OPENED, detail=files.CREATED)

    def _rename_directory(self, step: Step) -> None:
        link, parent, name = self._directory(step.where), self._parent(step.what), self._name(step.amount)
        if link is None or self._find(parent, name) is not None or self._within(parent, link):
            return
        # What is open below keeps a directory where it is, also if it was opened by another of its names.
        busy = {id(handle.link.node) for handle in self.handles}
        if any(self._within(below, link) and id(below.node) in busy for below in self.links):
            return
        new = self._path(parent, name)
        self._request(step.actor, "rename_directory", link.path, new)
        self._tell_of(link, step.actor, Kind.FILE_OPENED, detail=files.OPENED)
        self._tell_of(link, step.actor, Kind.FILE_RENAMED, second=new)
        link.parent, link.name = parent, name
        self._tell_of(link, step.actor, Kind.FILE_CLOSED, detail=Kind.FILE_RENAMED.bit)

    def _remove_directory(self, step: Step) -> None:
        link = self._directory(step.where)
        if link is None or any(other.parent is link for other in self.links):
            return
        self._request(step.actor, "remove_directory", link.path)
        self._tell_of(link, step.actor, Kind.FILE_OPENED, detail=files.OPENED)
        self._tell_of(link, step.actor, Kind.FILE_DELETED)
        self.links.remove(link)

    # What steps are made of.

    def _begin(self, actor: int, link: Link, disposition: int, result: int) -> None:
        handle = Handle(self.opens, actor, link)
        self.opens += 1
        self.handles.append(handle)
        self._request(actor, "open", handle.number, link.path, disposition)
        self._tell(handle, Kind.FILE_OPENED, detail=result)

    def _end(self, handle: Handle) -> None:
        self._ask(handle, "close")
        if handle.untold:
            self._tell(handle, Kind.FILE_WRITTEN, value=handle.untold)
        if handle.changes:
            self._tell(handle, Kind.FILE_CLOSED, value=handle.written, detail=handle.changes)
        self.handles.remove(handle)
        if handle.link.pending and all(other.link is not handle.link for other in self.handles):
            self._tell(handle, Kind.FILE_DELETED)
            self.links.remove(handle.link)

    def _change(self, handle: Handle, kind: Kind, **values: Any) -> None:
        handle.changes |= kind.bit
        self._tell(handle, kind, **values)

    def _fail(self, actor: int, verb: str, path: str, status: int) -> None:
        self._request(actor, f"{verb}_in_vain", path, status=status)
        if self.failures:
            self.told.append(Told(Kind.FILE_OPENED, actor, path, status=status))

    def _refuse(self, handle: Handle, verb: str, kind: Kind, old: str, new: str) -> None:
        status = ntstatus.OBJECT_NAME_COLLISION
        self._request(handle.actor, verb, handle.number, new, status=status)
        if self.failures:
            number = handle.link.node.number
            self.told.append(Told(kind, handle.actor, old, new, status=status, node=number))

    def _ask(self, handle: Handle, verb: str, *arguments: Any) -> None:
        self._request(handle.actor, verb, handle.number, *arguments)

    def _request(self, actor: int, verb: str, *arguments: Any, status: int = ntstatus.SUCCESS) -> None:
        self.requests.append(Request(actor, verb, arguments, status))

    def _tell(self, handle: Handle, kind: Kind, **values: Any) -> None:
        self._tell_of(handle.link, handle.actor, kind, **values)

    def _tell_of(self, link: Link, actor: int, kind: Kind, **values: Any) -> None:
        node = link.node
        self.told.append(Told(kind, actor, link.path, directory=node.directory, node=node.number, **values))

    def _add(self, parent: Link | None, name: str, *, directory: bool = False) -> Link:
        link = Link(Node(self.nodes, directory), name, parent)
        self.nodes += 1
        self.links.append(link)
        return link

    # Choices.

    def _handle(self, number: int) -> Handle | None:
        return _pick(self.handles, number)

    def _file(self, number: int) -> Link | None:
        return _pick([link for link in self.links if not link.node.directory and not link.pending], number)

    def _directory(self, number: int) -> Link | None:
        return _pick([link for link in self.links if link.node.directory], number)

    def _parent(self, number: int) -> Link | None:
        return _pick([None, *(link for link in self.links if link.node.directory)], number)

    def _name(self, number: int) -> str:
        return NAMES[number % len(NAMES)]

    def _find(self, parent: Link | None, name: str) -> Link | None:
        return next((link for link in self.links if link.parent is parent and link.name == name), None)

    def _path(self, parent: Link | None, name: str) -> str:
        return f"{parent.path}\\{name}" if parent else name

    def _within(self, link: Link | None, directory: Link) -> bool:
        while link is not None:
            if link is directory:
                return True
            link = link.parent
        return False

    def _depth(self, link: Link | None) -> int:
        return 0 if link is None else 1 + self._depth(link.parent)


VERBS: Final = (
    "create",
    "open",
    "close",
    "write",
    "set_size",
    "set_attributes",
    "set_security",
    "rename",
    "link",
    "delete",
    "undelete",
    "make_directory",
    "rename_directory",
    "remove_directory",
)
"""What a step can be."""


def _pick(choices: Sequence[Choice], number: int) -> Choice | None:
    return choices[number % len(choices)] if choices else None
