"""Kinds of machines by name: which settings each takes and how one is made.

A kind's code is imported when the first machine of that kind is made, never earlier: a Linux host must not need what
a Hyper-V machine needs, and a command that touches no machine must not pay for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from vm.errors import MachineError
from vm.machine import Machine


@dataclass(frozen=True, slots=True)
class Setting:
    """One key that `[machines.<name>]` may hold for a kind of machine."""

    type: type
    help: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of machine: `factory` is "module:callable", called with (name, directory, settings)."""

    name: str
    description: str
    factory: str
    settings: Mapping[str, Setting] = field(default_factory=lambda: MappingProxyType({}))

    def create(self, name: str, directory: Path, settings: Mapping[str, Any]) -> Machine:
        """Make the object that controls a machine; starts nothing.

        Args:
            name: the machine's name in `harness.toml`.
            directory: where the machine keeps its state on the host; need not exist.
            settings: validated values of `Kind.settings`, and "rules": what drivers promise, by service name.

        Raises:
            MachineError: the code for this kind cannot be imported.
        """
        module_name, _, attribute = self.factory.partition(":")
        try:
            module = import_module(module_name)
        except ImportError as error:
            raise MachineError(
                f"machines of the kind '{self.name}' cannot be used here: {error}",
                machine=name,
                causes=[error],
            ) from error
        make = cast(Callable[[str, Path, Mapping[str, Any]], Machine], getattr(module, attribute))
        return make(name, directory, settings)


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                name="emulated",
                description="executes the driver on a modelled Windows kernel, in a process on this host",
                factory="vm.emulated.machine:EmulatedMachine",
                settings=MappingProxyType(
                    {
                        "winrm_port": Setting(
                            int, "TCP port of WinRM on 127.0.0.1, 0 = any free one", minimum=0, maximum=65535
                        ),
                        "ssh_port": Setting(
                            int, "TCP port of SFTP on 127.0.0.1, 0 = any free one", minimum=0, maximum=65535
                        ),
                        "transport": Setting(str, "how WinRM authenticates", choices=("ntlm", "basic")),
                        "seed": Setting(int, "seed of the scheduler", minimum=0),
                    }
                ),
            ),
        )
    }
)
