"""The machine as a library: one kernel in this process, on a virtual clock, repeatable to the instruction.

No WinRM, no guest, no host threads: a test loads an image, opens client processes and calls services; everything that
happens follows from (image, inputs, seed).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from vm.emulated.boot import make_kernel
from vm.emulated.fltmgr import loading
from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.fltmgr.manager import SERVICES, FilterManager, manager_of
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.kernel.kernel import DeadlockError, Kernel, MachineCrashedError
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.kernel.security import ADMINISTRATOR_TOKEN, Token
from vm.emulated.kernel.status import nt_success, status_name
from vm.emulated.kernel.threads import KThread, Model, ThreadState
from vm.emulated.services import close_all, kernel_services
from vm.machine import Condition

__all__ = ["Client", "DeadlockError", "LibraryMachine", "MachineCrashedError", "ServiceFailedError"]


class ServiceFailedError(Exception):
    """A service or a load returned a failure; `status` is its NTSTATUS."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: {status_name(status)}")
        self.status = status


class LibraryMachine:
    """A fresh machine with volumes D: and E:.

    Args:
        seed: of the schedule.
        preemption: bounds of the slices.
        policy: choices that the facts leave open.
    """

    def __init__(
        self, *, seed: int = 1, preemption: Preemption | None = None, policy: PortPolicy | None = None
    ) -> None:
        self.kernel: Kernel = make_kernel(seed=seed, preemption=preemption, policy=policy)
        self._services = kernel_services()
        self._process_ids = iter(range(1000, 1_000_000, 4))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the engine and the RAM; nothing is unloaded first."""
        self.kernel.close()

    @property
    def manager(self) -> FilterManager:
        """The Filter Manager."""
        return manager_of(self.kernel)

    @property
    def condition(self) -> Condition:
        """Crashes and violations so far."""
        report = self.kernel.crash_report
        return Condition((report,) if report else (), tuple(self.kernel.violations))

    def install(self, service: str, *, altitude: str = "370000", instance: str | None = None) -> None:
        """Write the service key of a filter, with one default instance."""
        registry = self.kernel.registry
        key = rf"{SERVICES}\{service}"
        instance = instance or f"{service} Instance"
        registry.set_dword(key, "Type", 2)
        for instances in (rf"{key}\Instances", rf"{key}\Parameters\Instances"):
            registry.set_string(instances, "DefaultInstance", instance)
            registry.set_string(rf"{instances}\{instance}", "Altitude", altitude)
            registry.set_dword(rf"{instances}\{instance}", "Flags", 0)

    def load(
        self,
        service: str,
        image: bytes,
        *,
        symbols: Any = None,
        rules: Mapping[str, str] | None = None,
        altitude: str = "370000",
    ) -> None:
        """Install a filter if it is not yet, and load its image.

        Raises:
            ServiceFailedError: DriverEntry failed, or the image cannot be loaded.
            MachineCrashedError: the driver bugchecked.
        """
        if not self.kernel.registry.exists(rf"{SERVICES}\{service}"):
            self.install(service, altitude=altitude)
        file = ImageFile(f"{service}.sys", image, symbols, tuple((rules or {}).items()))
        status = self.kernel.run(loading.load_image(self.kernel, service, file), f"load of '{service}'")
        if not nt_success(status):
            raise ServiceFailedError(f"load of '{service}'", status)

    def unload(self, service: str, *, mandatory: bool = False) -> int:
        """FilterUnload, or the stop of the service; returns the NTSTATUS."""
        return int(
            self.kernel.run(
                loading.unload_filter(self.kernel, service, mandatory=mandatory), f"unload of '{service}'"
            )
        )

    def client(self, image: str = "client.exe", token: Token = ADMINISTRATOR_TOKEN) -> Client:
        """A new client process."""
        return Client(self, next(self._process_ids), image, token)

    def settle(self) -> None:
        """Run everything that is ready now; time stands still."""
        self.kernel.run_until_idle()

    def advance(self, *, seconds: float) -> None:
        """Let virtual time pass, running what becomes due."""
        kernel = self.kernel
        until = kernel.clock.interrupt_time + round(seconds * 10_000_000)
        while True:
            kernel.run_until_idle()
            due = kernel.clock.next_due()
            if due is None or due > until:
                break
            kernel.clock.jump()
        kernel.clock.advance(max(0, until - kernel.clock.interrupt_time))
        kernel.run_until_idle()


class Client:
    """A client process: calls services by name, waiting for their end or not."""

    def __init__(self, machine: LibraryMachine, process_id: int, image: str, token: Token) -> None:
        self._machine = machine
        self._kernel = machine.kernel
        self.process = machine.kernel.create_process(process_id, image, token)
        self._threads: dict[int, KThread] = {}

    def begin(self, service: str, *, thread: int = 1, **arguments: Any) -> Pending:
        """Start a service in one of the process's threads without waiting for it."""
        kthread = self._thread(thread)
        pending = Pending(self._machine, service)
        function = self._machine._services[service]
        self._kernel.scheduler.push_model(
            kthread, function(self._kernel, kthread, **arguments), service, on_done=pending.done
        )
        return pending

    def call(self, service: str, *, thread: int = 1, **arguments: Any) -> tuple[int, dict[str, Any]]:
        """Run a service to its end; returns (NTSTATUS, values)."""
        return self.begin(service, thread=thread, **arguments).result()

    def must(self, service: str, *, thread: int = 1, **arguments: Any) -> dict[str, Any]:
        """Run a service that has to succeed; returns its values."""
        status, values = self.call(service, thread=thread, **arguments)
        if not nt_success(status):
            raise ServiceFailedError(service, status)
        return values

    def exit(self) -> None:
        """End the process as a kill does: threads terminate, handles are closed, cleanup runs."""
        manager = self._machine.manager
        for thread in list(self._threads.values()):
            for request in list(manager.operations.values()):
                if request.thread_key == thread.address:
                    manager.ports.cancel(request)
                    manager.operations.pop(request.number, None)
            self._kernel.scheduler.terminate(thread)
            if thread.state is ThreadState.IDLE:
                self._kernel.end_thread(thread)
        self._machine.settle()
        self._kernel.run(self._rundown(), "process rundown", self.process)
        self._kernel.end_process(self.process)

    def _rundown(self) -> Model:
        return (yield from close_all(self._kernel, self._kernel.current))

    def _thread(self, number: int) -> KThread:
        thread = self._threads.get(number)
        if thread is None:
            thread = self._kernel.create_thread(
                self.process,
                f"{self.process.image} {self.process.id}/{number}",
                thread_id=self.process.id + number,
                system=False,
            )
            self._threads[number] = thread
        assert thread.state is ThreadState.IDLE, f"thread {number} is still in another service"
        return thread


class Pending:
    """A service that was begun."""

    def __init__(self, machine: LibraryMachine, service: str) -> None:
        self._machine = machine
        self.service = service
        self._outcome: tuple[Any, BaseException | None] | None = None

    def done(self, value: Any, error: BaseException | None) -> None:
        """Called by the scheduler at the end."""
        self._outcome = (value, error)

    @property
    def finished(self) -> bool:
        return self._outcome is not None

    def result(self) -> tuple[int, dict[str, Any]]:
        """Run the machine until the service is done.

        Raises:
            MachineCrashedError, DeadlockError: it will not be.
        """
        kernel = self._machine.kernel
        while self._outcome is None:
            kernel.check_alive()
            kernel.scheduler.run_until_idle(stop=lambda: self._outcome is not None)
            if self._outcome is None:
                kernel.check_alive()
                if not kernel.scheduler.ready and not kernel.clock.jump():
                    raise DeadlockError(kernel)
        value, error = self._outcome
        if error is not None:
            raise error
        status, values = value
        return status, values
