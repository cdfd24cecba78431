"""Loading, unloading and stopping drivers as client processes ask for it."""

from __future__ import annotations

import pytest

from tests.vm.port_lab import Client, Gate, Lab
from tests.vm.scripted_filter import ScriptedFilter
from vm.emulated import service_control
from vm.emulated.fltmgr.loading import unload_filter
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.security import ADMINISTRATOR_TOKEN
from vm.emulated.kernel.status import STATUS_FLT_DO_NOT_DETACH, STATUS_SUCCESS
from vm.emulated.kernel.threads import Model


def stop(client: Client, name: str) -> int:
    """The Win32 error of a stop, 0 if the service has stopped."""
    status, values = client.call(service_control.stop, name=name)
    assert status == STATUS_SUCCESS
    return int(values["error"])


@pytest.mark.fact("X9", "X10")
def test_a_stop_unloads_mandatorily_in_a_system_thread(lab: Lab, scripted: ScriptedFilter) -> None:
    seen: list[tuple[int, bool]] = []
    reasons: list[int] = []

    def unload(flags: int) -> Model:
        seen.append((flags, lab.kernel.current.process.is_system))
        return (yield from scripted.tear_down(flags))

    scripted.on_unload = unload
    scripted.on_teardown_start = reasons.append
    assert stop(lab.client(), scripted.name) == 0
    assert (seen, reasons) == ([(1, True)], [4, 4])
    assert scripted.driver.unloaded


@pytest.mark.fact("X10")
def test_a_stop_cannot_be_refused_and_what_stays_registered_stops_the_machine(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    scripted.on_unload = lambda flags: STATUS_FLT_DO_NOT_DETACH
    with pytest.raises(MachineCrashedError, match="FltUnregisterFilter was not called"):
        stop(lab.client(), scripted.name)
    assert lab.take_crash().code == bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS


@pytest.mark.fact("X10")
def test_a_refusal_of_a_stop_after_everything_was_taken_down_is_not_heard(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    def unload(flags: int) -> Model:
        yield from scripted.tear_down(flags)
        return STATUS_FLT_DO_NOT_DETACH

    scripted.on_unload = unload
    assert stop(lab.client(), scripted.name) == 0
    assert scripted.driver.unloaded


@pytest.mark.fact("X11")
def test_a_filter_that_takes_no_stop_is_not_asked(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, registration_flags=1).load()
    assert stop(lab.client(), scripted.name) == service_control.ERROR_INVALID_SERVICE_CONTROL
    assert "FilterUnload" not in lab.events
    assert lab.client().try_connect() == STATUS_SUCCESS


def test_what_does_not_exist_or_does_not_run_cannot_be_stopped(lab: Lab, scripted: ScriptedFilter) -> None:
    client = lab.client()
    assert stop(client, "NoSuchService") == service_control.ERROR_SERVICE_DOES_NOT_EXIST
    assert stop(client, scripted.name.upper()) == 0
    assert stop(client, scripted.name) == service_control.ERROR_SERVICE_NOT_ACTIVE


def test_who_is_no_administrator_stops_nothing(lab: Lab, scripted: ScriptedFilter) -> None:
    plain = lab.client(token=ADMINISTRATOR_TOKEN.restricted())
    assert stop(plain, scripted.name) == service_control.ERROR_ACCESS_DENIED
    assert lab.client().try_connect() == STATUS_SUCCESS


def test_a_stop_during_an_unload_is_refused_and_the_unload_goes_on(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    gate = Gate(lab)

    def unload(flags: int) -> Model:
        yield from gate.wait()
        return (yield from scripted.tear_down(flags))

    scripted.on_unload = unload
    job = lab.start(unload_filter(lab.kernel, scripted.name, mandatory=False))
    lab.run_until(lambda: gate.reached)
    assert stop(lab.client(), scripted.name) == service_control.ERROR_SERVICE_CANNOT_ACCEPT_CTRL
    gate.release()
    lab.settle()
    assert job.result() == STATUS_SUCCESS
