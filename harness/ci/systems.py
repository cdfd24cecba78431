"""GitHub Actions and Azure Pipelines: how each is told something on standard output, and how it is not told by accident.

Sources: GitHub's page "Workflow commands for GitHub Actions" and the runner's `ActionCommand` (escapes, and that a
command may be indented); Azure's page "Logging commands" and the agent's `Command` (escapes, and that a command may
stand anywhere in a line).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from vm.errors import ConfigurationError

MESSAGE_CHARACTERS = 4000
"""Longest text of one annotation; GitHub cuts at 64 KB, but nobody reads more than this beside a line of code."""

VARIABLES = ("GITHUB_ACTIONS", "TF_BUILD")
"""Set to "true" by the one system and the other in every step."""

SUMMARY_BYTES = 512 * 1024
"""Largest summary: half of the 1 MiB that GitHub takes for one step; it drops what is larger as a whole."""


class Level(Enum):
    """How bad an annotation is."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One sentence beside a line of code, or beside the whole run when `file` is empty.

    `file` is relative to the repository, with slashes; `line` counts from 1, 0 = not known.
    """

    level: Level
    title: str
    message: str
    file: str = ""
    line: int = 0


class System(Protocol):
    """A CI system. Methods return the lines that tell it something; nothing is printed here."""

    @property
    def name(self) -> str: ...

    def annotation(self, annotation: Annotation) -> str:
        """The line that makes an annotation."""
        ...

    def output(self, name: str, value: str) -> list[str]:
        """Set an output of this step; returns the lines to print, if any.

        Raises:
            ConfigurationError: the system did not say where outputs go.
        """
        ...

    def summary(self, markdown: str, directory: Path) -> list[str]:
        """Add to the summary of the run; returns the lines to print, if any.

        Args:
            markdown: the text.
            directory: where a file for it may lie and stay.
        """
        ...

    def begin_foreign(self) -> list[str]:
        """Lines to print before text of others: from now on nothing in it is a command."""
        ...

    def end_foreign(self) -> list[str]:
        """Lines to print after it."""
        ...

    def defuse(self, text: str) -> str:
        """Text of others as it may be printed."""
        ...


class GitHub:
    """GitHub Actions (and what is compatible with it)."""

    name = "GitHub Actions"

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._token = secrets.token_hex(16)

    def annotation(self, annotation: Annotation) -> str:
        properties = {"title": annotation.title}
        if annotation.file:
            properties["file"] = annotation.file
            if annotation.line:
                properties["line"] = str(annotation.line)
        said = ",".join(f"{name}={_github_property(value)}" for name, value in properties.items())
        return f"::{annotation.level.value} {said}::{_github_data(_cut(annotation.message))}"

    def output(self, name: str, value: str) -> list[str]:
        # A delimiter that the value cannot contain: else one value could set another output.
        delimiter = f"end_{secrets.token_hex(16)}"
        self._append("GITHUB_OUTPUT", f"{name}<<{delimiter}\n{value}\n{delimiter}\n")
        return []

    def summary(self, markdown: str, directory: Path) -> list[str]:
        if self._environment.get("GITHUB_STEP_SUMMARY"):
            self._append("GITHUB_STEP_SUMMARY", _cut_bytes(markdown) + "\n")
        return []

    def begin_foreign(self) -> list[str]:
        return [f"::stop-commands::{self._token}"]

    def end_foreign(self) -> list[str]:
        return [f"::{self._token}::"]

    def defuse(self, text: str) -> str:
        # The runner takes blanks before a command, and the old form anywhere in a line.
        return re.sub(r"^(\s*):(?=:)", r"\1: ", text, flags=re.MULTILINE).replace("##[", "## [")

    def _append(self, variable: str, text: str) -> None:
        path = self._environment.get(variable)
        if not path:
            raise ConfigurationError(
                f"{variable} is not set, so the step cannot hand anything on",
                hint="run it as a step of a workflow",
            )
        with Path(path).open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)


class Azure:
    """Azure Pipelines."""

    name = "Azure Pipelines"

    def annotation(self, annotation: Annotation) -> str:
        # Azure knows no notices; a warning would make a green run yellow.
        if annotation.level is Level.NOTICE:
            return f"##[section]{self.defuse(_cut(_one_line(annotation.message)))}"
        properties = {"type": annotation.level.value}
        if annotation.file:
            properties["sourcepath"] = annotation.file
            if annotation.line:
                properties["linenumber"] = str(annotation.line)
        said = ";".join(f"{name}={_azure_property(value)}" for name, value in properties.items())
        text = self.defuse(_cut(f"{annotation.title}: {annotation.message}"))
        return f"##vso[task.logissue {said}]{_azure_data(text)}"

    def output(self, name: str, value: str) -> list[str]:
        return [f"##vso[task.setvariable variable={_azure_property(name)};isoutput=true]{_azure_data(value)}"]

    def summary(self, markdown: str, directory: Path) -> list[str]:
        path = directory / "summary.md"
        path.write_text(_cut_bytes(markdown) + "\n", encoding="utf-8", newline="\n")
        return [f"##vso[task.uploadsummary]{_azure_data(str(path.resolve()))}"]

    def begin_foreign(self) -> list[str]:
        return []

    def end_foreign(self) -> list[str]:
        return []

    def defuse(self, text: str) -> str:
        # There is no way to stop commands, and they are seen anywhere in a line.
        return re.sub(r"##(?=vso\[|\[)", "## ", text, flags=re.IGNORECASE)


def detect(environment: Mapping[str, str] | None = None) -> System | None:
    """The CI system this process runs in, by the variables that each sets; None for none that is known."""
    variables = os.environ if environment is None else environment
    github, azure = (variables.get(name, "").lower() == "true" for name in VARIABLES)
    return GitHub(variables) if github else Azure() if azure else None


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARACTERS else text[: MESSAGE_CHARACTERS - 1] + "…"


def _cut_bytes(text: str) -> str:
    """At most `SUMMARY_BYTES`, cut between two lines, with a sentence that says so."""
    data = text.encode("utf-8", errors="replace")
    if len(data) <= SUMMARY_BYTES:
        return data.decode("utf-8")
    kept = data[:SUMMARY_BYTES].decode("utf-8", errors="ignore").rpartition("\n")[0]
    return f"{kept}\n\n…the rest is in the report of the run."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _github_data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _github_property(text: str) -> str:
    return _github_data(text).replace(":", "%3A").replace(",", "%2C")


def _azure_data(text: str) -> str:
    return text.replace("%", "%AZP25").replace("\r", "%0D").replace("\n", "%0A")


def _azure_property(text: str) -> str:
    return _azure_data(text).replace(";", "%3B").replace("]", "%5D")
