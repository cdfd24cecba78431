"""The doctor: each check finds its trouble on a guest that has it, repairs mend, looking changes nothing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from harness import config, doctor, verbs
from harness.console import Console
from harness.doctor import examination, facts, guest, host, machine, preflight, surroundings, toolchain
from harness.doctor.expectation import Expectation, install_sections
from harness.doctor.fixes import FIXES
from harness.doctor.subject import Subject
from harness.remote.guest import Guest
from harness.secrets import Secrets
from harness.toolchain import wdk
from harness.toolchain.wdk import examine
from tests.harness.wdk_trees import Host
from vm.deadline import Deadline
from vm.errors import DownlinkError
from vm.findings import Finding, Severity
from vm.machine import Machine

CHECKOUT = Path(__file__).resolve().parents[2]
CONTROL = r"HKLM\SYSTEM\CurrentControlSet\Control"
SERVICES = r"HKLM\SYSTEM\CurrentControlSet\Services"
SERVICING = r"HKLM\SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing"
PROFILE = r"HKLM\SOFTWARE\Microsoft\Windows NT\CurrentVersion\NetworkList\Profiles\{6f3a1b52-6d4e-4f0e-9a55-3c1f0f6f7d11}"


def soon() -> Deadline:
    return Deadline.after(seconds=60)


def make_checkout(root: Path, more: str = "") -> config.Configuration:
    """A checkout in `root` that shares what is built with this one, and has machines of its own."""
    for name in ("driver", "harness", "vm"):
        (root / name).symlink_to(CHECKOUT / name, target_is_directory=True)
    (root / ".cache").mkdir()
    for path in (CHECKOUT / ".cache").iterdir():
        (root / ".cache" / path.name).symlink_to(path)
    text = (CHECKOUT / config.FILE).read_text(encoding="utf-8")
    (root / config.FILE).write_text(text + more, encoding="utf-8")
    return config.load(root)


class Clinic:
    """A checkout with a running emulated machine, and a way to break its guest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.configuration = make_checkout(root)
        self.controlled = self._machine()
        self.guest = Guest(self.controlled.start(soon()), machine="emulated")

    def _machine(self) -> Machine:
        return self.configuration.create_machine(None, self.configuration.driver())

    @property
    def subject(self) -> Subject:
        return Subject(self.configuration, self.configuration.machine(), self.configuration.driver())

    def run(self, *lines: str, check: bool = True) -> None:
        for line in lines:
            self.guest.run(line, deadline=soon(), check=check)

    def facts(self) -> facts.GuestFacts:
        return facts.ask(self.guest, "Downlink", "downlink.inf", soon())

    def look(self) -> dict[str, Finding]:
        return {each.check: each for each in examination.Examination(self.subject).look()}

    def doctor(self, **options: bool) -> tuple[int, str]:
        out = io.StringIO()
        status = doctor.run(self.root, None, Console(out, io.StringIO(), color=False), **options)
        return status, out.getvalue()


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    made = Clinic(tmp_path_factory.mktemp("clinic"))
    yield made
    made.guest.close()
    made.controlled.stop(Deadline.after(seconds=20))


# Each: what breaks the guest, what undoes it, the check, its severity and a word of what it must say.
TROUBLES = {
    "testsigning off": (
        (f'reg add {CONTROL} /v SystemStartOptions /d " NOEXECUTE=OPTIN" /f', "bcdedit /set testsigning off"),
        (f'reg add {CONTROL} /v SystemStartOptions /d " TESTSIGNING" /f', "bcdedit /set testsigning on"),
        ("guest.testsigning", Severity.ERROR, "testsigning is off"),
    ),
    "testsigning waits for a restart": (
        (f'reg add {CONTROL} /v SystemStartOptions /d " NOEXECUTE=OPTIN" /f',),
        (f'reg add {CONTROL} /v SystemStartOptions /d " TESTSIGNING" /f',),
        ("guest.testsigning", Severity.ERROR, "not in effect"),
    ),
    "Secure Boot": (
        (rf"reg add {CONTROL}\SecureBoot\State /v UEFISecureBootEnabled /t REG_DWORD /d 1 /f",),
        (rf"reg add {CONTROL}\SecureBoot\State /v UEFISecureBootEnabled /t REG_DWORD /d 0 /f",),
        ("guest.secure-boot", Severity.ERROR, "is on"),
    ),
    "half an update": (
        (rf'reg add "{SERVICING}\RebootPending" /f',),
        (rf'reg delete "{SERVICING}\RebootPending" /f',),
        ("guest.restart", Severity.ERROR, "component servicing"),
    ),
    "file renames": (
        (rf'reg add "{CONTROL}\Session Manager" /v PendingFileRenameOperations /t REG_MULTI_SZ /d a\0b /f',),
        (rf'reg delete "{CONTROL}\Session Manager" /v PendingFileRenameOperations /f',),
        ("guest.restart", Severity.WARNING, "file renames"),
    ),
    "a rival of the same altitude, written differently": (
        (rf'reg add "{SERVICES}\Rival\Parameters\Instances\R" /v Altitude /d 370777.70 /f',),
        (rf"reg delete {SERVICES}\Rival /f",),
        ("guest.altitude", Severity.ERROR, "Rival"),
    ),
    "a service that waits for its deletion": (
        (
            rf"reg add {SERVICES}\Downlink /v Type /t REG_DWORD /d 2 /f",
            rf"reg add {SERVICES}\Downlink /v DeleteFlag /t REG_DWORD /d 1 /f",
        ),
        (rf"reg delete {SERVICES}\Downlink /f",),
        ("guest.service", Severity.ERROR, "waits for its deletion"),
    ),
    "a service of an older deployment": (
        (rf"reg add {SERVICES}\Downlink /v Type /t REG_DWORD /d 2 /f",),
        (rf"reg delete {SERVICES}\Downlink /f",),
        ("guest.service", Severity.NOTE, "is there"),
    ),
    "no Python": (
        (r"ren C:\Python Python.away",),
        (r"ren C:\Python.away Python",),
        ("guest.python", Severity.ERROR, "no Python"),
    ),
    "an old dump": (
        (r"echo dump > C:\Windows\Minidump\old.dmp",),
        (r"del C:\Windows\Minidump\old.dmp",),
        ("guest.old-dumps", Severity.WARNING, "old.dmp"),
    ),
    "a proxy for everybody": (
        (rf'reg add "{CONTROL}\Session Manager\Environment" /v HTTPS_PROXY /d http://proxy /f',),
        (rf'reg delete "{CONTROL}\Session Manager\Environment" /v HTTPS_PROXY /f',),
        ("guest.proxy", Severity.WARNING, "HTTPS_PROXY"),
    ),
    "a public network": (
        (f'reg add "{PROFILE}" /v Category /t REG_DWORD /d 0 /f',),
        (f'reg delete "{PROFILE}" /f',),
        ("guest.network", Severity.WARNING, "public"),
    ),
    "memory integrity": (
        (
            rf"reg add {CONTROL}\DeviceGuard /v EnableVirtualizationBasedSecurity /t REG_DWORD /d 1 /f",
            rf"reg add {CONTROL}\DeviceGuard\Scenarios\HypervisorEnforcedCodeIntegrity /v Enabled /t REG_DWORD /d 1 /f",
        ),
        (rf"reg delete {CONTROL}\DeviceGuard /f",),
        ("guest.hvci", Severity.NOTE, "HVCI"),
    ),
    "Driver Verifier": (
        (rf'reg add "{CONTROL}\Session Manager\Memory Management" /v VerifyDrivers /d downlink.sys /f',),
        (rf'reg delete "{CONTROL}\Session Manager\Memory Management" /v VerifyDrivers /f',),
        ("guest.verifier", Severity.NOTE, "downlink.sys"),
    ),
}


def test_a_guest_that_is_well_has_no_errors_and_no_warnings(clinic: Clinic) -> None:
    found = clinic.look()
    assert {
        check: each for check, each in found.items() if each.severity in (Severity.ERROR, Severity.WARNING)
    } == {}
    assert {"guest.system", "guest.testsigning", "guest.clock", "guest.python", "guest.altitude"} <= set(
        found
    )


@pytest.mark.parametrize("name", TROUBLES)
def test_a_trouble_of_the_guest_is_found_and_gone_when_it_is_mended(clinic: Clinic, name: str) -> None:
    breaking, mending, (check, severity, word) = TROUBLES[name]
    clinic.run(*breaking)
    try:
        found = clinic.look()[check]
    finally:
        clinic.run(*mending, check=False)
    assert found.severity is severity
    assert word in found.found
    assert severity is Severity.NOTE or (found.mend and found.wanted)
    after = clinic.look().get(check)
    assert after is None or after.severity is Severity.OK


def test_a_clock_that_is_a_day_off_is_an_error_that_fix_mends(clinic: Clinic) -> None:
    step_clock(clinic, days=-1)
    status, shown = clinic.doctor()
    assert status == 1
    assert "error   guest.clock: 24 hours behind this host (wanted: less than 2 s off)" in shown
    assert "mend: ./inv doctor --fix --machine emulated" in shown
    assert clinic.look()["guest.clock"].severity is Severity.ERROR, "looking must not mend"

    status, shown = clinic.doctor(fix=True)
    assert status == 0
    assert "mended  guest.set-clock" in shown
    assert clinic.look()["guest.clock"].severity is Severity.OK


def test_fix_mends_a_public_network_and_trusts_the_certificate(clinic: Clinic) -> None:
    clinic.run(f'reg add "{PROFILE}" /v Category /t REG_DWORD /d 0 /f')
    ours = toolchain.signing_certificate(clinic.subject)
    assert ours is not None
    for store in ("Root", "TrustedPublisher"):
        clinic.run(f"certutil -delstore {store} {ours.thumbprint}", check=False)
    before = clinic.look()
    assert before["guest.certificate"].fix == "guest.trust-certificate"
    _, shown = clinic.doctor(fix=True)
    assert "mended  guest.private-network" in shown and "mended  guest.trust-certificate" in shown
    after = clinic.look()
    assert "guest.network" not in after
    assert after["guest.certificate"].severity is Severity.OK


def test_looking_changes_nothing_in_the_guest_and_on_the_host(clinic: Clinic) -> None:
    clinic.run(f'reg add "{PROFILE}" /v Category /t REG_DWORD /d 0 /f')
    try:
        before, files = clinic.facts().values, listing(clinic.root)
        clinic.doctor()
        after = clinic.facts().values
        times = {"utcTicks", "endTicks", "disk", "system"}
        assert {key: value for key, value in before.items() if key not in times} == {
            key: value for key, value in after.items() if key not in times
        }
        assert listing(clinic.root) == files
    finally:
        clinic.run(f'reg delete "{PROFILE}" /f')


def test_the_quick_part_asks_the_guest_few_questions(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = Guest.run

    def counted(self: Guest, command: Any, **options: Any) -> Any:
        asked.append(str(command))
        return original(self, command, **options)

    monkeypatch.setattr(Guest, "run", counted)
    clinic.run(r"rmdir /s /q C:\Downlink\scripts", check=False)
    questions = []
    for _ in range(2):
        asked.clear()
        with Guest(clinic.controlled.address(), machine="emulated") as connected:
            examination.examine_guest(connected, WANTED)
        questions.append(len(asked))
    # Is the script there, and again for one path alone; has it arrived; run it. The next time it is there.
    assert questions == [4, 2]


@pytest.mark.parametrize(
    ("chaos", "check", "severity"),
    [
        ("reset-command-after@2", "guest.testsigning", Severity.OK),
        ("powershell-missing", "guest.facts", Severity.WARNING),
    ],
)
def test_a_guest_that_is_hard_to_ask_does_not_stop_a_run(
    tmp_path: Path, chaos: str, check: str, severity: Severity
) -> None:
    make_checkout(tmp_path)
    (tmp_path / config.LOCAL_FILE).write_text(f'[machines.emulated]\nchaos = "{chaos}"\n', encoding="utf-8")
    configuration = config.load(tmp_path)
    controlled = configuration.create_machine(None, configuration.driver())
    try:
        with Guest(controlled.start(soon()), machine="emulated") as connected:
            found = {each.check: each for each in examination.examine_guest(connected, WANTED)}
    finally:
        controlled.stop(Deadline.after(seconds=20))
    assert found[check].severity is severity
    assert Severity.ERROR not in {each.severity for each in found.values()}


def test_json_has_a_stable_form(clinic: Clinic) -> None:
    status, text = clinic.doctor(as_json=True)
    said = json.loads(text)
    assert set(said) == {"schema", "status", "repairs", "findings"}
    assert (said["schema"], said["status"], said["repairs"]) == (1, status, [])
    for finding in said["findings"]:
        assert set(finding) == {"check", "severity", "found", "wanted", "mend", "fix"}
        assert finding["severity"] in ("ok", "note", "warning", "error")
        assert finding["check"].split(".")[0] in ("host", "toolchain", "machine", "guest")


def test_an_error_ends_with_1_a_warning_only_if_strict() -> None:
    def status(severity: Severity, *, strict: bool = False) -> int:
        return doctor.exit_status(
            [Finding("a.b", Severity.OK, ""), Finding("a.c", severity, "")], strict=strict
        )

    assert [status(each) for each in Severity] == [0, 0, 0, 1]
    assert [status(each, strict=True) for each in Severity] == [0, 0, 1, 1]


@pytest.fixture
def healthy(clinic: Clinic) -> facts.GuestFacts:
    return clinic.facts()


def changed(found: facts.GuestFacts, part: str, **values: Any) -> facts.GuestFacts:
    return replace(found, values={**found.values, part: {**found.part(part), **values}})


WANTED = Expectation("lab", "Downlink", "370777.7", "downlink.inf")


def one(found: facts.GuestFacts, check: str, wanted: Expectation = WANTED) -> Finding:
    return next(each for each in guest.examine(found, wanted) if each.check == check)


def test_a_full_disk_is_an_error_and_a_nearly_full_one_a_warning(healthy: facts.GuestFacts) -> None:
    severities = [
        one(changed(healthy, "disk", freeBytes=size), "guest.disk").severity
        for size in (10**8, 10**9, 10**10)
    ]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.OK]


def test_small_quotas_are_named_and_no_limit_is_fine(healthy: facts.GuestFacts) -> None:
    found = one(changed(healthy, "winrm", maxShellsPerUser=5, maxEnvelopeKb=0), "guest.winrm-quotas")
    assert (found.severity, found.found, found.wanted) == (
        Severity.WARNING,
        "MaxShellsPerUser is 5",
        "MaxShellsPerUser of 10 or more",
    )
    assert found.fix == "guest.raise-quotas"


def test_an_https_certificate_that_expires_is_found_in_time(healthy: facts.GuestFacts) -> None:
    def severity(days: int) -> Severity:
        until = facts.ticks((healthy.now + timedelta(days=days)).timestamp())
        return one(
            changed(healthy, "winrm", httpsCertificateExpires=until), "guest.https-certificate"
        ).severity

    assert [severity(-1), severity(5), severity(50)] == [Severity.ERROR, Severity.WARNING, Severity.OK]


def test_missing_dumps_matter_where_the_machine_is_no_witness(healthy: facts.GuestFacts) -> None:
    bare = changed(healthy, "crash", dumpKind=0, alwaysKeep=None)
    assert one(bare, "guest.crash-dump").fix == "guest.set-crash-dump"
    assert not any(
        each.check == "guest.crash-dump" for each in guest.examine(bare, replace(WANTED, witness=True))
    )
    complete = changed(healthy, "crash", dumpKind=1, pageFileBytes=2**20)
    assert one(complete, "guest.page-file").severity is Severity.WARNING


def test_a_package_for_another_processor_is_refused(healthy: facts.GuestFacts) -> None:
    found = one(healthy, "guest.architecture", replace(WANTED, architecture="arm64"))
    assert found.severity is Severity.ERROR
    assert found.mend == "build for it: ./inv build --architecture x64"


def test_the_inf_section_for_the_guests_build_is_named(healthy: facts.GuestFacts) -> None:
    sections = install_sections(CHECKOUT / "driver" / "downlink.inf")
    wanted = replace(WANTED, sections=sections)
    assert "25952" in one(healthy, "guest.inf", wanted).found
    older = changed(healthy, "system", build=22631)
    assert one(older, "guest.inf", wanted).severity is Severity.OK
    assert "25952" not in one(older, "guest.inf", wanted).found
    only_newer = replace(wanted, sections=tuple(each for each in sections if each.build), by_inf=True)
    assert one(older, "guest.inf", only_newer).severity is Severity.ERROR
    assert one(older, "guest.inf", replace(only_newer, by_inf=False)).severity is Severity.NOTE


def test_the_checkpoint_for_driver_verifier_has_to_verify_the_driver(healthy: facts.GuestFacts) -> None:
    wanted = replace(WANTED, verified="downlink.sys")
    found = one(healthy, "guest.verifier", wanted)
    assert (found.severity, found.found) == (Severity.ERROR, "Driver Verifier checks nothing")
    verified = changed(healthy, "verifier", drivers=["Downlink.SYS"], level=0x209BB)
    assert one(verified, "guest.verifier", wanted).severity is Severity.NOTE


def test_python_without_pytest_or_too_old_is_refused(healthy: facts.GuestFacts) -> None:
    assert "without pytest" in one(changed(healthy, "python", packages={}), "guest.python").found
    assert one(changed(healthy, "python", version="3.9.1"), "guest.python").severity is Severity.ERROR
    assert one(changed(healthy, "python", version="odd"), "guest.python").severity is Severity.ERROR


def test_a_certificate_from_the_future_is_told_by_the_guests_own_clock(healthy: facts.GuestFacts) -> None:
    certificate = toolchain.SigningCertificate.parse(new_certificate(days=30))
    late = replace(certificate, not_before=healthy.now + timedelta(days=1))
    found = one(healthy, "guest.certificate-time", replace(WANTED, certificate=late))
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize(
    ("start", "end", "ahead"),
    [(0.5, 0.9, 0), (-0.5, 1.5, 0.5), (-3, -2, -3), (4, 5, 4), (-90_000, -89_999, -90_000)],
)
def test_clocks_differ_only_as_far_as_the_exchange_proves(start: float, end: float, ahead: float) -> None:
    values = {"utcTicks": facts.ticks(1000 + start), "endTicks": facts.ticks(1000 + end)}
    assert facts.GuestFacts.of(values, 1000, 1001).ahead_seconds == pytest.approx(ahead)


def test_a_guest_that_tells_nothing_breaks_no_check(healthy: facts.GuestFacts) -> None:
    silent = dict.fromkeys(healthy.values) | {key: healthy.values[key] for key in ("utcTicks", "endTicks")}
    found = list(guest.examine(replace(healthy, values=silent), WANTED))
    assert {each.check for each in found if each.severity is Severity.ERROR} == {"guest.python"}


def test_every_fix_that_a_finding_names_exists() -> None:
    named = set()
    for module in (guest, host, machine, surroundings, toolchain):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        named |= {name for name in FIXES if f'"{name}"' in source}
    assert named == set(FIXES)


REMOTE = """
[machines.far]
kind = "remote"
host = "192.0.2.7"
username = "lab"
scheme = "https"
transport = "ssl"
ssh_port = 22
certificate = "far.pem"
"""


def new_certificate(days: int) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "far")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(days=99))
    return (
        builder.not_valid_after(now + timedelta(days=days))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def far(root: Path, environment: dict[str, str] | None = None) -> Subject:
    secrets = Secrets(environment=environment or {}, ask=None)
    configuration = replace(make_checkout(root, REMOTE), secrets=secrets)
    return Subject(configuration, configuration.machine("far"), configuration.driver(), environment or {})


def checked(subject: Subject) -> dict[str, Finding]:
    checks = (*host.ALL, *toolchain.QUICK, *machine.QUICK)
    return {each.check: each for each in examination.run_checks(subject, checks)}


@pytest.mark.parametrize(
    ("days", "severity"), [(-1, Severity.ERROR), (3, Severity.WARNING), (99, Severity.OK)]
)
def test_the_pinned_certificate_of_a_machine_is_looked_at(
    tmp_path: Path, days: int, severity: Severity
) -> None:
    (tmp_path / "far.pem").write_bytes(new_certificate(days))
    assert checked(far(tmp_path))["machine.certificate"].severity is severity


def test_secret_host_key_and_proxy_of_a_machine_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "far.pem").write_text("no certificate", encoding="ascii")
    found = checked(far(tmp_path, {"https_proxy": "http://proxy"}))
    assert found["machine.secret"].severity is Severity.ERROR
    assert "DOWNLINK_SECRET_FAR_PASSWORD" in found["machine.secret"].mend
    assert found["machine.host-key"].severity is Severity.ERROR
    assert "it is no certificate" in found["machine.certificate"].found
    assert found["host.proxy"].severity is Severity.WARNING
    assert found["host.directories"].severity is Severity.NOTE


def test_a_secret_in_the_environment_is_enough(tmp_path: Path) -> None:
    found = checked(
        far(
            tmp_path,
            {"DOWNLINK_SECRET_FAR_PASSWORD": "correct horse", "NO_PROXY": "192.0.2.7", "HTTP_PROXY": "x"},
        )
    )
    assert found["machine.secret"].severity is Severity.OK
    assert "horse" not in repr(found)
    assert found["host.proxy"].severity is Severity.NOTE


def test_files_of_a_dead_machine_are_found_and_removed_by_fix(tmp_path: Path) -> None:
    configuration = make_checkout(tmp_path)
    directory = configuration.machine_directory("emulated")
    directory.mkdir(parents=True)
    (directory / "state.json").write_text('{"process_id": 4194305}', encoding="ascii")
    (directory / "machine.log").write_text("kept", encoding="ascii")
    subject = Subject(configuration, configuration.machine(), configuration.driver())
    looking = examination.Examination(subject)
    found = [*machine.stale_state(subject)]
    assert [each.fix for each in found] == ["machine.remove-stale-state"]
    assert (directory / "state.json").exists()
    looking.findings = found
    assert [repair.ok for repair in looking.repair()] == [True]
    assert [path.name for path in directory.iterdir()] == ["machine.log"]


def test_a_repair_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    configuration = make_checkout(tmp_path)
    looking = examination.Examination(Subject(configuration, configuration.machine(), configuration.driver()))
    looking.findings = [
        Finding("guest.clock", Severity.ERROR, "off", fix="guest.set-clock"),
        Finding("host.directories", Severity.NOTE, "missing", fix="host.make-directories"),
    ]
    assert [(each.fix, each.ok) for each in looking.repair()] == [
        ("guest.set-clock", False),
        ("host.make-directories", True),
    ]
    assert (tmp_path / "runs").is_dir()


def test_the_kit_is_looked_at_where_it_is_the_toolchain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Finding("wdk.pair", Severity.ERROR, "VS 18 with WDK 26100", "WDK 28000", "install it")
    kit = ModuleType("harness.toolchain.wdk")
    kit.__spec__ = ModuleSpec(kit.__name__, None)
    kit.examine = lambda: [found]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kit.__name__, kit)
    configuration = make_checkout(tmp_path)
    subject = Subject(configuration, configuration.machine(), configuration.driver())
    assert list(toolchain.wdk(subject)) == (
        [replace(found, severity=Severity.NOTE)] if sys.platform == "win32" else []
    )
    chosen = replace(subject, configuration=replace(configuration, toolchain="wdk"))
    assert list(toolchain.wdk(chosen)) == [found]


@pytest.mark.parametrize(
    ("name", "severity"), [("wdk", Severity.ERROR), ("zig", Severity.NOTE)], ids=["wanted", "not wanted"]
)
def test_a_host_without_a_kit_is_at_fault_only_where_it_is_the_toolchain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, severity: Severity
) -> None:
    configuration = make_checkout(tmp_path)
    subject = Subject(replace(configuration, toolchain=name), configuration.machine(), configuration.driver())
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(wdk, "examine", lambda: examine(Host().provider()))
    findings = list(toolchain.wdk(subject))
    assert findings[-1].severity is severity
    assert findings[-1].mend.startswith("winget install")


def test_the_whole_doctor_has_a_note_on_the_kit_of_a_host_that_is_no_windows(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("this host is Windows")
    configuration = replace(make_checkout(tmp_path), toolchain="wdk")
    subject = Subject(configuration, configuration.machine(), configuration.driver())
    found = {each.check: each for each in examination.run_checks(subject, toolchain.ALL)}
    assert found["toolchain.wdk"].severity is Severity.NOTE


def test_a_run_stops_before_anything_is_built_when_the_host_is_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.delenv("DOWNLINK_SECRET_FAR_PASSWORD", raising=False)
    (tmp_path / "far.pem").write_bytes(new_certificate(-1))
    configuration = make_checkout(tmp_path, REMOTE)

    def build() -> verbs.Package:
        raise AssertionError("it was built")

    for verb in (verbs.test, verbs.deploy):
        with pytest.raises(preflight.PreflightError) as stopped:
            verb(configuration, verbs.Choices(machine="far"), build, Console(io.StringIO(), io.StringIO()))
        assert {each.check for each in stopped.value.findings} >= {"machine.secret", "machine.certificate"}
        assert stopped.value.hint
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("chaos", "check"),
    [
        ("clock-off", "guest.clock"),
        ("secure-boot", "guest.secure-boot"),
        ("testsigning-off", "guest.testsigning"),
        ("disk-full:1m", "guest.disk"),
        ("python-missing", "guest.python"),
    ],
)
def test_a_run_stops_with_a_sentence_before_anything_is_deployed(
    tmp_path: Path, chaos: str, check: str
) -> None:
    from harness.builds import prepare

    make_checkout(tmp_path)
    (tmp_path / config.LOCAL_FILE).write_text(f'[machines.emulated]\nchaos = "{chaos}"\n', encoding="utf-8")
    configuration = config.load(tmp_path)
    package = prepare(config.load(CHECKOUT), None, None, None)
    console = Console(io.StringIO(), io.StringIO())
    with pytest.raises(preflight.PreflightError) as stopped:
        verbs.test(configuration, verbs.Choices(), package, console)
    assert stopped.value.findings[0].check == check
    assert stopped.value.hint
    assert not (tmp_path / ".machines" / "emulated" / "c" / "Downlink" / "package").exists()


def test_a_disk_without_any_room_ends_a_run_with_a_hint(tmp_path: Path) -> None:
    from harness.builds import prepare

    make_checkout(tmp_path)
    (tmp_path / config.LOCAL_FILE).write_text('[machines.emulated]\nchaos = "disk-full"\n', encoding="utf-8")
    console = Console(io.StringIO(), io.StringIO())
    with pytest.raises(DownlinkError) as stopped:
        verbs.test(
            config.load(tmp_path), verbs.Choices(), prepare(config.load(CHECKOUT), None, None, None), console
        )
    assert "make room" in str(stopped.value.hint)


def step_clock(clinic: Clinic, *, days: int) -> None:
    from harness.remote.scripts import SOURCES, GuestScripts
    from vm.powershell.script import Script

    wanted = facts.ticks((clinic.facts().now + timedelta(days=days)).timestamp())
    GuestScripts(clinic.guest).run(Script(SOURCES / "Set-GuestClock.ps1"), {"UtcTicks": wanted}, soon())


def listing(root: Path) -> list[str]:
    return sorted(
        str(path) for path in root.rglob("*") if not path.is_symlink() and path.suffix not in (".log", ".ps1")
    )
