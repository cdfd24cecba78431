"""Checks host, toolchain, machine and guest: what was found, what is wanted, and what mends it.

Exit status: 1 if anything is an error, else 0. A warning means that a run works, so that `doctor` may stand before it in
a pipeline; `--strict` makes warnings count, for those who prepare machines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import config
from harness.console import Console
from harness.doctor.examination import Examination, Repair
from harness.doctor.subject import Subject, failed
from harness.secrets import Secrets
from vm.errors import DownlinkError
from vm.findings import Finding, Severity

SCHEMA = 1
"""Of the JSON; raised when a key changes its meaning or goes."""

_STYLES: Mapping[Severity, str] = MappingProxyType(
    {Severity.OK: "green", Severity.NOTE: "dim", Severity.WARNING: "yellow", Severity.ERROR: "red"}
)


def run(
    root: Path,
    machine: str | None,
    console: Console,
    *,
    as_json: bool = False,
    fix: bool = False,
    strict: bool = False,
) -> int:
    """Look at everything and print one line each; with `fix` mend what is harmless, and look again.

    Returns:
        The exit status: 1 for an error (with `strict` for a warning, too), else 0.
    """
    repairs: list[Repair] = []
    try:
        configuration = replace(config.load(root), secrets=Secrets(say=_note(console, as_json)))
        chosen = configuration.machine(machine)
        subject = Subject(configuration, chosen, configuration.driver())
    except DownlinkError as error:
        findings = [failed("host.configuration", error)]
    else:
        examination = Examination(subject)
        findings = examination.look()
        if fix:
            repairs = examination.repair()
            findings = examination.look() if repairs else findings
    status = exit_status(findings, strict=strict)
    if as_json:
        console.line(json.dumps(as_data(findings, repairs, status), indent=2))
    else:
        _show(findings, repairs, console)
    return status


def exit_status(findings: Iterable[Finding], *, strict: bool) -> int:
    """1 for an error, and with `strict` for a warning."""
    bad = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    return 1 if any(finding.severity in bad for finding in findings) else 0


def as_data(findings: Iterable[Finding], repairs: Iterable[Repair], status: int) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "schema": SCHEMA,
        "status": status,
        "repairs": [asdict(repair) for repair in repairs],
        "findings": [{**asdict(finding), "severity": finding.severity.value} for finding in findings],
    }


def _show(findings: Iterable[Finding], repairs: Iterable[Repair], console: Console) -> None:
    for repair in repairs:
        level = console.style(f"{'mended' if repair.ok else 'failed':8}", "green" if repair.ok else "red")
        console.line(f"{level}{repair.fix}: {repair.said}")
    for finding in findings:
        level = console.style(f"{finding.severity.value:8}", _STYLES[finding.severity])
        wrong = finding.severity is not Severity.OK
        wanted = f" (wanted: {finding.wanted})" if finding.wanted and wrong else ""
        console.line(f"{level}{finding.check}: {finding.found}{wanted}")
        if finding.mend and wrong:
            console.line(f"        mend: {finding.mend}")


def _note(console: Console, as_json: bool) -> Any:
    return (lambda _: None) if as_json else (lambda text: console.line(f"{'note':8}{text}"))
