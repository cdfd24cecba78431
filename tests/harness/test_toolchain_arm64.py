"""The toolchain for Arm64: the same sources, an image of the right machine, and a machine that refuses it in a sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pefile
import pytest

from harness import builds, config, toolchain
from harness.config import Configuration
from harness.toolchain import BuildResult, DriverSource
from vm.emulated.image.pe import parse_image
from vm.errors import BuildError, ConfigurationError, PackageError

ROOT = Path(__file__).resolve().parents[2]
DRIVER = ROOT / "driver"

# What only one kernel has: on x64 the interrupt level is a register of the processor, not an export.
ARM64_ONLY = {
    b"KeGetCurrentIrql",
    b"KeLowerIrql",
    b"KfRaiseIrql",
    b"KeRaiseIrqlToDpcLevel",
    b"KeGetCurrentThread",
}

PROBE = """#include <fltKernel.h>
DRIVER_INITIALIZE DriverEntry;
NTSTATUS NTAPI DriverEntry(PDRIVER_OBJECT DriverObject, PUNICODE_STRING RegistryPath)
{
    (void)DriverObject;
    (void)RegistryPath;
    %s
    return STATUS_SUCCESS;
}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def driver(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    return toolchain.build(
        DriverSource.at(DRIVER), "debug", tmp_path_factory.mktemp("out"), architecture="arm64", cache=cache
    )


def imports(image: pefile.PE) -> dict[str, set[bytes]]:
    return {
        entry.dll.decode().lower(): {symbol.name for symbol in entry.imports}
        for entry in image.DIRECTORY_ENTRY_IMPORT
    }


def probe(body: str, directory: Path, cache: Path) -> pefile.PE:
    directory.mkdir(parents=True, exist_ok=True)
    source = directory / "probe.c"
    source.write_text(PROBE % body, encoding="utf-8")
    built = toolchain.build(
        DriverSource("probe", directory, (source,), cross=DRIVER / "cross"),
        "debug",
        directory / "out",
        architecture="arm64",
        cache=cache,
    )
    return pefile.PE(str(built.image))


def test_the_image_is_a_driver_for_arm64(driver: BuildResult) -> None:
    image = pefile.PE(str(driver.image))

    assert image.FILE_HEADER.Machine == 0xAA64
    assert image.OPTIONAL_HEADER.Magic == 0x20B
    assert image.OPTIONAL_HEADER.Subsystem == 1
    assert image.OPTIONAL_HEADER.CheckSum == image.generate_checksum()
    names = {section.Name.rstrip(b"\0") for section in image.sections}
    assert {b"INIT", b"PAGE", b".pdata", b".reloc", b".rsrc"} <= names


def test_the_output_lies_beside_that_of_x64(driver: BuildResult) -> None:
    assert driver.image.parent.name == "debug-arm64"
    assert driver.architecture == "arm64"
    assert driver.inf is not None
    text = driver.inf.read_text(encoding="utf-8")
    assert "[DefaultInstall.NTarm64.10.0...25952]" in text and "amd64" not in text


def test_both_architectures_ask_the_same_of_the_kernel(
    driver: BuildResult, cache: Path, tmp_path: Path
) -> None:
    x64 = toolchain.build(DriverSource.at(DRIVER), "debug", tmp_path, cache=cache)
    here, there = imports(pefile.PE(str(driver.image))), imports(pefile.PE(str(x64.image)))

    assert here["fltmgr.sys"] == there["fltmgr.sys"]
    assert here["ntoskrnl.exe"] - there["ntoskrnl.exe"] <= ARM64_ONLY
    assert there["ntoskrnl.exe"] - here["ntoskrnl.exe"] <= {b"__chkstk"}


def test_the_release_driver_builds_without_a_warning(cache: Path, tmp_path: Path) -> None:
    built = toolchain.build(DriverSource.at(DRIVER), "release", tmp_path, architecture="arm64", cache=cache)

    assert pefile.PE(str(built.image)).FILE_HEADER.Machine == 0xAA64


def test_the_same_sources_give_the_same_files_from_any_directory(driver: BuildResult, tmp_path: Path) -> None:
    shutil.copytree(DRIVER, tmp_path / "elsewhere" / "driver")
    again = toolchain.build(
        DriverSource.at(tmp_path / "elsewhere" / "driver"),
        "debug",
        tmp_path / "out",
        architecture="arm64",
        cache=tmp_path / "cache",
    )

    assert again.unsigned_sha256 == driver.unsigned_sha256
    assert again.symbols.read_bytes() == driver.symbols.read_bytes()
    assert str(tmp_path).encode() not in again.image.read_bytes() + again.symbols.read_bytes()


def test_interrupt_levels_and_spin_locks_are_exports_of_the_kernel(tmp_path: Path, cache: Path) -> None:
    image = probe(
        "KSPIN_LOCK lock; KIRQL old; KeInitializeSpinLock(&lock); KeAcquireSpinLock(&lock, &old);"
        " KeReleaseSpinLock(&lock, old); KeRaiseIrql(APC_LEVEL, &old); KeLowerIrql(old);"
        " if (KeGetCurrentIrql() == DISPATCH_LEVEL || KeGetCurrentThread() == NULL) { return STATUS_UNSUCCESSFUL; }",
        tmp_path,
        cache,
    )

    assert imports(image)["ntoskrnl.exe"] == {
        b"KeAcquireSpinLockRaiseToDpc",
        b"KeReleaseSpinLock",
        b"KfRaiseIrql",
        b"KeLowerIrql",
        b"KeGetCurrentIrql",
        b"KeGetCurrentThread",
    }


def test_interlocked_operations_are_instructions_not_calls(tmp_path: Path, cache: Path) -> None:
    image = probe(
        "LONG a = 0; LONG64 b = 0; PVOID p = NULL; InterlockedIncrement(&a); InterlockedDecrement(&a);"
        " InterlockedExchange(&a, 1); InterlockedCompareExchange(&a, 1, 2); InterlockedOr(&a, 1);"
        " InterlockedAnd(&a, 1); InterlockedExchangeAdd64(&b, 2); InterlockedCompareExchange64(&b, 1, 2);"
        " InterlockedExchangePointer(&p, &a); InterlockedCompareExchangePointer(&p, NULL, &a);"
        " YieldProcessor(); if (a + b == 77 && p != NULL) { return STATUS_UNSUCCESSFUL; }",
        tmp_path,
        cache,
    )

    assert not hasattr(image, "DIRECTORY_ENTRY_IMPORT")


def test_faults_inside_try_are_handled_by_the_kernels_handler(tmp_path: Path, cache: Path) -> None:
    image = probe(
        "NTSTATUS status = STATUS_SUCCESS; __try { status = *(volatile NTSTATUS *)DriverObject; }"
        " __except (EXCEPTION_EXECUTE_HANDLER) { status = GetExceptionCode(); } if (!NT_SUCCESS(status)) { return status; }",
        tmp_path,
        cache,
    )

    assert imports(image)["ntoskrnl.exe"] == {b"__C_specific_handler"}


def test_the_layout_of_the_filter_manager_is_asserted_for_arm64_too(tmp_path: Path, cache: Path) -> None:
    cross = tmp_path / "cross"
    shutil.copytree(DRIVER / "cross", cross)
    layout = cross / "fltkernel_layout.h"
    text = layout.read_text(encoding="utf-8")
    layout.write_text(
        text.replace("LAYOUT_SIZE(FLT_REGISTRATION, 0x70);", "LAYOUT_SIZE(FLT_REGISTRATION, 0x68);"),
        encoding="utf-8",
    )
    source = tmp_path / "probe.c"
    source.write_text(PROBE % "", encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        toolchain.build(
            DriverSource("probe", tmp_path, (source,), cross=cross),
            "debug",
            tmp_path / "out",
            architecture="arm64",
            cache=cache,
        )

    assert "size of FLT_REGISTRATION" in caught.value.output


# The package and the machine


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Configuration:
    directory = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "driver", directory / "driver")
    shutil.copy(ROOT / "harness.toml", directory / "harness.toml")
    return config.load(directory)


def test_packages_of_both_architectures_lie_side_by_side(settings: Configuration) -> None:
    arm64 = builds.prepare(settings, None, None, None, "arm64")()
    x64 = builds.prepare(settings, None, None, None)()

    assert (arm64.directory.name, x64.directory.name) == ("debug-arm64", "debug")
    assert (arm64.manifest.architecture, x64.manifest.architecture) == ("arm64", "x64")
    assert arm64.signed
    written = (arm64.directory / "manifest.json").stat().st_mtime_ns
    assert builds.prepare(settings, None, None, None, "arm64")().directory == arm64.directory
    assert (arm64.directory / "manifest.json").stat().st_mtime_ns == written


def test_an_unknown_architecture_is_refused_before_anything_is_built(settings: Configuration) -> None:
    with pytest.raises(ConfigurationError, match="no architecture 'amd64'"):
        builds.prepare(settings, None, None, None, "amd64")


def test_the_emulated_machine_refuses_it_in_one_sentence(driver: BuildResult) -> None:
    with pytest.raises(PackageError) as caught:
        parse_image(driver.image.read_bytes(), driver.image.name)

    assert re.search(r"'downlink\.sys'.*ARM64", caught.value.message)
    assert "\n" not in caught.value.message
