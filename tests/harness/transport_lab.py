"""Guests for the tests of transports: the emulated guest's real servers, reached in each of the ways that there are."""

from __future__ import annotations

from pathlib import Path

from harness.log import Log
from harness.remote.guest import Guest
from harness.remote.local import LocalFiles
from harness.remote.winrm import WinRm
from tests.harness.remote_doubles import ComputerDouble
from tests.harness.stand_in_cmd import StandIn, StandInCommands
from vm.emulated.guest.face import GuestFace
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.registry import Registry
from vm.machine import Channel, Credentials, GuestAddress

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "lab", "a-random-Passw0rd"


class Lab:
    """A guest face with a computer double, and the address under which it answers."""

    def __init__(self, base: Path, **settings: object) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.registry = Registry()
        self.computer = ComputerDouble(self.registry)
        state = base / "state"
        state.mkdir(mode=0o700)
        made = GuestSettings(
            username=USER,
            password=PASSWORD,
            state_directory=state,
            cache_directory=ROOT / ".cache",
            **settings,  # type: ignore[arg-type]
        )
        self.face = GuestFace(
            lambda: self.computer,
            base / "c",
            self.registry,
            made,
            on_new_boot=lambda: setattr(self, "computer", ComputerDouble(self.registry)),
        )
        self._stand_in: StandIn | None = None
        self.face.start()

    def stop(self) -> None:
        if self._stand_in is not None:
            self._stand_in.close()
        self.face.stop()

    def stand_in(self) -> StandIn:
        """What is called instead of cmd.exe where this host is the guest."""
        if self._stand_in is None:
            forward = WinRm(self.address(), machine="stand-in", log=Log())
            self._stand_in = StandIn(self.base / "cmd", forward, self.path())
        return self._stand_in

    def address(self, transport: str = "ntlm", *, ssh: bool = True) -> GuestAddress:
        return GuestAddress(
            host="127.0.0.1",
            winrm_port=self.face.winrm_port,
            winrm_scheme="http",
            winrm_transport=transport,
            ssh_port=self.face.ssh_port if ssh else None,
            host_key=self.face.host_key if ssh else None,
            credentials=Credentials(USER, PASSWORD),
        )

    def path(self, *parts: str) -> Path:
        return self.face.drive.root.joinpath(*parts)

    def guest(self, way: str, log: Log | None = None) -> Guest:
        """A guest over one of `WAYS`."""
        match way:
            case "sftp":
                return Guest(self.address(), machine="lab", log=log)
            case "winrm":
                return Guest(self.address(ssh=False), machine="lab", log=log)
            case _:
                return local_guest(self, log)


WAYS = ("sftp", "winrm", "local")


def local_guest(lab: Lab, log: Log | None = None) -> Guest:
    """A guest over `Channel.LOCAL`: an executable 'cmd' that forwards to the lab, and the lab's C: as this host's."""
    log = log or Log()
    commands = StandInCommands(lab.stand_in(), lab.path(), machine="lab", log=log)
    files = LocalFiles(machine="lab", log=log, root=lab.path())
    address = GuestAddress(
        "localhost", 0, "http", "ntlm", None, None, Credentials("", ""), channel=Channel.LOCAL
    )
    return Guest(address, machine="lab", log=log, commands=commands, files=files)
