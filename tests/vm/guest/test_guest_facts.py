"""Get-GuestFacts.ps1 and the scripts that mend, as the emulated guest runs them: the answers are true of the machine."""

from __future__ import annotations

import json
import re
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vm.emulated.guest import boot, certificates
from vm.emulated.registry import SERVICES
from vm.powershell.script import Script, answer

SCRIPTS = Path(__file__).parents[3] / "vm" / "windows" / "scripts"
CONTROL = boot.CONTROL
TICKS = 10_000_000


@pytest.fixture
def run(prompt: Any) -> Any:
    """Runs one of our scripts in the guest and returns its result."""

    def call(name: str, *words: str) -> Any:
        source = SCRIPTS / f"{name}.ps1"
        shutil.copyfile(source, prompt.path(source.name))
        result = prompt(
            f"powershell -NoProfile -ExecutionPolicy Bypass -File C:\\Work\\{source.name} {' '.join(words)}"
        )
        return answer(Script(source), result.code, result.out, result.err)

    return call


def seconds(ticks: int) -> float:
    return (ticks - 621_355_968_000_000_000) / TICKS


def new_certificate() -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Lab Test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=9))
    return builder.sign(key, hashes.SHA256())


def test_the_answer_has_every_part_that_the_script_declares(run: Any) -> None:
    text = (SCRIPTS / "Get-GuestFacts.ps1").read_text(encoding="ascii")
    block = text[text.index("$result = [ordered] @{") :]
    declared = re.findall(r"^        (\w+) +=", block.split("\n    }\n")[0], re.MULTILINE)
    facts = run("Get-GuestFacts")
    assert list(facts) == [*declared, "endTicks"]


@pytest.mark.parametrize(
    ("part", "function"),
    [
        ("system", "Get-SystemPart"),
        ("boot", "Get-BootPart"),
        ("virtualization", "Get-VirtualizationPart"),
        ("verifier", "Get-VerifierPart"),
        ("crash", "Get-CrashPart"),
        ("disk", "Get-DiskPart"),
        ("winrm", "Get-WinRmPart"),
        ("service", "Get-ServicePart"),
        ("python", "Get-PythonPart"),
    ],
)
def test_each_part_has_the_same_keys_in_the_script_and_in_the_emulation(
    run: Any, python_prompt: Any, part: str, function: str
) -> None:
    python_prompt.guest.registry.set_dword(f"{SERVICES}\\Sample", "Type", 2)
    text = (SCRIPTS / "Get-GuestFacts.ps1").read_text(encoding="ascii")
    body = text[text.index(f"function {function} ") :].split("\n}\n")[0]
    declared = re.findall(r"^        (\w+) +=", body, re.MULTILINE)
    assert declared
    assert list(run("Get-GuestFacts", "-Service", "Sample")[part]) == declared


def test_boot_options_and_secure_boot_are_those_of_the_machine(run: Any, prompt: Any) -> None:
    facts = run("Get-GuestFacts")["boot"]
    assert (facts["testsigningInEffect"], facts["testsigningConfigured"]) == (False, False)
    assert facts["secureBoot"] is False
    prompt("bcdedit /set testsigning on")
    facts = run("Get-GuestFacts")["boot"]
    assert (facts["testsigningInEffect"], facts["testsigningConfigured"]) == (False, True)
    boot.begin(prompt.guest.registry)
    assert run("Get-GuestFacts")["boot"]["testsigningInEffect"] is True
    assert run("Get-GuestFacts")["boot"]["identity"] == facts["identity"] + 1


def test_the_clock_of_the_guest_can_be_read_and_set(run: Any, prompt: Any) -> None:
    prompt.guest.clock.step(-86_400)
    before = time.time()
    facts = run("Get-GuestFacts")
    assert (
        before - 86_400.01
        <= seconds(facts["utcTicks"])
        <= seconds(facts["endTicks"])
        <= time.time() - 86_399.9
    )
    wanted = 621_355_968_000_000_000 + int(time.time() * TICKS)
    done = run("Set-GuestClock", "-UtcTicks", str(wanted))
    assert abs(done["afterTicks"] - wanted) < TICKS
    assert abs(prompt.guest.clock.offset) < 1


def test_a_time_that_is_a_mistake_is_refused(prompt: Any) -> None:
    shutil.copyfile(SCRIPTS / "Set-GuestClock.ps1", prompt.path("Set-GuestClock.ps1"))
    result = prompt("powershell -File C:\\Work\\Set-GuestClock.ps1 -UtcTicks 5")
    assert result.code == 1
    assert "UtcTicks" in result.err
    assert prompt.guest.clock.offset == 0


def test_stores_filters_altitudes_and_services_are_listed(run: Any, prompt: Any) -> None:
    registry = prompt.guest.registry
    certificate = new_certificate()
    certificates.add(registry, "Root", certificate)
    for place in ("Instances", "Parameters\\Instances"):
        registry.set_string(f"{SERVICES}\\Other\\{place}\\Other Instance", "Altitude", "370030")
    registry.set_dword(f"{SERVICES}\\Sample", "Type", 2)
    registry.set_dword(f"{SERVICES}\\Sample", "DeleteFlag", 1)
    registry.set_string(f"{SERVICES}\\Sample", "ImagePath", "system32\\drivers\\sample.sys")
    prompt.computer.loaded["Sample"] = ["D:"]
    facts = run("Get-GuestFacts", "-Service", "Sample", "-Inf", "sample.inf")
    assert [each["thumbprint"] for each in facts["certificates"]["root"]] == [
        certificates.thumbprint(certificate).lower()
    ]
    assert facts["certificates"]["trustedPublisher"] == []
    assert facts["filters"] == [{"name": "Sample", "instances": 1, "altitude": "370030"}]
    assert [(each["service"], each["place"]) for each in facts["altitudes"]] == [
        ("Other", "Instances"),
        ("Other", "Parameters\\Instances"),
    ]
    assert facts["service"] == {
        "name": "Sample",
        "running": True,
        "image": "system32\\drivers\\sample.sys",
        "markedForDeletion": True,
    }
    assert run("Get-GuestFacts", "-Service", "Missing")["service"] is None


def test_what_waits_for_a_restart_and_what_crashes_left_is_found(run: Any, prompt: Any) -> None:
    registry = prompt.guest.registry
    assert run("Get-GuestFacts")["pendingRestart"] == []
    registry.set_multi_string(f"{CONTROL}\\Session Manager", "PendingFileRenameOperations", ["a", "b"])
    registry.create_key(
        r"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending"
    )
    minidumps = prompt.guest.drive.root / "Windows" / "Minidump"
    minidumps.mkdir(parents=True)
    (minidumps / "112126-01.dmp").write_bytes(b"dump")
    facts = run("Get-GuestFacts")
    assert facts["pendingRestart"] == ["component servicing", "file renames"]
    assert facts["crash"]["dumps"] == ["C:\\Windows\\Minidump\\112126-01.dmp"]


def test_python_and_its_packages_are_read_without_starting_it(run: Any, python_prompt: Any) -> None:
    facts = run("Get-GuestFacts")["python"]
    assert re.fullmatch(r"3\.\d+\.\d+", facts["version"])
    assert "pytest" in facts["packages"]
    shutil.rmtree(python_prompt.guest.drive.root / "Python")
    assert run("Get-GuestFacts")["python"] is None


def test_crash_dumps_quotas_and_network_are_mended(run: Any, prompt: Any) -> None:
    quotas = prompt.guest.settings.quotas
    quotas.max_shells_per_user = 5
    quotas.max_envelope_bytes = 150 * 1024
    facts = run("Get-GuestFacts")
    assert facts["winrm"]["maxShellsPerUser"] == 5
    assert facts["crash"]["dumpKind"] is None
    assert run("Set-WinRmQuota")["changed"] == [
        "MaxEnvelopeSizekb",
        "MaxShellsPerUser",
        "MaxMemoryPerShellMB",
    ]
    assert run("Set-WinRmQuota")["changed"] == []
    assert quotas.max_shells_per_user == 50
    run("Set-CrashDump")
    after = run("Get-GuestFacts")
    assert after["crash"]["dumpKind"] == 2 and after["crash"]["alwaysKeep"] is True
    assert after["winrm"]["maxEnvelopeKb"] == 500
    assert after["networks"] == ["Private"]
    assert run("Set-PrivateNetwork")["changed"] == 0


def test_the_answer_is_one_line_of_json(prompt: Any) -> None:
    shutil.copyfile(SCRIPTS / "Get-GuestFacts.ps1", prompt.path("Get-GuestFacts.ps1"))
    result = prompt("powershell -File C:\\Work\\Get-GuestFacts.ps1")
    assert len(result.lines) == 1
    assert json.loads(result.out)["ok"] is True
