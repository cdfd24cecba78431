"""Kinds of machines by name: which settings each takes and how one is made.

A kind's code is imported when the first machine of that kind is made, never earlier: a Linux host must not need what
a Hyper-V machine needs, and a command that touches no machine must not pay for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from vm.errors import MachineError
from vm.machine import Abilities, DeploymentMode, Machine


@dataclass(frozen=True, slots=True)
class Setting:
    """One key that `[machines.<name>]` may hold for a kind of machine."""

    type: type
    help: str
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    required: bool = False


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
            settings: validated values of `Kind.settings`; "rules": what drivers promise, by service name; "secrets": the
                `vm.secrets.SecretStore`; "script_hosts": makes the `ScriptHost` of a host by its name, "" = this one.

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


HOW_IT_IS_USED: Mapping[str, Setting] = MappingProxyType(
    {
        "deployment": Setting(
            str, "how a package is installed: by pnputil or by a service key", choices=("package", "service")
        ),
        "suites": Setting(
            str,
            "how suites run: as a command that the host holds on to, or as a scheduled task",
            choices=("attached", "detached"),
        ),
    }
)
"""Settings that every kind takes; `used_as` turns them into abilities."""


def used_as(abilities: Abilities, settings: Mapping[str, Any]) -> Abilities:
    """`abilities` of a kind as the settings of one machine change them."""
    return replace(
        abilities,
        deployment=DeploymentMode(settings.get("deployment", abilities.deployment.value)),
        detached=settings.get("suites", "detached" if abilities.detached else "attached") == "detached",
    )


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
                        **HOW_IT_IS_USED,
                        "winrm_port": Setting(
                            int, "TCP port of WinRM on 127.0.0.1, 0 = any free one", minimum=0, maximum=65535
                        ),
                        "ssh_port": Setting(
                            int, "TCP port of SFTP on 127.0.0.1, 0 = any free one", minimum=0, maximum=65535
                        ),
                        "transport": Setting(str, "how WinRM authenticates", choices=("ntlm", "basic")),
                        "seed": Setting(int, "seed of the scheduler", minimum=0),
                        "scheme": Setting(str, "how WinRM is spoken", choices=("http", "https")),
                        "files": Setting(
                            str,
                            "the way of files into the guest, sftp if not given",
                            choices=("sftp", "winrm"),
                        ),
                        "language": Setting(str, "display language of the inbox tools", choices=("en", "de")),
                        "chaos": Setting(
                            str, "faults of the guest by name, separated by commas (vm/emulated/guest/chaos)"
                        ),
                    }
                ),
            ),
            Kind(
                name="hyperv",
                description="a virtual machine of Hyper-V on this Windows host or another one, with checkpoints",
                factory="vm.hyperv.machine:HypervMachine",
                settings=MappingProxyType(
                    {
                        **HOW_IT_IS_USED,
                        "vm": Setting(str, "name of the virtual machine, 'downlink-<machine>' if not given"),
                        "host": Setting(
                            str, "another Hyper-V host that answers WinRM; this one if not given"
                        ),
                        "host_username": Setting(str, "an administrator of that host"),
                        "host_scheme": Setting(
                            str, "how WinRM is spoken with that host", choices=("http", "https")
                        ),
                        "host_winrm_port": Setting(int, "its TCP port there", minimum=1, maximum=65535),
                        "host_certificate": Setting(
                            str, "file with the certificate that it shows over https"
                        ),
                        "powershell": Setting(str, "program that runs our scripts instead of powershell.exe"),
                        "switch": Setting(str, "the virtual switch, 'Downlink' if not given"),
                        "nat": Setting(
                            str, "whether guests reach other networks through the host", choices=("no", "yes")
                        ),
                        "address": Setting(str, "the guest's IPv4 address on the switch (a /24 network)"),
                        "scheme": Setting(
                            str, "how WinRM is spoken, https if not given", choices=("http", "https")
                        ),
                        "winrm_port": Setting(
                            int, "TCP port of WinRM, 5985 or 5986 if not given", minimum=1, maximum=65535
                        ),
                        "ssh_port": Setting(
                            int, "TCP port of SSH, 22 if not given", minimum=1, maximum=65535
                        ),
                        "username": Setting(str, "the guest's account, 'lab' if not given"),
                        "cpus": Setting(int, "virtual processors", minimum=1, maximum=64),
                        "memory_mb": Setting(int, "static memory in MB", minimum=1024, maximum=262144),
                        "disks": Setting(str, "directory for disks on the Hyper-V host"),
                        "sources": Setting(
                            str, "directory with Python, wheels and OpenSSH on the Hyper-V host"
                        ),
                        "checkpoint": Setting(
                            str, "what a restore goes back to: 'clean', 'verifier' or one of yours"
                        ),
                        "locale": Setting(str, "formats and keyboard of the guest, as in 'en-US'"),
                        "edition": Setting(str, "name or number of the edition on an ISO"),
                        "vbs": Setting(
                            str, "whether VBS and HVCI are switched off in the guest", choices=("off", "keep")
                        ),
                        "verify": Setting(
                            str, "images that Driver Verifier watches, the driver's own if not given"
                        ),
                    }
                ),
            ),
            Kind(
                name="remote",
                description="any Windows host that answers WinRM; it has no checkpoint",
                factory="vm.remote.machine:RemoteMachine",
                settings=MappingProxyType(
                    {
                        **HOW_IT_IS_USED,
                        "host": Setting(str, "name or address of the host", required=True),
                        "username": Setting(str, "an administrator there", required=True),
                        "scheme": Setting(str, "how WinRM is spoken", choices=("http", "https")),
                        "transport": Setting(
                            str, "how WinRM authenticates", choices=("ntlm", "basic", "ssl")
                        ),
                        "winrm_port": Setting(
                            int, "TCP port of WinRM, 5985 or 5986 if not given", minimum=1, maximum=65535
                        ),
                        "ssh_port": Setting(
                            int,
                            "TCP port of SSH; without it files go through WinRM",
                            minimum=1,
                            maximum=65535,
                        ),
                        "host_key": Setting(str, "the host's SSH key, as in 'ssh-ed25519 AAAA...'"),
                        "private_key": Setting(str, "file with the private SSH key to log on with"),
                        "certificate": Setting(str, "file with the certificate that WinRM shows over https"),
                    }
                ),
            ),
            Kind(
                name="local",
                description="this Windows machine itself, as on a hosted CI runner; it is neither restored nor restarted",
                factory="vm.local.machine:LocalMachine",
                settings=MappingProxyType({**HOW_IT_IS_USED}),
            ),
        )
    }
)
