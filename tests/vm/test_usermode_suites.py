"""The suites themselves, run over the user-mode services against a double of kernel and driver.

They must pass where every promise is kept, and turn red where one is broken, with a text that says which.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.client.binding import ENVIRONMENT_VARIABLE, PATIENCE_VARIABLE
from tests.vm.usermode_double import KernelDouble
from vm.emulated.usermode.server import UserModeServer

MODELLED = tuple(
    f"test_{subject}.py"
    for subject in ("connect", "disconnect", "events", "files", "one_way", "queues", "unload")
)
"""Suites whose whole subject the double models; the others ask for a file system and a schedule of their own."""

ROOT = Path(__file__).resolve().parents[2]
SUITES = ROOT / "tests" / "driver"
GUEST_PACKAGES = ("pytest", "hypothesis")


def run(kernel: KernelDouble, *arguments: str, patience: float = 10.0) -> subprocess.CompletedProcess[str]:
    with UserModeServer(kernel) as server:
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--strict-markers",
            "-p",
            "no:cacheprovider",
            "--tb=short",
        ]
        command += ["-c", os.devnull, "--rootdir", str(SUITES), *arguments]
        environment = {
            **os.environ,
            ENVIRONMENT_VARIABLE: server.environment,
            PATIENCE_VARIABLE: str(patience),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        environment.pop("PYTEST_ADDOPTS", None)
        return subprocess.run(
            command, cwd=SUITES, env=environment, capture_output=True, text=True, timeout=180, check=False
        )


def test_the_suites_pass_where_every_promise_is_kept() -> None:
    kernel = KernelDouble()
    result = run(kernel, *MODELLED)
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed.group(1)) >= 80
    assert "skipped" not in result.stdout
    assert kernel.connected == 0, "the suites left connections behind"


@pytest.mark.parametrize(
    ("fault", "suite", "says"),
    [
        (
            "no-close-client-port",
            "test_disconnect.py",
            "no record of the end of the connection made as a mark",
        ),
        ("shared-queue", "test_queues.py", "is missing, and no message said that it was dropped"),
        ("two-way", "test_one_way.py", "assert S_OK"),
        ("silent-drops", "test_queues.py::test_a_full_queue_loses_only_its_own_records", "no message came"),
        ("own-records", "test_events.py", "test_a_client_s_own_operations_are_left_out_by_default"),
        ("io-hangs", "test_queues.py", "something in the kernel waits that should not"),
    ],
)
def test_a_broken_promise_turns_the_suites_red_and_the_text_says_which(
    fault: str, suite: str, says: str
) -> None:
    result = run(KernelDouble(faults=frozenset({fault})), "-x", suite, patience=0.5)
    assert result.returncode == 1, result.stdout
    assert says in result.stdout


def test_every_test_of_the_suites_cites_a_fact_that_exists() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in SUITES.glob("test_*.py")}
    assert len(sources) >= 6
    for path, source in sources.items():
        tests = re.findall(r"((?:^@.*\n(?:^ .*\n|^\].*\n|^\).*\n)*)*)^def (test_\w+)", source, re.M)
        assert tests
        for decorators, name in tests:
            cited = re.search(r"@pytest\.mark\.fact\(([^)]*)\)", decorators)
            assert cited is not None, f"'{name}' in '{path.name}' cites no fact"
            ids = re.findall(r'"([^"]+)"', cited.group(1))
            assert ids
            assert all(re.fullmatch(r"[A-Z]{1,2}\d{1,2}", fact) for fact in ids), f"'{name}' cites {ids}"


def test_the_suites_import_only_what_is_in_the_guest() -> None:
    for path in SUITES.glob("*.py"):
        for module in re.findall(r"^\s*(?:from|import) ([\w.]+)", path.read_text(encoding="utf-8"), re.M):
            top = module.partition(".")[0]
            own = (SUITES / f"{top}.py").is_file()
            allowed = top in sys.stdlib_module_names or top in GUEST_PACKAGES or own
            allowed = allowed or module.startswith("harness.client")
            assert allowed, f"'{path.name}' imports '{module}'"
