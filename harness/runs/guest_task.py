"""Runs the suite in the guest without anybody holding on to it: started by the task scheduler, watched through files.

Imports the standard library only, because it travels into the guest. Called with the path of a JSON file:

* `arguments`: what Python is started with, as in ["-m", "pytest", ...];
* `output`, `errors`: files that get its standard output and standard error;
* `status`: a file that this program appends lines of JSON to, each written through to the disk: `{"beat": n}` every
  second while the suite runs, and at the end `{"exit_code": n}`, or `{"problem": "..."}` if it could not be started.

Paths are relative to the working directory. Appending, and never replacing, keeps the files readable at any moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

BEAT_SECONDS = 1.0


def main(specification: str) -> int:
    """Run what the file says; returns the exit code of the suite."""
    wanted = json.loads(Path(specification).read_text(encoding="utf-8"))
    with Path(wanted["status"]).open("a", encoding="utf-8", newline="\n") as status:
        try:
            return _run(wanted, status)
        except OSError as error:
            _say(status, problem=f"the suite could not be started: {error}")
            return 1


def _run(wanted: dict[str, Any], status: TextIO) -> int:
    with Path(wanted["output"]).open("ab") as output, Path(wanted["errors"]).open("ab") as errors:
        suite = subprocess.Popen(
            [sys.executable, *wanted["arguments"]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            # The scheduler's environment has no encoding for a standard output that is a file.
            env={**os.environ, "PYTHONUTF8": "1"},
        )
        beat = 0
        while True:
            beat += 1
            _say(status, beat=beat)
            try:
                code = suite.wait(timeout=BEAT_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            break
        for stream in (output, errors):
            os.fsync(stream.fileno())
    # Unsigned, as Windows shows it; a signal of the emulated guest's host is negative in Python.
    _say(status, exit_code=code & 0xFFFFFFFF)
    return code


def _say(status: TextIO, **values: object) -> None:
    status.write(json.dumps(values) + "\n")
    status.flush()
    os.fsync(status.fileno())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
