"""Shells and commands behind the service: they outlive connections and die with an idle timeout or a restart."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vm.deadline import Deadline
from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.commands import catalog
from vm.emulated.guest.commands.interpreter import Streams, run_line, run_program
from vm.emulated.guest.commands.parsing import split_words
from vm.emulated.guest.commands.session import Environment, Guest, Session, base_environment
from vm.emulated.guest.processes import STATUS_CONTROL_C_EXIT
from vm.emulated.guest.streams import STDERR, STDOUT, Cancellation, CommandTerminatedError, Output, Pipe
from vm.emulated.guest.winrm import faults

log = logging.getLogger(__name__)

_END_SECONDS = 2.0
"""A command that hangs in the kernel (an unload that never ends) is not waited for longer, as on Windows."""


@dataclass(frozen=True, slots=True)
class ShellOptions:
    """What a client asks for when it creates a shell."""

    environment: Mapping[str, str]
    directory: str
    """Full Windows path of an existing directory."""
    code_page: int
    input_streams: frozenset[str]
    output_streams: frozenset[str]
    idle_timeout_seconds: float


class Command:
    """One command: a thread that interprets its line, its streams, and who waits for its delivery."""

    def __init__(self, identifier: str, line: str, shell: Shell, *, skip_cmd_shell: bool) -> None:
        self.identifier = identifier
        self.cancellation = Cancellation()
        self.input = Pipe(self.cancellation)
        self.output = Output(self.cancellation)
        self._line = line
        self._shell = shell
        self._skip_cmd_shell = skip_cmd_shell
        self._lock = threading.Lock()
        self._delivered = False
        self._after_delivery: list[Callable[[], None]] = []
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"guest command {identifier[:8]}")

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def interrupt(self) -> None:
        """Ctrl+C: end its processes; the output stays to be received and the exit code tells."""
        self.cancellation.cancel()

    def terminate(self, deadline: Deadline) -> None:
        """End it and forget its output; waits until its processes are gone, or the deadline passes."""
        self.cancellation.cancel()
        self.output.close()
        self.delivered()
        self._thread.join(deadline.remaining)
        if self._thread.is_alive():
            log.warning("the guest command %s hangs in the kernel and is left behind", self.identifier)

    def after_delivery(self, callback: Callable[[], None]) -> None:
        """Run `callback` once the client has the end of the command, or has given it up."""
        with self._lock:
            if not self._delivered:
                self._after_delivery.append(callback)
                return
        callback()

    def delivered(self) -> None:
        """The client has the end of the command."""
        with self._lock:
            self._delivered = True
            callbacks, self._after_delivery = self._after_delivery, []
        for callback in callbacks:
            callback()

    def _run(self) -> None:
        session = self._shell.session(self)
        stdout = self._shell.chaos.output(self.output.sink(STDOUT))
        streams = Streams(self.input, stdout, self.output.sink(STDERR))
        try:
            if self._skip_cmd_shell:
                code = run_program(self._line, session, streams)
                code = 0 if code is None else code
            else:
                code = run_line(self._line, session, streams)
        except CommandTerminatedError:
            code = STATUS_CONTROL_C_EXIT
        except Exception:
            log.exception("the guest command line failed")
            code = 1
        self.input.abandon()
        self.done.set()
        self.output.finish(code)


class Shell:
    """One remote shell: what its commands start from."""

    def __init__(self, identifier: str, owner: str, options: ShellOptions, guest: Guest) -> None:
        self.identifier = identifier
        self.owner = owner
        self.options = options
        self.created = time.monotonic()
        self._guest = guest
        self._lock = threading.Lock()
        self._commands: dict[str, Command] = {}
        self._pending = 0
        self._used = self.created
        self._closed = False

    @property
    def chaos(self) -> Chaos:
        """The faults of this guest."""
        return self._guest.chaos

    @property
    def idle_seconds(self) -> float:
        """How long no operation has used the shell; 0 while one does."""
        with self._lock:
            return 0.0 if self._pending else time.monotonic() - self._used

    def begin_operation(self) -> None:
        """An operation uses the shell from now on."""
        with self._lock:
            self._pending += 1

    def end_operation(self) -> None:
        """The operation is over."""
        with self._lock:
            self._pending -= 1
            self._used = time.monotonic()

    def run(self, line: str, *, skip_cmd_shell: bool, proposed: str | None) -> Command:
        """Start a command.

        Raises:
            FaultError: too many commands, a bad proposed id, no such program, or the shell is being deleted.
        """
        limit = self._guest.settings.quotas.max_processes_per_shell
        identifier = _identifier(proposed)
        command = Command(identifier, line, self, skip_cmd_shell=skip_cmd_shell)
        if skip_cmd_shell and not self._has_program(line, command):
            raise faults.FaultError(
                faults.HRESULT_FILE_NOT_FOUND, "w:InternalError", "The system cannot find the file specified."
            )
        with self._lock:
            if self._closed:
                raise faults.shell_not_found(self.identifier)
            if identifier in self._commands:
                raise faults.invalid_id(f"There is a command '{identifier}' already.")
            if len(self._commands) >= limit:
                raise faults.too_many_commands(limit)
            self._commands[identifier] = command
            command.start()
        return command

    def command(self, identifier: str | None) -> Command:
        """A command by its id; FaultError if there is none."""
        with self._lock:
            found = self._commands.get((identifier or "").upper())
        if found is None:
            raise faults.command_not_found()
        return found

    def remove(self, command: Command) -> None:
        """End a command and forget it."""
        with self._lock:
            self._commands.pop(command.identifier, None)
        command.terminate(Deadline.after(seconds=_END_SECONDS))

    def close(self) -> None:
        """End all commands and start no more."""
        with self._lock:
            self._closed = True
            commands = list(self._commands.values())
            self._commands.clear()
        for command in commands:
            command.cancellation.cancel()
        deadline = Deadline.after(seconds=_END_SECONDS)
        for command in commands:
            command.terminate(deadline)

    def session(self, command: Command) -> Session:
        """A fresh cmd.exe session for one command."""
        environment = Environment(base_environment(self._guest))
        given = set()
        for name, value in self.options.environment.items():
            environment.set(name, value)
            given.add(name.casefold())
        return Session(
            guest=self._guest,
            environment=environment,
            directory=self.options.directory,
            cancellation=command.cancellation,
            code_page=self.options.code_page,
            given=frozenset(given),
            after_delivery=command.after_delivery,
        )

    def _has_program(self, line: str, command: Command) -> bool:
        words = split_words(line)
        return bool(words) and catalog.find_program(words[0], self.session(command)) is not None


class ShellTable:
    """All shells of the guest, with their quotas and idle timeouts."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._lock = threading.Lock()
        self._shells: dict[str, Shell] = {}
        self._operations = 0
        self._changed = threading.Event()
        self._stopped = False
        self._janitor: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch idle timeouts."""
        self._stopped = False
        self._janitor = threading.Thread(target=self._watch, daemon=True, name="guest shell timeouts")
        self._janitor.start()

    def stop(self) -> None:
        """Delete all shells and stop watching."""
        self._stopped = True
        self._changed.set()
        self.clear()
        if self._janitor is not None:
            self._janitor.join(_END_SECONDS)

    def clear(self) -> None:
        """Delete all shells and what runs in them: a restart."""
        with self._lock:
            shells = list(self._shells.values())
            self._shells.clear()
        for shell in shells:
            shell.close()

    def create(self, owner: str, options: ShellOptions, proposed: str | None) -> Shell:
        """A new shell; FaultError if the user has too many or the proposed id cannot be."""
        shell = Shell(_identifier(proposed), owner, options, self._guest)
        limit = self._guest.settings.quotas.max_shells_per_user
        with self._lock:
            if shell.identifier in self._shells:
                raise faults.invalid_id(f"There is a shell '{shell.identifier}' already.")
            if len(self._shells) >= limit:
                raise faults.too_many_shells(limit)
            self._shells[shell.identifier] = shell
        self._changed.set()
        return shell

    def get(self, identifier: str | None) -> Shell:
        """A shell by its id; FaultError if there is none."""
        with self._lock:
            found = self._shells.get((identifier or "").upper())
        if found is None:
            raise faults.shell_not_found(identifier or "")
        return found

    def delete(self, shell: Shell) -> None:
        """Delete a shell and end what runs in it."""
        with self._lock:
            self._shells.pop(shell.identifier, None)
        shell.close()

    def begin_operation(self) -> None:
        """Count an operation; FaultError if the user has too many at once."""
        limit = self._guest.settings.quotas.max_operations_per_user
        with self._lock:
            if self._operations >= limit:
                raise faults.too_many_operations(limit)
            self._operations += 1

    def end_operation(self) -> None:
        """The operation is over."""
        with self._lock:
            self._operations -= 1

    def _watch(self) -> None:
        while not self._stopped:
            self._changed.clear()
            with self._lock:
                shells = list(self._shells.values())
            left = [shell.options.idle_timeout_seconds - shell.idle_seconds for shell in shells]
            for shell, seconds in zip(shells, left, strict=True):
                if seconds <= 0:
                    log.info("shell %s was idle for too long and is deleted", shell.identifier)
                    self.delete(shell)
            waiting = [seconds for seconds in left if seconds > 0]
            self._changed.wait(min(waiting) if waiting else None)


def _identifier(proposed: str | None) -> str:
    if proposed is None:
        return str(uuid.uuid4()).upper()
    try:
        return str(uuid.UUID(proposed)).upper()
    except ValueError as error:
        raise faults.invalid_id(f"'{proposed}' is not a GUID.") from error
