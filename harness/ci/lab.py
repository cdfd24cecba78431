"""The Hyper-V machines of the lab as a matrix for a pipeline: one job per machine."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.ci.systems import System
from harness.console import Console
from vm.errors import ConfigurationError

FILE = "ci/lab.toml"

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class LabMachine:
    """One machine: its name in the runner's `harness.local.toml`, and the Windows in it for people."""

    machine: str
    windows: str


def load(root: Path) -> tuple[LabMachine, ...]:
    """What `ci/lab.toml` says.

    Raises:
        ConfigurationError: it cannot be read, or says something that cannot be.
    """
    path = root / FILE
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"'{FILE}' cannot be read: {error}") from error
    machines = tables.get("machines")
    if set(tables) != {"machines"} or not isinstance(machines, dict) or not machines:
        raise ConfigurationError(f"'{FILE}' must have tables [machines.<name>] and nothing else")
    return tuple(_machine(name, table) for name, table in machines.items())


def matrix(machines: tuple[LabMachine, ...], system: System | None) -> str:
    """The matrix in JSON: for Azure a job's variables by its name, else a list of combinations."""
    rows = [{"machine": machine.machine, "windows": machine.windows} for machine in machines]
    if system is not None and system.name == "Azure Pipelines":
        # Names of jobs there take no dashes.
        return json.dumps({row["machine"].replace("-", "_"): row for row in rows})
    return json.dumps(rows)


def tell(console: Console, system: System | None, machines: tuple[LabMachine, ...]) -> None:
    """Show the matrix, and set the output `machines` of this step."""
    found = matrix(machines, system)
    console.line(found)
    if system is not None:
        for line in system.output("machines", found):
            console.line(line)


def _machine(name: str, table: Any) -> LabMachine:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{FILE}: '{name}' cannot be a label of a runner",
            hint="use small letters, digits and single dashes",
        )
    if not isinstance(table, dict) or set(table) != {"windows"} or not isinstance(table["windows"], str):
        raise ConfigurationError(
            f"{FILE}: 'machines.{name}' must have the key 'windows', a text, and no other"
        )
    return LabMachine(name, table["windows"])
