"""Filters and instances: loading, registration, attaching, detaching, unloading: facts L1, L3, L4, L6 to L9, A1, X7."""

from __future__ import annotations

import struct

import pytest

from tests.vm.conftest import Labs
from tests.vm.port_lab import SECONDS, Gate, Lab, inside_callback
from tests.vm.scripted_filter import ScriptedFilter
from vm.emulated.fltmgr import instances, loading
from vm.emulated.fltmgr.loading import ImageFile
from vm.emulated.fltmgr.manager import UNLOAD_PATIENCE
from vm.emulated.kernel import bugcheck as bc
from vm.emulated.kernel.kernel import MachineCrashedError
from vm.emulated.kernel.objects import StatusError
from vm.emulated.kernel.status import (
    STATUS_ACCESS_DENIED,
    STATUS_FLT_DELETING_OBJECT,
    STATUS_FLT_DO_NOT_ATTACH,
    STATUS_FLT_DO_NOT_DETACH,
    STATUS_FLT_FILTER_NOT_FOUND,
    STATUS_FLT_FILTER_NOT_READY,
    STATUS_FLT_INSTANCE_ALTITUDE_COLLISION,
    STATUS_FLT_INSTANCE_NAME_COLLISION,
    STATUS_FLT_INSTANCE_NOT_FOUND,
    STATUS_FLT_VOLUME_NOT_FOUND,
    STATUS_IMAGE_ALREADY_LOADED,
    STATUS_INVALID_IMAGE_FORMAT,
    STATUS_INVALID_IMAGE_HASH,
    STATUS_INVALID_PARAMETER,
    STATUS_OBJECT_NAME_COLLISION,
    STATUS_OBJECT_NAME_NOT_FOUND,
    STATUS_SUCCESS,
    STATUS_UNSUCCESSFUL,
)
from vm.emulated.kernel.threads import Call, Model

AUTOMATIC, MANUAL = 1, 2
"""FLTFL_INSTANCE_SETUP_*, and in the registry the bits that suppress the same."""


def attach(
    lab: Lab, scripted: ScriptedFilter, letter: str, name: str | None = None, altitude: str | None = None
) -> int:
    """FilterAttach."""
    work = instances.attach_by_name(lab.kernel, scripted.model, lab.volume(letter), name, altitude)
    return int(lab.run(work)[0])


def detach(lab: Lab, scripted: ScriptedFilter, letter: str, name: str | None = None) -> int:
    """FilterDetach."""
    return int(lab.run(instances.detach_by_name(lab.kernel, scripted.model, lab.volume(letter), name)))


def on_volume(lab: Lab, letter: str) -> list[str]:
    """Names of the instances on a volume, highest altitude first."""
    return [instance.name for instance in lab.volume(letter).instances]


def unicode_string(scripted: ScriptedFilter, text: str) -> int:
    """Address of a UNICODE_STRING in pool memory of the test."""
    k = scripted.lab.kernel
    data = text.encode("utf-16-le")
    block = k.pool.allocate(16 + len(data), "Text", owner="test")
    k.memory.write(block, struct.pack("<HH4xQ", len(data), len(data), block + 16) + data)
    return block


# Loading


def load(lab: Lab, scripted: ScriptedFilter, image: ImageFile | StatusError | None = None) -> int:
    """FilterLoad; the paths that were opened are in `lab.events`."""

    def open_image(path: str) -> ImageFile:
        lab.log(path)
        if isinstance(image, StatusError):
            raise image
        return image or ImageFile("Scripted.sys", scripted.image.data)

    return int(lab.run(loading.load_filter(lab.kernel, scripted.name, open_image)))


@pytest.mark.fact("L1")
def test_a_filter_without_a_service_key_is_not_found(lab: Lab) -> None:
    assert load(lab, ScriptedFilter(lab)) == STATUS_OBJECT_NAME_NOT_FOUND
    assert not lab.events


@pytest.mark.fact("L1")
def test_a_filter_is_loaded_once(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)
    scripted.install()
    assert load(lab, scripted) == STATUS_SUCCESS
    assert lab.events[0] == r"\SystemRoot\System32\drivers\Scripted.sys"
    assert load(lab, scripted) == STATUS_IMAGE_ALREADY_LOADED
    assert scripted.unload() == STATUS_SUCCESS
    assert load(lab, scripted) == STATUS_SUCCESS


@pytest.mark.fact("L1")
@pytest.mark.parametrize(
    ("image", "status"),
    [
        (StatusError(STATUS_INVALID_IMAGE_HASH), STATUS_INVALID_IMAGE_HASH),
        (ImageFile("Scripted.sys", b"not an image"), STATUS_INVALID_IMAGE_FORMAT),
    ],
)
def test_an_image_that_cannot_be_used_fails_the_load(
    lab: Lab, image: ImageFile | StatusError, status: int
) -> None:
    scripted = ScriptedFilter(lab)
    scripted.install()
    assert load(lab, scripted, image) == status
    assert not lab.kernel.drivers


@pytest.mark.fact("L1")
def test_the_status_of_driver_entry_is_the_loads(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, on_entry=lambda: STATUS_ACCESS_DENIED)
    scripted.install()
    assert load(lab, scripted) == STATUS_ACCESS_DENIED
    assert lab.manager.find("Scripted") is None


# Registration


@pytest.mark.fact("L6")
@pytest.mark.parametrize(
    ("version", "size", "status"),
    [
        (0x0203, 0x70, STATUS_SUCCESS),
        (0x0202, 0x68, STATUS_SUCCESS),
        (0x0200, 0x58, STATUS_SUCCESS),
        (0x0203, 0x68, STATUS_INVALID_PARAMETER),
        (0x0100, 0x70, STATUS_INVALID_PARAMETER),
        (0x0300, 0x70, STATUS_INVALID_PARAMETER),
        (0, 0x70, STATUS_INVALID_PARAMETER),
    ],
)
def test_a_registration_is_read_by_its_version(lab: Lab, version: int, size: int, status: int) -> None:
    scripted = ScriptedFilter(lab, version=version)
    statuses: list[int] = []

    def entry() -> Model:
        statuses.append((yield from scripted.register(size)))
        return statuses[0]

    scripted.on_entry = entry
    scripted.install()
    assert scripted.try_load() == status
    assert (lab.manager.find("Scripted") is not None) == (status == STATUS_SUCCESS)


@pytest.mark.fact("L6")
@pytest.mark.parametrize("missing", ["service key", "instances", "default instance", "altitude"])
def test_a_service_without_instances_cannot_register(lab: Lab, missing: str) -> None:
    scripted = ScriptedFilter(lab)
    key = r"HKLM\SYSTEM\CurrentControlSet\Services\Scripted"
    registry = lab.kernel.registry
    if missing != "service key":
        registry.set_dword(key, "Type", 2)
    if missing in {"default instance", "altitude"}:
        registry.set_dword(rf"{key}\Instances\Scripted Instance", "Flags", 0)
    if missing == "altitude":
        registry.set_string(rf"{key}\Instances", "DefaultInstance", "Scripted Instance")
    assert scripted.try_load() == STATUS_OBJECT_NAME_NOT_FOUND
    assert not lab.manager.filters


@pytest.mark.fact("L6")
def test_the_newer_place_of_the_instances_counts_first(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)
    scripted.install()
    scripted.altitude = "360123"
    scripted.install(instances=r"Parameters\Instances")
    assert scripted.try_load() == STATUS_SUCCESS
    assert scripted.model.altitude == "360123"


def test_only_a_driver_can_register(lab: Lab, scripted: ScriptedFilter) -> None:
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.call("FltRegisterFilter", 0x1234, 0, 0))
    assert "no driver object" in lab.take_crash().rule


# Starting


@pytest.mark.fact("L7")
def test_instances_are_set_up_before_the_start_returns(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)
    flags: list[int] = []

    def entry() -> Model:
        yield from scripted.register()
        lab.log("starting")
        status = yield from scripted.call("FltStartFiltering", scripted.address)
        lab.log("started")
        return status

    def setup(objects: int, given: int) -> int:
        filter_, volume, instance = struct.unpack("<3Q", lab.kernel.memory.read(objects + 8, 24))
        assert filter_ == scripted.address
        assert volume in {v.address for v in lab.manager.volumes}
        assert lab.kernel.objects.get(instance).type == "FilterInstance"
        flags.append(given)
        return STATUS_SUCCESS

    scripted.on_entry = entry
    scripted.on_setup = setup
    scripted.install()
    assert scripted.try_load() == STATUS_SUCCESS
    assert lab.events == ["starting", "InstanceSetup", "InstanceSetup", "started"]
    assert flags == [AUTOMATIC, AUTOMATIC]
    assert on_volume(lab, "D") == on_volume(lab, "E") == ["Scripted Instance"]


@pytest.mark.fact("L7")
def test_a_second_start_is_refused(lab: Lab, scripted: ScriptedFilter) -> None:
    assert lab.run(scripted.call("FltStartFiltering", scripted.address)) == STATUS_INVALID_PARAMETER


@pytest.mark.fact("L7")
def test_a_filter_may_unregister_without_having_started(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)

    def entry() -> Model:
        yield from scripted.register()
        yield from scripted.unregister()
        return STATUS_UNSUCCESSFUL

    scripted.on_entry = entry
    scripted.install()
    assert scripted.try_load() == STATUS_UNSUCCESSFUL


@pytest.mark.fact("L9")
@pytest.mark.parametrize("flags", [0, AUTOMATIC, MANUAL, AUTOMATIC | MANUAL])
def test_the_flags_of_an_instance_suppress_its_attachment(lab: Lab, flags: int) -> None:
    scripted = ScriptedFilter(lab)
    scripted.install(flags=flags)
    scripted.try_load()
    assert bool(on_volume(lab, "D")) == (not flags & AUTOMATIC)
    if on_volume(lab, "D"):
        assert detach(lab, scripted, "D") == STATUS_SUCCESS
    assert attach(lab, scripted, "D") == (STATUS_FLT_DO_NOT_ATTACH if flags & MANUAL else STATUS_SUCCESS)


@pytest.mark.fact("L9")
def test_a_refused_automatic_attachment_is_no_failure(lab: Lab) -> None:
    ScriptedFilter(lab, on_setup=lambda objects, flags: STATUS_FLT_DO_NOT_ATTACH).load()
    assert on_volume(lab, "D") == []


# Attaching and detaching


@pytest.mark.fact("L4")
def test_an_attachment_can_be_undone_and_repeated(lab: Lab, scripted: ScriptedFilter) -> None:
    setups: list[int] = []
    reasons: list[int] = []

    def setup(objects: int, flags: int) -> int:
        setups.append(flags)
        return STATUS_SUCCESS

    scripted.on_setup = setup
    scripted.on_teardown_start = reasons.append
    scripted.on_teardown_complete = reasons.append
    assert detach(lab, scripted, "D") == STATUS_SUCCESS
    assert lab.events == ["InstanceQueryTeardown", "InstanceTeardownStart", "InstanceTeardownComplete"]
    assert on_volume(lab, "D") == []
    assert on_volume(lab, "E") == ["Scripted Instance"]
    assert attach(lab, scripted, "D", "Scripted Instance") == STATUS_SUCCESS
    assert setups == [MANUAL]
    assert reasons == [1, 1]  # FLTFL_INSTANCE_TEARDOWN_MANUAL


@pytest.mark.fact("L4")
@pytest.mark.parametrize(
    ("name", "altitude", "status"),
    [
        ("Scripted Instance", None, STATUS_FLT_INSTANCE_NAME_COLLISION),
        (None, None, STATUS_FLT_INSTANCE_NAME_COLLISION),
        ("SCRIPTED INSTANCE", "370999", STATUS_FLT_INSTANCE_NAME_COLLISION),
        ("Other", "370030", STATUS_FLT_INSTANCE_ALTITUDE_COLLISION),
        ("Other", "0370030.00", STATUS_FLT_INSTANCE_ALTITUDE_COLLISION),
        ("Other", "370030.5", STATUS_SUCCESS),
        ("Other", None, STATUS_OBJECT_NAME_NOT_FOUND),
        ("Other", "3700x", STATUS_INVALID_PARAMETER),
        ("Other", "1.2.3", STATUS_INVALID_PARAMETER),
        ("Other", "", STATUS_INVALID_PARAMETER),
    ],
)
def test_names_and_altitudes_of_instances_are_unique_per_volume(
    lab: Lab, scripted: ScriptedFilter, name: str | None, altitude: str | None, status: int
) -> None:
    assert attach(lab, scripted, "D", name, altitude) == status


@pytest.mark.fact("L4")
def test_the_altitude_of_another_filter_is_taken(lab: Lab, scripted: ScriptedFilter) -> None:
    other = ScriptedFilter(lab, name="Other", instance="Other Instance", port="\\Other")
    other.load()
    assert on_volume(lab, "D") == ["Scripted Instance"]
    assert attach(lab, other, "D") == STATUS_FLT_INSTANCE_ALTITUDE_COLLISION
    assert detach(lab, scripted, "D") == STATUS_SUCCESS
    assert attach(lab, other, "D") == STATUS_SUCCESS


@pytest.mark.fact("L4")
def test_an_attachment_needs_a_filter_that_has_started(lab: Lab) -> None:
    scripted = ScriptedFilter(lab)
    scripted.on_entry = scripted.register
    scripted.install()
    scripted.try_load()
    assert attach(lab, scripted, "D") == STATUS_FLT_FILTER_NOT_READY


@pytest.mark.fact("L4")
@pytest.mark.parametrize("status", [STATUS_FLT_DO_NOT_ATTACH, STATUS_ACCESS_DENIED])
def test_a_failing_instance_setup_refuses_the_attachment(
    lab: Lab, scripted: ScriptedFilter, status: int
) -> None:
    detach(lab, scripted, "D")
    lab.events.clear()
    scripted.on_setup = lambda objects, flags: status
    assert attach(lab, scripted, "D") == STATUS_FLT_DO_NOT_ATTACH
    assert lab.events == ["InstanceSetup"]
    assert on_volume(lab, "D") == []


@pytest.mark.fact("L4")
def test_a_detachment_can_be_refused(lab: Lab, scripted: ScriptedFilter) -> None:
    scripted.on_query_teardown = lambda objects: STATUS_FLT_DO_NOT_DETACH
    assert detach(lab, scripted, "D") == STATUS_FLT_DO_NOT_DETACH
    assert lab.events == ["InstanceQueryTeardown"]
    assert on_volume(lab, "D") == ["Scripted Instance"]
    assert scripted.unload() == STATUS_SUCCESS  # an unload does not ask


@pytest.mark.fact("L4")
def test_a_filter_without_a_query_callback_cannot_be_detached(lab: Lab) -> None:
    scripted = ScriptedFilter(lab, detachable=False).load()
    assert detach(lab, scripted, "D") == STATUS_FLT_DO_NOT_DETACH


@pytest.mark.fact("L4")
@pytest.mark.parametrize("name", [None, "Scripted Instance", "Unknown"])
def test_what_is_not_attached_cannot_be_detached(
    lab: Lab, scripted: ScriptedFilter, name: str | None
) -> None:
    detach(lab, scripted, "D")
    assert detach(lab, scripted, "D", name) == STATUS_FLT_INSTANCE_NOT_FOUND


@pytest.mark.fact("L4")
def test_nothing_is_attached_or_detached_during_an_unload(lab: Lab, scripted: ScriptedFilter) -> None:
    statuses: list[int] = []

    def teardown(reason: int) -> Model:
        volume = lab.volume("E")
        status, _ = yield from instances.attach_by_name(lab.kernel, scripted.model, volume, "New", "370999")
        statuses.append(status)
        statuses.append((yield from instances.detach_by_name(lab.kernel, scripted.model, volume, None)))
        return 0

    scripted.on_teardown_start = teardown
    assert scripted.unload() == STATUS_SUCCESS
    assert set(statuses) == {STATUS_FLT_DELETING_OBJECT}


@pytest.mark.fact("L4")
def test_of_two_attachments_at_one_altitude_exactly_one_wins(labs: Labs) -> None:
    winners = set()
    for seed in range(10):
        lab = labs(seed=seed)
        scripted = ScriptedFilter(lab).load()
        gate = Gate(lab)

        def setup(objects: int, flags: int, gate: Gate = gate) -> Model:
            yield from gate.wait()
            return STATUS_SUCCESS

        scripted.on_setup = setup
        jobs = [
            lab.start(
                instances.attach_by_name(lab.kernel, scripted.model, lab.volume("D"), name, "370500"), name
            )
            for name in ("One", "Two")
        ]
        lab.settle()
        gate.release()
        statuses = [job.result()[0] for job in jobs]
        assert sorted(statuses) == [STATUS_SUCCESS, STATUS_FLT_INSTANCE_ALTITUDE_COLLISION]
        winners.add(statuses.index(STATUS_SUCCESS))
    assert winners == {0, 1}


def test_an_unload_waits_for_an_attachment_and_tears_it_down(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def setup(objects: int, flags: int) -> Model:
        yield from gate.wait()
        return STATUS_SUCCESS

    scripted.on_setup = setup
    attaching = lab.start(
        instances.attach_by_name(lab.kernel, scripted.model, lab.volume("D"), "New", "370500")
    )
    lab.settle()
    unload = scripted.begin_unload()
    lab.pass_time(SECONDS)
    assert not unload.done
    gate.release()
    assert unload.result() == STATUS_SUCCESS
    assert attaching.value[0] == STATUS_FLT_DELETING_OBJECT
    assert lab.events.count("InstanceTeardownComplete") == 3


@pytest.mark.fact("X7")
def test_an_unload_waits_for_a_teardown_in_another_thread(lab: Lab, scripted: ScriptedFilter) -> None:
    gate = Gate(lab)

    def drop_volume_contexts(k: object, owner: object) -> Model:
        lab.log("volume contexts dropped")
        yield from ()

    lab.kernel.services["drop_volume_contexts"] = drop_volume_contexts

    def teardown(reason: int) -> Model:
        yield from gate.wait()
        return 0

    scripted.on_teardown_start = teardown
    detaching = lab.start(
        instances.detach_by_name(lab.kernel, scripted.model, lab.volume("D"), None), "detach"
    )
    lab.settle()
    unload = scripted.begin_unload()
    lab.pass_time(UNLOAD_PATIENCE - 1)
    assert not unload.done
    gate.release()
    assert unload.result() == STATUS_SUCCESS
    assert detaching.value == STATUS_SUCCESS
    assert lab.events.count("InstanceTeardownComplete") == 2
    assert lab.events[-3:] == ["InstanceTeardownComplete", "volume contexts dropped", "unregistered"]


@pytest.mark.fact("A1")
def test_altitudes_are_compared_as_numbers(lab: Lab, scripted: ScriptedFilter) -> None:
    for name, altitude in (("a", "03333"), ("b", "100.123456"), ("c", "100.2"), ("d", "99999999999999999.1")):
        assert attach(lab, scripted, "D", name, altitude) == STATUS_SUCCESS
    assert on_volume(lab, "D") == ["d", "Scripted Instance", "a", "c", "b"]


# The kernel's own functions


@pytest.mark.fact("L8")
def test_the_two_kernel_functions_call_a_taken_altitude_by_different_names(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    scripted.add_instance("Twin", "370030")
    out = scripted.new_variable()
    volume = lab.volume("D").address
    twin, other = unicode_string(scripted, "Twin"), unicode_string(scripted, "Scripted Instance")
    altitude, free = unicode_string(scripted, "370030"), unicode_string(scripted, "370031")
    assert (
        lab.run(scripted.call("FltAttachVolume", scripted.address, volume, twin, out))
        == STATUS_OBJECT_NAME_COLLISION
    )
    at = "FltAttachVolumeAtAltitude"
    assert (
        lab.run(scripted.call(at, scripted.address, volume, altitude, twin, out))
        == STATUS_FLT_INSTANCE_ALTITUDE_COLLISION
    )
    assert (
        lab.run(scripted.call("FltAttachVolume", scripted.address, volume, other, out))
        == STATUS_FLT_INSTANCE_NAME_COLLISION
    )
    assert (
        lab.run(scripted.call(at, scripted.address, volume, free, other, out))
        == STATUS_FLT_INSTANCE_NAME_COLLISION
    )
    assert lab.kernel.memory.u64(out) == 0


@pytest.mark.fact("L8", "X12")
def test_an_instance_that_is_handed_out_is_referenced(lab: Lab, scripted: ScriptedFilter) -> None:
    scripted.add_instance("Second", "370031")
    out = scripted.new_variable()
    name = unicode_string(scripted, "Second")
    volume = lab.volume("D").address
    assert lab.run(scripted.call("FltAttachVolume", scripted.address, volume, name, out)) == STATUS_SUCCESS
    instance = lab.kernel.memory.u64(out)
    assert instance == next(i.address for i in lab.volume("D").instances if i.name == "Second")
    unload = scripted.begin_unload()
    lab.pass_time(SECONDS)
    assert not unload.done
    lab.run(scripted.call("FltObjectDereference", instance))  # torn down, but valid until now
    assert unload.result() == STATUS_SUCCESS
    assert instance not in lab.kernel.objects.by_address


@pytest.mark.fact("X12")
@pytest.mark.parametrize("kind", ["filter", "instance", "volume"])
def test_a_reference_has_to_be_dropped_on_the_object_it_was_taken_on(
    lab: Lab, scripted: ScriptedFilter, kind: str
) -> None:
    objects = {
        "filter": scripted.address,
        "instance": scripted.instance_on("D").address,
        "volume": lab.volume("D").address,
    }
    for other in objects.keys() - {kind}:
        assert lab.run(scripted.call("FltObjectReference", objects[other])) == STATUS_SUCCESS
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.call("FltObjectDereference", objects[kind]))
    report = lab.take_crash()
    assert report.code == bc.REFERENCE_BY_POINTER
    assert "was dropped that nobody holds" in report.rule


@pytest.mark.fact("X12")
def test_references_on_anything_else_stop_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    with pytest.raises(MachineCrashedError):
        lab.run(scripted.call("FltObjectReference", scripted.server_port))
    assert "expected a filter, an instance or a volume" in lab.take_crash().rule


@pytest.mark.fact("X12")
def test_enumerated_instances_are_referenced(lab: Lab, scripted: ScriptedFilter) -> None:
    array = lab.kernel.pool.allocate(32, "Test", owner="test")
    count = scripted.new_variable()
    enumerate_all = scripted.call("FltEnumerateInstances", 0, scripted.address, array, 4, count)
    assert lab.run(enumerate_all) == STATUS_SUCCESS
    memory = lab.kernel.memory
    found = [memory.u64(array + 8 * n) for n in range(memory.u32(count))]
    assert found == [scripted.instance_on("D").address, scripted.instance_on("E").address]
    assert scripted.model.rundown == 3  # these and the server port
    for address in found:
        lab.run(scripted.call("FltObjectDereference", address))
    assert scripted.unload() == STATUS_SUCCESS


@pytest.mark.fact("L8")
def test_volumes_and_instances_are_found_by_name(lab: Lab, scripted: ScriptedFilter) -> None:
    out = scripted.new_variable()
    memory = lab.kernel.memory
    for name in ("D:", "\\??\\D:\\", "\\Device\\HarddiskVolume2"):
        text = unicode_string(scripted, name)
        assert lab.run(scripted.call("FltGetVolumeFromName", scripted.address, text, out)) == STATUS_SUCCESS
        assert memory.u64(out) == lab.volume("D").address
    text = unicode_string(scripted, "Z:")
    status = lab.run(scripted.call("FltGetVolumeFromName", scripted.address, text, out))
    assert status == STATUS_FLT_VOLUME_NOT_FOUND
    find = "FltGetVolumeInstanceFromName"
    volume = lab.volume("D").address
    assert lab.run(scripted.call(find, scripted.address, volume, 0, out)) == STATUS_SUCCESS
    assert memory.u64(out) == scripted.instance_on("D").address
    lab.run(scripted.call("FltObjectDereference", memory.u64(out)))
    text = unicode_string(scripted, "Unknown")
    status = lab.run(scripted.call(find, scripted.address, volume, text, out))
    assert status == STATUS_FLT_INSTANCE_NOT_FOUND
    assert scripted.unload() == STATUS_SUCCESS


def test_a_detachment_by_the_driver_itself_goes_the_same_way(lab: Lab, scripted: ScriptedFilter) -> None:
    volume = lab.volume("D").address
    assert lab.run(scripted.call("FltDetachVolume", scripted.address, volume, 0)) == STATUS_SUCCESS
    assert lab.events == ["InstanceQueryTeardown", "InstanceTeardownStart", "InstanceTeardownComplete"]


# Unloading


@pytest.mark.fact("L3")
def test_a_filter_that_is_not_there_cannot_be_unloaded(lab: Lab) -> None:
    assert ScriptedFilter(lab).unload() == STATUS_FLT_FILTER_NOT_FOUND


@pytest.mark.fact("L3")
def test_an_unloaded_filter_leaves_nothing_and_can_be_loaded_again(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    for _ in range(3):
        assert scripted.unload() == STATUS_SUCCESS
        assert not lab.manager.filters
        assert not lab.volume("D").instances
        assert not lab.kernel.pool.owned_by(scripted.name)
        assert lab.client().try_connect() == STATUS_OBJECT_NAME_NOT_FOUND
        assert scripted.try_load() == STATUS_SUCCESS
        assert lab.client().try_connect() == STATUS_SUCCESS


@pytest.mark.fact("X7")
def test_a_filter_handle_is_dead_after_unregistering(lab: Lab, scripted: ScriptedFilter) -> None:
    def unload(flags: int) -> Model:
        yield from scripted.tear_down(flags)
        yield from scripted.call("FltUnregisterFilter", scripted.address)

    scripted.on_unload = unload
    with pytest.raises(MachineCrashedError):
        scripted.unload()
    assert "is not a kernel object (any more)" in lab.take_crash().rule


@pytest.mark.fact("X7")
def test_unregistering_twice_at_once_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    def teardown(reason: int) -> Model:
        yield from scripted.unregister()
        return 0

    scripted.on_teardown_start = teardown
    with pytest.raises(MachineCrashedError):
        scripted.unload()
    assert "FltUnregisterFilter was called twice" in lab.take_crash().rule


@pytest.mark.fact("X7")
def test_a_teardown_starts_before_and_completes_after_the_running_callbacks(
    lab: Lab, scripted: ScriptedFilter
) -> None:
    gate = Gate(lab)
    instance = scripted.instance_on("D")
    lab.start(inside_callback(lab, instance, "PreOperation of IRP_MJ_READ", gate.wait()), "reader")
    lab.settle()
    work = instances.detach_by_name(lab.kernel, scripted.model, lab.volume("D"), None)
    detaching = lab.start(work, "detach")
    lab.settle()
    assert lab.events == ["InstanceQueryTeardown", "InstanceTeardownStart"]
    assert on_volume(lab, "D") == []  # nothing new reaches it
    gate.release()
    assert detaching.result() == STATUS_SUCCESS
    assert lab.events[-1] == "InstanceTeardownComplete"


@pytest.mark.fact("X7")
def test_code_of_an_unloaded_image_stops_the_machine(lab: Lab, scripted: ScriptedFilter) -> None:
    address = scripted.callback("message")
    scripted.unload()
    with pytest.raises(MachineCrashedError):
        lab.run(call_address(address))
    report = lab.take_crash()
    assert report.code == bc.DRIVER_UNLOADED_WITHOUT_CANCELLING_PENDING_OPERATIONS
    assert "inside the driver 'Scripted', which is unloaded" in report.rule


def call_address(address: int) -> Model:
    yield Call(address, ())
