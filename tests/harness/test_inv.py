"""`inv` and its bootstrap: what is made when, and what is repaired. Installing itself is replaced by a script."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import bootstrap

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="inv is a POSIX script; inv.cmd calls the same bootstrap"
)

FAKE_VENV = """#!/bin/sh
# Stands for the interpreter that makes environments: says what it was asked, then does it or not.
case "$*" in
*version_info*) exit 0 ;;
*"-m venv"*)
    echo "venv" >> "$LOG"
    if [ -n "${NO_ENSUREPIP:-}" ]; then echo "Error: No module named ensurepip"; exit 1; fi
    for last; do :; done
    mkdir -p "$last/bin"
    cp "$0" "$last/bin/python"
    ;;
*"-m pip"*)
    echo "pip" >> "$LOG"
    [ -z "${SLOW:-}" ] || sleep "$SLOW"
    [ -z "${NO_INDEX:-}" ] || { echo "ERROR: Could not find a version of unicorn"; exit 1; }
    ;;
*"-m harness"*) shift 3; echo "invoke $*" ;;
*) exec "$REAL" "$@" ;;
esac
"""


class Checkout:
    """A copy of what `inv` needs, with interpreters that only tell what they were asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "harness").mkdir(parents=True)
        shutil.copy(ROOT / "inv", root / "inv")
        shutil.copy(ROOT / "harness" / "bootstrap.py", root / "harness" / "bootstrap.py")
        (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
        self.fake = root / "python3-fake"
        self.fake.write_text(FAKE_VENV, encoding="utf-8")
        self.fake.chmod(0o755)
        # The bootstrap calls the resolved interpreter that runs it; let that be the fake one.
        script = (root / "harness" / "bootstrap.py").read_text(encoding="utf-8")
        line = "base = os.path.realpath(sys.executable)"
        assert line in script
        script = script.replace(line, f"base = {str(self.fake)!r}")
        (root / "harness" / "bootstrap.py").write_text(script, encoding="utf-8")

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "LOG": str(self.root / "log"), "REAL": sys.executable, **extra}

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.root / "inv"), *arguments],
            env=self.environment(DOWNLINK_PYTHON=str(self.fake), **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def inv(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **extra)
        out, err = process.communicate(timeout=SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def log(self) -> list[str]:
        path = self.root / "log"
        return path.read_text(encoding="utf-8").split() if path.exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "a checkout")


def test_the_first_call_makes_the_environment_and_the_second_only_runs(checkout: Checkout) -> None:
    first = checkout.inv("test", "--select", "not slow")
    second = checkout.inv("--list")

    assert first.stdout.startswith(f"invoke --search-root {checkout.root} test --select not slow")
    assert len(first.stderr.splitlines()) == 2
    assert second.stdout.strip().endswith("--list") and second.stderr == ""
    assert checkout.log() == ["venv", "pip"]


def test_a_changed_project_file_installs_again_without_starting_over(checkout: Checkout) -> None:
    checkout.inv("--list")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")

    checkout.inv("--list")
    checkout.inv("--list")

    assert checkout.log() == ["venv", "pip", "pip"]


def test_a_checkout_that_moved_makes_its_environment_anew(checkout: Checkout, tmp_path: Path) -> None:
    checkout.inv("--list")
    shutil.move(checkout.root, tmp_path / "moved")
    checkout.root = tmp_path / "moved"
    script = checkout.root / "harness" / "bootstrap.py"
    script.write_text(script.read_text(encoding="utf-8").replace("a checkout", "moved"), encoding="utf-8")
    checkout.fake = checkout.root / "python3-fake"

    assert checkout.inv("--list").returncode == 0
    assert checkout.log() == ["venv", "pip", "venv", "pip"]


def test_missing_ensurepip_says_what_to_install_and_leaves_nothing(checkout: Checkout) -> None:
    done = checkout.inv("test", NO_ENSUREPIP="1")

    assert done.returncode == 1
    assert "'venv' or 'ensurepip' module is missing" in done.stderr
    assert "apt install python3-venv" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (checkout.root / ".venv").exists()


def test_an_index_that_does_not_answer_is_shown_and_leaves_nothing(checkout: Checkout) -> None:
    done = checkout.inv("test", NO_INDEX="1")

    assert done.returncode == 1
    assert "Could not find a version of unicorn" in done.stderr
    assert not (checkout.root / ".venv").exists()
    assert checkout.inv("--list").returncode == 0


@pytest.mark.parametrize("how", ["interrupt", "kill"])
def test_an_installation_that_was_cut_off_is_repaired_by_the_next_call(checkout: Checkout, how: str) -> None:
    process = checkout.start("test", SLOW="30")
    wait_until(lambda: checkout.log() == ["venv", "pip"])
    os.killpg(process.pid, 2 if how == "interrupt" else 9)
    _, err = process.communicate(timeout=SECONDS)

    assert process.returncode != 0
    assert "Traceback" not in err
    done = checkout.inv("--list")
    assert done.returncode == 0 and "invoke" in done.stdout
    assert checkout.log() == ["venv", "pip", "venv", "pip"]


def test_an_update_that_was_cut_off_is_repaired_from_nothing(checkout: Checkout) -> None:
    checkout.inv("--list")
    (checkout.root / "pyproject.toml").write_text("[project]\nname = 'x'\n", encoding="utf-8")
    process = checkout.start("test", SLOW="30")
    wait_until(lambda: checkout.log() == ["venv", "pip", "pip"])
    os.killpg(process.pid, 9)
    process.communicate(timeout=SECONDS)
    # Back to what was installed before: only the missing stamp tells that the installation is in pieces.
    (checkout.root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")

    assert checkout.inv("--list").returncode == 0
    assert checkout.log() == ["venv", "pip", "pip", "venv", "pip"]


def test_concurrent_calls_install_once_and_both_run(checkout: Checkout) -> None:
    processes = [checkout.start("--list", SLOW="1") for _ in range(3)]
    outputs = [process.communicate(timeout=SECONDS) for process in processes]

    assert all(out.strip().endswith("--list") for out, _ in outputs)
    assert checkout.log() == ["venv", "pip"]


def test_no_python_that_is_new_enough_is_a_sentence(checkout: Checkout, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname", "cat", "cmp"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    old = tools / "python3"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)

    done = subprocess.run(
        [str(checkout.root / "inv"), "test"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )

    assert done.returncode == 1
    assert "Python 3.11 or newer was not found" in done.stderr
    assert "hint:" in done.stderr


def test_the_stamp_that_inv_compares_is_the_one_that_bootstrap_writes() -> None:
    printed = subprocess.run(
        ["sh", "-c", 'printf \'%s\\n\' "$1" && cat -- "$1/pyproject.toml"', "sh", str(ROOT)],
        capture_output=True,
        check=True,
        timeout=SECONDS,
    ).stdout

    assert printed == bootstrap.stamp()


def wait_until(condition: Callable[[], bool]) -> None:
    import time

    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)
