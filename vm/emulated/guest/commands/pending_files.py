"""Files that are in use when they are deleted go at the next boot: PendingFileRenameOperations, as Windows has it."""

from __future__ import annotations

import shutil
from contextlib import suppress

from vm.emulated.guest.boot import CONTROL
from vm.emulated.guest.drive import Drive, WindowsPathError
from vm.emulated.image_files import windows_path
from vm.emulated.registry import REG_MULTI_SZ, MissingKeyError, MissingValueError, Registry, RegistryValue

SESSION_MANAGER = f"{CONTROL}\\Session Manager"
VALUE = "PendingFileRenameOperations"


def finish_pending(registry: Registry, drive: Drive) -> None:
    """The boot's part: files that were in use when they were to be deleted go now."""
    for source in _pending(registry):
        with suppress(WindowsPathError, OSError):
            path = drive.existing(windows_path(source))
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    with suppress(MissingKeyError, MissingValueError):
        registry.delete_value(SESSION_MANAGER, VALUE)


def restart_pending(registry: Registry) -> bool:
    """Whether files wait for the next boot."""
    return bool(_pending(registry))


def _pending(registry: Registry) -> list[str]:
    try:
        value = registry.get_value(SESSION_MANAGER, VALUE)
    except (MissingKeyError, MissingValueError):
        return []
    # Pairs of source and target; an empty target deletes. `as_multi_string` would end at the first one.
    texts = value.data.decode("utf-16-le").split("\0")
    return [text for text in texts[::2] if text]


def delete_at_boot(registry: Registry, path: str) -> None:
    """Have the next boot delete a file or a directory."""
    _store(registry, [*_pending(registry), f"\\??\\{path}"])


def keep_at_boot(registry: Registry, path: str) -> None:
    """Take a deletion back: the file or directory is there anew."""
    sources = _pending(registry)
    kept = [source for source in sources if source.casefold() != f"\\??\\{path}".casefold()]
    if kept != sources:
        _store(registry, kept)


def _store(registry: Registry, sources: list[str]) -> None:
    text = "".join(f"{source}\0\0" for source in sources) + "\0"
    registry.create_key(SESSION_MANAGER)
    registry.set_value(SESSION_MANAGER, VALUE, RegistryValue(REG_MULTI_SZ, text.encode("utf-16-le")))
