"""Applies all rules to one INF."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

from harness.inf import install_rules, instance_rules, service_rules, text_rules, version_rules
from harness.inf.findings import Finding, Rule, Severity, Subject
from vm.inf.document import Inf
from vm.inf.parser import decode, parse

RULES: tuple[Rule, ...] = (
    *text_rules.RULES,
    *version_rules.RULES,
    *install_rules.RULES,
    *service_rules.RULES,
    *instance_rules.RULES,
)
"""All rules, in the order in which they are applied."""

ARCHITECTURES = {"x64": "amd64", "arm64": "arm64"}
"""What INFs call the architectures of the toolchains."""


def lint(inf: Path | str, architecture: str, *, today: date | None = None) -> list[Finding]:
    """What is wrong with a minifilter's INF for one architecture, errors first, each group in the order of the file.

    Args:
        inf: a file, or the text of one. `$ARCH$` stands for the architecture, as it does before the INF is stamped.
        architecture: "x64" or "arm64".
        today: the date in UTC that DriverVer must not be later than; the clock's if not given.

    Raises:
        OSError: the file cannot be read.
        KeyError: the architecture is not known.
    """
    name = ARCHITECTURES[architecture]
    text, problems = decode(inf.read_bytes()) if isinstance(inf, Path) else (inf, [])
    parsed = parse(text.replace("$ARCH$", name))
    subject = Subject(
        Inf(parsed.sections, parsed.strings, (*problems, *parsed.problems)),
        name,
        today or datetime.now(UTC).date(),
    )
    findings = [finding for rule in RULES for finding in rule.findings(subject)]
    return sorted(findings, key=lambda finding: (finding.severity is not Severity.ERROR, finding.line))
