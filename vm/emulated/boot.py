"""Making a kernel with everything a filter driver finds on a running system: exports, Filter Manager, volumes."""

from __future__ import annotations

from functools import cache

from vm.emulated.exports import ntoskrnl_exports
from vm.emulated.exports.declare import Export, collect
from vm.emulated.fltmgr.manager import FilterManager
from vm.emulated.fltmgr.modules import FLTMGR_MODULES
from vm.emulated.fltmgr.ports import PortPolicy
from vm.emulated.fltmgr.volumes import mount_default_volumes
from vm.emulated.kernel.clock import Clock
from vm.emulated.kernel.kernel import DATA_NAMES, Kernel
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.registry import Registry


@cache
def all_exports() -> dict[tuple[str, str], Export]:
    """Everything a driver may import on the emulated machine; do not change it."""
    return {**ntoskrnl_exports(), **collect(FLTMGR_MODULES)}


def known_imports() -> set[tuple[str, str]]:
    """(dll, name) of everything a driver may import, functions and variables."""
    return set(all_exports()) | set(DATA_NAMES)


def make_kernel(
    *,
    registry: Registry | None = None,
    seed: int = 1,
    preemption: Preemption | None = None,
    clock: Clock | None = None,
    policy: PortPolicy | None = None,
) -> Kernel:
    """A kernel with the Filter Manager and the default volumes, ready to load drivers."""
    kernel = Kernel(all_exports(), seed=seed, preemption=preemption, clock=clock, registry=registry)
    manager = FilterManager(kernel, policy)
    manager.volumes += mount_default_volumes(kernel)
    return kernel
