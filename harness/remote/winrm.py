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
from dataclasses import dataclass, field
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
from harness.remote.addresses import CurrentAddress
from harness.remote.channels import CommandResult as CommandResult
from harness.remote.channels import shorten, shown_code
from harness.remote.faults import (
    ENVELOPE_TOO_LARGE,
    INPUT_CLOSED,
    ShellGoneError,
    fault_code,
    is_broken_seal,
    is_connection_error,
    translate,
    was_never_sent,
)
from harness.remote.pinning import pin
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

SMALLEST_CHUNK_BYTES = 4_000
"""With pieces below this the envelope itself is the larger part; a server that refuses them is set up wrongly."""

SEND_SECONDS = 60
"""How long the guest may take to accept input: its default MaxTimeoutms. A program that starts slowly reads late."""

IDLE_SECONDS = 60
"""http.sys drops a connection that was idle for about 120 s; what must not be sent twice goes over a new one earlier."""

_T = TypeVar("_T")
_UNEXPECTED = (ParseError, StopIteration, AssertionError, KeyError, ValueError)
"""What pywinrm raises when the answer is not the XML that it expects."""


@dataclass(slots=True, eq=False)
class _Connection:
    """One thread's session with the guest."""

    protocol: Any
    address: GuestAddress
    shell: str | None = None
    used: float = field(default_factory=time.monotonic)
    owner: threading.Thread = field(default_factory=threading.current_thread)


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
        self._connections: list[_Connection] = []
        self._chunk_bytes = STDIN_CHUNK_BYTES

    @property
    def where(self) -> str:
        """Host and port, as messages show them."""
        address = self._address.get()
        return f"{address.host}:{address.winrm_port}"

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
            protocol = connection.protocol
            if connection.shell is not None:
                self._set_timeouts(protocol, Deadline.after(seconds=CLEANUP_SECONDS))
                with suppress(*_ANY_FAILURE):
                    protocol.close_shell(connection.shell)
            protocol.transport.close_session()

    def _connection(self) -> _Connection:
        connection: _Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._inherited() or self._connect()
            self._local.connection = connection
            with self._lock:
                if connection not in self._connections:
                    self._connections.append(connection)
        return connection

    def _inherited(self) -> _Connection | None:
        """The session of a thread that has ended; its shell would otherwise count against the quota until `close`."""
        with self._lock:
            for connection in self._connections:
                if not connection.owner.is_alive():
                    connection.owner = threading.current_thread()
                    return connection
        return None

    def _connect(self) -> _Connection:
        address = self._address.get()
        return _Connection(self._protocol(address), address)

    def _protocol(self, address: GuestAddress) -> Any:
        self._log.protect(address.credentials.password)
        transport: Any = address.winrm_transport
        no_authorities: Any = None
        pinned = address.certificate if address.winrm_scheme == "https" else None
        protocol = Protocol(
            endpoint=f"{address.winrm_scheme}://{address.host}:{address.winrm_port}/wsman",
            transport=transport,
            username=address.credentials.username,
            password=address.credentials.password,
            # The default would take the authorities to trust from the environment.
            ca_trust_path=no_authorities,
            # Not ignored: a pinned certificate is compared as a whole, below.
            server_cert_validation="ignore" if pinned else "validate",
            operation_timeout_sec=OPERATION_SECONDS,
            read_timeout_sec=OPERATION_SECONDS + READ_SLACK_SECONDS,
            # The default would send the guest's traffic through whatever HTTP_PROXY names.
            proxy=None,
        )
        if pinned is not None:
            pin(protocol.transport, pinned, machine=self._machine)
        return protocol

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
            # A shell that was made after all would stay until its idle timeout, and count against the quota.
            repeatable=False,
        )
        return opened

    def _run_command(self, connection: _Connection, shell: str, line: str, deadline: Deadline) -> str:
        program, _, arguments = line.partition(" ")
        started: str = self._request(
            connection,
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
        connection: _Connection,
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
                connection.protocol.transport.close_session()
            # Also after its end: the guest keeps a command until it is signalled (MS-WSMV 3.1.4.14).
            self._quietly(connection, lambda protocol: protocol.cleanup_command(shell, command_id))

    def _feed(
        self, connection: _Connection, shell: str, command_id: str, stdin: bytes, deadline: Deadline
    ) -> None:
        """Send the input in pieces that fit an envelope; the last one closes the stream.

        A command that ends without reading all of its input is no failure here: its exit code and output tell more.
        """
        start = 0
        while True:
            end = start + self._chunk_bytes
            send = partial(_send, shell, command_id, stdin[start:end], end >= len(stdin))
            try:
                self._request(
                    connection,
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
        connection: _Connection,
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
                received, failed, code, done = self._request(
                    connection,
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
        longest_seconds: int = OPERATION_SECONDS,
    ) -> _T:
        """One exchange, resent once where it is safe.

        A request that broke the seal was never carried out, nor was one that found no connection: any of them may be
        resent in a new session. A connection that broke during the request leaves open whether it was: only
        `repeatable` ones (Receive, Signal, Delete) are resent.
        """
        if not repeatable and time.monotonic() - connection.used > IDLE_SECONDS:
            connection.protocol.transport.close_session()
        for attempt in (1, 2):
            self._set_timeouts(connection.protocol, deadline, longest_seconds)
            try:
                result = operation(connection.protocol)
            except WinRMOperationTimeoutError:
                connection.used = time.monotonic()
                raise
            except _ANY_FAILURE as error:
                lost = is_connection_error(error) or _lost_seal(error)
                where, moved = self.where, False
                if lost or is_broken_seal(error):
                    moved = self._renew(connection)
                again = is_broken_seal(error) or (repeatable and lost) or (moved and was_never_sent(error))
                if attempt == 2 or not again or deadline.passed:
                    if deadline.passed and is_connection_error(error):
                        raise DeadlineExceededError(
                            f"{where} did not answer in time while {doing}",
                            hint="does the machine run? ./inv vm.start",
                            machine=self._machine,
                        ) from error
                    raise translate(error, doing, machine=self._machine, where=where) from error
                self._log.write(f"connection renewed after '{error}' while {doing}")
            else:
                connection.used = time.monotonic()
                return result
        raise AssertionError("unreachable")

    def _renew(self, connection: _Connection) -> bool:
        """Give up the session; the next request makes another. True when the guest has another address by now."""
        connection.protocol.transport.close_session()
        address = self._address.refresh()
        if address == connection.address:
            return False
        connection.protocol, connection.address = self._protocol(address), address
        self._log.write(f"the guest answers at {self.where} now")
        return True

    @staticmethod
    def _set_timeouts(protocol: Any, deadline: Deadline, longest_seconds: int = OPERATION_SECONDS) -> None:
        # pywinrm reads both attributes anew for every request.
        operation = max(1, math.ceil(min(deadline.remaining, longest_seconds)))
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
