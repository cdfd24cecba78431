"""`python -m vm.emulated`: run one emulated machine until it is told to stop.

Reads its settings as one JSON line from standard input and answers with one JSON line on standard output: the state
without secrets, or the error. With `"attached": true` it ends when standard input does, that is, with its parent.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from vm.errors import DownlinkError

STATE_FILE = "state.json"


def main() -> int:
    """Run the machine; the exit status is 0 after a stop that was asked for."""
    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    directory = Path(settings["directory"])
    logging.basicConfig(
        filename=directory / "machine.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # paramiko tells every connection attempt in detail; the machine's log is for people.
    logging.getLogger("paramiko").setLevel(logging.ERROR)
    from vm.emulated.process import MachineProcess, ProcessSettings, write_private

    machine = None
    try:
        machine = MachineProcess(
            ProcessSettings(
                directory=directory,
                cache=Path(settings["cache"]),
                winrm_port=settings.get("winrm_port", 0),
                ssh_port=settings.get("ssh_port", 0),
                transport=settings.get("transport", "ntlm"),
                seed=settings.get("seed"),
                rules=settings.get("rules", {}),
                chaos=_chaos(settings.get("chaos", ())),
                scheme=settings.get("scheme", "http"),
                language=settings.get("language", "en"),
                password=settings.get("password"),
                identity=Path(settings["identity"]) if settings.get("identity") else None,
                registry=Path(settings["registry"]) if settings.get("registry") else None,
            )
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: machine.request_stop())
        state = machine.start()
        write_private(directory / STATE_FILE, state)
        running = machine
        machine.on_state_changed = lambda: write_private(directory / STATE_FILE, running.state())
    except DownlinkError as error:
        if machine is not None:
            machine.stop()
        _answer({"error": error.message, "hint": error.hint})
        return 1
    if settings.get("attached"):
        threading.Thread(target=_follow_parent, args=(machine,), name="parent", daemon=True).start()
    _answer({"ready": True})
    try:
        machine.wait()
    finally:
        (directory / STATE_FILE).unlink(missing_ok=True)
        machine.stop()
    return 0


def _chaos(setting: str | list[str]) -> str | tuple[str, ...]:
    return setting if isinstance(setting, str) else tuple(setting)


def _follow_parent(machine: Any) -> None:
    sys.stdin.read()
    machine.request_stop()


def _answer(line: dict[str, Any]) -> None:
    """Say it and let go of the pipe, so that the parent need not keep reading."""
    print(json.dumps(line), flush=True)  # noqa: T201  # the protocol with the parent
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    # Threads that serve connections must not hold up the end of the process.
    status = main()
    logging.shutdown()
    os._exit(status)
