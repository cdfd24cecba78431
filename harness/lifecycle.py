"""A machine's life by hand: create, start, stop, restore, and a shell in its guest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType

from harness.choices import where
from harness.config import Configuration
from harness.console import Console
from harness.machines import HeldMachine, held
from harness.provisioning import told_timings
from harness.remote.guest import Guest
from harness.remote.winrm import CommandResult
from vm.deadline import Deadline
from vm.errors import DownlinkError, MachineError
from vm.machine import GuestAddress

COMMAND_SECONDS = 3600
"""A command typed by a person may take long, but a forgotten one must not hold a shell for ever."""

_EXIT_CODE_LIMIT = 255
"""Exit statuses of this host are a byte; a larger code of Windows becomes 1."""


def create(configuration: Configuration, name: str | None, console: Console) -> None:
    """Bring the machine up once from its clean state and take it down again: it is ready for its first use.

    Raises:
        MachineError: it is not made here.
    """
    with _held(configuration, name) as machine, machine.stopped_on_failure():
        if not machine.restores:
            raise MachineError(
                f"a machine of the kind '{machine.machine.kind}' is not made here",
                hint=f"./inv doctor --machine {machine.name} says whether it is ready for its first use",
                machine=machine.name,
            )
        _timed(console, f"create '{machine.name}'", lambda: machine.restore(keep=False))
        machine.stop()


def start(configuration: Configuration, name: str | None, console: Console) -> None:
    """Bring the machine up and leave it running; one that is not ours to start is waited for."""
    with _held(configuration, name) as machine, machine.stopped_on_failure():
        _timed(console, machine.starting, machine.start)


def stop(configuration: Configuration, name: str | None, console: Console) -> None:
    """Take the machine down; one that is not ours to stop stays as it is."""
    with _held(configuration, name) as machine:
        if not machine.restores:
            console.line(f"the machine '{machine.name}' is not ours to stop: it stays as it is")
            return
        began = time.monotonic()
        machine.stop()
        console.step(f"stop '{machine.name}'", "", time.monotonic() - began)


def restore(configuration: Configuration, name: str | None, console: Console) -> None:
    """Put the machine back to its clean state and leave it running.

    Raises:
        MachineError: it has no clean state to go back to.
    """
    with _held(configuration, name) as machine, machine.stopped_on_failure():
        if not machine.restores:
            raise MachineError(
                f"a machine of the kind '{machine.machine.kind}' has no checkpoint to go back to",
                hint="a driver that cannot be unloaded goes with a restart: shutdown /r /t 0 there",
                machine=machine.name,
            )
        _timed(console, f"restore '{machine.name}'", lambda: machine.restore(keep=True))
        if told := told_timings(machine.machine):
            console.line(told)


def shell(configuration: Configuration, name: str | None, command: str, console: Console) -> int:
    """Run one command, or the lines of standard input one after the other; returns the last exit code.

    Raises:
        MachineError: the machine does not run.
    """
    # Not held: looking into a machine while another command works with it is what a shell is for.
    machine = configuration.create_machine(name, configuration.driver())
    # Its address is asked for again where a connection was lost: it may have come back elsewhere.
    with Guest(machine.address, machine=machine.name) as guest:
        if command:
            return _exit_status(_run(guest, command))
        code = 0
        while (line := _read(console, guest)) is not None and line.strip().lower() != "exit":
            if line.strip():
                try:
                    code = _exit_status(_run(guest, line))
                except DownlinkError as error:
                    console.error(error)
                    code = error.exit_status
        return code


VERBS: Mapping[str, Callable[[Configuration, str | None, Console], None]] = MappingProxyType(
    {"create": create, "start": start, "stop": stop, "restore": restore}
)


def _held(configuration: Configuration, name: str | None) -> AbstractContextManager[HeldMachine]:
    return held(configuration, name, configuration.driver())


def _run(guest: Guest, line: str) -> CommandResult:
    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    result = guest.run(line, deadline=Deadline.after(seconds=COMMAND_SECONDS), check=False, on_output=show)
    sys.stderr.write(result.stderr)
    return result


def _read(console: Console, guest: Guest) -> str | None:
    if sys.stdin.isatty() and console.terminal:
        try:
            return input(f"{guest.machine}> ")
        except EOFError:
            return None
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _exit_status(result: CommandResult) -> int:
    return result.exit_code if result.exit_code <= _EXIT_CODE_LIMIT else 1


def _timed(console: Console, what: str, action: Callable[[], GuestAddress]) -> None:
    began = time.monotonic()
    address = action()
    ssh = f", SFTP at {address.host}:{address.ssh_port}" if address.ssh_port else ""
    console.step(what, f"{where(address)}{ssh}", time.monotonic() - began)
