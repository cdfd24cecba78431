"""Asks this Windows whether it loads test-signed drivers, before a pipeline relies on it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from harness.ci.systems import Annotation, Level, System
from harness.console import Console

COMMAND = ("bcdedit.exe", "/enum", "{current}")
SECONDS = 30

_LINE = re.compile(r"^\s*testsigning\s+(\S+)\s*$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether a load test is possible here, and why (not)."""

    possible: bool
    reason: str


def ask(run: Callable[[], tuple[int, str]] | None = None, platform: str = sys.platform) -> Finding:
    """What `bcdedit` says of the running system. Hosted Windows images have testsigning on, but nobody promises it."""
    if platform != "win32":
        return Finding(False, "this is not Windows, so no driver can be loaded")
    try:
        status, output = (run or _bcdedit)()
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(False, f"'{' '.join(COMMAND)}' could not be asked: {error}")
    if status != 0:
        said = " ".join(output.split())
        return Finding(False, f"'{' '.join(COMMAND)}' ended with exit code {status}: {said}")
    match = _LINE.search(output)
    if match is None:
        return Finding(False, f"'{' '.join(COMMAND)}' does not mention testsigning, so it is off")
    # Elements of the boot configuration have the same names everywhere, their values are in the display language.
    if match[1].lower() in ("no", "nein", "non"):
        return Finding(False, f"testsigning is off ('{match[1]}')")
    return Finding(True, f"testsigning is on ('{match[1]}')")


def tell(console: Console, system: System | None, finding: Finding) -> None:
    """Show the finding, and set the output `testsigning` of this step to "true" or "false"."""
    consequence = "" if finding.possible else "; the load test is skipped"
    console.line(f"{finding.reason}{consequence}")
    if system is not None:
        for line in system.output("testsigning", "true" if finding.possible else "false"):
            console.line(line)
        if not finding.possible:
            console.line(
                system.annotation(
                    Annotation(Level.WARNING, "load test skipped", f"{finding.reason}{consequence}")
                )
            )


def _bcdedit() -> tuple[int, str]:
    done = subprocess.run(
        list(COMMAND),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, f"{done.stdout}{done.stderr}"
