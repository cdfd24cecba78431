"""This host: what every command needs of it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from importlib import metadata

from harness.doctor.subject import Check, Subject, fine, note, trouble
from vm.findings import Finding, Severity

DISK_MEGABYTES = 500
DISTRIBUTIONS = ("unicorn", "ziglang", "pywinrm", "paramiko", "pytest", "keyring")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
PYTHON = (3, 11)

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})


def system(_: Subject) -> Iterator[Finding]:
    """Which host this is."""
    known = platform.system() in ("Linux", "Darwin", "Windows")
    found = platform.platform()
    yield (
        fine("host.system", found)
        if known
        else Finding("host.system", Severity.WARNING, found, "Linux, macOS or Windows")
    )


def python(_: Subject) -> Iterator[Finding]:
    """The Python that runs the harness."""
    found = platform.python_version()
    if sys.version_info >= PYTHON:
        yield fine("host.python", found)
    else:
        wanted = ".".join(map(str, PYTHON)) + " or newer"
        yield trouble("host.python", Severity.ERROR, "host-python", found, wanted)


def distributions(_: Subject) -> Iterator[Finding]:
    """The packages without which something would fail late."""
    missing = []
    found = []
    for name in DISTRIBUTIONS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        said = f"not installed: {', '.join(missing)}"
        yield trouble("host.packages", Severity.ERROR, "host-packages", said, "all of pyproject.toml")
    else:
        yield fine("host.packages", ", ".join(found))


def disk(subject: Subject) -> Iterator[Finding]:
    """Room for runs and builds."""
    free = shutil.disk_usage(subject.root).free // 1_000_000
    if free >= DISK_MEGABYTES:
        yield fine("host.disk", f"{free} MB free")
    else:
        yield trouble(
            "host.disk", Severity.ERROR, "host-disk", f"{free} MB free", f"{DISK_MEGABYTES} MB or more"
        )


def directories(subject: Subject) -> Iterator[Finding]:
    """The directories that commands write to."""
    places = (subject.configuration.runs.directory, subject.root / ".machines", subject.root / ".cache")
    missing = [place.name for place in places if not place.exists()]
    locked = [place.name for place in places if place.exists() and not os.access(place, os.W_OK | os.X_OK)]
    if locked or (missing and not os.access(subject.root, os.W_OK | os.X_OK)):
        names = ", ".join(f"'{name}'" for name in locked or missing)
        yield Finding(
            "host.directories",
            Severity.ERROR,
            f"{names} cannot be written",
            "writable by this user",
            f"chown -R {os.environ.get('USER') or 'you'} '{subject.root}'",
        )
    elif missing:
        names = ", ".join(f"'{name}'" for name in missing)
        yield Finding(
            "host.directories",
            Severity.NOTE,
            f"{names} not made yet",
            "there, or made by the first command",
            "./inv doctor --fix",
            "host.make-directories",
        )
    else:
        yield fine("host.directories", "can be written")


def loopback(_: Subject) -> Iterator[Finding]:
    """The emulated machine is reached over it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                yield fine("host.loopback", "127.0.0.1 accepts connections")
    except OSError as error:
        yield trouble(
            "host.loopback",
            Severity.ERROR,
            "host-loopback",
            error.strerror or str(error),
            "127.0.0.1 accepts connections",
        )


def proxies(subject: Subject) -> Iterator[Finding]:
    """Proxy variables: pywinrm is told to go past them, but not everything is ours."""
    names = {name.upper(): value for name, value in subject.environment.items() if value}
    found = [name for name in PROXIES if name in names]
    if not found:
        yield fine("host.proxy", "no proxy variables")
        return
    said = f"{', '.join(found)} set"
    host = str(subject.machine.settings.get("host", "127.0.0.1"))
    passed = {part.strip() for part in names.get("NO_PROXY", "").split(",")}
    if host in _LOCAL or host in passed or "*" in passed:
        yield note("host.proxy", f"{said}; the way to '{host}' goes past it")
    else:
        yield trouble("host.proxy", Severity.WARNING, "host-proxy", said, f"'{host}' in NO_PROXY")


QUICK: tuple[Check, ...] = (disk, loopback)
ALL: tuple[Check, ...] = (system, python, distributions, disk, directories, loopback, proxies)
