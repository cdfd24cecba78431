"""Kernel objects: reference counts, the object namespace, handle tables.

An object that drivers treat as opaque has an address that is not mapped, so that looking into it faults at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.status import (
    STATUS_INVALID_HANDLE,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_INVALID,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_OBJECT_PATH_NOT_FOUND,
    STATUS_OBJECT_PATH_SYNTAX_BAD,
)

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

OPAQUE_BASE = 0xFFFF_C000_0000_0000
OPAQUE_STRIDE = 0x100
KERNEL_HANDLE_BIT = 0xFFFF_FFFF_8000_0000
CURRENT_PROCESS = 0xFFFF_FFFF_FFFF_FFFF
CURRENT_THREAD = 0xFFFF_FFFF_FFFF_FFFE


class StatusError(Exception):
    """An operation of the model fails with an NTSTATUS; whoever called it on behalf of a driver returns the status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:#010x}")
        self.status = status


@dataclass(slots=True, eq=False)
class KObject:
    """One kernel object. `references` counts pointers and handles, `handles` the handles alone."""

    address: int
    type: str
    body: Any
    name: str | None = None
    references: int = 1
    handles: int = 0
    on_last_handle: Callable[[], Any] | None = None
    """Called when the last handle closes; may return a generator that the closing thread then runs."""
    on_delete: Callable[[], None] | None = None
    permanent: bool = False
    security: Any = None
    tag: str = ""


@dataclass(slots=True)
class HandleEntry:
    """What a handle refers to, and with which rights."""

    object: KObject
    access: int
    inherit: bool = False
    protect: bool = False


@dataclass(slots=True)
class HandleTable:
    """Handles of one process; values are multiples of four, those of the system process are kernel handles."""

    kernel: bool = False
    entries: dict[int, HandleEntry] = field(default_factory=dict)
    _next: int = 4

    def insert(self, entry: HandleEntry) -> int:
        """A new handle; the object's counts go up."""
        entry.object.handles += 1
        entry.object.references += 1
        value = self._next
        self._next += 4
        handle = value | KERNEL_HANDLE_BIT if self.kernel else value
        self.entries[handle] = entry
        return handle

    def get(self, handle: int) -> HandleEntry:
        """The entry of a handle.

        Raises:
            StatusError: STATUS_INVALID_HANDLE.
        """
        entry = self.entries.get(handle & 0xFFFF_FFFF_FFFF_FFFC)
        if entry is None:
            raise StatusError(STATUS_INVALID_HANDLE)
        return entry


class ObjectManager:
    """All objects of one kernel, by address and by name."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.by_address: dict[int, KObject] = {}
        self._next = OPAQUE_BASE
        self._names: dict[str, KObject] = {}
        self._directories: set[str] = {"\\"}
        for path in (
            "\\Driver",
            "\\FileSystem",
            "\\FileSystem\\Filters",
            "\\Device",
            "\\GLOBAL??",
            "\\BaseNamedObjects",
            "\\Callback",
            "\\KernelObjects",
            "\\Registry",
        ):
            self._directories.add(path.upper())

    def create(
        self,
        kind: str,
        body: Any,
        *,
        name: str | None = None,
        address: int | None = None,
        on_last_handle: Callable[[], Any] | None = None,
        on_delete: Callable[[], None] | None = None,
    ) -> KObject:
        """A new object with one reference.

        Args:
            name: full path in the namespace; it must not be taken.
            address: where its body lies in memory; None makes it opaque.

        Raises:
            StatusError: the name cannot be used.
        """
        if name is not None:
            self.check_new_name(name)
        if address is None:
            address = self._next
            self._next += OPAQUE_STRIDE
        item = KObject(address, kind, body, name=name, on_last_handle=on_last_handle, on_delete=on_delete)
        self.by_address[address] = item
        if name is not None:
            self._names[name.upper()] = item
        return item

    def check_new_name(self, name: str) -> None:
        """Raise `StatusError` if no object of that name can be created."""
        if not name.startswith("\\"):
            raise StatusError(STATUS_OBJECT_PATH_SYNTAX_BAD)
        if name.endswith("\\") or "\\\\" in name:
            raise StatusError(STATUS_OBJECT_NAME_INVALID)
        parent = name.rpartition("\\")[0] or "\\"
        if parent.upper() not in self._directories:
            raise StatusError(STATUS_OBJECT_PATH_NOT_FOUND)
        if name.upper() in self._names or name.upper() in self._directories:
            raise StatusError(STATUS_OBJECT_NAME_COLLISION)

    def remove_name(self, item: KObject) -> None:
        """Take an object out of the namespace; it lives on."""
        if item.name is not None and self._names.get(item.name.upper()) is item:
            del self._names[item.name.upper()]

    def lookup(self, name: str, *, case_sensitive: bool = False) -> KObject:
        """The object of a name.

        Raises:
            StatusError: bad syntax, no such directory, no such name.
        """
        if not name.startswith("\\"):
            raise StatusError(STATUS_OBJECT_PATH_SYNTAX_BAD)
        item = self._names.get(name.upper())
        if item is None or (case_sensitive and item.name != name):
            parent = name.rpartition("\\")[0] or "\\"
            known = parent.upper() in self._directories
            raise StatusError(STATUS_OBJECT_NAME_NOT_FOUND if known else STATUS_OBJECT_PATH_NOT_FOUND)
        return item

    def names(self, directory: str = "\\") -> list[tuple[str, str]]:
        """(name, type) of the objects directly in a directory."""
        prefix = directory.rstrip("\\") + "\\"
        return [
            (item.name[len(prefix) :], item.type)
            for item in self._names.values()
            if item.name
            and item.name.upper().startswith(prefix.upper())
            and "\\" not in item.name[len(prefix) :]
        ]

    def get(self, address: int, kind: str | None = None) -> KObject:
        """The object at an address that a driver passed in; anything else is a bugcheck."""
        item = self.by_address.get(address)
        if item is None:
            raise Bugcheck(
                bc.REFERENCE_BY_POINTER,
                0,
                address,
                0,
                rule=f"{address:#x} is not a kernel object (any more), expected {kind or 'one'}",
            )
        if kind is not None and item.type != kind:
            raise Bugcheck(
                bc.REFERENCE_BY_POINTER,
                0,
                address,
                1,
                rule=f"{address:#x} is an object of type '{item.type}', expected '{kind}'",
            )
        return item

    def find(self, address: int, kind: str) -> Any | None:
        """The body of the object of type `kind` at an address, or None."""
        item = self.by_address.get(address)
        return item.body if item is not None and item.type == kind else None

    def reference(self, item: KObject) -> None:
        item.references += 1

    def dereference(self, item: KObject) -> None:
        """Drop a reference; the last one deletes the object."""
        if item.references <= 0:
            raise Bugcheck(
                bc.REFERENCE_BY_POINTER,
                0,
                item.address,
                2,
                rule=f"a '{item.type}' object was dereferenced more often than it was referenced",
            )
        item.references -= 1
        if item.references == 0 and not item.permanent:
            self._delete(item)

    def _delete(self, item: KObject) -> None:
        self.remove_name(item)
        self.by_address.pop(item.address, None)
        if item.on_delete is not None:
            item.on_delete()

    def close(self, table: HandleTable, handle: int) -> Any:
        """Close a handle.

        Returns:
            None, or a generator of the model that the caller must run (`yield from`) to finish the cleanup.

        Raises:
            StatusError: STATUS_INVALID_HANDLE.
        """
        entry = table.get(handle)
        del table.entries[handle & 0xFFFF_FFFF_FFFF_FFFC]
        item = entry.object
        item.handles -= 1
        work = item.on_last_handle() if item.handles == 0 and item.on_last_handle is not None else None
        if work is None:
            self.dereference(item)
            return None
        return self._close_slowly(item, work)

    def _close_slowly(self, item: KObject, work: Any) -> Any:
        result = yield from work
        self.dereference(item)
        return result
