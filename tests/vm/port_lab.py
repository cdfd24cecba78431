"""A laboratory for communication ports: a kernel on a virtual clock and client processes that call the services
behind fltlib; filters are in scripted_filter. Nothing here asserts a fact; the tests do."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from vm.emulated.exports.declare import Export, collect
from vm.emulated.fltmgr import filter_exports, port_exports, port_services
from vm.emulated.fltmgr.manager import FilterManager
from vm.emulated.fltmgr.model import VOLUME_TYPE, Instance, Volume
from vm.emulated.fltmgr.ports import Connection, PortPolicy
from vm.emulated.kernel.kernel import DeadlockError, Kernel
from vm.emulated.kernel.objects import HandleEntry, KObject, StatusError
from vm.emulated.kernel.processes import KProcess
from vm.emulated.kernel.security import ADMINISTRATOR_TOKEN, AUTHENTICATED_USERS, EVERYONE, USERS, Token
from vm.emulated.kernel.status import STATUS_PENDING, STATUS_SUCCESS
from vm.emulated.kernel.threads import Block, KThread, Model, ThreadState, Wait
from vm.machine import Violation

PORT = "\\ScriptedPort"
SECONDS = 10_000_000
MILLISECONDS = 10_000
"""Units of 100 ns."""
NTFS = 2
PLAIN_USER = Token("S-1-5-21-1-2-3-1005", frozenset((USERS, EVERYONE, AUTHENTICATED_USERS)))
"""A logon without any administrative group."""


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
