"""Commands in the guest over WinRM: shells, input, output and ends, each obeying the deadline.

Each thread has a session of its own (`harness.remote.session`).
"""

from __future__ import annotations

import codecs
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from winrm.exceptions import WinRMOperationTimeoutError

from harness.log import Log
from harness.remote.addresses import CurrentAddress
from harness.remote.channels import CommandResult as CommandResult
from harness.remote.channels import shorten, shown_code
from harness.remote.faults import ENVELOPE_TOO_LARGE, INPUT_CLOSED, ShellGoneError, fault_code
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, command_line
from harness.remote.session import ANY_FAILURE, Session, make_protocol
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, GuestError
from vm.machine import GuestAddress

CODE_PAGE_UTF8 = 65001

CLEANUP_SECONDS = 5
"""What killing a command that outlived its deadline may take."""

STDIN_CHUNK_BYTES = 100_000
"""Fits the smallest envelope that a server accepts by default (150 kB) after base64."""

SMALLEST_CHUNK_BYTES = 4_000
"""With pieces below this the envelope itself is the larger part; a server that refuses them is set up wrongly."""

SEND_SECONDS = 60
"""How long the guest may take to accept input: its default MaxTimeoutms. A program that starts slowly reads late."""


class WinRm:
    """Runs commands in one guest, from any number of threads.

    Args:
        address: where the guest answers and how to log on.
        machine: the machine's name, for messages.
        log: gets every command with its duration and exit code.
    """

    def __init__(self, address: GuestAddress | CurrentAddress, *, machine: str, log: Log) -> None:
        self._address = address if isinstance(address, CurrentAddress) else CurrentAddress(address)
        self._machine = machine
        self._log = log
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[Session] = []
        self._chunk_bytes = STDIN_CHUNK_BYTES

    @property
    def where(self) -> str:
        """Host and port, as messages show them."""
        return self._address.where

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline: Deadline,
        stdin: bytes | None = None,
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_output: bool = True,
    ) -> CommandResult:
        """Run one command and wait for its end; see `Commands.run`."""
        line = command if isinstance(command, str) else command_line(command)
        if len(line) > COMMAND_LINE_CHARACTERS:
            raise GuestError(
                f"a command of {len(line)} characters is too long for the guest", machine=self._machine
            )
        deadline.check(f"'{shorten(line)}' to be started", machine=self._machine)
        connection = self._connection()
        try:
            if directory is None and environment is None:
                shell, command_id = self._start(connection, line, deadline)
                return self._follow(
                    connection, shell, command_id, line, stdin, deadline, on_output, keep_output
                )
            shell = self._open_shell(connection, deadline, directory, environment)
            try:
                command_id = self._run_command(connection, shell, line, deadline)
                return self._follow(
                    connection, shell, command_id, line, stdin, deadline, on_output, keep_output
                )
            finally:
                self._quietly(connection, lambda protocol: protocol.close_shell(shell, close_session=False))
        except BaseException as error:
            self._log.write(f"! {line}\n{type(error).__name__}: {error}")
            raise

    def close(self) -> None:
        """Delete the shells and close the connections; call it when no thread uses them any more."""
        with self._lock:
            connections, self._connections = self._connections, []
        self._local = threading.local()
        for connection in connections:
            if connection.shell is not None:
                connection.set_timeouts(Deadline.after(seconds=CLEANUP_SECONDS))
                with suppress(*ANY_FAILURE):
                    connection.protocol.close_shell(connection.shell)
            connection.drop()

    def _connection(self) -> Session:
        connection: Session | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._inherited() or self._new_session()
            self._local.connection = connection
            with self._lock:
                if connection not in self._connections:
                    self._connections.append(connection)
        return connection

    def _inherited(self) -> Session | None:
        """The session of a thread that has ended; its shell would otherwise count against the quota until `close`."""
        with self._lock:
            for connection in self._connections:
                if not connection.owner.is_alive():
                    connection.owner = threading.current_thread()
                    return connection
        return None

    def _new_session(self) -> Session:
        return Session(self._address, machine=self._machine, log=self._log, make=self._protocol)

    def _protocol(self, address: GuestAddress) -> Any:
        self._log.protect(address.credentials.password)
        return make_protocol(address, machine=self._machine)

    def _start(self, connection: Session, line: str, deadline: Deadline) -> tuple[str, str]:
        """Start the command in the thread's own shell; one that has vanished meanwhile is replaced once."""
        if connection.shell is not None:
            with suppress(ShellGoneError):
                # A command that was refused has not run, so the new shell below cannot run it a second time.
                return connection.shell, self._run_command(connection, connection.shell, line, deadline)
            connection.shell = None
        connection.shell = self._open_shell(connection, deadline, None, None)
        return connection.shell, self._run_command(connection, connection.shell, line, deadline)

    def _open_shell(
        self,
        connection: Session,
        deadline: Deadline,
        directory: str | None,
        environment: Mapping[str, str] | None,
    ) -> str:
        opened: str = connection.request(
            lambda protocol: protocol.open_shell(
                codepage=CODE_PAGE_UTF8,
                noprofile=True,
                working_directory=directory,
                env_vars=dict(environment) if environment else None,
            ),
            f"opening a shell at {self.where}",
            deadline,
            # A shell that was made after all would stay until its idle timeout, and count against the quota.
            repeatable=False,
        )
        return opened

    def _run_command(self, connection: Session, shell: str, line: str, deadline: Deadline) -> str:
        program, _, arguments = line.partition(" ")
        started: str = connection.request(
            lambda protocol: protocol.run_command(
                shell, program, (arguments,) if arguments else (), console_mode_stdin=False
            ),
            f"starting '{shorten(line)}'",
            deadline,
            repeatable=False,
        )
        return started

    def _follow(
        self,
        connection: Session,
        shell: str,
        command_id: str,
        line: str,
        stdin: bytes | None,
        deadline: Deadline,
        on_output: Callable[[str], None] | None,
        keep_output: bool,
    ) -> CommandResult:
        """Feed a started command and collect what it prints; when this does not end well, kill it."""
        ended = False
        try:
            if stdin is not None:
                self._feed(connection, shell, command_id, stdin, deadline)
            result = self._collect(connection, shell, command_id, line, deadline, on_output, keep_output)
            ended = True
            return result
        except ShellGoneError:
            connection.shell = None
            raise
        finally:
            if not ended:
                # The last exchange may have been torn apart, and with it the numbering of the seal.
                connection.drop()
            # Also after its end: the guest keeps a command until it is signalled (MS-WSMV 3.1.4.14).
            self._quietly(connection, lambda protocol: protocol.cleanup_command(shell, command_id))

    def _feed(
        self, connection: Session, shell: str, command_id: str, stdin: bytes, deadline: Deadline
    ) -> None:
        """Send the input in pieces that fit an envelope; the last one closes the stream.

        A command that ends without reading all of its input is no failure here: its exit code and output tell more.
        """
        start = 0
        while True:
            end = start + self._chunk_bytes
            send = partial(_send, shell, command_id, stdin[start:end], end >= len(stdin))
            try:
                connection.request(
                    send,
                    "sending input to a command",
                    deadline,
                    repeatable=False,
                    longest_seconds=SEND_SECONDS,
                )
            except WinRMOperationTimeoutError as error:
                raise DeadlineExceededError(
                    f"a command in the guest did not take its input within {SEND_SECONDS} s",
                    machine=self._machine,
                ) from error
            except GuestError as error:
                code = fault_code(error.__cause__) if error.__cause__ else None
                if code in INPUT_CLOSED:
                    self._log.write(f"a command did not read all of its input: {error.message}")
                    return
                if code not in ENVELOPE_TOO_LARGE or self._chunk_bytes // 2 < SMALLEST_CHUNK_BYTES:
                    raise
                # Refused as a whole: nothing of it has reached the command.
                self._chunk_bytes //= 2
                self._log.write(
                    f"the guest takes small envelopes only; going on with {self._chunk_bytes} bytes"
                )
            else:
                start = end
                if end >= len(stdin):
                    return

    def _collect(
        self,
        connection: Session,
        shell: str,
        command_id: str,
        line: str,
        deadline: Deadline,
        on_output: Callable[[str], None] | None,
        keep_output: bool,
    ) -> CommandResult:
        started = time.monotonic()
        decode = codecs.getincrementaldecoder("utf-8-sig")(errors="replace").decode
        output: list[str] = []
        errors = bytearray()
        while True:
            if deadline.passed:
                last = "".join(output).strip().rpartition("\n")[2]
                raise DeadlineExceededError(
                    f"'{shorten(line)}' did not end within {time.monotonic() - started:.0f} s"
                    + (f"; its last output was '{shorten(last)}'" if last else ""),
                    machine=self._machine,
                )
            try:
                received, failed, code, done = connection.request(
                    lambda protocol: protocol.get_command_output_raw(shell, command_id),
                    f"waiting for '{shorten(line)}'",
                    deadline,
                    repeatable=True,
                )
            except WinRMOperationTimeoutError:
                continue  # no output within the operation timeout is normal (MS-WSMV): ask again
            text = decode(received, done)
            errors += failed
            if text:
                if keep_output:
                    output.append(text)
                if on_output is not None:
                    on_output(text)
            if done:
                result = CommandResult(
                    command=line,
                    exit_code=code & 0xFFFFFFFF,
                    stdout="".join(output),
                    stderr=errors.decode("utf-8-sig", errors="replace"),
                    seconds=time.monotonic() - started,
                )
                self._log.write(
                    f"> {line}\nexit code {shown_code(result.exit_code)} after {result.seconds:.3f} s"
                )
                if result.exit_code and result.output:
                    self._log.write(shorten(result.output, 4000))
                return result

    def _quietly(self, connection: Session, operation: Callable[[Any], object]) -> None:
        """Clean up; a failure is logged but never covers what happened before."""
        try:
            connection.request(
                operation, "cleaning up", Deadline.after(seconds=CLEANUP_SECONDS), repeatable=True
            )
        except (DownlinkError, WinRMOperationTimeoutError) as error:
            self._log.write(f"clean-up: {error}")


def _send(shell: str, command_id: str, piece: bytes, end: bool, protocol: Any) -> None:
    protocol.send_command_input(shell, command_id, piece, end=end)
