"""The project's own checks, one line each: ruff, its formatter, clang-format, mypy and pytest on the host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.ci import report, systems
from harness.console import Console

CHECK_SECONDS = 1200

_WORKERS = "4"
"""Processes that share the project's own tests. They wait for machines and connections more than they compute: on two
cores four take little more than half of the time that two take."""


@dataclass(frozen=True, slots=True)
class Check:
    """One tool: how it is called, and which line of its output says in short how it went."""

    name: str
    command: tuple[str, ...]
    summary: Callable[[str], str]


def checks(root: Path) -> tuple[Check, ...]:
    """All checks of the checkout at `root` in the order in which they run: the fast ones first."""
    python = sys.executable
    # Not by its file name: the wheel puts it beside the interpreter as 'clang-format' or 'clang-format.exe'.
    clang_format = (python, "-c", "import clang_format; clang_format.clang_format()")
    c_files = c_sources(root)
    return (
        Check("ruff", (python, "-m", "ruff", "check", "--quiet", "."), _first_line),
        Check("format", (python, "-m", "ruff", "format", "--check", "."), _last_line),
        Check(
            "clang-format",
            (*clang_format, "--dry-run", "--Werror", "--style=file", "--", *c_files),
            lambda output: _first_line(output) or f"{len(c_files)} files",
        ),
        Check("mypy", (python, "-m", "mypy"), _last_line),
        # Tests that share a machine or a server stay together in one worker.
        Check("pytest", (python, "-m", "pytest", "-q", "-n", _WORKERS, "--dist", "loadscope"), _pytest_line),
    )


def c_sources(root: Path) -> tuple[str, ...]:
    """Every C file and header below `driver/`, the cross build's declarations included, relative to `root`.

    Raises:
        FileNotFoundError: there is none. Without a file clang-format would read, and praise, its standard input.
    """
    found = sorted(p for p in (root / "driver").rglob("*") if p.suffix in (".c", ".h") and p.is_file())
    if not found:
        raise FileNotFoundError(f"there is no C file below '{root / 'driver'}'")
    return tuple(path.relative_to(root).as_posix() for path in found)


def run(root: Path, console: Console, selected: Sequence[Check] | None = None) -> int:
    """Run all checks, also after one has failed; prints the output of those that failed. Returns the exit status."""
    failed = []
    for check in selected if selected is not None else checks(root):
        console.transient(f"{check.name} ...")
        began = time.monotonic()
        status, output = _run(check.command, root)
        word = console.style("ok", "green") if status == 0 else console.style("FAILED", "red", "bold")
        console.step(check.name, f"{word}  {check.summary(output)}".rstrip(), time.monotonic() - began)
        if status:
            failed.append(check.name)
            report.check_failed(check.name, output.rstrip(), console)
    console.line(
        console.style("passed", "green", "bold")
        if not failed
        else f"{console.style('FAILED', 'red', 'bold')}: {', '.join(failed)}"
    )
    return 1 if failed else 0


def _run(command: Sequence[str], root: Path) -> tuple[int, str]:
    """Run one tool with both outputs together; it does not survive an interruption of this process."""
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": ""}
    # What tests print is not for the CI system.
    for variable in systems.VARIABLES:
        environment.pop(variable, None)
    with subprocess.Popen(
        list(command),
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            output, _ = process.communicate(timeout=CHECK_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return 1, f"{output}\n'{' '.join(command[1:4])}' did not end within {CHECK_SECONDS} s"
        except BaseException:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return process.returncode, output


def _first_line(output: str) -> str:
    return next((line for line in output.splitlines() if line.strip()), "")[:120]


def _last_line(output: str) -> str:
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")[:120]


def _pytest_line(output: str) -> str:
    lines = [
        line.strip("= ") for line in output.splitlines() if re.search(r"\d+ (passed|failed|error)", line)
    ]
    return lines[-1] if lines else _last_line(output)
