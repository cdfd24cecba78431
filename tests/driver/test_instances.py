"""Instances: the filter is detached from a volume and attached to it again, under the eyes of its clients."""

from __future__ import annotations

import pytest

from harness.client import binding as bindings
from harness.client import files
from harness.client.errors import NotFoundError, PortError
from harness.client.listener import matching
from harness.client.protocol import Kind

FILTER = "Downlink"


@pytest.fixture
def instance(scratch):
    """The instance on the scratch directory's volume; it is there again at the end, whatever happened."""
    binding = bindings.current()
    volume = scratch.path[:2]

    def found():
        names = {volume.casefold(), scratch.volume.casefold()}
        return [i for i in binding.instances() if i.filter == FILTER and i.volume.casefold() in names]

    class Instance:
        name = found()[0].instance

        def detach(self):
            binding.filter_detach(FILTER, volume, self.name)

        def attach(self):
            return binding.filter_attach(FILTER, volume)

        @property
        def attached(self):
            return bool(found())

    yield Instance()
    if not found():
        binding.filter_attach(FILTER, volume)


@pytest.mark.fact("L9", "L10")
def test_an_instance_can_be_detached_and_attached_again(instance):
    instance.detach()
    assert not instance.attached
    assert instance.attach() == instance.name
    assert instance.attached


@pytest.mark.fact("L9", "L10")
def test_what_happens_while_no_instance_is_attached_is_not_told_and_takes_no_number(
    listen, scratch, instance
):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    instance.detach()
    files.create(scratch / "unseen", b"x")
    instance.attach()
    files.create(scratch / "seen", b"x")
    record = listener.next()
    assert (record.sequence, record.path) == (1, scratch.device("seen"))


@pytest.mark.fact("L10")
def test_clients_stay_connected_while_an_instance_comes_and_goes(listen, scratch, instance):
    listener = listen(event_mask=Kind.FILE_OPENED.bit)
    files.create(scratch / "first")
    for _ in range(3):
        instance.detach()
        instance.attach()
    files.create(scratch / "last")
    paths = [r.path for r in listener.until("the last", matching(path=scratch.device("last")))]
    assert paths == [scratch.device("first"), scratch.device("last")]


@pytest.mark.fact("L10", "X7")
def test_a_file_that_was_open_before_is_told_of_after_the_instance_is_back(listen, scratch, instance):
    listener = listen()
    with files.open_file(scratch / "a", access=files.GENERIC_WRITE, disposition=files.CREATE) as file:
        file.write(b"one")
        instance.detach()
        file.write(b"unseen")
        instance.attach()
        file.write(b"three")
        second = listener.until("the write", matching(Kind.FILE_WRITTEN, value=5))
    assert [r.value for r in second if r.kind == Kind.FILE_WRITTEN] == [3, 5]
    assert files.read(scratch / "a") == b"oneunseenthree"


@pytest.mark.fact("L10")
def test_an_instance_that_is_not_there_cannot_be_detached(instance):
    instance.detach()
    with pytest.raises(NotFoundError):
        instance.detach()


@pytest.mark.fact("L10")
def test_a_second_instance_is_refused_on_a_volume_that_has_one(instance):
    with pytest.raises(PortError):
        instance.attach()
    assert instance.attached
