"""Our PowerShell files in PowerShell's own hands, on Windows: its parser and PSScriptAnalyzer."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from harness.ci.systems import Annotation, Level, System
from harness.console import Console
from vm.errors import MachineError
from vm.powershell.script import Script, answer, arguments

SCRIPT = "ci/scripts/Test-Scripts.ps1"
SETTINGS = "ci/PSScriptAnalyzerSettings.psd1"
SECONDS = 600

ANNOTATIONS = 10
"""Most annotations of one step (see `harness.ci.report`)."""


def run(root: Path, console: Console, system: System | None) -> int:
    """Look at every script and module that git knows; returns 1 when something is wrong with one.

    Raises:
        MachineError: there is no PowerShell here, or the analyzer could not do its work.
    """
    files = known(root)
    with tempfile.TemporaryDirectory() as directory:
        listed = Path(directory) / "files.txt"
        # Windows PowerShell takes UTF-8 only with a byte order mark.
        listed.write_text("\n".join(str(path) for path in files) + "\n", encoding="utf-8-sig")
        found = _ask(root, listed)
    complaints = found["complaints"]
    for complaint in complaints:
        console.line(
            f"{_relative(root, complaint)}:{complaint['line']}: {complaint['rule']}: {complaint['message']}"
        )
    if system is not None:
        for complaint in complaints[:ANNOTATIONS]:
            console.line(system.annotation(_annotation(root, complaint)))
    console.line(
        f"{len(files)} files, {len(complaints)} complaints, PowerShell {found['powershell']},"
        f" PSScriptAnalyzer {found['analyzer']}"
    )
    return 1 if complaints else 0


def known(root: Path) -> list[Path]:
    """Scripts and modules under version control."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "*.ps1", "*.psm1"], cwd=root, capture_output=True, check=True, timeout=60
    )
    return [root / name for name in sorted(filter(None, listed.stdout.decode("utf-8").split("\0")))]


def _ask(root: Path, listed: Path) -> Any:
    script = Script(root / SCRIPT)
    parameters = {"ListPath": listed, "SettingsPath": root / SETTINGS}
    try:
        done = subprocess.run(
            arguments(str(script.path), parameters),
            capture_output=True,
            timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise MachineError(
            "there is no Windows PowerShell on this host",
            hint="this task is for Windows; ./inv check lints elsewhere",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"'{script.name}' did not end within {SECONDS} s") from error
    return answer(
        script,
        done.returncode,
        done.stdout.decode("utf-8", "replace"),
        done.stderr.decode("utf-8", "replace"),
    )


def _annotation(root: Path, complaint: dict[str, Any]) -> Annotation:
    level = Level.ERROR if complaint["severity"] in ("Error", "ParseError") else Level.WARNING
    return Annotation(
        level,
        str(complaint["rule"]),
        str(complaint["message"]),
        _relative(root, complaint),
        int(complaint["line"]),
    )


def _relative(root: Path, complaint: dict[str, Any]) -> str:
    path = Path(complaint["file"])
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
