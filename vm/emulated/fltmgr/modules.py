"""The modules that declare what drivers import from FLTMGR.SYS; a new one is added here."""

from __future__ import annotations

from types import ModuleType

from vm.emulated.fltmgr import (
    callback_exports,
    context_exports,
    filter_exports,
    io_exports,
    name_exports,
    own_io,
    port_exports,
    volume_exports,
    work_items,
)

FLTMGR_MODULES: tuple[ModuleType, ...] = (
    callback_exports,
    context_exports,
    filter_exports,
    io_exports,
    name_exports,
    own_io,
    port_exports,
    volume_exports,
    work_items,
)
