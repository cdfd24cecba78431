"""Processes of the guest: real host processes, each at the head of a tree that ends together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

EXIT_KILLED = 1
"""What TerminateProcess leaves behind when `taskkill /F` calls it."""
STATUS_CONTROL_C_EXIT = 0xC000013A
STATUS_ACCESS_VIOLATION = 0xC0000005
STATUS_STACK_BUFFER_OVERRUN = 0xC0000409
"""What abort() ends with on Windows (__fastfail)."""

_KILL_DEADLINE_SECONDS = 10.0
_POSIX = os.name == "posix"


@dataclass(frozen=True, slots=True)
class ProcessInformation:
    """One process of the guest as `tasklist` shows it; `process_id` is the host's."""

    process_id: int
    image: str
    command_line: str = ""


class GuestProcess:
    """A running host process with its three pipes; `wait` and `kill` may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], information: ProcessInformation) -> None:
        self._process = process
        self.information = information
        self._forced: int | None = None

    @property
    def stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes] | None:
        """None when it was merged into stdout."""
        return self._process.stderr

    def wait(self) -> int:
        """Wait for the end, end what is left of the tree, return the exit code as Windows counts it (unsigned)."""
        status = self._process.wait()
        _kill_group(self._process.pid)
        return self._forced if self._forced is not None else _exit_code(status)

    def kill(self, exit_code: int = EXIT_KILLED) -> None:
        """End the process and its descendants; they get no say."""
        if self._process.returncode is None:
            self._forced = exit_code
        for child in _descendants(self._process.pid):
            _kill_one(child)
        _kill_group(self._process.pid)
        if self._process.poll() is None:
            self._process.kill()


class ProcessTable:
    """All processes that the guest's commands started and that still run."""

    def __init__(
        self,
        on_started: Callable[[ProcessInformation], None] | None = None,
        on_ended: Callable[[ProcessInformation], None] | None = None,
        clients: Callable[[], Sequence[ProcessInformation]] | None = None,
    ) -> None:
        """
        Args:
            on_started, on_ended: called in the thread that runs the command.
            clients: the processes connected to the kernel; among them may be children of those started here.
        """
        self._lock = threading.Lock()
        self._running: dict[int, GuestProcess] = {}
        self._closed = False
        self._on_started = on_started
        self._on_ended = on_ended
        self._clients = clients

    def start(
        self,
        arguments: Sequence[str],
        *,
        image: str,
        command_line: str,
        environment: Mapping[str, str],
        directory: Path,
        merge_stderr: bool,
    ) -> GuestProcess:
        """Start a host process at the head of a process group (a new console group on Windows) of its own.

        Raises:
            OSError: it could not be started, or the guest is going down.
        """
        began = time.monotonic()
        flags = 0 if _POSIX else getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        with self._lock:
            if self._closed:
                raise OSError("the guest is going down")
            popen = subprocess.Popen(
                list(arguments),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merge_stderr else subprocess.PIPE,
                env=dict(environment),
                cwd=directory,
                start_new_session=_POSIX,
                creationflags=flags,
                close_fds=True,
                bufsize=0,
            )
            process = GuestProcess(popen, ProcessInformation(popen.pid, image, command_line))
            self._running[popen.pid] = process
        log.info("guest process %d '%s' started in %.3f s", popen.pid, image, time.monotonic() - began)
        if self._on_started:
            self._on_started(process.information)
        return process

    def finish(self, process: GuestProcess) -> int:
        """Wait for the process, take it off the table, return its exit code (unsigned 32 bit)."""
        exit_code = process.wait()
        with self._lock:
            self._running.pop(process.information.process_id, None)
        log.info("guest process %d ended with 0x%x", process.information.process_id, exit_code)
        if self._on_ended:
            self._on_ended(process.information)
        return exit_code

    def running(self) -> list[ProcessInformation]:
        """Started here, and the clients of the kernel that are not among them; by process id."""
        with self._lock:
            known = {pid: process.information for pid, process in self._running.items()}
        for client in self._clients() if self._clients else ():
            known.setdefault(client.process_id, client)
        return [known[pid] for pid in sorted(known)]

    def kill(self, process_id: int) -> bool:
        """End one process and its descendants; False if the guest has no such process.

        A process id that a client only claims is ended if it descends from a process started here, no other.
        """
        with self._lock:
            process = self._running.get(process_id)
            heads = list(self._running)
        if process is not None:
            process.kill()
            return True
        if process_id not in {pid for head in heads for pid in _descendants(head)}:
            return False
        for child in _descendants(process_id):
            _kill_one(child)
        _kill_one(process_id)
        return True

    def close(self) -> None:
        """End all processes and start no more until `open`: the guest goes down."""
        with self._lock:
            self._closed = True
            processes = list(self._running.values())
        for process in processes:
            process.kill()

    def open(self) -> None:
        """Processes may be started again: the guest has booted."""
        with self._lock:
            self._closed = False


def _kill_group(process_id: int) -> None:
    """The group exists as long as any member of it does, so a left-over child is found by its dead head's id."""
    if _POSIX:
        try:
            os.killpg(process_id, signal.SIGKILL)
        except (
            ProcessLookupError,
            PermissionError,
        ):  # PermissionError: macOS, only zombies left in the group
            return
    else:
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(process_id)],
            capture_output=True,
            check=False,
            timeout=_KILL_DEADLINE_SECONDS,
        )


def _kill_one(process_id: int) -> None:
    try:
        os.kill(process_id, getattr(signal, "SIGKILL", signal.SIGTERM))
    except (ProcessLookupError, PermissionError):
        return


def _descendants(process_id: int) -> list[int]:
    """Process ids below this one, also those that left its group; on Windows `taskkill /T` finds them itself."""
    if not _POSIX:
        return []
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    pending = [process_id]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def _parents() -> list[tuple[int, int]]:
    proc = Path("/proc")
    if (proc / "self/stat").exists():
        pairs = []
        for entry in proc.iterdir():
            if entry.name.isdigit():
                try:
                    # The name in parentheses may hold blanks and parentheses; state and parent follow the last one.
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                except OSError:
                    continue
                pairs.append((int(entry.name), int(fields[1])))
        return pairs
    listing = subprocess.run(
        ["ps", "-axo", "pid=,ppid="],
        capture_output=True,
        check=False,
        timeout=_KILL_DEADLINE_SECONDS,
    )
    lines = listing.stdout.decode("ascii", "replace").splitlines()
    return [(int(fields[0]), int(fields[1])) for line in lines if len(fields := line.split()) == 2]


def _exit_code(status: int) -> int:
    if status >= 0:
        return status & 0xFFFFFFFF
    number = -status
    if number == getattr(signal, "SIGSEGV", None):
        return STATUS_ACCESS_VIOLATION
    if number == getattr(signal, "SIGABRT", None):
        return STATUS_STACK_BUFFER_OVERRUN
    if number == signal.SIGINT:
        return STATUS_CONTROL_C_EXIT
    return EXIT_KILLED
