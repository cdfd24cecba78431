"""Our PowerShell files on this very host: a child process per script, ended with everything it started at the deadline."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from vm.deadline import Deadline
from vm.errors import DeadlineExceededError
from vm.powershell.script import ParameterValue, Script, ScriptError, answer, arguments

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.5
"""A wait on Windows cannot be interrupted; in slices this long, Ctrl-C gets through."""

_KILL_SECONDS = 30.0


class LocalPowerShell:
    """`vm.powershell.script.ScriptHost` for this host.

    Args:
        program: what runs a script, with its own leading arguments; Windows PowerShell if not given. Anything that takes
            `-File script -Name value` and answers as the script would may stand for it.
        machine: for messages.
    """

    def __init__(self, program: Sequence[str] = (), *, machine: str | None = None) -> None:
        self._program = tuple(program)
        self._machine = machine

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
            ScriptError: the script answered with an error, or not as the contract says; with the code "not-windows" when
                there is no PowerShell to run it, "powershell-missing" when it cannot be started.
            DeadlineExceededError: it did not end in time; it and what it started is gone.
        """
        deadline.check(f"'{script.name}' to be started", machine=self._machine)
        if not self._program and sys.platform != "win32":
            raise ScriptError(
                "this host is not Windows, so it cannot be a Hyper-V host",
                code="not-windows",
                hint="name a Hyper-V host in the machine's settings (host = \"...\"), or use a machine of the kind 'emulated'",
                machine=self._machine,
            )
        command = arguments(str(script.path), parameters)
        if self._program:
            command[:1] = self._program
        # ASCII means the same in every code page.
        given = json.dumps(dict(secret)).encode("ascii") if secret is not None else b""
        began = time.monotonic()
        code, out, errors = self._carry_out(script, command, given, deadline)
        log.info("'%s' ended with exit code %d after %.2f s", script.name, code, time.monotonic() - began)
        return answer(
            script, code, out.decode("utf-8", "replace"), errors.decode("utf-8", "replace"), self._machine
        )

    def _carry_out(
        self, script: Script, command: Sequence[str], given: bytes, deadline: Deadline
    ) -> tuple[int, bytes, bytes]:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=os.name == "posix",
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise ScriptError(
                f"'{command[0]}' cannot be started: {error.strerror or error}",
                code="powershell-missing",
                hint="Windows PowerShell 5.1 is part of Windows; is it in PATH?",
                machine=self._machine,
            ) from error
        try:
            rest: bytes | None = given
            while True:
                try:
                    # Calling it again after a timeout loses nothing; the input has been taken the first time.
                    out, errors = process.communicate(rest, timeout=min(_SLICE_SECONDS, deadline.remaining))
                    return process.returncode & 0xFFFFFFFF, out, errors
                except subprocess.TimeoutExpired:
                    rest = None
                if deadline.passed:
                    raise DeadlineExceededError(
                        f"'{script.name}' did not end in time and was killed", machine=self._machine
                    )
        except BaseException:
            _kill(process)
            raise


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and everything that it started."""
    if sys.platform == "win32":
        subprocess.run(
            ["taskkill", "/F", "/T", "/PID", str(process.pid)],
            capture_output=True,
            check=False,
            timeout=_KILL_SECONDS,
        )
    else:
        # PermissionError: macOS, where only zombies are left in the group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_KILL_SECONDS)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
