"""The settings of one Hyper-V machine, checked and completed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from pathlib import PureWindowsPath
from typing import Any

from vm.errors import ConfigurationError

DEFAULT_ADDRESS = "192.168.197.10"
DEFAULT_DISKS = r"C:\ProgramData\Downlink\machines"
DEFAULT_SOURCES = r"C:\ProgramData\Downlink\sources"
WINRM_PORTS = {"http": 5985, "https": 5986}
PREFIX_LENGTH = 24
"""Of the network on the switch; one network per switch is enough, so it is no setting."""

PAGE_FILE_SLACK_MB = 320
"""A complete dump needs a page file of the memory's size and 1 MB (windows-lab D.4); the rest is head-room."""

_VM_NAME = re.compile(r"^[^\\/:*?\"<>|\x00-\x1f]{1,80}$")
_USER_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9_-]{0,19}$")


@dataclass(frozen=True, slots=True)
class HypervSettings:
    """What `[machines.<name>]` says, with defaults. Directories are paths on the Hyper-V host."""

    machine: str
    """Name in `harness.toml`."""
    secret: str
    """Name of the guest's password in the secret store; clones share that of their machine."""
    vm: str
    host: str
    """"" is this host."""
    switch: str
    address: IPv4Address
    scheme: str
    winrm_port: int
    ssh_port: int
    username: str
    cpus: int
    memory_mb: int
    disks: PureWindowsPath
    sources: PureWindowsPath
    checkpoint: str
    locale: str
    edition: str
    nat: bool
    keep_virtualization_security: bool
    verify: tuple[str, ...]
    """Images that Driver Verifier watches in the checkpoint 'verifier', as in "downlink.sys"."""

    @classmethod
    def of(cls, machine: str, settings: Mapping[str, Any]) -> HypervSettings:
        """Complete and check what the configuration says.

        Raises:
            ConfigurationError: a value that cannot be; names the setting.
        """
        scheme = str(settings.get("scheme", "https"))
        made = cls(
            machine=machine,
            secret=f"{machine}.password",
            vm=str(settings.get("vm", f"downlink-{machine}")),
            host=str(settings.get("host", "")),
            switch=str(settings.get("switch", "Downlink")),
            address=_address(machine, str(settings.get("address", DEFAULT_ADDRESS))),
            scheme=scheme,
            winrm_port=int(settings.get("winrm_port") or WINRM_PORTS[scheme]),
            ssh_port=int(settings.get("ssh_port") or 22),
            username=str(settings.get("username", "lab")),
            cpus=int(settings.get("cpus", 2)),
            memory_mb=int(settings.get("memory_mb", 4096)),
            disks=PureWindowsPath(str(settings.get("disks", DEFAULT_DISKS))),
            sources=PureWindowsPath(str(settings.get("sources", DEFAULT_SOURCES))),
            checkpoint=str(settings.get("checkpoint", "clean")),
            locale=str(settings.get("locale", "en-US")),
            edition=str(settings.get("edition", "")),
            nat=settings.get("nat", "no") == "yes",
            keep_virtualization_security=settings.get("vbs", "off") == "keep",
            verify=_images(settings),
        )
        made._check()
        return made

    @property
    def directory(self) -> PureWindowsPath:
        """The directory of this machine alone on the Hyper-V host."""
        return self.disks / self.vm

    @property
    def host_address(self) -> IPv4Address:
        """The host's own address on the switch: the first of the network."""
        return IPv4Network((self.address, PREFIX_LENGTH), strict=False).network_address + 1

    @property
    def page_file_mb(self) -> int:
        return self.memory_mb + PAGE_FILE_SLACK_MB

    @property
    def computer_name(self) -> str:
        """At most 15 characters, letters, digits and hyphens."""
        kept = re.sub(r"[^A-Za-z0-9-]", "-", self.vm).strip("-")[-15:].strip("-")
        return kept or "downlink"

    def clone(self, number: int) -> HypervSettings:
        """The settings of the clone with that number, counted from 1: another name and address, the same disks below."""
        if self.address.is_loopback:
            # A stand-in's guests share this host's one address, so it is their ports that differ.
            return replace(
                self,
                machine=f"{self.machine}-w{number}",
                vm=f"{self.vm}-w{number}",
                winrm_port=self.winrm_port + 2 * number,
                ssh_port=self.ssh_port + 2 * number,
            )
        address = self.address + number
        if (
            address not in IPv4Network((self.address, PREFIX_LENGTH), strict=False)
            or int(address) & 0xFF == 0xFF
        ):
            raise ConfigurationError(
                f"the clone {number} of the machine '{self.machine}' would have the address {address},"
                " which is not in the machine's network",
                hint="give the machine a lower 'address'",
            )
        return replace(self, machine=f"{self.machine}-w{number}", vm=f"{self.vm}-w{number}", address=address)

    def _check(self) -> None:
        if not _VM_NAME.match(self.vm) or self.vm != self.vm.strip(" ."):
            raise self._refusal("vm", f"is '{self.vm}', which cannot be the name of a directory")
        if not _USER_NAME.match(self.username):
            raise self._refusal(
                "username", f"is '{self.username}', which cannot be the name of a local account"
            )
        for key, path in (("disks", self.disks), ("sources", self.sources)):
            if not path.is_absolute():
                raise self._refusal(key, f"is '{path}', which is no full path on the Hyper-V host")
        if self.address.is_loopback:
            return
        if self.address == self.host_address or int(self.address) & 0xFF in (0, 0xFF):
            raise self._refusal("address", f"is {self.address}, which is the host's own or no host's")

    def _refusal(self, key: str, problem: str) -> ConfigurationError:
        return ConfigurationError(f"'machines.{self.machine}.{key}' {problem}", machine=self.machine)


def _address(machine: str, text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise ConfigurationError(
            f"'machines.{machine}.address' is '{text}', which is no IPv4 address",
            hint=f'write, for example, address = "{DEFAULT_ADDRESS}"',
        ) from error


def _images(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Images to verify: those of the settings, or that of each driver which the machine is told of."""
    given = str(settings.get("verify", ""))
    named = [part.strip() for part in given.split(",") if part.strip()]
    rules: Mapping[str, Any] = settings.get("rules", {})
    return tuple(named or [f"{service.lower()}.sys" for service in sorted(rules)])
