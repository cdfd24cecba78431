"""A laboratory for Downlink's own driver: the image as it is built, on a machine in this process, with clients that
listen and clients that work with files. Everything follows from the seed."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from harness.client import protocol
from harness.client.protocol import MASK_FILES, PORT_NAME, Batch, Connect, ConnectFlag, Kind, Record
from harness.toolchain import zig
from harness.toolchain.source import Configuration, DriverSource
from vm.deadline import Deadline
from vm.emulated.fltmgr import numbers as n
from vm.emulated.fltmgr.manager import SERVICES
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.image.pdb import Symbols, read_symbols
from vm.emulated.kernel.loader import prepare
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.kernel.threads import Model
from vm.emulated.library import Client, LibraryMachine
from vm.emulated.registry import RegistryValue

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "Downlink"
PARAMETERS = rf"{SERVICES}\{SERVICE}\Parameters"
HEADER_BYTES = 16
"""FILTER_MESSAGE_HEADER in front of every message."""
ALL_ACCESS = (
    n.FILE_GENERIC_READ | n.FILE_GENERIC_WRITE | n.DELETE | n.READ_CONTROL | n.WRITE_DAC | n.WRITE_OWNER
)
POLICIES = tuple(
    PortPolicy(notify_after_kernel_close=notify, wake_senders_before_notify=wake)
    for notify in (True, False)
    for wake in (True, False)
)
"""D8 and D5, all four ways."""
STATUS_TIMEOUT = 0x102


@dataclass(frozen=True, slots=True)
class Built:
    """The driver's image and its symbols."""

    image: bytes
    symbols: Symbols


@cache
def built(out: Path, configuration: Configuration = "debug") -> Built:
    """The driver, compiled at most once per run; the compiler's cache makes it cheap between runs."""
    result = zig.build(
        DriverSource.at(ROOT / "driver"), configuration, out, deadline=Deadline.after(seconds=300)
    )
    image = result.image.read_bytes()
    prepared, _ = prepare(image, "downlink.sys")
    return Built(image, read_symbols(result.symbols, image=prepared))


class Station:
    """A machine with the driver loaded."""

    def __init__(
        self,
        driver: Built,
        *,
        seed: int = 1,
        policy: PortPolicy | None = None,
        preemption: Preemption | None = None,
        settings: dict[str, int | str | RegistryValue] | None = None,
        load: bool = True,
    ) -> None:
        self.machine = LibraryMachine(seed=seed, policy=policy, preemption=preemption)
        self.kernel = self.machine.kernel
        self._driver = driver
        self.machine.install(SERVICE, altitude="370777.7")
        for name, value in (settings or {}).items():
            self.set(name, value)
        if load:
            self.load()

    def set(self, name: str, value: int | str | RegistryValue) -> None:
        """Write a value of the Parameters key."""
        registry = self.kernel.registry
        if isinstance(value, int):
            registry.set_dword(PARAMETERS, name, value)
        elif isinstance(value, str):
            registry.set_string(PARAMETERS, name, value)
        else:
            registry.set_value(PARAMETERS, name, value)

    def load(self) -> None:
        self.machine.load(SERVICE, self._driver.image, symbols=self._driver.symbols)

    def unload(self, *, mandatory: bool = False) -> int:
        return self.machine.unload(SERVICE, mandatory=mandatory)

    def listener(self, connect: Connect | None = None, **options: Any) -> Listener:
        """A client process that is connected; keyword arguments are the fields of `Connect`."""
        if connect is None:
            options.setdefault("event_mask", MASK_FILES)
            connect = Connect(**options)
        return Listener(self, self.machine.client("listener.exe"), connect)

    def worker(self) -> Worker:
        """A client process that works with files."""
        return Worker(self.machine.client("worker.exe"))

    def pool_bytes(self) -> int:
        """What the driver holds of pool now."""
        return sum(
            block.size for block in self.kernel.pool.live.values() if "downlink" in block.owner.lower()
        )

    def wrong(self) -> list[str]:
        """What is not as it should be on this machine: crashes and broken rules."""
        condition = self.machine.condition
        return [f"{crash.name}: {crash.rule}" for crash in condition.crashes] + [
            f"{violation.rule}: {violation.message}" for violation in condition.violations
        ]


class Listener:
    """A connection of a client process."""

    def __init__(self, station: Station, client: Client, connect: Connect) -> None:
        self.station = station
        self.client = client
        self.process_id = client.process.id
        self.batches: list[Batch] = []
        context = connect.encode()
        self.handle: int = client.must(
            "connect_port", name=PORT_NAME, context=context, context_size=len(context)
        )["handle"]
        self._message_bytes = connect.message_bytes or protocol.MESSAGE_BYTES_DEFAULT
        self._operation: int | None = None

    def message(self, *, seconds: float = 0) -> Batch | None:
        """The next message; None if there is none once all is done that can be done now, or so much later."""
        data = self.message_bytes(seconds=seconds)
        if data is None:
            return None
        batch = protocol.parse(data)
        self.batches.append(batch)
        return batch

    def message_bytes(self, *, seconds: float = 0) -> bytes | None:
        """As `message`, but as it came, without the Filter Manager's header."""
        self.post()
        self.station.machine.settle()
        status, values = self.client.call(
            "wait_operation", operation=self._operation, timeout=round(seconds * 1000)
        )
        if status == STATUS_TIMEOUT:
            return None
        self._operation = None
        assert status == 0, f"the listener got status {status:#x}"
        return bytes(values["data"][HEADER_BYTES:])

    def post(self) -> None:
        """Ask for a message without waiting for it."""
        if self._operation is None:
            self._operation = self.client.must(
                "get_message", handle=self.handle, size=HEADER_BYTES + self._message_bytes
            )["operation"]

    def records(self) -> list[Record]:
        """Everything that lies in the queue, message after message."""
        found: list[Record] = []
        while (batch := self.message()) is not None:
            found += batch.records
        return found

    def of(self, *kinds: Kind) -> list[Record]:
        """The records of some kinds among all that lie in the queue."""
        return [record for record in self.records() if record.kind in kinds]

    def close(self) -> None:
        self.client.must("close", handle=self.handle)


class Worker:
    """File operations of one process, as a test writes them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.process_id = client.process.id

    def try_open(self, path: str, **options: int) -> tuple[int, dict[str, Any]]:
        arguments = {
            "access": ALL_ACCESS,
            "share": 7,
            "disposition": n.FILE_OPEN_IF,
            "options": n.FILE_SYNCHRONOUS_IO_NONALERT | n.FILE_NON_DIRECTORY_FILE,
            "attributes": n.FILE_ATTRIBUTE_NORMAL,
        }
        return self.client.call("create_file", path=path, **(arguments | options))

    def open(self, path: str, **options: int) -> int:
        status, values = self.try_open(path, **options)
        assert status == 0, f"'{path}' cannot be opened: {status:#x}"
        return int(values["handle"])

    def directory(self, path: str) -> None:
        handle = self.open(
            path,
            access=n.FILE_GENERIC_READ,
            options=n.FILE_DIRECTORY_FILE | n.FILE_SYNCHRONOUS_IO_NONALERT,
        )
        self.close(handle)

    def write(self, handle: int, data: bytes = b"x", offset: int = 0) -> int:
        status, _ = self.client.call("write_file", handle=handle, offset=offset, data=data)
        return status

    def set(self, handle: int, kind: int, data: bytes) -> int:
        status, _ = self.client.call("set_information", handle=handle, data=data, **{"class": kind})
        return status

    def rename(
        self, handle: int, name: str, *, kind: int = n.FileRenameInformation, replace: bool = False
    ) -> int:
        """Rename or, with another class, link; a name without a backslash stays in its directory."""
        raw = (f"\\??\\{name}" if "\\" in name else name).encode("utf-16-le", "surrogatepass")
        return self.set(handle, kind, struct.pack("<IIQI", replace, 0, 0, len(raw)) + raw + bytes(4))

    def link(self, handle: int, name: str, *, replace: bool = False) -> int:
        return self.rename(handle, name, kind=n.FileLinkInformation, replace=replace)

    def delete(self, handle: int, *, wanted: bool = True) -> int:
        """FileDispositionInformation: set the mark, or take it back."""
        return self.set(handle, n.FileDispositionInformation, bytes([wanted]))

    def delete_posix(self, handle: int) -> int:
        return self.set(handle, n.FileDispositionInformationEx, struct.pack("<I", 3))

    def close(self, handle: int) -> None:
        self.client.must("close", handle=handle)

    def file(self, path: str, data: bytes = b"") -> None:
        """Make a file, maybe write to it, close it."""
        handle = self.open(path)
        if data:
            assert self.write(handle, data) == 0
        self.close(handle)


@dataclass
class Stations:
    """Makes stations and looks at their end that each of them is clean, and that an unload leaves nothing behind."""

    driver: Built
    made: list[Station] = field(default_factory=list)

    def __call__(self, **options: Any) -> Station:
        station = Station(self.driver, **options)
        self.made.append(station)
        return station

    def close(self) -> None:
        wrong: list[str] = []
        for station in self.made:
            if not station.machine.condition.crashes and any(
                "downlink" in name.lower() for name in loaded(station)
            ):
                station.machine.settle()
                station.unload(mandatory=True)
            wrong += station.wrong()
            station.machine.close()
        assert not wrong, wrong


def loaded(station: Station) -> Iterable[str]:
    """Names of the filters that are loaded."""
    return [owner.name for owner in station.machine.manager.filters]


INCLUDE_OWN = ConnectFlag.INCLUDE_OWN_PROCESS


class Fault:
    """Makes an export fail: its chosen calls return a status and do nothing."""

    def __init__(
        self, station: Station, name: str, status: int, *, calls: Iterable[int] | None = None
    ) -> None:
        """`calls`: which calls from now on fail, from 1; all of them if it is not given."""
        self.count = 0
        self.failed = 0
        self._status = status
        self._calls = None if calls is None else frozenset(calls)
        kernel = station.kernel
        # The stub of an import that no driver has asked for yet is made by the first to ask.
        for library in ("ntoskrnl.exe", "fltmgr.sys"):
            kernel.routine(library, name)
        self._traps = kernel.scheduler.traps
        self._index = next(
            i for i, trap in enumerate(self._traps) if trap[1] is not None and trap[1].name == name
        )
        self._trap = self._traps[self._index]
        handler, declared, is_model, highest, lowest, resume = self._trap
        self._handler = handler
        self._traps[self._index] = (self._handle, declared, is_model, highest, lowest, resume)

    def _handle(self, registers: Any) -> Any:
        self.count += 1
        if self._calls is not None and self.count not in self._calls:
            return self._handler(registers)
        self.failed += 1
        return self._fail() if self._trap[2] else self._status

    def _fail(self) -> Model:
        return self._status
        yield  # as the export itself is a generator

    def mend(self) -> None:
        """From now on it works again."""
        self._traps[self._index] = self._trap
