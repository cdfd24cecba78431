"""Faults by configuration: the setting is read strictly, and schedules, records and threads are as promised."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vm.deadline import Deadline
from vm.emulated.guest.chaos.fault import ALWAYS, Fault, Schedule
from vm.emulated.guest.chaos.plan import Chaos, known_faults, parse
from vm.emulated.guest.settings import GuestSettings
from vm.emulated.machine import EmulatedMachine
from vm.errors import ConfigurationError, MachineError


def test_a_setting_is_a_string_or_a_list_of_faults_with_values_and_schedules() -> None:
    text = "drop-idle:2, latency:50ms,sftp-slow:64k@* ,reset-receive@3, unload-refused@2+,http-500@2-4,max-shells"
    faults = parse(text)
    assert [(fault.name, fault.value, fault.schedule) for fault in faults] == [
        ("drop-idle", 2.0, ALWAYS),
        ("latency", 0.05, ALWAYS),
        ("sftp-slow", 65536.0, ALWAYS),
        ("reset-receive", 0, Schedule(3, 3)),
        ("unload-refused", 0, Schedule(2, None)),
        ("http-500", 0, Schedule(2, 4)),
        ("max-shells", 2, ALWAYS),
    ]
    assert [type(fault) for fault in parse([part.strip() for part in text.split(",")])] == [
        type(fault) for fault in faults
    ]
    assert parse("") == parse(" ") == parse(()) == ()
    assert parse("clock-off:1d")[0].value == 86400.0


@pytest.mark.parametrize(
    ("setting", "said", "hint"),
    [
        ("drop-idel:2", "the unknown fault 'drop-idel'", "did you mean 'drop-idle'?"),
        ("xyzzy", "the unknown fault 'xyzzy'", "known are address-changes, bad-seal"),
        ("latency:fast", "'fast' of the fault 'latency' is not a time such as 50ms or 2s", None),
        ("latency:-1", "'-1' of the fault 'latency' is not a time", None),
        ("latency:2k", "'2k' of the fault 'latency' is not a time", None),
        ("latency:1h", "'1h' of the fault 'latency' is above 30", None),
        ("bad-seal:3", "'bad-seal' takes no value", None),
        ("bad-seal@0", "'@0' of the fault 'bad-seal' is no schedule", "write @3, @3+, @2-4 or @*"),
        ("bad-seal@2+-3", "is no schedule", None),
        ("bad-seal@4-2", "ends before it begins", None),
        ("bad-seal,bad-seal@2", "names the fault 'bad-seal' twice", None),
        ("bad-seal,,latency", "an empty name", None),
        (["bad-seal", 3], "holds '3', which is not the name of a fault", None),
        (["bad-seal,latency"], "unknown fault 'bad-seal,latency'", None),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting: Any, said: str, hint: str | None) -> None:
    with pytest.raises(ConfigurationError) as error:
        parse(setting)
    assert said in error.value.message
    assert hint is None or hint in (error.value.hint or "")


def test_there_are_many_faults_and_each_says_what_is_real_about_it() -> None:
    faults = known_faults()
    assert len(faults) >= 30
    for name, fault in faults.items():
        assert "windows-lab" in (fault.__doc__ or ""), name
        assert any(place in vars(base) for base in fault.__mro__[:-2] for place in _places()), name


def test_every_fault_has_a_test_that_names_it() -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_guest_chaos*.py")
    )
    missing = [name for name in known_faults() if f'"{name}' not in tests]
    assert missing == []


def _places() -> set[str]:
    own = {"attach", "strikes", "__init__", "__module__", "__doc__"}
    return {name for name, value in vars(Fault).items() if callable(value)} - own


class _Every(Fault):
    name = "every"

    def breaks_seal(self) -> bool:
        return self.strikes("here")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [1]),
        (Schedule(3, 3), [3]),
        (Schedule(2, None), [2, 3, 4, 5]),
        (Schedule(2, 4), [2, 3, 4]),
        (ALWAYS, [1, 2, 3, 4, 5]),
    ],
)
def test_a_fault_acts_on_the_occasions_of_its_schedule_and_is_recorded(
    schedule: Schedule | None, expected: list[int]
) -> None:
    chaos = Chaos([_Every(schedule=schedule)])
    struck = [number for number in range(1, 6) if chaos.breaks_seal()]
    assert struck == expected
    (report,) = chaos.report()
    assert (report["fault"], report["occasions"]) == ("every", 5)
    assert [(firing["occasion"], firing["detail"]) for firing in report["firings"]] == [
        (number, "here") for number in expected
    ]


def test_without_faults_every_place_says_that_nothing_happens() -> None:
    chaos = Chaos()
    sink = object()
    assert not chaos
    assert chaos.output(sink) is sink  # type: ignore[comparison-overlap,arg-type]
    assert (chaos.on_input(b"x"), chaos.receive_bytes(9), chaos.code_page(437)) == (b"x", 9, 437)
    assert (chaos.on_upload(5), chaos.exit_code(7), chaos.on_load("x"), chaos.report()) == (5, 7, None, [])


def test_whoever_a_fault_holds_up_is_released_at_a_restart_and_held_again_after_it() -> None:
    chaos = Chaos()
    chaos.resume()
    held = threading.Thread(target=chaos.pause, args=(60,))
    held.start()
    chaos.release()
    chaos.resume()
    held.join(5)
    assert not held.is_alive()
    began = time.monotonic()
    chaos.pause(0.05)
    assert time.monotonic() - began >= 0.05


def test_no_thread_of_a_fault_outlives_the_machine() -> None:
    chaos = Chaos()
    happened: list[str] = []
    chaos.run(lambda: happened.append("at once"))
    chaos.run(lambda: happened.append("late"), delay_seconds=60)
    chaos.run(lambda: chaos.pause(60))
    chaos.close()
    chaos.run(lambda: happened.append("after the end"))
    assert happened == ["at once"]
    assert not [
        thread for thread in threading.enumerate() if thread.name == "guest chaos" and thread.is_alive()
    ]


def test_the_same_seed_makes_the_same_choices() -> None:
    def sizes(seed: int) -> list[int]:
        chaos = Chaos(parse("receive-chunks:1000", seed))
        return [chaos.receive_bytes(5000) for _ in range(20)]

    assert sizes(1) == sizes(1) != sizes(2)
    assert max(sizes(1)) <= 1000


def test_a_guest_with_a_wrong_setting_is_not_made(tmp_path: Path, own_machine: Any) -> None:
    with pytest.raises(ConfigurationError, match="unknown fault 'frobnicate'"):
        own_machine(chaos="frobnicate")


def test_the_machine_tells_over_its_control_channel_what_fired(tmp_path: Path) -> None:
    cache = str(Path(__file__).parents[3] / ".cache")
    wrong = EmulatedMachine("lab", tmp_path / "wrong", {"chaos": "drop-idel"})
    with pytest.raises(ConfigurationError, match="unknown fault 'drop-idel'"):
        wrong.start(Deadline.after(seconds=60))
    assert not (tmp_path / "wrong" / "state.json").exists()
    machine = EmulatedMachine("lab", tmp_path / "lab", {"cache": cache, "chaos": "secure-boot,bad-seal@7"})
    with pytest.raises(MachineError):
        machine.chaos()
    machine.start(Deadline.after(seconds=60), keep=False)
    try:
        secure, seal = machine.chaos()
    finally:
        machine.stop(Deadline.after(seconds=30))
    assert (secure["fault"], secure["firings"][0]["fault"]) == ("secure-boot", "secure-boot")
    assert (seal["fault"], seal["occasions"], seal["firings"]) == ("bad-seal", 0, [])


def test_settings_are_not_changed_for_others(tmp_path: Path) -> None:
    settings = GuestSettings("lab", "x", tmp_path, tmp_path)
    changed = Chaos(parse("max-shells:1,drop-idle:3,secure-boot")).settings(settings)
    assert (changed.quotas.max_shells_per_user, changed.idle_drop_seconds, changed.secure_boot) == (
        1,
        3.0,
        True,
    )
    assert (settings.quotas.max_shells_per_user, settings.secure_boot) == (30, False)
