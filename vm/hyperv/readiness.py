"""Readiness as conditions with names: heartbeat, guest, port, WinRM, command. Each says what it saw last."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, DownlinkError, MachineError
from vm.hyperv import guests
from vm.hyperv.host import NOT_YET, HyperVHost
from vm.hyperv.settings import HypervSettings
from vm.machine import GuestAddress
from vm.powershell.script import ScriptError
from vm.waiting import wait_until

CREDENTIAL_SECONDS = 120.0
"""A guest whose heartbeat is fine and that has refused the password for so long means it."""

HEARTBEATS = ("okapplicationshealthy", "okapplicationsunknown", "ok")
"""Values of Heartbeat that say that the guest's integration services run."""

COMMAND_SECONDS = 20.0


@dataclass(slots=True)
class Readiness:
    """Waits for one guest, and remembers when each condition was met, in seconds since it was made."""

    host: HyperVHost
    settings: HypervSettings
    mark: str
    credential_seconds: float = CREDENTIAL_SECONDS
    met: list[tuple[str, float]] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def heartbeat(self, deadline: Deadline) -> dict[str, Any]:
        """Wait until the guest's integration services report to the host; returns the machine's state.

        Raises:
            MachineError: the machine went down, or was never there.
            DeadlineExceededError: with the state and the heartbeat last seen.
        """
        state: dict[str, Any] = {}

        def probe() -> str | None:
            nonlocal state
            state = self.host.call("Get-Machine", deadline, Name=self.settings.vm, Mark=self.mark)
            if not state["present"]:
                raise self.host.refusal(
                    "vm-not-found", f"there is no virtual machine '{self.settings.vm}' on {self.host.where}"
                )
            if state["state"] in ("off", "saved"):
                raise MachineError(
                    f"the virtual machine '{self.settings.vm}' is {state['state']} instead of starting",
                    hint="look at the event log Microsoft-Windows-Hyper-V-Worker-Admin on the host",
                    machine=self.settings.machine,
                )
            if state["state"] == "running" and state["heartbeat"] in HEARTBEATS:
                return None
            return f"the machine is {state['state']}, its heartbeat is '{state['heartbeat'] or 'nothing'}'"

        self._wait(probe, "the heartbeat of the guest", deadline, "heartbeat")
        return state

    def guest(
        self, script: str, secret: dict[str, str], deadline: Deadline, **parameters: str
    ) -> dict[str, Any]:
        """Call a script that may be repeated until the guest takes it; returns its result.

        Raises:
            MachineError: the guest refuses the password for longer than one that is starting does.
            DeadlineExceededError: with the refusal last seen.
        """
        result: dict[str, Any] = {}
        refused_since: float | None = None

        def probe() -> str | None:
            nonlocal result, refused_since
            try:
                result = self.host.call(
                    script, deadline, secret=secret, Name=self.settings.vm, Mark=self.mark, **parameters
                )
            except ScriptError as error:
                if error.code not in NOT_YET:
                    raise
                if error.code != "credential-invalid":
                    refused_since = None
                    return error.message
                refused_since = refused_since or time.monotonic()
                if time.monotonic() - refused_since > self.credential_seconds:
                    raise MachineError(
                        f"the guest refuses the user name '{secret['username']}' or its password",
                        hint=error.hint,
                        machine=self.settings.machine,
                        causes=[error],
                    ) from error
                return error.message
            return None

        self._wait(probe, "the guest to take commands over its bus", deadline, "guest")
        return result

    def network(self, address: GuestAddress, open_guest: guests.OpenGuest, deadline: Deadline) -> None:
        """Wait until the guest runs a command that comes over the network; no session is left open."""
        self._wait(lambda: guests.tcp(address), "WinRM's port to accept a connection", deadline, "port")
        self._wait(lambda: guests.identify(address), "WinRM to say who it is", deadline, "winrm")

        def probe() -> str | None:
            try:
                with open_guest(address) as guest:
                    guest.run("cmd /c ver", deadline=deadline.sooner(seconds=COMMAND_SECONDS))
            except DeadlineExceededError as error:
                return error.message
            except DownlinkError as error:
                # A wrong password does not become right by waiting.
                if "refused the user name" in error.message or "password" in error.message:
                    raise
                return error.message
            return None

        self._wait(probe, "the guest to run a command over WinRM", deadline, "command")

    def _wait(self, probe: Callable[[], str | None], what: str, deadline: Deadline, name: str) -> None:
        wait_until(probe, what, deadline, machine=self.settings.machine)
        self.met.append((name, self.seconds))
