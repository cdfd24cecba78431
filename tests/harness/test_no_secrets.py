"""Nothing that a run writes holds the machine's password: not as it is, and not in an encoding of it."""

from __future__ import annotations

import base64
import io
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from harness import config, doctor, machines, verbs
from harness.builds import prepare
from harness.console import Console
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import DownlinkError
from vm.machine import GuestAddress, Machine

CHECKOUT = Path(__file__).resolve().parents[2]
ALLOWED = frozenset({"state.json", "ntlm-accounts"})
"""Files of a running machine that hold its password, readable by their owner alone."""

SUITE = """
import os, subprocess, sys

def test_everything_that_a_test_can_print():
    print(dict(os.environ))
    print(subprocess.run(["whoami", "/all"], capture_output=True, text=True))
    print(sys.argv, os.getcwd(), file=sys.stderr)
    local = dict(os.environ)
    assert not local, "the report shows locals and output of a test that failed"
"""


@dataclass
class Lab:
    """A checkout in a temporary directory with a real emulated machine, and what came out of it."""

    root: Path
    out: io.StringIO = field(default_factory=io.StringIO)
    err: io.StringIO = field(default_factory=io.StringIO)
    passwords: set[str] = field(default_factory=set)
    machine: Machine | None = None
    """The machine that the last command brought up."""

    def __post_init__(self) -> None:
        for name in ("driver", "harness", "vm", ".cache"):
            (self.root / name).symlink_to(CHECKOUT / name, target_is_directory=True)
        text = (CHECKOUT / config.FILE).read_text(encoding="utf-8")
        (self.root / config.FILE).write_text(text.replace('"tests/driver"', '"suites"'), encoding="utf-8")
        (self.root / "suites").mkdir()
        (self.root / "suites" / "test_leaks.py").write_text(SUITE, encoding="utf-8")
        self.configuration = config.load(self.root)
        self.package = prepare(config.load(CHECKOUT), None, None, None)
        self.console = Console(self.out, self.err, color=False)

    def deploy(self) -> Machine:
        """Deploy, and return the machine that stays up."""
        verbs.deploy(self.configuration, verbs.Choices(), self.package, self.console)
        assert self.machine is not None
        return self.machine

    def shown(self) -> str:
        return self.out.getvalue() + self.err.getvalue()


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tmp_path)
    for name in ("start", "restore"):
        original = getattr(machines.HeldMachine, name)

        def remember(
            held: machines.HeldMachine, original: Callable[..., GuestAddress] = original, **options: bool
        ) -> GuestAddress:
            address = original(held, **options)
            made.passwords.add(address.credentials.password)
            made.machine = held.machine
            return address

        monkeypatch.setattr(machines.HeldMachine, name, remember)
    yield made
    if made.machine is not None:
        made.machine.stop(Deadline.after(seconds=20))


def needles(password: str) -> set[bytes]:
    """What to search for: the password as text and in UTF-16, and each of these in base64, in hex and for a URL."""
    found = {quote(password, safe="").encode()}
    for data in (password.encode(), password.encode("utf-16-le")):
        found |= {data, data.hex().encode(), data.hex().upper().encode()}
        # Behind 0, 1 and 2 other bytes, less the characters that those and the following bytes take part in.
        found |= {base64.b64encode(bytes(shift) + data)[4 if shift else 0 : -4] for shift in range(3)}
    return found


def leaks(root: Path, passwords: set[str]) -> list[Path]:
    """Files below `root` that hold one of the passwords; links lead out of the run and are not followed."""
    wanted = [needle for password in passwords for needle in needles(password)]
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if any(needle in path.read_bytes() for needle in wanted)]


def assert_silent(text: str, passwords: set[str]) -> None:
    for password in passwords:
        for needle in needles(password):
            assert needle not in text.encode(), f"a password is in what was shown: {text[:200]}"


def test_the_search_finds_every_form_that_it_claims_to(tmp_path: Path) -> None:
    password = "vZ-8q_TtY0nbK2w1xQe7RfAa"
    for number, text in enumerate(
        (
            password.encode(),
            password.encode("utf-16-le"),
            base64.b64encode(f"lab:{password}".encode()),
            base64.b64encode(f"$p = '{password}'".encode("utf-16-le")),
            quote(f"http://lab:{password}@host").encode(),
        )
    ):
        (tmp_path / f"{number}").write_bytes(b"before " + text + b" after")
    (tmp_path / "clean").write_bytes(b"nothing")
    assert sorted(path.name for path in leaks(tmp_path, {password})) == ["0", "1", "2", "3", "4"]


def test_a_run_with_a_failed_test_writes_no_password(lab: Lab) -> None:
    status = verbs.test(lab.configuration, verbs.Choices(), lab.package, lab.console)
    assert status == 1
    run = lab.root / "runs" / "latest"
    names = {path.name for path in run.resolve().rglob("*")}
    assert {"journal.jsonl", "junit.xml", "report.html"} <= names
    assert "whoami" in (run / "journal.jsonl").read_text(encoding="utf-8"), "the test must have printed"
    assert len(lab.passwords) == 1
    assert leaks(lab.root, lab.passwords) == []
    assert_silent(lab.shown(), lab.passwords)


def test_a_machine_that_stays_keeps_its_password_in_private_files_alone(lab: Lab) -> None:
    machine = lab.deploy()
    found = leaks(lab.root, lab.passwords)
    assert {path.name for path in found} <= ALLOWED
    assert "state.json" in {path.name for path in found}
    if sys.platform != "win32":
        assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    doctor.run(lab.root, None, lab.console, fix=True)
    assert "guest.testsigning: on" in lab.shown()
    assert_silent(lab.shown(), lab.passwords)

    machine.stop(Deadline.after(seconds=20))
    assert leaks(lab.root, lab.passwords) == []


def test_no_exception_and_no_repr_holds_a_password(lab: Lab) -> None:
    machine = lab.deploy()
    address = machine.address()
    deadline = Deadline.after(seconds=30)
    said = [repr(address), repr(machine), repr(lab.configuration)]
    with Guest(address, machine="emulated") as guest:
        said.append(repr(guest))
        with pytest.raises(DownlinkError) as failed:
            guest.run(["reg", "query", r"HKLM\No\Such\Key"], deadline=deadline)
        said += _told(failed.value)
        machine.stop(deadline)
        with pytest.raises(DownlinkError) as lost:
            guest.run("ver", deadline=deadline)
        said += _told(lost.value)
    with Guest(address, machine="emulated") as guest:
        with pytest.raises(DownlinkError) as unreachable:
            guest.put_bytes(b"", r"C:\file", deadline)
        said += _told(unreachable.value)
    for text in said:
        assert_silent(text, lab.passwords)


def _told(error: DownlinkError) -> list[str]:
    """Everything that an exception tells of itself, its causes and what they were raised from."""
    return ["".join(traceback.format_exception(error)), repr(error), error.render()]
