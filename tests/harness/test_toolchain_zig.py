"""The toolchain `zig`: what it makes, that it makes it again bit by bit, and that it makes nothing twice."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pefile
import pytest

from harness.toolchain import BuildResult, DriverSource, build, cross_compile, stale, zig, zig_executable
from harness.toolchain.source import DriverVersion, read_version, stamp_inf
from vm.deadline import Deadline
from vm.errors import BuildError, DeadlineExceededError

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "driver"

ONE = '#include "shared.h"\nint Other(void);\nint DriverEntry(void *Driver, void *Path)\n{ (void)Driver; (void)Path; return Other() + SHARED; }\n'
TWO = "int Other(void);\nint Other(void)\n{ return 2; }\n"


@pytest.fixture(scope="module")
def driver_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def driver(driver_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The Downlink driver itself, debug."""
    return build(DriverSource.at(DRIVER), "debug", tmp_path_factory.mktemp("out"), cache=driver_cache)


class SmallDriver:
    """A driver of two units, one of which has a header, and its build."""

    def __init__(self, directory: Path) -> None:
        self.one, self.two = directory / "src" / "one.c", directory / "src" / "two.c"
        self.header = directory / "src" / "shared.h"
        self.directory = directory
        self.one.parent.mkdir(parents=True)
        self.one.write_text(ONE, encoding="utf-8")
        self.two.write_text(TWO, encoding="utf-8")
        self.header.write_text("#define SHARED 1\n", encoding="utf-8")
        (directory / "small.inf").write_text("[Version]\nDriverVer = x\n", encoding="utf-8")

    def build(self, configuration: Any = "debug", **options: Any) -> BuildResult:
        options.setdefault("cache", self.directory / "cache")
        return build(DriverSource.at(self.directory), configuration, self.directory / "out", **options)


@pytest.fixture
def small(tmp_path: Path) -> SmallDriver:
    return SmallDriver(tmp_path / "small")


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


# What comes out


def test_the_driver_builds_without_a_warning_in_both_configurations(
    driver: BuildResult, driver_cache: Path, tmp_path: Path
) -> None:
    release = build(DriverSource.at(DRIVER), "release", tmp_path, cache=driver_cache)

    assert {"-Wall", "-Wextra", "-Werror"} <= set(zig._COMPILE) and "/wx" in zig._LINK
    assert release.unsigned_sha256 != driver.unsigned_sha256
    assert [path.name for path in (driver.image, driver.symbols)] == ["downlink.sys", "downlink.pdb"]
    assert driver.image.parent.name == "debug" and release.image.parent.name == "release"
    assert set(driver.versions) == {"ziglang", "clang"} and driver.versions["clang"] != "unknown"


def test_a_warning_stops_the_build(small: SmallDriver) -> None:
    small.two.write_text("int Other(void);\nint Other(void)\n{ int unused; return 2; }\n", encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        small.build()

    assert "unused variable 'unused'" in caught.value.output


def test_the_image_is_one_that_the_kernel_loads(driver: BuildResult) -> None:
    image = pefile.PE(str(driver.image))
    header = image.OPTIONAL_HEADER

    assert image.FILE_HEADER.Machine == 0x8664 and header.Magic == 0x20B
    assert header.Subsystem == 1  # native
    assert (
        header.DllCharacteristics == 0x2160
    )  # WDM driver, NX, dynamic base, high entropy; not terminal server aware
    assert header.CheckSum == image.generate_checksum() != 0
    assert (header.MajorOperatingSystemVersion, header.MajorSubsystemVersion) == (10, 10)
    assert header.SectionAlignment == 0x1000
    assert len(image.DIRECTORY_ENTRY_BASERELOC) > 0 and len(image.DIRECTORY_ENTRY_EXCEPTION) > 20
    assert {entry.dll for entry in image.DIRECTORY_ENTRY_IMPORT} == {b"ntoskrnl.exe", b"FLTMGR.SYS"}


def test_pageable_and_initialisation_code_have_sections_of_their_own(driver: BuildResult) -> None:
    image = pefile.PE(str(driver.image))
    sections = {section.Name.rstrip(b"\0"): section for section in image.sections}
    entry = image.OPTIONAL_HEADER.AddressOfEntryPoint

    assert sections[b"INIT"].contains_rva(entry)
    assert sections[b"PAGE"].Characteristics & 0x20000000  # executable
    writable_code = [name for name, s in sections.items() if s.Characteristics & 0xA0000000 == 0xA0000000]
    assert writable_code == []


def test_the_image_names_its_symbols_and_they_match(driver: BuildResult) -> None:
    image = pefile.PE(str(driver.image))
    (record,) = [
        entry.entry
        for entry in image.DIRECTORY_ENTRY_DEBUG
        if getattr(entry.entry, "CvSignature", b"") == b"RSDS"
    ]
    identity = bytes.fromhex(
        "".join(reversed([f"{record.Signature_Data1:08x}"[i : i + 2] for i in (0, 2, 4, 6)]))
    )

    assert record.PdbFileName.rstrip(b"\0") == b"downlink.pdb"
    assert identity in driver.symbols.read_bytes()


def test_the_image_carries_its_version(driver: BuildResult) -> None:
    version = read_version(DRIVER / "downlink_version.h")
    image = pefile.PE(str(driver.image))
    strings = {
        key.decode(): value.decode() for key, value in image.FileInfo[0][0].StringTable[0].entries.items()
    }
    fixed = image.VS_FIXEDFILEINFO[0]

    assert strings["FileVersion"] == version.numbers and strings["OriginalFilename"] == "downlink.sys"
    assert f"{fixed.FileVersionMS >> 16}.{fixed.FileVersionMS & 0xFFFF}" == ".".join(
        version.numbers.split(".")[:2]
    )
    assert (fixed.FileType, fixed.FileSubtype) == (3, 7)


def test_the_inf_is_stamped_and_has_windows_line_ends(driver: BuildResult) -> None:
    assert driver.inf is not None
    version = read_version(DRIVER / "downlink_version.h")
    data = driver.inf.read_bytes()

    assert f"DriverVer   = {version.date},{version.numbers}\r\n".encode() in data
    assert b"[DefaultInstall.NTamd64]\r\n" in data and b"$ARCH$" not in data
    assert data.count(b"\n") == data.count(b"\r\n")


# Reproducible


def test_the_same_sources_give_the_same_files_from_any_directory(driver: BuildResult, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place" / "sources"
    shutil.copytree(DRIVER, elsewhere)

    again = build(DriverSource.at(elsewhere), "debug", tmp_path / "out", cache=tmp_path / "another cache")

    assert len(again.compiled) == len(DriverSource.at(DRIVER).sources)
    assert again.unsigned_sha256 == driver.unsigned_sha256
    assert again.symbols.read_bytes() == driver.symbols.read_bytes()


def test_nothing_of_the_building_machine_is_in_the_files(driver: BuildResult) -> None:
    places = {str(ROOT), str(driver.image.parent), str(Path.home()), str(Path(zig.__file__).parent)}
    for file in (driver.image, driver.symbols):
        data = file.read_bytes().lower()
        for place in places - {"/"}:
            assert place.lower().encode() not in data, f"{file.name} contains {place}"
            assert place.lower().replace("/", "\\").encode() not in data, f"{file.name} contains {place}"


# Nothing twice


def test_a_build_that_is_up_to_date_starts_no_process(
    small: SmallDriver, request: pytest.FixtureRequest
) -> None:
    first = small.build()
    request.getfixturevalue("no_process")

    second = small.build()

    assert sorted(first.compiled) == ["one.c", "two.c"] and first.linked
    assert second.compiled == () and not second.linked
    assert second.unsigned_sha256 == first.unsigned_sha256


def test_an_up_to_date_build_of_the_driver_takes_less_than_a_tenth_of_a_second(
    driver: BuildResult, driver_cache: Path
) -> None:
    began = time.perf_counter()
    again = build(DriverSource.at(DRIVER), "debug", driver.image.parents[1], cache=driver_cache)
    elapsed = time.perf_counter() - began

    assert again.compiled == () and elapsed < 0.1


def test_a_changed_source_compiles_one_unit(small: SmallDriver) -> None:
    before = small.build()
    small.two.write_text(TWO.replace("2", "3"), encoding="utf-8")

    after = small.build()

    assert after.compiled == ("two.c",) and after.linked
    assert after.unsigned_sha256 != before.unsigned_sha256


def test_a_changed_header_compiles_those_who_include_it(small: SmallDriver) -> None:
    small.build()
    small.header.write_text("#define SHARED 5\n", encoding="utf-8")

    assert small.build().compiled == ("one.c",)


def test_a_file_that_was_only_touched_compiles_nothing(small: SmallDriver) -> None:
    small.build()
    small.one.write_text(ONE, encoding="utf-8")
    small.header.touch()

    result = small.build()

    assert result.compiled == () and not result.linked


def test_a_header_that_was_included_only_later_is_watched_too(small: SmallDriver) -> None:
    small.build()
    small.one.write_text(ONE.replace("shared.h", "other.h"), encoding="utf-8")
    (small.one.parent / "other.h").write_text("#define SHARED 1\n", encoding="utf-8")
    small.build()
    (small.one.parent / "other.h").write_text("#define SHARED 7\n", encoding="utf-8")

    assert small.build().compiled == ("one.c",)


def test_another_flag_compiles_everything(small: SmallDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    small.build()
    monkeypatch.setattr(zig, "_COMPILE", (*zig._COMPILE, "-DANOTHER"))

    assert sorted(small.build().compiled) == ["one.c", "two.c"]


def test_another_compiler_compiles_everything(small: SmallDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    small.build()
    monkeypatch.setattr(zig_executable.Zig, "identity", "another wheel")

    assert sorted(small.build().compiled) == ["one.c", "two.c"]


def test_configurations_do_not_disturb_each_other(small: SmallDriver) -> None:
    small.build("debug")
    small.build("release")

    assert small.build("debug").compiled == () and small.build("release").compiled == ()


@pytest.mark.parametrize("damage", ["missing", "overwritten"])
def test_an_image_that_was_lost_is_put_back_without_compiling(small: SmallDriver, damage: str) -> None:
    first = small.build()
    if damage == "missing":
        first.image.unlink()
    else:
        first.image.write_bytes(b"something else")

    second = small.build()

    assert second.compiled == () and second.unsigned_sha256 == first.unsigned_sha256
    assert stale.stamp(second.image).sha256 == first.unsigned_sha256


def test_a_record_that_cannot_be_read_means_that_everything_is_stale(small: SmallDriver) -> None:
    small.build()
    for record in (small.directory / "cache").rglob("record.json"):
        record.write_text('{"format": 1, "steps": {"one.obj": 5}}', encoding="utf-8")

    assert sorted(small.build().compiled) == ["one.c", "two.c"]


def test_two_builds_at_once_do_the_work_once(small: SmallDriver) -> None:
    results: list[BuildResult] = []
    threads = [threading.Thread(target=lambda: results.append(small.build())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(len(result.compiled) for result in results) == [0, 2]


# What fails, and how


def test_a_compile_error_shows_the_compilers_own_message(small: SmallDriver) -> None:
    small.two.write_text("int Other(void)\n{ return missing_name; }\n", encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        small.build()

    assert "two.c" in caught.value.message
    assert "use of undeclared identifier 'missing_name'" in caught.value.output
    assert "two.c:2" in caught.value.render()
    assert not (small.directory / "out" / "debug" / "small.sys").exists()


def test_all_files_that_do_not_compile_are_shown_and_the_others_are_kept(small: SmallDriver) -> None:
    (small.one.parent / "three.c").write_text("int Three = three;\n", encoding="utf-8")
    small.two.write_text("int Two = two;\n", encoding="utf-8")
    with pytest.raises(BuildError) as caught:
        small.build()
    small.two.write_text(TWO, encoding="utf-8")
    (small.one.parent / "three.c").unlink()

    result = small.build()

    assert "'two'" in caught.value.output and "'three'" in caught.value.output
    assert result.compiled == ("two.c",)


def test_a_link_error_names_what_is_missing(small: SmallDriver) -> None:
    small.two.write_text("int Unrelated;\n", encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        small.build()

    assert "link" in caught.value.message and "Other" in caught.value.output


def test_an_unknown_architecture_or_configuration_is_refused(small: SmallDriver) -> None:
    with pytest.raises(BuildError, match="cannot build for 'mips'"):
        small.build(architecture="mips")
    with pytest.raises(BuildError, match="no configuration 'fast'"):
        small.build("fast")


def test_a_build_obeys_its_deadline(small: SmallDriver) -> None:
    with pytest.raises(DeadlineExceededError):
        small.build(deadline=Deadline.after(seconds=0))


def test_a_directory_without_one_inf_or_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="exactly one INF, found none"):
        DriverSource.at(tmp_path)
    (tmp_path / "x.inf").write_text("", encoding="utf-8")
    with pytest.raises(BuildError, match="contains no C file"):
        DriverSource.at(tmp_path)
    (tmp_path / "y.inf").write_text("", encoding="utf-8")
    with pytest.raises(BuildError, match=r"found 'x\.inf', 'y\.inf'"):
        DriverSource.at(tmp_path)


# Probe drivers and parts


def test_a_probe_driver_is_built_from_one_file(tmp_path: Path) -> None:
    source = tmp_path / "probe.c"
    source.write_text(
        "#include <fltKernel.h>\n"
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        '{ (void)DriverObject; DbgPrint("%wZ\\n", RegistryPath); return STATUS_SUCCESS; }\n',
        encoding="utf-8",
    )

    result = cross_compile([source], "probe", tmp_path / "out", cache=tmp_path / "cache")

    assert result.image == tmp_path / "out" / "probe.sys" and result.symbols.is_file() and result.inf is None
    (imports,) = pefile.PE(str(result.image)).DIRECTORY_ENTRY_IMPORT
    assert [symbol.name for symbol in imports.imports] == [b"DbgPrint"]
    assert cross_compile([source], "probe", tmp_path / "out", cache=tmp_path / "cache").compiled == ()


def test_faults_inside_try_are_covered_by_the_handler(tmp_path: Path) -> None:
    source = tmp_path / "probe.c"
    source.write_text(
        "#include <fltKernel.h>\n"
        "DRIVER_INITIALIZE DriverEntry;\n"
        "NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)\n"
        "{ NTSTATUS status = STATUS_SUCCESS; (void)RegistryPath;\n"
        "  __try { status = *(volatile NTSTATUS *)DriverObject; }\n"
        "  __except (EXCEPTION_EXECUTE_HANDLER) { status = STATUS_ACCESS_VIOLATION; }\n"
        "  return status; }\n",
        encoding="utf-8",
    )

    image = pefile.PE(str(cross_compile([source], "probe", tmp_path / "out", cache=tmp_path / "cache").image))

    imported = {symbol.name for entry in image.DIRECTORY_ENTRY_IMPORT for symbol in entry.imports}
    assert imported == {b"__C_specific_handler"}


def test_dependency_files_of_all_hosts_are_understood() -> None:
    text = "a.obj: /s/one.c \\\n  /s/with\\ blank.h /s/do$$lar.h \\\r\n  C:/w/two.h /s/a\\#b.h\n"

    assert [path.as_posix() for path in stale.parse_dependencies(text)] == [
        "/s/one.c",
        "/s/with blank.h",
        "/s/do$lar.h",
        "C:/w/two.h",
        "/s/a#b.h",
    ]


def test_an_inf_is_stamped_with_date_version_and_architecture() -> None:
    version = DriverVersion("1.2.3.4", "02/03/2026")

    assert (
        stamp_inf("[A.NT$ARCH$]\nDriverVer = old\n", version, "x64")
        == "[A.NTamd64]\nDriverVer = 02/03/2026,1.2.3.4\n"
    )
    with pytest.raises(BuildError, match="0 DriverVer directives"):
        stamp_inf("[Version]\n", version, "x64")


@pytest.mark.parametrize(
    "text", ["", '#define X_VERSION_NUMBERS 1,2,3\n#define X_VERSION_DATE "01/01/2026"\n']
)
def test_a_version_header_that_says_too_little_is_refused(text: str, tmp_path: Path) -> None:
    header = tmp_path / "x_version.h"
    header.write_text(text, encoding="utf-8")

    with pytest.raises(BuildError, match="version of four numbers"):
        read_version(header)
