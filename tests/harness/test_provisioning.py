"""Machines made, put on record, listed and removed from the command line, for kinds with and without images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from harness import config, provisioning
from harness.console import Console
from vm.errors import MachineError
from vm.managed import Source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> config.Configuration:
    return replace(config.load(ROOT), root=tmp_path)


@pytest.fixture
def console() -> Console:
    return Console(io.StringIO(), io.StringIO())


def test_an_emulated_machine_is_not_made_from_an_image_and_takes_no_checkpoints(
    settings: config.Configuration, console: Console
) -> None:
    with pytest.raises(MachineError, match="'emulated' are not made from an image"):
        provisioning.create(settings, "emulated", Source(iso="x.iso"), console)
    with pytest.raises(MachineError, match="'emulated' take no checkpoints") as caught:
        provisioning.checkpoint(settings, "emulated", "mine", console)
    assert "one clean state" in str(caught.value.hint)
    with pytest.raises(MachineError, match="needs a name"):
        provisioning.checkpoint(settings, "emulated", " ", console)


def test_a_machine_is_removed_only_after_a_yes(
    settings: config.Configuration, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = tmp_path / ".machines" / "emulated" / "c"
    drive.mkdir(parents=True)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(MachineError, match="was not removed") as caught:
        provisioning.destroy(settings, "emulated", False, console)
    assert "--yes" in str(caught.value.hint) and drive.is_dir()
    provisioning.destroy(settings, "emulated", True, console)
    assert not drive.parent.exists()
    provisioning.destroy(settings, "emulated", True, console)


def test_what_is_not_ours_is_not_removed(settings: config.Configuration, console: Console) -> None:
    local = replace(settings.machine("emulated"), name="here", kind=config.KINDS["local"])
    with pytest.raises(MachineError, match="not ours to remove"):
        provisioning.destroy(replace(settings, machines={"here": local}), "here", True, console)


def test_the_list_names_every_machine_with_its_state(settings: config.Configuration) -> None:
    out = io.StringIO()
    provisioning.show(settings, "emulated", Console(out, out))
    assert out.getvalue().split() == ["emulated", "emulated", "absent"]
