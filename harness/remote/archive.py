"""Several files as one archive: the same content gives the same bytes, whenever and wherever it is packed."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vm.errors import ConfigurationError

SUFFIX = ".tgz"
COMPRESSION = 1
"""gzip's fastest level: sources shrink to a quarter, and packing stays faster than any way into a guest."""

_EARLIEST = 946684800
"""2000-01-01 as Unix time. FAT and some tools do not know times before 1980."""
_TIMES = 1 << 28
"""About eight years of seconds."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A packed file on the host; it is named by the SHA-256 of its bytes."""

    path: Path
    sha256: str
    size_bytes: int
    content_bytes: int
    """What the files in it have together."""


def pack(files: Mapping[str, Path], digests: Mapping[str, str], directory: Path) -> Archive:
    """Pack files into one gzipped tar, which the tar.exe of Windows (1803 and later) reads.

    Modification times are taken from the content: equal content keeps its time, and changed content gets another one,
    which is what Python goes by when it decides whether its byte code is up to date.

    Args:
        files: by their names in the archive, with slashes.
        digests: their SHA-256 in hex by the same names.
        directory: an existing directory that gets the archive.

    Raises:
        ConfigurationError: a file cannot be read, or has changed since its digest was computed.
    """
    draft = directory / f"draft{SUFFIX}"
    total = 0
    with draft.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=raw, mtime=0) as packed:
            with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in sorted(files):
                    total += _add(tar, name, files[name], digests[name])
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path = draft.rename(directory / f"{digest}{SUFFIX}")
    return Archive(path, digest, path.stat().st_size, total)


def digest_of(path: Path) -> str:
    """SHA-256 of a file in hex; raises `ConfigurationError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(f"'{path}' cannot be read: {error.strerror or error}") from error


def is_safe(name: str) -> bool:
    """True when a name with slashes stays below the directory it is meant for, on Windows, too."""
    parts = PurePosixPath(name).parts
    return (
        bool(parts)
        and not name.startswith("/")
        and ".." not in parts
        and not set(name) & set('\\:*?"<>|%\0\r\n')
    )


def _add(tar: tarfile.TarFile, name: str, path: Path, digest: str) -> int:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"'{path}' cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != digest.lower():
        raise ConfigurationError(f"'{path}' has changed while it was sent", hint="run the command again")
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = 0o644
    entry.mtime = _EARLIEST + int(digest[:8], 16) % _TIMES
    tar.addfile(entry, io.BytesIO(content))
    return len(content)
