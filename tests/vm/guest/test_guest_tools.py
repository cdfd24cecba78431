"""The inbox tools of a deployment: texts, exit codes and effects."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import threading
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from vm.emulated.guest import boot, certificates
from vm.emulated.guest.power import PowerAction
from vm.emulated.guest.status import hresult_of_ntstatus, message_of_hresult, win32_of_ntstatus
from vm.emulated.registry import REG_EXPAND_SZ, SERVICES

CREATE = (
    "sc create Downlink type= filesys start= demand binPath= C:\\Windows\\System32\\drivers\\downlink.sys"
)


@pytest.fixture
def certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Downlink Test")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 0x1234ABCD, now, now + datetime.timedelta(days=9)
    )
    return builder.sign(key, hashes.SHA256())


def test_sc_create_writes_the_service_key(prompt: Any) -> None:
    result = prompt(
        CREATE + ' group= "FSFilter Activity Monitor" depend= FltMgr DisplayName= "Downlink filter"'
    )
    assert (result.code, result.out) == (0, "[SC] CreateService SUCCESS\r\n")
    registry, key = prompt.guest.registry, f"{SERVICES}\\Downlink"
    assert registry.get_dword(key, "Type") == 2
    assert registry.get_dword(key, "Start") == 3
    assert registry.get_dword(key, "ErrorControl") == 1
    assert registry.get_value(key, "ImagePath").type == REG_EXPAND_SZ
    assert registry.get_string(key, "ImagePath") == "\\??\\C:\\Windows\\System32\\drivers\\downlink.sys"
    assert registry.get_multi_string(key, "DependOnService") == ["FltMgr"]
    shown = prompt("sc qc downlink").out
    assert "BINARY_PATH_NAME   : \\??\\C:\\Windows\\System32\\drivers\\downlink.sys" in shown
    assert "SERVICE_NAME: Downlink" in shown
    assert "START_TYPE         : 3    DEMAND_START" in shown


def test_sc_refuses_with_the_codes_of_the_service_controller(prompt: Any) -> None:
    assert prompt("sc query Downlink").code == 1060
    assert "FAILED 1060" in prompt("sc delete Downlink").out
    assert prompt("sc start Downlink").code == 1060
    prompt(CREATE)
    assert prompt(CREATE).code == 1073
    assert prompt("sc stop Downlink").code == 1062
    assert prompt("sc start Downlink").code == 0
    again = prompt("sc start Downlink")
    assert again.code == 1056
    assert "An instance of the service is already running." in again.out
    assert prompt("sc frobnicate x").code == 1639
    assert prompt("sc create Bad type= filesys binPath= x start= never").code == 1639
    assert prompt("sc query Bad").code == 1060


def test_a_service_that_is_deleted_while_it_runs_goes_when_it_stops(prompt: Any) -> None:
    prompt(CREATE + "& sc start Downlink")
    assert prompt("sc delete Downlink").code == 0
    assert prompt(CREATE).code == 1072
    assert prompt("sc delete Downlink").code == 1072
    assert "STATE              : 4  RUNNING" in prompt("sc query Downlink").out
    assert prompt("sc stop Downlink").code == 0
    assert prompt("sc query Downlink").code == 1060
    assert prompt(CREATE).code == 0


def test_sc_and_fltmc_reach_the_kernel_by_different_doors(prompt: Any) -> None:
    prompt(CREATE)
    prompt("sc start Downlink& sc stop Downlink& fltmc load Downlink& fltmc unload Downlink")
    assert prompt.computer.calls == [(verb, "Downlink") for verb in ("load", "stop", "load", "unload")]


def test_sc_reports_the_win32_code_of_a_failed_load(prompt: Any) -> None:
    prompt(CREATE)
    prompt.computer.refuse["load"] = 0xC0000428
    result = prompt("sc start Downlink")
    assert result.code == 577
    assert "Windows cannot verify the digital signature" in result.out


def test_fltmc_says_nothing_on_success_and_hresult_with_text_on_failure(prompt: Any) -> None:
    result = prompt("fltmc load Downlink")
    assert result.code == 1
    assert result.lines == [
        "Load failed with error: 0x80070002",
        "The system cannot find the file specified.",
    ]
    prompt(CREATE)
    done = prompt("fltmc load Downlink")
    assert (done.code, done.out, done.err) == (0, "", "")
    prompt.computer.refuse["unload"] = 0xC01C0010
    assert prompt("fltmc unload Downlink").lines == [
        "Unload failed with error: 0x801f0010",
        "Do not detach the filter from the volume at this time.",
    ]


def test_a_machine_that_stops_under_a_command_is_an_error_of_the_command(prompt: Any) -> None:
    prompt.computer.hang = threading.Event()
    prompt.computer.hang.set()
    result = prompt("fltmc unload Downlink")
    assert (result.code, result.err) == (1115, "A system shutdown is in progress.\r\n")


def test_fltmc_lists_filters_instances_and_volumes(prompt: Any) -> None:
    prompt(CREATE + "& fltmc load Downlink")
    header, _, row = prompt("fltmc").lines
    assert header.split() == ["Filter", "Name", "Num", "Instances", "Altitude", "Frame"]
    assert row.split() == ["Downlink", "2", "370030", "0"]
    assert row.index("370030") >= header.index("Altitude") - 1
    assert [line.split()[1] for line in prompt("fltmc instances").lines[2:]] == ["D:", "E:"]
    assert len(prompt("fltmc instances -f nobody").lines) == 2
    for volume in ("e:", "E:\\", "\\Device\\HarddiskVolume3"):
        assert [line.split()[1] for line in prompt(f"fltmc instances -v {volume}").lines[2:]] == ["E:"]
    assert [line.split() for line in prompt("fltmc volumes").lines[2:]] == [
        ["D:", "\\Device\\HarddiskVolume2", "NTFS"],
        ["E:", "\\Device\\HarddiskVolume3", "NTFS"],
    ]


def test_fltmc_attach_and_detach_hand_over_their_arguments(prompt: Any) -> None:
    assert prompt('fltmc attach Downlink E: -i "My Instance" -a 370031').code == 0
    assert prompt('fltmc detach Downlink E: "My Instance"').code == 0
    assert prompt.computer.calls == [
        ("attach", "Downlink", "E:", "My Instance", "370031"),
        ("detach", "Downlink", "E:", "My Instance"),
    ]
    prompt.computer.refuse["attach"] = 0xC01C0011
    assert prompt("fltmc attach Downlink E:").lines[0] == "Attach failed with error: 0x801f0011"
    assert prompt("fltmc attach Downlink").code == 1
    assert prompt("fltmc frobnicate").lines[0].startswith("Invalid command")


@pytest.mark.parametrize(
    ("status", "hresult", "win32"),
    [
        (0, 0, 0),
        (0xC0000034, 0x80070002, 2),
        (0x00000102, 0x80070102, 258),
        (0xC01C0013, 0x801F0013, 317),
        (0x801C0001, 0x8007007A, 317),
        (0xC000010E, 0x80070420, 1056),
        (0xC0000428, 0x80070241, 577),
        (0xC0210000, 0x80004005, 317),
        (0xC000009A, 0x800705AA, 1450),
    ],
)
def test_statuses_map_as_fltlib_and_win32_do(status: int, hresult: int, win32: int) -> None:
    assert hresult_of_ntstatus(status) == hresult
    assert win32_of_ntstatus(status) == win32
    assert message_of_hresult(hresult)


def test_certutil_hashes_files(prompt: Any) -> None:
    data = bytes(range(256)) * 5000
    prompt.path("f.bin").write_bytes(data)
    result = prompt("certutil -hashfile f.bin SHA256")
    assert result.lines == [
        "SHA256 hash of f.bin:",
        hashlib.sha256(data).hexdigest(),
        "CertUtil: -hashfile command completed successfully.",
    ]
    assert prompt("certutil -hashfile f.bin").lines[1] == hashlib.sha1(data).hexdigest()
    two = prompt("certutil -hashfile f.bin MD5 & certutil -hashfile f.bin SHA512").lines
    assert two[1] == hashlib.md5(data).hexdigest()
    assert two[4] == hashlib.sha512(data).hexdigest()


def test_certutil_fails_with_the_hresult_as_exit_code(prompt: Any) -> None:
    missing = prompt("certutil -hashfile gone.bin SHA256")
    assert missing.code == 0x80070002
    assert missing.lines == [
        "CertUtil: -hashfile command FAILED: 0x80070002 (WIN32: 2 ERROR_FILE_NOT_FOUND)",
        "CertUtil: The system cannot find the file specified.",
    ]
    prompt.path("x").write_bytes(b"x")
    assert prompt("certutil -hashfile x SHA3").code == 0x80090008
    assert prompt("certutil -addstore Root x").code == 0x8009310B
    assert prompt("certutil -delstore Root nobody").code == 0x80090011


@pytest.mark.parametrize("encoding", [Encoding.DER, Encoding.PEM])
def test_certutil_keeps_certificates_in_stores(
    prompt: Any, certificate: x509.Certificate, encoding: Encoding
) -> None:
    prompt.path("test.cer").write_bytes(certificate.public_bytes(encoding))
    added = prompt("certutil -f -addstore Root test.cer")
    assert added.code == 0
    assert added.lines[0] == 'Root "Trusted Root Certification Authorities"'
    assert 'Certificate "Downlink Test" added to store.' in added.lines
    assert (
        'Certificate "Downlink Test" already in store.' in prompt("certutil -addstore -f ROOT test.cer").lines
    )
    assert certificates.certificates(prompt.guest.registry, "Root") == [certificate]
    assert certificates.certificates(prompt.guest.registry, "TrustedPublisher") == []
    thumbprint = certificates.thumbprint(certificate)
    assert f"Cert Hash(sha1): {thumbprint.lower()}" in prompt("certutil -store Root").lines
    assert prompt(f"certutil -delstore Root {thumbprint}").code == 0
    assert certificates.certificates(prompt.guest.registry, "Root") == []


def test_certutil_decodes_and_encodes_base64(prompt: Any) -> None:
    data = bytes(range(256)) * 3
    prompt.path("f.b64").write_bytes(base64.encodebytes(data))
    assert prompt("certutil -decode f.b64 f.bin").code == 0
    assert prompt.path("f.bin").read_bytes() == data
    assert prompt("certutil -decode f.b64 f.bin").code == 0x80070050
    assert prompt("certutil -f -encode f.bin g.b64").code == 0
    assert prompt("certutil -f -decode g.b64 f.bin").code == 0
    assert prompt.path("f.bin").read_bytes() == data
    prompt.path("bad").write_bytes(b"not base64!")
    assert prompt("certutil -decode bad x").code == 0x8007000D


def test_testsigning_takes_effect_at_the_next_boot(prompt: Any) -> None:
    registry = prompt.guest.registry
    assert not any("testsigning" in line for line in prompt("bcdedit /enum {current}").lines)
    assert prompt("bcdedit /set testsigning on").out == "The operation completed successfully.\r\n"
    assert "testsigning             Yes" in prompt("bcdedit /enum {current}").lines
    assert not boot.testsigning_in_effect(registry)
    boot.begin(registry)
    assert boot.testsigning_in_effect(registry)
    prompt("bcdedit /set {current} testsigning off")
    assert "testsigning             No" in prompt("bcdedit").lines
    assert prompt("bcdedit /set testsigning maybe").code == 1


def test_reg_adds_queries_and_deletes(prompt: Any) -> None:
    key = "HKLM\\SYSTEM\\CurrentControlSet\\Services\\Downlink\\Parameters\\Instances"
    ok = "The operation completed successfully.\r\n"
    assert prompt(f'reg add {key} /v DefaultInstance /t REG_SZ /d "Downlink Instance" /f').out == ok
    assert prompt(f'reg add "{key}\\Downlink Instance" /v Altitude /d 370030 /f').out == ok
    assert prompt(f'reg add "{key}\\Downlink Instance" /v Flags /t REG_DWORD /d 0x1f /f').out == ok
    assert prompt(f"reg add {key} /v Many /t REG_MULTI_SZ /d a\\0b /f").out == ok
    assert prompt(f"reg add {key} /v Bin /t REG_BINARY /d 00ff /f").out == ok
    assert prompt(f"reg query {key} /v defaultinstance").lines == [
        "HKEY_LOCAL_MACHINE\\SYSTEM\\CurrentControlSet\\Services\\Downlink\\Parameters\\Instances",
        "    DefaultInstance    REG_SZ    Downlink Instance",
    ]
    shown = prompt(f"reg query {key}").lines
    assert "    Many    REG_MULTI_SZ    a\\0b" in shown
    assert "    Bin    REG_BINARY    00FF" in shown
    assert shown[-1].endswith("\\Instances\\Downlink Instance")
    assert "    Flags    REG_DWORD    0x1f" in prompt(f"reg query {key} /s").lines
    assert prompt(f"reg delete {key} /v Many /f").out == ok
    assert prompt(f"reg delete {key} /f").out == ok
    missing = prompt(f"reg query {key}")
    assert (missing.code, missing.err.strip()) == (
        1,
        "ERROR: The system was unable to find the specified registry key or value.",
    )


def test_reg_asks_before_it_overwrites_unless_forced(prompt: Any) -> None:
    prompt("reg add HKLM\\SOFTWARE\\X /v V /d 1")
    assert prompt("reg add HKLM\\SOFTWARE\\X /v V /d 2", stdin=b"n\r\n").code == 1
    assert prompt.guest.registry.get_string("HKLM\\SOFTWARE\\X", "V") == "1"
    assert prompt("reg add HKLM\\SOFTWARE\\X /v V /d 2", stdin=b"y\r\n").code == 0
    assert prompt.guest.registry.get_string("HKLM\\SOFTWARE\\X", "V") == "2"
    for line in (
        "reg",
        "reg add",
        "reg add HKXX\\a",
        "reg add HKLM\\a /v x /t REG_DWORD /d zz /f",
        "reg query HKLM\\a /q",
    ):
        assert prompt(line).code == 1


def test_the_boot_identity_is_readable_by_reg(prompt: Any) -> None:
    line = f'reg query "{boot.BOOT_COUNTER_KEY}" /v {boot.BOOT_COUNTER_VALUE}'
    assert prompt(line).lines[-1].split() == ["BootId", "REG_DWORD", "0x1"]
    boot.begin(prompt.guest.registry)
    assert prompt(line).lines[-1].split() == ["BootId", "REG_DWORD", "0x2"]


def test_version_and_secure_boot_are_readable_by_reg(prompt: Any) -> None:
    version = 'reg query "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion" /v CurrentBuild'
    assert prompt(version).lines[-1].split() == ["CurrentBuild", "REG_SZ", "26100"]
    state = "reg query HKLM\\SYSTEM\\CurrentControlSet\\Control\\SecureBoot\\State /v UEFISecureBootEnabled"
    assert prompt(state).lines[-1].split()[-1] == "0x0"


def test_shutdown_waits_for_its_own_delivery(prompt: Any, wait_until: Any) -> None:
    assert prompt("shutdown /r /t 0 /f").code == 0
    assert prompt.happened == []
    assert prompt("shutdown /r /t 0").code == 1190
    prompt.delivered[0]()
    wait_until(lambda: prompt.happened == [PowerAction.RESTART], "the restart")


def test_a_later_shutdown_can_be_taken_back(prompt: Any) -> None:
    assert prompt("shutdown /s /t 600").code == 0
    assert prompt("shutdown /a").code == 0
    none = prompt("shutdown /a")
    assert none.code == 1116
    assert none.err == "Unable to abort the system shutdown because no shutdown was in progress.(1116)\r\n"
    assert prompt("shutdown /q").code == 1
    assert prompt.happened == []


def test_identity_commands(prompt: Any) -> None:
    assert prompt("hostname").out == "DOWNLINK-VM\r\n"
    assert prompt("whoami").out == "downlink-vm\\lab\r\n"
    assert "SeLoadDriverPrivilege" in prompt("whoami /priv").out
    assert "BUILTIN\\Administrators" in prompt("whoami /groups").out
    assert prompt("ver").lines[0].startswith("Microsoft Windows [Version 10.0.")
    assert any(line.startswith("System Boot Time:") for line in prompt("systeminfo").lines)
    assert prompt("where fltmc").out == "C:\\Windows\\System32\\fltmc.exe\r\n"
    assert prompt("where nosuch").code == 1
    assert prompt("C:\\Windows\\System32\\hostname.exe").out == "DOWNLINK-VM\r\n"
    assert prompt('"%SystemRoot%\\system32\\hostname"').out == "DOWNLINK-VM\r\n"


def test_powershell_says_that_it_is_not_there(prompt: Any) -> None:
    result = prompt('powershell -NoProfile -Command "exit 0"')
    assert result.code == 0xFFFF0000
    assert "not available on the emulated machine" in result.err


def test_tasklist_shows_the_guests_processes_only(prompt: Any) -> None:
    assert [line.split('"')[1] for line in prompt("tasklist /fo csv /nh").lines] == [
        "System Idle Process",
        "System",
    ]
    none = prompt('tasklist /fi "IMAGENAME eq python.exe" /fo csv /nh')
    assert (none.code, none.out.strip()) == (
        0,
        "INFO: No tasks are running which match the specified criteria.",
    )


def test_taskkill_does_not_reach_processes_of_the_host(prompt: Any) -> None:
    result = prompt(f"taskkill /f /pid {os.getpid()}")
    assert result.code == 128
    assert result.err == f'ERROR: The process "{os.getpid()}" not found.\r\n'
    assert prompt("taskkill /f /pid 4").code == 1


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("findstr b", "b1\r\nab\r\n"),
        ("findstr /b b", "b1\r\n"),
        ("findstr /v b", "C\r\n"),
        ("findstr /i /n c", "3:C\r\n"),
        ('findstr /c:"a b"', ""),
        ('findstr /r "^[ab].$"', "b1\r\nab\r\n"),
        ('find "b1"', "b1\r\n"),
        ("more", "b1\r\nab\r\nC\r\n"),
        ("sort", "ab\r\nb1\r\nC\r\n"),
    ],
)
def test_text_tools_filter_their_input(prompt: Any, line: str, out: str) -> None:
    assert prompt(line, stdin=b"b1\r\nab\r\nC\r\n").out == out


def test_ping_waits_and_timeout_refuses(prompt: Any) -> None:
    assert prompt("ping -n 1 127.0.0.1 >nul").code == 0
    assert prompt("timeout /t 1").err.startswith("ERROR: Input redirection is not supported")


def test_the_code_page_decides_how_output_is_encoded(prompt: Any) -> None:
    assert prompt("chcp").out == "Active code page: 65001\r\n"
    assert prompt.session.encode("ä€") == "ä€".encode()
    prompt("chcp 437")
    assert prompt.session.encode("ä€") == b"\x84?"
    assert prompt("chcp 99999").code == 1
