"""All benchmarks, in the order in which they run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness.bench import Benchmark, Measurement, driver_costs, emulated, main_job, upload

_SECONDS = 120


def _wrapper(root: Path) -> list[Measurement]:
    """What `inv` adds to invoke itself."""
    direct = _best([sys.executable, "-m", "invoke", "--search-root", str(root), "--version"])
    wrapped = _best([str(root / ("inv.cmd" if sys.platform == "win32" else "inv")), "--version"])
    return [
        Measurement("wrapper", "invoke --version", direct * 1000, "ms"),
        Measurement("wrapper", "inv --version / invoke --version", wrapped / direct, "times", limit=2.0),
    ]


def _best(command: list[str], times: int = 5) -> float:
    """Shortest of several runs in seconds: what the machine can do when nothing else disturbs it."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - began)
    return best


BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark("wrapper", _wrapper),
    Benchmark("traps", emulated.traps),
    Benchmark("fresh machine", emulated.fresh_machine),
    Benchmark("write event", driver_costs.write_event),
    Benchmark("upload", upload.upload),
    Benchmark("main job", main_job.main_job),
)
