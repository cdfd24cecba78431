"""Deployment: the steps, what they send to the guest, and how each failure reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deployment import Plan, StepResult, UnloadError, deploy, remove
from harness.package import Package, load_package
from harness.remote.faults import ConnectionLostError
from tests.harness.remote_doubles import Answer, ScriptedGuest, sample_package
from vm.deadline import Deadline
from vm.errors import DeadlineExceededError, GuestError, PackageError

PLAN = Plan("Sample", "Sample Instance", "370001.5", "FSFilter Activity Monitor", race_seconds=0.3)
INSTANCES = """
Volume Name                              Altitude        Instance Name       Frame   SprtFtrs  VlStatus
-------------------------------------  ------------  ----------------------  -----   --------  --------
D:                                       370001.5     Sample Instance          0     00000003
\\Device\\HarddiskVolume3                370001.5     Sample Instance          0     00000003
"""
ABSENT: Answer = (1060, "[SC] EnumQueryServicesStatus:OpenService FAILED 1060:")
RUNNING: Answer = (
    0,
    "SERVICE_NAME: Sample\n        TYPE : 2  FILE_SYSTEM_DRIVER\n        STATE : 4  RUNNING\n",
)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return load_package(sample_package(tmp_path / "package"))


def healthy(**more: Answer | Callable[[str], Answer]) -> ScriptedGuest:
    return ScriptedGuest(
        {
            "bcdedit": (0, "identifier              {current}\ntestsigning             Yes\n"),
            "sc query": ABSENT,
            "reg query": (1, "ERROR: The system was unable to find the specified registry key or value."),
            "fltmc instances": (0, INSTANCES),
            **{name.replace("_", " "): answer for name, answer in more.items()},
        }
    )


def soon() -> Deadline:
    return Deadline.after(seconds=20)


def test_a_deployment_runs_its_steps_in_order_and_reports_each_once(package: Package) -> None:
    guest, steps = healthy(), list[StepResult]()

    done = deploy(guest, package, PLAN, soon(), steps.append)  # type: ignore[arg-type]

    assert [step.name for step in steps] == [
        "check test signing",
        "trust the certificate",
        "remove the older driver",
        "copy the package",
        "create the service",
        "load the driver",
        "see that it is attached",
    ]
    assert done.steps == tuple(steps)
    assert done.volumes == ("D:", "\\Device\\HarddiskVolume3")
    assert all(step.detail for step in steps)


def test_the_image_goes_to_the_drivers_directory_and_the_whole_package_beside_it(
    package: Package,
) -> None:
    guest = healthy()

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert guest.files["C:\\Windows\\System32\\drivers\\sample.sys"] == package.image.read_bytes()
    assert {"C:\\Downlink\\package\\" + name for name in ("sample.sys", "sample.inf", "sample.cer")} <= set(
        guest.files
    )


def test_both_instances_keys_are_written_with_altitude_and_flags(package: Package) -> None:
    guest = healthy()

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    lines = "\n".join(guest.commands)
    for parent in ("Sample", "Sample\\Parameters"):
        key = f"HKLM\\SYSTEM\\CurrentControlSet\\Services\\{parent}\\Instances"
        assert f'reg add {key} /v DefaultInstance /t REG_SZ /d "Sample Instance" /f' in lines
        assert f'reg add "{key}\\Sample Instance" /v Altitude /t REG_SZ /d 370001.5 /f' in lines
        assert f'reg add "{key}\\Sample Instance" /v Flags /t REG_DWORD /d 0x0 /f' in lines


def test_a_trusted_certificate_is_not_added_again(package: Package) -> None:
    guest = healthy()

    steps = deploy(guest, package, PLAN, soon()).steps  # type: ignore[arg-type]

    assert not any("-addstore" in line for line in guest.commands)
    assert not steps[1].changed


def test_an_untrusted_certificate_is_added_to_both_stores(package: Package) -> None:
    guest = healthy()
    guest.answers["certutil -store"] = (0x80090011, "object was not found")

    steps = deploy(guest, package, PLAN, soon()).steps  # type: ignore[arg-type]

    added = [line for line in guest.commands if "-addstore" in line]
    assert added == [
        "certutil -f -addstore Root C:\\Downlink\\package\\sample.cer",
        "certutil -f -addstore TrustedPublisher C:\\Downlink\\package\\sample.cer",
    ]
    assert steps[1].changed


@pytest.mark.parametrize(
    "output", ["testsigning             No\n", "testsigning             Nein\n", "nx     OptIn\n"]
)
def test_a_guest_without_test_signing_is_refused_before_anything_is_changed(
    package: Package, output: str
) -> None:
    guest = healthy(bcdedit=(0, output))

    with pytest.raises(GuestError, match="'testsigning' is off") as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "bcdedit /set testsigning on" in (caught.value.hint or "")
    assert guest.commands == ["bcdedit /enum {current}"]
    assert not guest.files


def test_a_running_older_driver_is_unloaded_then_deleted_then_waited_for(package: Package) -> None:
    key = "reg query HKLM\\SYSTEM\\CurrentControlSet\\Services\\Sample"
    answers = iter([(0, "still there"), (0, "still there"), (1, "")])
    guest = healthy(sc_query=RUNNING, reg_query=lambda line: next(answers) if line == key else (1, ""))

    steps = deploy(guest, package, PLAN, soon()).steps  # type: ignore[arg-type]

    watched = ("fltmc unload", "sc delete", "sc create", key)
    order = [line for line in guest.commands if line.startswith(watched) and not line.endswith("ImagePath")]
    assert order[:5] == ["fltmc unload Sample", "sc delete Sample", key, key, key]
    assert order[5].startswith("sc create Sample")
    assert steps[2].changed and steps[2].detail == "unloaded, service deleted"


def test_a_service_that_is_still_marked_for_deletion_is_waited_for(package: Package) -> None:
    answers = iter([(1072, "marked for deletion"), (1072, "marked for deletion"), (0, "")])
    guest = healthy(sc_create=lambda _: next(answers))

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert sum(line.startswith("sc create") for line in guest.commands) == 3


def test_a_service_that_stays_marked_for_deletion_is_the_error_that_is_told(package: Package) -> None:
    guest = healthy(sc_create=(1072, "The specified service has been marked for deletion."))

    with pytest.raises(GuestError, match=r"returned 1072: .*marked for deletion"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_an_image_that_is_still_referenced_is_waited_for(package: Package) -> None:
    answers = iter([(1, "Load failed with error: 0x80070420"), (0, "")])
    guest = healthy(fltmc_load=lambda _: next(answers))

    deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert guest.commands.count("fltmc load Sample") == 2


def test_a_driver_that_stays_loaded_is_the_error_that_is_told(package: Package) -> None:
    guest = healthy(fltmc_load=(1, "Load failed with error: 0x80070420"))

    with pytest.raises(GuestError, match="the driver is loaded already"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_any_other_failure_of_a_load_is_told_at_once(package: Package) -> None:
    guest = healthy(fltmc_load=(1, "Load failed with error: 0x80070241"))

    with pytest.raises(GuestError):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert guest.commands.count("fltmc load Sample") == 1


def test_a_refused_unload_is_never_tried_again_and_asks_for_a_restore(package: Package) -> None:
    guest = healthy(sc_query=RUNNING, fltmc_unload=(1, "Unload failed with error: 0x801f0010\nDo not detach"))

    with pytest.raises(UnloadError, match="refused to be unloaded") as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "vm.restore" in (caught.value.hint or "")
    assert sum(line.startswith("fltmc unload") for line in guest.commands) == 1
    assert not any(line.startswith("sc delete") for line in guest.commands)


def test_an_unload_that_hangs_is_told_apart_from_one_that_fails(package: Package) -> None:
    def hang(line: str) -> Answer:
        raise DeadlineExceededError(f"'{line}' did not end within 30 s")

    guest = healthy(sc_query=RUNNING, fltmc_unload=hang)

    with pytest.raises(UnloadError, match="hangs in its unload"):
        remove(guest, PLAN, soon())  # type: ignore[arg-type]


def test_a_filter_that_went_away_meanwhile_counts_as_unloaded(package: Package) -> None:
    guest = healthy(sc_query=RUNNING, fltmc_unload=(1, "Unload failed with error: 0x801f0013"))

    assert remove(guest, PLAN, soon()) is True  # type: ignore[arg-type]


def test_removing_what_is_not_there_changes_nothing() -> None:
    guest = healthy()

    assert remove(guest, PLAN, soon()) is False  # type: ignore[arg-type]
    assert guest.commands == ["sc query Sample"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (
            "Load failed with error: 0x800705aa\nInsufficient resources",
            "DriverEntry failed with STATUS_INSUFFICIENT",
        ),
        (
            "Load failed with error: 0x80070002\nThe system cannot find",
            "service key, its image or its 'Instances' key",
        ),
        ("Load failed with error: 0x80070241\nWindows cannot verify", "signature of the image is not valid"),
        ("Load failed with error: 0x801f0011\n", "another filter has the same altitude"),
        ("Load failed with error: 0x80070005 (0xC0000022)\n", "STATUS_ACCESS_DENIED"),
    ],
)
def test_a_failed_load_says_why_in_words_and_by_name(package: Package, output: str, words: str) -> None:
    guest = healthy(fltmc_load=(1, output))

    with pytest.raises(GuestError) as caught:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]

    assert "the driver 'Sample' did not load" in caught.value.message
    assert words in caught.value.message
    assert "0x80" in caught.value.message


def test_a_loaded_filter_without_instances_is_an_error(package: Package) -> None:
    guest = healthy(fltmc_instances=(0, INSTANCES.split("D:")[0]))

    with pytest.raises(GuestError, match="attached to no volume"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


def test_a_package_without_a_certificate_is_refused_before_the_guest_is_asked_anything(
    package: Package,
) -> None:
    guest = healthy()
    files = tuple(file for file in package.manifest.files if file.role != "certificate")

    with pytest.raises(PackageError, match="no file of the role 'certificate'"):
        deploy(guest, replace(package, manifest=replace(package.manifest, files=files)), PLAN, soon())  # type: ignore[arg-type]

    assert guest.commands == []


@pytest.mark.parametrize(
    ("command", "step"),
    [("fltmc load", "load the driver"), ("fltmc instances", "see that it is attached")],
)
def test_a_guest_that_restarts_in_a_step_is_told_with_the_step(
    package: Package, command: str, step: str
) -> None:
    guest = healthy()

    def lose(line: str) -> Answer:
        guest.boot = "8"
        raise ConnectionLostError("the connection was lost")

    guest.answers[command] = lose
    with pytest.raises(GuestError, match=f"went down during the step '{step}' and has restarted") as raised:
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]
    assert "the connection was lost" in str(raised.value.causes[0])
    assert sum(line.startswith(command) for line in guest.commands) == 1


def test_a_guest_that_shuts_down_in_the_load_is_told_apart_from_a_load_that_fails(package: Package) -> None:
    guest = healthy(fltmc_load=(1115, "A system shutdown is in progress."))
    guest.comes_back = False

    with pytest.raises(GuestError, match="during the step 'load the driver' and did not come back"):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "command",
    [
        *("bcdedit", "certutil -store", "sc query", "sc create", "reg add"),
        *("fltmc load", "fltmc instances"),
    ],
)
@pytest.mark.parametrize("acted", [False, True])
def test_a_connection_that_is_lost_in_a_step_costs_one_more_attempt(
    package: Package, command: str, acted: bool
) -> None:
    """The guest may or may not have acted on the command whose answer was lost; neither may break the deployment."""
    guest = healthy()
    usual = guest.answers.get(command, (0, ""))
    already = {"sc create": (1073, "exists"), "fltmc load": (0x80070420, "failed with error: 0x80070420")}
    lost: list[str] = []

    def lose_once(line: str) -> Answer:
        if not lost:
            lost.append(line)
            raise ConnectionLostError("the connection was lost")
        if acted and command in already:
            return already[command]
        return usual(line) if callable(usual) else usual

    guest.answers[command] = lose_once

    assert deploy(guest, package, PLAN, soon()).volumes  # type: ignore[arg-type]
    assert lost and guest.reconnects == 1


def test_a_connection_that_is_lost_twice_in_a_step_is_the_error(package: Package) -> None:
    def lose(line: str) -> Answer:
        raise ConnectionLostError("the connection was lost")

    guest = healthy(fltmc_load=lose)
    with pytest.raises(ConnectionLostError):
        deploy(guest, package, PLAN, soon())  # type: ignore[arg-type]
    assert guest.reconnects == 2
