"""The Windows face of an emulated machine: WinRM, SFTP, inbox commands and guest processes, from boot to boot."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vm.emulated.computer import Computer
from vm.emulated.guest import boot, python_image
from vm.emulated.guest.chaos.computer import observed
from vm.emulated.guest.chaos.plan import Chaos, parse
from vm.emulated.guest.clock import GuestClock
from vm.emulated.guest.commands.pending_files import finish_pending
from vm.emulated.guest.commands.schtasks import runner
from vm.emulated.guest.commands.session import Guest
from vm.emulated.guest.drive import Drive
from vm.emulated.guest.events import EventLogs
from vm.emulated.guest.power import Power, PowerAction
from vm.emulated.guest.processes import ProcessInformation, ProcessTable
from vm.emulated.guest.scheduler import TaskScheduler, Trigger
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.guest.sftp import SftpServer
from vm.emulated.guest.tls import make_identity
from vm.emulated.guest.winrm.authentication import Accounts
from vm.emulated.guest.winrm.server import WinRmServer
from vm.emulated.guest.winrm.service import Service
from vm.emulated.guest.winrm.shells import ShellTable
from vm.emulated.registry import Registry
from vm.errors import MachineError

log = logging.getLogger(__name__)

_DIRECTORIES = (
    "Windows/System32/drivers",
    "Windows/Temp",
    "Windows/Minidump",
    "ProgramData",
    "Program Files",
    "Users/Public",
)


class GuestFace:
    """Everything a client of the machine talks to. One face per process (pyspnego's account file is process-wide).

    Args:
        computer: the running system; asked anew for every command, since a restart replaces it.
        c_root: host directory that is the guest's C: drive; filled with what every Windows has.
        registry: shared with the kernel model.
        settings: account, ports, quotas.
        client_environment: variables that processes need to reach the kernel (`DOWNLINK_EMULATED`); asked at each
            start of a process.
        clients: processes connected to the kernel, for `tasklist`.
        on_new_boot: called by `restart` when the old system's users are gone; must replace what `computer` returns.
        on_restart_requested, on_shutdown_requested: called in a thread of their own when `shutdown` is due; without
            them the face restarts or stops itself.
        on_bugcheck_requested: called with code, parameters and reason when a fault wants the kernel to stop.
        on_address_changed: called when the ports are others after a restart.
        on_process_started, on_process_ended: told of every process that a command started.
    """

    def __init__(
        self,
        computer: Callable[[], Computer],
        c_root: Path,
        registry: Registry,
        settings: GuestSettings,
        *,
        client_environment: Callable[[], Mapping[str, str]] = dict,
        clients: Callable[[], Sequence[ProcessInformation]] | None = None,
        on_new_boot: Callable[[], None] | None = None,
        on_restart_requested: Callable[[], None] | None = None,
        on_bugcheck_requested: Callable[[int, tuple[int, int, int, int], str], None] | None = None,
        on_address_changed: Callable[[], None] | None = None,
        on_shutdown_requested: Callable[[], None] | None = None,
        on_process_started: Callable[[ProcessInformation], None] | None = None,
        on_process_ended: Callable[[ProcessInformation], None] | None = None,
    ) -> None:
        self._chaos = Chaos(parse(settings.chaos, settings.chaos_seed))
        settings, self._pinned = _with_certificate(self._chaos.settings(settings))
        self._settings = settings
        self._registry = registry
        self._drive = Drive(c_root, on_write=self._chaos.on_write)
        self._clock = GuestClock(registry)
        self._events = EventLogs(settings.computer_name, self._clock.now)
        self._scheduler = TaskScheduler()
        self._crash: tuple[int, tuple[int, int, int, int], str] | None = None
        self._processes = ProcessTable(on_process_started, on_process_ended, clients)
        self._on_new_boot = on_new_boot
        self._on_bugcheck = on_bugcheck_requested
        self._on_address_changed = on_address_changed
        self._on_power = {
            PowerAction.RESTART: on_restart_requested or self.restart,
            PowerAction.SHUTDOWN: on_shutdown_requested or self.stop,
        }
        self._power = Power(lambda action: self._on_power[action]())
        guest = Guest(
            settings=settings,
            computer=lambda: observed(computer(), self._chaos, self._events),
            drive=self._drive,
            registry=registry,
            processes=self._processes,
            power=self._power,
            client_environment=client_environment,
            chaos=self._chaos,
            events=self._events,
            scheduler=self._scheduler,
        )
        self._guest = guest
        self._accounts = Accounts(settings)
        self._shells = ShellTable(guest)
        self._winrm = WinRmServer(Service(guest, self._shells), self._settings)
        self._sftp = SftpServer(self._drive, settings, self._chaos)
        self._lock = threading.Lock()
        self._running = False
        self._chaos.bind(self)

    @property
    def winrm_port(self) -> int:
        """Port of WinRM; 0 while stopped."""
        return self._winrm.port

    @property
    def ssh_port(self) -> int:
        """Port of SFTP; 0 while stopped."""
        return self._sftp.port

    @property
    def host_key(self) -> str:
        """The SSH host key of this start ("ssh-ed25519 AAAA…")."""
        return self._sftp.host_key

    @property
    def certificate(self) -> Path | None:
        """The file with the TLS certificate that clients are to pin; None without HTTPS."""
        return self._pinned

    @property
    def chaos(self) -> Chaos:
        """The faults of this guest and what they did."""
        return self._chaos

    @property
    def events(self) -> EventLogs:
        """The guest's event logs."""
        return self._events

    @property
    def scheduler(self) -> TaskScheduler:
        """The guest's scheduled tasks."""
        return self._scheduler

    @property
    def clock(self) -> GuestClock:
        """The guest's clock."""
        return self._clock

    @property
    def drive(self) -> Drive:
        """The C: drive."""
        return self._drive

    @property
    def processes(self) -> ProcessTable:
        """The guest's processes."""
        return self._processes

    def start(self) -> None:
        """Prepare C:, boot the registry's part, open both servers.

        Raises:
            MachineError: a port is in use, the disk cannot be written, or the guest's Python cannot be made; nothing
                is left running then.
        """
        with self._lock:
            if self._running:
                return
            try:
                self._chaos.resume()
                self._prepare()
                self._accounts.install()
                delay = self._chaos.boot_delay_seconds()
                self._winrm.start(suspended=delay > 0)
                self._sftp.start(suspended=delay > 0)
            except (OSError, MachineError) as error:
                self._close()
                if isinstance(error, MachineError):
                    raise
                raise MachineError(
                    f"the emulated guest could not be prepared: {error}",
                    hint="check that the machine's directory can be written and the disk is not full",
                ) from error
            self._shells.start()
            self._running = True
            if delay:
                self._chaos.run(self._answer, delay_seconds=delay)
        log.info("guest answers: WinRM on 127.0.0.1:%d, SFTP on 127.0.0.1:%d", self.winrm_port, self.ssh_port)

    def restart(self) -> None:
        """Restart the guest: connections, shells and processes go, `on_new_boot` runs, the servers answer again.

        Ports, password and host key stay, unless a fault has it otherwise; the boot identity is another. A stopped guest stays stopped.
        """
        with self._lock:
            if not self._running:
                return
            self._power.abort()
            self._winrm.suspend()
            self._sftp.suspend()
            self._chaos.release()
            self._scheduler.close()
            self._processes.close()
            self._shells.clear()
            died, ended = self._crash, self._clock.now()
            self._crash = None
            if died is None:
                self._events.shut_down(
                    f"{self._settings.computer_name}\\{self._settings.username}", restart=True
                )
            # The new system reads its boot options from the registry.
            boot.begin(self._registry)
            finish_pending(self._registry, self._drive)
            if self._on_new_boot is not None:
                self._on_new_boot()
            self._processes.open()
            self._chaos.resume()
            moved = self._meet_boot(first=False)
            self._log_boot()
            if died is not None:
                self._events.died(ended, died)
            self._scheduler.open()
            delay = self._chaos.boot_delay_seconds()
            if not delay:
                self._winrm.resume()
                self._sftp.resume()
        self._start_tasks()
        if moved and self._on_address_changed is not None:
            self._on_address_changed()
        if delay:
            self._chaos.run(self._answer, delay_seconds=delay)
        log.info("the guest has restarted")

    def crashed(self, code: int, parameters: tuple[int, int, int, int], dump: str) -> None:
        """The kernel has stopped with this bugcheck; the event log will tell at the next boot.

        Args:
            dump: Windows path of the dump that was written.
        """
        self._crash = code, parameters, dump

    def bugcheck(self, code: int, parameters: tuple[int, int, int, int], rule: str) -> None:
        """Have the kernel stop with this bugcheck; the restart follows from it."""
        if self._on_bugcheck is not None:
            self._on_bugcheck(code, parameters, rule)

    def restart_winrm(self) -> None:
        """Restart the WinRM service alone: its connections and shells are gone, everything else stays."""
        with self._lock:
            if self._running:
                self._winrm.suspend()
                self._shells.clear()
                self._winrm.resume()

    def stop(self) -> None:
        """Stop the servers and end every shell and process; idempotent."""
        self._chaos.release()
        with self._lock:
            self._running = False
            self._scheduler.close()
            self._close()
        # What a fault has started may wait for the lock.
        self._chaos.close()

    def _answer(self) -> None:
        """A boot that took its time is over."""
        with self._lock:
            if self._running:
                self._winrm.resume()
                self._sftp.resume()

    def _log_boot(self) -> None:
        """The event log's first records of a boot."""
        major, minor, build, _ = boot.WINDOWS_VERSION.split(".")
        self._events.booted(f"{major}.{int(minor):02}", build)

    def _start_tasks(self) -> None:
        """Run what starts with the system."""
        for task in self._scheduler.all():
            if task.definition.trigger is Trigger.BOOT:
                self._scheduler.run(task, runner(self._guest), self._clock.now())

    def _meet_boot(self, *, first: bool) -> bool:
        """What faults make of a boot; True if the ports are others."""
        self._clock.step(self._chaos.clock_step_seconds(first=first))
        if self._chaos.changes_host_key():
            self._sftp.replace_key()
        if first or not self._chaos.changes_ports():
            return False
        self._winrm.move()
        self._sftp.move()
        return True

    def _prepare(self) -> None:
        for directory in (*_DIRECTORIES, f"Users/{self._settings.username}"):
            (self._drive.root / directory).mkdir(parents=True, exist_ok=True)
        python_image.install(self._drive.root, self._settings.cache_directory, self._settings.python_packages)
        boot.prepare(
            self._registry, testsigning=self._settings.testsigning, secure_boot=self._settings.secure_boot
        )
        boot.begin(self._registry)
        finish_pending(self._registry, self._drive)
        self._meet_boot(first=True)
        self._log_boot()
        self._processes.open()
        self._scheduler.open()

    def _close(self) -> None:
        self._power.abort()
        self._winrm.stop()
        self._sftp.stop()
        self._processes.close()
        self._shells.stop()
        self._accounts.remove()


def _with_certificate(settings: GuestSettings) -> tuple[GuestSettings, Path | None]:
    """The settings with a certificate if HTTPS is wanted, and the file that clients are to pin."""
    if settings.tls is not None or not settings.https:
        return settings, settings.tls.certificate if settings.tls else None
    directory, name, days = settings.state_directory, settings.computer_name, settings.certificate_days
    try:
        tls = make_identity(directory, name, days)
        pinned = (
            tls if settings.certificate_pinned else make_identity(directory, name, days, stem="winrm-pinned")
        )
    except OSError as error:
        raise MachineError(f"the certificate of the emulated machine cannot be written: {error}") from error
    return replace(settings, tls=tls), pinned.certificate
