"""What a suite needs in the guest, as one set of files with their hashes; only what changed is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from harness.deployment.plan import GUEST_ROOT
from harness.remote.guest import Guest
from harness.remote.repeating import repeated
from harness.remote.sync import Sync
from vm.deadline import Deadline
from vm.errors import ConfigurationError

MANIFEST = str(GUEST_ROOT / "suite-files.json")
LIBRARY = PurePosixPath("lib")
SUITES = PurePosixPath("suites")
RESULTS = PurePosixPath("results")

DEFAULT_INI = "[pytest]\naddopts = --strict-markers\n"
"""Without a file of its own pytest would look for one in all directories above the suites."""


@dataclass(frozen=True, slots=True)
class SuiteFiles:
    """Files by their path below `C:\\Downlink` (with slashes): where each comes from and its SHA-256."""

    sources: Mapping[PurePosixPath, Path]
    digests: Mapping[PurePosixPath, str]


def gather(root: Path, suites: Path, scratch: Path) -> SuiteFiles:
    """Everything the suite in `suites` needs in the guest: itself, the client library and the reporting plugin.

    Args:
        root: the checkout.
        suites: directory of the suite.
        scratch: an existing directory of the run for files that are made here.

    Raises:
        ConfigurationError: there are no tests.
    """
    sources: dict[PurePosixPath, Path] = {}
    for path in _files(suites):
        sources[SUITES / path.relative_to(suites).as_posix()] = path
    if not any(path.name.startswith("test_") for path in sources):
        raise ConfigurationError(
            f"there is no suite in '{suites}'", hint="look at 'suites' of the driver in harness.toml"
        )
    sources |= client_library(root, LIBRARY)
    for name in ("guest_plugin.py", "guest_task.py"):
        sources[LIBRARY / name] = Path(__file__).with_name(name)
    if SUITES / "pytest.ini" not in sources:
        made = scratch / "pytest.ini"
        made.write_text(DEFAULT_INI, encoding="utf-8")
        sources[SUITES / "pytest.ini"] = made
    return hashed(sources)


def client_library(root: Path, below: PurePosixPath) -> dict[PurePosixPath, Path]:
    """The client library of the checkout `root`, to be put into the directory `below` of `C:\\Downlink`."""
    client = root / "harness" / "client"
    sources = {below / "harness" / "__init__.py": root / "harness" / "__init__.py"}
    for path in _files(client):
        sources[below / "harness" / "client" / path.relative_to(client).as_posix()] = path
    return sources


def hashed(sources: Mapping[PurePosixPath, Path]) -> SuiteFiles:
    """The files with their hashes."""
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sources.items()}
    return SuiteFiles(sources, digests)


def send(guest: Guest, files: SuiteFiles, deadline: Deadline, *, manifest: str = MANIFEST) -> Sync:
    """Make the guest have exactly `files`, as far as the manifest knows, and say what that took; see `Guest.sync`."""
    sources = {str(name): path for name, path in files.sources.items()}
    digests = {str(name): digest for name, digest in files.digests.items()}

    def sync() -> Sync:
        return guest.sync(sources, str(GUEST_ROOT), deadline, manifest=manifest, digests=digests)

    return repeated(guest, sync)


def _files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.rglob("*")):
        hidden = any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(directory).parts
        )
        if path.is_file() and not hidden and path.suffix != ".pyc":
            yield path
