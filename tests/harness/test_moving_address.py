"""Verbs that talk to a running guest follow it when its address changes: they ask the machine, and keep no address."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import config, lifecycle, listen, verbs
from harness.client.protocol import MASK_FILES
from harness.console import Console
from harness.package import Package
from harness.remote.guest import Guest
from tests.harness import doors as moving
from tests.harness import remote_lab
from tests.harness.remote_lab import Harness, soon


class Moving(io.StringIO):
    """An output that does something once, when a text is written."""

    def __init__(self, text: str, act: Callable[[], None]) -> None:
        super().__init__()
        self._text = text
        self._act = act
        self.done = False

    def write(self, text: str) -> int:
        if self._text in text and not self.done:
            self.done = True
            self._act()
        return super().write(text)


@pytest.fixture(scope="module")
def package() -> Package:
    return remote_lab.package()


@pytest.fixture
def doors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[moving.Doors]]:
    made = moving.through_doors(monkeypatch)
    yield made
    for each in made:
        each.close()


@pytest.fixture
def emulated(tmp_path: Path, doors: list[moving.Doors], monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    made = Harness(tmp_path / "checkout", {"kind": "emulated", "seed": 9})
    # One object, because only the one that started the process can see its end at once.
    machine = made.configuration.create_machine(None, made.configuration.driver())
    monkeypatch.setattr(config.Configuration, "create_machine", lambda *_: machine)
    yield made
    machine.stop(soon())


def test_deploy_follows(emulated: Harness, package: Package, doors: list[moving.Doors]) -> None:
    out = Moving("trust the certificate", lambda: moving.move(doors))

    verbs.deploy(emulated.configuration, verbs.Choices(), lambda: package, Console(out, out, color=False))

    assert out.done and "'Downlink' runs on the machine 'far'" in out.getvalue()


def test_a_shell_follows(
    emulated: Harness, doors: list[moving.Doors], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifecycle.start(emulated.configuration, None, emulated.console)
    out = Moving("first", lambda: moving.move(doors))
    monkeypatch.setattr(sys, "stdin", io.StringIO("echo first\nver\necho last\n"))
    monkeypatch.setattr(sys, "stdout", out)

    status = lifecycle.shell(emulated.configuration, None, "", emulated.console)

    assert out.done and status == 0 and "last" in out.getvalue(), emulated.said


def test_listening_asks_the_machine(
    emulated: Harness, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbs.deploy(emulated.configuration, verbs.Choices(), lambda: package, emulated.console)
    given: list[object] = []
    original = Guest.__init__

    def remember(self: Guest, address: object, **options: object) -> None:
        given.append(address)
        original(self, address, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Guest, "__init__", remember)
    driver = emulated.configuration.driver()
    wanted = listen.Request("\\NoSuchPort", MASK_FILES, "", False, 0)
    with pytest.raises(Exception, match="is not loaded"):
        listen.listen(emulated.configuration, None, driver, wanted, emulated.console)

    (address,) = given
    assert callable(address)
