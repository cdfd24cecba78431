"""One command at a time on a machine, the mark of a dirty one, and stopping it for good whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.bootstrap import try_lock
from harness.config import Configuration, DriverConfig
from harness.deployment.plan import UnloadError
from harness.package import Package
from vm.deadline import Deadline
from vm.errors import DownlinkError, MachineError
from vm.machine import GuestAddress, Machine, MachineState

STOP_SECONDS = 20
_DIRTY = "dirty.txt"
_LOCK = "command.lock"


class HeldMachine:
    """A machine that this command has for itself.

    Args:
        machine: the machine.
        directory: where the harness keeps its own notes about it on the host.
    """

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.name = machine.name
        self._dirty = directory / _DIRTY
        self._boot = ""
        self.started_here = False

    @property
    def restores(self) -> bool:
        """It has a clean state to go back to; if not, the harness cleans up behind itself."""
        return self.machine.abilities.restores

    @property
    def starting(self) -> str:
        """What bringing it up is, for people: one that is not ours is there already, or it is not."""
        return f"start the machine '{self.name}'" if self.restores else f"reach the machine '{self.name}'"

    @property
    def dirty(self) -> str | None:
        """Why the machine must be restored before it is used again; None when it need not."""
        if self._dirty.exists():
            return self._dirty.read_text(encoding="utf-8").strip()
        return "the machine says so" if self.machine.state() is MachineState.DIRTY else None

    def refuse_elsewhere(self) -> None:
        """Refuse a machine that is not made here and can never be used from this host, before anything is built.

        Raises:
            MachineError: with the reason.
        """
        if not self.restores:
            self.machine.state()

    def start(self) -> GuestAddress:
        """Bring it up as it is, or restored if it is dirty and can be, to stay; returns at once if it runs."""
        if self.restores and self.dirty:
            return self.restore(keep=True)
        self.started_here = self.started_here or self.machine.state() is not MachineState.RUNNING
        return self.machine.start(Deadline.after(seconds=self.machine.abilities.start_seconds))

    def restore(self, *, keep: bool) -> GuestAddress:
        """Put it back to its clean state and bring it up; without `keep` it does not outlive this process.

        One that has no clean state is only brought up: `see_boot` tells whether it may be used.
        """
        self.started_here = True
        address = self.machine.restore(
            Deadline.after(seconds=self.machine.abilities.start_seconds), keep=keep
        )
        if self.restores:
            self._dirty.unlink(missing_ok=True)
        return address

    def see_boot(self, boot: str) -> None:
        """Take note of the boot that the guest is in. For a dirty machine without restore another one is as good as clean.

        Raises:
            MachineError: it is still the boot in which a driver hung.
        """
        self._boot = boot
        if self.restores or not (reason := self.dirty):
            return
        if reason.endswith(_in_boot(boot)):
            raise MachineError(
                f"the machine has to be restarted before it is used again: {reason}",
                hint="shutdown /r /t 0 there; it has no checkpoint, and the next command sees that it was restarted",
                machine=self.name,
            )
        self._dirty.unlink(missing_ok=True)

    def stop(self) -> None:
        """Take it down. A second Ctrl-C meanwhile takes the time to be gentle away, not the stopping."""
        try:
            self.machine.stop(Deadline.after(seconds=STOP_SECONDS))
        except KeyboardInterrupt:
            self.machine.stop(Deadline.after(seconds=0))
            raise

    def explain(self, error: DownlinkError) -> None:
        """Add what the machine knows of crashes and broken rules to the causes of an error that happened on it."""
        try:
            condition = self.machine.condition()
        except DownlinkError:
            return
        for crash in condition.crashes:
            stack = f" at {crash.stack[0]}" if crash.stack else ""
            rule = f": {crash.rule}" if crash.rule else ""
            error.causes += (MachineError(f"bugcheck 0x{crash.code:X} {crash.name}{stack}{rule}"),)
        for violation in condition.violations:
            error.causes += (MachineError(f"{violation.rule} by '{violation.driver}': {violation.message}"),)

    def mark_dirty(self, error: DownlinkError) -> None:
        """Remember that the machine must be restored, if this error means so: a hung unload holds it for ever."""
        if isinstance(error, UnloadError):
            self._dirty.parent.mkdir(parents=True, exist_ok=True)
            text = error.message if self.restores else error.message + _in_boot(self._boot)
            self._dirty.write_text(text + "\n", encoding="utf-8")

    def clone(self, number: int) -> HeldMachine:
        """Another machine with the same clean state, for one of several workers; `number` counts from 1.

        Raises:
            MachineError: machines of this kind have no clones.
        """
        notes = self._dirty.parent / f"w{number}"
        notes.mkdir(exist_ok=True)
        return HeldMachine(self.machine.clone(number), notes)

    def check(self, package: Package) -> None:
        """Refuse a package whose image the machine cannot load; raises `PackageError` before anything is touched."""
        self.machine.check_image(package.image.read_bytes(), package.image.name)

    @contextmanager
    def stopped_on_failure(self) -> Iterator[None]:
        """Within, a failure or Ctrl-C stops the machine if this command started it, and a hung unload marks it."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, DownlinkError):
                self.explain(error)
                self.mark_dirty(error)
            if self.started_here:
                self.stop()
            raise


def _in_boot(boot: str) -> str:
    """What the mark of a machine that cannot be restored ends with."""
    return f" (in its boot {boot})"


@contextmanager
def held(
    configuration: Configuration, name: str | None, driver: DriverConfig, checkpoint: str | None = None
) -> Iterator[HeldMachine]:
    """The machine of that name, for this command alone.

    Args:
        checkpoint: what `restore` goes back to; None = what the machine's settings say.

    Raises:
        ConfigurationError: there is no such machine, or its kind has no checkpoints by name.
        MachineError: another command has it.
    """
    machine = configuration.create_machine(name, driver, checkpoint)
    directory = configuration.machine_directory(machine.name)
    # Beside, not in, the machine's directory: a restore may replace that whole.
    notes = directory.parent / f".{machine.name}"
    notes.mkdir(parents=True, exist_ok=True)
    with (notes / _LOCK).open("a+b") as lock:
        if not try_lock(lock.fileno()):
            raise MachineError(
                "another command is using the machine",
                hint="wait until it has ended, or add a second machine to harness.local.toml",
                machine=machine.name,
            )
        yield HeldMachine(machine, notes)
