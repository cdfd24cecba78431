"""Toolchain `zig`: clang, lld and the mingw-w64 headers of the `ziglang` wheel, without the WDK, on any host.

The compiler is driven as `zig clang` and the linker as `zig lld-link`, with every flag spelt out: `zig cc` adds flags
and caches of its own, which would have to be undone. Nothing that names a place or a time of this machine reaches the
image: objects are linked by relative names, symbols carry neutral paths.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.toolchain.resource import version_resource
from harness.toolchain.source import (
    BuildResult,
    Configuration,
    DriverSource,
    directory_name,
    read_version,
    stamp_inf,
)
from harness.toolchain.stale import BuildRecord, exclusive, parse_dependencies, step_key, write_atomically
from harness.toolchain.zig_executable import Zig
from vm.deadline import Deadline
from vm.errors import BuildError

log = logging.getLogger(__name__)

_JOBS = 2
_BUILD_SECONDS = 300.0
_ERRORS_SHOWN = 3

# What the WDK defines for a driver of Windows 10 and later. NTDDI 0x0A00000C is what the layouts are asserted for.
_DEFINITIONS = (
    "_WIN32_WINNT=0x0A00",
    "WINVER=0x0A00",
    "NTDDI_VERSION=0x0A00000C",
    # mingw-w64 13 (ziglang 0.16) declares these two before wdm.h defines them as static functions, which with the
    # Microsoft extensions makes one external definition in each object: keep the declarations away.
    "__INTRINSIC_DEFINED_InterlockedBitTestAndSet=1",
    "__INTRINSIC_DEFINED_InterlockedBitTestAndReset=1",
)

_COMPILE = (
    "-std=c17",
    "-ffreestanding",
    "-fms-extensions",
    "-Xclang",
    "-fasync-exceptions",  # without it a faulting access inside __try is not covered, only calls are
    "-funwind-tables",
    "-fno-stack-protector",  # there is no security cookie without the WDK's library
    "-fno-strict-aliasing",
    "-g",
    "-gcodeview",
    "-gno-codeview-command-line",
    "-fdebug-compilation-dir=.",
    "-Wall",
    "-Wextra",
    "-Werror",
)

_LINK = (
    "/driver:wdm",
    "/subsystem:native,10.00",
    "/entry:DriverEntry",
    "/nodefaultlib",
    "/dynamicbase",
    "/nxcompat",
    "/release",  # writes the checksum that the kernel verifies
    "/tsaware:no",
    "/osversion:10.0",
    "/wx",
    "/Brepro",
    "/debug",
    "/pdbsourcepath:c:\\downlink",
)

_CONFIGURATIONS: dict[Configuration, tuple[str, ...]] = {
    # -O1 keeps lines apart well enough for coverage and stacks, and keeps the emulated machine quick.
    "debug": ("-O1", "-DDBG=1"),
    "release": ("-O2", "-DNDEBUG=1"),
}


@dataclass(frozen=True, slots=True)
class _Architecture:
    target: str
    machine: str
    headers: str
    import_directory: str
    definitions: tuple[str, ...]
    flags: tuple[str, ...] = ()
    cross: str = ""
    """Directory in the cross headers with what this architecture needs before them."""


_ARCHITECTURES = {
    # Baseline x64: kernel code must not touch AVX state, and the emulated machine has none.
    "x64": _Architecture(
        "x86_64-unknown-windows-gnu",
        "i386:x86-64",
        "x86_64-windows-any",
        "lib64",
        ("_AMD64_=1", "AMD64=1"),
        ("-mno-avx", "-mno-stack-arg-probe"),
    ),
    "arm64": _Architecture(
        "aarch64-unknown-windows-gnu",
        "arm64",
        "aarch64-windows-any",
        # mingw-w64 has no list of the Arm64 kernel's exports; a driver uses the part that both kernels have.
        "lib64",
        ("_ARM64_=1", "ARM64=1"),
        # Volatile accesses acquire and release, as x64 gives them and as MSVC does with /volatile:ms.
        ("-Xclang", "-fms-volatile"),
        "arm64",
    ),
}


def default_cache() -> Path:
    """`.cache/zig` of the checkout that this module belongs to, or of the working directory when it is installed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "pyproject.toml").is_file():
        checkout = Path.cwd()
    return checkout / ".cache" / "zig"


def build(
    source: DriverSource,
    configuration: Configuration,
    out: Path,
    *,
    architecture: str = "x64",
    cache: Path | None = None,
    deadline: Deadline | None = None,
) -> BuildResult:
    """Build a driver into `out/<configuration>/` (`out/<configuration>-arm64/`): image, symbols and stamped INF. Only what is stale is done.

    Args:
        source: what to build.
        configuration: "debug" (assertions, little optimisation) or "release".
        out: directory for all configurations.
        architecture: "x64" or "arm64".
        cache: objects, import libraries and the record of the build; `default_cache()` if not given.
        deadline: for the whole build; five minutes if not given.

    Raises:
        BuildError: a source does not compile or link; `output` has the tool's own message.
        DeadlineExceededError: the build, or another one in the same cache, took too long.
    """
    return _Build(
        source,
        configuration,
        out / directory_name(configuration, architecture),
        architecture,
        cache,
        deadline,
    ).run()


def cross_compile(
    sources: Sequence[Path],
    name: str,
    out: Path,
    *,
    includes: Iterable[Path] = (),
    cross: Path | None = None,
    cache: Path | None = None,
    deadline: Deadline | None = None,
) -> BuildResult:
    """Build a small driver from C files (a probe of a test): `<out>/<name>.sys` and `.pdb`, debug configuration.

    Args:
        sources: C files; the directory of the first one is an include directory.
        name: base name of the image.
        out: directory of the image and its symbols.
        includes: further include directories.
        cross: directory with the cross headers; that of the checkout's own driver if not given.

    Raises: as `build`.
    """
    if not sources:
        raise BuildError(f"there are no sources to build '{name}' from")
    if cross is None:
        cross = Path(__file__).resolve().parents[2] / "driver" / "cross"
    files = tuple(source.resolve() for source in sources)
    source = DriverSource(
        name, files[0].parent, files, tuple(path.resolve() for path in includes), cross=cross
    )
    return _Build(source, "debug", out, "x64", cache, deadline).run()


class _Build:
    """One build of one configuration; `run` is the sequence of its steps."""

    def __init__(
        self,
        source: DriverSource,
        configuration: Configuration,
        out: Path,
        architecture: str,
        cache: Path | None,
        deadline: Deadline | None,
    ) -> None:
        if architecture not in _ARCHITECTURES:
            known = ", ".join(f"'{name}'" for name in _ARCHITECTURES)
            raise BuildError(
                f"the toolchain 'zig' cannot build for '{architecture}'", hint=f"it knows {known}"
            )
        if configuration not in _CONFIGURATIONS:
            raise BuildError(f"there is no configuration '{configuration}'", hint="use 'debug' or 'release'")
        self._source = source
        self._configuration: Configuration = configuration
        self._architecture = architecture
        self._target = _ARCHITECTURES[architecture]
        self._out = out.resolve()
        cache = (cache or default_cache()).resolve()
        self._zig = Zig.find(cache)
        self._deadline = deadline or Deadline.after(seconds=_BUILD_SECONDS)
        self._libraries = cache / f"import-{architecture}"
        # Two drivers of one name (tests build many probes) must not share objects.
        place = hashlib.sha256(str(source.directory).encode()).hexdigest()[:12]
        self._objects = cache / f"{source.name}-{architecture}-{configuration}-{place}"
        self._compiled: list[str] = []

    def run(self) -> BuildResult:
        began = time.monotonic()
        with exclusive(self._objects / "lock", self._deadline):
            record = BuildRecord.load(self._objects / "record.json")
            try:
                libraries = self._import_libraries()
                objects = self._compile_all(record)
                objects += self._resource(record)
                linked = self._link(record, objects, libraries)
                image = self._publish(record, f"{self._source.name}.sys")
                symbols = self._publish(record, f"{self._source.name}.pdb")
                inf = self._inf(record)
            finally:
                record.save()
        result = BuildResult(
            name=self._source.name,
            configuration=self._configuration,
            architecture=self._architecture,
            toolchain="zig",
            versions=self._zig.versions(self._deadline),
            image=image,
            symbols=symbols,
            inf=inf,
            unsigned_sha256=record.steps[f"publish {self._source.name}.sys"].output.sha256,
            compiled=tuple(self._compiled),
            linked=linked,
            seconds=time.monotonic() - began,
        )
        log.info(
            "built '%s' (%s, %s) in %.2f s, %d of %d units compiled",
            image.name,
            self._configuration,
            self._architecture,
            result.seconds,
            len(result.compiled),
            len(self._source.sources),
        )
        return result

    def _import_libraries(self) -> list[Path]:
        """Import libraries, shared by all builds: the kernel's by mingw-w64, what that lacks and the Filter Manager's by us."""
        lists = {
            "ntoskrnl": self._zig.library / "libc" / "mingw" / self._target.import_directory / "ntoskrnl.def"
        }
        if self._source.cross is not None:
            lists["kernel"] = self._source.cross / "ntoskrnl.def"
            lists["fltmgr"] = self._source.cross / "fltmgr.def"
        made: list[Path] = []
        with exclusive(self._libraries / "lock", self._deadline):
            record = BuildRecord.load(self._libraries / "record.json")
            for name, exports in lists.items():
                if not exports.is_file():
                    raise BuildError(f"the list of exports '{exports}' is missing")
                # Named by content, not by place: the library's name is part of the symbols.
                library = (
                    self._libraries / f"{name}-{hashlib.sha256(exports.read_bytes()).hexdigest()[:12]}.lib"
                )
                arguments = ["dlltool", "-m", self._target.machine, "-d", str(exports), "-l", str(library)]
                key = step_key(self._zig.identity, *arguments)
                if not record.is_current(library.name, key, library):
                    self._zig.run(arguments, f"make an import library of '{exports.name}'", self._deadline)
                    record.store(library.name, key, [exports], library)
                    record.save()
                made.append(library)
        return made

    def _flags(self) -> list[str]:
        headers = self._zig.library / "libc" / "include"
        source = self._source
        includes = [source.directory, *source.includes]
        if source.cross is not None:
            if self._target.cross:
                includes.append(source.cross / self._target.cross)
            includes += [source.cross, source.cross / "spelling"]
        system = [
            self._zig.library / "include",
            headers / self._target.headers,
            headers / "any-windows-any",
            headers / "any-windows-any" / "ddk",
        ]
        return [
            f"--target={self._target.target}",
            *self._target.flags,
            *_COMPILE,
            *_CONFIGURATIONS[self._configuration],
            *(f"-D{definition}" for definition in (*_DEFINITIONS, *self._target.definitions)),
            # Later maps win. The sources are always called "driver", wherever they lie.
            f"-ffile-prefix-map={self._zig.library}=zig",
            *(f"-ffile-prefix-map={path}=include{index}" for index, path in enumerate(source.includes)),
            *([f"-ffile-prefix-map={source.cross}=cross"] if source.cross is not None else []),
            f"-ffile-prefix-map={source.directory}=driver",
            "-nostdinc",
            *(part for path in includes for part in ("-I", str(path))),
            *(part for path in system for part in ("-isystem", str(path))),
        ]

    def _compile_all(self, record: BuildRecord) -> list[str]:
        """Bring all objects up to date, two at a time; names relative to the object directory, in link order."""
        flags = self._flags()
        key = step_key(self._zig.identity, *flags)
        names = self._object_names()
        stale = [
            (source, name)
            for source, name in zip(self._source.sources, names, strict=True)
            if not record.is_current(name, key, self._objects / name)
        ]
        errors: list[BuildError] = []
        with ThreadPoolExecutor(max_workers=_JOBS) as pool:
            running = [
                (source, name, pool.submit(self._compile, flags, source, name)) for source, name in stale
            ]
            for source, name, future in running:
                try:
                    inputs = future.result()
                except BuildError as error:
                    errors.append(error)
                    continue
                record.store(name, key, inputs, self._objects / name)
                self._compiled.append(source.name)
        if errors:
            if len(errors) == 1:
                raise errors[0]
            # One broken header breaks every file, each time with the same message: some are enough.
            shown = [error.output.rstrip() for error in errors[:_ERRORS_SHOWN]]
            if len(errors) > _ERRORS_SHOWN:
                shown.append(f"... and {len(errors) - _ERRORS_SHOWN} more files")
            raise BuildError(f"{len(errors)} files do not compile", output="\n".join(shown))
        return names

    def _compile(self, flags: Sequence[str], source: Path, name: str) -> list[Path]:
        """Compile one unit; returns the files that it was made of, without those of the toolchain."""
        if not source.is_file():
            raise BuildError(f"the source file '{source}' does not exist")
        # The object's name is part of its symbols: it is a relative one, so that it tells nothing of this machine.
        arguments = ["clang", *flags, "-MD", "-MF", f"{name}.d", "-c", str(source), "-o", name]
        self._zig.run(arguments, f"compile '{source.name}'", self._deadline, directory=self._objects)
        files = parse_dependencies((self._objects / f"{name}.d").read_text(encoding="utf-8"))
        return [file for file in files if not file.is_relative_to(self._zig.library)]

    def _object_names(self) -> list[str]:
        names: list[str] = []
        for source in self._source.sources:
            stem, count = source.stem, 1
            while f"{stem}.obj" in names:
                count += 1
                stem = f"{source.stem}-{count}"
            names.append(f"{stem}.obj")
        return names

    def _resource(self, record: BuildRecord) -> list[str]:
        header = self._source.version_header
        if header is None:
            return []
        name = f"{self._source.name}.res"
        key = step_key("version resource", self._source.name)
        if not record.is_current(name, key, self._objects / name):
            data = version_resource(read_version(header), f"{self._source.name}.sys")
            write_atomically(self._objects / name, data)
            record.store(name, key, [header], self._objects / name)
        return [name]

    def _link(self, record: BuildRecord, objects: Sequence[str], libraries: Sequence[Path]) -> bool:
        """Link in the object directory with relative names only; True if it was necessary."""
        image, symbols = f"{self._source.name}.sys", f"{self._source.name}.pdb"
        relative = [Path(os.path.relpath(library, self._objects)).as_posix() for library in libraries]
        arguments = ["lld-link", *_LINK, f"/pdb:{symbols}", f"/pdbaltpath:{symbols}", f"/out:{image}"]
        arguments += [*objects, *relative]
        key = step_key(self._zig.identity, *arguments)
        if record.is_current("link", key, self._objects / image) and (self._objects / symbols).is_file():
            return False
        self._zig.run(arguments, f"link '{image}'", self._deadline, directory=self._objects)
        record.store(
            "link", key, [*(self._objects / name for name in objects), *libraries], self._objects / image
        )
        return True

    def _publish(self, record: BuildRecord, name: str) -> Path:
        """Put a finished file into the output directory, unless it lies there already."""
        made, published = self._objects / name, self._out / name
        step, key = f"publish {name}", step_key(published)
        if not record.is_current(step, key, published):
            write_atomically(published, made.read_bytes())
            record.store(step, key, [made], published)
        return published

    def _inf(self, record: BuildRecord) -> Path | None:
        inf, header = self._source.inf, self._source.version_header
        if inf is None:
            return None
        published = self._out / inf.name
        step, key = f"publish {inf.name}", step_key(published, self._architecture)
        if not record.is_current(step, key, published):
            text = inf.read_text(encoding="utf-8")
            if header is not None:
                text = stamp_inf(text, read_version(header), self._architecture)
            # INFs are read by Windows tools: lines end as they do there, whatever the checkout's are.
            write_atomically(published, "\r\n".join(text.splitlines()).encode() + b"\r\n")
            record.store(step, key, [inf, *([header] if header else [])], published)
        return published
