"""A machine in this process: the emulated guest's real servers before a computer double. Run as a module it is a
command line of its own (`python -m tests.harness.lab_machine ROOT`) that tests a driver on it, to be interrupted."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import config, verbs
from harness.console import Console
from harness.package import load_package
from tests.harness.remote_doubles import ComputerDouble, sample_package
from vm import registry as kinds
from vm.deadline import Deadline
from vm.emulated.guest.face import GuestFace
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.registry import Registry
from vm.errors import MachineError
from vm.machine import Abilities, Condition, Credentials, GuestAddress, MachineState

CHECKOUT = Path(__file__).resolve().parents[2]

TOML = """
[defaults]
driver = "sample"
machine = "lab"
toolchain = "zig"
configuration = "debug"
[drivers.sample]
service = "Sample"
sources = "driver"
inf = "driver/sample.inf"
port = '\\Sample'
instance = "Sample Instance"
altitude = "370001.5"
suites = "suites"
[machines.lab]
kind = "lab"
"""


class LabMachine:
    """A `Machine` whose guest is served by this process."""

    kind = "lab"
    load_status = 0
    """What loading a driver returns; class-wide, because the harness makes the object."""
    present = Condition()
    calls: list[str]

    def __init__(self, name: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self.name = name
        self.settings = settings
        self.calls = []
        self._directory = directory
        self._face: GuestFace | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(witness=True)

    def state(self) -> MachineState:
        return MachineState.RUNNING if self._face else MachineState.STOPPED

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        self.calls.append("start")
        if self._face is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            registry = Registry()
            computer = ComputerDouble(registry)
            computer.load_status = self.load_status
            settings = GuestSettings("lab", "secret-word", self._directory, CHECKOUT / ".cache")
            self._face = GuestFace(lambda: computer, self._directory / "c", registry, settings)
            self._face.start()
        return self.address()

    def stop(self, deadline: Deadline) -> None:
        self.calls.append("stop")
        face, self._face = self._face, None
        if face:
            face.stop()

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        self.stop(deadline)
        return self.start(deadline)

    def address(self) -> GuestAddress:
        face = self._face
        if face is None:
            raise MachineError("the machine does not run", machine=self.name)
        return GuestAddress(
            *("127.0.0.1", face.winrm_port, "http", "ntlm", face.ssh_port, face.host_key),
            Credentials("lab", "secret-word"),
        )

    def clone(self, number: int) -> LabMachine:
        name = f"{self.name}-w{number}"
        return LabMachine(name, self._directory.with_name(name), self.settings)

    def condition(self) -> Condition:
        return self.present

    def check_image(self, image: bytes, name: str) -> None:
        self.calls.append(f"check {name}")


def install(root: Path, suite: str) -> None:
    """Make `root` a checkout with one driver, one suite and the machine 'lab'."""
    kinds.KINDS = {**kinds.KINDS, "lab": kinds.Kind("lab", "a double", f"{__name__}:LabMachine")}  # type: ignore[misc]
    config.KINDS = kinds.KINDS  # type: ignore[misc]
    if (root / "harness.toml").exists():
        return
    (root / "harness.toml").write_text(TOML, encoding="utf-8")
    (root / "suites").mkdir()
    (root / "suites" / "test_sample.py").write_text(suite, encoding="utf-8")
    (root / "harness").symlink_to(CHECKOUT / "harness", target_is_directory=True)
    sample_package(root / "package")


def main(root: Path) -> int:
    """Test the driver as `./inv test` does, with its signals."""
    from harness import interrupts

    install(root, "")
    settings = config.load(root)
    with interrupts.signals_interrupt():
        return verbs.test(settings, verbs.Choices(), lambda: load_package(root / "package"), Console())


if __name__ == "__main__":
    # The harness imports this module by its name; the one that runs as a script must be the same.
    from tests.harness import lab_machine

    sys.exit(lab_machine.main(Path(sys.argv[1])))
