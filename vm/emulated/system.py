"""One boot of the emulated machine: the kernel on its processor thread, behind the doors of `vm.emulated.computer`."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vm.emulated import service_control
from vm.emulated.boot import make_kernel
from vm.emulated.computer import (
    NTSTATUS,
    FilterInformation,
    InstanceInformation,
    MachineStoppedError,
    ServiceResult,
    VolumeInformation,
)
from vm.emulated.exports.threads import notify_process
from vm.emulated.fltmgr import instances, loading
from vm.emulated.fltmgr.filter_exports import find_volume
from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.fltmgr.manager import manager_of
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel.bugcheck import Bugcheck
from vm.emulated.kernel.clock import Clock
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.processes import SYSTEM_PROCESS_ID, KProcess
from vm.emulated.kernel.security import ADMINISTRATOR_TOKEN
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_PRIVILEGE_NOT_HELD,
    STATUS_SUCCESS,
)
from vm.emulated.kernel.threads import KThread, Model, ThreadState, Wait
from vm.emulated.processor import Processor
from vm.emulated.registry import Registry
from vm.emulated.service_control import in_system_thread
from vm.emulated.services import Service, close_all, kernel_services, may_load_drivers
from vm.machine import Condition


@dataclass(slots=True)
class _Client:
    """A client process and its threads that have made requests."""

    process: KProcess
    threads: dict[int, KThread] = field(default_factory=dict)
    ending: bool = False


class System:
    """Implements `Computer` and `UserServices` for one boot.

    Args:
        registry: the machine's registry; it outlives the boot.
        open_image: finds the file of a service's ImagePath, checks its signature, and brings its symbols.
        seed: of the schedule.
        on_crash: called from the processor thread after a bugcheck.
        on_debug: called from the processor thread with each line of DbgPrint.
    """

    def __init__(
        self,
        registry: Registry,
        open_image: Callable[[str], ImageFile],
        *,
        seed: int = 1,
        policy: PortPolicy | None = None,
        on_crash: Callable[[System], None] | None = None,
        on_debug: Callable[[str], None] | None = None,
    ) -> None:
        self.boot_id = str(uuid.uuid4())
        self.boot_time = time.time()
        self.seed = seed
        self._open_image = open_image
        self.kernel: Kernel = make_kernel(
            registry=registry, seed=seed, clock=Clock(follow_host=True), policy=policy
        )
        self.kernel.on_debug = on_debug
        self._processor = Processor(self.kernel, lambda: on_crash(self) if on_crash is not None else None)
        self._clients: dict[int, _Client] = {}
        self._keys = itertools.count(1)
        self._lock = threading.Lock()
        self._services: dict[str, Service] = {**kernel_services(), **self._system_services()}
        self._processor.start()

    def shut_down(self) -> None:
        """End this boot at once: nothing is unloaded, whoever waits gets `MachineStoppedError`."""
        self._processor.stop()

    def bugcheck(self, code: int, parameters: tuple[int, int, int, int], rule: str) -> None:
        """Stop the kernel as a broken driver would; returns when it has stopped."""

        def crash() -> Model:
            raise Bugcheck(code, *parameters, rule=rule)
            yield  # the model's work is a generator

        self._quietly(lambda: self._system(crash, "bugcheck"))

    # Computer

    def load_filter(self, name: str) -> NTSTATUS:
        return self._status(
            lambda: loading.load_filter(self.kernel, name, self._open_image), f"load of '{name}'"
        )

    def unload_filter(self, name: str) -> NTSTATUS:
        return self._status(
            lambda: loading.unload_filter(self.kernel, name, mandatory=False), f"unload of '{name}'"
        )

    def stop_service(self, name: str) -> NTSTATUS:
        return self._status(
            lambda: loading.unload_filter(self.kernel, name, mandatory=True), f"stop of '{name}'"
        )

    def attach(self, filter_name: str, volume: str, instance: str | None, altitude: str | None) -> NTSTATUS:
        status, _ = self._system(
            lambda: _attach(self.kernel, filter_name, volume, instance, altitude),
            f"attach of '{filter_name}'",
        )
        return int(status)

    def detach(self, filter_name: str, volume: str, instance: str | None) -> NTSTATUS:
        return self._status(
            lambda: _detach(self.kernel, filter_name, volume, instance), f"detach of '{filter_name}'"
        )

    def filters(self) -> list[FilterInformation]:
        return self._processor.perform(lambda: _filters(self.kernel))

    def instances(self) -> list[InstanceInformation]:
        return self._processor.perform(lambda: _instances(self.kernel))

    def volumes(self) -> list[VolumeInformation]:
        return self._processor.perform(lambda: _volumes(self.kernel))

    def debug_output(self) -> list[str]:
        return list(self.kernel.debug_lines)

    def condition(self) -> Condition:
        report = self.kernel.crash_report
        return Condition(
            crashes=(report,) if report is not None else (), violations=tuple(self.kernel.violations)
        )

    @property
    def failure(self) -> BaseException | None:
        """A fault of the model itself; None while all is well."""
        return self._processor.failure

    # UserServices

    def begin_process(self, process_id: int, image: str) -> int:
        key = next(self._keys)

        def begin(done: Callable[[Any, BaseException | None], None]) -> None:
            process = self.kernel.create_process(process_id, image, ADMINISTRATOR_TOKEN)
            self._clients[key] = _Client(process)
            thread = self.kernel.create_thread(process, "process start")
            told = notify_process(self.kernel, process, SYSTEM_PROCESS_ID, created=True)
            self.kernel.scheduler.push_model(thread, told, "process start", on_done=done)

        self._processor.run(begin)
        return key

    def client_processes(self) -> list[tuple[int, str]]:
        """(process id, image) of the client processes that are connected."""
        return [(client.process.id, client.process.image) for client in list(self._clients.values())]

    def call(self, key: int, thread_id: int, service: str, arguments: Mapping[str, Any]) -> ServiceResult:
        function = self._services[service]

        def begin(done: Callable[[Any, BaseException | None], None]) -> None:
            client = self._clients.get(key)
            if client is None or client.ending:
                raise MachineStoppedError("the process has ended")
            thread = self._thread(client, thread_id)
            self.kernel.scheduler.push_model(
                thread, function(self.kernel, thread, **arguments), service, on_done=done
            )

        status, values = self._processor.run(begin)
        return ServiceResult(status, values)

    def end_thread(self, key: int, thread_id: int) -> None:
        def end() -> None:
            client = self._clients.get(key)
            thread = client.threads.pop(thread_id, None) if client is not None else None
            if thread is not None:
                self._end_thread(thread)

        self._quietly(lambda: self._processor.perform(end))

    def end_process(self, key: int) -> None:
        def begin(done: Callable[[Any, BaseException | None], None]) -> None:
            client = self._clients.get(key)
            if client is None or client.ending:
                done(None, None)
                return
            client.ending = True
            threads = list(client.threads.values())
            for thread in threads:
                self._end_thread(thread)
            rundown = self.kernel.create_thread(client.process, "process rundown")
            self.kernel.scheduler.push_model(
                rundown, self._rundown(key, client, rundown, threads), "process rundown", on_done=done
            )

        self._quietly(lambda: self._processor.run(begin))

    # What the two doors share

    def _system(self, make: Callable[[], Model], name: str) -> Any:
        return self._processor.run_system(make, name)

    def _status(self, make: Callable[[], Model], name: str) -> NTSTATUS:
        return int(self._system(make, name))

    @staticmethod
    def _quietly(action: Callable[[], object]) -> None:
        try:
            action()
        except MachineStoppedError:
            return

    def _thread(self, client: _Client, thread_id: int) -> KThread:
        thread = client.threads.get(thread_id)
        if thread is None or thread.state is ThreadState.TERMINATED:
            thread = self.kernel.create_thread(
                client.process,
                f"{client.process.image} {client.process.id}/{thread_id}",
                thread_id=thread_id,
                system=False,
            )
            client.threads[thread_id] = thread
        if thread.state is not ThreadState.IDLE:
            raise MachineStoppedError(
                f"thread {thread_id} of process {client.process.id} is still in another request"
            )
        return thread

    def _end_thread(self, thread: KThread) -> None:
        """A thread of a client is gone: its pending requests are cancelled, a blocked service comes back."""
        manager = manager_of(self.kernel)
        for request in list(manager.operations.values()):
            if request.thread_key == thread.address:
                manager.ports.cancel(request)
                manager.operations.pop(request.number, None)
        self.kernel.scheduler.terminate(thread)
        if thread.state is ThreadState.IDLE:
            self.kernel.end_thread(thread)

    def _rundown(self, key: int, client: _Client, thread: KThread, threads: list[KThread]) -> Model:
        addresses = [t.address for t in threads if t.state is not ThreadState.TERMINATED]
        objects = [self.kernel.objects.get(address) for address in addresses]
        for item in objects:
            self.kernel.objects.reference(item)
        for item in objects:
            yield Wait((item.address,))
            self.kernel.objects.dereference(item)
        yield from close_all(self.kernel, thread)
        manager = manager_of(self.kernel)
        for number, request in list(manager.operations.items()):
            if request.process is client.process:
                del manager.operations[number]
        yield from notify_process(self.kernel, client.process, SYSTEM_PROCESS_ID, created=False)
        self.kernel.end_process(client.process)
        self._clients.pop(key, None)

    def _system_services(self) -> dict[str, Service]:
        def privileged(make: Callable[..., Model]) -> Service:
            def service(k: Kernel, thread: KThread, **arguments: Any) -> Model:
                if not may_load_drivers(k, thread):
                    return STATUS_PRIVILEGE_NOT_HELD, {}
                result = yield from make(k, **arguments)
                return result if isinstance(result, tuple) else (result, {})

            return service

        def attach(
            k: Kernel, *, filter: str, volume: str, instance: str | None = None, altitude: str | None = None
        ) -> Model:
            status, name = yield from _attach(k, filter, volume, instance, altitude)
            return status, {"instance": name}

        def detach(k: Kernel, *, filter: str, volume: str, instance: str | None = None) -> Model:
            return (yield from _detach(k, filter, volume, instance))

        def listing(name: str, find: Callable[[Kernel], list[Any]]) -> Service:
            def service(k: Kernel, thread: KThread) -> Model:
                if not may_load_drivers(k, thread):
                    return STATUS_ACCESS_DENIED, {}
                return STATUS_SUCCESS, {name: find(k)}
                yield  # a service is a generator

            return service

        return {
            "filter_load": privileged(
                lambda k, name: in_system_thread(
                    k, loading.load_filter(k, name, self._open_image), f"load of '{name}'"
                )
            ),
            "filter_unload": privileged(
                lambda k, name: in_system_thread(
                    k, loading.unload_filter(k, name, mandatory=False), f"unload of '{name}'"
                )
            ),
            "service_stop": service_control.stop,
            "filter_attach": privileged(attach),
            "filter_detach": privileged(detach),
            "list_filters": listing("filters", _filters),
            "list_instances": listing("instances", _instances),
            "list_volumes": listing("volumes", _volumes),
        }


def _filters(k: Kernel) -> list[FilterInformation]:
    found = manager_of(k).filters
    return [FilterInformation(f.name, f.altitude, len(f.instances)) for f in found]


def _instances(k: Kernel) -> list[InstanceInformation]:
    return [
        InstanceInformation(i.name, i.filter.name, v.dos_name or v.device_name, i.altitude)
        for v in manager_of(k).volumes
        for i in v.instances
    ]


def _volumes(k: Kernel) -> list[VolumeInformation]:
    return [VolumeInformation(v.dos_name, v.device_name, v.file_system_name) for v in manager_of(k).volumes]


def _attach(k: Kernel, filter_name: str, volume: str, instance: str | None, altitude: str | None) -> Model:
    owner = manager_of(k).find(filter_name)
    if owner is None:
        return STATUS_FLT_FILTER_NOT_FOUND, None
    target = find_volume(k, volume)
    if target is None:
        return STATUS_FLT_VOLUME_NOT_FOUND, None
    return (yield from instances.attach_by_name(k, owner, target, instance, altitude))


def _detach(k: Kernel, filter_name: str, volume: str, instance: str | None) -> Model:
    owner = manager_of(k).find(filter_name)
    if owner is None:
        return STATUS_FLT_FILTER_NOT_FOUND
    target = find_volume(k, volume)
    if target is None:
        return STATUS_FLT_VOLUME_NOT_FOUND
    return (yield from instances.detach_by_name(k, owner, target, instance))
