"""Where passwords come from: the environment, the keyring of the operating system, a prompt; in this order.

None is ever written to a file of the project. What is handed out is masked in every log from then on.
"""

from __future__ import annotations

import getpass
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from harness.log import Log
from vm.errors import MachineError

SERVICE = "downlink"
"""Under this name the keyring keeps the project's secrets; the user name there is the secret's name."""

PREFIX = "DOWNLINK_SECRET_"

KEYRING_SECONDS = 10.0
"""A keyring that waits for somebody to unlock it, in a session that nobody sees, must not hold a command for ever."""

_NOT_IN_A_VARIABLE = re.compile(r"[^A-Z0-9]")

_T = TypeVar("_T")


def variable(name: str) -> str:
    """The environment variable of a secret: "win2025.password" is in `DOWNLINK_SECRET_WIN2025_PASSWORD`."""
    return PREFIX + _NOT_IN_A_VARIABLE.sub("_", name.upper())


class Secrets:
    """A `vm.secrets.SecretStore` over environment, keyring and prompt.

    A keyring that is missing, locked or broken is no error: it is said once, and the next place is asked.

    Args:
        environment: the variables; those of this process if not given.
        say: gets the one note about a keyring that does not work.
        ask: shows its argument and returns what was typed without showing it; None for nobody to ask. The default
            asks on the terminal if there is one.
        keyring_seconds: how long one question to the keyring may take.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
        ask: Callable[[str], str] | None = None,
        keyring_seconds: float = KEYRING_SECONDS,
    ) -> None:
        self._environment = os.environ if environment is None else environment
        self._say = say
        self._ask = ask or (getpass.getpass if _on_a_terminal() else None)
        self._keyring_seconds = keyring_seconds
        self._keyring_trouble = ""
        self._known: dict[str, str] = {}
        self._logs: list[Log] = []

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self._known)) or 'none asked for yet'})"

    def protect_in(self, log: Log) -> None:
        """From now on this log masks every secret that was or will be handed out."""
        self._logs.append(log)
        for value in self._known.values():
            log.protect(value)

    def get(self, name: str, *, purpose: str) -> str:
        """See `vm.secrets.SecretStore.get`. What was typed once is not asked for again by this object."""
        found = self.find(name) or self._known.get(name) or self._prompt(name, purpose)
        return self._hand_out(name, found)

    def find(self, name: str) -> str | None:
        """The secret if it is in the environment or the keyring; never asks anybody."""
        value = self._environment.get(variable(name)) or self._from_keyring(name)
        return self._hand_out(name, value) if value else None

    def where(self, name: str) -> str | None:
        """Where the secret is kept ("the environment variable …", "the keyring"); None if it is in neither."""
        if self._environment.get(variable(name)):
            return f"the environment variable {variable(name)}"
        return "the keyring" if self.find(name) else None

    def put(self, name: str, value: str) -> None:
        """See `vm.secrets.SecretStore.put`; call it before anything depends on the secret.

        Raises:
            MachineError: there is no usable keyring, or the environment has another value, which would win.
        """
        if not value:
            raise MachineError(f"the secret '{name}' is empty")
        self._hand_out(name, value)
        given = self._environment.get(variable(name))
        if given == value:
            return
        if given:
            raise MachineError(
                f"the secret '{name}' cannot be kept: {variable(name)} has another value, and would win",
                hint=f"remove the variable {variable(name)}, then run the command again",
            )
        self._in_keyring(lambda keyring: keyring.set_password(SERVICE, name, value))
        if self._keyring_trouble:
            raise MachineError(
                f"the secret '{name}' cannot be kept: {self._keyring_trouble}",
                hint=f"choose it yourself: set the environment variable {variable(name)}, then run the command again",
            )

    def forget(self, name: str) -> None:
        """See `vm.secrets.SecretStore.forget`; a variable of the environment stays, this process cannot undo it."""
        self._known.pop(name, None)

        def delete(keyring: Any) -> None:
            if keyring.get_password(SERVICE, name) is not None:
                keyring.delete_password(SERVICE, name)

        self._in_keyring(delete)

    def _hand_out(self, name: str, value: str) -> str:
        self._known[name] = value
        for log in self._logs:
            log.protect(value)
        return value

    def _from_keyring(self, name: str) -> str | None:
        return self._in_keyring(lambda keyring: keyring.get_password(SERVICE, name))

    def _prompt(self, name: str, purpose: str) -> str:
        problem = f"there is no password to {purpose}"
        if self._ask is not None:
            try:
                typed = self._ask(f"password to {purpose}: ")
            except EOFError:
                typed = ""
            if typed:
                return typed
            problem = f"no password was typed to {purpose}"
        if variable(name) in self._environment:
            problem += f", and {variable(name)} is set but empty"
        elif self._keyring_trouble:
            problem += f", and {self._keyring_trouble}"
        # The command takes the value from a prompt of its own: none of it is in a command line.
        raise MachineError(
            problem,
            hint=f"set the environment variable {variable(name)}, put it into the keyring"
            f" (python -m keyring set {SERVICE} {name}), or run the command on a terminal to be asked",
        )

    def _in_keyring(self, operation: Callable[[Any], _T]) -> _T | None:
        """Do something in the keyring within the limit; None, and a note for once, if it does not work."""
        if self._keyring_trouble:
            return None
        results: list[_T] = []
        troubles: list[str] = []

        def work() -> None:
            try:
                import keyring

                results.append(operation(keyring))
            except BaseException as error:  # noqa: BLE001  # backends raise whatever their libraries raise
                troubles.append(_trouble(error))

        # A thread, because no backend takes a time limit; a daemon, because one that hangs must not hold the exit.
        thread = threading.Thread(target=work, name="keyring", daemon=True)
        thread.start()
        thread.join(self._keyring_seconds)
        if thread.is_alive():
            troubles.append(f"the keyring did not answer within {self._keyring_seconds:g} s")
        if troubles:
            self._keyring_trouble = troubles[0]
            self._say(f"{troubles[0]}; it is not asked again")
            return None
        return results[0]


def _trouble(error: BaseException) -> str:
    """What is wrong with the keyring. Only the kind of an unknown error: its text is not ours to trust with secrets."""
    if isinstance(error, ImportError) or type(error).__name__ == "NoKeyringError":
        return "this host has no usable keyring"
    if type(error).__name__ == "KeyringLocked":
        return "the keyring is locked"
    return f"the keyring failed ({type(error).__name__})"


def _on_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()
