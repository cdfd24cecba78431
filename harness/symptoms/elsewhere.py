"""Rows that other rooms keep beside the code that meets them, in the form of the one table."""

from __future__ import annotations

import re
from importlib import import_module, util

from harness.symptoms.symptom import Place, Symptom

_TOOLCHAIN = "harness.toolchain.wdk"
_MESSAGES = f"{_TOOLCHAIN}.messages"
_OF_PACKAGES = ("inf2cat", "infverif", "signtool", "stampinf")


def faults() -> tuple[Symptom, ...]:
    """Faults of WinRM and failures of its connections."""
    from harness.remote.faults import CONNECTION_FAILURES, FAILURES

    rows = [
        Symptom(
            f"winrm-{failure.code:08x}",
            Place.WINRM,
            f"WSManFault {failure.code} (0x{failure.code:08X})",
            failure.cause,
            failure.cure,
            failure.code,
            failure.pattern,
        )
        for failure in FAILURES
        if failure.code is not None
    ]
    for number, failure in enumerate(CONNECTION_FAILURES, 1):
        seen = failure.cause[:1].upper() + failure.cause[1:]
        rows.append(
            Symptom(
                f"winrm-connection-{number}",
                Place.WINRM,
                seen,
                failure.cause,
                failure.cure,
                None,
                failure.pattern,
            )
        )
    return tuple(rows)


def inf_rules() -> tuple[Symptom, ...]:
    """Rules of the INF lint: what breaks one, and what to write instead."""
    from harness.inf.lint import RULES

    return tuple(
        Symptom(
            f"inf-{rule.id}".lower(),
            Place.INF,
            f"INF lint: {rule.severity.value} {rule.id}",
            f"broken rule: {rule.sentence.rstrip('.')}",
            rule.hint.rstrip("."),
            None,
            rf"\b(error|warning) {re.escape(rule.id)}:",
        )
        for rule in RULES
    )


def build_messages() -> tuple[Symptom, ...]:
    """Messages of MSBuild and the kit's tools that the toolchain 'wdk' knows."""
    if util.find_spec(_TOOLCHAIN) is None or util.find_spec(_MESSAGES) is None:
        return ()
    return tuple(
        Symptom(
            f"wdk-{known.id}",
            Place.INF if known.id.startswith(_OF_PACKAGES) else Place.BUILD,
            known.seen,
            known.cause,
            known.cure,
            None,
            known.pattern,
        )
        for known in import_module(_MESSAGES).KNOWN
    )
