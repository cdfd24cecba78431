"""Fixtures of the tests of the emulated machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.vm.driver_lab import Built, Station, Stations
    from tests.vm.port_lab import Lab
    from tests.vm.scripted_filter import ScriptedFilter
    from vm.emulated.fltmgr.ports import PortPolicy


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fact(*ids): facts about Windows that the test asserts")


class Labs:
    """Makes laboratories and looks at the end that each of them is clean: no crash, no broken rule unmentioned."""

    def __init__(self) -> None:
        self._labs: list[Lab] = []

    def __call__(self, *, seed: int = 1, policy: PortPolicy | None = None) -> Lab:
        from tests.vm.port_lab import Lab

        lab = Lab(seed=seed, policy=policy)
        self._labs.append(lab)
        return lab

    def close(self) -> None:
        wrong: list[str] = []
        for lab in self._labs:
            if lab.kernel.crash_report is not None:
                wrong.append(f"{lab.kernel.crash_report.name}: {lab.kernel.crash_report.rule}")
            wrong += [f"{v.rule}: {v.message}" for v in lab.kernel.violations]
            lab.close()
        assert not wrong, wrong


@pytest.fixture
def labs() -> Iterator[Labs]:
    """`labs(seed=..., policy=...)` makes a laboratory."""
    factory = Labs()
    yield factory
    factory.close()


@pytest.fixture
def lab(labs: Labs) -> Lab:
    return labs()


@pytest.fixture
def scripted(lab: Lab) -> ScriptedFilter:
    """A loaded filter with one port."""
    from tests.vm.scripted_filter import ScriptedFilter

    return ScriptedFilter(lab).load()


@pytest.fixture(scope="session")
def downlink(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Downlink's own driver as it is built."""
    from tests.vm.driver_lab import built

    return built(tmp_path_factory.mktemp("downlink"))


@pytest.fixture
def stations(downlink: Built) -> Iterator[Stations]:
    """`stations(seed=..., policy=..., settings={...})` makes a machine with Downlink's driver loaded."""
    from tests.vm.driver_lab import Stations

    factory = Stations(downlink)
    yield factory
    factory.close()


@pytest.fixture
def station(stations: Stations) -> Station:
    return stations()
