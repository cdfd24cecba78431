"""Minifilters in Python for the laboratory of ports: loaded as images, called back by name, calling exports from their
own code. Nothing here asserts a fact; the tests do."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.vm.port_lab import PORT, Job, Lab
from tests.vm.scripted_image import DATA, ScriptedImage, scripted_image
from vm.emulated.exports.declare import FLTMGR, PVOID, ULONG, Export
from vm.emulated.fltmgr import loading
from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.fltmgr.manager import SERVICES
from vm.emulated.fltmgr.model import Filter, Instance
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.loader import LoadedDriver
from vm.emulated.kernel.security import Ace
from vm.emulated.kernel.status import STATUS_SUCCESS, nt_success
from vm.emulated.kernel.threads import Call, Model

OBJ_CASE_INSENSITIVE, OBJ_KERNEL_HANDLE = 0x40, 0x200
FLT_PORT_ALL_ACCESS = 0x1F0001
_FILTER, _SERVER_PORT, _REGISTRATION = DATA, DATA + 8, DATA + 0x100
_ATTRIBUTES, _NAME, _NAME_TEXT, _VARIABLES = DATA + 0x200, DATA + 0x240, DATA + 0x280, DATA + 0x600


@dataclass(frozen=True, slots=True)
class ConnectCall:
    """Arguments of ConnectNotify."""

    port: int
    server_cookie: int
    context: int
    size: int
    cookie_slot: int


@dataclass(frozen=True, slots=True)
class MessageCall:
    """Arguments of MessageNotify."""

    cookie: int
    input: int
    input_size: int
    output: int
    output_size: int
    returned: int


@dataclass(frozen=True, slots=True)
class Sent:
    """What FltSendMessage gave back."""

    status: int
    reply_length: int = 0
    reply: bytes = b""


@dataclass
class ScriptedFilter:
    """A minifilter in Python. Its callbacks are the fields `on_*`: functions that return a value, or generators.

    The default filter registers, creates one port with the default security descriptor, and starts filtering. The
    cookie of a connection is the address of the shared variable that holds its client port.
    """

    lab: Lab
    name: str = "Scripted"
    altitude: str = "370030"
    instance: str = "Scripted Instance"
    port: str = PORT
    maximum: int = 8
    attributes: int = OBJ_KERNEL_HANDLE | OBJ_CASE_INSENSITIVE
    version: int = 0x0203
    registration_flags: int = 0
    aces: tuple[Ace, ...] | None = None
    """Own access control list instead of the default security descriptor."""
    message: bool = True
    """Whether the port has a message callback."""
    unloadable: bool = True
    """Whether the filter has a FilterUnloadCallback."""
    detachable: bool = True
    rules: dict[str, str] = field(default_factory=dict)
    on_entry: Callable[[], Any] | None = None
    on_connect: Callable[[ConnectCall], Any] | None = None
    on_disconnect: Callable[[int], Any] | None = None
    on_message: Callable[[MessageCall], Any] | None = None
    on_unload: Callable[[int], Any] | None = None
    on_setup: Callable[[int, int], Any] | None = None
    on_query_teardown: Callable[[int], Any] | None = None
    on_teardown_start: Callable[[int], Any] | None = None
    on_teardown_complete: Callable[[int], Any] | None = None
    connects: list[ConnectCall] = field(default_factory=list)
    contexts: list[bytes] = field(default_factory=list)
    disconnects: list[int] = field(default_factory=list)
    image: ScriptedImage = field(init=False)

    def __post_init__(self) -> None:
        k = self.lab.kernel
        self._variables = itertools.count()
        targets = {function.__name__: self._stub(function) for function in self._callbacks()}
        calls = {name: k.resolve_import(FLTMGR, name) for name in sorted(USED)}
        self.image = scripted_image(targets.pop("entry"), targets, calls)

    def _stub(self, function: Callable[..., Any]) -> int:
        return self.lab.kernel.python_function(Export(function.__name__, self.name, function, irql=1))

    def _callbacks(self) -> Iterable[Callable[..., Any]]:
        """The functions behind the stubs of the image, with the C prototypes of fltKernel.h."""

        def entry(k: Kernel, driver_object: PVOID, registry_path: PVOID) -> Any:
            return (self.on_entry or self.set_up)()

        def connect(k: Kernel, port: PVOID, cookie: PVOID, context: PVOID, size: ULONG, slot: PVOID) -> Any:
            call = ConnectCall(port, cookie, context, size, slot)
            self.connects.append(call)
            self.contexts.append(k.memory.read(context, size) if context else b"")
            self.lab.log("ConnectNotify")
            return (self.on_connect or self.accept)(call)

        def disconnect(k: Kernel, cookie: PVOID) -> Any:
            self.disconnects.append(cookie)
            self.lab.log("DisconnectNotify")
            return (self.on_disconnect or self.close_client)(cookie)

        def message(
            k: Kernel, cookie: PVOID, data: PVOID, size: ULONG, output: PVOID, room: ULONG, returned: PVOID
        ) -> Any:
            self.lab.log("MessageNotify")
            call = MessageCall(cookie, data, size, output, room, returned)
            return self.on_message(call) if self.on_message else STATUS_SUCCESS

        def unload(k: Kernel, flags: ULONG) -> Any:
            self.lab.log("FilterUnload")
            return (self.on_unload or self.tear_down)(flags)

        def setup(k: Kernel, objects: PVOID, flags: ULONG, device: ULONG, file_system: ULONG) -> Any:
            self.lab.log("InstanceSetup")
            return self.on_setup(objects, flags) if self.on_setup else STATUS_SUCCESS

        def query_teardown(k: Kernel, objects: PVOID, flags: ULONG) -> Any:
            self.lab.log("InstanceQueryTeardown")
            return self.on_query_teardown(objects) if self.on_query_teardown else STATUS_SUCCESS

        def teardown_start(k: Kernel, objects: PVOID, reason: ULONG) -> Any:
            self.lab.log("InstanceTeardownStart")
            return self.on_teardown_start(reason) if self.on_teardown_start else 0

        def teardown_complete(k: Kernel, objects: PVOID, reason: ULONG) -> Any:
            self.lab.log("InstanceTeardownComplete")
            return self.on_teardown_complete(reason) if self.on_teardown_complete else 0

        return (
            entry,
            connect,
            disconnect,
            message,
            unload,
            setup,
            query_teardown,
            teardown_start,
            teardown_complete,
        )

    # The image

    @property
    def driver(self) -> LoadedDriver:
        """The image as it is loaded now, or was loaded last."""
        return next(d for d in reversed(self.lab.kernel.drivers) if d.name == self.name)

    def callback(self, name: str) -> int:
        """Address of a callback."""
        return self.driver.base + self.image.callbacks[name]

    def variable(self, rva: int) -> int:
        return self.driver.base + rva

    @property
    def address(self) -> int:
        """The PFLT_FILTER that the driver holds."""
        return self.lab.kernel.memory.u64(self.variable(_FILTER))

    @property
    def server_port(self) -> int:
        return self.lab.kernel.memory.u64(self.variable(_SERVER_PORT))

    @property
    def model(self) -> Filter:
        """The Filter Manager's side of this filter."""
        return self.lab.manager.filter_at(self.address)

    def instance_on(self, letter: str) -> Instance:
        volume = self.lab.volume(letter)
        return next(i for i in volume.instances if i.filter.name == self.name)

    def install(self, *, instances: str = "Instances", flags: int = 0) -> None:
        """Write the service key with one default instance under `instances`."""
        registry = self.lab.kernel.registry
        key = rf"{SERVICES}\{self.name}"
        registry.set_dword(key, "Type", 2)
        self.add_instance(self.instance, self.altitude, instances=instances, flags=flags)
        registry.set_string(rf"{key}\{instances}", "DefaultInstance", self.instance)

    def add_instance(self, name: str, altitude: str, *, instances: str = "Instances", flags: int = 0) -> None:
        key = rf"{SERVICES}\{self.name}\{instances}\{name}"
        self.lab.kernel.registry.set_string(key, "Altitude", altitude)
        self.lab.kernel.registry.set_dword(key, "Flags", flags)

    def try_load(self) -> int:
        """Load the image of an installed filter; the status of DriverEntry."""
        file = ImageFile(f"{self.name}.sys", self.image.data, rules=tuple(self.rules.items()))
        work = loading.load_image(self.lab.kernel, self.name, file)
        return int(self.lab.run(work, f"load of {self.name}"))

    def load(self) -> ScriptedFilter:
        """Install and load; it has to succeed."""
        self.install()
        status = self.try_load()
        assert status == STATUS_SUCCESS, f"{status:#x}"
        self.lab.events.clear()
        return self

    def begin_unload(self, *, mandatory: bool = False) -> Job:
        work = loading.unload_filter(self.lab.kernel, self.name, mandatory=mandatory)
        return self.lab.start(work, f"unload of {self.name}")

    def unload(self, *, mandatory: bool = False) -> int:
        return int(self.begin_unload(mandatory=mandatory).result())

    # What a driver does; generators that call exports from driver code

    def call(self, name: str, *arguments: int) -> Model:
        """Call an export from the driver's code; returns EAX."""
        address = self.driver.base + self.image.calls[name]
        padded = (*arguments, *(0,) * (8 - len(arguments)))  # the stubs copy all of them
        result = yield Call(address, padded, f"{self.name}!{name}")
        return result & 0xFFFF_FFFF

    def set_up(self) -> Model:
        """DriverEntry: register, create the port, start filtering."""
        status = yield from self.register()
        if not nt_success(status):
            return status
        status = yield from self.create_port()
        if not nt_success(status):
            yield from self.unregister()
            return status
        return (yield from self.call("FltStartFiltering", self.address))

    def tear_down(self, flags: int = 0) -> Model:
        """FilterUnloadCallback in the order of the samples (X6)."""
        yield from self.close_server_port()
        yield from self.unregister()
        return STATUS_SUCCESS

    def register(self, size: int = 0x70) -> Model:
        def optional(name: str, wanted: bool) -> int:
            return self.callback(name) if wanted else 0

        data = struct.pack(
            "<HHI13Q",
            size,
            self.version,
            self.registration_flags,
            0,
            0,
            optional("unload", self.unloadable),
            self.callback("setup"),
            optional("query_teardown", self.detachable),
            self.callback("teardown_start"),
            self.callback("teardown_complete"),
            *(0,) * 6,
        )
        self.lab.kernel.memory.write(self.variable(_REGISTRATION), data)
        return (
            yield from self.call(
                "FltRegisterFilter",
                self.driver.driver_object,
                self.variable(_REGISTRATION),
                self.variable(_FILTER),
            )
        )

    def unregister(self) -> Model:
        yield from self.call("FltUnregisterFilter", self.address)
        self.lab.log("unregistered")

    def create_port(
        self,
        name: str | None = None,
        *,
        out: int | None = None,
        maximum: int | None = None,
        attributes: int | None = None,
        connect: int | None = None,
        cookie: int = 0x5E54,
        descriptor: int | None = None,
    ) -> Model:
        """FltCreateCommunicationPort; `descriptor` is an address, 0 none, None what the filter's settings say."""
        own = descriptor is None
        if descriptor is None:
            descriptor = yield from self.build_descriptor()
        self._write_attributes(name or self.port, attributes, descriptor)
        status = yield from self.call(
            "FltCreateCommunicationPort",
            self.address,
            self.variable(_SERVER_PORT) if out is None else out,
            self.variable(_ATTRIBUTES),
            cookie,
            self.callback("connect") if connect is None else connect,
            self.callback("disconnect"),
            self.callback("message") if self.message else 0,
            (self.maximum if maximum is None else maximum) & 0xFFFF_FFFF,
        )
        if own and self.aces is None:
            yield from self.call("FltFreeSecurityDescriptor", descriptor)
        elif own:
            self.lab.kernel.pool.free(descriptor)
        return status

    def build_descriptor(self) -> Model:
        """Address of the security descriptor that the filter's settings ask for."""
        k = self.lab.kernel
        if self.aces is not None:
            data = security.encode(security.SecurityDescriptor(self.aces))
            block = k.pool.allocate(len(data), "Acl ", owner=self.name)
            k.memory.write(block, data)
            return block
        slot = self.variable(_NAME_TEXT - 8)
        status = yield from self.call("FltBuildDefaultSecurityDescriptor", slot, FLT_PORT_ALL_ACCESS)
        assert status == STATUS_SUCCESS
        return k.memory.u64(slot)

    def _write_attributes(self, name: str, attributes: int | None, descriptor: int) -> None:
        memory = self.lab.kernel.memory
        text = name.encode("utf-16-le")
        memory.write(self.variable(_NAME_TEXT), text)
        memory.write(
            self.variable(_NAME), struct.pack("<HH4xQ", len(text), len(text), self.variable(_NAME_TEXT))
        )
        memory.write(
            self.variable(_ATTRIBUTES),
            struct.pack(
                "<I4xQQI4xQQ",
                0x30,
                0,
                self.variable(_NAME),
                self.attributes if attributes is None else attributes,
                descriptor,
                0,
            ),
        )

    def close_server_port(self) -> Model:
        yield from self.call("FltCloseCommunicationPort", self.server_port)
        self.lab.log("server port closed")

    def accept(self, call: ConnectCall) -> int:
        """ConnectNotify: keep the client port in a variable of its own, whose address is the cookie."""
        shared = self.new_variable(call.port)
        self.lab.kernel.memory.put64(call.cookie_slot, shared)
        return STATUS_SUCCESS

    def new_variable(self, value: int = 0) -> int:
        """Address of a fresh global variable of the driver."""
        address = self.variable(_VARIABLES) + 8 * next(self._variables)
        self.lab.kernel.memory.put64(address, value)
        return address

    def close_client(self, shared: int) -> Model:
        """FltCloseClientPort of the variable at `shared`."""
        yield from self.call("FltCloseClientPort", self.address, shared)
        self.lab.log("client port closed")
        return 0

    def send(
        self, shared: int, payload: bytes, *, reply: int | None = None, timeout: int | None = None
    ) -> Model:
        """FltSendMessage through the variable at `shared`; returns `Sent`.

        Args:
            reply: size of the reply buffer in bytes; None for a one-way message.
            timeout: as the driver gives it: None a NULL pointer, 0, negative relative, positive absolute.
        """
        k = self.lab.kernel
        block = k.pool.allocate(64 + len(payload) + (reply or 0), "Send", owner=self.name)
        message = block + 64
        answer = message + len(payload)
        k.memory.write(message, payload)
        k.memory.put32(block, reply or 0)
        if timeout is not None:
            k.memory.write(block + 8, struct.pack("<q", timeout))
        status = yield from self.call(
            "FltSendMessage",
            self.address,
            shared,
            message,
            len(payload),
            answer if reply is not None else 0,
            block if reply is not None else 0,
            block + 8 if timeout is not None else 0,
        )
        length = k.memory.u32(block)
        sent = Sent(status, length, k.memory.read(answer, length) if reply is not None else b"")
        k.pool.free(block)
        return sent

    def begin_sending(self, shared: int, payload: bytes = b"hello", **options: Any) -> Job:
        """FltSendMessage in a system thread of its own."""
        return self.lab.start(self.send(shared, payload, **options), f"sender of {payload[:12]!r}")


USED = frozenset(
    (
        "FltBuildDefaultSecurityDescriptor",
        "FltFreeSecurityDescriptor",
        "FltCreateCommunicationPort",
        "FltCloseCommunicationPort",
        "FltCloseClientPort",
        "FltSendMessage",
        "FltRegisterFilter",
        "FltStartFiltering",
        "FltUnregisterFilter",
        "FltObjectReference",
        "FltObjectDereference",
        "FltGetFilterFromName",
        "FltGetVolumeFromName",
        "FltGetVolumeInstanceFromName",
        "FltEnumerateInstances",
        "FltAttachVolume",
        "FltAttachVolumeAtAltitude",
        "FltDetachVolume",
    )
)
"""Exports that scripted filters call."""
