"""Where an area of exports keeps what it must remember between two calls: one object per kernel and area."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from vm.emulated.kernel.kernel import Kernel

State = TypeVar("State")


def state_of(k: Kernel, kind: Callable[[Kernel], State]) -> State:
    """The kernel's one object of class `kind`, made by `kind(k)` at its first use."""
    key = kind.__name__
    found: Any = k.services.get(key)
    if found is None:
        found = k.services[key] = kind(k)
    return found  # type: ignore[no-any-return]  # services holds Any; the key is the class's own name
