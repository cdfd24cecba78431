"""Structured exceptions in compiled driver code: which handler takes them, and what the machine says if none does."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.vm.kernel_bench import Bench
from vm.emulated.kernel.status import (
    STATUS_ACCESS_VIOLATION,
    STATUS_INVALID_PARAMETER,
    STATUS_NOT_FOUND,
)
from vm.emulated.kernel.threads import Model

USER_ADDRESS = 0x0000_0001_2345_0000


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture
def bench(out: Path) -> Bench:
    bench = Bench.make()
    bench.load_probe(out)
    return bench


def test_a_fault_on_a_user_address_is_caught_with_its_code_and_the_function_goes_on(bench: Bench) -> None:
    assert bench.run_driver("CatchFault", USER_ADDRESS) == STATUS_ACCESS_VIOLATION


def test_a_fault_is_caught_again_and_again(bench: Bench) -> None:
    def many() -> Model:
        results = []
        for i in range(20):
            results.append((yield bench.driver("CatchFault", USER_ADDRESS + i)))
        return results

    assert bench.model(many()) == [STATUS_ACCESS_VIOLATION] * 20


def test_an_exception_passes_a_finally_block_of_a_called_function(bench: Bench) -> None:
    result = bench.run_driver("CatchAcross", USER_ADDRESS, 16, STATUS_ACCESS_VIOLATION)
    assert result == 100 << 32 | STATUS_ACCESS_VIOLATION
    assert bench.run_driver("SeenByFilter") == USER_ADDRESS


def test_a_probe_of_a_kernel_address_raises_in_its_caller(bench: Bench) -> None:
    result = bench.run_driver("CatchAcross", bench.scratch, 16, STATUS_ACCESS_VIOLATION)
    assert result == 100 << 32 | STATUS_ACCESS_VIOLATION


def test_a_finally_block_runs_once_when_nothing_is_raised(bench: Bench) -> None:
    process = bench.kernel.system
    frame = bench.kernel.memory.allocate_frame()
    process.user_pages[USER_ADDRESS >> 12] = (frame, 3)
    assert bench.run_driver("CatchAcross", USER_ADDRESS, 16, STATUS_ACCESS_VIOLATION) == 1 << 32


def test_a_raised_status_reaches_the_handler(bench: Bench) -> None:
    assert bench.run_driver("CatchRaised", STATUS_NOT_FOUND) == STATUS_NOT_FOUND


def test_a_filter_may_have_a_handler_of_its_own(bench: Bench) -> None:
    assert bench.run_driver("CatchInFilter", USER_ADDRESS) == STATUS_INVALID_PARAMETER


def test_an_exception_in_a_filter_is_handled_outside_of_it(bench: Bench) -> None:
    assert bench.run_driver("CatchOutOfFilter") == STATUS_NOT_FOUND


def test_a_filter_may_mend_the_context_and_continue(bench: Bench) -> None:
    good = bench.put(struct.pack("<I", 4711))
    assert bench.run_driver("ContinueAfterRepair", USER_ADDRESS, good) == 4711


def test_an_exception_that_no_filter_wants_is_a_bugcheck_with_the_driver_s_stack(bench: Bench) -> None:
    def call() -> Model:
        yield bench.driver("CatchAcross", USER_ADDRESS, 16, STATUS_NOT_FOUND)

    report = bench.crash(call())
    assert report.name == "SYSTEM_THREAD_EXCEPTION_NOT_HANDLED"
    assert report.parameters[0] == STATUS_ACCESS_VIOLATION
    assert f"{USER_ADDRESS:#x}" in report.rule
    functions = [line.split("!")[1].split("+")[0] for line in report.stack if "!" in line]
    assert functions == ["ReadUser", "ProbeWithFinally", "CatchAcross"]


def test_a_raise_without_handler_names_the_status_and_the_line(bench: Bench) -> None:
    def call() -> Model:
        yield bench.driver("RaiseUncaught", STATUS_NOT_FOUND)

    report = bench.crash(call())
    assert "STATUS_NOT_FOUND" in report.rule
    assert "probe!RaiseIt" in report.rule
    assert [line.split("+")[0] for line in report.stack][:2] == ["probe!RaiseIt", "probe!RaiseUncaught"]
    assert "probe.c:" in report.stack[0]


def test_a_handled_exception_leaves_nothing_behind_on_the_thread(bench: Bench) -> None:
    def call() -> Model:
        yield bench.driver("CatchRaised", STATUS_NOT_FOUND)
        return len(bench.kernel.current.frames), bench.kernel.engine.irql

    assert bench.model(call()) == (1, 0)


def test_a_callback_that_returns_at_another_irql_is_a_bugcheck(bench: Bench) -> None:
    def call() -> Model:
        yield bench.driver("LeaveAtDispatch")

    report = bench.crash(call())
    assert report.name == "IRQL_UNEXPECTED_VALUE"
    assert "LeaveAtDispatch was called at IRQL 0 and returned at IRQL 2" in report.rule


def test_endless_recursion_is_a_stack_overflow(bench: Bench) -> None:
    def call() -> Model:
        yield bench.driver("Recurse", 0)

    report = bench.crash(call())
    assert report.name == "UNEXPECTED_KERNEL_MODE_TRAP"
    assert "kernel stack" in report.rule


def test_a_loop_that_never_calls_the_kernel_is_reported_as_hung(bench: Bench) -> None:
    bench.kernel.scheduler.instructions_limit = 2_000_000

    def call() -> Model:
        yield bench.driver("SpinForEver")

    report = bench.crash(call())
    assert report.name == "DPC_WATCHDOG_VIOLATION"
    assert "hangs" in report.rule


def test_long_work_that_calls_the_kernel_now_and_then_does_not_count_as_hung(bench: Bench) -> None:
    bench.kernel.scheduler.instructions_limit = 500_000
    assert bench.run_driver("WorkAndCall", 30) == 7
