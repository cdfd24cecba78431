"""What every step of a build with the WDK works with: the tools, where their logs go, and until when; and how a failure reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.secrets import PREFIX
from harness.toolchain.wdk.kit import Kit, version_numbers
from harness.toolchain.wdk.messages import explain
from harness.toolchain.wdk.provider import Provider, ToolResult
from vm.deadline import Deadline
from vm.errors import BuildError

LINES_SHOWN = 12
"""Of a tool's output with the error; the rest is in its log."""

_TELLING = re.compile(r"error|warning|failed|22\.9\.\d+|cannot|not found", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every step works with: the tools, where their logs go, and until when."""

    provider: Provider
    kit: Kit
    logs: Path
    deadline: Deadline

    @property
    def wdk_build(self) -> int:
        """Third number of the WDK's version: 26100 of 10.0.26100.6584; 0 if it is not known."""
        numbers = version_numbers(self.kit.wdk_version)
        return numbers[2] if len(numbers) > 2 else 0

    def run(
        self, tool: str, arguments: Sequence[str], *, log_name: str, seconds: float, directory: Path
    ) -> ToolResult:
        """Run one of the kit's tools and keep what it printed in `logs`.

        Raises:
            BuildError: it cannot be started.
            DeadlineExceededError: it did not end in time, and was ended with all it had started.
        """
        # A password of a machine is no business of a compiler, whose binary log records variables.
        environment = {
            name: value for name, value in self.kit.environment.items() if not name.upper().startswith(PREFIX)
        }
        result = self.provider.run(
            self.kit.tool(tool),
            arguments,
            directory=directory,
            environment=environment,
            deadline=self.deadline.sooner(seconds=seconds),
        )
        text = f"{' '.join(result.command)}\n\n{result.output}\n\nexit code {result.exit_code}, {result.seconds:.1f} s\n"
        self.log_path(log_name).write_text(text, encoding="utf-8")
        return result

    def log_path(self, name: str) -> Path:
        """Where the output of the step of that name is kept."""
        return self.logs / f"{name}.log"

    def failure(
        self, sentence: str, result: ToolResult, log_name: str, lines: Sequence[str] = ()
    ) -> BuildError:
        """What to raise for a tool that said no: the known cause, its own lines, and where the rest is."""
        known = explain(result.output)
        shown = cut(lines or _telling_lines(result.output))
        where = self.log_path(log_name)
        return BuildError(
            f"{sentence}: {known.cause.rstrip('.')}"
            if known
            else f"{sentence}, its exit code is {result.exit_code}",
            output="\n".join([*shown, f"full log: {where}"]),
            hint=known.cure if known else f"see '{where}'",
        )


def cut(lines: Sequence[str]) -> list[str]:
    """The first lines, and how many there are besides."""
    shown = list(lines[:LINES_SHOWN])
    if len(lines) > LINES_SHOWN:
        shown.append(f"... and {len(lines) - LINES_SHOWN} more")
    return shown


def _telling_lines(output: str) -> list[str]:
    """The lines of a tool that say what is wrong; its last ones if none does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return [line for line in lines if _TELLING.search(line)] or lines[-LINES_SHOWN:]
