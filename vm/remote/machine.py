"""A Windows host somebody else looks after. The harness logs on, cleans up behind itself, and leaves it as it runs."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vm.deadline import Deadline
from vm.errors import ConfigurationError, MachineError
from vm.machine import (
    Abilities,
    Condition,
    Credentials,
    DeploymentMode,
    GuestAddress,
    Machine,
    MachineState,
)
from vm.registry import used_as
from vm.secrets import SecretStore

PORTS = {"http": 5985, "https": 5986}
"""Default ports of WinRM since version 2.0."""

PROBE_SECONDS = 3.0
"""How long a connection that is only a question may take to be accepted."""

_INTERVAL_SECONDS = 0.5


class RemoteMachine:
    """Implements `vm.machine.Machine` for a host that is always there.

    Args:
        name: name in `harness.toml`.
        directory: not used; nothing of the machine is kept on this host.
        settings: those of the kind "remote" and "secrets".
    """

    def __init__(self, name: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = settings
        self._scheme = str(settings.get("scheme", "http"))
        self._transport = str(settings.get("transport", "ntlm"))
        self._check_settings()

    @property
    def name(self) -> str:
        return self._name

    @property
    def kind(self) -> str:
        return "remote"

    @property
    def abilities(self) -> Abilities:
        return used_as(
            Abilities(
                deployment=DeploymentMode.PACKAGE,
                restores=False,
                detached=True,
                restarts=False,
                untested=(
                    f"'{self._host}' has no checkpoint: what was there before the run may have influenced it",
                ),
            ),
            self._settings,
        )

    def state(self) -> MachineState:
        return MachineState.RUNNING if self._answers() is None else MachineState.STOPPED

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """Wait until it accepts connections: it may be restarting, but it is not ours to start."""
        while (seen := self._answers()) is not None:
            if deadline.passed:
                raise MachineError(
                    f"'{self._host}' does not answer on port {self._port}: {seen}",
                    hint="is it on, and does 'winrm enumerate winrm/config/listener' there show a listener?",
                    machine=self._name,
                )
            time.sleep(min(_INTERVAL_SECONDS, deadline.remaining))
        return self.address()

    def stop(self, deadline: Deadline) -> None:
        """Nothing: it is not ours to stop."""

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        """As `start`: there is no state to go back to (`Abilities.restores`)."""
        return self.start(deadline, keep=keep)

    def address(self) -> GuestAddress:
        secrets: SecretStore = self._settings["secrets"]
        username = str(self._settings["username"])
        password = secrets.get(
            f"{self._name}.password", purpose=f"log on to the machine '{self._name}' as {username}"
        )
        ssh_port = self._settings.get("ssh_port")
        return GuestAddress(
            host=self._host,
            winrm_port=self._port,
            winrm_scheme=self._scheme,
            winrm_transport=self._transport,
            ssh_port=int(ssh_port) if ssh_port else None,
            host_key=self._settings.get("host_key"),
            credentials=Credentials(username, password),
            certificate=self._file("certificate"),
            private_key=self._file("private_key"),
        )

    def clone(self, number: int) -> Machine:
        """None: it is one host."""
        raise MachineError(
            f"there is only one '{self._name}'", hint="leave out --workers", machine=self._name
        )

    def condition(self) -> Condition:
        """Nothing of itself: what happened in the guest is read from its event log (`harness.runs.evidence`)."""
        return Condition()

    def check_image(self, image: bytes, name: str) -> None:
        """Every image may be tried: Windows itself decides."""

    @property
    def _host(self) -> str:
        return str(self._settings["host"])

    @property
    def _port(self) -> int:
        return int(self._settings.get("winrm_port") or PORTS[self._scheme])

    def _answers(self) -> str | None:
        """None if the port of WinRM accepts a connection, else what was seen instead."""
        try:
            with socket.create_connection((self._host, self._port), timeout=PROBE_SECONDS):
                return None
        except OSError as error:
            return error.strerror or str(error)

    def _file(self, key: str) -> Path | None:
        value = self._settings.get(key)
        return Path(str(value)).expanduser() if value else None

    def _check_settings(self) -> None:
        """Refuse what cannot work or would not be safe, before anything is sent.

        Raises:
            ConfigurationError: with the setting and what to do.
        """
        if self._scheme == "http" and self._transport != "ntlm":
            raise self._refusal(
                f"the transport '{self._transport}' over http would send the password readable",
                'set scheme = "https" and certificate, or transport = "ntlm"',
            )
        if self._scheme == "https" and not self._settings.get("certificate"):
            raise self._refusal(
                "WinRM over https needs the certificate that the host shows",
                'export it there and name the file: certificate = "..."',
            )
        if self._settings.get("ssh_port") and not self._settings.get("host_key"):
            raise self._refusal(
                "SFTP needs the SSH key of the host, so that no other host can take its place",
                f'ssh-keyscan -p {self._settings["ssh_port"]} {self._host}, compare it there, then host_key = "ssh-ed25519 ..."',
            )
        for key in ("certificate", "private_key"):
            file = self._file(key)
            if file is not None and not file.is_file():
                raise self._refusal(f"the {key.replace('_', ' ')} '{file}' does not exist", None)
        private_key = self._file("private_key")
        if (
            private_key is not None
            and os.name == "posix"
            and stat.S_IMODE(private_key.stat().st_mode) & 0o077
        ):
            raise self._refusal(
                f"the private key '{private_key}' can be read by others", f"chmod 600 '{private_key}'"
            )

    def _refusal(self, message: str, hint: str | None) -> ConfigurationError:
        return ConfigurationError(message, hint=hint, machine=self._name)
