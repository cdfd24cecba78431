"""A Hyper-V host: our scripts on it, and their refusals as sentences with the command that mends them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from vm.deadline import Deadline
from vm.errors import MachineError
from vm.hyperv.settings import HypervSettings
from vm.powershell.script import ParameterValue, Script, ScriptError, ScriptHost

SCRIPTS = Path(__file__).resolve().parent / "scripts"

NOT_YET = frozenset({"guest-not-ready", "credential-invalid", "vm-not-running"})
"""Refusals that a guest which is starting gives for a while: PowerShell Direct says that the credential is invalid until
the guest's account service is up (windows-lab D.1)."""

_HINTS: Mapping[str, str] = MappingProxyType(
    {
        "access-denied": "run from an elevated prompt, or have yourself added to the group 'Hyper-V Administrators' and"
        " log on again",
        "adapter-count": "give the virtual machine exactly one network adapter, or create the machine again",
        "address-taken": 'another system has it: choose a free one: address = "..." in the machine\'s settings',
        "answers-left": "look at the file, then ./inv vm.destroy and create the machine again",
        "bcdboot-failed": "the image may be damaged: compare the checksum of the ISO with the one where it came from",
        "bcdedit-failed": "look at 'bcdedit /enum {{current}}' in the guest, then create the machine again",
        "checkpoint-exists": "choose another name, or remove the old one: Remove-VMCheckpoint -VMName {vm} -Name <name>",
        "checkpoint-failed": "look at the event log Microsoft-Windows-Hyper-V-Worker-Admin on the host",
        "checkpoint-missing": "see what there is: ./inv vm.list --machine {machine}",
        "clock-failed": "in the guest: Get-Service w32time, and is the Hyper-V time synchronisation on?",
        "credential-invalid": "the password may be another one: set {variable}",
        "directory-exists": "remove it if it is a left-over, or set 'disks' to another directory",
        "directory-foreign": "look at it, and remove it by hand",
        "disk-full": "free space on the host's drive, or set 'disks' to a directory on another one",
        "disk-in-use": "another virtual machine or a mount holds it: Get-VHD and Dismount-VHD on the host",
        "file-exists": "look at it, and remove it if it is a left-over",
        "file-missing": "paths of images are paths on the Hyper-V host, {where}",
        "hyperv-missing": "install it and restart: Enable-WindowsOptionalFeature -Online -FeatureName Microsoft-Hyper-V -All"
        " (on a server: Install-WindowsFeature Hyper-V -IncludeManagementTools)",
        "merge-in-progress": "wait until Get-VM {vm} shows no 'Merging disks', then run the command again",
        "no-install-image": "take the installation ISO of Windows; others hold drivers, languages or features",
        "no-windows": "take an evaluation disk of Windows Server, or the ISO",
        "not-a-vhdx": "download it again, and compare its checksum with the one where it came from",
        "not-an-iso": "download it again, and compare its checksum with the one where it came from",
        "openssh-failed": "look at the file in 'sources'; without any the guest's files go through WinRM, which is slower",
        "out-of-memory": "stop other virtual machines, or give this one less memory_mb",
        "python-failed": "look at the file in 'sources': the full NuGet package or the installer, not the embeddable zip",
        "python-missing": "fill 'sources' on the Hyper-V host as docs/windows.md says",
        "restart-failed": "restart the guest by hand, then run the command again",
        "secure-boot-on": "switch it off: Set-VMFirmware -VMName {vm} -EnableSecureBoot Off",
        "sources-missing": "make it and fill it as docs/windows.md says, or set 'sources' to where it is",
        "switch-exists": 'choose another name: switch = "..." in the machine\'s settings',
        "switch-foreign": 'choose another name (switch = "..."), or remove that switch by hand',
        "switch-in-use": "disconnect or remove that virtual machine first",
        "switch-missing": "make it: ./inv vm.create does, or New-VMSwitch -Name <name> -SwitchType Internal",
        "verifier-failed": "look at 'verifier /querysettings' in the guest",
        "vm-ambiguous": "two virtual machines have that name: rename one with Rename-VM",
        "vm-exists": 'choose another name: vm = "..." in the machine\'s settings',
        "vm-foreign": 'choose another name (vm = "..."), or remove that virtual machine by hand',
        "vm-not-found": "make it: ./inv vm.create --machine {machine} --iso FILE",
        "vm-not-running": "start it: ./inv vm.start --machine {machine}",
        "vm-running": "stop it first: ./inv vm.stop --machine {machine}",
        "vmms-stopped": "start it: Start-Service vmms",
    }
)
"""What to do about a refusal, by its code."""

_SENTENCES: Mapping[str, str] = MappingProxyType(
    {
        "access-denied": "you may not manage Hyper-V on {where}: {message}",
        "disk-full": "the drive of '{directory}' on {where} is full: {message}",
        "hyperv-missing": "{where} has no Hyper-V: {message}",
        "merge-in-progress": "{where} is still merging the disks of the virtual machine '{vm}'",
        "out-of-memory": "{where} has not enough free memory for the virtual machine '{vm}': {message}",
        "vm-foreign": "the virtual machine '{vm}' on {where} was not made by this checkout",
        "vmms-stopped": "Hyper-V's service does not run on {where}: {message}",
    }
)


class HyperVHost:
    """Runs scripts of this package.

    Args:
        settings: of the machine that it is about.
        open_host: makes the host of the scripts from its name; called once, on first use.
    """

    def __init__(self, settings: HypervSettings, open_host: Callable[[str], ScriptHost]) -> None:
        self._settings = settings
        self._open = open_host
        self._host: ScriptHost | None = None

    @property
    def where(self) -> str:
        """The host, as messages name it."""
        return f"the host '{self._settings.host}'" if self._settings.host else "this host"

    def call(
        self,
        script: str,
        deadline: Deadline,
        *,
        secret: Mapping[str, str] | None = None,
        **parameters: ParameterValue,
    ) -> dict[str, Any]:
        """Run one script and return its result.

        Args:
            script: its name without the extension.
            parameters: by the names of its `param` block.

        Raises:
            ScriptError: it refused; with its code, as a sentence with a hint.
            DeadlineExceededError: it did not end in time.
        """
        if self._host is None:
            self._host = self._open(self._settings.host)
        try:
            result = self._host.run(Script(SCRIPTS / f"{script}.ps1"), parameters, deadline, secret=secret)
        except ScriptError as error:
            raise self._refusal(error) from error
        if not isinstance(result, dict):
            raise ScriptError(
                f"'{script}' on {self.where} answered without a result", machine=self._settings.machine
            )
        return result

    def refusal(self, code: str, message: str) -> ScriptError:
        """The error for something that was found wrong on this side, in the same words."""
        return self._refusal(ScriptError(message, code=code))

    def _refusal(self, error: ScriptError) -> ScriptError:
        settings = self._settings
        words = {
            "where": self.where,
            "vm": settings.vm,
            "machine": settings.machine,
            "directory": str(settings.directory),
            "message": error.message,
            "variable": "DOWNLINK_SECRET_" + settings.secret.upper().replace(".", "_").replace("-", "_"),
        }
        sentence = _SENTENCES.get(error.code, "{message}").format_map(words)
        hint = _HINTS.get(error.code)
        return ScriptError(
            sentence,
            code=error.code,
            hint=hint.format_map(words) if hint else error.hint,
            machine=settings.machine,
        )


def first_problem(problems: list[MachineError]) -> None:
    """Raise the first of several problems, with the others among its causes.

    Raises:
        MachineError: there is one.
    """
    if problems:
        first, *others = problems
        first.causes = (*first.causes, *others)
        raise first
