"""What the emulation of a script is called with, how it refuses, and how it is registered."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from vm.emulated.guest.commands.session import Guest, Invocation
from vm.emulated.guest.streams import FileSource, Pipe
from vm.powershell.binding import Bound

T = TypeVar("T")


class ScriptRefusal(Exception):  # noqa: N818  # an answer of the contract, not a failure of the model
    """The script says no.

    Args:
        code: short and stable, in lower case with dashes ("vm-not-found").
        message: one sentence for people.
        hresult: the HRESULT of the exception on Windows, where one is known; unsigned.
    """

    def __init__(self, code: str, message: str, *, hresult: int = 0x80131500) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hresult = hresult


@dataclass(frozen=True, slots=True)
class CommandOutcome:
    """What an inbox command did: its exit code (unsigned) and its two outputs, decoded."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One run of one script."""

    name: str
    """Name of the script without extension."""
    path: str
    """Full Windows path of the file that was called."""
    parameters: Mapping[str, Bound]
    """Every declared parameter by its name as it is declared."""
    invocation: Invocation

    @property
    def guest(self) -> Guest:
        """The guest it runs in."""
        return self.invocation.guest

    def text(self, name: str) -> str:
        """A `[string]` parameter."""
        return self._typed(name, str)

    def number(self, name: str) -> int:
        """An `[int]` parameter, or one of the other whole numbers."""
        return self._typed(name, int)

    def switch(self, name: str) -> bool:
        """A `[switch]` parameter."""
        return self._typed(name, bool)

    def texts(self, name: str) -> tuple[str, ...]:
        """A `[string[]]` parameter; through -File it has at most one element."""
        return tuple(str(value) for value in self._typed(name, tuple))

    def secret(self) -> Mapping[str, str]:
        """The JSON object on standard input, read to its end.

        Raises:
            ScriptRefusal: "secret-missing" if standard input is no JSON object.
        """
        try:
            found = json.loads(self.invocation.read_all().decode("utf-8-sig"))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ScriptRefusal("secret-missing", "standard input is not a JSON object")
        return {str(name): str(value) for name, value in found.items()}

    def run(self, line: str) -> CommandOutcome:
        """Run an inbox command as the script would, with its output captured and empty input."""
        # The interpreter finds powershell.exe in its catalog; importing it at the top would be a circle.
        from vm.emulated.guest.commands.interpreter import Streams, run_line

        session = self.invocation.session.child()
        outputs = [Pipe(session.cancellation, limit_bytes=1 << 30) for _ in range(2)]
        code = run_line(line, session, Streams(FileSource(None), *outputs))
        texts = []
        for pipe in outputs:
            pipe.end()
            data = b""
            while part := pipe.read(1 << 20):
                data += part
            texts.append(session.decode(data))
        return CommandOutcome(code, *texts)

    def _typed(self, name: str, kind: type[T]) -> T:
        value = self.parameters[name]
        if type(value) is not kind:
            raise TypeError(f"the parameter '{name}' of '{self.name}' is declared with another type")
        return value


@dataclass(frozen=True, slots=True)
class Emulation:
    """A script and the function that does what it does."""

    name: str
    function: Callable[[ScriptCall], object]

    def __call__(self, call: ScriptCall) -> object:
        """Its result, for the "result" of the answer."""
        return self.function(call)


def script(name: str) -> Callable[[Callable[[ScriptCall], object]], Emulation]:
    """Declare that a function of a module of this package emulates the script of that name (without ".ps1")."""
    return lambda function: Emulation(name, function)


@cache
def emulations() -> Mapping[str, Emulation]:
    """All emulations of this package by the script's name in lower case.

    Raises:
        ValueError: two modules emulate the same script.
    """
    package = importlib.import_module("vm.emulated.guest.scripts")
    found: dict[str, Emulation] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, Emulation) and found.setdefault(value.name.casefold(), value) is not value:
                raise ValueError(f"the script '{value.name}' is emulated twice")
    return found
