"""Do something as a plain user: this thread without its Administrators group, for the length of a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from harness.client import binding as bindings


@contextlib.contextmanager
def without_administrators() -> Iterator[None]:
    """Impersonate a restricted token of this process, Administrators deny-only and no privileges, on this thread.

    Raises:
        OSError: the token could not be made; nothing is impersonated then.
    """
    binding = bindings.current()
    binding.impersonate("restricted")
    try:
        yield
    finally:
        binding.impersonate("none")
