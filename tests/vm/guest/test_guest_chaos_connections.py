"""Faults of connections, seen by real clients: each fires when it should, and only then."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any

import paramiko
import pytest
import requests
from cryptography import x509
from winrm.exceptions import InvalidCredentialsError, WinRMTransportError

from tests.vm.guest.chaos_reports import firings, occasions

Broken = (requests.exceptions.ConnectionError, ConnectionError)


def test_idle_connections_are_dropped_and_a_sealed_session_never_recovers(
    own_machine: Any, wait_until: Callable[..., None]
) -> None:
    machine = own_machine(chaos="drop-idle:100ms")
    sealed = machine.protocol("ntlm")
    shell = sealed.open_shell()
    assert firings(machine, "drop-idle") == 0
    wait_until(lambda: firings(machine, "drop-idle") > 0, "the drop of an idle connection")
    with pytest.raises(WinRMTransportError) as error:
        sealed.run_command(shell, "ver")
    assert error.value.code == 400
    sealed.transport.close_session()
    assert sealed.run_command(shell, "ver")


def test_every_request_takes_longer(own_machine: Any) -> None:
    machine = own_machine(chaos="latency:60ms")
    protocol = machine.protocol()
    began = time.monotonic()
    protocol.close_shell(protocol.open_shell())
    assert time.monotonic() - began >= 0.12
    assert firings(machine, "latency") == 2


def test_a_broken_seal_is_answered_by_400_and_was_not_executed(own_machine: Any) -> None:
    machine = own_machine(chaos="bad-seal@2")
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    with pytest.raises(WinRMTransportError) as error:
        protocol.run_command(shell, "echo x>C:\\ran.txt")
    assert error.value.code == 400
    assert firings(machine, "bad-seal") == 1
    protocol.transport.close_session()
    assert protocol.run_command(shell, "ver")
    assert not (machine.c / "ran.txt").exists()
    plain = own_machine(chaos="bad-seal@*").protocol("basic")
    assert plain.open_shell()


def test_a_logon_is_forgotten_in_between(own_machine: Any) -> None:
    machine = own_machine(chaos="http-401@2")
    protocol = machine.protocol("ntlm")
    protocol.open_shell()
    with pytest.raises((InvalidCredentialsError, WinRMTransportError)):
        protocol.open_shell()
    assert firings(machine, "http-401") == 1
    protocol.transport.close_session()
    assert protocol.open_shell()


@pytest.mark.parametrize(("fault", "status"), [("http-500", 500), ("http-503", 503)])
def test_a_status_without_a_body(own_machine: Any, fault: str, status: int) -> None:
    machine = own_machine(chaos=f"{fault}@2")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    with pytest.raises(WinRMTransportError) as error:
        protocol.run_command(shell, "echo x>C:\\ran.txt")
    assert error.value.code == status
    assert not (machine.c / "ran.txt").exists()
    assert protocol.run_command(shell, "ver")
    assert (firings(machine, fault), occasions(machine, fault)) == (1, 3)


@pytest.mark.parametrize(
    ("fault", "runs"),
    [("reset-command-before", 0), ("reset-command-after", 1)],
)
def test_a_reset_during_command_leaves_open_whether_it_ran(
    own_machine: Any, wait_until: Callable[..., None], fault: str, runs: int
) -> None:
    machine = own_machine(chaos=fault)
    protocol = machine.protocol()
    shell = protocol.open_shell()
    with pytest.raises(Broken):
        protocol.run_command(shell, "echo x>>C:\\ran.txt")
    assert firings(machine, fault) == 1
    ran = machine.c / "ran.txt"
    if runs:
        wait_until(ran.exists, "the command's file")
    protocol.run_command(shell, "echo x>>C:\\ran.txt")
    wait_until(lambda: ran.exists() and len(ran.read_text().split()) == runs + 1, "both commands")
    assert (firings(machine, fault), occasions(machine, fault)) == (1, 2)


@pytest.mark.parametrize(
    ("fault", "received"), [("reset-send-before", b"two"), ("reset-send-after", b"onetwo")]
)
def test_a_reset_during_send_leaves_open_whether_the_data_arrived(
    own_machine: Any, fault: str, received: bytes
) -> None:
    machine = own_machine(chaos=fault)
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, 'findstr "^"', console_mode_stdin=False)
    with pytest.raises(Broken):
        protocol.send_command_input(shell, command, b"one")
    protocol.send_command_input(shell, command, b"two", end=True)
    assert protocol.get_command_output(shell, command)[0].strip() == received
    assert firings(machine, fault) == 1


def test_a_reset_after_create_leaks_a_shell(own_machine: Any) -> None:
    machine = own_machine(chaos="reset-create-after,max-shells:2")
    protocol = machine.protocol()
    with pytest.raises(Broken):
        protocol.open_shell()
    protocol.open_shell()
    with pytest.raises(Exception, match="exceeded the maximum number of shells"):
        protocol.open_shell()
    assert (firings(machine, "reset-create-after"), firings(machine, "max-shells")) == (1, 1)


def test_a_reset_after_signal_has_ended_the_command(own_machine: Any) -> None:
    machine = own_machine(chaos="reset-signal-after")
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "ping -n 100 127.0.0.1")
    with pytest.raises(Broken):
        protocol.cleanup_command(shell, command)
    with pytest.raises(Exception, match=r"selectors|identifier"):
        protocol.get_command_output_raw(shell, command)
    assert firings(machine, "reset-signal-after") == 1


@pytest.mark.parametrize("transport", ["basic", "ntlm"])
def test_a_reset_within_the_answer_to_a_receive_loses_nothing(own_machine: Any, transport: str) -> None:
    machine = own_machine(chaos="reset-receive")
    protocol = machine.protocol(transport)
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "echo all of it")
    with pytest.raises((*Broken, requests.exceptions.ChunkedEncodingError, WinRMTransportError)):
        protocol.get_command_output_raw(shell, command)
    protocol.transport.close_session()
    assert protocol.get_command_output(shell, command)[0] == b"all of it\r\n"
    assert firings(machine, "reset-receive") == 1


def test_the_right_password_is_refused_everywhere(own_machine: Any) -> None:
    machine = own_machine(chaos="password-refused")
    for transport in ("basic", "ntlm"):
        with pytest.raises(InvalidCredentialsError):
            machine.protocol(transport).open_shell()
    with pytest.raises(paramiko.AuthenticationException):
        machine.sftp()
    assert firings(machine, "password-refused") == 3


def test_the_first_logon_after_a_boot_is_refused(own_machine: Any) -> None:
    machine = own_machine(chaos="logon-refused-early")
    with pytest.raises(InvalidCredentialsError):
        machine.protocol("ntlm").open_shell()
    assert machine.protocol("ntlm").open_shell()
    assert firings(machine, "logon-refused-early") == 1


def test_a_wrong_password_is_no_occasion_for_a_refusal(own_machine: Any) -> None:
    machine = own_machine(chaos="password-refused@*")
    with pytest.raises(InvalidCredentialsError):
        machine.protocol("basic", password="wrong").open_shell()
    assert occasions(machine, "password-refused") == 0


def test_basic_is_refused_over_plain_http_and_ntlm_is_not(own_machine: Any) -> None:
    machine = own_machine(chaos="basic-refused")
    assert machine.protocol("ntlm").open_shell()
    assert firings(machine, "basic-refused") == 0
    with pytest.raises(InvalidCredentialsError):
        machine.protocol("basic").open_shell()
    assert firings(machine, "basic-refused") == 1


def test_ntlm_is_refused_and_basic_is_not(own_machine: Any) -> None:
    machine = own_machine(chaos="ntlm-refused")
    assert machine.protocol("basic").open_shell()
    assert firings(machine, "ntlm-refused") == 0
    with pytest.raises(PermissionError, match="NTLM challenge token"):
        machine.protocol("ntlm").open_shell()
    assert firings(machine, "ntlm-refused") == 1


def test_connections_to_winrm_are_closed_at_once_and_those_to_ssh_are_not(own_machine: Any) -> None:
    machine = own_machine(chaos="winrm-refused")
    with pytest.raises(Broken):
        machine.protocol().open_shell()
    assert firings(machine, "winrm-refused") >= 1
    machine.sftp().close()


def test_connections_to_ssh_are_closed_at_once_and_those_to_winrm_are_not(own_machine: Any) -> None:
    machine = own_machine(chaos="sftp-refused")
    with pytest.raises((paramiko.SSHException, EOFError, OSError)):
        machine.sftp()
    assert firings(machine, "sftp-refused") >= 1
    assert machine.protocol().open_shell()


def test_ssh_presents_another_key_than_the_pinned_one(own_machine: Any) -> None:
    machine = own_machine(chaos="host-key-changed")
    with pytest.raises(paramiko.SSHException, match="Bad host key"):
        machine.sftp()
    assert firings(machine, "host-key-changed") == 1


def test_the_host_key_changes_at_the_second_boot(own_machine: Any) -> None:
    machine = own_machine(chaos="host-key-changed@2")
    machine.sftp().close()
    machine.face.restart()
    with pytest.raises(paramiko.SSHException, match="Bad host key"):
        machine.sftp()


def _presented(machine: Any) -> x509.Certificate:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", machine.face.winrm_port), 5) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            der = tls.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def _ssl(machine: Any) -> Any:
    url = f"https://127.0.0.1:{machine.face.winrm_port}/wsman"
    return type(machine.protocol())(
        url,
        transport="ssl",
        username=machine.settings.username,
        password=machine.settings.password,
        ca_trust_path=str(machine.face.certificate),
        proxy=None,
    )


def test_https_works_with_the_pinned_certificate(own_machine: Any) -> None:
    machine = own_machine(https=True)
    assert _ssl(machine).open_shell()
    assert machine.face.certificate.stat().st_size > 100
    assert (machine.face.certificate.with_suffix(".key").stat().st_mode & 0o777) == 0o600


def test_a_connection_over_tls_is_reset_within_an_answer(own_machine: Any) -> None:
    machine = own_machine(https=True, chaos="reset-receive,http-503@4")
    protocol = _ssl(machine)
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "echo all of it& winrm get winrm/config")
    with pytest.raises((*Broken, requests.exceptions.ChunkedEncodingError)):
        protocol.get_command_output_raw(shell, command)
    with pytest.raises(WinRMTransportError):
        protocol.get_command_output_raw(shell, command)
    said = protocol.get_command_output(shell, command)[0]
    assert said.startswith(b"all of it\r\n") and b"AllowUnencrypted = false" in said
    assert (firings(machine, "reset-receive"), firings(machine, "http-503")) == (1, 1)


def test_the_certificate_has_expired(own_machine: Any) -> None:
    machine = own_machine(chaos="certificate-expired")
    assert _presented(machine).not_valid_after_utc < datetime.datetime.now(datetime.UTC)
    with pytest.raises(requests.exceptions.SSLError, match="expired"):
        _ssl(machine).open_shell()
    assert firings(machine, "certificate-expired") == 1


def test_the_certificate_is_not_the_pinned_one(own_machine: Any) -> None:
    machine = own_machine(chaos="certificate-changed")
    assert _presented(machine) != x509.load_pem_x509_certificate(machine.face.certificate.read_bytes())
    with pytest.raises(requests.exceptions.SSLError, match="verify failed"):
        _ssl(machine).open_shell()
    assert firings(machine, "certificate-changed") == 1
