"""Where passwords come from, as a machine sees it: asked for by name, never kept by whoever asks. A leaf."""

from __future__ import annotations

from typing import Protocol


class SecretStore(Protocol):
    """Secrets by name ("win2025.password"). The harness decides where they live (`harness.secrets`)."""

    def get(self, name: str, *, purpose: str) -> str:
        """The secret of that name.

        Args:
            name: lower-case, as in "<machine>.password".
            purpose: for the prompt and the error: "log on to the machine 'win2025'".

        Raises:
            MachineError: there is none, and nobody can be asked; the hint names every place where it may be put.
        """
        ...

    def find(self, name: str) -> str | None:
        """The secret if there is one; never asks anybody."""
        ...

    def put(self, name: str, value: str) -> None:
        """Keep a secret that was made here (a new machine's password), where the next command finds it."""
        ...

    def forget(self, name: str) -> None:
        """Remove it; one that is not there is fine."""
        ...
