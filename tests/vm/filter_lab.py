"""A kernel with two volumes, one client process, and filters whose callbacks are functions of Python."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from vm.emulated.exports import declare
from vm.emulated.exports.declare import FLTMGR, PVOID, ULONG, Export
from vm.emulated.fltmgr import (
    callback_exports,
    context_exports,
    io_exports,
    model,
    name_exports,
    own_io,
    services_files,
    volume_exports,
    volumes,
    work_items,
)
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.io_state import io_state
from vm.emulated.fltmgr.manager import FilterManager
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.threads import Call, KThread, Model

MODULES: list[ModuleType] = [
    callback_exports,
    context_exports,
    io_exports,
    name_exports,
    own_io,
    volume_exports,
    work_items,
]
READ_WRITE_DELETE = n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE | n.DELETE
SYNCHRONOUS_FILE = n.FILE_SYNCHRONOUS_IO_NONALERT | n.FILE_NON_DIRECTORY_FILE
SYNCHRONOUS_DIRECTORY = n.FILE_SYNCHRONOUS_IO_NONALERT | n.FILE_DIRECTORY_FILE


@dataclass
class DriverDouble:
    """What of a loaded driver the Filter Manager's rooms look at."""

    name: str


@dataclass
class Data:
    """A callback's view of its callback data."""

    kernel: Kernel
    address: int
    related: int

    @property
    def iopb(self) -> int:
        return self.kernel.memory.u64(self.address + 0x10)

    @property
    def flags(self) -> int:
        return self.kernel.memory.u32(self.address)

    @property
    def major(self) -> int:
        return self.kernel.memory.u8(self.iopb + 4)

    @property
    def irp_flags(self) -> int:
        return self.kernel.memory.u32(self.iopb)

    @property
    def file_object(self) -> int:
        return self.kernel.memory.u64(self.iopb + 8)

    @property
    def instance(self) -> int:
        return self.kernel.memory.u64(self.related + 0x18)

    @property
    def status(self) -> int:
        return self.kernel.memory.u32(self.address + 0x18)

    @property
    def information(self) -> int:
        return self.kernel.memory.u64(self.address + 0x20)

    def complete(self, status: int, information: int = 0) -> None:
        self.kernel.memory.put32(self.address + 0x18, status)
        self.kernel.memory.put64(self.address + 0x20, information)

    def parameter(self, offset: int) -> int:
        return self.kernel.memory.u64(self.iopb + 0x18 + offset)

    def put_parameter(self, offset: int, value: int) -> None:
        self.kernel.memory.put64(self.iopb + 0x18 + offset, value)


Pre = Callable[[Data, int], Any]
Post = Callable[[Data, int, int], Any]


@dataclass
class FilterLab:
    """Everything a test of the I/O path needs."""

    seed: int = 1
    kernel: Kernel = field(init=False)
    thread: KThread = field(init=False)
    events: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.exports = declare.collect(MODULES)
        self.kernel = k = Kernel(self.exports, seed=self.seed)
        self.manager = FilterManager(k)
        self.d, self.e = volumes.mount_default_volumes(k)
        self.manager.volumes = [self.d, self.e]
        self.settings = io_state(k).settings
        self.settings.lazy_writer = False
        self.process = k.create_process(4242, "client.exe", security.ADMINISTRATOR_TOKEN)
        self.thread = self.new_thread()

    def new_thread(self) -> KThread:
        return self.kernel.create_thread(self.process, "client", system=False)

    # Filters

    def function(self, function: Callable[..., Any], name: str, irql: int = 2) -> int:
        """Driver code at an address, in Python; parameters must be annotated with C types."""
        return self.kernel.python_function(
            Export(name, FLTMGR, function, irql, is_model=_is_generator(function))
        )

    def pre(self, callback: Pre) -> int:
        """A pre-operation callback from `callback(data, address of the completion context)`."""
        if _is_generator(callback):

            def generator(k: Kernel, data: PVOID, related: PVOID, context: PVOID) -> Model:
                return (yield from callback(Data(k, data, related), context))

            return self.function(generator, callback.__name__)

        def plain(k: Kernel, data: PVOID, related: PVOID, context: PVOID) -> ULONG:
            return int(callback(Data(k, data, related), context))

        return self.function(plain, callback.__name__)

    def post(self, callback: Post) -> int:
        """A post-operation callback from `callback(data, completion context, flags)`."""
        if _is_generator(callback):

            def generator(k: Kernel, data: PVOID, related: PVOID, context: PVOID, flags: ULONG) -> Model:
                return (yield from callback(Data(k, data, related), context, flags))

            return self.function(generator, callback.__name__)

        def plain(k: Kernel, data: PVOID, related: PVOID, context: PVOID, flags: ULONG) -> ULONG:
            return int(callback(Data(k, data, related), context, flags) or 0)

        return self.function(plain, callback.__name__)

    def filter(
        self,
        operations: dict[int, tuple[Pre | None, Post | None]],
        *,
        name: str = "sample",
        altitude: str = "370000",
        contexts: Sequence[model.ContextRegistration] = (),
        flags: int = 0,
        volume: model.Volume | None = None,
    ) -> model.Instance:
        """A registered filter with one instance (on D: by default)."""
        table = {
            major: model.Operation(major, flags, self.pre(pre) if pre else 0, self.post(post) if post else 0)
            for major, (pre, post) in operations.items()
        }
        registration = model.Registration(0x203, 0, tuple(contexts), table, 0, 0, 0, 0, 0, 0, 0, 0)
        item = self.kernel.objects.create(model.FILTER_TYPE, None)
        owner = model.Filter(item, name, DriverDouble(name), registration, altitude)  # type: ignore[arg-type]
        item.body = owner
        self.manager.filters.append(owner)
        owner.filtering = True
        target = volume or self.d
        instance_item = self.kernel.objects.create(model.INSTANCE_TYPE, None)
        instance = model.Instance(instance_item, owner, target, f"{name} Instance", altitude)
        instance_item.body = instance
        owner.instances.append(instance)
        target.insert(instance)
        return instance

    def call(self, name: str, *arguments: int) -> Model:
        """Call an export as driver code would, from a callback that is a generator."""
        declared = self.exports.get((FLTMGR, name)) or self.exports[declare.NTOSKRNL, name]
        return (yield Call(self.kernel.resolve_import(declared.dll, name), arguments, name))

    def buffer(self, size: int, data: bytes = b"") -> int:
        """Nonpaged pool of the driver."""
        address = self.kernel.pool.allocate(size, "Test", owner="test")
        self.kernel.memory.write(address, data)
        return address

    def string(self, text: str) -> int:
        """A UNICODE_STRING."""
        raw = text.encode("utf-16-le")
        address = self.buffer(16 + len(raw))
        self.kernel.memory.write(address, struct.pack("<HH4xQ", len(raw), len(raw), address + 16) + raw)
        return address

    # Client

    def run(self, work: Model, thread: KThread | None = None) -> Any:
        """Run a generator in the client's thread until nothing more happens."""
        outcome = self.begin(work, thread)
        self.kernel.run_until_idle()
        assert outcome, "the request is still under way"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def begin(self, work: Model, thread: KThread | None = None) -> list[tuple[Any, BaseException | None]]:
        """Start a generator; the list gets (value, error) when it is done."""
        outcome: list[tuple[Any, BaseException | None]] = []
        self.kernel.scheduler.push_model(
            thread or self.thread,
            work,
            "service",
            on_done=lambda value, error: outcome.append((value, error)),
        )
        return outcome

    def service(self, name: str, **arguments: Any) -> Any:
        """One user-mode service: (status, values)."""
        service = services_files.SERVICES.get(name) or getattr(services_files, name)
        return self.run(service(self.kernel, self.thread, **arguments))

    def open(
        self,
        path: str,
        *,
        access: int = READ_WRITE_DELETE,
        share: int = 7,
        disposition: int = n.FILE_OPEN_IF,
        options: int = SYNCHRONOUS_FILE,
        attributes: int = n.FILE_ATTRIBUTE_NORMAL,
    ) -> int:
        """A handle; fails the test if there is none."""
        status, values = self.service(
            "create_file",
            path=path,
            access=access,
            share=share,
            disposition=disposition,
            options=options,
            attributes=attributes,
        )
        assert status == 0, hex(status)
        return int(values["handle"])

    def mkdir(self, path: str) -> None:
        self.close(
            self.open(
                path, disposition=n.FILE_CREATE, options=SYNCHRONOUS_DIRECTORY, access=n.FILE_GENERIC_READ
            )
        )

    def close(self, handle: int) -> None:
        status, _ = self.service("close", handle=handle)
        assert status == 0, hex(status)

    def write(self, handle: int, data: bytes, offset: int | None = None) -> int:
        status, _ = self.service("write_file", handle=handle, offset=offset, data=data)
        return int(status)

    def set(self, handle: int, kind: int, data: bytes) -> int:
        status, _ = self.service("set_information", handle=handle, data=data, **{"class": kind})
        return int(status)

    def query(self, handle: int, kind: int, length: int = 0x400) -> bytes:
        status, values = self.service("query_information", handle=handle, length=length, **{"class": kind})
        assert status == 0, hex(status)
        return bytes(values["data"])

    def file_object(self, handle: int) -> Any:
        return self.process.handles.get(handle).object.body

    @property
    def rule(self) -> str:
        """The rule of the bugcheck that stopped the machine."""
        report = self.kernel.crash_report
        assert report is not None, "the machine did not stop"
        return report.rule

    def leftovers(self) -> list[tuple[str, int]]:
        """Pool of the I/O path that is still allocated."""
        kept = ("Proc", "Thre", "Devi", "Test")
        return [(block.tag, block.size) for block in self.kernel.pool.live.values() if block.tag not in kept]


def rename_data(target: str, *, replace: bool = False, flags: int | None = None) -> bytes:
    raw = target.encode("utf-16-le")
    head = struct.pack("<I4xQI", flags if flags is not None else int(replace), 0, len(raw))
    return (head + raw).ljust(0x18, b"\0")


def _is_generator(function: Callable[..., Any]) -> bool:
    import inspect

    return inspect.isgeneratorfunction(function)
