"""A build with the WDK: its steps in their order, what is stale, and the same package as the cross build makes."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from harness import builds, package
from harness.builds import BuildChoices
from harness.signing import sign_image, verify_embedded
from harness.toolchain.wdk.build import build
from harness.toolchain.wdk.provider import WindowsProvider
from tests.harness.wdk_lab import Lab
from tests.harness.wdk_trees import VS2022, Host
from vm.deadline import Deadline
from vm.emulated.image.catalog import verify_catalog
from vm.errors import BuildError, ConfigurationError, DeadlineExceededError, DownlinkError
from vm.powershell.script import ScriptError

STEPS = ["msbuild", "stampinf", "infverif", "signtool", "inf2cat", "signtool"]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def packed(lab: Lab, architecture: str = "x64", **options: object) -> package.Package:
    """The package as `./inv build --toolchain wdk` makes it."""
    return builds.build_package(
        lab.root,
        lab.settings.driver(),
        "debug",
        architecture,
        BuildChoices("wdk"),
        lambda _, configuration, out, architecture, identity: lab.build(
            configuration, architecture, **options
        ),
    )


def refused(lab: Lab, **options: object) -> BuildError:
    with pytest.raises(BuildError) as caught:
        lab.build(**options)
    return caught.value


@pytest.mark.parametrize("architecture", ["x64", "arm64"])
def test_the_package_is_that_of_any_toolchain_and_nothing_of_it_is_experimental(
    lab: Lab, architecture: str
) -> None:
    made = packed(lab, architecture)
    manifest = json.loads((made.directory / "manifest.json").read_text("utf-8"))

    name = "debug" if architecture == "x64" else "debug-arm64"
    assert made.directory == lab.root / "out" / name
    assert {file.role: file.name for file in made.manifest.files} == {
        "image": "downlink.sys",
        "symbols": "downlink.pdb",
        "inf": "downlink.inf",
        "catalog": "downlink.cat",
        "certificate": "downlink.cer",
    }
    assert manifest["build"]["toolchain"] == "wdk"
    assert manifest["build"]["architecture"] == architecture
    assert manifest["build"]["versions"] == {
        "msbuild": "18.0.5.56406",
        "visual-studio": "18.0.11205.157",
        "wdk": "10.0.28000.0",
        "sdk": "10.0.28000.0",
    }
    assert "experimental" not in manifest
    signer = verify_embedded(made.image.read_bytes())
    assert signer is not None and signer.thumbprint == lab.identity.thumbprint
    inf, catalog = made.path("inf"), made.path("catalog")
    assert inf is not None and catalog is not None
    members = verify_catalog(catalog.read_bytes())
    assert members.member_for(made.image.read_bytes(), "downlink.sys") is not None
    assert members.member_for(inf.read_bytes(), "downlink.inf") is not None
    assert package.load_package(made.directory) == made


def test_the_steps_follow_each_other_and_the_image_is_signed_before_it_is_catalogued(lab: Lab) -> None:
    lab.build()

    assert lab.order() == STEPS
    assert lab.provider is not None
    lab.provider.finish()
    assert lab.arguments("signtool", 0)[-1].endswith("downlink.sys")
    assert lab.arguments("signtool", 1)[-1].endswith("downlink.cat")


def test_a_second_build_runs_no_tool(lab: Lab) -> None:
    first = lab.build()
    second = lab.build()

    assert lab.order() == [] and len(lab.store.secrets) == 1
    assert first.compiled and first.linked and not second.compiled and not second.linked
    assert second.unsigned_sha256 == first.unsigned_sha256
    assert second.catalog == first.catalog and second.signed_image == first.signed_image


def test_a_second_package_is_the_first(lab: Lab) -> None:
    first = packed(lab)
    written = (first.directory / "manifest.json").stat().st_mtime_ns

    assert packed(lab) == first
    assert (first.directory / "manifest.json").stat().st_mtime_ns == written


@pytest.mark.parametrize("name", ["src/queue.c", "downlink_protocol.h", "downlink.vcxproj", "downlink.rc"])
def test_a_changed_source_is_compiled_and_signed_anew(lab: Lab, name: str) -> None:
    lab.build()
    path = lab.root / "driver" / name
    path.write_bytes(path.read_bytes() + b"\n")

    lab.build()

    # The image is the same one here, so its signature is, too.
    assert lab.order()[:1] == ["msbuild"] and "stampinf" not in lab.order()


def test_a_new_file_is_compiled_although_nothing_else_changed(lab: Lab) -> None:
    lab.build()
    (lab.root / "driver" / "src" / "new.h").write_text("/* */\n", encoding="utf-8")

    lab.build()

    assert lab.order()[:1] == ["msbuild"]


@pytest.mark.parametrize("name", ["README.md", "clients/listen.c", "cross/fltkernel.h"])
def test_what_msbuild_does_not_read_makes_nothing_stale(lab: Lab, name: str) -> None:
    lab.build()
    path = lab.root / "driver" / name
    path.write_bytes(path.read_bytes() + b"\n")

    lab.build()

    assert lab.order() == []


def test_a_changed_inf_is_stamped_verified_and_catalogued_anew(lab: Lab) -> None:
    lab.build()
    inf = lab.root / "driver" / "downlink.inf"
    inf.write_text(inf.read_text("utf-8").replace("installation media", "media"), encoding="utf-8")

    lab.build()

    assert lab.order() == STEPS


def test_a_new_certificate_signs_the_image_that_is_there(lab: Lab) -> None:
    first = lab.build()
    (lab.root / ".cache" / "signing" / "identity.pem").unlink()
    second = lab.build()

    assert lab.order() == ["signtool", "inf2cat", "signtool"]
    assert second.unsigned_sha256 == first.unsigned_sha256
    assert second.signed_image is not None
    signer = verify_embedded(second.signed_image.read_bytes())
    assert signer is not None and signer.thumbprint == lab.identity.thumbprint


def test_another_kit_builds_anew(lab: Lab) -> None:
    lab.build()
    lab.host = Host().studio(VS2022).kit(26100)

    made = lab.build()

    assert lab.order() == STEPS
    assert made.versions["wdk"] == "10.0.26100.0"


def test_a_lost_output_is_made_again(lab: Lab) -> None:
    made = lab.build()
    assert made.catalog is not None
    made.catalog.unlink()

    lab.build()

    assert lab.order() == ["signtool", "inf2cat", "signtool"]


def test_debug_and_release_and_both_architectures_lie_apart(lab: Lab) -> None:
    made = [lab.build(build, kind) for build in ("debug", "release") for kind in ("x64", "arm64")]

    assert len({result.image for result in made}) == 4
    assert [result.architecture for result in made] == ["x64", "arm64", "x64", "arm64"]


def test_packages_of_zig_and_of_the_wdk_replace_each_other(lab: Lab) -> None:
    with_wdk = packed(lab)
    with_zig = builds.build_package(lab.root, lab.settings.driver(), "debug")
    again = packed(lab)

    assert with_zig.manifest.toolchain == "zig"
    assert with_zig.manifest.experimental == ("catalog", "signature")
    assert again.manifest == with_wdk.manifest


def test_analysis_is_done_once_and_a_build_without_it_needs_nothing_more(lab: Lab) -> None:
    lab.build(analyze=True)
    assert "-property:RunCodeAnalysis=true" in lab.arguments("msbuild")
    logs = lab.place / "wdk" / "debug" / "logs"
    report = json.loads((logs / "analysis.sarif").read_text("utf-8"))
    assert report["version"] == "2.1.0" and report["runs"][0]["results"] == []

    lab.build(analyze=True)
    assert lab.order() == []
    lab.build()
    assert lab.order() == []


def test_analysis_of_what_is_built_already_compiles_it_again(lab: Lab) -> None:
    lab.build()
    lab.build(analyze=True)

    assert lab.order() == ["msbuild"]


def test_findings_break_the_build_and_are_kept(lab: Lab) -> None:
    source = r"C:\src\driver\src\queue.c"
    project = r"[C:\src\driver\downlink.vcxproj]"
    lab.failing(
        "msbuild",
        f"{source}(40,9): error C28182: Dereferencing NULL pointer. 'Entry' contains the same NULL value as 'x' {project}",
        f"{source}(40,9): error C28182: Dereferencing NULL pointer. 'Entry' contains the same NULL value as 'x' {project}",
        f"{source}(51,5): error C6011: Dereferencing NULL pointer 'Queue'. {project}",
        f"{source}(52,5): error C28182: Dereferencing NULL pointer. 'Other' {project}",
    )

    error = refused(lab, analyze=True)

    assert error.message == "code analysis of 'downlink' found 3 defects: C28182 (2), C6011"
    assert "queue.c(40): error C28182" in error.output
    report = json.loads((lab.place / "wdk" / "debug" / "logs" / "analysis.sarif").read_text("utf-8"))
    assert [result["ruleId"] for result in report["runs"][0]["results"]] == ["C28182", "C6011", "C28182"]
    place = report["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "file:///C:/src/driver/src/queue.c"
    assert place["region"] == {"startLine": 40, "startColumn": 9}


@pytest.mark.parametrize("step", ["msbuild", "stampinf", "infverif", "sign image", "inf2cat", "sign catalog"])
def test_a_step_that_fails_leaves_the_older_package_and_nothing_half_made(lab: Lab, step: str) -> None:
    before = packed(lab)
    source = lab.root / "driver" / "src" / "queue.c"
    source.write_bytes(source.read_bytes() + b"\n")
    inf = lab.root / "driver" / "downlink.inf"
    inf.write_text(inf.read_text("utf-8").replace("installation media", "media"), encoding="utf-8")
    lab.failing(step, "something: error: it does not work")

    with pytest.raises(BuildError):
        packed(lab)

    assert package.load_package(before.directory).manifest == before.manifest
    assert not (lab.place / "wdk" / "debug" / "work").exists()
    assert list(lab.place.rglob("*.part")) == []
    # What follows is the whole rest, and no more.
    lab.rows.clear()
    assert packed(lab).path("catalog") is not None
    assert lab.order()[-1] == "signtool" and ("msbuild" in lab.order()) == (step == "msbuild")


def test_a_hang_ends_with_the_deadline_and_leaves_nothing_half_made(lab: Lab) -> None:
    class Hanging:
        """MSBuild that does not end: what the provider raises for it."""

        def __init__(self, inner: object) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def run(self, tool: object, arguments: object, **options: object) -> object:
            if "-target:Rebuild" in arguments:  # type: ignore[operator]
                deadline = options["deadline"]
                assert isinstance(deadline, Deadline) and deadline.remaining <= 5
                raise DeadlineExceededError("'msbuild' did not end within 5 s; its last line was '  port.c'")
            return self.inner.run(tool, arguments, **options)  # type: ignore[attr-defined]

    with pytest.raises(DeadlineExceededError, match="'msbuild' did not end within 5 s"):
        build(
            lab.source,
            "debug",
            lab.place,
            lab.identity,
            provider=Hanging(lab.prepare()),  # type: ignore[arg-type]
            scripts=lab.store,
            deadline=Deadline.after(seconds=5),
        )

    assert not (lab.place / "wdk" / "debug" / "work").exists()
    assert not (lab.place / "wdk" / "debug" / "unsigned").exists()


def test_a_store_that_refuses_the_certificate_says_why(lab: Lab) -> None:
    lab.store.error = ScriptError(
        "The system cannot find the file specified.", code="certificate-not-imported"
    )

    error = refused(lab)

    assert "cannot be put into the store of this user: The system cannot find" in error.message
    assert error.hint is not None and "service account" in error.hint


def test_no_secret_is_in_a_command_a_file_a_log_or_an_exception(
    lab: Lab, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.DEBUG):
        packed(lab)
    lab.store.error = ScriptError("no", code="certificate-not-imported")
    (lab.root / ".cache" / "signing" / "identity.pem").unlink()
    error = refused(lab)
    assert lab.provider is not None and len(lab.store.secrets) == 2

    for secret in lab.store.secrets:
        for needle in (secret["password"], secret["pfx"][:60]):
            assert needle not in caplog.text and needle not in error.render() + repr(error.__cause__)
            for call in lab.provider.calls:
                assert not any(needle in argument for argument in call.arguments)
                assert needle.encode() not in call.stdin
            for path in lab.root.rglob("*"):
                assert not path.is_file() or needle.encode() not in path.read_bytes(), path
    assert "PRIVATE KEY" not in repr(lab.identity)


def test_tools_get_the_environment_without_passwords_of_machines(lab: Lab) -> None:
    lab.host.variables["DOWNLINK_SECRET_LAB_PASSWORD"] = "correct horse"
    lab.build()

    assert lab.provider is not None
    steps = [call for call in lab.provider.calls if call.tool in STEPS and "-version" not in call.arguments]
    assert len(steps) == len(STEPS)
    for call in steps:
        assert call.environment is not None and call.environment["VSLANG"] == "1033"
        assert "DOWNLINK_SECRET_LAB_PASSWORD" not in call.environment


def test_a_package_that_says_another_toolchain_is_made_anew(lab: Lab) -> None:
    path = packed(lab).directory / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"toolchain": "wdk"', '"toolchain": "zig"'), "utf-8")

    assert packed(lab).manifest.toolchain == "wdk"


def test_an_image_that_was_signed_anew_is_packed_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(lab)
    without_pages = sign_image(lab.artefacts("debug", "x64")["image"], lab.identity)
    (lab.place / "wdk" / "debug" / "signed" / "downlink.sys").unlink()
    usual = lab.artefacts
    # The catalog is the same: signatures are no part of what it hashes.
    monkeypatch.setattr(lab, "artefacts", lambda *names: usual(*names) | {"signed": without_pages})

    assert packed(lab).image.read_bytes() == without_pages


def test_an_image_that_signtool_left_alone_is_refused(lab: Lab) -> None:
    lab.rows["sign image"] = lab.usual()["sign image"]
    lab.rows["sign image"].files = {}

    assert "signtool succeeded and 'downlink.sys' carries no signature" in refused(lab).message


def test_a_missing_project_and_an_unknown_architecture_are_named(lab: Lab) -> None:
    with pytest.raises(BuildError, match="cannot build for 'mips'"):
        build(lab.source, "debug", lab.place, lab.identity, architecture="mips", provider=lab.host.provider())
    (lab.root / "driver" / "downlink.vcxproj").unlink()

    assert "has no project 'downlink.vcxproj'" in refused(lab).message
    assert not lab.place.exists()


def test_a_missing_component_is_named_before_msbuild_runs(lab: Lab) -> None:
    lab.host = Host().studio(VS2022, kit=False).kit(26100)

    error = refused(lab)

    assert "MSB8020" in error.message and lab.order() == []


def test_spectre_libraries_are_asked_for_only_where_they_are_needed(lab: Lab) -> None:
    lab.host = Host().studio(VS2022, spectre=("x64",)).kit(26100)
    assert lab.build().image.is_file()

    assert "MSB8040" in refused(lab, architecture="arm64").message


@pytest.mark.skipif(sys.platform == "win32", reason="this host is Windows")
def test_elsewhere_than_on_windows_one_sentence_and_nothing_done(lab: Lab) -> None:
    with pytest.raises(BuildError, match="needs Windows") as caught:
        builds.prepare(lab.settings, None, "wdk", None)
    assert caught.value.hint == "./inv build --toolchain zig" and caught.value.exit_status == 1
    with pytest.raises(BuildError, match="needs Windows"):
        build(lab.source, "debug", lab.place, lab.identity, provider=WindowsProvider())

    assert not lab.place.exists() and not (lab.root / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"analyze": True},
            "'--analyze' is an option of the toolchain 'wdk', and this build is one of 'zig'",
        ),
        ({"wdk": "nuget"}, "'--wdk' is an option of the toolchain 'wdk', and this build is one of 'zig'"),
    ],
)
def test_options_of_the_wdk_are_refused_for_zig(lab: Lab, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        builds.prepare(lab.settings, None, None, None, **options)

    assert caught.value.message == message


def test_an_unknown_way_to_the_wdk_is_refused(lab: Lab) -> None:
    with pytest.raises(DownlinkError, match="no way to the WDK 'choco'"):
        builds.prepare(lab.settings, None, "wdk", None, wdk="choco")
