"""Commands in the guest over WinRM, by pywinrm's `Protocol`.

One `Protocol` per thread, because a sealed session is numbered and belongs to one TCP connection. Every request obeys
the deadline, and a broken connection is mended where, and only where, that cannot run a command twice.
"""

from __future__ import annotations

import codecs
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from xml.etree.ElementTree import ParseError

from spnego.exceptions import SpnegoError
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
)
from winrm.protocol import Protocol

from harness.log import Log
from harness.remote.faults import ShellGoneError, is_broken_seal, is_connection_error, translate
from harness.remote.quoting import COMMAND_LINE_CHARACTERS, command_line
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, GuestError
from vm.machine import GuestAddress

CODE_PAGE_UTF8 = 65001

OPERATION_SECONDS = 10
"""How long the guest may hold one Receive without output; the deadline is looked at in between."""

READ_SLACK_SECONDS = 10
"""How much longer than the operation timeout the host waits for the answer itself."""

CLEANUP_SECONDS = 5
"""What killing a command that outlived its deadline may take."""

STDIN_CHUNK_BYTES = 100_000
"""Fits the smallest envelope that a server accepts by default (150 kB) after base64."""

_T = TypeVar("_T")
_UNEXPECTED = (ParseError, StopIteration, AssertionError, KeyError, ValueError)
"""What pywinrm raises when the answer is not the XML that it expects."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command in the guest left behind. `exit_code` is unsigned: 0 to 0xFFFFFFFF."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def output(self) -> str:
        """Both outputs, for messages: inbox tools write their errors to either."""
        return "\n".join(part.strip() for part in (self.stdout, self.stderr) if part.strip())


@dataclass(slots=True)
class _Connection:
    """One thread's session with the guest."""

    protocol: Any
    shell: str | None = None


class WinRm:
    """Runs commands in one guest, from any number of threads.

    Args:
        address: where the guest answers and how to log on.
        machine: the machine's name, for messages.
        log: gets every command with its duration and exit code.
    """

    def __init__(self, address: GuestAddress, *, machine: str, log: Log) -> None:
        self._address = address
        self._machine = machine
        self._log = log
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        log.protect(address.credentials.password)

    @property
    def where(self) -> str:
        """Host and port, as messages show them."""
        return f"{self._address.host}:{self._address.winrm_port}"

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline: Deadline,
        stdin: bytes = b"",
        directory: str | None = None,
        environment: Mapping[str, str] | None = None,
        on_output: Callable[[str], None] | None = None,
        keep_output: bool = True,
    ) -> CommandResult:
        """Run one command and wait for its end.

        Args:
            command: program and arguments, quoted here for cmd.exe; or a line that is sent as it is.
            deadline: when it passes, the command and its children are killed in the guest.
            stdin: what the command reads; its input is closed afterwards.
            directory: working directory in the guest.
            environment: variables beside those of the logon.
            on_output: gets each piece of standard output as it arrives.
            keep_output: False leaves standard output out of the result, for a command that prints without end.

        Raises:
            DeadlineExceededError: the command did not end in time.
            ConnectionLostError: the connection broke; whether the command has run is not known.
            ShellGoneError: the guest was restarted meanwhile.
            GuestError: everything else that WinRM refuses, with what to do.
        """
        line = command if isinstance(command, str) else command_line(command)
        if len(line) > COMMAND_LINE_CHARACTERS:
            raise GuestError(
                f"a command of {len(line)} characters is too long for the guest", machine=self._machine
            )
        deadline.check(f"'{_shorten(line)}' to be started", machine=self._machine)
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
            protocol = connection.protocol
            if connection.shell is not None:
                self._set_timeouts(protocol, Deadline.after(seconds=CLEANUP_SECONDS))
                with suppress(*_ANY_FAILURE):
                    protocol.close_shell(connection.shell)
            protocol.transport.close_session()

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = _Connection(self._protocol())
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    def _protocol(self) -> Any:
        address = self._address
        transport: Any = address.winrm_transport
        pinned: Any = str(address.certificate) if address.certificate else None
        return Protocol(
            endpoint=f"{address.winrm_scheme}://{address.host}:{address.winrm_port}/wsman",
            transport=transport,
            username=address.credentials.username,
            password=address.credentials.password,
            # The default would take the authorities to trust from the environment.
            ca_trust_path=pinned,
            operation_timeout_sec=OPERATION_SECONDS,
            read_timeout_sec=OPERATION_SECONDS + READ_SLACK_SECONDS,
            # The default would send the guest's traffic through whatever HTTP_PROXY names.
            proxy=None,
        )

    def _start(self, connection: _Connection, line: str, deadline: Deadline) -> tuple[str, str]:
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
        connection: _Connection,
        deadline: Deadline,
        directory: str | None,
        environment: Mapping[str, str] | None,
    ) -> str:
        opened: str = self._request(
            connection,
            lambda protocol: protocol.open_shell(
                codepage=CODE_PAGE_UTF8,
                noprofile=True,
                working_directory=directory,
                env_vars=dict(environment) if environment else None,
            ),
            f"opening a shell at {self.where}",
            deadline,
            # A second shell would only be left over for its idle timeout.
            repeatable=True,
        )
        return opened

    def _run_command(self, connection: _Connection, shell: str, line: str, deadline: Deadline) -> str:
        program, _, arguments = line.partition(" ")
        started: str = self._request(
            connection,
            lambda protocol: protocol.run_command(
                shell, program, (arguments,) if arguments else (), console_mode_stdin=False
            ),
            f"starting '{_shorten(line)}'",
            deadline,
            repeatable=False,
        )
        return started

    def _follow(
        self,
        connection: _Connection,
        shell: str,
        command_id: str,
        line: str,
        stdin: bytes,
        deadline: Deadline,
        on_output: Callable[[str], None] | None,
        keep_output: bool,
    ) -> CommandResult:
        """Feed a started command and collect what it prints; when this does not end well, kill it."""
        ended = False
        try:
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
                connection.protocol.transport.close_session()
            # Also after its end: the guest keeps a command until it is signalled (MS-WSMV 3.1.4.14).
            self._quietly(connection, lambda protocol: protocol.cleanup_command(shell, command_id))

    def _feed(
        self, connection: _Connection, shell: str, command_id: str, stdin: bytes, deadline: Deadline
    ) -> None:
        """Send the input in pieces that fit an envelope; the last one closes the stream."""
        for start in range(0, len(stdin), STDIN_CHUNK_BYTES):
            end = start + STDIN_CHUNK_BYTES
            send = partial(_send, shell, command_id, stdin[start:end], end >= len(stdin))
            self._request(connection, send, "sending input to a command", deadline, repeatable=False)

    def _collect(
        self,
        connection: _Connection,
        shell: str,
        command_id: str,
        line: str,
        deadline: Deadline,
        on_output: Callable[[str], None] | None,
        keep_output: bool,
    ) -> CommandResult:
        started = time.monotonic()
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        output: list[str] = []
        errors = bytearray()
        while True:
            if deadline.passed:
                last = "".join(output).strip().rpartition("\n")[2]
                raise DeadlineExceededError(
                    f"'{_shorten(line)}' did not end within {time.monotonic() - started:.0f} s"
                    + (f"; its last output was '{_shorten(last)}'" if last else ""),
                    machine=self._machine,
                )
            try:
                received, failed, code, done = self._request(
                    connection,
                    lambda protocol: protocol.get_command_output_raw(shell, command_id),
                    f"waiting for '{_shorten(line)}'",
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
                    stderr=errors.decode("utf-8", errors="replace"),
                    seconds=time.monotonic() - started,
                )
                self._log.write(
                    f"> {line}\nexit code {shown_code(result.exit_code)} after {result.seconds:.3f} s"
                )
                if result.exit_code and result.output:
                    self._log.write(_shorten(result.output, 4000))
                return result

    def _quietly(self, connection: _Connection, operation: Callable[[Any], object]) -> None:
        """Clean up; a failure is logged but never covers what happened before."""
        try:
            self._request(
                connection, operation, "cleaning up", Deadline.after(seconds=CLEANUP_SECONDS), repeatable=True
            )
        except (DownlinkError, WinRMOperationTimeoutError) as error:
            self._log.write(f"clean-up: {error}")

    def _request(
        self,
        connection: _Connection,
        operation: Callable[[Any], _T],
        doing: str,
        deadline: Deadline,
        *,
        repeatable: bool,
    ) -> _T:
        """One exchange, resent once where it is safe.

        A request that broke the seal was never carried out: any may be resent in a new session. A connection that
        broke during the request leaves open whether it was: only `repeatable` ones are resent.
        """
        protocol = connection.protocol
        for attempt in (1, 2):
            self._set_timeouts(protocol, deadline)
            try:
                return operation(protocol)
            except WinRMOperationTimeoutError:
                raise
            except _ANY_FAILURE as error:
                again = is_broken_seal(error) or (
                    repeatable and (is_connection_error(error) or _lost_seal(error))
                )
                if is_connection_error(error) or is_broken_seal(error) or _lost_seal(error):
                    protocol.transport.close_session()
                if attempt == 2 or not again or deadline.passed:
                    if deadline.passed and is_connection_error(error):
                        raise DeadlineExceededError(
                            f"{self.where} did not answer in time while {doing}",
                            hint="does the machine run? ./inv vm.start",
                            machine=self._machine,
                        ) from error
                    raise translate(error, doing, machine=self._machine, where=self.where) from error
                self._log.write(f"connection renewed after '{error}' while {doing}")
        raise AssertionError("unreachable")

    @staticmethod
    def _set_timeouts(protocol: Any, deadline: Deadline) -> None:
        # pywinrm reads both attributes anew for every request.
        operation = max(1, min(OPERATION_SECONDS, math.ceil(min(deadline.remaining, OPERATION_SECONDS))))
        protocol.operation_timeout_sec = operation
        protocol.transport.read_timeout_sec = operation + READ_SLACK_SECONDS


def _lost_seal(error: BaseException) -> bool:
    """The answer could not be unsealed: the connection is unusable, the request may have been carried out."""
    return isinstance(error, SpnegoError)


_ANY_FAILURE: tuple[type[Exception], ...] = (
    WinRMError,
    WinRMTransportError,
    InvalidCredentialsError,
    SpnegoError,
    OSError,  # requests' exceptions are OSErrors, too
    *_UNEXPECTED,
)


def _send(shell: str, command_id: str, piece: bytes, end: bool, protocol: Any) -> None:
    protocol.send_command_input(shell, command_id, piece, end=end)


def shown_code(code: int) -> str:
    """An exit code as people read it: small ones in decimal, statuses and HRESULTs in hexadecimal."""
    return f"{code}" if code < 0x10000 else f"0x{code:08X}"


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
