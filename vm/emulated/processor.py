"""The processor thread: the only host thread that touches a kernel. Others hand it work and wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from vm.emulated.computer import MachineStoppedError
from vm.emulated.kernel.kernel import Kernel
from vm.emulated.kernel.threads import Model

T = TypeVar("T")
_LONGEST_SLEEP_SECONDS = 3600.0
_UNITS_PER_SECOND = 10_000_000


class Processor:
    """Runs a kernel whose clock follows the host's, until it crashes or is stopped.

    Args:
        kernel: nobody else may use it once the processor has started.
        on_crash: called once on the processor thread when the kernel bugchecks, or when the model itself fails.
    """

    def __init__(self, kernel: Kernel, on_crash: Callable[[], None] | None = None) -> None:
        self.kernel = kernel
        self._on_crash = on_crash
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._outstanding: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="processor", daemon=True)
        self.failure: BaseException | None = None
        """A fault of the model itself that ended the processor."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; work that is not done fails with `MachineStoppedError`."""
        with self._lock:
            self._stopped = True
        self._inbox.put(None)
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join()

    def perform(self, action: Callable[[], T]) -> T:
        """Run a function on the processor thread and return its result.

        Raises:
            MachineStoppedError: the machine is not there any more.
        """
        return self._submit(lambda future: future.set_result(action())).result()  # type: ignore[no-any-return]

    def run(self, begin: Callable[[Callable[[Any, BaseException | None], None]], None]) -> Any:
        """Start emulated work and wait for its end.

        Args:
            begin: called on the processor thread with a function that takes (value, error) when the work is done.
        """

        def start(future: Future[Any]) -> None:
            def done(value: Any, error: BaseException | None) -> None:
                if future.done():
                    return
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)

            begin(done)

        return self._submit(start).result()

    def run_system(self, make: Callable[[], Model], name: str) -> Any:
        """Run a generator of the model on a new system thread and return its result."""

        def begin(done: Callable[[Any, BaseException | None], None]) -> None:
            kernel = self.kernel
            thread = kernel.create_thread(kernel.system, name)
            kernel.scheduler.push_model(thread, make(), name, on_done=done)

        return self.run(begin)

    def _submit(self, start: Callable[[Future[Any]], None]) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            try:
                start(future)
            except BaseException as error:  # noqa: BLE001  # delivered to the caller, who raises it
                future.set_exception(error)

        with self._lock:
            if self._stopped:
                raise MachineStoppedError("the machine is stopped")
            self._outstanding.add(future)
        future.add_done_callback(self._forget)
        self._inbox.put(work)
        return future

    def _forget(self, future: Future[Any]) -> None:
        with self._lock:
            self._outstanding.discard(future)

    def _loop(self) -> None:
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001  # the edge of a thread: kept for whoever asks
            self.failure = error
        finally:
            with self._lock:
                self._stopped = True
                left = list(self._outstanding)
            for future in left:
                if not future.done():
                    future.set_exception(MachineStoppedError(self._reason()))
            broken = self.kernel.crash_report is not None or self.failure is not None
            if broken and self._on_crash is not None:
                self._on_crash()

    def _reason(self) -> str:
        report = self.kernel.crash_report
        if report is not None:
            return f"the machine has crashed: {report.name}"
        if self.failure is not None:
            return f"the model failed: {self.failure!r}"
        return "the machine is stopped"

    def _run(self) -> None:
        kernel = self.kernel
        scheduler = kernel.scheduler
        clock = kernel.clock
        inbox = self._inbox
        while True:
            while not inbox.empty():
                work = inbox.get()
                if work is None:
                    return
                work()
            clock.expire()
            if scheduler.ready:
                scheduler.run_slice()
                if kernel.crash_report is not None:
                    return
                continue
            due = clock.next_due()
            timeout = _LONGEST_SLEEP_SECONDS
            if due is not None:
                timeout = max(0.0, (due - clock.interrupt_time) / _UNITS_PER_SECOND)
            try:
                work = inbox.get(timeout=timeout) if timeout else inbox.get_nowait()
            except queue.Empty:
                continue
            if work is None:
                return
            work()
