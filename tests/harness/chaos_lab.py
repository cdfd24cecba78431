"""The whole way, from the sources' package to the verdict, on an emulated guest with a fault: what must come of it.

A fault is survived, or it ends the run with the sentence that is right for it. In either case it really happened, what was
found out is kept, and nothing is left running.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from harness import builds, choices, config, testing, verbs
from harness.config import DriverConfig
from harness.console import Console
from harness.deployment import Plan
from harness.package import Package, load_package
from harness.runs import directory
from harness.runs.journal import read
from harness.runs.results import Outcome, Results, collect
from vm.errors import DownlinkError
from vm.machine import Machine

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import pytest

from harness.client.port import Port
from harness.client.protocol import PORT_NAME, Connect


@pytest.mark.parametrize("number", range(3))
def test_connects(number):
    port = Port.connect(PORT_NAME, Connect().encode())
    port.close()
"""
"""Enough to see that the driver is there and that every result arrives."""

TESTS = 3

UNLOAD_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Case:
    """A fault and what must come of it.

    Args:
        chaos: the machine's setting.
        ends: None when the run passes all the same; else a regular expression for the error or the problems.
        mends: a regular expression for the hint, when the error must have one that helps.
        settings: further settings of the machine.
        fires: False for a fault that this way never meets.
        seconds: deadline of the run.
        crash: the run must tell of this bugcheck.
    """

    chaos: str
    ends: str | None = None
    mends: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    fires: bool = True
    seconds: int = 60
    crash: int = 0

    @property
    def id(self) -> str:
        return "+".join([self.chaos or "no fault", *(value for _, value in self.settings)])


OVER_WINRM = (("files", "winrm"),)
BASIC = (("transport", "basic"),)
TASK = (("suites", "detached"),)

CASES: tuple[Case, ...] = (
    Case("", fires=False),
    Case("", settings=OVER_WINRM, fires=False),
    Case("", settings=TASK, fires=False),
    # Connections and logons
    Case("drop-idle:20ms"),
    Case("latency:20ms"),
    Case("bad-seal@4"),
    Case("bad-seal@2-3", settings=OVER_WINRM),
    Case("http-401@5"),
    Case("http-500"),
    Case("http-503@1-3"),
    Case("http-503@*", "HTTP status 503", "WinRM service", seconds=20),
    Case("logon-refused-early"),
    Case("password-refused", "refused the user name or password", "password"),
    Case("ntlm-refused", "does not accept NTLM", "HTTPS"),
    Case("basic-refused", "refused the user name or password|HTTP status", settings=BASIC),
    Case("winrm-refused@*", "was lost while", "vm.start", seconds=4),
    Case("slow-boot:500ms"),
    Case("certificate-expired", "certificate .* has expired", "valid"),
    Case("certificate-changed", "is not the one that belongs to this machine", "certificate"),
    # Requests whose fate is not known
    Case("reset-create-after"),
    Case("reset-command-before@4"),
    Case("reset-command-after@4"),
    Case("reset-command-after@9"),
    Case("reset-command-after@14", settings=TASK),
    Case("reset-send-before@2", settings=OVER_WINRM),
    Case("reset-send-after@2", settings=OVER_WINRM),
    Case("reset-receive@3"),
    Case("reset-signal-after@3"),
    # Shells, quotas, output
    Case("shells-lost@4"),
    Case("shells-lost@4", settings=OVER_WINRM),
    Case("shells-lost-in-receive@5"),
    Case("small-envelope:64k", settings=OVER_WINRM),
    Case("stdin-truncated", "arrived damaged", "room", settings=OVER_WINRM),
    Case("receive-delay:50ms"),
    Case("receive-chunks:40"),
    Case("output-bom"),
    Case("output-crlf"),
    Case("output-noise"),
    Case("code-page"),
    Case("exit-code-signed"),
    # Files
    Case("sftp-refused", "SFTP failed while connecting", "sshd"),
    Case("sftp-closes"),
    Case("sftp-slow"),
    Case("sftp-short-write", "is not what was sent|bytes arrived"),
    Case("host-key-changed", "SSH host key .* is not the one", "vm.stop"),
    Case("disk-full", "bytes arrived|not what was sent|no space", "make room"),
    # The machine
    # The copy goes on where it was; only what a bugcheck says of the machine makes the run red.
    Case("restart-in-copy:60k"),
    Case("bugcheck-in-copy:60k", "bugcheck 0xD1", crash=0xD1),
    Case("restart-in-run@40", "restarted|went down"),
    Case("restart-in-run@40,address-changes", "restarted|went down|was lost"),
    Case("bugcheck-in-run@40", "went down|bugcheck|crashed|lost", crash=0x139),
    Case("bugcheck-in-run@90", "went down|restarted|bugcheck", settings=TASK + OVER_WINRM, crash=0x139),
    Case("testsigning-off", "testsigning is off", "bcdedit"),
    Case("secure-boot", "Secure Boot is on", "firmware|Set-VMFirmware"),
    Case("clock-off", "24 hours behind", "doctor --fix"),
    Case("python-missing", "no Python", "Python"),
    Case("powershell-missing"),
    Case("schtasks-refuses", "schtasks.* returned", settings=TASK),
    Case("unload-refused", "refused to be unloaded"),
    Case("unload-hangs", "hangs in its unload"),
    Case("load-race"),
    Case("delete-pending"),
)


@dataclass(slots=True)
class Run:
    """What came of one run."""

    status: int | None
    error: DownlinkError | None
    console: str
    results: Results | None
    firings: list[str] = field(default_factory=list)
    left_running: list[str] = field(default_factory=list)
    state: str = ""

    @property
    def told(self) -> str:
        """Everything that the user was told of a failure."""
        said = [self.error.render()] if self.error else []
        if self.results is not None:
            said += [
                *self.results.problems,
                *(f"bugcheck 0x{crash['code']:X}" for crash in self.results.crashes),
            ]
            said += [test.id for test in self.results.tests if test.outcome is Outcome.CRASHED]
        return "\n".join(said)


def package(place: Path) -> Package:
    """The real driver's package, in a place where nobody builds meanwhile."""
    made = builds.prepare(config.load(ROOT), None, "zig", "debug")()
    shutil.copytree(made.directory, place)
    return load_package(place)


def checkout(root: Path, mode: str, case: Case) -> config.Configuration:
    """A checkout in `root` whose machine has the fault and installs in that mode."""
    machine = {"kind": "emulated", "deployment": mode, **dict(case.settings)}
    if case.chaos:
        machine["chaos"] = case.chaos
    text = (ROOT / "harness.toml").read_text(encoding="utf-8")
    text = re.sub(r"(?s)\[machines\.emulated\].*?(?=\n\[)", "", text)
    text = text.replace('suites = "tests/driver"', 'suites = "suites"')
    text = re.sub(r"deadline_seconds = \d+", f"deadline_seconds = {case.seconds}", text)
    text += "\n[machines.emulated]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in machine.items()
    )
    (root / "harness.toml").write_text(text, encoding="utf-8")
    (root / "suites").mkdir()
    (root / "suites" / "test_connects.py").write_text(SUITE, encoding="utf-8")
    for name in ("harness", "driver", ".cache"):
        (root / name).symlink_to(ROOT / name, target_is_directory=True)
    return config.load(root)


def run(root: Path, mode: str, case: Case, built: Package, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`./inv test` on the machine with the fault."""
    configuration = checkout(root, mode, case)

    def impatient(driver: DriverConfig, machine: Machine) -> Plan:
        return replace(choices.plan_for(driver, machine), unload_seconds=UNLOAD_SECONDS)

    monkeypatch.setattr(testing, "plan_for", impatient)
    out = io.StringIO()
    status: int | None = None
    error: DownlinkError | None = None
    try:
        status = verbs.test(configuration, verbs.Choices(), lambda: built, Console(out, out, color=False))
    except DownlinkError as raised:
        error = raised
    try:
        run = directory.latest(configuration.runs.directory)
    except DownlinkError:
        results = None
    else:
        results = collect(read(run.journal))
        ElementTree.parse(run.junit)
        assert run.report.stat().st_size
    log = root / ".machines" / "emulated" / "machine.log"
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return Run(
        status,
        error,
        out.getvalue(),
        results,
        firings=[line for line in text.splitlines() if "chaos:" in line],
        left_running=_processes(root),
        state=configuration.create_machine(None, configuration.driver()).state().value,
    )


def judge(case: Case, found: Run) -> None:
    """Hold what came of a run against what must come of it."""
    assert found.left_running == []
    assert found.state == "stopped"
    # A fault that never happened proves nothing.
    assert bool(found.firings) == (case.fires and bool(case.chaos)), found.console
    if case.ends is None:
        assert found.error is None and found.status == 0, f"{found.told}\n{found.console}"
        assert found.results is not None and found.results.count(Outcome.PASSED) == TESTS
        return
    assert found.status != 0
    assert re.search(case.ends, found.told), f"{found.told}\n{found.console}"
    assert "Traceback" not in found.told and "Traceback" not in found.console
    if case.mends:
        hint = found.error.hint if found.error else found.console
        assert hint and re.search(case.mends, hint), hint
    if case.crash:
        codes = [crash["code"] for crash in found.results.crashes] if found.results else []
        assert codes == [case.crash], f"{found.told}\n{found.console}"


def _processes(root: Path) -> list[str]:
    """Processes of this host that belong to the machine: they have its directory in their command line or are in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(root) in line or place.startswith(str(root)):
            found.append(line)
    return found


def describe(case: Any) -> str:
    return str(case.id)
