"""The pipelines as data: workflows of GitHub, pipelines of Azure with their templates put in, and what they run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

WORKFLOWS = ".github/workflows"
AZURE = "ci/azure"
_PARAMETER = re.compile(r"\$\{\{\s*(upper\()?parameters\.(\w+)\)?\s*\}\}")


@dataclass(frozen=True, slots=True)
class Step:
    """One step that runs commands, with what holds it. `minutes` is 0 where no limit is stated."""

    where: str
    job: str
    lines: tuple[str, ...]
    minutes: int
    environment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One job: its limit and that of all of its steps together."""

    where: str
    name: str
    minutes: int
    steps: tuple[Step, ...]


def load(path: Path) -> Any:
    """A file as GitHub reads it."""
    return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))


def workflows(root: Path) -> list[Path]:
    return sorted((root / WORKFLOWS).glob("*.yml"))


def actions(root: Path) -> list[Path]:
    return sorted((root / "ci" / "github").glob("*/action.yml"))


def azure(root: Path) -> list[Path]:
    """The pipelines themselves; templates lie in directories beside them."""
    return sorted((root / AZURE).glob("*.yml"))


def expanded(path: Path) -> Any:
    """An Azure pipeline with its templates put in, all values as text, as Azure sees them."""
    return _expand(_load_text(path), path.parent)


def templates(path: Path) -> Iterator[Path]:
    """Templates that a file of Azure uses, and theirs."""
    for name in re.findall(r"^\s*- template: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
        found = (path.parent / name).resolve()
        yield found
        yield from templates(found)


def jobs(root: Path) -> Iterator[Job]:
    """Every job of every pipeline."""
    for path in workflows(root):
        for name, job in load(path)["jobs"].items():
            where = f"{path.name}: {name}"
            steps = tuple(
                Step(
                    where,
                    name,
                    _lines(step["run"]),
                    int(step.get("timeout-minutes", 0)),
                    tuple({**job.get("env", {}), **step.get("env", {})}),
                )
                for step in job["steps"]
                if "run" in step
            )
            yield Job(where, name, int(job.get("timeout-minutes", 0)), steps)
    for path in azure(root):
        document = expanded(path)
        for stage in document.get("stages", [document]):
            for job in stage["jobs"]:
                where = f"azure/{path.name}: {job['job']}"
                steps = tuple(
                    Step(
                        where,
                        job["job"],
                        _lines(step["script"]),
                        int(step.get("timeoutInMinutes", 0)),
                        tuple(step.get("env", {})),
                    )
                    for step in job["steps"]
                    if "script" in step
                )
                yield Job(where, job["job"], int(job.get("timeoutInMinutes", 0)), steps)


def task_calls(step: Step) -> Iterator[list[str]]:
    """What a step gives to the wrapper: ["test", "--machine", ...]. Variables stay as they are written."""
    for line in step.lines:
        words = shlex.split(
            re.sub(
                r"\$\{\{\s*(.*?)\s*\}\}", lambda match: "${" + match[1].replace(" ", "") + "}", line
            ).replace("\\", "/")
        )
        if words[0] in ("./inv", "./inv.cmd"):
            yield words[1:]


def _lines(script: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in script.strip().splitlines() if line.strip())


def _load_text(path: Path) -> Any:
    return YAML(typ="base", pure=True).load(path.read_text(encoding="utf-8"))


def _expand(value: Any, directory: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(child, directory) for key, child in value.items()}
    if not isinstance(value, list):
        return value
    found = []
    for child in value:
        if isinstance(child, dict) and "template" in child:
            path = (directory / child["template"]).resolve()
            template = _load_text(path)
            given = {p["name"]: p["default"] for p in template["parameters"] if "default" in p}
            given |= child.get("parameters", {})
            assert set(given) == {p["name"] for p in template["parameters"]}, f"parameters of {path.name}"
            body = template.get("steps") or template["jobs"]
            found += _expand(_fill(body, given), path.parent)
        else:
            found.append(_expand(child, directory))
    return found


def _fill(value: Any, given: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {_fill(key, given): _fill(child, given) for key, child in value.items()}
    if isinstance(value, list):
        return [_fill(child, given) for child in value]
    return _PARAMETER.sub(lambda match: given[match[2]].upper() if match[1] else given[match[2]], value)
