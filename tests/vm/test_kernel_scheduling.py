"""Schedules of compiled driver code: races are found, locks prevent them, and a seed repeats a run exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.kernel_bench import Bench
from vm.emulated.kernel.kernel import DeadlockError
from vm.emulated.kernel.scheduler import Preemption
from vm.emulated.kernel.threads import Model, Wait

EAGER = Preemption(instructions=(3, 40), exports=(1, 4))


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


def race(out: Path, routine: str, seed: int, times: int = 60) -> tuple[int, list[tuple[int, str]]]:
    """Two threads run the routine; the counter afterwards, and the trace of (thread, export)."""
    bench = Bench.make(seed=seed, preemption=EAGER)
    bench.load_probe(out)
    kernel = bench.kernel
    trace: list[tuple[int, str]] = []
    kernel.scheduler.on_call = lambda thread, export, _arguments, _value: trace.append(
        (thread.id, export.name)
    )

    def worker() -> Model:
        yield bench.driver(routine, times)

    def main() -> Model:
        yield bench.driver("SetCounter", 0)
        threads = [kernel.start_system_thread(worker(), f"worker {i}") for i in range(2)]
        for thread in threads:
            kernel.objects.reference(kernel.objects.get(thread.address))
        for thread in threads:
            yield Wait((thread.address,))
            kernel.objects.dereference(kernel.objects.get(thread.address))
        return (yield bench.driver("SetCounter", 0))

    return bench.model(main()), trace


def test_two_threads_without_a_lock_lose_updates(out: Path) -> None:
    assert {race(out, "IncrementUnlocked", seed)[0] for seed in range(1, 5)} != {120}


def test_different_seeds_lose_different_updates(out: Path) -> None:
    assert len({race(out, "IncrementUnlocked", seed)[0] for seed in range(1, 9)}) > 2


@pytest.mark.parametrize("routine", ["IncrementLocked", "IncrementUnderMutex"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_lock_keeps_every_update(out: Path, routine: str, seed: int) -> None:
    assert race(out, routine, seed)[0] == 120


def test_the_same_seed_gives_the_same_trace_and_another_one_does_not(out: Path) -> None:
    first, second, other = (race(out, "IncrementLocked", seed) for seed in (7, 7, 8))
    assert first == second
    assert first[1] != other[1]


def test_two_threads_that_take_two_mutexes_crosswise_are_reported_as_a_deadlock() -> None:
    bench = Bench.make(preemption=EAGER)
    first, second = bench.room(0x38), bench.room(0x38)
    kernel = bench.kernel

    def crosswise(a: int, b: int) -> Model:
        yield bench.call("ExAcquireFastMutex", a)
        yield bench.call("KeQueryTimeIncrement")
        event = bench.room(0x18)
        yield bench.call("KeInitializeEvent", event, 0, 0)
        delay = bench.put((-10_000).to_bytes(8, "little", signed=True))
        yield bench.call("KeDelayExecutionThread", 0, 0, delay)
        yield bench.call("ExAcquireFastMutex", b)

    def main() -> Model:
        yield bench.call("ExInitializeFastMutex", first)
        yield bench.call("ExInitializeFastMutex", second)
        threads = [
            kernel.start_system_thread(crosswise(first, second), "one"),
            kernel.start_system_thread(crosswise(second, first), "two"),
        ]
        yield Wait([thread.address for thread in threads], wait_all=True)

    with pytest.raises(DeadlockError) as caught:
        bench.model(main())
    message = str(caught.value)
    assert "'one' in a wait for the fast mutex" in message
    assert "'two' in a wait for the fast mutex" in message


def test_an_inlined_lookaside_list_gives_every_block_back_to_the_pool(out: Path) -> None:
    bench = Bench.make()
    bench.load_probe(out)
    assert bench.run_driver("LookasideRoundTrip") == 1
    assert bench.kernel.pool.owned_by("probe") == []
