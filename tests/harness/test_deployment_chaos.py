"""Deployment in both modes while the emulated guest does what real ones do: it passes, or says the right sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.builds import prepare
from harness.config import load
from harness.deployment import Plan, UnloadError, deploy, remove
from harness.package import Package
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine
from vm.errors import DownlinkError, GuestError
from vm.machine import DeploymentMode

ROOT = Path(__file__).resolve().parents[2]
BOTH = [DeploymentMode.PACKAGE, DeploymentMode.SERVICE]


@pytest.fixture(scope="module")
def package() -> Package:
    return prepare(load(ROOT), None, None, None)()


Lab = Callable[..., EmulatedMachine]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Starts a machine with a fault; it is stopped afterwards."""
    made: list[EmulatedMachine] = []

    def start(chaos: str, **more: str) -> EmulatedMachine:
        settings = {"cache": str(ROOT / ".cache"), "seed": 1, "chaos": chaos, **more}
        made.append(EmulatedMachine("lab", tmp_path / "machines" / "lab", settings))
        made[-1].start(soon(), keep=False)
        return made[-1]

    yield start
    for machine in made:
        machine.stop(soon())


@contextmanager
def guest_of(machine: EmulatedMachine) -> Iterator[Guest]:
    with Guest(machine.address(), machine="lab") as guest:
        yield guest


def plan(mode: DeploymentMode, unload_seconds: float = 20) -> Plan:
    return replace(Plan.of(load(ROOT).driver(), mode), unload_seconds=unload_seconds)


def soon() -> Deadline:
    return Deadline.after(seconds=60)


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("chaos", ["load-race", "load-race@1-3", "delete-pending", "delete-pending:8"])
def test_what_windows_needs_a_moment_for_is_waited_for(
    lab: Lab, package: Package, mode: DeploymentMode, chaos: str
) -> None:
    with guest_of(lab(chaos)) as guest:
        for _ in range(2):
            assert deploy(guest, package, plan(mode), soon()).volumes == ("D:", "E:")
        assert remove(guest, plan(mode), soon()) is True


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("chaos", ["pnputil:259@*", "pnputil:3010@*"])
def test_an_answer_of_pnputil_counts_less_than_what_it_has_done(
    lab: Lab, package: Package, mode: DeploymentMode, chaos: str
) -> None:
    with guest_of(lab(chaos)) as guest:
        for _ in range(2):
            assert deploy(guest, package, plan(mode), soon()).volumes == ("D:", "E:")
        assert remove(guest, plan(mode), soon()) is True
        assert remove(guest, plan(mode), soon()) is False


def test_a_restart_by_pnputil_is_told_and_the_next_deployment_goes_through(
    lab: Lab, package: Package
) -> None:
    mode = DeploymentMode.PACKAGE
    with guest_of(lab("pnputil:1641@1")) as guest:
        before = guest.boot_identity(soon())
        with pytest.raises(DownlinkError) as caught:
            deploy(guest, package, plan(mode), soon())
        assert not isinstance(caught.value, UnloadError)
        guest.wait_for_boot(before, soon())
        assert deploy(guest, package, plan(mode), soon()).volumes == ("D:", "E:")


@pytest.mark.parametrize("mode", BOTH)
def test_a_refused_unload_is_told_and_nothing_else_is_tried(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    with guest_of(lab("unload-refused@1")) as guest:
        deploy(guest, package, plan(mode), soon())

        with pytest.raises(UnloadError, match="refused to be unloaded") as caught:
            deploy(guest, package, plan(mode), soon())

        assert "vm.restore" in (caught.value.hint or "")
        assert "fltmc unload" not in guest.run("fltmc filters", deadline=soon()).stdout
        assert "Downlink" in guest.run("fltmc filters", deadline=soon()).stdout


@pytest.mark.parametrize("mode", BOTH)
def test_a_hung_unload_ends_with_its_deadline_and_a_restored_machine_is_as_good_as_new(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    machine = lab("unload-hangs@1")
    with guest_of(machine) as guest:
        deploy(guest, package, plan(mode), soon())
        with pytest.raises(UnloadError, match="hangs in its unload"):
            remove(guest, plan(mode, unload_seconds=1.5), soon())
    machine.restore(soon(), keep=False)
    with guest_of(machine) as guest:
        assert deploy(guest, package, plan(mode), soon()).volumes == ("D:", "E:")


@pytest.mark.parametrize("mode", BOTH)
def test_a_guest_without_test_signing_is_refused_before_anything_is_changed(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    with guest_of(lab("testsigning-off")) as guest:
        with pytest.raises(GuestError, match="'testsigning' is off"):
            deploy(guest, package, plan(mode), soon())
        assert guest.size("C:\\Downlink\\package\\downlink.sys", soon()) is None


def test_a_clock_before_the_certificate_is_told_by_the_package_mode(lab: Lab, package: Package) -> None:
    with guest_of(lab("clock-off:400000000")) as guest:
        with pytest.raises(GuestError, match="0x800B0101") as caught:
            deploy(guest, package, plan(DeploymentMode.PACKAGE), soon())
        assert "clock" in (caught.value.hint or "")


@pytest.mark.parametrize("mode", BOTH)
def test_nothing_is_read_of_the_tools_that_another_language_changes(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    other = DeploymentMode.SERVICE if mode is DeploymentMode.PACKAGE else DeploymentMode.PACKAGE
    with guest_of(lab("", language="de")) as guest:
        assert "Veröffentlichter Name" not in guest.run("pnputil /enum-drivers", deadline=soon()).stdout
        for each in (mode, mode, other, mode):
            assert deploy(guest, package, plan(each), soon()).volumes == ("D:", "E:")
        assert remove(guest, plan(other), soon()) is True
        assert remove(guest, plan(other), soon()) is False
        assert "oem" not in guest.run("pnputil /enum-drivers", deadline=soon()).stdout


@pytest.mark.parametrize("mode", BOTH)
def test_a_machine_that_was_stopped_and_started_again_takes_a_package_as_before(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    machine = lab("")
    with guest_of(machine) as guest:
        deploy(guest, package, plan(mode), soon())
    machine.stop(soon())
    machine.start(soon(), keep=False)
    with guest_of(machine) as guest:
        assert deploy(guest, package, plan(mode), soon()).volumes == ("D:", "E:")
        assert remove(guest, plan(mode), soon()) is True


@pytest.mark.parametrize("mode", BOTH)
def test_a_guest_that_was_restarted_keeps_what_was_installed(
    lab: Lab, package: Package, mode: DeploymentMode
) -> None:
    with guest_of(lab("")) as guest:
        deploy(guest, package, plan(mode), soon())
        before = guest.boot_identity(soon())
        guest.run(["shutdown", "/r", "/t", "0"], deadline=soon())
        guest.wait_for_boot(before, soon())
        guest.run(["fltmc", "load", "Downlink"], deadline=soon())  # a demand start: Windows does not load it
        assert remove(guest, plan(mode), soon()) is True
        assert remove(guest, plan(mode), soon()) is False
