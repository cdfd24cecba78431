"""A Hyper-V host that is the stand-in, called in this process, and a machine on it."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import MachineError
from vm.hyperv.machine import HypervMachine
from vm.hyperv.standin.__main__ import VARIABLE
from vm.hyperv.standin.store import STATE, Store
from vm.managed import Source
from vm.powershell.local import LocalPowerShell
from vm.powershell.script import ParameterValue, Script

ISO = Source(iso=r"C:\images\server.iso", edition="1")


class Secrets:
    """A secret store that is a dictionary."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get(self, name: str, *, purpose: str) -> str:
        if name not in self.kept:
            raise MachineError(f"there is no password to {purpose}")
        return self.kept[name]

    def find(self, name: str) -> str | None:
        return self.kept.get(name)

    def put(self, name: str, value: str) -> None:
        self.kept[name] = value

    def forget(self, name: str) -> None:
        self.kept.pop(name, None)


class Standin:
    """The stand-in as a `ScriptHost`; remembers what it was asked, with what was on standard input."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        # A program of its own: guests must be no children of this process, which would have to wait for them.
        self._program = LocalPowerShell([sys.executable, "-m", "vm.hyperv.standin"])
        os.environ[VARIABLE] = str(root)
        self.before: Callable[[str], None] = lambda name: None

    def __call__(self, host: str) -> Standin:
        return self

    def run(
        self,
        script: Script,
        parameters: Mapping[str, ParameterValue],
        deadline: Deadline,
        *,
        secret: Mapping[str, str] | None = None,
    ) -> Any:
        deadline.check(script.name)
        self.before(script.name)
        given = json.dumps(dict(secret)) if secret is not None else ""
        self.calls.append((script.name, dict(parameters), given))
        return self._program.run(script, parameters, deadline, secret=secret)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.root / STATE).read_text(encoding="utf-8"))
        return found

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        with Store(self.root).opened() as state:
            change(state)

    def fault(self, name: str, **how: Any) -> None:
        self.change(lambda state: state["faults"].update({name: how}))

    def heal(self) -> None:
        self.change(lambda state: state["faults"].clear())


def soon() -> Deadline:
    return Deadline.after(seconds=90)


def quiet(*_: object) -> None:
    pass


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Standin:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3]))
    made = Standin(tmp_path / "host")
    made.heal()
    return made


@pytest.fixture
def store() -> Secrets:
    return Secrets()


@pytest.fixture
def make(tmp_path: Path, host: Standin, store: Secrets) -> Iterator[Callable[..., HypervMachine]]:
    """Makes the machine 'hv' with more or other settings; whatever of it runs at the end is stopped."""
    ports = free_ports(2)
    made: list[HypervMachine] = []

    def factory(**settings: Any) -> HypervMachine:
        machine = HypervMachine(
            "hv",
            tmp_path / "machines" / "hv",
            {
                "script_hosts": host,
                "secrets": store,
                "guests": lambda address: Guest(address, machine="hv"),
                "address": "127.0.0.1",
                "winrm_port": ports[0],
                "ssh_port": ports[1],
                "rules": {},
                "_credential_seconds": 0.5,
                **settings,
            },
        )
        made.append(machine)
        return machine

    yield factory
    host.heal()
    host.before = lambda name: None
    for machine in made:
        if machine.file.load() is not None:
            machine.destroy(soon())


@pytest.fixture
def machine(make: Callable[..., HypervMachine]) -> HypervMachine:
    return make()
