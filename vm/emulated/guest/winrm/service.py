"""What each WS-Management action does; knows envelopes and shells, nothing of HTTP."""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape

from vm.deadline import Deadline
from vm.emulated.guest.boot import WINDOWS_VERSION
from vm.emulated.guest.chaos.fault import Interruption
from vm.emulated.guest.chaos.plan import Chaos
from vm.emulated.guest.commands.session import DEFAULT_CODE_PAGE, Guest, codec_of
from vm.emulated.guest.drive import WindowsPathError
from vm.emulated.guest.streams import CommandTerminatedError, InputEndedError, Received
from vm.emulated.guest.winrm import faults, soap
from vm.emulated.guest.winrm.faults import FaultError
from vm.emulated.guest.winrm.shells import Command, Shell, ShellOptions, ShellTable
from vm.emulated.guest.winrm.soap import CMD_SHELL, CONFIGURATION, NAMESPACES, SHELL, TRANSFER, Request

log = logging.getLogger(__name__)

_MINIMUM_ENVELOPE_BYTES = 8192
_ENVELOPE_OVERHEAD_BYTES = 3072
_NOTICES: Mapping[int, str] = {
    faults.ERROR_WSMAN_QUOTA_MAX_SHELLS: "too many shells",
    faults.ERROR_WSMAN_QUOTA_MAX_COMMANDS_PER_SHELL_PPQ: "too many commands",
    faults.ERROR_WSMAN_QUOTA_MAX_OPERATIONS: "too many operations",
    faults.ERROR_WSMAN_ENVELOPE_TOO_LARGE: "envelope too large",
}
"""What faults with these codes are called in `Fault.noticed`."""
_STREAMS = ("stdin", "stdout", "stderr")
_KNOWN_OPTIONS = frozenset(
    {
        "WINRS_NOPROFILE",
        "WINRS_CODEPAGE",
        "WINRS_CONSOLEMODE_STDIN",
        "WINRS_SKIP_CMD_SHELL",
        "WSMAN_CMDSHELL_OPTION_KEEPALIVE",
    }
)


@dataclass(frozen=True, slots=True)
class Reply:
    """A response: HTTP status and envelope; `undelivered` and `delivered` are told how sending went."""

    status: int
    envelope: bytes
    delivered: Callable[[], None] | None = None
    undelivered: Callable[[], None] | None = None
    interruption: Interruption | None = None
    """The reply is not to be sent as it is."""


class Service:
    """The WS-Management service of one guest."""

    def __init__(self, guest: Guest, shells: ShellTable) -> None:
        self._guest = guest
        self._shells = shells
        self._actions: Mapping[str, Callable[[Request, str], Reply]] = {
            f"{TRANSFER}/Create": self._create,
            f"{TRANSFER}/Delete": self._delete,
            f"{TRANSFER}/Get": self._get,
            f"{SHELL}/Command": self._command,
            f"{SHELL}/Send": self._send,
            f"{SHELL}/Receive": self._receive,
            f"{SHELL}/Signal": self._signal,
        }

    @property
    def chaos(self) -> Chaos:
        """The faults of this guest."""
        return self._guest.chaos

    def now(self) -> float:
        """The guest's time."""
        return self._guest.clock.now()

    def handle(self, data: bytes, owner: str) -> Reply:
        """Answer one envelope of an authenticated client; faults are replies too."""
        relates_to = ""
        try:
            limit = self._guest.settings.quotas.max_envelope_bytes
            if len(data) > limit:
                raise faults.envelope_too_large(len(data), limit)
            request = soap.parse_request(data)
            relates_to = request.message_id
            if request.identify:
                self.chaos.before("Identify")
                return self.identify(authenticated=True)
            return self._dispatch(request, owner)
        except Interruption as interruption:
            return Reply(500, b"", interruption=interruption)
        except FaultError as fault:
            self.chaos.noticed(_NOTICES.get(fault.code, ""))
            log.debug("fault %d: %s", fault.code, fault.message)
            relates_to = fault.relates_to or relates_to
            return Reply(500, soap.fault_envelope(fault, relates_to, self._guest.settings.computer_name))

    def identify(self, *, authenticated: bool) -> Reply:
        """wsmid:Identify; the version is told to authenticated clients only."""
        version = WINDOWS_VERSION.rpartition(".")[0] if authenticated else "0.0.0"
        return Reply(200, soap.identify_envelope(version))

    def _dispatch(self, request: Request, owner: str) -> Reply:
        if request.max_envelope_bytes < _MINIMUM_ENVELOPE_BYTES:
            raise faults.envelope_too_small(request.max_envelope_bytes)
        action = self._actions.get(request.action)
        known = (CMD_SHELL, SHELL, CONFIGURATION) if request.action.endswith("/Get") else (CMD_SHELL,)
        if request.resource_uri not in known:
            raise faults.unknown_resource(request.resource_uri)
        if action is None:
            raise faults.action_not_supported(request.action)
        unknown = sorted(request.options.keys() - _KNOWN_OPTIONS)
        if unknown:
            raise faults.invalid_body(f"The option '{unknown[0]}' is unknown.")
        operation = request.action.rpartition("/")[2]
        self.chaos.before(operation)
        self._shells.begin_operation()
        try:
            reply = action(request, owner)
        finally:
            self._shells.end_operation()
        try:
            self.chaos.after(operation)
        except Interruption as interruption:
            return replace(reply, interruption=interruption)
        return reply

    def _create(self, request: Request, owner: str) -> Reply:
        element = request.body.find("rsp:Shell", NAMESPACES)
        if element is None:
            raise faults.invalid_body("The body of Create has no Shell.")
        quotas = self._guest.settings.quotas
        try:
            wanted = soap.child_text(element, "rsp:IdleTimeOut")
            idle = soap.parse_duration(wanted) if wanted else quotas.idle_timeout_seconds
        except ValueError as error:
            raise faults.invalid_body(str(error)) from error
        options = ShellOptions(
            environment={
                variable.get("Name", ""): variable.text or ""
                for variable in element.findall("rsp:Environment/rsp:Variable", NAMESPACES)
                if variable.get("Name")
            },
            directory=self._directory(soap.child_text(element, "rsp:WorkingDirectory")),
            code_page=self.chaos.code_page(_code_page(request.options.get("WINRS_CODEPAGE"))),
            input_streams=_stream_names(soap.child_text(element, "rsp:InputStreams") or "stdin"),
            output_streams=_stream_names(soap.child_text(element, "rsp:OutputStreams") or "stdout stderr"),
            idle_timeout_seconds=min(idle, quotas.idle_timeout_seconds),
        )
        shell = self._shells.create(owner, options, element.get("ShellId"))
        body = (
            f"<x:ResourceCreated><a:Address>http://127.0.0.1/wsman</a:Address><a:ReferenceParameters>"
            f"<w:ResourceURI>{CMD_SHELL}</w:ResourceURI><w:SelectorSet>"
            f'<w:Selector Name="ShellId">{shell.identifier}</w:Selector></w:SelectorSet></a:ReferenceParameters>'
            f"</x:ResourceCreated>{_shell_element(shell)}"
        )
        return _reply(f"{TRANSFER}/CreateResponse", request, body)

    def _delete(self, request: Request, owner: str) -> Reply:
        self._shells.delete(self._shells.get(request.selectors.get("ShellId")))
        return _reply(f"{TRANSFER}/DeleteResponse", request, "")

    def _get(self, request: Request, owner: str) -> Reply:
        if request.resource_uri == CONFIGURATION:
            return _reply(f"{TRANSFER}/GetResponse", request, self._configuration())
        shell = self._shells.get(request.selectors.get("ShellId"))
        return _reply(f"{TRANSFER}/GetResponse", request, _shell_element(shell))

    def _command(self, request: Request, owner: str) -> Reply:
        element = request.body.find("rsp:CommandLine", NAMESPACES)
        name = soap.child_text(request.body, "rsp:CommandLine/rsp:Command")
        if element is None or not name:
            raise faults.invalid_body("The body of Command has no command line.")
        arguments = [argument.text or "" for argument in element.findall("rsp:Arguments", NAMESPACES)]
        shell = self._shells.get(request.selectors.get("ShellId"))
        skip = _flag(request.options.get("WINRS_SKIP_CMD_SHELL"))
        shell.begin_operation()
        try:
            line = " ".join([name, *arguments])
            command = shell.run(line, skip_cmd_shell=skip, proposed=element.get("CommandId"))
        finally:
            shell.end_operation()
        body = (
            f"<rsp:CommandResponse><rsp:CommandId>{command.identifier}</rsp:CommandId></rsp:CommandResponse>"
        )
        return _reply(f"{SHELL}/CommandResponse", request, body)

    def _send(self, request: Request, owner: str) -> Reply:
        shell = self._shells.get(request.selectors.get("ShellId"))
        streams = request.body.findall("rsp:Send/rsp:Stream", NAMESPACES)
        if not streams:
            raise faults.invalid_body("The body of Send has no Stream.")
        deadline = self._deadline(request)
        shell.begin_operation()
        try:
            for stream in streams:
                if stream.get("Name") not in shell.options.input_streams:
                    raise faults.invalid_stream(f"The shell has no input stream '{stream.get('Name')}'.")
                try:
                    data = base64.b64decode("".join((stream.text or "").split()), validate=True)
                except binascii.Error as error:
                    raise faults.invalid_body("The content of the stream is not base64.") from error
                data = self.chaos.on_input(data)
                _feed(shell.command(stream.get("CommandId")), data, _flag(stream.get("End")), deadline)
        finally:
            shell.end_operation()
        return _reply(f"{SHELL}/SendResponse", request, "<rsp:SendResponse/>")

    def _receive(self, request: Request, owner: str) -> Reply:
        shell = self._shells.get(request.selectors.get("ShellId"))
        desired = request.body.find("rsp:Receive/rsp:DesiredStream", NAMESPACES)
        if desired is None or not desired.get("CommandId"):
            raise faults.invalid_body("The body of Receive names no stream of a command.")
        streams = _stream_names(desired.text or "stdout stderr")
        if not streams <= shell.options.output_streams:
            raise faults.invalid_body("The shell has no such output stream.")
        command = shell.command(desired.get("CommandId"))
        size = min(request.max_envelope_bytes, self._guest.settings.quotas.max_envelope_bytes)
        shell.begin_operation()
        try:
            received = command.output.receive(
                streams, self.chaos.receive_bytes(_budget(size)), self._deadline(request)
            )
        except CommandTerminatedError as error:
            raise faults.operation_aborted() from error
        finally:
            shell.end_operation()
        if received is None:
            raise faults.operation_timed_out()
        reply = _reply(f"{SHELL}/ReceiveResponse", request, self._received(command, received, streams))
        return Reply(
            reply.status,
            reply.envelope,
            delivered=command.delivered if received.exit_code is not None else None,
            undelivered=lambda: command.output.put_back(received),
        )

    def _received(self, command: Command, received: Received, streams: frozenset[str]) -> str:
        code = received.exit_code
        return _received_element(
            command, received, streams, None if code is None else self.chaos.exit_code(code)
        )

    def _signal(self, request: Request, owner: str) -> Reply:
        shell = self._shells.get(request.selectors.get("ShellId"))
        element = request.body.find("rsp:Signal", NAMESPACES)
        code = (soap.child_text(request.body, "rsp:Signal/rsp:Code") or "").strip()
        if element is None or not code:
            raise faults.invalid_body("The body of Signal has no code.")
        command = shell.command(element.get("CommandId"))
        shell.begin_operation()
        try:
            match code.removeprefix(f"{SHELL}/signal/").casefold():
                case "terminate":
                    shell.remove(command)
                case "ctrl_c" | "ctrl_break":
                    command.interrupt()
                case _:
                    raise faults.invalid_body(f"The signal '{code}' is unknown.")
        finally:
            shell.end_operation()
        return _reply(f"{SHELL}/SignalResponse", request, "<rsp:SignalResponse/>")

    def _deadline(self, request: Request) -> Deadline:
        longest = self._guest.settings.quotas.max_timeout_seconds
        wanted = request.timeout_seconds
        return Deadline.after(seconds=longest if wanted is None else min(wanted, longest))

    def _directory(self, wanted: str | None) -> str:
        """The shell's directory: the one asked for, else the user's, else the root if that is gone."""
        drive = self._guest.drive
        for candidate in [wanted] if wanted else [f"C:\\Users\\{self._guest.settings.username}", "C:\\"]:
            try:
                host = drive.existing(candidate)
            except WindowsPathError as error:
                log.debug("working directory: %s", error)
                continue
            if host.is_dir():
                return drive.windows_path(host)
        raise FaultError(faults.HRESULT_DIRECTORY, "w:InternalError", "The directory name is invalid.")

    def _configuration(self) -> str:
        quotas = self._guest.settings.quotas
        return (
            f"<cfg:Config><cfg:MaxEnvelopeSizekb>{quotas.max_envelope_bytes // 1024}</cfg:MaxEnvelopeSizekb>"
            f"<cfg:MaxTimeoutms>{int(quotas.max_timeout_seconds * 1000)}</cfg:MaxTimeoutms>"
            "<cfg:MaxBatchItems>32000</cfg:MaxBatchItems><cfg:Service>"
            f"<cfg:MaxConcurrentOperationsPerUser>{quotas.max_operations_per_user}"
            "</cfg:MaxConcurrentOperationsPerUser></cfg:Service><cfg:Winrs>"
            f"<cfg:IdleTimeout>{int(quotas.idle_timeout_seconds * 1000)}</cfg:IdleTimeout>"
            f"<cfg:MaxProcessesPerShell>{quotas.max_processes_per_shell}</cfg:MaxProcessesPerShell>"
            "<cfg:MaxMemoryPerShellMB>1024</cfg:MaxMemoryPerShellMB>"
            f"<cfg:MaxShellsPerUser>{quotas.max_shells_per_user}</cfg:MaxShellsPerUser></cfg:Winrs></cfg:Config>"
        )


def _reply(action: str, request: Request, body: str) -> Reply:
    return Reply(200, soap.envelope(action, request.message_id, body))


def _feed(command: Command, data: bytes, end: bool, deadline: Deadline) -> None:
    if command.done.is_set():
        raise faults.pipe_ended()
    try:
        if data and not command.input.feed(data, deadline):
            raise faults.operation_timed_out()
        if command.input.ended:
            raise InputEndedError
    except InputEndedError as error:
        raise faults.invalid_stream("The input stream of the command has ended.") from error
    if end:
        command.input.end()


def _shell_element(shell: Shell) -> str:
    options = shell.options
    return (
        f"<rsp:Shell><rsp:ShellId>{shell.identifier}</rsp:ShellId><rsp:ResourceUri>{CMD_SHELL}</rsp:ResourceUri>"
        f"<rsp:Owner>{escape(shell.owner)}</rsp:Owner><rsp:ClientIP>127.0.0.1</rsp:ClientIP>"
        f"<rsp:IdleTimeOut>{soap.format_duration(options.idle_timeout_seconds)}</rsp:IdleTimeOut>"
        f"<rsp:InputStreams>{' '.join(sorted(options.input_streams))}</rsp:InputStreams>"
        f"<rsp:OutputStreams>{' '.join(sorted(options.output_streams, reverse=True))}</rsp:OutputStreams>"
        f"<rsp:ShellRunTime>P0DT0H0M{int(time.monotonic() - shell.created)}S</rsp:ShellRunTime>"
        f"<rsp:ShellInactivity>P0DT0H0M{int(shell.idle_seconds)}S</rsp:ShellInactivity></rsp:Shell>"
    )


def _received_element(
    command: Command, received: Received, streams: frozenset[str], exit_code: int | None
) -> str:
    identifier = command.identifier
    parts = [
        f'<rsp:Stream Name="{name}" CommandId="{identifier}">{base64.b64encode(data).decode("ascii")}</rsp:Stream>'
        for name, data in received.chunks
    ]
    if exit_code is None:
        state = f'<rsp:CommandState CommandId="{identifier}" State="{SHELL}/CommandState/Running"/>'
    else:
        parts += [
            f'<rsp:Stream Name="{name}" CommandId="{identifier}" End="true"></rsp:Stream>'
            for name in sorted(streams, reverse=True)
        ]
        state = (
            f'<rsp:CommandState CommandId="{identifier}" State="{SHELL}/CommandState/Done">'
            f"<rsp:ExitCode>{exit_code}</rsp:ExitCode></rsp:CommandState>"
        )
    return f"<rsp:ReceiveResponse>{''.join(parts)}{state}</rsp:ReceiveResponse>"


def _budget(envelope_bytes: int) -> int:
    """Raw bytes whose base64, with the envelope around it, fits."""
    return (envelope_bytes - _ENVELOPE_OVERHEAD_BYTES) * 3 // 4


def _stream_names(text: str) -> frozenset[str]:
    names = frozenset(text.split())
    if not names <= frozenset(_STREAMS):
        raise faults.invalid_body(f"'{text}' names an unknown stream.")
    return names


def _code_page(text: str | None) -> int:
    if text is None:
        return DEFAULT_CODE_PAGE
    try:
        number = int(text)
        codec_of(number)
    except (ValueError, LookupError) as error:
        raise faults.invalid_options(f"WINRS_CODEPAGE '{text}' is not a code page of this system.") from error
    return number


def _flag(text: str | None) -> bool:
    return (text or "").strip().casefold() in ("true", "1")
