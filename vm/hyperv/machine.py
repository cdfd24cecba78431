"""`HypervMachine`: a virtual machine of Hyper-V as the harness sees it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vm.deadline import Deadline
from vm.errors import MachineError
from vm.hyperv import crashes
from vm.hyperv.creation import Creation
from vm.hyperv.host import HyperVHost
from vm.hyperv.image import check_image
from vm.hyperv.readiness import CREDENTIAL_SECONDS, HEARTBEATS, Readiness
from vm.hyperv.record import CREATING, Record, RecordFile, merged
from vm.hyperv.settings import HypervSettings
from vm.machine import (
    Abilities,
    Condition,
    Credentials,
    DeploymentMode,
    GuestAddress,
    MachineState,
)
from vm.managed import Checkpoint, Say, Source, Timings
from vm.registry import used_as
from vm.secrets import SecretStore

_CLONES = threading.Lock()
"""Clones are made by several threads at once, and their numbers are in one record."""

STATE_SECONDS = 60.0
"""How long a question to the Hyper-V host may take."""

_STATES: Mapping[str, MachineState] = {
    "off": MachineState.STOPPED,
    "saved": MachineState.STOPPED,
    "running": MachineState.RUNNING,
}
"""Every other state (paused, starting for ever, critical) is left by a restore."""


class HypervMachine:
    """Implements `vm.machine.Machine` and `vm.managed.Managed`.

    Args:
        name: name in `harness.toml`.
        directory: `.machines/<name>`: record, certificate and keys, nothing large.
        settings: those of the kind "hyperv"; "rules"; and what the harness brings: "script_hosts" (makes the `ScriptHost`
            of a host by its name, "" = this one), "secrets" (a `SecretStore`) and "guests" (connects with a guest).
    """

    def __init__(self, name: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self._given = settings
        self._directory = directory
        self._timings: Timings | None = None
        self.settings = settings.get("_settings") or HypervSettings.of(name, settings)
        self.host = HyperVHost(self.settings, settings["script_hosts"])
        self.file = RecordFile(directory, name)

    @property
    def name(self) -> str:
        return self.settings.machine

    @property
    def kind(self) -> str:
        return "hyperv"

    @property
    def abilities(self) -> Abilities:
        return used_as(
            Abilities(deployment=DeploymentMode.PACKAGE, detached=True, start_seconds=600), self._given
        )

    @property
    def timings(self) -> Timings | None:
        """Of the last restore by this object."""
        return self._timings

    @property
    def secret_store(self) -> SecretStore:
        store: SecretStore = self._given["secrets"]
        return store

    def state(self) -> MachineState:
        record = self.file.load()
        if record is None:
            return MachineState.ABSENT
        found = self._look(Deadline.after(seconds=STATE_SECONDS), record)
        if not found["present"]:
            return MachineState.ABSENT
        if not found["own"]:
            raise self.host.refusal("vm-foreign", "its notes do not bear the mark")
        return _STATES.get(found["state"], MachineState.DIRTY)

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """See `Machine.start`. `keep` changes nothing: a virtual machine is no child of this process."""
        record = self._record()
        self.host.call("Start-Machine", deadline, Name=record.vm, Mark=record.mark)
        readiness = self._readiness(record)
        readiness.heartbeat(deadline)
        address = self._address(record)
        readiness.network(address, self._given["guests"], deadline)
        return address

    def stop(self, deadline: Deadline) -> None:
        """Turn it off, as by pulling the plug: what it did since its checkpoint is of no worth."""
        record = self.file.load()
        if record is None:
            return
        # Also when no time is left: a machine that is to be stopped must not go on.
        deadline = deadline if deadline.remaining > STATE_SECONDS else Deadline.after(seconds=STATE_SECONDS)
        if self._look(deadline, record)["present"]:
            self.host.call("Stop-Machine", deadline, Name=record.vm, Mark=record.mark)

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """Turn it off, go back to the checkpoint of the settings, set the clock, and wait until commands run.

        Raises:
            MachineError: no such checkpoint; or the restore did not take back what was written after the checkpoint.
            DeadlineExceededError: with the condition that was not met and what was last seen.
        """
        record = self._record()
        return self.restore_to(self.settings.checkpoint, record, deadline)

    def restore_to(self, checkpoint: str, record: Record, deadline: Deadline) -> GuestAddress:
        """`restore`, to that checkpoint."""
        began = time.monotonic()
        done = self.host.call(
            "Restore-Machine", deadline, Name=record.vm, Mark=record.mark, Checkpoint=checkpoint
        )
        restore_s = time.monotonic() - began
        readiness = self._readiness(record)
        readiness.heartbeat(deadline)
        nonce = secrets.token_hex(16)
        former = {"FormerNonce": record.nonce} if record.nonce else {}
        told = readiness.guest("Resume-Guest", self.credentials(), deadline, Nonce=nonce, **former)
        if told.get("former_nonce"):
            raise MachineError(
                f"the restore of the checkpoint '{checkpoint}' did not take back what was written after it",
                hint="the checkpoint may be one without the machine's own disk; ./inv vm.destroy and create it again",
                machine=self.name,
            )
        record.nonce, record.restored = nonce, checkpoint
        merged(record, told, "boot_id", "booted", "system_record")
        merged(record, done, "host_record")
        self.file.save(record)
        address = self._address(record)
        readiness.network(address, self._given["guests"], deadline)
        self._timings = Timings(
            restore_s=restore_s,
            ready_s=readiness.seconds,
            conditions=tuple(readiness.met),
            skew_s=float(told.get("skew_s", 0.0)),
        )
        return address

    def address(self) -> GuestAddress:
        record = self.file.load()
        found = self._look(Deadline.after(seconds=STATE_SECONDS), record) if record else {"present": False}
        if record is None or not found["present"] or found["state"] != "running":
            raise MachineError(
                f"the machine '{self.name}' does not run",
                hint=f"start it with './inv vm.start --machine {self.name}'",
                machine=self.name,
            )
        return self._address(record)

    def condition(self) -> Condition:
        """What the host saw of a guest that does not answer any more; of one that does, its event log tells more."""
        record = self.file.load()
        if record is None:
            return Condition()
        deadline = Deadline.after(seconds=STATE_SECONDS)
        found = self._look(deadline, record)
        if not found["present"] or (found["state"] == "running" and found["heartbeat"] in HEARTBEATS):
            return Condition()
        told = self.host.call(
            "Get-MachineEvents", deadline, Name=record.vm, Mark=record.mark, AfterRecord=record.host_record
        )
        return Condition(crashes=crashes.of_events(told["events"]))

    def check_image(self, image: bytes, name: str) -> None:
        check_image(image, name)

    def clone(self, number: int) -> HypervMachine:
        """The clone with that number; it is made by its first `restore`, from the machine's sealed disk."""
        settings = {**self._given, "_settings": self.settings.clone(number), "_parent": (self, number)}
        return _Clone(
            f"{self.name}-w{number}", self._directory.with_name(f"{self._directory.name}-w{number}"), settings
        )

    # Managed

    def create(self, source: Source, deadline: Deadline, say: Say) -> None:
        Creation(self, say).create(source, deadline)

    def create_clone(self, number: int, deadline: Deadline, say: Say) -> HypervMachine:
        """Make the clone with that number: a disk on the machine's sealed one, an address of its own, its checkpoints."""
        with _CLONES:
            # Before it exists: what stands on the machine's disk must be known whatever happens.
            parent = self._record()
            parent.clones = sorted({*parent.clones, number})
            self.file.save(parent)
        made = self.clone(number)
        Creation(made, say).create_clone(self, parent, deadline)
        return made

    def checkpoint(self, name: str, deadline: Deadline) -> Checkpoint:
        record = self._record()
        made = self.host.call("New-Checkpoint", deadline, Name=record.vm, Mark=record.mark, Checkpoint=name)
        return Checkpoint(name=name, created=str(made["created"]))

    def checkpoints(self, deadline: Deadline) -> tuple[Checkpoint, ...]:
        record = self._record()
        found = self._look(deadline, record)
        if not found["present"]:
            raise self.host.refusal("vm-not-found", f"there is no virtual machine '{record.vm}'")
        return tuple(
            Checkpoint(entry["name"], entry["created"], entry.get("parent", ""))
            for entry in found["checkpoints"]
        )

    def describe(self) -> str:
        record = self.file.load()
        if record is None:
            # Nothing of ours: say so if a virtual machine of that name is there, so that nobody thinks it is gone.
            deadline = Deadline.after(seconds=STATE_SECONDS)
            found = self.host.call("Get-Machine", deadline, Name=self.settings.vm)
            if found["present"]:
                raise self.host.refusal("vm-foreign", "nothing is remembered of it here")
            return ""
        found = self._look(Deadline.after(seconds=STATE_SECONDS), record)
        if found["present"] and not found["own"]:
            raise self.host.refusal("vm-foreign", "its notes do not bear the mark")
        clones = f", its clones {', '.join(str(n) for n in record.clones)}" if record.clones else ""
        return f"the virtual machine '{record.vm}' on {self.host.where} with its checkpoints{clones} and '{record.directory}'"

    def destroy(self, deadline: Deadline) -> tuple[str, ...]:
        record = self.file.load()
        if record is None:
            return ()
        removed: list[str] = []
        # First what stands on the machine's disk.
        for number in list(record.clones):
            removed += self.clone(number).destroy(deadline)
            record.clones.remove(number)
            self.file.save(record)
        answer = self.host.call(
            "Remove-Machine", deadline, Name=record.vm, Mark=record.mark, Directory=record.directory
        )
        removed += [str(entry) for entry in answer["removed"]]
        self.forget_secret()
        self.file.remove()
        return tuple(removed)

    # Shared with the creation

    def credentials(self) -> dict[str, str]:
        """What scripts read from standard input to log on to the guest."""
        username = self.settings.username
        password = self.secret_store.get(
            self.settings.secret, purpose=f"log on to the machine '{self.name}' as {username}"
        )
        return {"username": username, "password": password}

    def forget_secret(self) -> None:
        """Forget the password, which nothing has any more."""
        self.secret_store.forget(self.settings.secret)

    def readiness(self, record: Record) -> Readiness:
        return self._readiness(record)

    def network(self, record: Record, readiness: Readiness, deadline: Deadline) -> None:
        """Wait until the guest takes commands over the network; leaves no session open."""
        readiness.network(self._address(record), self._given["guests"], deadline)

    def _readiness(self, record: Record) -> Readiness:
        seconds = float(self._given.get("_credential_seconds", CREDENTIAL_SECONDS))
        return Readiness(self.host, self.settings, record.mark, credential_seconds=seconds)

    def _look(self, deadline: Deadline, record: Record) -> dict[str, Any]:
        return self.host.call("Get-Machine", deadline, Name=record.vm, Mark=record.mark)

    def _record(self) -> Record:
        """The record of a machine that is complete."""
        record = self.file.load()
        if record is None:
            raise MachineError(
                f"the machine '{self.name}' does not exist yet",
                hint=f"make it: ./inv vm.create --machine {self.name} --iso FILE",
                machine=self.name,
            )
        if record.stage == CREATING:
            raise MachineError(
                f"the machine '{self.name}' is half made: its creation was cut off",
                hint=f"remove what is there: ./inv vm.destroy --machine {self.name}",
                machine=self.name,
            )
        if record.vm != self.settings.vm or record.host != self.settings.host:
            raise MachineError(
                f"the machine '{self.name}' was made as '{record.vm}' on '{record.host or 'this host'}',"
                " which is not what its settings say",
                hint="put 'vm' and 'host' back, or ./inv vm.destroy with the old settings first",
                machine=self.name,
            )
        return record

    def _address(self, record: Record) -> GuestAddress:
        given = self.credentials()
        return GuestAddress(
            host=record.address,
            winrm_port=self.settings.winrm_port,
            winrm_scheme=self.settings.scheme,
            winrm_transport="ntlm",
            ssh_port=self.settings.ssh_port if record.host_key else None,
            host_key=record.host_key or None,
            credentials=Credentials(given["username"], given["password"]),
            certificate=self.file.certificate if self.settings.scheme == "https" else None,
            private_key=self.file.private_key if record.host_key else None,
        )


class _Clone(HypervMachine):
    """A clone makes itself when it is first needed, and leaves the password to its machine."""

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        record = self.file.load()
        if record is None or record.stage == CREATING:
            if record is not None:
                self.destroy(deadline)
            parent, number = self._given["_parent"]
            parent.create_clone(number, deadline, lambda *_: None)
        return super().restore(deadline, keep=keep)

    def forget_secret(self) -> None:
        """It is the machine's."""
