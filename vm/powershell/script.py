"""A script of ours, what it is called with, and what comes back.

Contract of every `.ps1` in this project:

* Windows PowerShell 5.1 is enough (`#Requires -Version 5.1`), comment-based help, `[CmdletBinding()] param(...)` with a
  type for each parameter, `Set-StrictMode -Version Latest`, `$ErrorActionPreference = 'Stop'`.
* Standard output is exactly one line of JSON: `{"ok": true, "result": ...}` with exit code 0, or
  `{"ok": false, "error": {"code": "...", "message": "...", "hresult": N}}` with exit code 1. `code` is a short stable
  identifier ("vm-not-found"), the message is for people.
* A secret never is a parameter: a script that needs one reads standard input to its end, which is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vm.deadline import Deadline
from vm.errors import MachineError

ParameterValue = str | int | bool | Path


@dataclass(frozen=True, slots=True)
class Script:
    """One `.ps1` file of this project."""

    path: Path

    @property
    def name(self) -> str:
        """Its name without the extension, as in "Restore-Machine"."""
        return self.path.stem


class ScriptError(MachineError):
    """A script said no; `code` is its stable identifier, "" when it died without saying anything."""

    def __init__(
        self, message: str, *, code: str = "", hint: str | None = None, machine: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, machine=machine)
        self.code = code


class ScriptHost(Protocol):
    """A Windows system that runs our scripts: this one, a Hyper-V host over WinRM, or a guest."""

    def run(
        self,
        script: Script,
        parameters: Mapping[str, ParameterValue],
        deadline: Deadline,
        *,
        secret: Mapping[str, str] | None = None,
    ) -> Any:
        """Run the script and return its "result".

        Args:
            script: the file.
            parameters: by the names in its `param` block; True switches a `[switch]` on.
            deadline: when it passes, the script is killed.
            secret: what the script reads from standard input; never logged.

        Raises:
            ScriptError: the script answered with an error, or not as the contract says.
            DeadlineExceededError: it did not end in time.
        """
        ...


def arguments(script_path: str, parameters: Mapping[str, ParameterValue]) -> list[str]:
    """The command that runs a script by its path on the Windows side, as program and arguments."""
    command = [
        "powershell.exe",
        "-NoProfile",
        "-NonInteractive",
        "-ExecutionPolicy",
        "Bypass",
        "-File",
        script_path,
    ]
    for name, value in parameters.items():
        if value is True:
            command.append(f"-{name}")
        elif value is not False:
            command += [f"-{name}", str(value)]
    return command


def answer(script: Script, exit_code: int, stdout: str, stderr: str, machine: str | None = None) -> Any:
    """The "result" in what a script printed.

    Raises:
        ScriptError: it says so, or what it printed is not what the contract asks for.
    """
    lines = stdout.strip().splitlines()
    try:
        said = json.loads(lines[-1]) if lines else None
    except ValueError:
        said = None
    if not isinstance(said, dict) or "ok" not in said:
        last = (stderr.strip() or stdout.strip() or "nothing").splitlines()[-1]
        raise ScriptError(
            f"'{script.name}' ended with exit code {exit_code} and without an answer; it said: {last[:300]}",
            hint=f"run it by hand: powershell -File {script.path.name}",
            machine=machine,
        )
    if said["ok"] and exit_code == 0:
        return said.get("result")
    error = said.get("error") or {}
    raise ScriptError(
        str(error.get("message") or f"'{script.name}' failed with exit code {exit_code}"),
        code=str(error.get("code") or ""),
        machine=machine,
    )
