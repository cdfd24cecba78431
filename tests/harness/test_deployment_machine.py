"""Deployment of the project's own driver to a real emulated machine: both modes, one after the other, and cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.builds import prepare
from harness.config import load
from harness.deployment import Deployment, Plan, UnloadError, deploy, pnputil, remove, services
from harness.package import Package, load_package
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.emulated.machine import EmulatedMachine
from vm.errors import DownlinkError, GuestError
from vm.machine import DeploymentMode

ROOT = Path(__file__).resolve().parents[2]
STORE = "C:\\Windows\\System32\\DriverStore\\FileRepository\\downlink.inf_amd64_"
DRIVERS = "C:\\Windows\\System32\\drivers\\downlink.sys"

PACKAGE, SERVICE = DeploymentMode.PACKAGE, DeploymentMode.SERVICE
BOTH = [PACKAGE, SERVICE]


@pytest.fixture(scope="module")
def package() -> Package:
    return prepare(load(ROOT), None, None, None)()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedMachine]:
    directory = tmp_path_factory.mktemp("machines") / "lab"
    made = EmulatedMachine("lab", directory, {"cache": str(ROOT / ".cache"), "seed": 1})
    made.start(soon(), keep=False)
    yield made
    made.stop(soon())


@pytest.fixture
def guest(machine: EmulatedMachine) -> Iterator[Guest]:
    """The guest without any trace of the driver."""
    with Guest(machine.address(), machine="lab") as guest:
        remove(guest, plan(SERVICE), soon())
        yield guest


def plan(mode: DeploymentMode) -> Plan:
    return replace(Plan.of(load(ROOT).driver(), mode), unload_seconds=10)


def soon() -> Deadline:
    return Deadline.after(seconds=60)


def image_of(guest: Guest) -> str:
    path = services.image_path(guest, plan(SERVICE), soon())
    assert path is not None
    return str(path)


def exists(guest: Guest, path: str) -> bool:
    return guest.size(path, soon()) is not None


def assert_deployed(guest: Guest, mode: DeploymentMode, done: Deployment) -> None:
    """The driver runs, was installed in that mode, and nothing of the other mode is there."""
    assert done.volumes == ("D:", "E:")
    stored = pnputil.stored(guest, plan(mode), soon())
    if mode is PACKAGE:
        assert image_of(guest).startswith(STORE) and image_of(guest).endswith("\\downlink.sys")
        assert len(stored) == 1 and not exists(guest, DRIVERS)
    else:
        assert image_of(guest) == DRIVERS and exists(guest, DRIVERS)
        assert stored == []


def assert_clean(guest: Guest) -> None:
    assert services.runs(guest, plan(SERVICE), soon()) is None
    assert pnputil.stored(guest, plan(SERVICE), soon()) == []
    assert not exists(guest, DRIVERS)
    listed = guest.run(
        'dir /b "C:\\Windows\\System32\\DriverStore\\FileRepository"', deadline=soon(), check=False
    )
    assert "downlink" not in listed.stdout


@pytest.mark.parametrize("mode", BOTH)
def test_a_mode_installs_runs_and_removes_the_driver(
    guest: Guest, package: Package, mode: DeploymentMode
) -> None:
    done = deploy(guest, package, plan(mode), soon())

    assert_deployed(guest, mode, done)
    assert remove(guest, plan(mode), soon()) is True
    assert_clean(guest)
    assert remove(guest, plan(mode), soon()) is False


@pytest.mark.parametrize("first", BOTH)
@pytest.mark.parametrize("second", BOTH)
def test_a_driver_is_replaced_whichever_way_it_came_and_goes(
    guest: Guest, package: Package, first: DeploymentMode, second: DeploymentMode
) -> None:
    deploy(guest, package, plan(first), soon())

    done = deploy(guest, package, plan(second), soon())

    assert_deployed(guest, second, done)
    (removed,) = [step for step in done.steps if step.name == "remove the older driver"]
    assert removed.changed and "unloaded" in removed.detail
    assert ("oem" in removed.detail) == (first is PACKAGE)
    # Either mode's end removes what the other one has made.
    assert remove(guest, plan(first), soon()) is True
    assert_clean(guest)


def test_before_24h2_a_package_puts_its_image_into_the_drivers_directory(
    guest: Guest, package: Package
) -> None:
    key = "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
    build = ["reg", "add", key, "/v", "CurrentBuildNumber", "/t", "REG_SZ", "/f", "/d"]
    guest.run([*build, "20348"], deadline=soon())
    try:
        for _ in range(2):
            done = deploy(guest, package, plan(PACKAGE), soon())
            assert done.volumes == ("D:", "E:")
            assert image_of(guest) == DRIVERS and len(pnputil.stored(guest, plan(PACKAGE), soon())) == 1
        assert_deployed(guest, SERVICE, deploy(guest, package, plan(SERVICE), soon()))
        deploy(guest, package, plan(PACKAGE), soon())
        assert remove(guest, plan(PACKAGE), soon()) is True
        assert_clean(guest)
    finally:
        guest.run([*build, "26100"], deadline=soon())


def test_the_step_of_the_package_mode_tells_the_published_name_and_the_image(
    guest: Guest, package: Package
) -> None:
    done = deploy(guest, package, plan(PACKAGE), soon())

    (step,) = [step for step in done.steps if step.name == "install the package"]
    assert step.changed and step.detail.startswith("oem0.inf, '" + STORE)


class KilledError(Exception):
    """The host ends here."""


class DyingGuest:
    """A guest whose host dies behind the n-th thing that it does; counts from 1."""

    def __init__(self, guest: Guest, last: int) -> None:
        self._guest = guest
        self._left = last
        self.done = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._guest, name)
        if name not in ("run", "put", "put_bytes", "read_bytes", "remove", "verify", "size"):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            result = value(*arguments, **named)
            self.done += 1
            self._left -= 1
            if self._left == 0:
                raise KilledError(name)
            return result

        return call


def spoil(guest: Guest, package: Package, mode: DeploymentMode, last: int) -> int:
    """Deploy and die behind the n-th thing; returns how many were done, fewer than n if it came to its end."""
    dying = DyingGuest(guest, last)
    with suppress(KilledError):
        deploy(dying, package, plan(mode), soon())  # type: ignore[arg-type]
    return dying.done


@pytest.mark.parametrize(
    ("older", "killed", "new"), [(PACKAGE, SERVICE, PACKAGE), (SERVICE, PACKAGE, SERVICE)]
)
def test_a_deployment_that_was_killed_anywhere_is_no_obstacle_to_the_next_one(
    guest: Guest, package: Package, older: DeploymentMode, killed: DeploymentMode, new: DeploymentMode
) -> None:
    deploy(guest, package, plan(older), soon())
    point = 1
    while spoil(guest, package, killed, point) == point:
        done = deploy(guest, package, plan(new), soon())
        assert_deployed(guest, new, done)
        point += 1
    assert point > 15  # so many things are done, and each was the last one once
    assert_deployed(guest, killed, deploy(guest, package, plan(killed), soon()))


@pytest.mark.parametrize("mode", BOTH)
def test_half_a_deployment_is_removed_without_a_trace(
    guest: Guest, package: Package, mode: DeploymentMode
) -> None:
    point = 1
    while spoil(guest, package, mode, point) == point:
        remove(guest, plan(mode), soon())
        assert_clean(guest)
        point += 1
    assert point > 12


@pytest.mark.parametrize("mode", BOTH)
def test_a_removal_that_was_killed_anywhere_can_be_repeated(
    guest: Guest, package: Package, mode: DeploymentMode
) -> None:
    for point in range(1, 50):
        deploy(guest, package, plan(mode), soon())
        dying = DyingGuest(guest, point)
        try:
            remove(dying, plan(mode), soon())  # type: ignore[arg-type]
        except KilledError:
            remove(guest, plan(mode), soon())
            assert_clean(guest)
        else:
            break
    assert point > 5


@pytest.mark.parametrize("mode", BOTH)
def test_a_step_that_fails_stops_the_deployment_and_the_next_one_goes_through(
    guest: Guest, package: Package, mode: DeploymentMode
) -> None:
    names: list[str] = []
    deploy(guest, package, plan(mode), soon(), lambda step: names.append(step.name))
    for name in names:
        with pytest.raises(KilledError):
            deploy(guest, package, plan(mode), soon(), _die_after(name))
        assert_deployed(guest, mode, deploy(guest, package, plan(mode), soon()))


def _die_after(name: str) -> Callable[[Any], None]:
    def on_step(step: Any) -> None:
        if step.name == name:
            raise KilledError(name)

    return on_step


def changed(package: Package, directory: Path, role: str, content: Callable[[bytes], bytes]) -> Package:
    """The package with another file of that role, as a manifest that knows it."""
    import hashlib
    import json
    import shutil

    shutil.copytree(package.directory, directory)
    name = package.entry(role).name
    data = content((directory / name).read_bytes())
    (directory / name).write_bytes(data)
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    for file in manifest["files"]:
        if file["name"] == name:
            file.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return load_package(directory)


def test_a_package_that_windows_refuses_says_why_with_the_section_of_its_log(
    guest: Guest, package: Package, tmp_path: Path
) -> None:
    broken = changed(package, tmp_path / "broken", "inf", lambda data: data + b"\r\n; changed\r\n")

    with pytest.raises(GuestError) as caught:
        deploy(guest, broken, plan(PACKAGE), soon())

    assert (
        "a file was changed after the catalog was made (pnputil returned 0xE000024B)" in caught.value.message
    )
    text = caught.value.render()
    assert "./inv clean, then ./inv build" in text
    assert ">>>  [Setup Import Driver Package - C:\\Downlink\\package\\downlink.inf]" in text
    assert "The hash of 'downlink.inf' is not in 'downlink.cat'" in text
    assert text.count(">>>  [") == 1
    assert_clean(guest)
    assert_deployed(guest, PACKAGE, deploy(guest, package, plan(PACKAGE), soon()))


def test_a_driver_that_hangs_in_its_unload_is_left_alone_in_both_modes(
    machine: EmulatedMachine, guest: Guest, package: Package
) -> None:
    for mode in BOTH:
        deploy(guest, package, plan(mode), soon())
        recorded = Refusing(guest)
        with pytest.raises(UnloadError, match="refused to be unloaded"):
            deploy(recorded, package, plan(mode), soon())  # type: ignore[arg-type]
        assert recorded.unloads == 1 and recorded.others == []
        assert_deployed(guest, mode, deploy(guest, package, plan(mode), soon()))


class Refusing:
    """A guest whose filter refuses to be unloaded; keeps what was tried against it afterwards."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self.unloads = 0
        self.others: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._guest, name)

    def run(self, command: Any, **named: Any) -> Any:
        if command[:2] == ["fltmc", "unload"]:
            self.unloads += 1
            result = self._guest.run(["cmd", "/c", "exit", "1"], **named)
            return replace(result, stdout="Unload failed with error: 0x801f0010", command="fltmc unload")
        if self.unloads:
            self.others.append(" ".join(command))
        return self._guest.run(command, **named)


def test_a_mode_can_be_chosen_for_every_machine(tmp_path: Path) -> None:
    for text, mode in (
        ("", SERVICE),
        ('deployment = "package"\n', PACKAGE),
        ('deployment = "service"\n', SERVICE),
    ):
        toml = (ROOT / "harness.toml").read_text(encoding="utf-8")
        kind = '[machines.emulated]\nkind = "emulated"\n'
        assert kind in toml
        (tmp_path / "harness.toml").write_text(toml.replace(kind, kind + text), encoding="utf-8")
        settings = load(tmp_path)
        made = settings.create_machine(None, settings.driver())
        assert made.abilities.deployment is mode
        from harness.choices import plan_for

        assert plan_for(settings.driver(), made).mode is mode


def test_a_mode_that_does_not_exist_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    toml = (ROOT / "harness.toml").read_text(encoding="utf-8")
    (tmp_path / "harness.toml").write_text(
        toml.replace('kind = "emulated"', 'kind = "emulated"\ndeployment = "packages"'), encoding="utf-8"
    )

    with pytest.raises(DownlinkError) as caught:
        load(tmp_path)

    assert "did you mean 'package'?" in caught.value.render()
