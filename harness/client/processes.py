"""Client processes that a suite starts: talk to them by lines of JSON on their pipes, kill, suspend and resume them.

A script ends with `serve({"name": function, ...})`; the suite calls those functions with `ClientProcess.call`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

CALL_SECONDS: Final = 20.0
_END_SECONDS: Final = 10.0


class ClientProcessError(RuntimeError):
    """A client process raised, or ended before it answered; the message holds its own last words."""


class ClientProcess:
    """One process of this interpreter that runs a script of the suite.

    Args:
        script: the Python file; it must end in a call of `serve`.
        arguments: its command line.
    """

    def __init__(self, script: Path, *arguments: str) -> None:
        library = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (library, os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            # Without `site`: scripts use the standard library and this one, and start in half the time.
            [sys.executable, "-S", str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        self._complaints: list[bytes] = []
        self._process_id: int | None = None
        self._readers = [
            threading.Thread(target=self._read_answers, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def process_id(self) -> int:
        """As the driver reports it; the process tells it itself, because an interpreter may be started by a launcher.

        Raises:
            ClientProcessError, TimeoutError: as `call`.
        """
        if self._process_id is None:
            self._process_id = int(self._answer("its start", CALL_SECONDS))
        return self._process_id

    def call(self, function: str, *arguments: Any, seconds: float = CALL_SECONDS) -> Any:
        """Call a function of the script and return its result.

        Raises:
            ClientProcessError: it raised, or the process ended.
            TimeoutError: no answer within `seconds`.
        """
        self.begin(function, *arguments)
        return self.finish(function, seconds=seconds)

    def begin(self, function: str, *arguments: Any) -> None:
        """Send a call without waiting for its answer; `finish` fetches it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([function, arguments]).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ClientProcessError(f"the client process has ended: {self._last_words()}") from error

    def finish(self, function: str, *, seconds: float = CALL_SECONDS) -> Any:
        """The answer to the oldest call that was begun; raises as `call` does."""
        assert self.process_id
        return self._answer(f"'{function}'", seconds)

    def kill(self) -> None:
        """End it at once (SIGKILL, TerminateProcess); returns when it is gone."""
        self._process.kill()
        self._process.wait(_END_SECONDS)

    def suspend(self) -> None:
        """Stop all of its threads (SIGSTOP, NtSuspendProcess)."""
        if sys.platform == "win32":
            from harness.client.windows_processes import suspend

            suspend(self.process_id)
        else:
            os.kill(self.process_id, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `suspend`."""
        if sys.platform == "win32":
            from harness.client.windows_processes import resume

            resume(self.process_id)
        else:
            os.kill(self.process_id, signal.SIGCONT)

    def close(self) -> None:
        """Let it end by closing its standard input; kill it if it does not. Idempotent."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        if self._process.poll() is None:
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        for reader in self._readers:
            reader.join(_END_SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _answer(self, what: str, seconds: float) -> Any:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"the client process did not answer {what} within {seconds:g} s") from None
        if line is None:
            # For whoever asks again: nothing more will come.
            self._answers.put(None)
            raise ClientProcessError(f"the client process ended in {what}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientProcessError(f"{what} in the client process: {answer['error']}")
        return answer["result"]

    def _read_answers(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._complaints.append(line)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._readers[1].join(_END_SECONDS)
        words = b"".join(self._complaints[-20:]).decode(errors="replace").strip()
        return words or f"exit status {self._process.poll()}"


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer calls on standard input until it is closed: the other end of `ClientProcess`."""
    _say({"result": os.getpid()})
    for line in sys.stdin.buffer:
        function, arguments = json.loads(line)
        try:
            answer = {"result": functions[function](*arguments)}
        except Exception as error:  # noqa: BLE001 - the edge of the process: the suite gets to know whatever it was
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
