"""The face as a whole: start, restart, stop, and what of it can be seen on the host."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from winrm.exceptions import InvalidCredentialsError, WSManFaultError

from vm.emulated.guest import boot
from vm.emulated.guest.settings import TlsIdentity
from vm.errors import MachineError

SLEEP = 'python -c "import time; time.sleep(600)"'


def test_shutdown_r_is_a_real_restart(
    own_machine: Callable[..., Any], run_command: Any, wait_until: Any
) -> None:
    machine = own_machine()
    ports = machine.face.winrm_port, machine.face.ssh_port
    key = machine.face.host_key
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    sleeper = protocol.open_shell()
    protocol.run_command(sleeper, SLEEP)
    wait_until(lambda: machine.face.processes.running(), "the process")
    sftp = machine.sftp()
    before = machine.computer.boot_id
    query = f'reg query "{boot.BOOT_COUNTER_KEY}" /v {boot.BOOT_COUNTER_VALUE}'
    first = run_command(protocol, shell, query)[0]
    command = protocol.run_command(shell, "shutdown /r /t 0")
    # The end of the command is delivered before the machine goes down.
    assert protocol.get_command_output(shell, command) == (b"", b"", 0)
    assert machine.rebooted.wait(5)
    wait_until(lambda: not sftp.get_channel().get_transport().is_active(), "the end of the SSH connection")

    def answers() -> Any:
        client = machine.protocol("ntlm")
        try:
            return client, client.open_shell()
        except OSError:
            return None

    wait_until(lambda: answers() is not None, "the guest")
    client, new = answers()
    assert machine.computer.boot_id != before
    assert run_command(client, new, query)[0] != first
    assert machine.face.processes.running() == []
    assert [what for what, _ in machine.processes] == ["started", "ended"]
    for old in (shell, sleeper):
        with pytest.raises(WSManFaultError) as caught:
            client.run_command(old, "ver")
        assert caught.value.wsman_fault_code == 2150858843
    assert (machine.face.winrm_port, machine.face.ssh_port) == ports
    assert machine.face.host_key == key
    machine.sftp().get_channel().get_transport().close()


def test_a_restart_does_not_wait_for_a_client_that_went_away(own_machine: Callable[..., Any]) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    protocol.run_command(protocol.open_shell(), "shutdown /r /t 0")
    assert machine.rebooted.wait(5)


def test_while_the_guest_boots_connections_are_closed_at_once(own_machine: Callable[..., Any]) -> None:
    machine = own_machine()
    seen: list[bytes] = []
    new_boot = machine._new_boot

    def boot_slowly() -> None:
        for port in (machine.face.winrm_port, machine.face.ssh_port):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                seen.append(connection.recv(1))
        new_boot()

    machine.face._on_new_boot = boot_slowly
    machine.face.restart()
    assert seen == [b"", b""]
    protocol = machine.protocol()
    protocol.close_shell(protocol.open_shell())


def test_a_command_that_hangs_in_the_kernel_holds_nobody_up(
    own_machine: Callable[..., Any], run_command: Any, wait_until: Any
) -> None:
    machine = own_machine()
    hung = machine.computer
    hung.hang = threading.Event()
    machine.face._on_new_boot = lambda: (machine._new_boot(), hung.hang.set())
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "fltmc unload Downlink")
    wait_until(lambda: hung.calls, "the unload")
    assert run_command(protocol, shell, "echo alive")[0] == b"alive\r\n"
    began = time.monotonic()
    protocol.cleanup_command(shell, command)
    assert time.monotonic() - began < 4
    protocol.run_command(shell, "fltmc unload Downlink")
    wait_until(lambda: len(hung.calls) == 2, "the second unload")
    began = time.monotonic()
    machine.face.restart()
    assert time.monotonic() - began < 4
    client = machine.protocol("ntlm")
    assert run_command(client, client.open_shell(), "echo alive")[0] == b"alive\r\n"
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("guest command")],
        "the end of the commands that hung",
    )


def test_testsigning_and_deleted_services_settle_at_the_restart(
    own_machine: Callable[..., Any], run_command: Any
) -> None:
    machine = own_machine(testsigning=False)
    protocol = machine.protocol()
    shell = protocol.open_shell()
    line = "sc create X type= filesys binPath= C:\\x.sys && sc start X && sc delete X && bcdedit /set testsigning on"
    assert run_command(protocol, shell, line)[2] == 0
    assert not boot.testsigning_in_effect(machine.registry)
    machine.face.restart()
    assert boot.testsigning_in_effect(machine.registry)
    shell = machine.protocol().open_shell()
    assert run_command(machine.protocol(), shell, "sc query X")[2] == 1060


def test_shutdown_s_stops_the_guest(own_machine: Callable[..., Any], wait_until: Any) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    port = machine.face.winrm_port
    shell = protocol.open_shell()
    command = protocol.run_command(shell, "shutdown /s /t 0")
    protocol.get_command_output(shell, command)
    wait_until(lambda: machine.face.winrm_port == 0, "the shutdown")

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return True
        return False

    wait_until(refused, "the end of the port")


def test_stop_ends_everything_and_is_idempotent(own_machine: Callable[..., Any], wait_until: Any) -> None:
    machine = own_machine()
    protocol = machine.protocol()
    shell = protocol.open_shell()
    command = protocol.run_command(shell, SLEEP)
    waiting = machine.protocol(operation_timeout_sec=60, read_timeout_sec=70)
    failures: list[BaseException] = []

    def receive() -> None:
        try:
            waiting.get_command_output_raw(shell, command)
        except (OSError, WSManFaultError) as error:
            failures.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    wait_until(lambda: machine.face.processes.running(), "the process")
    pid = machine.face.processes.running()[0].process_id
    machine.face.stop()
    machine.face.stop()
    thread.join(5)
    assert failures
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert os.environ.get("NTLM_USER_FILE") != str(machine.settings.state_directory / "ntlm-accounts")
    assert not list(machine.settings.state_directory.glob("ntlm*"))


def test_it_listens_on_the_loopback_only(machine: Any) -> None:
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("the host has no /proc/net/tcp")
    ports = {machine.face.winrm_port, machine.face.ssh_port}
    found = set()
    for table in (listening, Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                assert address == "0100007F"
                found.add(int(port, 16))
    assert found == ports


def test_the_password_is_in_one_file_for_the_owner_only(machine: Any) -> None:
    directory = machine.settings.state_directory
    holders = [
        file
        for file in directory.rglob("*")
        if file.is_file()
        and "Python" not in file.parts
        and machine.settings.password.encode() in file.read_bytes()
    ]
    assert [file.name for file in holders] == ["ntlm-accounts"]
    assert stat.S_IMODE(holders[0].stat().st_mode) == 0o600
    assert machine.settings.password not in repr(machine.settings)


def test_the_password_reaches_no_log_and_no_guest_process(
    machine: Any, run_command: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="vm")
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell()
    out = run_command(protocol, shell, 'set & python -c "import os; print(dict(os.environ))"')[0]
    protocol.close_shell(shell)
    with pytest.raises(InvalidCredentialsError):
        machine.protocol("basic", password="wrong-" + machine.settings.password).open_shell()
    assert machine.settings.password.encode() not in out
    assert caplog.text
    assert machine.settings.password not in caplog.text


@pytest.mark.parametrize("name", ["winrm_port", "ssh_port"])
def test_a_port_in_use_is_one_sentence_and_leaves_nothing_running(
    own_machine: Callable[..., Any], name: str
) -> None:
    before = os.environ.get("NTLM_USER_FILE")
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            MachineError, match=f"port {port} of the emulated machine cannot be opened"
        ) as caught:
            own_machine(**{name: port})
    assert caught.value.hint
    assert os.environ.get("NTLM_USER_FILE") == before
    assert {thread.name for thread in set(threading.enumerate()) - threads if thread.is_alive()} == set()


@pytest.mark.parametrize("password", ["a:b", "a\nb"])
def test_a_password_that_the_account_file_cannot_hold_is_refused(
    own_machine: Callable[..., Any], password: str
) -> None:
    with pytest.raises(MachineError, match="colon or a line break") as caught:
        own_machine(password=password)
    assert password not in caught.value.render()


def test_a_directory_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, own_machine: Callable[..., Any]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(MachineError, match="could not be prepared") as caught:
        own_machine(state_directory=blocked / "x")
    assert caught.value.hint


def test_https_works_with_a_pinned_certificate(
    own_machine: Callable[..., Any], run_command: Any, tmp_path: Path, wait_until: Any
) -> None:
    machine = own_machine(tls=_self_signed(tmp_path))
    for transport, options in (("ssl", {}), ("ntlm", {"message_encryption": "never"})):
        protocol = machine.protocol(transport, ca_trust_path=str(tmp_path / "guest.pem"), **options)
        shell = protocol.open_shell()
        assert run_command(protocol, shell, "hostname")[0] == b"DOWNLINK-VM\r\n"
    context = ssl.create_default_context(cafile=str(tmp_path / "guest.pem"))
    with socket.create_connection(("127.0.0.1", machine.face.winrm_port), timeout=5) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            connection.sendall(b"GET /wsman HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 405"
            machine.face.restart()
            # Cut off, with or without TLS' own farewell.
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while connection.recv(4096):
                    continue
    with pytest.raises(WSManFaultError) as caught:
        machine.protocol("ssl", ca_trust_path=str(tmp_path / "guest.pem")).run_command(shell, "ver")
    assert caught.value.wsman_fault_code == 2150858843


def test_a_deployment_runs_through(own_machine: Callable[..., Any], run_command: Any) -> None:
    machine = own_machine()
    sftp = machine.sftp()
    for directory in ("/C:/Downlink", "/C:/Downlink/package", "/C:/Downlink/suites", "/C:/Downlink/results"):
        sftp.mkdir(directory)
    with sftp.open("/C:/Downlink/package/downlink.sys", "wb") as file:
        file.write(b"MZ")
    with sftp.open("/C:/Downlink/suites/test_one.py", "wb") as file:
        file.write(b"import os\ndef test_one(): assert os.environ['DOWNLINK_EMULATED']\n")
    protocol = machine.protocol("ntlm")
    shell = protocol.open_shell(working_directory="C:\\Downlink", codepage=65001)
    service = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\Downlink"
    began = time.monotonic()
    for line in (
        "bcdedit /enum {current} | findstr /i testsigning",
        "copy /y package\\downlink.sys C:\\Windows\\System32\\drivers\\downlink.sys",
        'sc create Downlink type= filesys start= demand binPath= "C:\\Windows\\System32\\drivers\\downlink.sys"',
        f'reg add "{service}\\Instances" /v DefaultInstance /t REG_SZ /d "Downlink Instance" /f',
        f'reg add "{service}\\Instances\\Downlink Instance" /v Altitude /t REG_SZ /d 370030 /f',
        "fltmc load Downlink",
        "fltmc instances -f Downlink | findstr D:",
        "python -m pytest -q -p no:cacheprovider suites --junitxml=C:\\Downlink\\results\\junit.xml",
        "fltmc unload Downlink",
        "sc delete Downlink",
    ):
        out, err, code = run_command(protocol, shell, line)
        assert code == 0, (line, out, err)
    assert time.monotonic() - began < 5
    assert 'tests="1"' in sftp.open("/C:/Downlink/results/junit.xml").read().decode()
    transport = sftp.get_channel().get_transport()
    assert isinstance(transport, paramiko.Transport)
    transport.close()


def _self_signed(directory: Path) -> TlsIdentity:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guest")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    identity = TlsIdentity(directory / "guest.pem", directory / "guest.key")
    identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return identity
