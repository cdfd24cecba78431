"""Run blocking calls so that the caller gets away from one that hangs.

Each calling thread has a helper thread of its own that makes its system calls: what is bound to a thread on Windows
(impersonation, pending I/O that ends with its thread) then still belongs together. A helper that does not come back
in time is left behind, and the next call gets a new one.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from harness.client.errors import OperationTimeoutError

T = TypeVar("T")


@dataclass(slots=True)
class _Job(Generic[T]):
    function: Callable[[], T]
    done: threading.Event = field(default_factory=threading.Event)
    result: T | None = None
    error: BaseException | None = None


class _Helper:
    def __init__(self) -> None:
        self.jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        threading.Thread(target=_work, args=(self.jobs,), name="system calls", daemon=True).start()
        weakref.finalize(self, self.jobs.put, None)


class Operator:
    """Runs functions on the calling thread's helper."""

    def __init__(self) -> None:
        self._local = threading.local()

    def run(self, what: str, function: Callable[[], T], *, seconds: float | None) -> T:
        """The function's result, or what it raised.

        Args:
            what: for the message of a timeout, for example "FilterSendMessage".
            function: makes the system call.
            seconds: how long it may take; None waits without limit.

        Raises:
            OperationTimeoutError: it did not come back. The thread that made the call stays in it.
        """
        helper: _Helper | None = getattr(self._local, "helper", None)
        if helper is None:
            helper = self._local.helper = _Helper()
        job = _Job(function)
        helper.jobs.put(job)
        if not job.done.wait(seconds):
            self._local.helper = None
            raise OperationTimeoutError(
                f"{what} did not return within {seconds:g} s: something in the kernel waits that should not"
            )
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]  # None only if the function returned None


def _work(jobs: queue.SimpleQueue[_Job[Any] | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job.result = job.function()
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            job.error = error
        job.done.set()
        del job
