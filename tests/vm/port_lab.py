"""A laboratory for communication ports: a kernel on a virtual clock, filters whose callbacks are functions of Python, and
client processes that call the services behind fltlib. Nothing here asserts a fact; the tests do."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tests.vm.scripted_image import DATA, ScriptedImage, scripted_image
from vm.emulated.exports.declare import (
    PVOID,
    ULONG,
    Export,
    collect,
)
from vm.emulated.fltmgr import filter_exports, loading, port_exports, port_services
from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.fltmgr.manager import SERVICES, FilterManager
from vm.emulated.fltmgr.model import VOLUME_TYPE, Filter, Instance, Volume
from vm.emulated.fltmgr.ports import Connection, PortPolicy
from vm.emulated.kernel import security
from vm.emulated.kernel.kernel import DeadlockError, Kernel
from vm.emulated.kernel.loader import LoadedDriver
from vm.emulated.kernel.objects import HandleEntry, KObject, StatusError
from vm.emulated.kernel.processes import KProcess
from vm.emulated.kernel.security import ADMINISTRATOR_TOKEN, AUTHENTICATED_USERS, EVERYONE, USERS, Ace, Token
from vm.emulated.kernel.status import STATUS_PENDING, STATUS_SUCCESS, nt_success
from vm.emulated.kernel.threads import Block, Call, KThread, Model, ThreadState, Wait
from vm.machine import Violation

PORT = "\\ScriptedPort"
SECONDS = 10_000_000
MILLISECONDS = 10_000
"""Units of 100 ns."""
OBJ_CASE_INSENSITIVE, OBJ_KERNEL_HANDLE = 0x40, 0x200
FLT_PORT_ALL_ACCESS = 0x1F0001
NTFS = 2
PLAIN_USER = Token("S-1-5-21-1-2-3-1005", frozenset((USERS, EVERYONE, AUTHENTICATED_USERS)))
"""A logon without any administrative group."""

_FILTER, _SERVER_PORT, _REGISTRATION = DATA, DATA + 8, DATA + 0x100
_ATTRIBUTES, _NAME, _NAME_TEXT, _VARIABLES = DATA + 0x200, DATA + 0x240, DATA + 0x280, DATA + 0x600


@cache
def _exports() -> dict[tuple[str, str], Export]:
    return collect((port_exports, filter_exports))


@dataclass(frozen=True, slots=True)
class Crash:
    """A bugcheck: its code, the rule that was broken, the stack."""

    code: int
    rule: str
    stack: tuple[str, ...]


class Job:
    """Work in an emulated thread that may still go on."""

    def __init__(self, lab: Lab, thread: KThread) -> None:
        self.thread = thread
        self._lab = lab
        self._outcome: list[tuple[Any, BaseException | None]] = []

    def finished(self, value: Any, error: BaseException | None) -> None:
        self._outcome.append((value, error))

    @property
    def done(self) -> bool:
        return bool(self._outcome)

    @property
    def value(self) -> Any:
        """What the work returned; it must be done."""
        assert self._outcome, f"'{self.thread.name}' is not done: {self.thread.block}"
        value, error = self._outcome[0]
        if error is not None:
            raise error
        return value

    def result(self) -> Any:
        """Run the machine, jumping from timer to timer, until the work is done.

        Raises:
            DeadlockError: it never will be.
        """
        self._lab.run_until(lambda: self.done)
        return self.value


class Lab:
    """One kernel with a Filter Manager and the volumes D: and E:, but no file systems."""

    def __init__(self, *, seed: int = 1, policy: PortPolicy | None = None) -> None:
        self.kernel = Kernel(_exports(), seed=seed, memory_bytes=32 << 20)
        self.manager = FilterManager(self.kernel, policy)
        self.policy = self.manager.ports.policy
        self.events: list[str] = []
        """What happened, in order; filters write the names of their callbacks, tests what they like."""
        self._process_ids = itertools.count(1000, 4)
        for number, letter in enumerate("DE", start=2):
            item = self.kernel.objects.create(VOLUME_TYPE, None)
            volume = Volume(item, rf"\Device\HarddiskVolume{number}", f"{letter}:", NTFS, "NTFS", None)
            item.body = volume
            self.manager.volumes.append(volume)

    @property
    def now(self) -> int:
        """Interrupt time in units of 100 ns."""
        return self.kernel.clock.interrupt_time

    def volume(self, letter: str) -> Volume:
        return next(v for v in self.manager.volumes if v.dos_name == f"{letter}:")

    def log(self, event: str) -> None:
        self.events.append(event)

    # Running

    def run(self, work: Model, name: str = "driver") -> Any:
        """Run a generator of the model on a new system thread to its end."""
        return self.kernel.run(work, name)

    def start(self, work: Model, name: str = "worker") -> Job:
        """Give a generator of the model to a new system thread."""
        thread = self.kernel.create_thread(self.kernel.system, name)
        job = Job(self, thread)
        self.kernel.scheduler.push_model(thread, work, name, on_done=job.finished)
        return job

    def settle(self) -> None:
        """Run everything that is ready; time stands still."""
        self.kernel.run_until_idle()

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run, jumping from timer to timer, until a condition holds."""
        kernel = self.kernel
        while not condition():
            kernel.check_alive()
            kernel.scheduler.run_until_idle(stop=condition)
            kernel.check_alive()
            if not condition() and not kernel.clock.jump() and not kernel.scheduler.ready:
                raise DeadlockError(kernel)

    def pass_time(self, units: int) -> None:
        """Let time pass, running what becomes due on the way."""
        kernel = self.kernel
        until = self.now + units
        while True:
            kernel.run_until_idle()
            due = kernel.clock.next_due()
            if due is None or due > until:
                break
            kernel.clock.jump()
        kernel.clock.advance(until - self.now)
        kernel.run_until_idle()

    # What was found wrong; a test that ends with something here is red

    def take_violations(self) -> list[Violation]:
        found = list(self.kernel.violations)
        self.kernel.violations.clear()
        return found

    def take_crash(self) -> Crash:
        report = self.kernel.crash_report
        assert report is not None, "the machine has not crashed"
        self.kernel.crash_report = None
        assert report.rule is not None
        return Crash(report.code, report.rule, report.stack)

    def close(self) -> None:
        self.kernel.close()

    def client(self, image: str = "client.exe", token: Token = ADMINISTRATOR_TOKEN) -> Client:
        return Client(self, self.kernel.create_process(next(self._process_ids), image, token))


@dataclass(frozen=True, slots=True)
class Completion:
    """A completed FilterGetMessage."""

    status: int
    information: int
    data: bytes

    @property
    def reply_length(self) -> int:
        return int(struct.unpack_from("<I", self.data)[0])

    @property
    def message_id(self) -> int:
        return int(struct.unpack_from("<Q", self.data, 8)[0])

    @property
    def payload(self) -> bytes:
        return self.data[16:]


class Client:
    """A client process; every service that is begun has a thread of its own."""

    def __init__(self, lab: Lab, process: KProcess) -> None:
        self.lab = lab
        self.process = process
        self._threads: list[KThread] = []

    def begin(self, service: Callable[..., Model], **arguments: Any) -> Job:
        """Start a service in an idle thread of the process."""
        kernel = self.lab.kernel
        thread = next((t for t in self._threads if t.state is ThreadState.IDLE), None)
        if thread is None:
            name = f"{self.process.image}/{len(self._threads) + 1}"
            thread = kernel.create_thread(self.process, name, system=False)
            self._threads.append(thread)
        job = Job(self.lab, thread)
        work = service(kernel, thread, **arguments)
        kernel.scheduler.push_model(thread, work, service.__name__, on_done=job.finished)
        return job

    def call(self, service: Callable[..., Model], **arguments: Any) -> tuple[int, dict[str, Any]]:
        status, values = self.begin(service, **arguments).result()
        return status, values

    # The functions of fltlib

    def begin_connect(
        self,
        name: str = PORT,
        context: bytes | None = None,
        *,
        size: int | None = None,
        synchronous: bool = False,
    ) -> Job:
        if size is None:
            size = len(context or b"")
        return self.begin(
            port_services.connect_port,
            name=name,
            context=context,
            context_size=size,
            synchronous=synchronous,
        )

    def try_connect(self, *arguments: Any, **options: Any) -> int:
        """The status of a connect."""
        return int(self.begin_connect(*arguments, **options).result()[0])

    def connect(self, *arguments: Any, **options: Any) -> int:
        """The handle of a connect that has to succeed."""
        status, values = self.begin_connect(*arguments, **options).result()
        assert status == STATUS_SUCCESS, f"{status:#x}"
        return int(values["handle"])

    def post(self, handle: int, size: int = 256) -> int:
        """FilterGetMessage on an asynchronous handle: the operation that is pending now, whatever it waits for."""
        status, values = self.call(port_services.get_message, handle=handle, size=size)
        assert status == STATUS_PENDING, f"{status:#x}"
        return int(values["operation"])

    def begin_get(self, handle: int, size: int = 256) -> Job:
        """FilterGetMessage on a synchronous handle."""
        return self.begin(port_services.get_message, handle=handle, size=size)

    def try_get(self, handle: int, size: int = 256) -> int:
        return self.call(port_services.get_message, handle=handle, size=size)[0]

    def wait(self, operation: int, milliseconds: int | None = 0) -> Completion:
        """The state of an operation; STATUS_TIMEOUT while it is pending."""
        status, values = self.call(port_services.wait_operation, operation=operation, timeout=milliseconds)
        return Completion(status, values.get("information", 0), values.get("data", b""))

    def cancel(self, handle: int, operation: int | None = None) -> int:
        return self.call(port_services.cancel, handle=handle, operation=operation)[0]

    def reply(
        self, handle: int, message_id: int, payload: bytes = b"", *, status: int = 0, size: int | None = None
    ) -> int:
        data = struct.pack("<IIQ", status, 0, message_id) + payload
        size = len(data) if size is None else size
        return self.call(port_services.reply_message, handle=handle, data=data, size=size)[0]

    def begin_send(self, handle: int, data: bytes | None, output_size: int | None = 0) -> Job:
        """FilterSendMessage; an output size of None is a NULL output buffer."""
        return self.begin(
            port_services.send_message,
            handle=handle,
            input=data,
            input_size=len(data or b""),
            output_size=output_size or 0,
            output_null=output_size is None,
        )

    def send(self, handle: int, data: bytes | None, output_size: int | None = 0) -> tuple[int, bytes]:
        status, values = self.begin_send(handle, data, output_size).result()
        return status, values.get("data", b"")

    # Handles and the end

    def begin_close(self, handle: int) -> Job:
        return self.begin(_close, handle=handle)

    def close(self, handle: int) -> int:
        return int(self.begin_close(handle).result()[0])

    def duplicate(self, handle: int) -> int:
        entry = self.process.handles.get(handle)
        return self.process.handles.insert(HandleEntry(entry.object, entry.access))

    def begin_exit(self) -> Job:
        """What a kill does: the threads end, with their pending requests, then the handles are closed."""
        kernel = self.lab.kernel
        ports = self.lab.manager.ports
        for request in list(self.lab.manager.operations.values()):
            if request.process is self.process:
                ports.cancel(request)
        ending: list[KObject] = []
        for thread in self._threads:
            if thread.state is ThreadState.IDLE:
                kernel.end_thread(thread)
                continue
            item = kernel.objects.get(thread.address)
            kernel.objects.reference(item)
            ending.append(item)
            kernel.scheduler.terminate(thread)
        return self.lab.start(self._rundown(ending), f"rundown of {self.process.image}")

    def _rundown(self, ending: list[KObject]) -> Model:
        for item in ending:
            yield Wait((item.address,))
            self.lab.kernel.objects.dereference(item)
        table = self.process.handles
        for handle in list(table.entries):
            work = self.lab.kernel.objects.close(table, handle)
            if work is not None:
                yield from work

    def connection(self, handle: int) -> Connection:
        """The kernel's side of a handle."""
        found: Connection = self.process.handles.get(handle).object.body.connection
        return found


def _close(k: Kernel, thread: KThread, *, handle: int) -> Model:
    try:
        work = k.objects.close(thread.process.handles, handle)
    except StatusError as error:
        return error.status, {}
    if work is not None:
        yield from work
    return STATUS_SUCCESS, {}


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
        calls = {name: k.resolve_import(dll, name) for dll, name in _exports() if name in USED}
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
        memory = self.lab.kernel.memory
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
        assert memory.is_mapped(self.variable(DATA))
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


def pause(units: int) -> Model:
    """Block the running thread for some time, as KeDelayExecutionThread does."""
    yield Block("a delay of the test", timeout=units)


def inside_callback(lab: Lab, instance: Instance, name: str, work: Model) -> Model:
    """Run `work` as an operation callback of an instance would: its teardown waits for the end of it."""
    k = lab.kernel
    thread = k.current
    instance.callbacks_running += 1
    thread.io_callbacks.append(name)
    result = yield from work
    thread.io_callbacks.pop()
    instance.callbacks_running -= 1
    if not instance.callbacks_running:
        for waiting in instance.waiting:
            k.scheduler.wake(waiting, None)
        instance.waiting.clear()
    return result


class Gate:
    """Something to wait at until the test opens it."""

    def __init__(self, lab: Lab, name: str = "a gate of the test") -> None:
        self._lab = lab
        self._name = name
        self._waiting: list[KThread] = []
        self.open = False

    @property
    def reached(self) -> bool:
        return bool(self._waiting)

    def wait(self) -> Model:
        if not self.open:
            self._waiting.append(self._lab.kernel.current)
            yield Block(self._name)

    def release(self) -> None:
        """Let everybody through, now and later."""
        self.open = True
        for thread in self._waiting:
            self._lab.kernel.scheduler.wake(thread, None)
        self._waiting.clear()
