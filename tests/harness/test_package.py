"""Packages: what goes in, that nothing wrong goes in, and that nothing changed comes out."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.image import check_image, image_checksum
from harness.package import (
    DriverIdentity,
    Package,
    SourceRevision,
    load_package,
    read_identity,
    source_revision,
    write_package,
)
from harness.toolchain import BuildResult
from vm.errors import PackageError

ROOT = Path(__file__).resolve().parents[2]


def make_image(
    *, machine: int = 0x8664, magic: int = 0x20B, subsystem: int = 1, checksum: int | None = None
) -> bytes:
    """The headers of a PE file with some bytes behind them."""
    image = bytearray(0x400)
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 60, 0x80)
    image[0x80:0x84] = b"PE\0\0"
    struct.pack_into("<HHIIIHH", image, 0x84, machine, 1, 0, 0, 0, 240, 0x22)
    struct.pack_into("<H", image, 0x98, magic)
    struct.pack_into("<H", image, 0x98 + 68, subsystem)
    image[0x300:0x308] = b"contents"
    struct.pack_into(
        "<I", image, 0x98 + 64, image_checksum(bytes(image), 0x98 + 64) if checksum is None else checksum
    )
    return bytes(image)


@pytest.fixture
def result(tmp_path: Path) -> BuildResult:
    """A build of a driver named 'sample'."""
    out = tmp_path / "out"
    out.mkdir()
    image = make_image()
    (out / "sample.sys").write_bytes(image)
    (out / "sample.pdb").write_bytes(b"symbols")
    shutil.copy(ROOT / "driver" / "downlink.inf", out / "sample.inf")
    return BuildResult(
        name="sample",
        configuration="debug",
        architecture="x64",
        toolchain="zig",
        versions={"ziglang": "0.17.0", "clang": "22.1.8"},
        image=out / "sample.sys",
        symbols=out / "sample.pdb",
        inf=out / "sample.inf",
        unsigned_sha256=hashlib.sha256(image).hexdigest(),
        compiled=(),
        linked=True,
        seconds=0.0,
    )


@pytest.fixture
def package(result: BuildResult, tmp_path: Path) -> Package:
    return write_package(result, tmp_path / "package")


def manifest_of(package: Package) -> Any:
    return json.loads((package.directory / "manifest.json").read_text(encoding="utf-8"))


def test_a_package_lists_every_file_with_role_size_and_hash(package: Package) -> None:
    files = {file["role"]: file for file in manifest_of(package)["files"]}

    assert set(files) == {"image", "inf", "symbols"}
    for file in files.values():
        data = (package.directory / file["name"]).read_bytes()
        assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {path.name for path in package.directory.iterdir()} == {
        "manifest.json",
        "sample.sys",
        "sample.inf",
        "sample.pdb",
    }


def test_a_manifest_says_where_the_package_comes_from(package: Package, result: BuildResult) -> None:
    raw = manifest_of(package)

    assert raw["build"] == {
        "toolchain": "zig",
        "versions": {"ziglang": "0.17.0", "clang": "22.1.8"},
        "configuration": "debug",
        "architecture": "x64",
    }
    assert raw["driver"] == {"service": "Downlink", "instance": "Downlink Instance", "altitude": "370777.7"}
    assert raw["unsigned_sha256"] == result.unsigned_sha256
    assert set(raw["source"]) == {"revision", "dirty"}


def test_a_package_that_was_written_can_be_read(package: Package) -> None:
    loaded = load_package(package.directory)

    assert loaded == package and not loaded.signed
    assert loaded.image.name == "sample.sys" and loaded.path("symbols") == loaded.directory / "sample.pdb"
    assert loaded.path("catalog") is None


def test_a_signed_image_is_packed_with_both_hashes(result: BuildResult, tmp_path: Path) -> None:
    signed = make_image() + b"signature"
    signed = signed[: 0x98 + 64] + struct.pack("<I", image_checksum(signed, 0x98 + 64)) + signed[0x98 + 68 :]
    certificate = tmp_path / "test.cer"
    certificate.write_bytes(b"certificate")

    write_package(result, tmp_path / "package", signed_image=signed, certificate=certificate)
    package = load_package(tmp_path / "package")

    assert package.signed and package.image.read_bytes() == signed
    assert package.entry("image").sha256 == hashlib.sha256(signed).hexdigest()
    assert package.manifest.unsigned_sha256 == result.unsigned_sha256
    assert package.entry("certificate").name == "test.cer"


def test_an_older_package_is_replaced_and_nothing_is_left_behind(result: BuildResult, tmp_path: Path) -> None:
    place = tmp_path / "packages" / "debug"
    certificate = tmp_path / "test.cer"
    certificate.write_bytes(b"certificate")
    write_package(result, place, certificate=certificate)

    write_package(result, place)

    assert load_package(place).path("certificate") is None
    assert [path.name for path in place.parent.iterdir()] == ["debug"]


def test_a_directory_that_is_no_package_is_left_alone(result: BuildResult, tmp_path: Path) -> None:
    place = tmp_path / "documents"
    place.mkdir()
    (place / "letter.txt").write_text("dear", encoding="utf-8")

    with pytest.raises(PackageError, match="exists and is no package"):
        write_package(result, place)

    assert [path.name for path in place.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("name", ["sample.sys", "sample.inf", "sample.pdb"])
def test_a_changed_file_is_noticed(package: Package, name: str) -> None:
    path = package.directory / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    with pytest.raises(PackageError, match=f"'{name}' in the package .* its hash differs"):
        load_package(package.directory)


def test_a_missing_and_a_foreign_file_are_noticed(package: Package) -> None:
    (package.directory / "foreign.dll").write_bytes(b"")
    with pytest.raises(PackageError, match=r"contains 'foreign\.dll'"):
        load_package(package.directory)
    (package.directory / "sample.pdb").unlink()
    with pytest.raises(PackageError, match=r"lacks 'sample\.pdb'"):
        load_package(package.directory)


def test_a_directory_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is no package") as caught:
        load_package(tmp_path)
    assert caught.value.hint == "run './inv build'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format=2), "has the format 2"),
        (lambda raw: raw.pop("files"), "is not what it has to be"),
        (lambda raw: raw["files"][0].update(name="../outside"), "is no file name"),
        (lambda raw: raw["files"][0].update(role="virus"), "is no role"),
        (lambda raw: raw.update(files=[]), "does not list exactly one image"),
        (lambda raw: raw.update(experimental="catalog"), "is no list of names"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(package: Package, change: Any, message: str) -> None:
    raw = manifest_of(package)
    change(raw)
    (package.directory / "manifest.json").write_text(json.dumps(raw), encoding="utf-8")

    with pytest.raises(PackageError, match=message):
        load_package(package.directory)


def test_what_no_windows_has_accepted_yet_is_in_the_manifest_and_absent_where_there_is_nothing(
    result: BuildResult, tmp_path: Path
) -> None:
    plain = write_package(result, tmp_path / "plain")
    marked = write_package(result, tmp_path / "marked", experimental=["signature", "catalog", "catalog"])

    assert "experimental" not in manifest_of(plain) and load_package(plain.directory) == plain
    assert manifest_of(marked)["experimental"] == ["catalog", "signature"]
    assert load_package(marked.directory).manifest.experimental == ("catalog", "signature")


def test_a_manifest_that_is_not_json_is_refused(package: Package) -> None:
    (package.directory / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(PackageError, match="cannot be read"):
        load_package(package.directory)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "'x.sys' is not a PE image"),
        (b"\x7fELF" + bytes(100), "'x.sys' is not a PE image"),
        (make_image()[:0x90], "'x.sys' is not a PE image"),
        (b"MZ" + bytes(58) + b"\xff\xff\xff\x7f" + bytes(100), "'x.sys' is not a PE image"),
        (
            make_image(machine=0x14C, magic=0x10B),
            "'x.sys' is a 32-bit image, a driver for x64 must be 64-bit",
        ),
        (make_image(machine=0xAA64), "'x.sys' is built for arm64, not for x64"),
        (make_image(machine=0x1234), "'x.sys' is built for machine 0x1234, not for x64"),
        (make_image(subsystem=3), "'x.sys' is for the subsystem 'console', a driver must be for 'native'"),
        (make_image(checksum=7), "'x.sys' has the checksum 0x00000007 in its header"),
    ],
)
def test_what_is_no_driver_image_is_refused_in_one_sentence(image: bytes, message: str) -> None:
    with pytest.raises(PackageError) as caught:
        check_image(image, "x.sys", "x64")

    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message and ". " not in caught.value.message


def test_nothing_is_written_when_the_image_is_refused(result: BuildResult, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="32-bit"):
        write_package(result, tmp_path / "package", signed_image=make_image(machine=0x14C, magic=0x10B))

    assert not (tmp_path / "package").exists()


def test_a_build_without_an_inf_needs_an_identity(result: BuildResult, tmp_path: Path) -> None:
    bare = replace(result, inf=None)
    with pytest.raises(PackageError, match="has no INF"):
        write_package(bare, tmp_path / "package")

    package = write_package(bare, tmp_path / "package", identity=DriverIdentity("probe", "Probe", "370030"))

    assert load_package(package.directory).manifest.driver.altitude == "370030"


def test_an_inf_in_utf_16_names_the_same_as_one_in_ascii(tmp_path: Path) -> None:
    text = (ROOT / "driver" / "downlink.inf").read_text(encoding="utf-8")
    (tmp_path / "x.inf").write_text(text, encoding="utf-16")

    assert read_identity(tmp_path / "x.inf") == read_identity(ROOT / "driver" / "downlink.inf")


def test_an_inf_that_names_two_altitudes_is_refused(tmp_path: Path) -> None:
    inf = tmp_path / "x.inf"
    text = (ROOT / "driver" / "downlink.inf").read_text(encoding="utf-8")
    inf.write_text(
        text.replace('"Altitude",0x00000000,%Altitude%', '"Altitude",0x00000000,"360000"', 1),
        encoding="utf-8",
    )

    with pytest.raises(PackageError, match=r"exactly one altitude, found '360000', '370777\.7'"):
        read_identity(inf)


def test_an_inf_that_names_no_instance_is_refused(tmp_path: Path) -> None:
    inf = tmp_path / "x.inf"
    inf.write_text(
        '[X.Services]\nAddService = x,,Y\n[Y]\nHKR,"Instances\\x","Altitude",0x0,"360000"\n', encoding="utf-8"
    )

    with pytest.raises(PackageError, match="exactly one default instance, found none"):
        read_identity(inf)


def test_the_inf_serves_windows_before_and_after_24h2() -> None:
    text = (ROOT / "driver" / "downlink.inf").read_text(encoding="ascii")
    sections = set(re.findall(r"(?m)^\[(.+)\]$", text))

    # Only architecture-decorated sections: an undecorated one makes the INF no primitive driver (I2).
    for section in ("DefaultInstall.NT$ARCH$.10.0...25952", "DefaultInstall.NT$ARCH$"):
        assert {section, f"{section}.Services"} <= sections
    assert not {"DefaultInstall", "DefaultUninstall", "Manufacturer"} & sections
    assert re.search(r"(?m)^LegacyUninstall\s*= 1$", text)
    assert re.search(r"(?m)^PnpLockdown\s*= 1$", text) and re.search(
        r"(?m)^CatalogFile\s*= downlink\.cat$", text
    )
    assert "{b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}" in text
    assert "%13%\\downlink.sys" in text and "%12%\\downlink.sys" in text
    assert text.count('"FSFilter Activity Monitor"') == text.count('"FltMgr"') == 2
    assert (
        'HKR,"Parameters\\Instances","DefaultInstance"' in text
        and 'HKR,"Instances","DefaultInstance"' in text
    )
    referenced = set(re.findall(r"(?m)^(?:CopyFiles|DelFiles|AddReg)\s*= (.+)$", text))
    referenced |= set(re.findall(r"(?m)^AddService\s*= %Service%,,(.+)$", text))
    assert referenced <= sections


def test_the_altitude_is_a_fraction_inside_the_activity_monitor_group() -> None:
    identity = read_identity(ROOT / "driver" / "downlink.inf")

    assert 360000 <= float(identity.altitude) <= 389999 and "." in identity.altitude


def test_the_revision_of_a_checkout_is_recorded_with_its_state(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("git is not installed")
    settings = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]

    def run(*arguments: str) -> str:
        command = [git, "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout.decode().strip()

    run("init", "-q")
    assert source_revision(tmp_path) == SourceRevision(None, None)
    (tmp_path / "file").write_text("1", encoding="utf-8")
    run("add", "file")
    run("commit", "-q", "-m", "one", "--no-verify")
    revision = run("rev-parse", "HEAD")
    assert source_revision(tmp_path) == SourceRevision(revision, False)
    (tmp_path / "file").write_text("2", encoding="utf-8")
    assert source_revision(tmp_path) == SourceRevision(revision, True)


def test_without_git_or_repository_the_revision_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert source_revision(tmp_path) == SourceRevision(None, None)
    monkeypatch.setenv("PATH", "")
    assert source_revision(ROOT) == SourceRevision(None, None)
