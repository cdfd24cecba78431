"""A lint for INF files of minifilters: the rules that Windows and its kits apply to them.

The lint needs no Windows. It does not replace InfVerif, which knows every directive; it knows what a minifilter's INF
has to say, and says which of it is missing before a machine does so with an error code. INFs are read by `vm.inf`.
"""

from harness.inf.findings import Finding, Rule, Severity
from harness.inf.lint import ARCHITECTURES, RULES, lint
from vm.inf import Entry, Field, Inf, Section, parse

__all__ = [
    "ARCHITECTURES",
    "RULES",
    "Entry",
    "Field",
    "Finding",
    "Inf",
    "Rule",
    "Section",
    "Severity",
    "lint",
    "parse",
]
