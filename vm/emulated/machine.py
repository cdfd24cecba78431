"""The emulated machine as the harness sees it: starts and stops its process and reads its state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vm.deadline import Deadline
from vm.emulated.control import ask
from vm.errors import DeadlineExceededError, MachineError
from vm.machine import Abilities, Condition, CrashReport, Credentials, GuestAddress, MachineState, Violation
from vm.registry import used_as

STATE_FILE = "state.json"
_ROOT = Path(__file__).resolve().parents[2]
_STOP_POLL_SECONDS = 0.02
_STOP_SECONDS = 10.0
_PING_SECONDS = 3.0
_ANSWER_SECONDS = 10.0

_NOT_NEEDED = frozenset({"secrets", "script_hosts", "guests"})
"""What the harness brings for kinds that ask for passwords and run scripts: this one makes its own password."""


class EmulatedMachine:
    """Implements `vm.machine.Machine` with a process of its own on this host (`python -m vm.emulated`).

    Args:
        name: name in `harness.toml`.
        directory: the machine's directory (`.machines/<name>`); its C: drive, logs and state file are in it.
        settings: those of its kind in `vm.registry`, and "rules".
    """

    def __init__(self, name: str, directory: Path, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._directory = directory
        # The rest goes to its process as JSON.
        self._settings = {name: value for name, value in settings.items() if name not in _NOT_NEEDED}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def kind(self) -> str:
        return "emulated"

    @property
    def abilities(self) -> Abilities:
        return used_as(Abilities(witness=True), self._settings)

    def state(self) -> MachineState:
        if self._read_state() is not None:
            return MachineState.RUNNING
        return MachineState.STOPPED if (self._directory / "c").is_dir() else MachineState.ABSENT

    def start(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        if self._read_state() is None:
            self._launch(deadline, attached=not keep)
        return self.address()

    def stop(self, deadline: Deadline) -> None:
        state = self._read_state()
        if state is not None:
            process_id = int(state["process_id"])
            try:
                self._ask(state, "stop", seconds=min(_STOP_SECONDS, deadline.remaining))
                ended = self._wait_for_end(process_id, deadline.sooner(seconds=_STOP_SECONDS))
            except (MachineError, DeadlineExceededError):
                ended = False
            if not ended:
                _kill(process_id)
                self._wait_for_end(process_id, Deadline.after(seconds=_STOP_SECONDS))
            self._state_path.unlink(missing_ok=True)
        if self._process is not None:
            self._reap(deadline)

    def restore(self, deadline: Deadline, *, keep: bool = True) -> GuestAddress:
        self.stop(deadline)
        self._wipe()
        self._launch(deadline, attached=not keep)
        return self.address()

    def address(self) -> GuestAddress:
        state = self._read_state()
        if state is None:
            raise MachineError(
                f"the machine '{self._name}' does not run",
                hint="start it with './inv vm.start'",
                machine=self._name,
            )
        ssh = self._settings.get("files", "sftp") == "sftp"
        return GuestAddress(
            host="127.0.0.1",
            winrm_port=int(state["winrm_port"]),
            winrm_scheme=str(state["scheme"]),
            winrm_transport=str(state["transport"]),
            ssh_port=int(state["ssh_port"]) if ssh else None,
            host_key=str(state["host_key"]) if ssh else None,
            credentials=Credentials(str(state["username"]), str(state["password"])),
            certificate=Path(state["certificate"]) if state["certificate"] else None,
        )

    def clone(self, number: int) -> EmulatedMachine:
        """Another process beside this one, on ports of its own."""
        settings = {**self._settings, "winrm_port": 0, "ssh_port": 0}
        directory = self._directory.with_name(f"{self._directory.name}-w{number}")
        return EmulatedMachine(f"{self._name}-w{number}", directory, settings)

    def describe(self) -> str:
        """What `destroy` removes; "" when there is nothing."""
        return f"the directory '{self._directory}'" if self._directory.exists() else ""

    def destroy(self, deadline: Deadline) -> tuple[str, ...]:
        """Stop it and remove its directory."""
        there = self.describe()
        self.stop(deadline)
        self._wipe()
        return (str(self._directory),) if there else ()

    def condition(self) -> Condition:
        state = self._read_state()
        if state is None:
            if self._process is not None and self._process.poll() is not None:
                raise MachineError(
                    f"the process of the machine '{self._name}' has ended by itself (exit status {self._process.returncode})",
                    hint=f"see '{self._directory / 'machine.log'}' and '{self._directory / 'stderr.log'}'",
                    machine=self._name,
                )
            return Condition()
        answer = self._ask(state, "condition", seconds=_ANSWER_SECONDS)
        return Condition(
            crashes=tuple(_crash(c) for c in answer["crashes"]),
            violations=tuple(Violation(**{**v, "stack": tuple(v["stack"])}) for v in answer["violations"]),
        )

    def chaos(self) -> list[dict[str, Any]]:
        """What the machine's faults did: one entry per fault with "fault", "occasions" and "firings".

        Raises:
            MachineError: the machine does not run.
        """
        state = self._read_state()
        if state is None:
            raise MachineError(f"the machine '{self._name}' does not run", machine=self._name)
        report: list[dict[str, Any]] = self._ask(state, "chaos", seconds=_ANSWER_SECONDS)
        return report

    def interrupt(self) -> None:
        """Send a non-maskable interrupt: the guest stops with the bugcheck NMI_HARDWARE_FAILURE and restarts.

        Raises:
            MachineError: the machine does not run.
        """
        state = self._read_state()
        if state is None:
            raise MachineError(f"the machine '{self._name}' does not run", machine=self._name)
        self._ask(state, "nmi", seconds=_ANSWER_SECONDS)

    def check_image(self, image: bytes, name: str) -> None:
        # Imported here: the engine and the disassembler cost a quarter of a second that other verbs need not pay.
        from vm.emulated.boot import known_imports
        from vm.emulated.image.pe import parse_image
        from vm.emulated.kernel.loader import check_imports

        check_imports(parse_image(image, name), known_imports())

    # The process

    @property
    def _state_path(self) -> Path:
        return self._directory / STATE_FILE

    def _read_state(self) -> dict[str, Any] | None:
        """State of the running process; a file that a dead process left behind is removed."""
        try:
            state: dict[str, Any] = json.loads(self._state_path.read_text(encoding="utf-8"))
            self._ask(state, "ping", seconds=_PING_SECONDS)
        except FileNotFoundError:
            return None
        except DeadlineExceededError:
            return state  # it is there, if only to be stopped
        except (OSError, ValueError, KeyError, MachineError):
            self._state_path.unlink(missing_ok=True)
            return None
        return state

    @staticmethod
    def _ask(state: Mapping[str, Any], verb: str, *, seconds: float) -> Any:
        return ask(int(state["control_port"]), bytes.fromhex(state["key"]), verb, seconds=seconds)

    def _launch(self, deadline: Deadline, *, attached: bool) -> None:
        if self._settings.get("chaos"):
            # A wrong name is told before a process is made for it; imported here, it costs what few machines need.
            from vm.emulated.guest.chaos.plan import parse

            parse(self._settings["chaos"])
        self._directory.mkdir(parents=True, exist_ok=True)
        line = {
            "directory": str(self._directory.resolve()),
            "cache": str(self._directory.resolve().parent.parent / ".cache"),
            "attached": attached,
            **self._settings,
        }
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
        with (self._directory / "stderr.log").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "vm.emulated"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=_ROOT,
                **options,
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(line, default=dict).encode() + b"\n")
        process.stdin.flush()
        if not attached:
            process.stdin.close()
        self._process = process
        try:
            answer = self._first_line(process, deadline)
        except BaseException:
            process.kill()
            self._reap(deadline)
            raise
        if "error" in answer:
            self._reap(deadline)
            raise MachineError(answer["error"], hint=answer.get("hint"), machine=self._name)

    def _first_line(self, process: subprocess.Popen[bytes], deadline: Deadline) -> dict[str, Any]:
        lines: list[bytes] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]  # it was opened as a pipe
        reader.start()
        reader.join(None if deadline.remaining == float("inf") else deadline.remaining)
        if not lines:
            raise DeadlineExceededError(
                "the deadline passed while waiting for the emulated machine to start", machine=self._name
            )
        if not lines[0].strip():
            tail = (self._directory / "stderr.log").read_text(encoding="utf-8", errors="replace").strip()
            last = tail.splitlines()[-1] if tail else "it printed nothing"
            raise MachineError(
                f"the process of the emulated machine ended while it started: {last}",
                hint=f"see '{self._directory / 'stderr.log'}' and '{self._directory / 'machine.log'}'",
                machine=self._name,
            )
        answer: dict[str, Any] = json.loads(lines[0])
        return answer

    def _reap(self, deadline: Deadline) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            process.wait(timeout=min(10.0, max(0.1, deadline.remaining)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _wait_for_end(self, process_id: int, deadline: Deadline) -> bool:
        """Wait until the process is gone; True if it is."""
        process = self._process
        if process is not None and process.pid == process_id:
            try:
                process.wait(timeout=deadline.remaining)
            except subprocess.TimeoutExpired:
                return False
            return True
        pause = threading.Event()
        while _exists(process_id):
            if deadline.passed:
                return False
            # Not a child of ours: the system offers no event for its end that works everywhere.
            pause.wait(_STOP_POLL_SECONDS)
        return True

    def _wipe(self) -> None:
        """A clean checkpoint of the emulated machine is an empty directory."""
        if self._directory.exists():
            try:
                shutil.rmtree(self._directory)
            except OSError as error:
                raise MachineError(
                    f"the directory of the machine cannot be cleaned: {error}",
                    machine=self._name,
                    causes=[error],
                ) from error


def _crash(data: dict[str, Any]) -> CrashReport:
    first, second, third, fourth = data["parameters"]
    return CrashReport(
        **{**data, "parameters": (first, second, third, fourth), "stack": tuple(data["stack"])}
    )


def _exists(process_id: int) -> bool:
    if sys.platform == "win32":
        found = subprocess.run(
            ["tasklist", "/FI", f"PID eq {process_id}", "/NH"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return str(process_id) in found.stdout
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill(process_id: int) -> None:
    if sys.platform == "win32":
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(process_id)], capture_output=True, timeout=30, check=False
        )
        return
    import signal

    try:
        os.kill(process_id, signal.SIGKILL)
    except ProcessLookupError:
        return
