"""`./inv listen`: what its options mean, what it shows, and the whole way from a file operation in an emulated
machine to a line on the host."""

from __future__ import annotations

import io
import json
import os
import queue
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import builds, config, verbs
from harness import listen as listening
from harness.client.listen import KINDS, Request, Volumes, events
from harness.client.protocol import MASK_FILES, Batch, Kind, Record, RecordFlag, SetFlag, Statistics
from harness.config import Configuration
from harness.console import Console
from harness.listen import LineSplitter
from harness.listen_view import ListenView, printable
from harness.remote.guest import Guest
from vm.deadline import Deadline
from vm.errors import ConfigurationError, MachineError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
VOLUME = "\\Device\\HarddiskVolume2"
TIME = 134090208000000000


class BindingDouble:
    """As much of a binding as names of volumes need."""

    asked = 0

    def volumes(self) -> list[Any]:
        self.asked += 1
        letter = type("Volume", (), {"dos_name": "D:", "device_name": VOLUME})
        bare = type("Volume", (), {"dos_name": None, "device_name": "\\Device\\HarddiskVolume9"})
        return [letter, bare]


def record(kind: Kind | int, name: str = "\\a.txt", **values: Any) -> Record:
    volume = values.pop("volume", VOLUME)
    given = {
        "flags": RecordFlag(0),
        "sequence": 8,
        "time": TIME,
        "process_id": 4242,
        "thread_id": 4711,
        "status": 0,
        "detail": 0,
        "value": 0,
        "file_id": bytes(16),
        "second_path": "",
        "size": 0,
    } | values
    return Record(kind=kind, path=volume + name, volume=volume, **given)


def told(
    *records: Record, prefix: str = "", dropped: tuple[int, int, int] = (0, 0, 0)
) -> list[dict[str, Any]]:
    """The events as the host gets them: through JSON."""
    made = events(Batch(records, *dropped), prefix, Volumes(BindingDouble()))  # type: ignore[arg-type]
    return [json.loads(json.dumps(event)) for event in made]


def shown(*records: Record, color: bool = False, as_json: bool = False, **options: Any) -> list[str]:
    out = io.StringIO()
    view = ListenView(Console(out, io.StringIO(), color=color), as_json=as_json)
    for event in told(*records, **options):
        view.event(event)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("happened", "line"),
    [
        (record(Kind.FILE_OPENED, detail=2), "created       D:\\a.txt"),
        (record(Kind.FILE_OPENED, detail=1), "opened        D:\\a.txt"),
        (record(Kind.FILE_OPENED, "\\dir", detail=2, flags=RecordFlag.DIRECTORY), "created       D:\\dir\\"),
        (record(Kind.FILE_WRITTEN, value=1), "written       D:\\a.txt  1 byte"),
        (record(Kind.FILE_WRITTEN, value=12345), "written       D:\\a.txt  12,345 bytes"),
        (record(Kind.FILE_SIZE_SET, value=0, detail=1), "size set      D:\\a.txt  0 bytes"),
        (record(Kind.FILE_SIZE_SET, value=4096, detail=2), "allocated     D:\\a.txt  4,096 bytes"),
        (record(Kind.FILE_RENAMED, second_path=VOLUME + "\\b"), "renamed       D:\\a.txt -> D:\\b"),
        (record(Kind.FILE_LINKED, second_path=VOLUME + "\\b"), "linked        D:\\a.txt -> D:\\b"),
        (record(Kind.FILE_DELETED), "deleted       D:\\a.txt"),
        (
            record(Kind.FILE_ATTRIBUTES_SET, value=0x21, detail=SetFlag.ATTRIBUTES | SetFlag.LAST_WRITE_TIME),
            "attributes    D:\\a.txt  read-only, archive, last write time",
        ),
        (
            record(Kind.FILE_SECURITY_SET, value=0x80000004),
            "security      D:\\a.txt  access list, 0x80000000",
        ),
        (
            record(Kind.FILE_CLOSED, value=5, detail=Kind.FILE_WRITTEN.bit | Kind.FILE_RENAMED.bit),
            "closed        D:\\a.txt  written, renamed, 5 bytes",
        ),
        (record(Kind.CLIENT_CONNECTED, "", volume="", value=3, detail=2), "connected     client 3  2 now"),
        (
            record(Kind.CLIENT_DISCONNECTED, "", volume="", value=3, detail=2),
            "disconnected  client 3  ended by the driver",
        ),
        (record(42, value=1), "kind 42       D:\\a.txt  value 1, detail 0"),
        (record(Kind.FILE_DELETED, status=0xC0000121), "deleted       D:\\a.txt  STATUS_CANNOT_DELETE"),
        (
            record(
                Kind.FILE_WRITTEN,
                "",
                value=1,
                flags=RecordFlag.NO_PATH | RecordFlag.FILE_ID,
                file_id=struct.pack("<QQ", 0x123, 0),
            ),
            "written       D: (name unknown, file 0x0000000000000123)  1 byte",
        ),
        (record(Kind.FILE_DELETED, flags=RecordFlag.PATH_TRUNCATED), "deleted       D:\\a.txt..."),
        (
            record(Kind.FILE_DELETED, volume="\\Device\\HarddiskVolume9"),
            "deleted       \\Device\\HarddiskVolume9\\a.txt",
        ),
    ],
)
def test_a_record_is_one_line_that_says_what_happened(happened: Record, line: str) -> None:
    assert shown(happened) == [f"00:00:00.000    4242  {line}"]


def test_statistics_are_a_line_of_their_own() -> None:
    counters = Statistics(10, 9, 1, 4, 2000, 1, 262144, 512, 2048)

    [line] = shown(record(Kind.STATISTICS, "", volume="", statistics=counters))

    assert line.endswith(
        "9 sent in 4 messages, 1 pending, 1 dropped, queue 0.5 KiB of 256.0 KiB, at most 2.0 KiB"
    )


def test_dropped_events_are_announced_before_those_that_follow() -> None:
    lines = shown(record(Kind.FILE_DELETED), dropped=(1234, 5, 1240))

    assert lines[0] == "1,234 events dropped, between numbers 5 and 1240: the queue was full"
    assert "deleted" in lines[1]
    assert shown(dropped=(1, 5, 5)) == ["1 event dropped, number 5: the queue was full"]


def test_colours_tell_kinds_apart_and_failures_from_successes() -> None:
    [good, bad] = shown(record(Kind.FILE_DELETED), record(Kind.FILE_WRITTEN, status=0xC0000022), color=True)

    assert "\x1b[31mdeleted" in good
    assert "\x1b[31mSTATUS_ACCESS_DENIED\x1b[0m" in bad


def test_a_name_cannot_send_commands_to_the_terminal() -> None:
    [line] = shown(record(Kind.FILE_DELETED, "\\\x1b[2Jä\ud800.txt"))

    assert line.endswith("D:\\\\x1b[2Jä\\ud800.txt")
    assert printable("日本 ok") == "日本 ok"


def test_json_has_the_numbers_and_the_names() -> None:
    [line] = shown(
        record(Kind.FILE_RENAMED, second_path=VOLUME + "\\b", status=0xC0000022, flags=RecordFlag.DIRECTORY),
        as_json=True,
    )

    event = json.loads(line)
    assert (event["kind"], event["path"], event["second_path"]) == ("renamed", "D:\\a.txt", "D:\\b")
    assert (event["device_path"], event["status_name"]) == (VOLUME + "\\a.txt", "STATUS_ACCESS_DENIED")
    assert (event["time"], event["flags"]) == ("2025-12-01T00:00:00.000000+00:00", ["DIRECTORY"])
    assert (event["process_id"], event["sequence"]) == (4242, 8)


def test_the_last_line_counts_by_kind() -> None:
    out = io.StringIO()
    view = ListenView(Console(out, color=False), as_json=False)
    for event in told(
        record(Kind.FILE_DELETED), record(Kind.FILE_OPENED), record(Kind.FILE_OPENED), dropped=(2, 1, 2)
    ):
        view.event(event)

    view.end(1.25, "the driver was unloaded")

    assert out.getvalue().splitlines()[-2:] == [
        "ended: the driver was unloaded",
        "3 events in 1.2 s (2 opened, 1 deleted), 2 dropped",
    ]


def test_a_directory_is_watched_and_not_its_namesakes() -> None:
    prefix = VOLUME + "\\dir"
    names = ("\\dir", "\\DIR\\a", "\\directory", "\\dir:stream", "\\dir2\\a")

    kept = told(*(record(Kind.FILE_DELETED, name) for name in names), prefix=prefix)

    assert [event["path"] for event in kept] == ["D:\\dir", "D:\\DIR\\a", "D:\\dir:stream"]
    moved = record(Kind.FILE_RENAMED, "\\elsewhere", second_path=prefix + "\\a")
    nameless = record(Kind.FILE_WRITTEN, "", flags=RecordFlag.NO_PATH)
    assert len(told(moved, nameless, prefix=prefix)) == 2


def test_volumes_are_asked_for_once_and_again_for_a_new_one() -> None:
    binding = BindingDouble()
    volumes = Volumes(binding)  # type: ignore[arg-type]

    assert volumes.readable(VOLUME + "\\a", VOLUME) == "D:\\a"
    assert volumes.readable(VOLUME + "\\b", VOLUME) == "D:\\b"
    assert binding.asked == 1
    assert volumes.readable("\\Device\\New\\a", "\\Device\\New") == "\\Device\\New\\a"
    assert volumes.readable("\\Device\\New\\b", "\\Device\\New") == "\\Device\\New\\b"
    assert binding.asked == 2


def test_lines_come_whole_however_they_are_cut() -> None:
    lines: list[str] = []
    splitter = LineSplitter(lines.append)

    for piece in ('{"a"', ": 1}\r", "\n\n{", "}", "\nrest"):
        splitter.feed(piece)

    assert lines == ['{"a": 1}', "", "{}"]


@pytest.fixture(scope="module")
def settings() -> Configuration:
    return config.load(ROOT)


def test_options_become_a_request(settings: Configuration) -> None:
    driver = settings.driver("downlink")

    assert listening.request(driver) == Request(event_mask=MASK_FILES)
    wanted = listening.request(driver, kinds="opened, Written", path="d:/dir/", statistics="0.5", failed=True)
    mask = Kind.FILE_OPENED.bit | Kind.FILE_WRITTEN.bit | Kind.STATISTICS.bit
    assert wanted == Request("\\DownlinkPort", mask, "d:\\dir", True, 500)
    assert Request.decode(wanted.encode()) == wanted
    assert listening.request(driver, statistics=True).statistics_ms == 1000
    assert listening.request(driver, kinds="statistics").statistics_ms == 1000
    assert set(KINDS.values()) == set(Kind)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kinds": "opend"}, "did you mean 'opened'"),
        ({"kinds": "opened,,written"}, "there is no kind of event ''"),
        ({"path": "dir"}, "'dir' is not a full path"),
        ({"path": "D:dir"}, "is not a full path"),
        ({"statistics": "often"}, "'often' is no interval"),
        ({"statistics": "0.01"}, "seconds between 0.1 and 86400"),
        ({"statistics": "nan"}, "'nan' is no interval"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(
    settings: Configuration, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        listening.request(settings.driver("downlink"), **options)

    assert sentence in caught.value.render()


class Checkout:
    """A checkout in a temporary directory with a machine of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("tasks.py", "harness.toml"):
            shutil.copy(ROOT / name, root / name)
        for name in ("harness", "vm", "driver"):
            (root / name).symlink_to(ROOT / name, target_is_directory=True)
        self.settings = config.load(root)
        self.machine = self.settings.create_machine(None, self.settings.driver())

    def deploy(self) -> None:
        self.machine.start(deadline())  # by this object, so that it can wait for the end of its own child
        build = builds.prepare(config.load(ROOT), None, None, None)
        verbs.deploy(self.settings, verbs.Choices(), build, Console(io.StringIO(), io.StringIO()))

    def guest(self) -> Guest:
        return Guest(self.machine.address(), machine=self.machine.name)

    def run(self, script: str) -> None:
        """Run Python in the guest, with the client library."""
        with self.guest() as guest:
            guest.put_bytes(script.encode(), "C:\\Downlink\\listen\\work.py", deadline())
            guest.run(["python", "work.py"], directory="C:\\Downlink\\listen", deadline=deadline())

    def processes(self) -> str:
        with self.guest() as guest:
            return guest.run(["tasklist"], deadline=deadline()).stdout

    def stop(self) -> None:
        self.machine.stop(deadline())


class Listening:
    """`./inv listen` in a process, and its lines."""

    def __init__(self, root: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "harness", "--search-root", str(root), "listen", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=root,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.first = self.line()

    def line(self) -> str:
        line = self._lines.get(timeout=SECONDS)
        assert line is not None, self.process.stderr.read() if self.process.stderr else ""
        return line

    def until(self, text: str) -> list[str]:
        lines = [self.line()]
        while text not in lines[-1]:
            lines.append(self.line())
        return lines

    def end(self, number: int = signal.SIGINT) -> tuple[int, list[str], str]:
        """Send the signal; exit status, the rest of the lines, standard error."""
        self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        rest = list(iter(lambda: self._lines.get(timeout=SECONDS), None))
        assert self.process.stderr is not None
        return status, rest, self.process.stderr.read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


def deadline() -> Deadline:
    return Deadline.after(seconds=SECONDS)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    try:
        made.deploy()
        yield made
    finally:
        made.stop()


WORK = r"""
from harness.client import files

files.mkdir("D:\\100% dir")
files.create("D:\\100% dir\\a", b"12345")
files.create("D:\\100% directory", b"not watched")
files.rename("D:\\100% dir\\a", "D:\\100% dir\\ä")
files.delete("D:\\100% dir\\ä")
files.delete("D:\\100% directory")
files.remove_tree("D:\\100% dir")
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal and makes symbolic links")
def test_what_happens_in_the_guest_is_shown_at_once_and_ctrl_c_leaves_nothing_running(
    checkout: Checkout,
) -> None:
    before = checkout.processes()
    watching = Listening(checkout.root, "--path", "D:\\100% dir", "--kind", "opened,written,renamed,deleted")
    try:
        assert watching.first == "listening to 'Downlink' on the machine 'emulated'; Ctrl-C ends it"
        assert "python.exe" in checkout.processes()
        checkout.run(WORK)
        # The last of its events comes while the connection stays open: nothing is held back.
        lines = watching.until("deleted       D:\\100% dir\\")
        while not lines[-1].endswith("dir\\"):
            lines += watching.until("deleted       D:\\100% dir\\")
        status, rest, errors = watching.end()
    finally:
        watching.close()

    assert (status, errors) == (0, "")
    assert " events in " in rest[-1] and rest[-1].endswith(", 0 dropped")
    text = "\n".join(lines)
    assert "created       D:\\100% dir\\a" in text
    assert "written       D:\\100% dir\\a  5 bytes" in text
    assert "renamed       D:\\100% dir\\a -> D:\\100% dir\\ä" in text
    assert "directory" not in text and "closed" not in text
    assert checkout.processes() == before


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal and makes symbolic links")
def test_json_is_all_there_is_on_standard_output(checkout: Checkout) -> None:
    watching = Listening(checkout.root, "--json", "--statistics", "0.1", "--failed")
    try:
        checkout.run(
            "from harness.client import files\n"
            "files.create('D:\\\\b', b'1')\n"
            "files.delete('D:\\\\b')\n"
            "try:\n    files.delete('D:\\\\missing')\nexcept OSError:\n    pass\n"
        )
        lines = watching.until("missing") + watching.until("statistics")
        status, rest, _ = watching.end(signal.SIGTERM)
    finally:
        watching.close()

    found = [json.loads(line) for line in (watching.first, *lines, *rest)]
    assert status == 143
    assert found[0] == {"event": "listening", "driver": "Downlink", "machine": "emulated"}
    assert found[-1]["event"] == "summary" and found[-1]["dropped"] == 0
    assert {"opened", "written", "deleted", "statistics"} <= set(found[-1]["kinds"])
    failed = [event for event in found if event.get("path") == "D:\\missing"]
    assert failed and failed[0]["status_name"] == "STATUS_OBJECT_NAME_NOT_FOUND"


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal and makes symbolic links")
def test_an_impatient_second_ctrl_c_leaves_nothing_running_either(checkout: Checkout) -> None:
    before = checkout.processes()
    watching = Listening(checkout.root)
    try:
        for _ in range(200):
            # As many as fit into the time that the clean-up takes.
            if watching.process.poll() is None:
                watching.process.send_signal(signal.SIGINT)
            threading.Event().wait(0.002)
        watching.end()
    finally:
        watching.close()

    assert checkout.processes() == before


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_a_reader_that_leaves_ends_the_listening(checkout: Checkout) -> None:
    before = checkout.processes()
    watching = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "harness",
            "--search-root",
            str(checkout.root),
            "listen",
            "--statistics",
            "0.1",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watching.stdout is not None and watching.stderr is not None
    try:
        assert watching.stdout.readline().startswith(b"listening")
        watching.stdout.close()

        assert watching.wait(SECONDS) == 0
        assert watching.stderr.read() == b""
        assert checkout.processes() == before
    finally:
        watching.kill()
        watching.wait(SECONDS)


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_a_path_that_is_not_watched_is_one_sentence(checkout: Checkout) -> None:
    done = run_listen(checkout.root, "--path", "Q:\\dir")

    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("error: 'Q:\\dir' cannot be watched: ")
    assert done.stdout == ""


@pytest.mark.skipif(os.name == "nt", reason="makes symbolic links")
def test_an_unload_ends_the_listening_and_without_the_driver_there_is_a_hint(checkout: Checkout) -> None:
    watching = Listening(checkout.root)
    try:
        with checkout.guest() as guest:
            guest.run(["fltmc", "unload", "Downlink"], deadline=deadline())
        assert watching.process.wait(SECONDS) == 1
        assert watching.until("ended:")[-1] == "ended: the driver was unloaded"
    finally:
        watching.close()

    done = run_listen(checkout.root, "--machine", "emulated")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the driver 'Downlink' is not loaded (machine 'emulated')",
        "hint: ./inv deploy --machine emulated",
    ]


def test_a_machine_that_does_not_run_is_one_sentence_with_a_hint(
    settings: Configuration, tmp_path: Path
) -> None:
    driver = settings.driver("downlink")
    out = Console(io.StringIO(), io.StringIO())

    with pytest.raises(MachineError) as caught:
        listening.listen(replace(settings, root=tmp_path), None, driver, listening.request(driver), out)

    assert caught.value.render().splitlines() == [
        "error: the machine does not run (machine 'emulated')",
        "hint: ./inv deploy",
    ]


def run_listen(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "--search-root", str(root), "listen", *options],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
    )
