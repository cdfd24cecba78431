"""The guest's own Python: a virtual environment at `C:\\Python` that holds what suites may import (by
default pytest, hypothesis and what they need), nothing else.

It is prepared once per host environment in a cache and hard-linked into every fresh machine.
"""

from __future__ import annotations

import compileall
import hashlib
import logging
import os
import py_compile
import shutil
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from vm.errors import MachineError

log = logging.getLogger(__name__)

_FORMAT = "1"
"""Raise it when the layout of a prepared image changes."""


def install(c_root: Path, cache: Path, packages: Sequence[str] = ("pytest",)) -> Path:
    """Put the guest's Python at `<c_root>/Python`, unless it is there, and return its interpreter.

    Args:
        c_root: host directory of the guest's C: drive.
        cache: host directory where prepared images are kept; made if need be.
        packages: distributions of this environment that the guest gets, with their dependencies.

    Raises:
        MachineError: a distribution is not installed on the host, or the image cannot be written.
    """
    target = c_root / "Python"
    if not target.exists():
        began = time.monotonic()
        try:
            image = _prepared(cache, packages)
            shutil.copytree(image, target, symlinks=True, copy_function=_link)
        except OSError as error:
            raise MachineError(
                f"the guest's Python could not be installed in '{target}': {error.strerror or error}",
                hint="check that the disk is not full and that the directory is writable",
            ) from error
        log.info("guest Python installed in %.3f s", time.monotonic() - began)
    return interpreter(c_root)


def interpreter(c_root: Path) -> Path:
    """Host path of the guest's interpreter."""
    return c_root / "Python" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def distributions(packages: Sequence[str]) -> list[metadata.Distribution]:
    """The named distributions of this environment and everything they require here, sorted by name.

    Raises:
        MachineError: one of them is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    pending = list(packages)
    while pending:
        name = canonicalize_name(pending.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise MachineError(
                f"the package '{name}' that the guest's Python needs is not installed on the host",
                hint="install the project again: pip install -e .",
            ) from error
        found[name] = distribution
        pending += _required(distribution)
    return [found[name] for name in sorted(found)]


def _required(distribution: metadata.Distribution) -> list[str]:
    names = []
    for text in distribution.requires or ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise MachineError(
                f"the package '{distribution.name}' has the unreadable requirement '{text}'"
            ) from error
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            names.append(requirement.name)
    return names


def _prepared(cache: Path, packages: Sequence[str]) -> Path:
    """The image of this environment in the cache; several processes may prepare it at once, one of them wins."""
    wanted = distributions(packages)
    key = "\0".join(
        [_FORMAT, sys.version, sys.platform, _base_executable(), *(f"{d.name}={d.version}" for d in wanted)]
    )
    image = cache / f"guest-python-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if image.is_dir():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".guest-python-", dir=cache) as directory:
        draft = Path(directory) / "image"
        _build(draft, wanted)
        try:
            draft.rename(image)
        except OSError:
            if not image.is_dir():
                raise
    log.info("guest Python prepared in %.3f s: %s", time.monotonic() - began, image)
    return image


def _build(draft: Path, wanted: Sequence[metadata.Distribution]) -> None:
    venv.EnvBuilder(symlinks=os.name != "nt", with_pip=False).create(draft)
    scripts = draft / ("Scripts" if os.name == "nt" else "bin")
    for script in scripts.iterdir():
        # Activation scripts are for people at a shell of the host, and they hold its paths.
        if "activate" in script.name.casefold():
            script.unlink()
    configuration = draft / "pyvenv.cfg"
    kept = [
        line
        for line in configuration.read_text(encoding="utf-8").splitlines()
        if line.split("=")[0].strip() in ("home", "include-system-site-packages", "version")
    ]
    configuration.write_text("\n".join(kept) + "\n", encoding="utf-8")
    packages = _site_packages(draft)
    for distribution in wanted:
        _copy(distribution, packages)
    if os.name != "nt":
        # What `where python` and a directory listing show; commands that name it run bin/python.
        (draft / "python.exe").touch()
    compileall.compile_dir(
        packages,
        quiet=2,
        workers=1,
        stripdir=str(draft),
        prependdir="C:\\Python",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )


def _copy(distribution: metadata.Distribution, packages: Path) -> None:
    files = distribution.files
    if files is None:
        raise MachineError(
            f"the package '{distribution.name}' has no list of its files, so it cannot go into the guest"
        )
    for file in files:
        # Scripts lie above site-packages, byte code is made below, direct_url.json may name a directory of the host.
        if (
            ".." in file.parts
            or "__pycache__" in file.parts
            or file.is_absolute()
            or file.name == "direct_url.json"
        ):
            continue
        target = packages / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(str(distribution.locate_file(file)), target)


def _site_packages(root: Path) -> Path:
    if os.name == "nt":
        return root / "Lib" / "site-packages"
    return root / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _base_executable() -> str:
    return str(getattr(sys, "_base_executable", sys.executable))


def _link(source: str, target: str) -> str:
    """A hard link where the file system has them and both lie on one, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
