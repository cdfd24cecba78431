"""Steps of a deployment: each has a name, says what it did, and is told when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.deployment.plan import StepResult

OnStep = Callable[[StepResult], None]


@dataclass(slots=True)
class Step:
    """What a step says of itself while it is carried out."""

    detail: str = ""
    changed: bool = False


@dataclass(slots=True)
class Steps:
    """The steps that have been carried out."""

    on_step: OnStep
    results: list[StepResult] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """One step; nobody is told of one that fails."""
        started = time.monotonic()
        step = Step()
        yield step
        result = StepResult(name, step.detail, step.changed, time.monotonic() - started)
        self.results.append(result)
        self.on_step(result)
