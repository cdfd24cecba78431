"""Every fault of the guest against the whole way to a verdict, deployed in the mode 'package' (see chaos_lab.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.package import Package
from tests.harness import chaos_lab
from tests.harness.chaos_lab import CASES, Case


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return chaos_lab.package(tmp_path_factory.mktemp("built") / "package")


@pytest.mark.parametrize("case", CASES, ids=chaos_lab.describe)
def test_a_fault_is_survived_or_told(
    case: Case, built: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos_lab.judge(case, chaos_lab.run(tmp_path, "package", case, built, monkeypatch))
