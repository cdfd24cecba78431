"""A child process that takes its descendants with it when it is ended: a job on Windows, a process group elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from vm.deadline import Deadline
from vm.errors import DeadlineExceededError

_KILL_SECONDS = 30.0
_SLICE_SECONDS = 0.25


class ProcessTree:
    """A running process and everything that it starts. End it with `kill`, also when it has ended by itself."""

    def __init__(self, process: subprocess.Popen[bytes], job: int | None) -> None:
        self.process = process
        self._job = job

    @classmethod
    def start(
        cls,
        arguments: Sequence[str] | str,
        *,
        directory: Path | None,
        environment: Mapping[str, str] | None,
    ) -> ProcessTree:
        """Start it with three pipes.

        Args:
            arguments: program and arguments; or, on Windows, the whole command line.
            directory: its working directory, None = this process's.
            environment: all of its variables, None = this process's.

        Raises:
            OSError: it cannot be started.
        """
        process = subprocess.Popen(
            arguments,
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=os.name == "posix",
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        return cls(process, _job_of(process))

    def wait(self, deadline: Deadline, stop: threading.Event) -> int | None:
        """Its exit code as 32 bits without a sign; None when it still runs at the deadline, or when `stop` is set."""
        # Waiting in slices keeps Ctrl-C alive on Windows, where a wait cannot be interrupted.
        while not deadline.passed and not stop.is_set():
            with suppress(subprocess.TimeoutExpired):
                left = min(_SLICE_SECONDS, max(0.001, deadline.remaining))
                return self.process.wait(timeout=left) & 0xFFFFFFFF
        code = self.process.poll()
        return None if code is None else code & 0xFFFFFFFF

    def kill(self) -> None:
        """End what is left of the tree, and wait for the process itself.

        Raises:
            DeadlineExceededError: the process does not go: it hangs in the kernel.
        """
        if sys.platform == "win32":
            _close_job(self._job, self.process)
            self._job = None
        else:
            # The group exists as long as any member does. PermissionError: macOS, only zombies are left in it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        try:
            self.process.wait(timeout=_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            raise DeadlineExceededError(
                f"the process {self.process.pid} of this host cannot be ended: it hangs in the kernel",
                hint="restart this host: a driver holds the process",
            ) from None


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _EXTENDED_LIMITS = 9  # JobObjectExtendedLimitInformation
    _KILL_ON_CLOSE = 0x2000  # JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE

    class _BasicLimits(ctypes.Structure):
        _fields_ = (
            ("PerProcessUserTimeLimit", wintypes.LARGE_INTEGER),
            ("PerJobUserTimeLimit", wintypes.LARGE_INTEGER),
            ("LimitFlags", wintypes.DWORD),
            ("MinimumWorkingSetSize", ctypes.c_size_t),
            ("MaximumWorkingSetSize", ctypes.c_size_t),
            ("ActiveProcessLimit", wintypes.DWORD),
            ("Affinity", ctypes.c_size_t),
            ("PriorityClass", wintypes.DWORD),
            ("SchedulingClass", wintypes.DWORD),
        )

    class _ExtendedLimits(ctypes.Structure):
        _fields_ = (
            ("BasicLimitInformation", _BasicLimits),
            ("IoInfo", ctypes.c_uint64 * 6),
            ("ProcessMemoryLimit", ctypes.c_size_t),
            ("JobMemoryLimit", ctypes.c_size_t),
            ("PeakProcessMemoryUsed", ctypes.c_size_t),
            ("PeakJobMemoryUsed", ctypes.c_size_t),
        )

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateJobObjectW.restype = wintypes.HANDLE
    _kernel32.CreateJobObjectW.argtypes = (wintypes.LPVOID, wintypes.LPCWSTR)
    _kernel32.SetInformationJobObject.argtypes = (
        wintypes.HANDLE,
        ctypes.c_int,
        wintypes.LPVOID,
        wintypes.DWORD,
    )
    _kernel32.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
    _kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)

    def _job_of(process: subprocess.Popen[bytes]) -> int | None:
        """A job that ends its processes when it is closed; None where the host does not allow one."""
        job = _kernel32.CreateJobObjectW(None, None)
        if not job:
            return None
        limits = _ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _KILL_ON_CLOSE
        handle = int(getattr(process, "_handle"))  # noqa: B009  # there is no public name for it
        done = _kernel32.SetInformationJobObject(
            job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
        ) and _kernel32.AssignProcessToJobObject(job, handle)
        if not done:
            _kernel32.CloseHandle(job)
            return None
        return int(job)

    def _close_job(job: int | None, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            # Also what was started in the moment before the job was there.
            subprocess.run(
                ["taskkill", "/F", "/T", "/PID", str(process.pid)],
                capture_output=True,
                check=False,
                timeout=_KILL_SECONDS,
            )
        if job is not None:
            _kernel32.CloseHandle(job)

else:

    def _job_of(process: subprocess.Popen[bytes]) -> int | None:
        """Elsewhere the process leads a group instead."""
        return None
