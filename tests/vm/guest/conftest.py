"""A guest over a small stand-in for the kernel, and clients that talk to it as real ones do."""

from __future__ import annotations

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import pytest
from winrm.protocol import Protocol

from vm.deadline import Deadline
from vm.emulated.computer import (
    FilterInformation,
    InstanceInformation,
    MachineStoppedError,
    VolumeInformation,
)
from vm.emulated.guest import boot, python_image
from vm.emulated.guest.commands.interpreter import Streams, run_line
from vm.emulated.guest.commands.session import Environment, Guest, Session
from vm.emulated.guest.drive import Drive
from vm.emulated.guest.face import GuestFace
from vm.emulated.guest.power import Power, PowerAction
from vm.emulated.guest.processes import ProcessInformation, ProcessTable
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.guest.streams import STDERR, STDOUT, Cancellation, Output, Pipe
from vm.emulated.registry import SERVICES, Registry
from vm.machine import Condition

USER = "lab"
PASSWORD = "correct-horse-7"
STATUS_OBJECT_NAME_NOT_FOUND = 0xC0000034
STATUS_FLT_FILTER_NOT_FOUND = 0xC01C0013


@dataclass
class SmallComputer:
    """Loads any filter whose service key exists; `refuse` makes the next call of a kind fail."""

    registry: Registry
    boot_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    boot_time: float = field(default_factory=time.time)
    loaded: dict[str, list[str]] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    hang: threading.Event | None = None
    """While set up, an unload waits for this event and then finds the machine stopped."""

    def load_filter(self, name: str) -> int:
        self.calls.append(("load", name))
        if "load" in self.refuse:
            return self.refuse["load"]
        if not self.registry.exists(f"{SERVICES}\\{name}"):
            return STATUS_OBJECT_NAME_NOT_FOUND
        self.loaded[name] = ["D:", "E:"]
        return 0

    def unload_filter(self, name: str) -> int:
        self.calls.append(("unload", name))
        if self.hang is not None:
            self.hang.wait()
            raise MachineStoppedError
        if "unload" in self.refuse:
            return self.refuse["unload"]
        return 0 if self.loaded.pop(name, None) is not None else STATUS_FLT_FILTER_NOT_FOUND

    def stop_service(self, name: str) -> int:
        self.calls.append(("stop", name))
        self.loaded.pop(name)
        return 0

    def attach(self, filter_name: str, volume: str, instance: str | None, altitude: str | None) -> int:
        self.calls.append(("attach", filter_name, volume, instance, altitude))
        return self.refuse.get("attach", 0)

    def detach(self, filter_name: str, volume: str, instance: str | None) -> int:
        self.calls.append(("detach", filter_name, volume, instance))
        return self.refuse.get("detach", 0)

    def filters(self) -> list[FilterInformation]:
        return [FilterInformation(name, "370030", len(volumes)) for name, volumes in self.loaded.items()]

    def instances(self) -> list[InstanceInformation]:
        return [
            InstanceInformation(f"{name} Instance", name, volume, "370030")
            for name, volumes in self.loaded.items()
            for volume in volumes
        ]

    def volumes(self) -> list[VolumeInformation]:
        return [
            VolumeInformation("D:", "\\Device\\HarddiskVolume2", "NTFS"),
            VolumeInformation("E:", "\\Device\\HarddiskVolume3", "NTFS"),
        ]

    def debug_output(self) -> list[str]:
        return []

    def condition(self) -> Condition:
        return Condition()


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.out.splitlines() if line.strip()]


class Prompt:
    """Runs command lines in one session, without a network."""

    def __init__(self, guest: Guest, computer: SmallComputer, happened: list[PowerAction]) -> None:
        self.guest = guest
        self.happened = happened
        self.computer = computer
        self.delivered: list[Callable[[], None]] = []
        self.cancellation = Cancellation()
        self.session = Session(
            guest=guest,
            environment=Environment({"SystemRoot": "C:\\Windows", "Path": "C:\\Windows\\system32"}),
            directory="C:\\Work",
            cancellation=self.cancellation,
            code_page=65001,
            after_delivery=self.delivered.append,
        )

    def __call__(self, line: str, stdin: bytes = b"") -> Result:
        output = Output(self.cancellation)
        pipe = Pipe(self.cancellation)
        pipe.feed(stdin, Deadline.never())
        pipe.end()
        code = run_line(line, self.session, Streams(pipe, output.sink(STDOUT), output.sink(STDERR)))
        output.finish(code)
        text = {STDOUT: b"", STDERR: b""}
        while True:
            received = output.receive((STDOUT, STDERR), 1 << 20, Deadline.after(seconds=1))
            assert received is not None
            for stream, data in received.chunks:
                text[stream] += data
            if received.exit_code is not None:
                return Result(code, text[STDOUT].decode(), text[STDERR].decode())

    def path(self, name: str) -> Path:
        """Host path of a file in C:\\Work."""
        return self.guest.drive.root / "Work" / name


def guest_cache() -> Path:
    """The project's own cache, so that the guest's Python is prepared once for all runs."""
    return Path(__file__).parents[3] / ".cache"


def settings_for(directory: Path, **changes: object) -> GuestSettings:
    values: dict[str, object] = {
        "username": USER,
        "password": PASSWORD,
        "state_directory": directory,
        "cache_directory": guest_cache(),
        **changes,
    }
    return GuestSettings(**values)  # type: ignore[arg-type]


@pytest.fixture
def prompt(tmp_path: Path) -> Prompt:
    root = tmp_path / "c"
    for directory in ("Work", "Windows/Temp", f"Users/{USER}"):
        (root / directory).mkdir(parents=True)
    registry = Registry()
    boot.prepare(registry, testsigning=False)
    boot.begin(registry)
    computer = SmallComputer(registry)
    happened: list[PowerAction] = []
    guest = Guest(
        settings=settings_for(tmp_path),
        computer=lambda: computer,
        drive=Drive(root),
        registry=registry,
        processes=ProcessTable(),
        power=Power(happened.append),
        client_environment=lambda: {"DOWNLINK_EMULATED": "127.0.0.1:1:token"},
    )
    return Prompt(guest, computer, happened)


@pytest.fixture
def python_prompt(prompt: Prompt) -> Prompt:
    """A prompt whose guest has its Python."""
    python_image.install(prompt.guest.drive.root, guest_cache())
    return prompt


class Machine:
    """A running guest face and ways to reach it."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.registry = Registry()
        self.computers = [SmallComputer(self.registry)]
        self.processes: list[tuple[str, ProcessInformation]] = []
        self.settings = settings_for(directory, **changes)
        self.rebooted = threading.Event()
        self.bugchecks: list[tuple[int, tuple[int, int, int, int], str]] = []
        self.moved: list[tuple[int, int]] = []
        """The ports after each change of them."""
        self.face = GuestFace(
            lambda: self.computers[-1],
            directory / "c",
            self.registry,
            self.settings,
            client_environment=lambda: {"DOWNLINK_EMULATED": "127.0.0.1:1:token"},
            on_new_boot=self._new_boot,
            on_bugcheck_requested=lambda *bugcheck: self.bugchecks.append(bugcheck),
            on_address_changed=lambda: self.moved.append((self.face.winrm_port, self.face.ssh_port)),
            on_process_started=lambda process: self.processes.append(("started", process)),
            on_process_ended=lambda process: self.processes.append(("ended", process)),
        )

    @property
    def computer(self) -> SmallComputer:
        return self.computers[-1]

    @property
    def c(self) -> Path:
        return self.face.drive.root

    @property
    def url(self) -> str:
        scheme = "https" if self.settings.tls else "http"
        return f"{scheme}://127.0.0.1:{self.face.winrm_port}/wsman"

    def protocol(self, transport: str = "basic", *, password: str = PASSWORD, **options: object) -> Protocol:
        """A pywinrm client; sealing is demanded of NTLM over HTTP."""
        values: dict[str, object] = {
            "transport": transport,
            "username": USER,
            "password": password,
            "message_encryption": "always" if transport == "ntlm" else "auto",
            "proxy": None,
            "ca_trust_path": None,
            "operation_timeout_sec": 5,
            "read_timeout_sec": 10,
            **options,
        }
        return Protocol(self.url, **values)

    def sftp(self, password: str = PASSWORD) -> paramiko.SFTPClient:
        """A paramiko client that accepts the guest's host key only."""
        transport = paramiko.Transport(("127.0.0.1", self.face.ssh_port))
        kind, text = self.face.host_key.split()
        key = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
        transport.connect(hostkey=key, username=USER, password=password)
        client = paramiko.SFTPClient.from_transport(transport)
        assert client is not None
        return client

    def _new_boot(self) -> None:
        self.computers.append(SmallComputer(self.registry))
        self.rebooted.set()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest that the tests of one module share."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    machine.face.start()
    yield machine
    machine.face.stop()


@pytest.fixture
def own_machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    """Makes guests for one test alone, with settings of its own."""
    machines: list[Machine] = []

    def make(**changes: object) -> Machine:
        machine = Machine(tmp_path / f"machine{len(machines)}", **changes)
        machines.append(machine)
        machine.face.start()
        return machine

    yield make
    for machine in reversed(machines):
        machine.face.stop()


def run(protocol: Protocol, shell: str, line: str, stdin: bytes | None = None) -> tuple[bytes, bytes, int]:
    """One command from start to clean-up."""
    command = protocol.run_command(shell, line, console_mode_stdin=False)
    if stdin is not None:
        protocol.send_command_input(shell, command, stdin, end=True)
    try:
        result: tuple[bytes, bytes, int] = protocol.get_command_output(shell, command)
        return result
    finally:
        protocol.cleanup_command(shell, command)


def until(condition: Callable[[], bool], what: str, seconds: float = 5.0) -> None:
    """Wait for a condition with a deadline."""
    deadline = Deadline.after(seconds=seconds)
    pause = threading.Event()
    while not condition():
        deadline.check(what)
        pause.wait(0.005)


@pytest.fixture
def run_command() -> Callable[..., tuple[bytes, bytes, int]]:
    return run


@pytest.fixture
def wait_until() -> Callable[..., None]:
    return until
