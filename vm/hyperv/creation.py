"""From an image to a machine with its checkpoints. What was made is removed in reverse order when it does not end well."""

from __future__ import annotations

import base64
import secrets
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vm.deadline import Deadline
from vm.errors import DownlinkError, MachineError
from vm.hyperv import preflight
from vm.hyperv.readiness import Readiness
from vm.hyperv.record import READY, Record
from vm.managed import Say, Source
from vm.powershell.script import ScriptError
from vm.waiting import wait_until

if TYPE_CHECKING:
    from vm.hyperv.machine import HypervMachine

UNDO_SECONDS = 300.0
CLEAN = "clean"
VERIFIER = "verifier"


class Creation:
    """Makes one machine.

    Args:
        machine: the machine, with its settings, host and record.
        say: told of each step.
    """

    def __init__(self, machine: HypervMachine, say: Say) -> None:
        self._machine = machine
        self._settings = machine.settings
        self._host = machine.host
        self._say = say
        self._undo: list[tuple[str, Callable[[Deadline], object]]] = []

    def create(self, source: Source, deadline: Deadline) -> None:
        """Make the machine from an ISO or a disk; see `vm.managed.Managed.create`."""
        self._check_absent()
        with self._step("check the host and the image"):
            plan = preflight.plan(self._host, self._settings, source, deadline)
        settings = self._settings
        with self._undoing():
            made_switch = self._switch(deadline) if plan.make_switch else ""
            if plan.index:
                self._parent(source.iso, plan, deadline)
            record = self._begin(deadline, parent=plan.parent, made_switch=made_switch)
            base = str(settings.directory / "base.vhdx")
            bootstrap = {"username": settings.username, "password": _new_password()}
            with self._step("prepare the disk"):
                self._host.call("New-ChildDisk", deadline, Parent=plan.parent, Path=base)
                self._host.call(
                    "Set-DiskContent",
                    deadline,
                    secret=bootstrap,
                    Path=base,
                    Sources=str(settings.sources),
                    ComputerName=settings.computer_name,
                    Locale=settings.locale,
                    Language=plan.language,
                )
            self._new_machine(record, base, settings.switch, deadline)
            self._first_start(record, bootstrap, deadline)
            self._prepare(record, deadline)
            self._seal(record, base, deadline)
            self._finish(record, deadline)

    def create_clone(self, original: HypervMachine, parent: Record, deadline: Deadline) -> None:
        """Make a machine on the sealed disk of another one: everything is there but its own address and keys."""
        self._check_absent()
        settings = self._settings
        base = f"{parent.directory}\\base.vhdx"
        with self._undoing():
            record = self._begin(deadline, parent=base, made_switch="")
            disk = str(settings.directory / "system.vhdx")
            self._host.call("New-ChildDisk", deadline, Parent=base, Path=disk)
            # Not connected yet: it wakes up with the address of the original.
            self._new_machine(record, disk, "", deadline)
            self._start(record, None, deadline)
            record.python, record.defender = parent.python, parent.defender
            if parent.host_key:
                self._ssh(record, deadline)
            self._address(record, deadline)
            self._in_guest("Initialize-GuestVolumes", record, deadline)
            self._host.call(
                "Connect-Machine", deadline, Name=record.vm, Mark=record.mark, SwitchName=settings.switch
            )
            self._finish(record, deadline)

    # Steps

    def _check_absent(self) -> None:
        if self._machine.file.load() is not None:
            raise MachineError(
                f"the machine '{self._machine.name}' is there already, or is half made",
                hint=f"use it, or remove it first: ./inv vm.destroy --machine {self._machine.name}",
                machine=self._machine.name,
            )

    def _switch(self, deadline: Deadline) -> str:
        settings = self._settings
        with self._step(f"make the switch '{settings.switch}'"):
            self._host.call(
                "New-Switch",
                deadline,
                Name=settings.switch,
                HostAddress=str(settings.host_address),
                Nat=settings.nat,
            )
        self._undo.append(
            (
                f"the switch '{settings.switch}'",
                lambda late: self._host.call("Remove-Switch", late, Name=settings.switch),
            )
        )
        return settings.switch

    def _parent(self, iso: str, plan: preflight.Plan, deadline: Deadline) -> None:
        """The parent of an edition is made once, and stays for other machines even if this one fails."""
        with self._step(f"apply the image to '{plan.parent}'"):
            try:
                self._host.call("New-ImageFromIso", deadline, Iso=iso, Index=plan.index, Target=plan.parent)
            except ScriptError as error:
                if error.code != "file-exists":
                    raise

    def _begin(self, deadline: Deadline, *, parent: str, made_switch: str) -> Record:
        settings = self._settings
        record = Record(
            mark=uuid.uuid4().hex,
            vm=settings.vm,
            host=settings.host,
            directory=str(settings.directory),
            parent=parent,
            made_switch=made_switch,
            address=str(settings.address),
        )
        # On record before it exists: even a power failure leaves something that 'vm.destroy' finds.
        self._machine.file.save(record)
        self._undo.append((f"the record of '{record.vm}'", lambda _: self._machine.file.remove()))
        self._host.call("New-MachineDirectory", deadline, Mark=record.mark, Directory=record.directory)
        self._undo.append(
            (
                f"the virtual machine '{record.vm}' and its disks",
                lambda late: self._host.call(
                    "Remove-Machine", late, Name=record.vm, Mark=record.mark, Directory=record.directory
                ),
            )
        )
        return record

    def _new_machine(self, record: Record, disk: str, switch: str, deadline: Deadline) -> None:
        settings = self._settings
        connected: dict[str, Any] = {"SwitchName": switch} if switch else {}
        with self._step(f"make the virtual machine '{record.vm}'"):
            self._host.call(
                "New-Machine",
                deadline,
                Name=record.vm,
                Mark=record.mark,
                Directory=record.directory,
                Disk=disk,
                Cpus=settings.cpus,
                MemoryMB=settings.memory_mb,
                KeepVirtualizationSecurity=settings.keep_virtualization_security,
                **connected,
            )

    def _first_start(self, record: Record, bootstrap: dict[str, str], deadline: Deadline) -> None:
        """Windows sets itself up; then the password of the first start is replaced and its answer file is gone."""
        store, settings = self._machine.secret_store, self._settings
        given = store.find(settings.secret)
        lasting = given or _new_password()
        with self._step("let Windows set itself up"):
            self._start(record, bootstrap, deadline)
        store.put(settings.secret, lasting)
        if given is None:
            self._undo.append(("the password", lambda _: store.forget(settings.secret)))
        with self._step("give the account its password"):
            self._host.call(
                "Set-GuestAccount",
                deadline,
                secret={**bootstrap, "new_password": lasting},
                Name=record.vm,
                Mark=record.mark,
            )

    def _prepare(self, record: Record, deadline: Deadline) -> None:
        settings = self._settings
        with self._step("set boot options, crash dumps and quiet"):
            keep = settings.keep_virtualization_security
            self._in_guest("Set-GuestBoot", record, deadline, KeepVirtualizationSecurity=keep)
            self._in_guest("Set-GuestCrashDumps", record, deadline, PageFileMB=settings.page_file_mb)
            record.defender = str(self._in_guest("Set-GuestQuiet", record, deadline).get("defender", ""))
            self._in_guest("Initialize-GuestVolumes", record, deadline)
        self._ssh(record, deadline)
        with self._step("install Python"):
            record.python = str(self._in_guest("Install-GuestPython", record, deadline)["version"])
        with self._step("open WinRM"):
            self._address(record, deadline)

    def _ssh(self, record: Record, deadline: Deadline) -> None:
        port, file = self._settings.ssh_port, self._machine.file
        with self._step("install OpenSSH"):
            told = self._in_guest(
                "Install-GuestOpenSsh", record, deadline, PublicKey=file.make_key(), Port=port
            )
        if told["installed"]:
            record.host_key = str(told["host_key"])
            file.save_host_key(record.address, port, record.host_key)

    def _address(self, record: Record, deadline: Deadline) -> None:
        settings = self._settings
        gateway: dict[str, Any] = {"Gateway": str(settings.host_address)} if settings.nat else {}
        self._in_guest("Set-GuestNetwork", record, deadline, Address=record.address, **gateway)
        ports: dict[str, Any] = (
            {"HttpPort": settings.winrm_port}
            if settings.scheme == "http"
            else {"HttpsPort": settings.winrm_port}
        )
        told = self._in_guest("Enable-GuestRemoting", record, deadline, Address=record.address, **ports)
        self._machine.file.save_certificate(base64.b64decode(str(told["certificate"])))
        self._machine.file.save(record)

    def _seal(self, record: Record, base: str, deadline: Deadline) -> None:
        """The prepared disk becomes the read-only parent of the one that tests run on, and of clones."""
        disk = str(self._settings.directory / "system.vhdx")
        with self._step("seal the prepared disk"):
            self._host.call("Stop-Machine", deadline, Name=record.vm, Mark=record.mark, Shutdown=True)
            self._host.call("New-ChildDisk", deadline, Parent=base, Path=disk)
            self._host.call("Set-MachineDisk", deadline, Name=record.vm, Mark=record.mark, Path=disk)
            told = self._start(record, None, deadline)
        if told["secure_boot"]:
            raise self._host.refusal("secure-boot-on", "the guest runs with Secure Boot on")
        if not told["testsigning"]:
            raise MachineError(
                "the guest has started without test signing, although it was switched on",
                hint="look at 'bcdedit /enum {current}' in the guest",
                machine=self._machine.name,
            )

    def _finish(self, record: Record, deadline: Deadline) -> None:
        """The checkpoints, each without a session open; and the proof that the first one restores."""
        with self._step(f"take the checkpoint '{CLEAN}'"):
            self._ready(record, deadline)
            self._checkpoint(record, CLEAN, deadline)
            readiness = self._machine.readiness(record)
            record.nonce = secrets.token_hex(16)
            readiness.guest("Resume-Guest", self._machine.credentials(), deadline, Nonce=record.nonce)
        if self._settings.verify:
            with self._step(f"take the checkpoint '{VERIFIER}'"):
                self._verifier(record, deadline)
                self._ready(record, deadline)
                self._checkpoint(record, VERIFIER, deadline)
        with self._step(f"restore '{CLEAN}' and prove it"):
            self._machine.restore_to(CLEAN, record, deadline)
            self._host.call("Stop-Machine", deadline, Name=record.vm, Mark=record.mark)
        record.stage = READY
        self._machine.file.save(record)

    def _verifier(self, record: Record, deadline: Deadline) -> None:
        wanted = self._settings.verify
        readiness = self._machine.readiness(record)
        before = readiness.guest("Test-Guest", self._machine.credentials(), deadline)["boot_id"]
        self._in_guest("Set-GuestVerifier", record, deadline, Drivers=",".join(wanted))
        self._in_guest("Restart-Guest", record, deadline)
        self._new_boot(record, readiness, self._machine.credentials(), before, deadline)
        told = self._in_guest("Get-GuestVerifier", record, deadline)
        found = {str(name).casefold() for name in told["drivers"]}
        if missing := [name for name in wanted if name.casefold() not in found]:
            raise MachineError(
                f"Driver Verifier does not verify '{missing[0]}' after the restart, although it was switched on",
                hint="look at 'verifier /querysettings' in the guest",
                machine=self._machine.name,
            )

    # Pieces

    def _start(self, record: Record, bootstrap: dict[str, str] | None, deadline: Deadline) -> dict[str, Any]:
        """Start it and wait until its guest has set itself up and has nothing pending."""
        secret = bootstrap or self._machine.credentials()
        self._host.call("Start-Machine", deadline, Name=record.vm, Mark=record.mark)
        readiness = self._machine.readiness(record)
        # Windows restarts by itself while it sets itself up, with and without an account that takes commands.
        readiness.credential_seconds = deadline.remaining if bootstrap else readiness.credential_seconds
        readiness.heartbeat(deadline)
        told: dict[str, Any] = {}

        def set_up() -> str | None:
            nonlocal told
            told = readiness.guest("Test-Guest", secret, deadline)
            return None if told["setup"] in ("", "IMAGE_STATE_COMPLETE") else str(told["setup"])

        wait_until(set_up, "Windows to set itself up", deadline, machine=self._machine.name)
        if not told["pending"]:
            return told
        self._in_guest("Restart-Guest", record, deadline, secret=secret)
        told = self._new_boot(record, readiness, secret, told["boot_id"], deadline)
        if told["pending"]:
            raise MachineError(
                f"the guest still has to restart after it has restarted: {', '.join(told['pending'])}",
                hint="look at the updates in the image; an image without pending updates is better",
                machine=self._machine.name,
            )
        return told

    def _new_boot(
        self, record: Record, readiness: Readiness, secret: dict[str, str], before: str, deadline: Deadline
    ) -> dict[str, Any]:
        """Wait until the guest answers with another boot identity."""
        told: dict[str, Any] = {}

        def restarted() -> str | None:
            nonlocal told
            told = readiness.guest("Test-Guest", secret, deadline)
            return f"still the boot {before}" if told["boot_id"] == before else None

        wait_until(restarted, "the guest to restart", deadline, machine=self._machine.name)
        return told

    def _in_guest(
        self,
        script: str,
        record: Record,
        deadline: Deadline,
        *,
        secret: dict[str, str] | None = None,
        **parameters: str | int | bool,
    ) -> dict[str, Any]:
        return self._host.call(
            script,
            deadline,
            secret=secret or self._machine.credentials(),
            Name=record.vm,
            Mark=record.mark,
            **parameters,
        )

    def _ready(self, record: Record, deadline: Deadline) -> None:
        readiness = self._machine.readiness(record)
        readiness.heartbeat(deadline)
        self._machine.network(record, readiness, deadline)

    def _checkpoint(self, record: Record, name: str, deadline: Deadline) -> None:
        self._host.call("New-Checkpoint", deadline, Name=record.vm, Mark=record.mark, Checkpoint=name)

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._say(what, "", time.monotonic() - began)

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """Within, a failure or Ctrl-C removes what was made, in reverse order; what could not be is told."""
        try:
            yield
        except BaseException as error:
            late = Deadline.after(seconds=UNDO_SECONDS)
            left: list[BaseException] = []
            for what, action in reversed(self._undo):
                if left and what.startswith("the record"):
                    # 'vm.destroy' needs it to finish the job.
                    continue
                try:
                    action(late)
                except DownlinkError as problem:
                    left.append(MachineError(f"{what} could not be removed: {problem.message}"))
            if left and isinstance(error, DownlinkError):
                error.causes = (*error.causes, *left)
                error.hint = f"remove what is left: ./inv vm.destroy --machine {self._machine.name}"
            raise


def _new_password() -> str:
    """A password that satisfies every complexity policy and needs no quoting anywhere."""
    return f"{secrets.token_urlsafe(24)}aA1"
