"""This Windows system as the machine: commands are child processes, files are its own files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vm.deadline import Deadline
from vm.errors import MachineError
from vm.machine import (
    Abilities,
    Channel,
    Condition,
    Credentials,
    GuestAddress,
    Machine,
    MachineState,
)
from vm.registry import used_as


class LocalMachine:
    """Implements `vm.machine.Machine` for the system that the harness itself runs on.

    Args:
        name: name in `harness.toml`.
        directory: not used.
        settings: those of the kind "local"; "platform" stands for `sys.platform` in tests.
    """

    def __init__(self, name: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = settings

    @property
    def name(self) -> str:
        return self._name

    @property
    def kind(self) -> str:
        return "local"

    @property
    def abilities(self) -> Abilities:
        return used_as(
            Abilities(
                restores=False,
                restarts=False,
                untested=(
                    "this machine is not restored: what was there before the run may have influenced it",
                    "this machine is not restarted: no rule class of Driver Verifier that needs a restart was on"
                    " (the filter verifier, class 37, is one of them)",
                    "a bugcheck here ends the job itself, without a dump",
                ),
            ),
            self._settings,
        )

    def state(self) -> MachineState:
        """Always running; raises `MachineError` on a host that is no Windows system."""
        self._refuse_elsewhere()
        return MachineState.RUNNING

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        return self.address()

    def stop(self, deadline: Deadline) -> None:
        """Nothing: it runs this process."""

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """As `start`: there is no state to go back to (`Abilities.restores`)."""
        return self.address()

    def address(self) -> GuestAddress:
        self._refuse_elsewhere()
        return GuestAddress(
            host="localhost",
            winrm_port=0,
            winrm_scheme="",
            winrm_transport="",
            ssh_port=None,
            host_key=None,
            credentials=Credentials("", ""),
            channel=Channel.LOCAL,
        )

    def clone(self, number: int) -> Machine:
        """None: it is this host."""
        raise MachineError(
            f"there is only one '{self._name}'", hint="leave out --workers", machine=self._name
        )

    def condition(self) -> Condition:
        """Nothing of itself: what happened is read from the event log (`harness.runs.evidence`)."""
        return Condition()

    def check_image(self, image: bytes, name: str) -> None:
        """Every image may be tried: Windows itself decides."""

    def _refuse_elsewhere(self) -> None:
        if self._settings.get("platform", sys.platform) != "win32":
            raise MachineError(
                "this host is not a Windows system and cannot be its own test machine",
                hint="use the emulated machine, or one of the kind 'remote' or 'hyperv'",
                machine=self._name,
            )
