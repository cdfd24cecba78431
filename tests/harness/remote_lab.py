"""A Windows host that somebody else looks after: an emulated machine on ports of its own, reached as the kind `remote`."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import builds, config, verbs
from harness.console import Console
from harness.package import Package, load_package
from harness.remote.guest import Guest
from harness.runs import directory
from harness.runs.journal import Event, read
from harness.runs.results import Results, collect
from tests.harness.chaos_lab import ROOT as ROOT
from tests.harness.chaos_lab import SUITE
from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine
from vm.errors import DownlinkError

ROOT_CONFIGURATION = config.load(ROOT)
NAME = "far"
VARIABLE = "DOWNLINK_SECRET_FAR_PASSWORD"


def soon(seconds: float = 60) -> Deadline:
    return Deadline.after(seconds=seconds)


class Host:
    """The host, which this test's process keeps alive: it has been started, and nobody stops it but the test."""

    def __init__(self, place: Path, **settings: Any) -> None:
        self.machine = EmulatedMachine("host", place / ".machines" / "host", {"seed": 3, **settings})
        (place / ".cache").symlink_to(ROOT / ".cache", target_is_directory=True)
        self.machine.start(soon(), keep=False)

    def settings(self, way: str = "sftp") -> dict[str, Any]:
        """How `harness.toml` names it: reached over WinRM and SSH ("sftp"), or over WinRM alone ("winrm")."""
        address = self.machine.address()
        found: dict[str, Any] = {
            "kind": "remote",
            "host": address.host,
            "username": address.credentials.username,
            "scheme": address.winrm_scheme,
            "winrm_port": address.winrm_port,
        }
        if address.winrm_scheme == "https":
            found |= {"transport": "ntlm", "certificate": str(address.certificate)}
        if way == "sftp":
            found |= {"ssh_port": address.ssh_port, "host_key": address.host_key}
        return found

    @property
    def password(self) -> str:
        return self.machine.address().credentials.password

    def guest(self) -> Guest:
        return Guest(self.machine.address(), machine="host")

    def stop(self) -> None:
        self.machine.stop(soon())


class Harness:
    """A checkout in `root` with one machine, and everything that its commands have shown."""

    def __init__(
        self,
        root: Path,
        machine: dict[str, Any],
        *,
        suite: str = SUITE,
        seconds: int = 60,
        name: str = NAME,
        test_seconds: int = 60,
    ) -> None:
        self.root = root
        self.out = io.StringIO()
        self.console = Console(self.out, self.out, color=False)
        text = (ROOT / "harness.toml").read_text(encoding="utf-8")
        text = re.sub(r"(?s)\[machines\.\w+\].*?(?=\n\[)", "", text)
        text = text.replace('suites = "tests/driver"', 'suites = "suites"')
        text = text.replace('machine = "emulated"', f'machine = "{name}"')
        text = re.sub(r"deadline_seconds = \d+", f"deadline_seconds = {seconds}", text)
        text = re.sub(r"test_seconds = \d+", f"test_seconds = {test_seconds}", text)
        text += f"\n[machines.{name}]\n"
        text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in machine.items())
        root.mkdir(exist_ok=True)
        (root / "harness.toml").write_text(text, encoding="utf-8")
        (root / "suites").mkdir()
        (root / "suites" / "test_sample.py").write_text(suite, encoding="utf-8")
        for entry in ("harness", "driver", ".cache"):
            (root / entry).symlink_to(ROOT / entry, target_is_directory=True)
        self.configuration = config.load(root)

    def test(self, build: Callable[[], Package], **choices: Any) -> int:
        return verbs.test(self.configuration, verbs.Choices(**choices), build, self.console)

    def refused(self, build: Callable[[], Package]) -> DownlinkError:
        """The error that a test run ends with."""
        try:
            self.test(build)
        except DownlinkError as error:
            return error
        raise AssertionError(f"the run passed:\n{self.said}")

    @property
    def said(self) -> str:
        return self.out.getvalue()

    @property
    def run(self) -> directory.RunDirectory:
        return directory.latest(self.configuration.runs.directory)

    @property
    def events(self) -> list[Event]:
        return list(read(self.run.journal))

    @property
    def results(self) -> Results:
        return collect(self.events)


def package() -> Package:
    """The real driver's package."""
    made = builds.prepare(config.load(ROOT), None, "zig", "debug")()
    return load_package(made.directory)


def main(root: Path) -> int:
    """Test the driver in the checkout `root` as `./inv test` does, with its signals; to be killed or interrupted."""
    from harness import interrupts

    with interrupts.signals_interrupt():
        settings = config.load(root)
        return verbs.test(settings, verbs.Choices(), lambda: load_package(ROOT / "out" / "debug"), Console())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
