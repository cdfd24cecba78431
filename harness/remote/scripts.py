"""Our PowerShell files in a guest: sent once by content, run by name with typed values, their answer taken apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from harness.remote.channels import CommandResult, ContentError
from harness.remote.quoting import command_line
from vm.deadline import Deadline
from vm.powershell.script import ParameterValue, Script, ScriptError, answer, arguments

if TYPE_CHECKING:
    from harness.remote.guest import Guest

SCRIPTS = PureWindowsPath(r"C:\Downlink\scripts")
SOURCES = Path(__file__).resolve().parents[2] / "vm" / "windows" / "scripts"
"""Scripts that run inside a guest."""

NO_SUCH_FILE = 0xFFFD0000
"""What powershell.exe returns when the file of -File is not there: nothing has run."""


def script_path(content: bytes, name: str) -> str:
    """Where a script with this content lies in every guest, so that another version never takes its place."""
    return str(SCRIPTS / hashlib.sha256(content).hexdigest()[:16] / name)


def script_line(script: Script, path: str, parameters: Mapping[str, ParameterValue], machine: str) -> str:
    """The command that runs the script at `path`; raises `ScriptError` for a value that cmd.exe would change."""
    try:
        return command_line(arguments(path, parameters))
    except ValueError as error:
        raise ScriptError(
            f"'{script.name}' cannot be called with these values: {error}", code="bad-value", machine=machine
        ) from error


class GuestScripts:
    """A guest as a host of scripts (`vm.powershell.script.ScriptHost`).

    Args:
        guest: the running guest; stays the caller's.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._there: set[str] = set()

    def run(
        self,
        script: Script,
        parameters: Mapping[str, ParameterValue],
        deadline: Deadline,
        *,
        secret: Mapping[str, str] | None = None,
    ) -> Any:
        """Run the script and return its "result"; see `ScriptHost.run`.

        Raises:
            ScriptError: the script answered with an error, or not as the contract says.
            GuestError: the guest could not be reached, or refused the script's file.
            DeadlineExceededError: it did not end in time.
        """
        content = _content(script, self._guest.machine)
        path = script_path(content, script.path.name)
        line = script_line(script, path, parameters, self._guest.machine)
        for value in (secret or {}).values():
            self._guest.log.protect(value)
        result = self._run(path, content, line, secret, deadline)
        if result.exit_code == NO_SUCH_FILE:
            # The guest was restored meanwhile. Without its file nothing has run, so this is the first time.
            self._there.discard(path)
            result = self._run(path, content, line, secret, deadline)
        return answer(script, result.exit_code, result.stdout, result.stderr, self._guest.machine)

    def _run(
        self, path: str, content: bytes, line: str, secret: Mapping[str, str] | None, deadline: Deadline
    ) -> CommandResult:
        if path not in self._there:
            self._bring(path, content, deadline)
            self._there.add(path)
        # ASCII means the same in every code page.
        stdin = None if secret is None else json.dumps(dict(secret)).encode("ascii")
        return self._guest.run(line, deadline=deadline, check=False, stdin=stdin)

    def _bring(self, path: str, content: bytes, deadline: Deadline) -> None:
        """Have the file in the guest, with the content that its directory's name says."""
        digest = {path: hashlib.sha256(content).hexdigest()}
        try:
            self._guest.verify(digest, deadline)
        except ContentError:
            self._guest.put_bytes(content, path, deadline)
            self._guest.verify(digest, deadline)


def _content(script: Script, machine: str) -> bytes:
    try:
        return script.path.read_bytes()
    except OSError as error:
        raise ScriptError(
            f"the script '{script.path}' cannot be read: {error.strerror or error}",
            hint="the checkout is not complete: git status",
            machine=machine,
        ) from error
