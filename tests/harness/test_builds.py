"""From sources to a signed package: what is made when, and how a broken source reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness import builds, config
from harness.config import Configuration
from harness.signing import verify_embedded
from vm.emulated.image.catalog import verify_catalog
from vm.errors import BuildError, ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Configuration:
    """The project's own driver in a checkout of its own."""
    shutil.copytree(ROOT / "driver", tmp_path / "driver")
    shutil.copy(ROOT / "harness.toml", tmp_path / "harness.toml")
    return config.load(tmp_path)


def build(settings: Configuration) -> builds.Package:
    return builds.prepare(settings, None, None, None)()


def test_a_package_is_signed_named_as_configured_and_made_only_once(settings: Configuration) -> None:
    first = build(settings)
    written = (first.directory / "manifest.json").stat().st_mtime_ns
    second = build(settings)

    assert first.directory == settings.root / "out" / "debug"
    assert first.signed and verify_embedded(first.image.read_bytes()) is not None
    assert first.manifest.driver.service == settings.driver().service
    assert (second.directory / "manifest.json").stat().st_mtime_ns == written
    assert second == first


def test_a_package_has_a_catalog_over_its_image_and_its_inf_and_says_that_no_windows_has_seen_it(
    settings: Configuration,
) -> None:
    made = build(settings)
    inf, catalog = made.path("inf"), made.path("catalog")

    assert inf is not None and catalog is not None and catalog.name == "downlink.cat"
    found = verify_catalog(catalog.read_bytes())
    assert {member.file for member in found.members} == {"downlink.sys", "downlink.inf"}
    assert found.member_for(made.image.read_bytes(), "downlink.sys") is not None
    assert found.member_for(inf.read_bytes(), "downlink.inf") is not None
    assert made.manifest.experimental == ("catalog", "signature")
    signer = verify_embedded(made.image.read_bytes())
    assert found.signer is not None and found.signer.thumbprint == signer.thumbprint


def test_a_changed_inf_gets_a_catalog_of_its_own(settings: Configuration) -> None:
    first = build(settings).entry("catalog").sha256
    inf = settings.root / "driver" / "downlink.inf"
    inf.write_text(inf.read_text(encoding="utf-8").replace("installation media", "media"), encoding="utf-8")

    made = build(settings)

    assert made.entry("catalog").sha256 != first
    packed = made.path("inf")
    assert packed is not None
    catalog = verify_catalog((made.directory / "downlink.cat").read_bytes())
    assert catalog.member_for(packed.read_bytes(), packed.name) is not None


def test_a_package_of_an_older_harness_without_a_catalog_is_made_anew(settings: Configuration) -> None:
    made = build(settings)
    manifest = json.loads((made.directory / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = [file for file in manifest["files"] if file["role"] != "catalog"]
    (made.directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (made.directory / "downlink.cat").unlink()

    assert build(settings).path("catalog") is not None


def test_a_package_whose_manifest_does_not_say_what_is_experimental_is_made_anew(
    settings: Configuration,
) -> None:
    made = build(settings)
    path = made.directory / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    del manifest["experimental"]
    path.write_text(json.dumps(manifest), encoding="utf-8")

    assert build(settings).manifest.experimental == ("catalog", "signature")


def test_a_new_certificate_makes_a_new_package_of_the_same_image(settings: Configuration) -> None:
    first = build(settings)
    shutil.rmtree(settings.root / ".cache" / "signing")

    second = build(settings)

    assert second.manifest.unsigned_sha256 == first.manifest.unsigned_sha256
    assert second.entry("image").sha256 != first.entry("image").sha256


def test_a_compile_error_shows_the_compilers_message_and_keeps_the_older_package(
    settings: Configuration,
) -> None:
    before = build(settings).manifest
    source = settings.root / "driver" / "src" / "driver.c"
    source.write_text(
        source.read_text(encoding="utf-8") + "\nint Broken = undefined_name;\n", encoding="utf-8"
    )

    with pytest.raises(BuildError) as caught:
        build(settings)

    assert "undefined_name" in caught.value.render() and "driver.c" in caught.value.render()
    assert builds.package.load_package(settings.root / "out" / "debug").manifest == before


def test_a_package_that_was_tampered_with_is_made_anew(settings: Configuration) -> None:
    first = build(settings)
    first.image.write_bytes(b"MZ")

    assert build(settings).image.read_bytes() != b"MZ"


def test_an_unknown_toolchain_or_configuration_is_refused_before_anything_is_built(
    settings: Configuration,
) -> None:
    with pytest.raises(ConfigurationError, match="no toolchain 'gcc'"):
        builds.prepare(settings, None, "gcc", None)
    with pytest.raises(ConfigurationError, match="no configuration 'releas'"):
        builds.prepare(settings, None, None, "releas")

    assert not (settings.root / "out").exists()


def test_the_names_of_the_configuration_win_over_those_of_the_inf(settings: Configuration) -> None:
    assert build(settings).manifest.driver.altitude == settings.driver().altitude
    driver = replace(settings.driver(), altitude="370001.1")

    made = builds.build_package(settings.root, driver, "debug")

    assert made.manifest.driver.altitude == "370001.1"
