"""Machines made, put on record and removed: `vm.create`, `vm.checkpoint`, `vm.list`, `vm.destroy`."""

from __future__ import annotations

import sys
from typing import Protocol, runtime_checkable

from harness.config import Configuration
from harness.console import Console
from harness.machines import held
from vm.deadline import Deadline
from vm.errors import MachineError
from vm.machine import Machine
from vm.managed import Managed, Source

CREATE_SECONDS = 7200
"""Windows sets itself up in 5 to 20 minutes; applying an image to a slow disk takes as long again."""

CHECKPOINT_SECONDS = 600
DESTROY_SECONDS = 600
LIST_SECONDS = 60


@runtime_checkable
class Destroyable(Protocol):
    """A machine that can be removed from this host."""

    def describe(self) -> str: ...

    def destroy(self, deadline: Deadline) -> tuple[str, ...]: ...


def create(configuration: Configuration, name: str | None, source: Source, console: Console) -> None:
    """Make a machine from an image; one of a kind that needs none is brought up once, and down again.

    Raises:
        MachineError: something is wrong with host or image, before anything was changed; or a step failed, and what was
            made is removed again.
    """
    from harness import lifecycle

    machine = configuration.create_machine(name, configuration.driver())
    if not isinstance(machine, Managed):
        if source.iso or source.vhdx or source.edition:
            raise MachineError(
                f"machines of the kind '{machine.kind}' are not made from an image",
                hint="leave out --iso, --vhdx and --edition",
                machine=machine.name,
            )
        lifecycle.create(configuration, name, console)
        return
    with held(configuration, name, configuration.driver()) as mine:
        managed = _managed(mine.machine, "are not made from an image")
        managed.create(source, Deadline.after(seconds=CREATE_SECONDS), console.step)
    console.line(f"the machine '{machine.name}' is ready: ./inv test --machine {machine.name}")


def checkpoint(configuration: Configuration, name: str | None, label: str, console: Console) -> None:
    """Take a checkpoint of the machine as it is now.

    Raises:
        MachineError: the machine's kind has none, or the name is taken.
    """
    if not label.strip():
        raise MachineError("a checkpoint needs a name", hint="give --name NAME")
    with held(configuration, name, configuration.driver()) as mine:
        made = _managed(mine.machine, "take no checkpoints").checkpoint(
            label, Deadline.after(seconds=CHECKPOINT_SECONDS)
        )
    console.line(
        f"the checkpoint '{made.name}' was taken at {made.created}; restore it with checkpoint = \"{made.name}\""
    )


def show(configuration: Configuration, name: str | None, console: Console) -> None:
    """Print each machine of the configuration with its kind and state, or one machine's checkpoints, too.

    A machine that cannot be asked is listed with the reason; only for one asked for by name it is an error.
    """
    for entry in [configuration.machine(name).name] if name else configuration.machines:
        machine = configuration.create_machine(entry, configuration.driver())
        try:
            state = machine.state().value
            found = (
                machine.checkpoints(Deadline.after(seconds=LIST_SECONDS))
                if isinstance(machine, Managed) and state != "absent"
                else ()
            )
        except MachineError as error:
            if name:
                raise
            console.line(f"{entry:16} {machine.kind:10} cannot be asked: {error.message}")
            continue
        console.line(f"{entry:16} {machine.kind:10} {state}")
        for point in found:
            after = f", after '{point.parent}'" if point.parent else ""
            console.line(f"    {point.name:12} {point.created}{after}")


def destroy(configuration: Configuration, name: str | None, yes: bool, console: Console) -> None:
    """Remove a machine that was made here, after asking.

    Raises:
        MachineError: it was not made here, there is nobody to ask, or the answer was no.
    """
    with held(configuration, name, configuration.driver()) as mine:
        machine = mine.machine
        if not isinstance(machine, Destroyable):
            raise MachineError(
                f"a machine of the kind '{machine.kind}' is not ours to remove", machine=machine.name
            )
        what = machine.describe()
        if not what:
            console.line(f"there is nothing of the machine '{machine.name}'")
            return
        if not yes and not _confirmed(f"this removes {what}; go on? [y/N] "):
            raise MachineError(
                f"the machine '{machine.name}' was not removed",
                hint="answer with y, or give --yes",
                machine=machine.name,
            )
        for removed in machine.destroy(Deadline.after(seconds=DESTROY_SECONDS)):
            console.line(f"removed '{removed}'")


def told_timings(machine: Machine) -> str:
    """How long the last restore took, for people; "" if the machine does not measure it."""
    timings = machine.timings if isinstance(machine, Managed) else None
    if timings is None:
        return ""
    met = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timings.conditions)
    clock = f"; the clock was {timings.skew_s:+.1f} s off" if abs(timings.skew_s) >= 1 else ""
    return f"restore_s {timings.restore_s:.2f}, ready_s {timings.ready_s:.2f} ({met}){clock}"


def _managed(machine: Machine, what: str) -> Managed:
    if not isinstance(machine, Managed):
        raise MachineError(
            f"machines of the kind '{machine.kind}' {what}",
            hint="'restore' brings an emulated machine back to its one clean state"
            if machine.kind == "emulated"
            else None,
            machine=machine.name,
        )
    return machine


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().casefold() in ("y", "yes")
    except EOFError:
        return False
