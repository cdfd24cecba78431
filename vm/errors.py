"""The one root exception. A leaf: it imports nothing of the project, so that every room may raise it."""

from __future__ import annotations

from collections.abc import Sequence


class DownlinkError(Exception):
    """Something the user must know about, rendered as one sentence and a hint.

    Args:
        message: one sentence, names in single quotes, no traceback words.
        hint: one command to run or one thing to look at; None when there is nothing useful to say.
        machine: name of the machine it happened on, None for the host.
        causes: what led to it, most direct first; printed as an indented tree below the sentence.
        exit_status: status of the process when this error ends it; 1 unless the caller has a better one.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        machine: str | None = None,
        causes: Sequence[BaseException] = (),
        exit_status: int = 1,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.machine = machine
        self.causes = tuple(causes)
        self.exit_status = exit_status

    def render(self) -> str:
        """The sentence, its causes and the hint, as the console shows them."""
        where = f" (machine '{self.machine}')" if self.machine else ""
        lines = [f"error: {self.message}{where}"]
        lines += _tree(self.causes, "  ")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class ConfigurationError(DownlinkError):
    """`harness.toml`, an option or an environment variable says something that cannot be."""


class BuildError(DownlinkError):
    """The driver could not be built; `output` holds what the compiler or linker printed."""

    def __init__(
        self,
        message: str,
        *,
        output: str = "",
        hint: str | None = None,
        causes: Sequence[BaseException] = (),
    ) -> None:
        super().__init__(message, hint=hint, causes=causes)
        self.output = output

    def render(self) -> str:
        return f"{self.output.rstrip()}\n{super().render()}" if self.output.strip() else super().render()


class PackageError(DownlinkError):
    """A package or an image is not what it has to be (not PE, wrong machine, hash differs, import not modelled)."""


class MachineError(DownlinkError):
    """A machine could not be started, stopped, restored or reached."""


class GuestError(DownlinkError):
    """A command or a transfer in the guest failed; `exit_code` is what the command returned, if it ran."""

    def __init__(
        self,
        message: str,
        *,
        exit_code: int | None = None,
        hint: str | None = None,
        machine: str | None = None,
        causes: Sequence[BaseException] = (),
    ) -> None:
        super().__init__(message, hint=hint, machine=machine, causes=causes)
        self.exit_code = exit_code


class DeadlineExceededError(DownlinkError):
    """A deadline passed; the message says what was being waited for and what was last seen."""


def _tree(causes: Sequence[BaseException], indent: str) -> list[str]:
    lines: list[str] = []
    for cause in causes:
        lines.append(f"{indent}because: {cause}")
        if isinstance(cause, DownlinkError):
            lines += _tree(cause.causes, indent + "  ")
    return lines
