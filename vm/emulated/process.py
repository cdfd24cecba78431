"""The process of an emulated machine: boots the system, opens the guest face, survives bugchecks, ends on request."""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vm.emulated.control import ControlServer
from vm.emulated.guest.face import GuestFace
from vm.emulated.guest.processes import ProcessInformation
from vm.emulated.guest.settings import GuestSettings, TlsIdentity
from vm.emulated.image_files import ImageFiles
from vm.emulated.kernel.bugcheck import NMI_HARDWARE_FAILURE
from vm.emulated.registry import Registry
from vm.emulated.system import System
from vm.emulated.usermode.server import UserModeServer
from vm.machine import CrashReport, Violation

log = logging.getLogger(__name__)

USERNAME = "lab"
_ODT = 0x4F4454
"""First parameter of that bugcheck on present Windows: the letters ODT."""
DUMP_DIRECTORY = r"C:\Windows\Minidump"


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What the harness tells a machine's process when it starts it."""

    directory: Path
    cache: Path
    winrm_port: int = 0
    ssh_port: int = 0
    transport: str = "ntlm"
    seed: int | None = None
    """None takes a new seed for every boot; the seed in use is in the state file and in every crash report."""
    rules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    chaos: str | tuple[str, ...] = ()
    """Faults of the guest (`vm.emulated.guest.chaos`)."""
    scheme: str = "http"
    """How WinRM is spoken: "http" or "https" with a certificate of its own."""
    language: str = "en"
    """Display language of the inbox tools."""
    password: str | None = field(default=None, repr=False)
    """None makes one for each start."""
    identity: Path | None = None
    """Directory with `certificate.pem`, `certificate.key` and `ssh_host_ed25519_key` that stay the same from start to
    start; None makes new ones."""
    registry: Path | None = None
    """File with the registry (JSON) that the machine begins with, if it is there."""


class MachineProcess:
    """One emulated machine, from the start of its process to its end."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._settings = settings
        self._registry = Registry()
        self._password = settings.password or secrets.token_urlsafe(18)
        if settings.registry is not None and settings.registry.exists():
            self._registry.restore(json.loads(settings.registry.read_text(encoding="utf-8")))
        identity = settings.identity
        self._key = secrets.token_bytes(32)
        self._crashes: list[CrashReport] = []
        self._past_violations: list[Violation] = []
        self._debug_log = settings.directory / "debug.log"
        self._events: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._system: System | None = None
        self._users: UserModeServer | None = None
        guest = GuestSettings(
            username=USERNAME,
            password=self._password,
            state_directory=settings.directory,
            cache_directory=settings.cache,
            winrm_port=settings.winrm_port,
            ssh_port=settings.ssh_port,
            https=settings.scheme == "https",
            tls=TlsIdentity(identity / "certificate.pem", identity / "certificate.key")
            if identity is not None and settings.scheme == "https"
            else None,
            host_key_file=identity / "ssh_host_ed25519_key" if identity is not None else None,
            language=settings.language,
            chaos=settings.chaos,
            chaos_seed=settings.seed or 0,
        )
        self._face = GuestFace(
            lambda: self.system,
            settings.directory / "c",
            self._registry,
            guest,
            client_environment=lambda: {"DOWNLINK_EMULATED": self.users.environment},
            clients=self._client_processes,
            on_new_boot=self._new_boot,
            on_restart_requested=lambda: self._events.put("restart"),
            on_bugcheck_requested=lambda code, parameters, rule: self.system.bugcheck(code, parameters, rule),
            on_address_changed=lambda: self.on_state_changed(),
            on_shutdown_requested=lambda: self._events.put("stop"),
        )
        self._images = ImageFiles(self._face.drive, self._registry, settings.rules)
        self._control = ControlServer(
            self._key,
            {
                "ping": lambda: {"ok": True},
                "condition": self._condition,
                "chaos": self._face.chaos.report,
                "registry": self._registry.snapshot,
                "nmi": self._interrupt,
                "stop": self._request_stop,
            },
        )
        self.on_state_changed: Callable[[], None] = lambda: None
        """Called when what `state` says has changed; the owner of the state file replaces it."""

    @property
    def system(self) -> System:
        """The running boot."""
        assert self._system is not None
        return self._system

    @property
    def users(self) -> UserModeServer:
        """The user-mode services of the running boot."""
        assert self._users is not None
        return self._users

    def start(self) -> dict[str, Any]:
        """Bring everything up; returns the machine's state as it is written to `state.json`.

        Raises:
            MachineError: a port is in use, or the disk cannot be written; nothing is left running.
        """
        self._boot()
        try:
            self._face.start()
        except BaseException:
            self._end_boot()
            raise
        self._control.start()
        return self.state()

    def state(self) -> dict[str, Any]:
        """The machine's state as it is written to `state.json`."""
        certificate = self._face.certificate
        return {
            "process_id": os.getpid(),
            "control_port": self._control.port,
            "key": self._key.hex(),
            "winrm_port": self._face.winrm_port,
            "ssh_port": self._face.ssh_port,
            "host_key": self._face.host_key,
            "username": USERNAME,
            "password": self._password,
            "transport": self._settings.transport,
            "scheme": "https" if certificate is not None else "http",
            "certificate": str(certificate) if certificate is not None else None,
            "seed": self.system.seed,
        }

    def wait(self) -> None:
        """Serve until somebody asks to stop; restarts and crashes are handled on the way."""
        while True:
            event = self._events.get()
            if event == "stop":
                return
            try:
                self._face.restart()
            except Exception:
                log.exception("the guest could not be restarted")
                return

    def stop(self) -> None:
        """End everything; idempotent."""
        self._face.stop()
        self._end_boot()
        self._control.close()

    def request_stop(self) -> None:
        """Ask `wait` to return; may be called from a signal handler."""
        self._events.put("stop")

    # Boots

    def _boot(self) -> None:
        seed = self._settings.seed if self._settings.seed is not None else secrets.randbelow(1 << 32)
        self._system = System(
            self._registry,
            self._images.open,
            seed=seed,
            on_crash=self._crashed,
            on_debug=self._debug,
        )
        self._users = UserModeServer(self._system)
        self._users.start()

    def _end_boot(self) -> None:
        if self._users is not None:
            self._users.stop()
        if self._system is not None:
            self._past_violations += self._system.kernel.violations
            self._system.shut_down()
        self._users = None
        self._system = None

    def _new_boot(self) -> None:
        self._end_boot()
        self._boot()

    def _crashed(self, system: System) -> None:
        report = system.kernel.crash_report
        if report is None:
            failure = system.failure
            assert failure is not None
            log.error("the model failed:\n%s", "".join(traceback.format_exception(failure)))
            report = CrashReport(
                code=0,
                name="EMULATOR_FAILURE",
                parameters=(0, 0, 0, 0),
                rule=f"the emulated machine itself failed, not the driver: {type(failure).__name__}: {failure}",
                stack=tuple(line.rstrip() for line in traceback.format_exception(failure)[-8:]),
            )
        dump = self._write_dump(report, system)
        self._face.crashed(report.code, report.parameters, dump)
        self._crashes.append(CrashReport(**{**_plain(report), "dump": dump}))
        threading.Thread(target=lambda: self._events.put("restart"), name="bugcheck").start()

    def _write_dump(self, report: CrashReport, system: System) -> str:
        """What a small memory dump is on Windows: a file in the guest that says what happened, here as text."""
        name = f"{time.strftime('%m%d%y', time.gmtime())}-{len(self._crashes) + 1:02}.txt"
        windows = rf"{DUMP_DIRECTORY}\{name}"
        path = self._face.drive.host_path(windows)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{report.name} ({report.code:#x})",
            "parameters: " + " ".join(f"{p:#018x}" for p in report.parameters),
            f"rule: {report.rule}",
            f"seed: {system.seed}",
            "stack:",
            *(f"  {line}" for line in report.stack),
            "debug output:",
            *(f"  {line.rstrip()}" for line in system.debug_output()[-200:]),
        ]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return windows

    def _debug(self, line: str) -> None:
        with self._debug_log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(line.rstrip("\r\n") + "\n")

    # Control

    def _interrupt(self) -> dict[str, Any]:
        """A non-maskable interrupt, as Debug-VM -InjectNonMaskableInterrupt sends one: the kernel stops with 0x80."""
        self.system.bugcheck(NMI_HARDWARE_FAILURE, (_ODT, 0, 0, 0), "a non-maskable interrupt was sent")
        return {"ok": True}

    def _condition(self) -> dict[str, Any]:
        system = self._system
        current = list(system.kernel.violations) if system is not None else []
        return {
            "crashes": [_plain(c) for c in self._crashes],
            "violations": [asdict(v) for v in (*self._past_violations, *current)],
        }

    def _client_processes(self) -> list[ProcessInformation]:
        system = self._system
        return [ProcessInformation(*client) for client in system.client_processes()] if system else []

    def _request_stop(self) -> dict[str, Any]:
        self.request_stop()
        return {"ok": True}


def _plain(report: CrashReport) -> dict[str, Any]:
    return asdict(report)


def write_private(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file that only its owner can read (0600), complete or not at all."""
    draft = path.with_suffix(".part")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(data, file)
    draft.replace(path)
