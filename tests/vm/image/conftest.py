"""Real driver images for the tests of the image room: C sources compiled by zig, cached by their content."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

_CACHE = Path(__file__).resolve().parents[3] / ".cache" / "test-images"
_SECONDS_PER_STEP = 240  # generous: the very first call of zig on a machine unpacks its caches

_COMPILE = [
    "-target",
    "x86_64-windows-gnu",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-stack-check",
    "-fno-sanitize=all",
    "-mno-stack-arg-probe",
    "-O1",
    "-g",
    "-gcodeview",
    "-fms-extensions",
    "-Xclang",
    "-fasync-exceptions",
    "-Wno-everything",
]
_LINK = [
    "/driver:wdm",
    "/subsystem:native,10.00",
    "/entry:DriverEntry",
    "/nodefaultlib",
    "/dynamicbase",
    "/nxcompat",
    "/release",
    "/tsaware:no",
    "/osversion:10.0",
    "/Brepro",
    "/debug",
    "/pdbaltpath:%_PDB%",
]


@dataclass(frozen=True, slots=True)
class BuiltDriver:
    """What one build gave, as bytes and as paths."""

    sys_path: Path
    pdb_path: Path

    @property
    def sys(self) -> bytes:
        return self.sys_path.read_bytes()

    @property
    def pdb(self) -> bytes:
        return self.pdb_path.read_bytes()


CompileDriver = Callable[..., BuiltDriver]


@pytest.fixture(scope="session")
def compile_driver() -> CompileDriver:
    """`compile_driver(source, imports={dll: [names]}, compile_flags=[], link_flags=[])` builds and caches."""

    def build(
        source: str,
        imports: Mapping[str, list[str]] | None = None,
        compile_flags: tuple[str, ...] = (),
        link_flags: tuple[str, ...] = (),
    ) -> BuiltDriver:
        compile_line, link_line = [*_COMPILE, *compile_flags], [*_LINK, *link_flags]
        recipe = repr((source, sorted((imports or {}).items()), compile_line, link_line, version("ziglang")))
        directory = _CACHE / hashlib.sha256(recipe.encode()).hexdigest()[:24]
        if not directory.is_dir():
            _CACHE.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(dir=_CACHE))
            try:
                _build(work, source, imports or {}, compile_line, link_line)
                work.rename(directory)
            except OSError:
                if not directory.is_dir():  # otherwise another worker was faster
                    raise
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return BuiltDriver(directory / "test.sys", directory / "test.pdb")

    return build


def _build(
    work: Path, source: str, imports: Mapping[str, list[str]], compile_line: list[str], link_line: list[str]
) -> None:
    libraries: list[str] = []
    for dll, names in imports.items():
        definition = work / f"{dll}.def"
        definition.write_text(f"LIBRARY {dll}\nEXPORTS\n" + "".join(f"{name}\n" for name in names))
        libraries.append(f"{dll}.lib")
        _zig(work, "dlltool", "-m", "i386:x86-64", "-d", definition.name, "-l", libraries[-1])
    (work / "test.c").write_text(source)
    _zig(work, "cc", *compile_line, "-c", "test.c", "-o", "test.obj")
    _zig(work, "lld-link", *link_line, "/pdb:test.pdb", "/out:test.sys", "test.obj", *libraries)


def _zig(work: Path, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "ziglang", *arguments],
        cwd=work,
        check=True,
        timeout=_SECONDS_PER_STEP,
        stdin=subprocess.DEVNULL,
    )
