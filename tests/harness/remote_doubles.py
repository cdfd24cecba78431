"""Doubles of a guest and a machine: what the harness needs of them, without WinRM, SFTP or an emulator."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path, PureWindowsPath
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from harness.log import Log
from harness.remote.channels import ContentError
from harness.remote.guest import failure
from harness.remote.quoting import command_line
from harness.remote.sftp import Upload
from harness.remote.sync import Sync, synchronise
from harness.remote.winrm import CommandResult
from vm.deadline import Deadline
from vm.emulated.computer import FilterInformation, InstanceInformation, VolumeInformation
from vm.emulated.registry import Registry
from vm.errors import DeadlineExceededError, MachineError
from vm.machine import Abilities, Condition, Credentials, GuestAddress, MachineState

Answer = tuple[int, str]


class ScriptedGuest:
    """A guest whose commands are answered by functions; keeps what it was asked and what it was sent.

    Args:
        answers: by the start of the command line; the longest start that fits answers. Unknown commands return 0.
    """

    machine = "double"

    def __init__(self, answers: Mapping[str, Answer | Callable[[str], Answer]]) -> None:
        self.answers = dict(answers)
        self.commands: list[str] = []
        self.files: dict[str, bytes] = {}
        self.log = Log()
        self.boot = "7"
        self.reconnects = 0
        self.comes_back = True

    def boot_identity(self, deadline: Deadline) -> str:
        return self.boot

    def reconnect(self) -> None:
        self.reconnects += 1

    def wait_for_boot(self, previous: str | None, deadline: Deadline) -> str:
        if not self.comes_back:
            raise DeadlineExceededError("the guest did not come back", machine=self.machine)
        return self.boot

    def run(
        self, command: Sequence[str] | str, *, deadline: Deadline, check: bool = True, **_: Any
    ) -> CommandResult:
        line = command if isinstance(command, str) else command_line(command)
        deadline.check(f"'{line}'", machine=self.machine)
        self.commands.append(line)
        start = max((known for known in self.answers if line.startswith(known)), key=len, default=None)
        answer = self.answers[start] if start is not None else (0, "")
        code, output = answer(line) if callable(answer) else answer
        result = CommandResult(line, code, output, "", 0.001)
        if check and code:
            raise failure(result, self.machine)
        return result

    def sync(
        self, files: Mapping[str, Path], root: str, deadline: Deadline, *, manifest: str, **_: Any
    ) -> Sync:
        targets = {name: str(PureWindowsPath(root).joinpath(*name.split("/"))) for name in files}
        size = self.put([Upload(path, targets[name]) for name, path in files.items()], deadline)
        self.files[manifest] = b"{}"
        return Sync(len(files), size, size, 0.001, size / 1e3)

    def put(self, uploads: Iterable[Upload], deadline: Deadline, **_: Any) -> int:
        sent = {upload.target: upload.source.read_bytes() for upload in uploads}
        self.files.update(sent)
        return sum(len(content) for content in sent.values())

    def verify(self, digests: Mapping[str, str], deadline: Deadline) -> None:
        for path, digest in digests.items():
            if path not in self.files or hashlib.sha256(self.files[path]).hexdigest() != digest:
                raise ContentError(f"'{path}' differs", machine=self.machine)

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        for path in paths:
            self.files.pop(path, None)

    def size(self, path: str, deadline: Deadline) -> int | None:
        return len(self.files[path]) if path in self.files else None

    def read_bytes(
        self, source: str, deadline: Deadline, *, offset: int = 0, limit: int | None = None
    ) -> bytes | None:
        content = self.files.get(source)
        return None if content is None else content[offset : None if limit is None else offset + limit]


class LocalGuest:
    """A guest whose C: drive is a directory and whose python is this one: real processes, no network."""

    machine = "double"

    def __init__(self, drive: Path) -> None:
        self.drive = drive
        self.boot = "1"
        self.sent: list[str] = []
        self.log = Log()
        self.on_line: Callable[[str], None] = lambda _: None

    def run(
        self,
        command: Sequence[str] | str,
        *,
        deadline: Deadline,
        check: bool = True,
        directory: str | None = None,
        on_output: Callable[[str], None] = lambda _: None,
        **_: Any,
    ) -> CommandResult:
        if isinstance(command, str):
            return self._unpack(command)
        assert command[0] == "python"
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=self.path(directory or "C:\\"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stderr is not None
        try:
            for line in process.stdout:
                on_output(line)
                self.on_line(line)
            errors = process.stderr.read()
            code = process.wait(timeout=deadline.remaining)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
        return CommandResult(" ".join(command), code & 0xFFFFFFFF, "", errors, time.monotonic() - began)

    def path(self, windows: str) -> Path:
        return self.drive.joinpath(*PureWindowsPath(windows).parts[1:])

    def sync(
        self, files: Mapping[str, Path], root: str, deadline: Deadline, *, manifest: str, **options: Any
    ) -> Sync:
        return synchronise(self, files, root, deadline, manifest=manifest, **options)  # type: ignore[arg-type]

    def size(self, path: str, deadline: Deadline) -> int | None:
        found = self.path(path)
        return found.stat().st_size if found.exists() else None

    def put(self, uploads: Iterable[Upload], deadline: Deadline, *, resume: bool = False) -> int:
        total = 0
        for upload in uploads:
            content = upload.source.read_bytes()
            self.put_bytes(content, upload.target, deadline)
            total += len(content)
        return total

    def _unpack(self, line: str) -> CommandResult:
        """The one line of cmd.exe that a synchronisation needs: unpack an archive, remove its directory."""
        found = re.fullmatch(r"\S+tar\.exe -xf (\S+) -C (\S+) && rmdir /s /q (\S+)", line)
        assert found, line
        with tarfile.open(self.path(found[1])) as archive:
            archive.extractall(self.path(found[2]), filter="data")
            self.sent += [f"{found[2]}\\{name}".replace("/", "\\") for name in archive.getnames()]
        shutil.rmtree(self.path(found[3]))
        return CommandResult(line, 0, "", "", 0.001)

    def put_bytes(self, content: bytes, target: str, deadline: Deadline) -> None:
        self.path(target).parent.mkdir(parents=True, exist_ok=True)
        self.path(target).write_bytes(content)

    def read_bytes(self, source: str, deadline: Deadline) -> bytes | None:
        path = self.path(source)
        return path.read_bytes() if path.exists() else None

    def get_tree(self, source: str, target: Path, deadline: Deadline) -> list[Path]:
        fetched = []
        for path in self.path(source).rglob("*"):
            target.mkdir(parents=True, exist_ok=True)
            fetched.append(target / path.name)
            fetched[-1].write_bytes(path.read_bytes())
        return fetched

    def remove(self, paths: Iterable[str], deadline: Deadline) -> None:
        for path in paths:
            self.path(path).unlink(missing_ok=True)

    def verify(self, digests: Mapping[str, str], deadline: Deadline) -> None:
        for path, digest in digests.items():
            assert hashlib.sha256(self.path(path).read_bytes()).hexdigest() == digest

    def boot_identity(self, deadline: Deadline) -> str:
        return self.boot

    def wait_for_boot(self, previous: str | None, deadline: Deadline) -> str:
        return self.boot

    def reconnect(self) -> None:
        pass


class MachineDouble:
    """A machine that only remembers what was asked of it."""

    kind = "double"

    def __init__(self, name: str = "double", condition: Condition | None = None) -> None:
        self.name = name
        self.calls: list[str] = []
        self.present = condition or Condition()
        self.now = MachineState.STOPPED
        self.on_stop: Callable[[Deadline], None] = lambda _: None

    @property
    def abilities(self) -> Abilities:
        return Abilities(witness=True)

    def state(self) -> MachineState:
        return self.now

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        self.calls.append("start")
        self.now = MachineState.RUNNING
        return self.address()

    def stop(self, deadline: Deadline) -> None:
        self.calls.append("stop")
        self.on_stop(deadline)
        self.now = MachineState.STOPPED

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        self.calls.append("restore")
        self.now = MachineState.RUNNING
        return self.address()

    def address(self) -> GuestAddress:
        return GuestAddress("127.0.0.1", 5985, "http", "ntlm", 22, None, Credentials("lab", "secret"))

    def clone(self, number: int) -> MachineDouble:
        raise MachineError("there is only one", machine=self.name)

    def condition(self) -> Condition:
        return self.present

    def check_image(self, image: bytes, name: str) -> None:
        self.calls.append(f"check {name}")


class ComputerDouble:
    """The running system behind a guest face: filters load and unload as the test says."""

    boot_id = "00000000-0000-0000-0000-000000000000"
    boot_time = 0.0

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.loaded: list[str] = []
        self.load_status = 0
        self.unload_status = 0

    def load_filter(self, name: str) -> int:
        if not self._registry.exists(f"HKLM\\SYSTEM\\CurrentControlSet\\Services\\{name}"):
            return 0xC0000034
        if self.load_status == 0:
            self.loaded.append(name)
        return self.load_status

    def unload_filter(self, name: str) -> int:
        if name not in self.loaded:
            return 0xC01C0013
        if self.unload_status == 0:
            self.loaded.remove(name)
        return self.unload_status

    def stop_service(self, name: str) -> int:
        return self.unload_filter(name)

    def filters(self) -> list[FilterInformation]:
        return [FilterInformation(name, "370001.5", 2) for name in self.loaded]

    def instances(self) -> list[InstanceInformation]:
        return [
            InstanceInformation(f"{name} Instance", name, volume, "370001.5")
            for name in self.loaded
            for volume in ("D:", "E:")
        ]

    def volumes(self) -> list[VolumeInformation]:
        return [
            VolumeInformation(f"{letter}:", f"\\Device\\HarddiskVolume{letter}", "NTFS") for letter in "DE"
        ]

    def attach(self, filter_name: str, volume: str, instance: str | None, altitude: str | None) -> int:
        return 0

    def detach(self, filter_name: str, volume: str, instance: str | None) -> int:
        return 0

    def debug_output(self) -> list[str]:
        return []

    def condition(self) -> Condition:
        return Condition()


def sample_package(directory: Path) -> Path:
    """A package with a manifest, an image that is none and a certificate that is one."""
    directory.mkdir()
    contents = {
        "sample.sys": ("image", b"MZ image"),
        "sample.inf": ("inf", b"[Version]"),
        "sample.cer": ("certificate", _certificate()),
    }
    for name, (_, data) in contents.items():
        (directory / name).write_bytes(data)
    files = [
        {"name": name, "role": role, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, (role, data) in contents.items()
    ]
    manifest = {
        "format": 1,
        "driver": {"service": "Sample", "instance": "Sample Instance", "altitude": "370001.5"},
        "build": {"toolchain": "zig", "versions": {}, "configuration": "debug", "architecture": "x64"},
        "source": {"revision": None, "dirty": None},
        "unsigned_sha256": "0" * 64,
        "files": files,
    }
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return directory


def _certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sample")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
