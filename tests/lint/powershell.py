"""The lint of this project's PowerShell files: all rules over one file, or over every file that git knows."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lint import powershell_answer, powershell_form, powershell_style
from tests.lint.powershell_source import Complaint, Source

RULES = (*powershell_form.RULES, *powershell_style.RULES, *powershell_answer.RULES)


def complaints(source: Source) -> list[Complaint]:
    """Everything that is wrong with a file, by line; only its syntax when that is broken, for then no rule is sure."""
    broken = list(powershell_form.syntax(source))
    return sorted(set(broken or (found for rule in RULES for found in rule(source))))


def files(root: Path) -> Iterator[Path]:
    """Scripts and modules of the checkout: what git knows, and what is new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.ps1", "*.psm1"],
        cwd=root,
        capture_output=True,
        check=True,
        timeout=30,
    )
    paths = (root / name for name in listed.stdout.decode("utf-8").split("\0") if name)
    return (path for path in sorted(paths) if path.exists())
