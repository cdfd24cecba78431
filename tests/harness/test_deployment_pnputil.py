"""What is read of pnputil: packages in listings of any language, exit codes, and the section of the guest's log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deployment import Plan, UnloadError, deploy, pnputil, remove
from harness.package import Package, load_package
from harness.symptoms.installing import PNPUTIL
from tests.harness.remote_doubles import Answer, ScriptedGuest, sample_package
from tests.harness.test_deployment import ABSENT, INSTANCES, RUNNING, healthy
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError, PackageError
from vm.machine import DeploymentMode

PLAN = Plan(
    *("Sample", "Sample Instance", "370001.5", "FSFilter Activity Monitor"),
    mode=DeploymentMode.PACKAGE,
    inf="sample.inf",
    provider="Sample Provider",
    race_seconds=0.3,
)
INF = """
[Version]
Provider = "Sample Provider"
[DefaultInstall.NTamd64.Services]
AddService = Sample,,Sample.Service
[Values]
HKR,"Parameters\\Instances","DefaultInstance",0x00000000,"Sample Instance"
HKR,"Parameters\\Instances\\Sample Instance","Altitude",0x00000000,"370001.5"
"""
ENGLISH = """Microsoft PnP Utility

Published Name:     oem2.inf
Original Name:      prnms009.inf
Provider Name:      Microsoft
Class Name:         Printers
Class GUID:         {4d36e979-e325-11ce-bfc1-08002be10318}
Driver Version:     06/21/2006 10.0.26100.1
Signer Name:        Microsoft Windows

Published Name:     oem13.inf
Original Name:      Sample.inf
Provider Name:      Sample Provider
Class Name:         ActivityMonitor
Class GUID:         {b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}
Driver Version:     11/21/2026 0.1.0.0
Signer Name:        Sample Test 1234

Published Name:     oem4.inf
Original Name:      sample.inf
Provider Name:      Somebody Else
Class Name:         ActivityMonitor
"""
GERMAN = """Microsoft-PnP-Hilfsprogramm

Veröffentlichter Name:     oem7.inf
Originalname:      sample.inf
Anbietername:      Sample Provider
Klassenname:         Aktivitätsüberwachung
"""
FRENCH = """Utilitaire PnP Microsoft

Nom publié :         oem8.inf
Nom d'origine :      sample.inf
Nom du fournisseur : Sample Provider
"""
JAPANESE = "Microsoft PnP ユーティリティ\n\n公開名\uff1a     OEM9.INF\n元の名前\uff1a      SAMPLE.INF\nプロバイダー名\uff1a      sample provider\n"
STORE = "\\SystemRoot\\System32\\DriverStore\\FileRepository\\sample.inf_amd64_0123456789abcdef\\sample.sys"
IMAGE = STORE.replace("\\SystemRoot", "C:\\Windows")
NOT_FOUND: Answer = (1, "ERROR: The system was unable to find the specified registry key or value.")
LOG = """[Device Install Log]
     OS Version = 10.0.26100

>>>  [Setup Import Driver Package - C:\\other\\other.inf]
>>>  Section start 2026/11/21 03:00:00.000
      cmd: pnputil /add-driver C:\\other\\other.inf
     sto: fine
<<<  Section end 2026/11/21 03:00:01.000
<<<  [Exit status: SUCCESS]


>>>  [Setup Import Driver Package - C:\\Downlink\\package\\sample.inf]
>>>  Section start 2026/11/21 04:00:00.000
      cmd: pnputil /add-driver C:\\Downlink\\package\\sample.inf /install
!!!  sig: Verifying file against specific (valid) catalog failed.
!!!  sto: Failed to import driver package. Error = 0xE000024B
<<<  Section end 2026/11/21 04:00:01.000
<<<  [Exit status: FAILURE(0xe000024b)]

"""


def soon() -> Deadline:
    return Deadline.after(seconds=20)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A package with an INF that names what the plan does, and a catalog; the guest is a script, nobody looks in."""
    import hashlib
    import json

    directory = sample_package(tmp_path / "package")
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    for name, role, data in (("sample.inf", "inf", INF.encode()), ("sample.cat", "catalog", b"0")):
        (directory / name).write_bytes(data)
        manifest["files"] = [file for file in manifest["files"] if file["name"] != name]
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"].append({"name": name, "role": role, "size": len(data), "sha256": digest})
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return load_package(directory)


def guest_with(package: Package, **more: Answer | Callable[[str], Answer]) -> ScriptedGuest:
    """A guest whose pnputil installs the package; the service is there from then on."""
    guest = healthy(**more)
    content = package.image.read_bytes()

    def install(line: str) -> Answer:
        guest.files[IMAGE] = content
        return (0, "Veröffentlichter Name: oem5.inf\n")

    def image_path(line: str) -> Answer:
        if IMAGE not in guest.files or not line.endswith("ImagePath"):
            return NOT_FOUND
        return (0, f"HKEY_LOCAL_MACHINE\\X\n    ImagePath    REG_EXPAND_SZ    {STORE}\n")

    guest.answers.setdefault("pnputil /add-driver", install)
    guest.answers["reg query"] = more.get("reg_query", image_path)
    return guest


@pytest.mark.parametrize(
    ("listing", "published"),
    [
        (ENGLISH, ["oem13.inf"]),
        (GERMAN, ["oem7.inf"]),
        (FRENCH, ["oem8.inf"]),
        (JAPANESE, ["oem9.inf"]),
        ("", []),
    ],
)
def test_our_packages_are_found_in_a_listing_of_any_language(listing: str, published: list[str]) -> None:
    assert pnputil.find_packages(listing, "sample.inf", "Sample Provider") == published


def test_without_a_provider_every_package_of_the_inf_counts() -> None:
    assert pnputil.find_packages(ENGLISH, "sample.inf", None) == ["oem13.inf", "oem4.inf"]
    assert pnputil.find_packages(ENGLISH, "example.inf", None) == []


def test_a_package_is_installed_checked_and_loaded(package: Package) -> None:
    guest = guest_with(package)

    done = deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    (step,) = [step for step in done.steps if step.name == "install the package"]
    assert step.changed and step.detail == f"oem5.inf, '{IMAGE}'"
    assert "pnputil /add-driver C:\\Downlink\\package\\sample.inf /install" in guest.commands
    assert not any(line.startswith(("sc create", "reg add")) for line in guest.commands)
    assert guest.commands[-2:] == ["fltmc load Sample", "fltmc instances -f Sample"]


def test_an_older_package_is_unloaded_first_then_uninstalled_then_its_service_is_waited_for(
    package: Package,
) -> None:
    states = iter([RUNNING, ABSENT])
    guest = guest_with(package, sc_query=lambda _: next(states))
    guest.answers["pnputil /enum-drivers"] = (0, ENGLISH)

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    changes = [line for line in guest.commands if line.startswith(("fltmc", "pnputil", "sc delete"))]
    assert changes[:4] == [
        "fltmc unload Sample",
        "pnputil /enum-drivers",
        "pnputil /delete-driver oem13.inf /uninstall",
        "pnputil /add-driver C:\\Downlink\\package\\sample.inf /install",
    ]


def test_force_is_used_only_when_pnputil_asks_for_it(package: Package) -> None:
    for code in (0xE000023D, 0x800F023D):
        guest = guest_with(package)
        guest.answers["pnputil /enum-drivers"] = (0, ENGLISH)
        guest.answers["pnputil /delete-driver oem13.inf /uninstall"] = (code, "in use")
        guest.answers["pnputil /delete-driver oem13.inf /uninstall /force"] = (0, "")

        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

        assert sum("/force" in line for line in guest.commands) == 1


def test_a_package_that_went_away_meanwhile_counts_as_removed(package: Package) -> None:
    guest = guest_with(package)
    guest.answers["pnputil /enum-drivers"] = (0, ENGLISH)
    guest.answers["pnputil /delete-driver"] = (0xE000023C, "not an installed OEM INF")

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_a_removal_that_only_a_restart_finishes_marks_the_machine(package: Package) -> None:
    guest = healthy(sc_query=(0, "STATE : 1  STOPPED"))
    guest.answers["pnputil /enum-drivers"] = (0, ENGLISH)
    guest.answers["pnputil /delete-driver"] = (3010, "System reboot is needed")

    with pytest.raises(UnloadError, match="only a restart of the guest removes it") as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "vm.restore" in (caught.value.hint or "")
    assert not any("/add-driver" in line for line in guest.commands)


def test_a_restart_that_nothing_is_left_for_is_no_obstacle(package: Package) -> None:
    listings = iter([ENGLISH, ""])
    guest = guest_with(package)
    guest.answers["pnputil /enum-drivers"] = lambda _: (0, next(listings))
    guest.answers["pnputil /delete-driver"] = (3010, "System reboot is needed")

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_a_removal_that_hangs_is_not_tried_again(package: Package) -> None:
    def hang(line: str) -> Answer:
        raise DeadlineExceededError(f"'{line}' did not end within 30 s")

    guest = guest_with(package)
    guest.answers["pnputil /enum-drivers"] = (0, ENGLISH)
    guest.answers["pnputil /delete-driver"] = hang

    with pytest.raises(UnloadError, match=r"removal of the package 'oem13\.inf' hangs"):
        remove(guest, PLAN, soon())  # type: ignore[arg-type]

    assert sum("/delete-driver" in line for line in guest.commands) == 1


@pytest.mark.parametrize(
    "row", [row for row in PNPUTIL if row.code not in (259, 3010, 1641, 0xE000023D)], ids=lambda row: row.id
)
def test_a_refused_package_says_why_and_what_to_do_in_either_form_of_the_code(
    package: Package, row: object
) -> None:
    code, cause, cure = row.code, row.cause, row.cure  # type: ignore[attr-defined]
    forms = [code, 0x800F0000 | code & 0xFFFF] if code >> 16 == 0xE000 else [code]
    for form in forms:
        guest = guest_with(package)
        guest.answers["pnputil /add-driver"] = (form, "Failed to add driver package: …")
        with pytest.raises(GuestError) as caught:
            deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]
        assert cause in caught.value.message and caught.value.hint == cure
        assert caught.value.exit_code == form
        assert guest.commands[-1].startswith("pnputil /add-driver")


def test_an_unknown_failure_tells_what_pnputil_said_and_where_to_look(package: Package) -> None:
    guest = guest_with(package)
    guest.answers["pnputil /add-driver"] = (0xE0000203, "Failed to add driver package: No such thing.\n")

    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "No such thing. (pnputil returned 0xE0000203)" in caught.value.message
    assert "setupapi.dev.log" in (caught.value.hint or "")


def test_the_causes_hold_the_section_that_this_attempt_has_written_and_no_other(package: Package) -> None:
    guest = guest_with(package)
    mine = LOG.index(">>>  [Setup Import Driver Package - C:\\Downlink")
    guest.files[pnputil.LOG] = LOG[:mine].encode()

    def refuse(line: str) -> Answer:
        guest.files[pnputil.LOG] = LOG.encode()
        return (0xE000024B, "Failed")

    guest.answers["pnputil /add-driver"] = refuse
    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    text = caught.value.render()
    assert "Verifying file against specific (valid) catalog failed" in text
    assert "other.inf" not in text and text.count("<<<  [Exit status") == 1


def test_of_a_log_that_has_grown_by_much_the_end_is_read(package: Package) -> None:
    guest = guest_with(package)
    noise = "     sto: something else\n" * 40000

    def refuse(line: str) -> Answer:
        guest.files[pnputil.LOG] = (noise + LOG).encode()
        return (0xE000024B, "Failed")

    guest.answers["pnputil /add-driver"] = refuse
    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "Verifying file against specific (valid) catalog failed" in caught.value.render()


def test_a_log_that_was_begun_anew_is_read_from_its_beginning(package: Package) -> None:
    guest = guest_with(package)
    guest.files[pnputil.LOG] = LOG.encode() * 3

    def refuse(line: str) -> Answer:
        guest.files[pnputil.LOG] = LOG.encode()
        return (0xE000024B, "Failed")

    guest.answers["pnputil /add-driver"] = refuse
    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "Verifying file against specific (valid) catalog failed" in caught.value.render()


def test_an_attempt_that_wrote_nothing_has_no_section_of_an_older_one(package: Package) -> None:
    guest = guest_with(package)
    guest.files[pnputil.LOG] = LOG.encode()
    guest.answers["pnputil /add-driver"] = (5, "Access is denied.")

    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert caught.value.causes == ()


def test_the_last_section_is_cut_at_its_end_and_in_the_middle_if_it_is_long() -> None:
    section = pnputil.last_section(LOG)
    assert section.startswith(">>>  [Setup Import Driver Package - C:\\Downlink")
    assert section.endswith("<<<  [Exit status: FAILURE(0xe000024b)]")
    long = LOG.replace(
        "!!!  sig:", "\n".join(f"     sto: line {number}" for number in range(500)) + "\n!!!  sig:"
    )
    shown = pnputil.last_section(long).splitlines()
    assert len(shown) == 61 and "(447 lines)" in shown[30]
    assert shown[0].startswith(">>>") and shown[-1].startswith("<<<")
    assert pnputil.last_section("nothing was logged") == ""
    # A section without an end is one whose process died.
    assert pnputil.last_section(LOG[: LOG.rindex("<<<  Section end")]).count("!!!") == 2


def test_nothing_newer_is_fine_if_the_service_runs_this_image(package: Package) -> None:
    guest = guest_with(package)
    guest.files[IMAGE] = package.image.read_bytes()
    guest.answers["pnputil /add-driver"] = (259, "Published Name: oem5.inf")

    done = deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    (step,) = [step for step in done.steps if step.name == "install the package"]
    assert not step.changed


def test_nothing_newer_with_another_image_or_without_a_service_is_an_error(package: Package) -> None:
    guest = guest_with(package)
    guest.files[IMAGE] = b"MZ older"
    guest.answers["pnputil /add-driver"] = (259, "Published Name: oem5.inf")
    with pytest.raises(GuestError, match="does not run the image of this package") as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]
    assert "an older package is still in the driver store" in (caught.value.hint or "")

    guest = guest_with(package)
    guest.answers["pnputil /add-driver"] = (259, "")
    with pytest.raises(GuestError, match="made no service 'Sample', which says that there is nothing newer"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_a_restart_that_is_asked_for_is_told_and_one_that_has_begun_is_an_error(package: Package) -> None:
    guest = guest_with(package)
    guest.files[IMAGE] = package.image.read_bytes()
    guest.answers["pnputil /add-driver"] = (3010, "Published Name: oem5.inf")
    done = deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]
    assert any("pnputil asks for a restart" in step.detail for step in done.steps)

    guest.answers["pnputil /add-driver"] = (1641, "")
    with pytest.raises(GuestError, match="begun to restart the guest"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["catalog", "inf"])
def test_a_package_that_lacks_a_file_is_refused_before_the_guest_is_asked_anything(
    package: Package, role: str
) -> None:
    from dataclasses import replace

    files = tuple(file for file in package.manifest.files if file.role != role)
    guest = guest_with(package)

    with pytest.raises(PackageError, match=f"no file of the role '{role}'"):
        deploy(guest, replace(package, manifest=replace(package.manifest, files=files)), PLAN, soon())  # type: ignore[arg-type]

    assert guest.commands == []


@pytest.mark.parametrize("what", ["service", "instance", "altitude"])
def test_an_inf_with_other_names_than_the_configuration_is_refused_before_anything_is_touched(
    package: Package, what: str
) -> None:
    from dataclasses import replace

    guest = guest_with(package)

    with pytest.raises(PackageError, match=f"names the {what} "):
        deploy(guest, package, replace(PLAN, **{what: "1.5"}), soon())  # type: ignore[arg-type]

    assert guest.commands == []


def test_a_guest_that_cannot_list_its_packages_is_told(package: Package) -> None:
    guest = guest_with(package)
    guest.answers["pnputil /enum-drivers"] = (1, "Usage")

    with pytest.raises(GuestError, match="does not list its driver packages"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_instances_are_those_of_the_plan() -> None:
    assert PLAN.instance in INSTANCES and PLAN.altitude in INSTANCES
