"""Benchmarks of the main job as a user runs it: `./inv test` cold, warm, and after a change of one line of the driver."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.bench import Measurement
from vm.errors import DownlinkError

_SECONDS = 600
_WARM_RUNS = 3
_QUICK = ("test", "--select", "not slow")
_EDITED = ("driver/src/driver.c", "UNREFERENCED_PARAMETER")


def main_job(root: Path) -> list[Measurement]:
    """Clone the checkout's HEAD into a temporary directory and measure there; nothing of this checkout is touched.

    Cold includes the environment with its downloads, so it depends on the connection and on pip's cache.
    """
    with tempfile.TemporaryDirectory(prefix="downlink-bench-", ignore_cleanup_errors=True) as directory:
        clone = Path(directory) / "downlink"
        subprocess.run(
            ["git", "clone", "--quiet", str(root), str(clone)],
            check=True,
            capture_output=True,
            timeout=_SECONDS,
        )
        cold = _run(clone, *_QUICK)
        warm = min(_run(clone, *_QUICK) for _ in range(_WARM_RUNS))
        shared = min(_run(clone, *_QUICK, "--workers", "2") for _ in range(_WARM_RUNS))
        edited = min(_edit_and_run(clone, number) for number in range(_WARM_RUNS))
        everything = _run(clone, "test")
        up_to_date = min(_run(clone, "build") for _ in range(_WARM_RUNS))
        _run(clone, "vm.stop")
        # An environment has read-only files on some systems; the directory must go all the same.
        shutil.rmtree(clone / ".venv", ignore_errors=True)
    return [
        Measurement(
            "main job", "cold './inv test' in a fresh clone, tests that are not slow", cold, "s", limit=180
        ),
        Measurement("main job", "warm './inv test', tests that are not slow", warm, "s", limit=10),
        Measurement("main job", "the same on two clones of the machine", shared, "s", limit=10),
        Measurement("main job", "one changed line of the driver to the verdict", edited, "s", limit=12),
        Measurement("main job", "warm './inv test', all tests", everything, "s", limit=60),
        Measurement("main job", "'./inv build' when up to date", up_to_date, "s", limit=0.5),
    ]


def _edit_and_run(clone: Path, number: int) -> float:
    """Change a line of code, so that the image is another one, and run the suites."""
    name, anchor = _EDITED
    path = clone / name
    text = path.read_text(encoding="utf-8")
    position = text.index(anchor)
    line = f"    volatile ULONG benchmark{number} = {number}; (VOID)benchmark{number};\n"
    start = text.rindex("\n", 0, position) + 1
    path.write_text(text[:start] + line + text[start:], encoding="utf-8")
    return _run(clone, *_QUICK)


def _run(clone: Path, *arguments: str) -> float:
    wrapper = clone / ("inv.cmd" if sys.platform == "win32" else "inv")
    began = time.perf_counter()
    done = subprocess.run(
        [str(wrapper), *arguments],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise DownlinkError(f"'./inv {' '.join(arguments)}' failed in the benchmark's clone:\n{tail}")
    return seconds
