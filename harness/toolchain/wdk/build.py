"""Toolchain `wdk`: the order of its steps, and what of them is stale.

What MSBuild makes and what is signed are two things: a new certificate signs the image that is there. Everything is made
in a fresh directory and put in its place file by file at the end; a record says which inputs it is of, so a build that
was broken off is done again.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.signing import image_is_signed
from harness.signing.identity import SigningIdentity
from harness.toolchain.source import (
    ARCHITECTURES,
    BuildResult,
    Configuration,
    DriverSource,
    directory_name,
    read_version,
)
from harness.toolchain.stale import BuildRecord, exclusive, step_key, write_atomically
from harness.toolchain.wdk import pairing, steps
from harness.toolchain.wdk.certificate import ensure_in_store
from harness.toolchain.wdk.kit import Kit
from harness.toolchain.wdk.locate import locate
from harness.toolchain.wdk.nuget import RESTORE_SECONDS
from harness.toolchain.wdk.provider import Provider, WindowsProvider
from harness.toolchain.wdk.workshop import Workshop
from vm.deadline import Deadline
from vm.errors import BuildError
from vm.inf import install as installing
from vm.inf import read as read_inf
from vm.powershell.local import LocalPowerShell
from vm.powershell.script import ScriptHost

log = logging.getLogger(__name__)

BUILD_SECONDS = 900.0
"""For the steps; a driver of this size takes half a minute."""
KIT_SECONDS = RESTORE_SECONDS + 120.0
"""For finding the kit, which may fetch it first."""

# Directories of a driver that MSBuild does not read: restored packages, the cross build, clients, what an IDE leaves.
_NOT_READ = frozenset({"packages", "cross", "clients", ".vs", "x64", "arm64", "debug", "release"})
_READ = frozenset(
    {".c", ".h", ".rc", ".rc2", ".inf", ".vcxproj", ".props", ".targets", ".ruleset", ".config", ".asm"}
)
_RECIPE = "1"
"""Part of every key: raise it when the steps change what they make of the same inputs."""


def require_windows(provider: Provider | None = None) -> None:
    """Refuse a host that cannot run MSBuild, before anything is done.

    Raises:
        BuildError: this is not Windows.
    """
    if not (provider or WindowsProvider()).is_windows:
        raise BuildError(
            "the toolchain 'wdk' needs Windows: MSBuild and the WDK do not run on this host",
            hint="./inv build --toolchain zig",
        )


def build(
    source: DriverSource,
    configuration: Configuration,
    out: Path,
    identity: SigningIdentity,
    *,
    architecture: str = "x64",
    route: str | None = None,
    analyze: bool = False,
    provider: Provider | None = None,
    scripts: ScriptHost | None = None,
    deadline: Deadline | None = None,
) -> BuildResult:
    """Build and sign a driver in `out/wdk/<configuration>/`: image, symbols, stamped INF, catalog. Only what is stale is done.

    Args:
        source: what to build; its directory holds the project `<name>.vcxproj`.
        configuration: "debug" or "release".
        out: directory for all builds; logs are kept in `out/wdk/<configuration>/logs/`.
        identity: who signs.
        architecture: "x64" or "arm64".
        route: where the kit has to come from, one of `kit.ROUTES`; None = the first that has one.
        analyze: with code analysis, whose findings break the build.
        provider: this host's tools; None = its own.
        scripts: what runs PowerShell files; None = this host.
        deadline: for all of it; if not given, `KIT_SECONDS` to find or fetch the kit, then `BUILD_SECONDS`.

    Raises:
        BuildError: a step failed; what was built before is still there.
        DeadlineExceededError: the build, or another one of the same driver, took too long.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(f"'{name}'" for name in ARCHITECTURES)
        raise BuildError(f"the toolchain 'wdk' cannot build for '{architecture}'", hint=f"it knows {known}")
    windows = provider or WindowsProvider()
    require_windows(windows)
    project = source.directory / f"{source.name}.vcxproj"
    if not project.is_file():
        raise BuildError(
            f"'{source.directory}' has no project '{project.name}' for MSBuild",
            hint="the project's name is the driver's name, which is that of its INF",
        )
    began = time.monotonic()
    kit = locate(source, windows, route, deadline=deadline or Deadline.after(seconds=KIT_SECONDS))
    limit = deadline or Deadline.after(seconds=BUILD_SECONDS)
    place = out.resolve() / "wdk" / directory_name(configuration, architecture)
    order = steps.CompileOrder(
        project,
        source.name,
        configuration,
        architecture,
        place / "work" / "bin",
        place / "work" / "obj",
        analyze,
    )
    shop = Workshop(windows, kit, place / "logs", limit)
    with exclusive(place / "lock", limit):
        made = _Build(source, order, shop, place, identity, scripts or LocalPowerShell())
        try:
            made.run()
        finally:
            made.leave()
    result = BuildResult(
        name=source.name,
        configuration=configuration,
        architecture=architecture,
        toolchain="wdk",
        versions=kit.versions(),
        image=made.product(".sys"),
        symbols=made.product(".pdb"),
        inf=made.inf,
        unsigned_sha256=made.unsigned_sha256,
        compiled=tuple(path.name for path in source.sources) if made.compiled else (),
        linked=made.compiled,
        seconds=time.monotonic() - began,
        signed_image=made.signed(f"{source.name}.sys"),
        catalog=made.catalog,
    )
    log.info(
        "built '%s' with the WDK (%s, %s) in %.2f s, %s",
        result.image.name,
        configuration,
        architecture,
        result.seconds,
        "compiled anew" if made.compiled else "up to date",
    )
    return result


@dataclass(frozen=True, slots=True)
class _Keys:
    """What the outputs of each stage depend on besides files."""

    compiled: str
    analyzed: str
    stamped: str
    signed: str


class _Build:
    """One build of one configuration; `run` is the sequence of its stages."""

    def __init__(
        self,
        source: DriverSource,
        order: steps.CompileOrder,
        shop: Workshop,
        place: Path,
        identity: SigningIdentity,
        scripts: ScriptHost,
    ) -> None:
        self._source = source
        self._order = order
        self._shop = shop
        self._place = place
        self._identity = identity
        self._scripts = scripts
        self._record = BuildRecord.load(place / "record.json")
        self._inputs = tuple(_inputs(source.directory))
        self._keys = self._make_keys()
        self.compiled = False

    @property
    def inf(self) -> Path | None:
        """The stamped INF, if the driver has one."""
        return self._product(self._source.inf.name) if self._source.inf else None

    @property
    def catalog(self) -> Path | None:
        """The signed catalog, if the INF names one."""
        name = self._catalog_name()
        return self.signed(name) if name else None

    @property
    def unsigned_sha256(self) -> str:
        """Hash of the image as it was linked."""
        return self._record.steps[f"compile {self._source.name}.sys"].output.sha256

    def product(self, suffix: str) -> Path:
        """Image or symbols as they were linked."""
        return self._product(f"{self._source.name}{suffix}")

    def signed(self, name: str) -> Path:
        """Where the signed file of that name is."""
        return self._place / "signed" / name

    def run(self) -> None:
        """Bring everything up to date."""
        compile_it, stamp, sign = self._compile_is_stale(), self._stamp_is_stale(), self._sign_is_stale()
        if not (compile_it or stamp or sign):
            return
        self._fresh(self._shop.logs if compile_it else None)
        if compile_it:
            self._compile()
        if stamp:
            self._stamp()
        # Asked again: what is signed is of what has just been made.
        if sign or self._sign_is_stale():
            self._sign()

    def leave(self) -> None:
        """Keep what was recorded, and no half-made files."""
        if self._place.is_dir():
            self._record.save()
        shutil.rmtree(self._work, ignore_errors=True)

    @property
    def _work(self) -> Path:
        return self._place / "work"

    def _product(self, name: str) -> Path:
        return self._place / "unsigned" / name

    def _make_keys(self) -> _Keys:
        kit, order = self._shop.kit, self._order
        tools = (_RECIPE, _identity_of(kit), self._place)
        names = [path.relative_to(self._source.directory).as_posix() for path in self._inputs]
        plain = steps.CompileOrder(
            order.project, order.name, order.configuration, order.architecture, order.products, order.objects
        )
        compiled = step_key(*tools, *names, *steps.compile_options(self._shop, plain))
        stamped = step_key(*tools, order.architecture)
        return _Keys(
            compiled=compiled,
            analyzed=step_key(compiled, "analysis", *steps.compile_options(self._shop, order)),
            stamped=stamped,
            signed=step_key(*tools, self._identity.thumbprint, order.architecture),
        )

    def _compile_is_stale(self) -> bool:
        key = self._keys.compiled
        current = all(
            self._record.is_current(f"compile {path.name}", key, path)
            for path in (self.product(".sys"), self.product(".pdb"))
        )
        report = self._shop.logs / "analysis.sarif"
        analyzed = not self._order.analyze or self._record.is_current("analyze", self._keys.analyzed, report)
        return not (current and analyzed)

    def _stamp_is_stale(self) -> bool:
        return self.inf is not None and not self._record.is_current("stamp", self._keys.stamped, self.inf)

    def _sign_is_stale(self) -> bool:
        image = self.signed(f"{self._source.name}.sys")
        if not self._record.is_current("sign image", self._keys.signed, image):
            return True
        catalog = self.catalog
        return catalog is not None and not self._record.is_current("sign catalog", self._keys.signed, catalog)

    def _fresh(self, logs: Path | None) -> None:
        """An empty directory to work in; old logs go when there will be new ones of everything.

        Raises:
            BuildError: something holds a file there.
        """
        for directory in (self._work, logs):
            if directory is not None and directory.exists():
                try:
                    shutil.rmtree(directory)
                except OSError as error:
                    raise BuildError(
                        f"'{error.filename or directory}' of an earlier build cannot be removed: {error.strerror}",
                        hint="a program holds it, often a debugger, mspdbsrv.exe or an open log",
                    ) from error
        for directory in (self._work / "package", self._shop.logs):
            directory.mkdir(parents=True, exist_ok=True)

    def _compile(self) -> None:
        # Only when there is something to compile: it reads directories of Visual Studio.
        pairing.check(self._shop.kit, self._shop.provider, (self._order.architecture,))
        made = steps.compile_driver(self._shop, self._order)
        for path in (made.image, made.symbols):
            published = self._product(path.name)
            write_atomically(published, path.read_bytes())
            self._record.store(f"compile {path.name}", self._keys.compiled, self._inputs, published)
        if self._order.analyze:
            report = self._shop.logs / "analysis.sarif"
            self._record.store("analyze", self._keys.analyzed, self._inputs, report)
        self.compiled = True

    def _stamp(self) -> None:
        inf, header = self._source.inf, self._source.version_header
        assert inf is not None and self.inf is not None
        stamped = self._work / "package" / inf.name
        # Lines end as they do on Windows, whatever the checkout's are: the tools, and the catalog, see bytes.
        text = inf.read_text(encoding="utf-8")
        stamped.write_bytes("\r\n".join(text.splitlines()).encode() + b"\r\n")
        if header is not None:
            order = steps.StampOrder(stamped, read_version(header), self._order.architecture)
            steps.stamp_inf(self._shop, order)
        steps.verify_inf(self._shop, stamped)
        write_atomically(self.inf, stamped.read_bytes())
        self._record.store("stamp", self._keys.stamped, [inf, *([header] if header else [])], self.inf)

    def _sign(self) -> None:
        """Sign the image, make the catalog over the signed image and the INF, sign that."""
        linked = self.product(".sys")
        package = self._work / "package"
        image = package / linked.name
        image.write_bytes(linked.read_bytes())
        thumbprint = ensure_in_store(self._identity, self._scripts, self._shop.deadline)
        steps.sign(self._shop, image, thumbprint, pages=True)
        if not image_is_signed(image.read_bytes()):
            raise BuildError(
                f"signtool succeeded and '{image.name}' carries no signature",
                output=f"full log: {self._shop.log_path('signtool-sys')}",
                hint=f"see '{self._shop.log_path('signtool-sys')}'",
            )
        catalog = None
        if self.inf is not None:
            inf = package / self.inf.name
            inf.write_bytes(self.inf.read_bytes())
            order = steps.CatalogOrder(package, inf, self._order.architecture)
            catalog = steps.make_catalog(self._shop, order)
        inputs = [linked, *([self.inf] if self.inf else [])]
        if catalog is not None:
            steps.sign(self._shop, catalog, thumbprint, pages=False)
            write_atomically(self.signed(catalog.name), catalog.read_bytes())
            self._record.store("sign catalog", self._keys.signed, inputs, self.signed(catalog.name))
        write_atomically(self.signed(image.name), image.read_bytes())
        self._record.store("sign image", self._keys.signed, inputs, self.signed(image.name))

    def _catalog_name(self) -> str:
        if self.inf is None or not self.inf.is_file():
            return ""
        name = {"x64": "amd64"}.get(self._order.architecture, self._order.architecture)
        return installing.catalog_file(read_inf(self.inf.read_bytes()), name)


def _inputs(directory: Path) -> Iterator[Path]:
    """The files that MSBuild may read of a driver's directory, sorted."""
    for parent, directories, files in os.walk(directory):
        directories[:] = sorted(name for name in directories if name.lower() not in _NOT_READ)
        yield from (Path(parent) / name for name in sorted(files) if Path(name).suffix.lower() in _READ)


def _identity_of(kit: Kit) -> str:
    """What makes a kit another one: its versions, its route and its tools."""
    return "\n".join(
        [kit.route, str(kit.root), str(kit.msbuild), *(f"{k}={v}" for k, v in sorted(kit.versions().items()))]
    )
