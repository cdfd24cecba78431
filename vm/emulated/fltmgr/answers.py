"""For exports that return NTSTATUS: a `StatusError` raised on the way becomes what the driver gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.threads import Model


def answers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a plain function or a generator function that returns NTSTATUS; below `@export`."""
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generator(*arguments: Any) -> Model:
            try:
                return (yield from function(*arguments))
            except StatusError as error:
                return error.status

        return generator

    @wraps(function)
    def plain(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except StatusError as error:
            return error.status

    return plain
