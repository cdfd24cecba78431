"""WinRM as its clients see it: pywinrm and pypsrp against the guest, and raw envelopes for what they never send."""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import socket
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pypsrp.shell import Process, SignalCode, WinRS
from pypsrp.wsman import WSMan
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)
from winrm.protocol import Protocol

from vm.emulated.guest.settings import Quotas
from vm.emulated.guest.winrm.soap import (
    CMD_SHELL,
    NAMESPACES,
    SHELL,
    TRANSFER,
    format_duration,
    parse_duration,
)

UNKNOWN = "00000000-0000-0000-0000-000000000000"
SLEEP = 'python -c "import time; time.sleep(600)"'


@pytest.fixture(params=["ntlm", "basic"])
def protocol(machine: Any, request: pytest.FixtureRequest) -> Any:
    return machine.protocol(request.param)


@pytest.fixture
def shell(protocol: Any) -> Iterator[str]:
    identifier = protocol.open_shell(codepage=65001)
    yield identifier
    protocol.close_shell(identifier)


class Raw:
    """Sends envelopes that no client library would."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def __call__(
        self,
        action: str,
        body: str = "",
        *,
        shell: str | None = None,
        uri: str = CMD_SHELL,
        header: str = "",
        timeout: str = "PT5S",
        size: int = 153600,
    ) -> tuple[int, ElementTree.Element]:
        return self.send(
            self.envelope(action, body, shell=shell, uri=uri, header=header, timeout=timeout, size=size)
        )

    def envelope(
        self,
        action: str,
        body: str = "",
        *,
        shell: str | None,
        uri: str = CMD_SHELL,
        header: str = "",
        timeout: str = "PT5S",
        size: int = 153600,
    ) -> str:
        prefixes = " ".join(f'xmlns:{prefix}="{name}"' for prefix, name in NAMESPACES.items())
        selectors = (
            f'<w:SelectorSet><w:Selector Name="ShellId">{shell}</w:Selector></w:SelectorSet>' if shell else ""
        )
        return (
            f"<s:Envelope {prefixes}><s:Header><a:Action>{action}</a:Action><a:MessageID>uuid:1</a:MessageID>"
            f"<w:ResourceURI>{uri}</w:ResourceURI><w:OperationTimeout>{timeout}</w:OperationTimeout>"
            f"<w:MaxEnvelopeSize>{size}</w:MaxEnvelopeSize>{selectors}{header}</s:Header><s:Body>{body}</s:Body></s:Envelope>"
        )

    @property
    def authorization(self) -> str:
        settings = self._machine.settings
        return "Basic " + base64.b64encode(f"{settings.username}:{settings.password}".encode()).decode()

    def send(self, text: str) -> tuple[int, ElementTree.Element]:
        status, _, body = self.post(text.encode())
        return status, ElementTree.fromstring(body)

    def post(self, data: bytes, **headers: str) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._machine.face.winrm_port, timeout=20)
        try:
            values = {"Authorization": self.authorization, "Content-Type": "application/soap+xml"}
            values |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("POST", "/wsman", data, {k: v for k, v in values.items() if v})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()


@pytest.fixture
def raw(machine: Any) -> Raw:
    return Raw(machine)


def fault_of(root: ElementTree.Element) -> tuple[int, str]:
    """Code of the WSManFault and the subcode."""
    detail = root.find(".//{http://schemas.microsoft.com/wbem/wsman/1/wsmanfault}WSManFault")
    assert detail is not None
    return int(detail.attrib["Code"]), root.findtext(
        "s:Body/s:Fault/s:Code/s:Subcode/s:Value", "", NAMESPACES
    )


# The life of a command


def test_a_command_runs_over_every_transport(protocol: Any, shell: str, run_command: Any) -> None:
    assert run_command(protocol, shell, "echo hello") == (b"hello\r\n", b"", 0)
    out, err, code = run_command(protocol, shell, "nosuch")
    assert (out, code) == (b"", 1)
    assert b"'nosuch' is not recognized" in err


def test_arguments_are_joined_by_blanks(protocol: Any, shell: str) -> None:
    command = protocol.run_command(shell, "echo", ["a", "b c", '"d"'])
    assert protocol.get_command_output(shell, command)[0] == b'a b c "d"\r\n'


def test_a_megabyte_comes_back_whole(protocol: Any, shell: str, run_command: Any) -> None:
    line = 'python -c "import sys; sys.stdout.buffer.write(bytes(range(256)) * 5120)"'
    out, err, code = run_command(protocol, shell, line)
    assert (code, err) == (0, b"")
    assert out == bytes(range(256)) * 5120


def test_more_than_the_buffers_hold_flows_both_ways(machine: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(
        shell, 'python -c "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"'
    )
    data = os.urandom(300_000)

    def send() -> None:
        sender = machine.protocol()
        for number in range(20):
            sender.send_command_input(shell, command, data, end=number == 19)

    thread = threading.Thread(target=send)
    thread.start()
    assert protocol.get_command_output(shell, command) == (data * 20, b"", 0)
    thread.join()
    protocol.close_shell(shell)


def test_input_reaches_a_command_and_ends(protocol: Any, shell: str) -> None:
    data = os.urandom(300_000)
    line = 'python -c "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())"'
    command = protocol.run_command(shell, line)
    for start in range(0, len(data), 100_000):
        protocol.send_command_input(shell, command, data[start : start + 100_000], end=start == 200_000)
    assert protocol.get_command_output(shell, command)[0].decode().strip() == hashlib.sha256(data).hexdigest()


def test_both_output_streams_arrive_while_the_command_runs(protocol: Any, shell: str) -> None:
    line = (
        "python -u -c \"import sys; sys.stdout.write('out\\n'); sys.stdin.readline(); sys.stderr.write('err\\n'); "
        'sys.stdin.readline(); sys.exit(5)"'
    )
    command = protocol.run_command(shell, line)
    assert protocol.get_command_output_raw(shell, command) == (b"out\n", b"", -1, False)
    protocol.send_command_input(shell, command, b"\n")
    assert protocol.get_command_output_raw(shell, command) == (b"", b"err\n", -1, False)
    protocol.send_command_input(shell, command, b"\n", end=True)
    assert protocol.get_command_output_raw(shell, command) == (b"", b"", 5, True)


def test_the_exit_code_is_unsigned(protocol: Any, shell: str, run_command: Any) -> None:
    assert run_command(protocol, shell, "exit -2147024894")[2] == 0x80070002


def test_a_silent_command_times_out_and_can_be_asked_again(machine: Any, run_command: Any) -> None:
    protocol = machine.protocol(operation_timeout_sec=1, read_timeout_sec=5)
    shell = protocol.open_shell()
    command = protocol.run_command(shell, 'python -c "input(); print(1)"')
    with pytest.raises(WinRMOperationTimeoutError):
        protocol.get_command_output_raw(shell, command)
    protocol.send_command_input(shell, command, b"\n")
    assert protocol.get_command_output(shell, command)[0].strip() == b"1"
    protocol.close_shell(shell)


# What a shell gives its commands


def test_working_directory_and_environment_are_those_of_the_shell(machine: Any, run_command: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell(working_directory="C:\\Windows\\System32", env_vars={"DOWNLINK_RUN": "r1"})
    assert run_command(protocol, shell, "cd & echo %DOWNLINK_RUN% %USERNAME%")[0] == (
        b"C:\\Windows\\System32\r\nr1 lab\r\n"
    )
    run_command(protocol, shell, "cd \\ & set DOWNLINK_RUN=changed")
    assert run_command(protocol, shell, "echo %DOWNLINK_RUN%")[0] == b"r1\r\n"
    protocol.close_shell(shell)
    home = machine.c / "Users/lab"
    home.rename(home.with_name("away"))
    shell = protocol.open_shell()
    home.with_name("away").rename(home)
    assert run_command(protocol, shell, "cd")[0] == b"C:\\\r\n"
    with pytest.raises(WSManFaultError) as caught:
        protocol.open_shell(working_directory="C:\\nowhere")
    assert caught.value.wsman_fault_code == 2147942667


@pytest.mark.parametrize(("code_page", "encoding"), [(437, "cp437"), (65001, "utf-8"), (1252, "cp1252")])
def test_text_is_encoded_in_the_code_page_of_the_shell(
    machine: Any, run_command: Any, code_page: int, encoding: str
) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell(codepage=code_page)
    assert run_command(protocol, shell, "echo Grüße")[0].decode(encoding) == "Grüße\r\n"
    protocol.close_shell(shell)


def test_a_code_page_that_does_not_exist_is_refused(machine: Any) -> None:
    with pytest.raises(WSManFaultError) as caught:
        machine.protocol().open_shell(codepage=12345)
    assert caught.value.wsman_fault_code == 2150858809


def test_without_cmd_only_programs_run(machine: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "hostname", skip_cmd_shell=True)
    assert protocol.get_command_output(shell, command)[0] == b"DOWNLINK-VM\r\n"
    for line in ("echo x", "nosuch.exe"):
        with pytest.raises(WSManFaultError) as caught:
            protocol.run_command(shell, line, skip_cmd_shell=True)
        assert caught.value.wsman_fault_code == 2147942402
    command = protocol.run_command(shell, "whoami", ["&", "echo", "x"], skip_cmd_shell=True)
    assert b"Invalid argument/option" in protocol.get_command_output(shell, command)[1]
    protocol.close_shell(shell)


# Ends


@pytest.mark.parametrize("name", ["terminate", "ctrl_c", "ctrl_break"])
def test_a_signal_ends_the_command_and_its_processes(
    machine: Any, raw: Raw, wait_until: Any, name: str
) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    wait_until(lambda: machine.face.processes.running(), "the process")
    body = f'<rsp:Signal CommandId="{command}"><rsp:Code>{SHELL}/signal/{name}</rsp:Code></rsp:Signal>'
    assert raw(f"{SHELL}/Signal", body, shell=shell)[0] == 200
    wait_until(lambda: not machine.face.processes.running(), "the end of the process")
    if name == "terminate":
        with pytest.raises(WSManFaultError) as caught:
            protocol.get_command_output_raw(shell, command)
        assert caught.value.wsman_fault_code == 2150858843
    else:
        assert protocol.get_command_output(shell, command) == (b"", b"", 0xC000013A)
    protocol.close_shell(shell)


def test_a_signal_reaches_commands_without_processes(machine: Any, run_command: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    began = time.monotonic()
    for line in ("ping -n 600 127.0.0.1", "findstr x", "reg delete HKLM\\SOFTWARE\\Classes"):
        protocol.cleanup_command(shell, protocol.run_command(shell, line))
    protocol.close_shell(shell)
    assert time.monotonic() - began < 5


def test_deleting_a_shell_ends_everything_in_it(machine: Any, wait_until: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    protocol.run_command(shell, SLEEP)
    protocol.run_command(shell, SLEEP)
    wait_until(lambda: len(machine.face.processes.running()) == 2, "the processes")
    protocol.close_shell(shell)
    assert machine.face.processes.running() == []
    with pytest.raises(WSManFaultError) as caught:
        protocol.run_command(shell, "ver")
    assert caught.value.wsman_fault_code == 2150858843
    assert "shell was not found" in caught.value.response


def test_a_receive_that_waits_is_aborted_when_its_command_goes(machine: Any, wait_until: Any) -> None:
    protocol, other = machine.protocol(), machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    codes: list[int | None] = []

    def receive() -> None:
        try:
            other.get_command_output_raw(shell, command)
        except WSManFaultError as error:
            codes.append(error.wsman_fault_code)

    thread = threading.Thread(target=receive)
    thread.start()
    wait_until(lambda: machine.face.processes.running(), "the process")
    protocol.cleanup_command(shell, command)
    thread.join(5)
    assert codes and codes[0] in (995, 2150858843)
    protocol.close_shell(shell)


def test_a_shell_that_is_idle_too_long_is_deleted(machine: Any, wait_until: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell(idle_timeout="PT0.2S")
    protocol.run_command(shell, SLEEP)

    def gone() -> bool:
        try:
            # A wrong command is answered after the shell was looked up, and counts as no use of it.
            protocol.get_command_output_raw(shell, UNKNOWN)
        except WSManFaultError as error:
            return "shell was not found" in error.response
        return False

    wait_until(gone, "the idle timeout")
    wait_until(lambda: not machine.face.processes.running(), "the end of its process")


def test_a_command_whose_output_nobody_takes_can_be_ended(machine: Any, wait_until: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    protocol.run_command(shell, "python -c \"while True: print('x' * 65536)\"")
    protocol.run_command(shell, "findstr /v nothing < C:\\Python\\pyvenv.cfg")
    wait_until(lambda: machine.face.processes.running(), "the process")
    protocol.close_shell(shell)
    assert machine.face.processes.running() == []


def test_output_for_a_client_that_went_away_waits_for_its_next_connection(machine: Any, raw: Raw) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, 'python -c "print(input())"')
    body = f'<rsp:Receive><rsp:DesiredStream CommandId="{command}">stdout stderr</rsp:DesiredStream></rsp:Receive>'
    data = raw.envelope(f"{SHELL}/Receive", body, shell=shell, timeout="PT60S").encode()
    with socket.create_connection(("127.0.0.1", machine.face.winrm_port)) as connection:
        connection.sendall(
            f"POST /wsman HTTP/1.1\r\nHost: x\r\nAuthorization: {raw.authorization}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
    protocol.send_command_input(shell, command, b"kept\n", end=True)
    assert protocol.get_command_output(shell, command)[0].strip() == b"kept"
    protocol.close_shell(shell)


# Faults


def test_an_unknown_command_id_is_told_from_an_unknown_shell(machine: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    with pytest.raises(WSManFaultError) as caught:
        protocol.get_command_output_raw(shell, UNKNOWN)
    assert caught.value.wsman_fault_code == 2150858843
    assert "command identifier that does not exist" in caught.value.response
    with pytest.raises(WSManFaultError) as caught:
        protocol.get_command_output_raw(UNKNOWN, UNKNOWN)
    assert "shell was not found" in caught.value.response
    protocol.close_shell(shell)


def test_input_after_the_end_or_for_another_stream_is_refused(machine: Any, raw: Raw) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    protocol.send_command_input(shell, command, b"x", end=True)
    with pytest.raises(WSManFaultError) as caught:
        protocol.send_command_input(shell, command, b"x")
    assert caught.value.wsman_fault_code == 2150859147
    with pytest.raises(WSManFaultError) as caught:
        protocol.send_command_input(shell, command, b"", end=True)
    assert caught.value.wsman_fault_code == 2150859147
    body = f'<rsp:Send><rsp:Stream Name="stdout" CommandId="{command}">eA==</rsp:Stream></rsp:Send>'
    assert fault_of(raw(f"{SHELL}/Send", body, shell=shell)[1])[0] == 2150859147
    body = f'<rsp:Send><rsp:Stream Name="stdin" CommandId="{command}">!</rsp:Stream></rsp:Send>'
    assert fault_of(raw(f"{SHELL}/Send", body, shell=shell)[1])[0] == 2150858817
    protocol.close_shell(shell)


@pytest.mark.parametrize(
    ("action", "body", "keywords", "code", "subcode"),
    [
        (f"{TRANSFER}/Put", "", {}, 2150858753, "a:ActionNotSupported"),
        (f"{TRANSFER}/Create", "", {}, 2150858817, "w:SchemaValidationError"),
        (f"{TRANSFER}/Create", "", {"uri": "http://nowhere"}, 2150858811, "a:DestinationUnreachable"),
        (f"{TRANSFER}/Create", "", {"size": 4096}, 2150858805, "w:EncodingLimit"),
        (f"{TRANSFER}/Create", "", {"timeout": "soon"}, 2150858817, "w:SchemaValidationError"),
        (
            f"{TRANSFER}/Create",
            "<rsp:Shell/>",
            {"header": '<w:OptionSet><w:Option Name="WINRS_MAGIC">1</w:Option></w:OptionSet>'},
            2150858817,
            "w:SchemaValidationError",
        ),
        (f"{TRANSFER}/Create", '<rsp:Shell ShellId="x"/>', {}, 2150858798, "w:InvalidParameter"),
        (f"{TRANSFER}/Delete", "", {"shell": UNKNOWN}, 2150858843, "w:InvalidSelectors"),
        (f"{SHELL}/Command", "", {"shell": UNKNOWN}, 2150858817, "w:SchemaValidationError"),
        (f"{SHELL}/Receive", "", {"shell": UNKNOWN}, 2150858843, "w:InvalidSelectors"),
    ],
)
def test_a_wrong_request_is_answered_by_its_fault(
    raw: Raw, action: str, body: str, keywords: dict[str, Any], code: int, subcode: str
) -> None:
    status, root = raw(action, body, **keywords)
    assert status == 500
    assert fault_of(root) == (code, subcode)
    assert root.findtext("s:Header/a:RelatesTo", None, NAMESPACES) == "uuid:1"


def test_what_is_no_envelope_is_a_fault_and_entities_are_never_expanded(raw: Raw) -> None:
    entity = '<!DOCTYPE x [<!ENTITY a "aaaa">]>'
    bomb = entity + raw.envelope("&a;", shell=None)
    for text in ("garbage", "<x/>", bomb):
        status, root = raw.send(text)
        assert (status, fault_of(root)[0]) == (500, 2150858817)


def test_a_request_above_the_envelope_limit_is_refused(machine: Any, raw: Raw) -> None:
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    with pytest.raises(WSManFaultError) as caught:
        protocol.send_command_input(shell, command, b"x" * 400_000)
    assert caught.value.wsman_fault_code == 2150858790
    protocol.send_command_input(shell, command, b"x" * 350_000)
    protocol.close_shell(shell)
    assert raw.post(b"", Content_Length=str(9 << 20))[0] == 413


def test_answers_stay_within_the_clients_envelope_size(machine: Any, raw: Raw) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "python -c \"print('x' * 100000)\"")
    got = b""
    while True:
        body = f'<rsp:Receive><rsp:DesiredStream CommandId="{command}">stdout stderr</rsp:DesiredStream></rsp:Receive>'
        _, root = raw(f"{SHELL}/Receive", body, shell=shell, size=16384)
        assert len(ElementTree.tostring(root)) <= 16384
        got += b"".join(base64.b64decode(item.text or "") for item in root.iter(f"{{{SHELL}}}Stream"))
        state = root.find(".//rsp:CommandState", NAMESPACES)
        assert state is not None
        if state.attrib["State"].endswith("Done"):
            break
    assert got == b"x" * 100000 + b"\n"
    ends = [item.get("Name") for item in root.iter(f"{{{SHELL}}}Stream") if item.get("End") == "true"]
    assert ends == ["stdout", "stderr"]
    protocol.close_shell(shell)


def test_quotas_are_enforced(own_machine: Callable[..., Any]) -> None:
    machine = own_machine(
        quotas=Quotas(max_shells_per_user=2, max_processes_per_shell=1, max_operations_per_user=2)
    )
    protocol = machine.protocol()
    first, second = protocol.open_shell(), protocol.open_shell()
    with pytest.raises(WSManFaultError) as caught:
        protocol.open_shell()
    assert caught.value.wsman_fault_code == 2150859173
    command = protocol.run_command(first, SLEEP)
    with pytest.raises(WSManFaultError) as caught:
        protocol.run_command(first, "ver")
    assert caught.value.wsman_fault_code == 2150859241
    protocol.cleanup_command(first, command)
    protocol.run_command(first, "ver")
    protocol.close_shell(second)
    protocol.close_shell(protocol.open_shell())


def test_too_many_operations_at_once_are_refused(own_machine: Callable[..., Any], wait_until: Any) -> None:
    machine = own_machine(quotas=Quotas(max_operations_per_user=1))
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    blocked = machine.protocol(operation_timeout_sec=3)

    ends: list[str] = []

    def receive() -> None:
        while not ends:
            try:
                blocked.get_command_output_raw(shell, command)
            except WSManFaultError as error:
                # The other client may have had the only place for a moment.
                if error.wsman_fault_code != 2150859174:
                    ends.append(str(error.wsman_fault_code))
            except OSError as error:
                ends.append(type(error).__name__)

    thread = threading.Thread(target=receive)
    thread.start()

    def refused() -> bool:
        try:
            protocol.run_command(shell, "ver")
        except WSManFaultError as error:
            return bool(error.wsman_fault_code == 2150859174)
        return False

    wait_until(refused, "the quota")
    machine.face.stop()
    thread.join(5)
    assert not thread.is_alive()


# Who may


def test_identify_needs_no_logon_when_it_says_so(machine: Any, raw: Raw) -> None:
    body = (
        b'<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" '
        b'xmlns:i="http://schemas.dmtf.org/wbem/wsman/identity/1/wsmanidentity.xsd">'
        b"<s:Header/><s:Body><i:Identify/></s:Body></s:Envelope>"
    )
    status, headers, answer = raw.post(body, Authorization="", WSMANIDENTIFY="unauthenticated")
    assert status == 200
    assert b"OS: 0.0.0 SP: 0.0 Stack: 3.0" in answer
    assert headers["Server"] == "Microsoft-HTTPAPI/2.0"
    assert b"OS: 10.0.26100" in raw.post(body)[2]
    status, headers, answer = raw.post(body, Authorization="")
    assert (status, answer) == (401, b"")
    assert headers.get_all("WWW-Authenticate") == ["Negotiate", 'Basic realm="WSMAN"']


@pytest.mark.parametrize("transport", ["ntlm", "basic"])
def test_a_wrong_password_is_refused(machine: Any, transport: str) -> None:
    with pytest.raises(InvalidCredentialsError):
        machine.protocol(transport, password="wrong").open_shell()


@pytest.mark.parametrize(
    "header", ["Bearer x", "Basic !!!", "Basic eA==", "Negotiate AAAA", "NTLM TlRMTVNTUAA=", "Basic"]
)
def test_a_logon_that_makes_no_sense_is_refused(raw: Raw, header: str) -> None:
    assert raw.post(b"", Authorization=header)[0] == 401


def test_ntlm_without_sealing_is_refused(machine: Any) -> None:
    protocol = machine.protocol("ntlm", message_encryption="never")
    with pytest.raises(WinRMTransportError) as caught:
        protocol.open_shell()
    assert caught.value.code == 500


def test_a_broken_seal_is_answered_by_400_and_the_end_of_the_connection(
    machine: Any, run_command: Any
) -> None:
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    whole = protocol.transport.encryption.prepare_encrypted_request

    def broken(session: Any, endpoint: Any, message: Any) -> Any:
        request = whole(session, endpoint, message)
        body = bytearray(request.body)
        body[-40] ^= 1
        request.body = bytes(body)
        return request

    protocol.transport.encryption.prepare_encrypted_request = broken
    with pytest.raises(WinRMTransportError) as caught:
        protocol.run_command(shell, "ver")
    assert caught.value.code == 400
    # The seal of the connection is out of step now; only a new connection helps, and the shell is still there.
    protocol.transport.close_session()
    assert run_command(protocol, shell, "echo again")[0] == b"again\r\n"
    protocol.close_shell(shell)


def test_an_idle_connection_is_dropped_and_the_shell_survives(
    own_machine: Callable[..., Any], run_command: Any
) -> None:
    machine = own_machine(idle_drop_seconds=0.2)
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    connection = socket.create_connection(("127.0.0.1", machine.face.winrm_port))
    connection.settimeout(5)
    assert connection.recv(1) == b""
    connection.close()
    with pytest.raises(WinRMTransportError) as caught:
        protocol.run_command(shell, "ver")
    assert caught.value.code == 400
    protocol.transport.close_session()
    assert run_command(protocol, shell, "echo again")[0] == b"again\r\n"


def test_other_paths_and_verbs_are_refused(machine: Any) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", machine.face.winrm_port, timeout=5)
    for verb, path, status in (("POST", "/", 404), ("GET", "/wsman", 405)):
        connection.request(verb, path, b"" if verb == "POST" else None, {"Content-Length": "0"})
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


# Together


def test_many_clients_work_at_once(machine: Any, run_command: Any) -> None:
    results: dict[int, tuple[bytes, bytes, int]] = {}

    def work(number: int) -> None:
        protocol = machine.protocol("ntlm" if number % 2 else "basic")
        shell = protocol.open_shell()
        for _ in range(3):
            results[number] = run_command(protocol, shell, f"echo {number}&& findstr x", b"x\r\n" * number)
        protocol.close_shell(shell)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: r[0] for n, r in results.items()} == {n: b"%d\r\n" % n + b"x\r\n" * n for n in range(8)}


def test_two_receives_of_one_command_get_every_byte_once(machine: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "python -c \"print('0123456789' * 60000)\"")
    parts: list[tuple[bytes, bytes, int]] = []

    def receive() -> None:
        parts.append(machine.protocol().get_command_output(shell, command))

    threads = [threading.Thread(target=receive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [part[2] for part in parts] == [0, 0]
    assert sum(len(part[0]) for part in parts) == 600_001
    protocol.close_shell(shell)


def test_commands_of_one_shell_run_side_by_side(machine: Any) -> None:
    protocol = machine.protocol()
    shell = protocol.open_shell()
    first = protocol.run_command(shell, 'python -c "print(input())"')
    second = protocol.run_command(shell, "echo second")
    assert protocol.get_command_output(shell, second)[0] == b"second\r\n"
    protocol.send_command_input(shell, first, b"first\n")
    assert protocol.get_command_output(shell, first)[0].split() == [b"first"]
    protocol.close_shell(shell)


# The second client


def pypsrp_shell(machine: Any, auth: str) -> WinRS:
    wsman = WSMan(
        "127.0.0.1",
        port=machine.face.winrm_port,
        username=machine.settings.username,
        password=machine.settings.password,
        ssl=False,
        auth=auth,
        encryption="never" if auth == "basic" else "always",
        no_proxy=True,
        operation_timeout=5,
        read_timeout=10,
    )
    return WinRS(wsman, codepage=65001, working_directory="C:\\Windows\\Temp")


def pypsrp_run(shell: WinRS, line: str, stdin: bytes | None = None) -> Process:
    process = Process(shell, line)
    process.begin_invoke()
    if stdin is not None:
        for start in range(0, len(stdin), 90_000):
            process.send(stdin[start : start + 90_000], end=start + 90_000 >= len(stdin))
    process.end_invoke()
    process.signal(SignalCode.TERMINATE)
    return process


@pytest.mark.parametrize("auth", ["negotiate", "ntlm", "basic"])
def test_pypsrp_runs_a_command_and_moves_a_file_through_stdin(machine: Any, auth: str) -> None:
    data = os.urandom(200_000)
    file = machine.c / "Windows/Temp" / f"{auth}.bin"
    with pypsrp_shell(machine, auth) as shell:
        assert pypsrp_run(shell, "hostname").stdout == b"DOWNLINK-VM\r\n"
        store = f"import sys; open('{auth}.bin', 'wb').write(sys.stdin.buffer.read())"
        assert pypsrp_run(shell, f'python -c "{store}"', data).rc == 0
        assert file.read_bytes() == data
        # The way that needs nothing but inbox tools: text through findstr, then certutil.
        text = base64.encodebytes(data)
        assert pypsrp_run(shell, 'findstr "^" > t.b64 && certutil -f -decode t.b64 t.bin', text).rc == 0
        assert (machine.c / "Windows/Temp/t.bin").read_bytes() == data
        # And back.
        assert pypsrp_run(shell, "type t.bin").stdout == data


def test_durations_read_and_write_as_xml_schema_says() -> None:
    assert [parse_duration(text) for text in ("PT20S", "PT1M0.5S", "P1DT1H", "PT2H")] == [
        20,
        60.5,
        90000,
        7200,
    ]
    assert format_duration(7200) == "PT7200.000S"
    for text in ("", "P", "20", "PT", "-PT1S", "P1Y"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(text)


def test_the_service_states_its_limits_and_its_shells(machine: Any, raw: Raw) -> None:
    from vm.emulated.guest.winrm.soap import CONFIGURATION

    _, root = raw(f"{TRANSFER}/Get", uri=CONFIGURATION)
    assert root.findtext(".//cfg:MaxEnvelopeSizekb", None, NAMESPACES) == "500"
    protocol: Protocol = machine.protocol()
    shell = protocol.open_shell(idle_timeout="PT60S")
    _, root = raw(f"{TRANSFER}/Get", shell=shell, uri=SHELL)
    assert root.findtext(".//rsp:ShellId", None, NAMESPACES) == shell
    assert root.findtext(".//rsp:IdleTimeOut", None, NAMESPACES) == "PT60.000S"
    protocol.close_shell(shell)
