"""A package: the files that a build produced, with a manifest that says what each is and what it must hash to.

A package is written once, in one step, and never changed; whoever reads it verifies every hash. Signing happens before:
the image that is packed may differ from the one that was linked, and the manifest has the hashes of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.image import check_image
from harness.toolchain.source import BuildResult
from vm.errors import PackageError
from vm.inf import read as read_inf

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_GIT_SECONDS = 20.0

ROLES = ("image", "inf", "symbols", "certificate", "catalog")
"""What a file of a package can be."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file: name inside the package, role (one of `ROLES`), size in bytes, SHA-256 in hex."""

    name: str
    role: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class DriverIdentity:
    """What a driver is called where it is installed: service, default instance and its altitude."""

    service: str
    instance: str
    altitude: str


@dataclass(frozen=True, slots=True)
class SourceRevision:
    """Git revision that a package was built from; None where there is no git or no repository."""

    revision: str | None
    dirty: bool | None
    """True if tracked files differed from that revision."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that is known of a package."""

    driver: DriverIdentity
    toolchain: str
    versions: Mapping[str, str]
    configuration: str
    architecture: str
    source: SourceRevision
    unsigned_sha256: str
    """Of the image as it was linked: the same sources give the same one, signed by whomever."""
    files: tuple[PackageFile, ...]
    experimental: tuple[str, ...] = ()
    """What is in the package and no Windows has accepted yet ("catalog"); empty for what the WDK's own tools made."""


@dataclass(frozen=True, slots=True)
class Package:
    """A package on disk whose files have been verified."""

    directory: Path
    manifest: Manifest

    @property
    def image(self) -> Path:
        """The driver image, signed if the package is."""
        return self.directory / self.entry("image").name

    @property
    def signed(self) -> bool:
        """Whether the image is not the one that was linked."""
        return self.entry("image").sha256 != self.manifest.unsigned_sha256

    def entry(self, role: str) -> PackageFile:
        """The file of that role.

        Raises:
            PackageError: the package has none.
        """
        for file in self.manifest.files:
            if file.role == role:
                return file
        raise PackageError(f"the package '{self.directory}' has no file of the role '{role}'")

    def path(self, role: str) -> Path | None:
        """Path of the file of that role, None if the package has none."""
        return next((self.directory / file.name for file in self.manifest.files if file.role == role), None)


def write_package(
    result: BuildResult,
    directory: Path,
    *,
    signed_image: bytes | None = None,
    certificate: Path | None = None,
    catalog: Path | None = None,
    identity: DriverIdentity | None = None,
    repository: Path | None = None,
    experimental: Iterable[str] = (),
) -> Package:
    """Pack what a build produced. An older package in that place is replaced, in one step.

    Args:
        result: the build.
        directory: where the package will be; its parent is made if necessary.
        signed_image: the image after signing; the linked one if not given.
        certificate, catalog: further files.
        identity: service, instance and altitude; read from the INF if not given.
        repository: checkout whose git revision is recorded; the one this module belongs to if not given.
        experimental: what of it no Windows has accepted yet, as short names ("catalog").

    Raises:
        PackageError: the image is none for a driver, there is no identity, or something else is in that place.
    """
    image = result.image.read_bytes() if signed_image is None else signed_image
    check_image(image, result.image.name, result.architecture)
    if identity is None:
        if result.inf is None:
            raise PackageError(f"'{result.name}' has no INF that tells its service, instance and altitude")
        identity = read_identity(result.inf)
    contents = {
        result.image.name: ("image", image),
        result.symbols.name: ("symbols", result.symbols.read_bytes()),
    }
    for role, path in (("inf", result.inf), ("certificate", certificate), ("catalog", catalog)):
        if path is not None:
            contents[path.name] = (role, path.read_bytes())
    manifest = Manifest(
        driver=identity,
        toolchain=result.toolchain,
        versions=dict(result.versions),
        configuration=result.configuration,
        architecture=result.architecture,
        source=source_revision(repository or Path(__file__).resolve().parents[1]),
        unsigned_sha256=result.unsigned_sha256,
        files=tuple(
            PackageFile(name, role, len(data), hashlib.sha256(data).hexdigest())
            for name, (role, data) in sorted(contents.items())
        ),
        experimental=tuple(sorted(set(experimental))),
    )
    _replace(directory, {name: data for name, (_, data) in contents.items()}, manifest)
    return Package(directory.resolve(), manifest)


def load_package(directory: Path) -> Package:
    """Read a package and verify every file in it.

    Raises:
        PackageError: there is no manifest, it cannot be read, or a file is missing, too many, or not what it was.
    """
    path = directory / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PackageError(
            f"'{directory}' is no package, it has no '{MANIFEST_NAME}'", hint="run './inv build'"
        ) from error
    except (OSError, ValueError) as error:
        raise PackageError(
            f"the manifest '{path}' cannot be read: {error}", hint="run './inv build'"
        ) from error
    manifest = _manifest(raw, path)
    for file in manifest.files:
        _verify(directory, file)
    known = {MANIFEST_NAME, *(file.name for file in manifest.files)}
    extra = sorted(entry.name for entry in directory.iterdir() if entry.name not in known)
    if extra:
        raise PackageError(
            f"the package '{directory}' contains '{extra[0]}', which its manifest does not list"
        )
    return Package(directory.resolve(), manifest)


def read_identity(inf: Path) -> DriverIdentity:
    """Service, default instance and altitude out of a minifilter's INF.

    Raises:
        PackageError: one of them is not in it, or it names two different ones.
    """
    found: dict[str, set[str]] = {"service": set(), "default instance": set(), "altitude": set()}
    for _, entry in read_inf(inf.read_bytes()).entries():
        if entry.name == "addservice":
            found["service"].add(entry.text(0))
        elif entry.key is None and entry.text(0).upper() == "HKR":
            what = {"defaultinstance": "default instance", "altitude": "altitude"}.get(entry.text(2).lower())
            if what is not None:
                found[what].add(entry.text(4))

    def only(what: str) -> str:
        values = sorted(found[what])
        if len(values) != 1:
            names = ", ".join(f"'{value}'" for value in values) or "none"
            raise PackageError(f"'{inf.name}' must name exactly one {what}, found {names}")
        return values[0]

    return DriverIdentity(only("service"), only("default instance"), only("altitude"))


def source_revision(repository: Path) -> SourceRevision:
    """Revision of a checkout and whether tracked files were changed; both None where git cannot say."""
    git = shutil.which("git")
    if git is None:
        return SourceRevision(None, None)
    try:
        done = subprocess.run(
            [
                git,
                "--no-optional-locks",
                "-C",
                str(repository),
                "status",
                "--porcelain=v2",
                "--branch",
                "--untracked-files=no",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return SourceRevision(None, None)
    lines = done.stdout.decode("utf-8", errors="replace").splitlines()
    revision = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), None)
    if done.returncode != 0 or revision is None or not re.fullmatch(r"[0-9a-f]{40,64}", revision):
        return SourceRevision(None, None)
    return SourceRevision(revision, any(not line.startswith("#") for line in lines))


def _replace(directory: Path, contents: Mapping[str, bytes], manifest: Manifest) -> None:
    """Write beside the place, then rename into it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists() and not (directory / MANIFEST_NAME).is_file() and any(directory.iterdir()):
        raise PackageError(
            f"'{directory}' exists and is no package", hint="move it away or choose another place"
        )
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    try:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        for name, data in contents.items():
            (partial / name).write_bytes(data)
        (partial / MANIFEST_NAME).write_text(json.dumps(_raw(manifest), indent=2) + "\n", encoding="utf-8")
        if directory.exists():
            directory.rename(old)
        partial.rename(directory)
    except OSError as error:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise PackageError(f"the package '{directory}' cannot be written: {error}") from error
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _verify(directory: Path, file: PackageFile) -> None:
    try:
        data = (directory / file.name).read_bytes()
    except OSError as error:
        raise PackageError(
            f"the package '{directory}' lacks '{file.name}'", hint="run './inv build'"
        ) from error
    if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
        raise PackageError(
            f"'{file.name}' in the package '{directory}' is not the file that was packed, its hash differs",
            hint="run './inv build'",
        )


def _raw(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "driver": {
            "service": manifest.driver.service,
            "instance": manifest.driver.instance,
            "altitude": manifest.driver.altitude,
        },
        "build": {
            "toolchain": manifest.toolchain,
            "versions": dict(manifest.versions),
            "configuration": manifest.configuration,
            "architecture": manifest.architecture,
        },
        "source": {"revision": manifest.source.revision, "dirty": manifest.source.dirty},
        "unsigned_sha256": manifest.unsigned_sha256,
        "files": [
            {"name": file.name, "role": file.role, "size": file.size, "sha256": file.sha256}
            for file in manifest.files
        ],
        # Absent where there is nothing to say, as in manifests that are older than the field.
        **({"experimental": list(manifest.experimental)} if manifest.experimental else {}),
    }


def _manifest(raw: Any, path: Path) -> Manifest:
    try:
        if raw["format"] != _FORMAT:
            raise PackageError(f"the manifest '{path}' has the format {raw['format']}, this is {_FORMAT}")
        files = tuple(
            PackageFile(
                _file_name(file["name"]), _one_of(file["role"], ROLES), int(file["size"]), str(file["sha256"])
            )
            for file in raw["files"]
        )
        build, driver, source = raw["build"], raw["driver"], raw["source"]
        manifest = Manifest(
            driver=DriverIdentity(str(driver["service"]), str(driver["instance"]), str(driver["altitude"])),
            toolchain=str(build["toolchain"]),
            versions={str(name): str(version) for name, version in build["versions"].items()},
            configuration=str(build["configuration"]),
            architecture=str(build["architecture"]),
            source=SourceRevision(source["revision"], source["dirty"]),
            unsigned_sha256=str(raw["unsigned_sha256"]),
            files=files,
            experimental=_names(raw.get("experimental", [])),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(
            f"the manifest '{path}' is not what it has to be: {error!r}", hint="run './inv build'"
        ) from error
    if sum(file.role == "image" for file in files) != 1:
        raise PackageError(f"the manifest '{path}' does not list exactly one image", hint="run './inv build'")
    return manifest


def _file_name(name: Any) -> str:
    """A plain name: a manifest must not reach outside its package."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w.\- ]*", name):
        raise ValueError(f"'{name}' is no file name")
    return name


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"'{value}' is no list of names")
    return tuple(value)


def _one_of(value: Any, allowed: Iterable[str]) -> str:
    if value not in allowed:
        raise ValueError(f"'{value}' is no role")
    return str(value)
