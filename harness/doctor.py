"""Checks host, toolchain and machine: what was found, what is wanted, and the command that mends it."""

from __future__ import annotations

import json
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from harness import config
from harness.console import Console
from vm.errors import DownlinkError
from vm.machine import MachineState

DISK_MEGABYTES = 500
TOOL_SECONDS = 20

_STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `level` is "ok", "warning" or "error"; `mend` is empty when it is fine."""

    name: str
    level: str
    found: str
    wanted: str = ""
    mend: str = ""


def run(root: Path, machine: str | None, console: Console, *, as_json: bool) -> int:
    """Look at everything and print one line each; returns 1 when something is an error."""
    findings = list(look(root, machine))
    if as_json:
        console.line(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            level = console.style(f"{finding.level:8}", _STYLES[finding.level])
            wanted = f" (wanted: {finding.wanted})" if finding.wanted and finding.level != "ok" else ""
            console.line(f"{level}{finding.name}: {finding.found}{wanted}")
            if finding.mend and finding.level != "ok":
                console.line(f"        mend: {finding.mend}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def look(root: Path, machine: str | None) -> Iterator[Finding]:
    """All findings, in the order in which a run would meet the trouble."""
    yield _host()
    yield _python()
    for name in ("unicorn", "ziglang", "pywinrm", "paramiko", "pytest"):
        yield _distribution(name)
    yield _compiler()
    yield _guarded("certificate", lambda: _certificate(root))
    yield _disk(root)
    yield _loopback()
    configuration = None
    try:
        configuration = config.load(root)
    except DownlinkError as error:
        yield _failed("configuration", error)
    else:
        yield Finding("configuration", "ok", f"'{config.FILE}' is valid")
    if configuration is not None:
        yield _guarded("machine", lambda: _machine(configuration, machine))


def _host() -> Finding:
    system = platform.system()
    level = "ok" if system in ("Linux", "Darwin", "Windows") else "warning"
    return Finding("host", level, platform.platform(), "Linux, macOS or Windows")


def _python() -> Finding:
    level = "ok" if sys.version_info >= (3, 11) else "error"
    return Finding(
        "python", level, platform.python_version(), "3.11 or newer", "install a newer Python, remove .venv"
    )


def _distribution(name: str) -> Finding:
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "error", "not installed", "installed", "remove .venv, then ./inv --list")


def _compiler() -> Finding:
    command = [sys.executable, "-m", "ziglang", "version"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("compiler", "error", str(error), "zig runs", "remove .venv, then ./inv --list")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Finding(
            "compiler", "error", said[-1] if said else f"exit status {done.returncode}", "zig runs"
        )
    return Finding("compiler", "ok", f"zig {done.stdout.strip()}")


def _certificate(root: Path) -> Finding:
    """The test certificate of this checkout; there is none before the first build, which makes it."""
    directory = root / ".cache" / "signing"
    if not any(directory.glob("*.pem")):
        return Finding("certificate", "ok", "none yet, the first build makes it")
    from harness.signing import load_or_create_identity

    identity = load_or_create_identity(directory)
    return Finding("certificate", "ok", f"{identity.subject}, valid until {identity.not_after:%Y-%m-%d}")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free // 1_000_000
    level = "ok" if free >= DISK_MEGABYTES else "error"
    return Finding("disk", level, f"{free} MB free", f"{DISK_MEGABYTES} MB", "./inv clean, or make room")


def _loopback() -> Finding:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                return Finding("loopback", "ok", "127.0.0.1 accepts connections")
    except OSError as error:
        return Finding(
            "loopback", "error", str(error), "127.0.0.1 accepts connections", "look at the firewall"
        )


def _machine(configuration: config.Configuration, name: str | None) -> Finding:
    chosen = configuration.machine(name)
    machine = configuration.create_machine(name, configuration.driver())
    state = machine.state()
    if state is not MachineState.RUNNING:
        level = "warning" if state is MachineState.DIRTY else "ok"
        return Finding(
            f"machine '{chosen.name}'", level, state.value, "", f"./inv vm.restore --machine {chosen.name}"
        )
    from harness.remote.guest import Guest
    from vm.deadline import Deadline

    with Guest(machine.address(), machine=chosen.name) as guest:
        said = guest.run("ver", deadline=Deadline.after(seconds=TOOL_SECONDS)).stdout.strip()
    return Finding(f"machine '{chosen.name}'", "ok", f"running: {said}")


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except DownlinkError as error:
        return _failed(name, error)


def _failed(name: str, error: DownlinkError) -> Finding:
    return Finding(name, "error", error.message, "", error.hint or "")
