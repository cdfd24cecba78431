"""A suite run for real: pytest in a process of its own with the reporting plugin, and what the host makes of it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.console import Console
from harness.log import Log
from harness.remote.faults import ConnectionLostError
from harness.runs import directory, junit, report, runner, upload
from harness.runs.directory import RunDirectory
from harness.runs.journal import Event, Journal, read
from harness.runs.record import RunRecord
from harness.runs.results import Outcome, Results, TestResult, collect
from harness.runs.view import RunView
from tests.harness.remote_doubles import LocalGuest, MachineDouble
from vm.deadline import Deadline
from vm.errors import ConfigurationError
from vm.machine import Condition, CrashReport, Violation

ROOT = Path(__file__).resolve().parents[2]

SUITE = """
import os
import pytest


@pytest.mark.fact("C8", "P1")
def test_that_passes(request):
    print("@event {}")


@pytest.mark.fact("C8")
def test_that_fails():
    print("printed before")
    assert 1 == 2, "one is not two"


@pytest.mark.slow
@pytest.mark.parametrize("word", ["a", "<b>&"])
def test_that_is_slow(word):
    pass


@pytest.mark.skip(reason="needs a second volume")
def test_that_is_skipped():
    pass


@pytest.mark.xfail(reason="known to fail")
def test_that_is_expected_to_fail():
    assert False


@pytest.fixture
def broken():
    raise RuntimeError("no set-up")


def test_with_a_broken_fixture(broken):
    pass
"""


class Bench:
    """A root with a suite, a guest and a machine; runs the suite and gives its results."""

    def __init__(self, tmp_path: Path, suite: str) -> None:
        self.root = tmp_path / "root"
        self.suites = self.root / "tests" / "driver"
        self.suites.mkdir(parents=True)
        (self.suites / "test_sample.py").write_text(suite, encoding="utf-8")
        client = self.root / "harness" / "client"
        client.mkdir(parents=True)
        shutil.copy(ROOT / "harness" / "__init__.py", self.root / "harness" / "__init__.py")
        (client / "__init__.py").write_text("WORD = 'from the client library'\n", encoding="utf-8")
        self.guest = LocalGuest(tmp_path / "c")
        self.machine = MachineDouble()
        self.machine.start(Deadline.never())
        self.runs = tmp_path / "runs"
        self.shown: list[Event] = []

    def run(self, select: str | None = None, test_seconds: int = 60) -> tuple[Results, RunDirectory]:
        view = RunView(Console(io.StringIO(), color=False))
        view.event = self.shown.append  # type: ignore[method-assign]
        record = RunRecord(self.runs, "double", keep=5, view=view)
        record.write("run", driver="sample", machine="double")
        request = runner.SuiteRequest(self.root, self.suites, select, test_seconds)
        went_down = runner.run_suite(
            self.machine,
            self.guest,  # type: ignore[arg-type]
            request,
            record,
            Deadline.after(seconds=60),
        )
        runner.record_condition(self.machine, record)
        self.went_down = went_down
        return record.finish(1.5), record.directory


@pytest.fixture
def bench(tmp_path: Path) -> Callable[[str], Bench]:
    return lambda suite: Bench(tmp_path, suite)


def outcomes(results: Results) -> dict[str, str]:
    return {test.name: test.outcome.value for test in results.tests}


def test_every_outcome_arrives_with_its_reason_and_facts(bench: Callable[[str], Bench]) -> None:
    results, _ = bench(SUITE).run()

    assert outcomes(results) == {
        "test_that_passes": "passed",
        "test_that_fails": "failed",
        "test_that_is_slow[a]": "passed",
        "test_that_is_slow[<b>&]": "passed",
        "test_that_is_skipped": "skipped",
        "test_that_is_expected_to_fail": "xfailed",
        "test_with_a_broken_fixture": "error",
    }
    by_name = {test.name: test for test in results.tests}
    assert by_name["test_that_passes"].facts == ("C8", "P1")
    assert "one is not two" in by_name["test_that_fails"].text
    assert dict(by_name["test_that_fails"].sections)["Captured stdout call"] == "printed before\n"
    assert by_name["test_that_is_skipped"].reason == "needs a second volume"
    assert by_name["test_that_is_expected_to_fail"].reason == "known to fail"
    assert "no set-up" in by_name["test_with_a_broken_fixture"].text
    assert results.ended and not results.passed


def test_events_arrive_one_by_one_in_the_order_of_the_tests(bench: Callable[[str], Bench]) -> None:
    sample = bench(SUITE)

    sample.run()

    kinds = [event["event"] for event in sample.shown]
    assert kinds[:3] == ["session", "collected", "started"]
    assert kinds[-1] == "end"
    assert kinds.count("started") == kinds.count("finished") == 7


def test_only_the_deployed_files_and_pytest_can_be_imported(bench: Callable[[str], Bench]) -> None:
    suite = (
        "import sys\nimport harness.client\n\n"
        "def test_paths():\n"
        "    assert harness.client.WORD == 'from the client library'\n"
        f"    assert not any(path.startswith({str(ROOT / 'harness')!r}) for path in sys.path)\n"
    )

    results, _ = bench(suite).run()

    assert outcomes(results) == {"test_paths": "passed"}
    assert results.passed


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("slow", {"test_that_is_slow[a]", "test_that_is_slow[<b>&]"}),
        ("slow and fails", set()),
        ("passes or fails", {"test_that_passes", "test_that_fails"}),
        ("fact and not slow", {"test_that_passes", "test_that_fails"}),
    ],
)
def test_a_selection_of_marks_goes_to_m_and_one_of_names_to_k(
    bench: Callable[[str], Bench], select: str, names: set[str]
) -> None:
    results, _ = bench(SUITE).run(select)

    assert set(outcomes(results)) == names
    assert results.deselected == 7 - len(names)
    if not names:
        assert results.problems == ("no test matches the selection",)


def test_a_malformed_selection_is_pytests_own_sentence(bench: Callable[[str], Bench]) -> None:
    results, _ = bench(SUITE).run("slow and (")

    assert not results.passed
    assert "Wrong expression passed to" in results.problems[0]


@pytest.mark.parametrize("select", ['a"b', "a%b", "a\nb"])
def test_a_selection_that_cmd_would_change_is_refused_on_the_host(select: str) -> None:
    with pytest.raises(ConfigurationError, match="does not pass through cmd"):
        runner.check_selection(select)


def test_a_file_that_cannot_be_imported_is_an_error_of_its_own(bench: Callable[[str], Bench]) -> None:
    results, _ = bench("import no_such_module\n").run()

    assert [test.outcome for test in results.tests] == [Outcome.ERROR]
    assert "no_such_module" in results.tests[0].text
    assert not results.passed


def test_a_process_that_dies_leaves_its_test_crashed_and_the_others_not_run(
    bench: Callable[[str], Bench],
) -> None:
    suite = "import os\n\ndef test_a(): pass\ndef test_b(): os._exit(77)\ndef test_c(): pass\n"

    results, _ = bench(suite).run()

    assert outcomes(results) == {"test_a": "passed", "test_b": "crashed", "test_c": "not run"}
    assert "ended with 0x4D" in results.problems[0]
    assert results.in_flight is not None and results.in_flight.name == "test_b"


def test_a_test_that_hangs_is_ended_and_shows_where_it_hung(bench: Callable[[str], Bench]) -> None:
    suite = "import threading\n\ndef test_hangs():\n    threading.Event().wait()\n"

    results, _ = bench(suite).run(test_seconds=1)

    assert outcomes(results) == {"test_hangs": "crashed"}
    assert "took too long" in results.problems[0] and "test_hangs" in results.problems[0]


def test_a_bugcheck_names_the_test_in_flight_and_the_rule(bench: Callable[[str], Bench]) -> None:
    sample = bench("import threading\ndef test_a(): pass\ndef test_b(): threading.Event().wait()\n")
    crash = CrashReport(
        0xC4, "DRIVER_VERIFIER_DETECTED_VIOLATION", (1, 2, 3, 4), "freed twice", ("drv!Free+0x10",)
    )

    def crash_in_b(line: str) -> None:
        if '"event": "started"' in line and "test_b" in line:
            sample.guest.boot = "2"
            sample.machine.present = Condition(crashes=(crash,))
            raise ConnectionLostError("the connection was lost")

    sample.guest.on_line = crash_in_b

    results, run = sample.run()
    out = io.StringIO()
    RunView(Console(out, color=False)).summary(results, run.path)

    assert sample.went_down
    assert outcomes(results)["test_b"] == "crashed"
    assert (
        "bugcheck 0xC4 DRIVER_VERIFIER_DETECTED_VIOLATION (0x1, 0x2, 0x3, 0x4) during test_sample.py::test_b"
        in (out.getvalue())
    )
    assert "freed twice" in out.getvalue() and "at drv!Free+0x10" in out.getvalue()
    assert results.problems == ()


def test_a_restart_that_nothing_explains_is_a_problem_of_its_own(bench: Callable[[str], Bench]) -> None:
    sample = bench("def test_a(): pass\n")
    sample.guest.on_line = lambda _: setattr(sample.guest, "boot", "2")

    results, _ = sample.run()

    assert outcomes(results) == {"test_a": "passed"}
    assert results.problems == ("the guest restarted during the run, which means a bugcheck",)
    assert not results.passed


def test_a_broken_rule_turns_a_run_red_in_which_every_test_passed(bench: Callable[[str], Bench]) -> None:
    sample = bench("def test_a(): pass\n")
    sample.machine.present = Condition(
        violations=(Violation("client-port-leaked", "1 port is open", "Sample"),)
    )

    results, run = sample.run()
    out = io.StringIO()
    RunView(Console(out, color=False)).summary(results, run.path)

    assert not results.passed
    assert "rule broken: client-port-leaked by 'Sample'" in out.getvalue()
    assert out.getvalue().splitlines()[-1].startswith("FAILED: 1 passed, 1 broken rule in 1.5 s")


def test_events_lost_with_the_connection_are_filled_in_from_the_guests_file(
    bench: Callable[[str], Bench],
) -> None:
    sample = bench("def test_a(): pass\ndef test_b(): pass\n")

    def lose(line: str) -> None:
        if '"event": "end"' in line:
            # The process has come to its end; what it said last is lost on the way.
            raise ConnectionLostError("the connection was lost")

    sample.guest.on_line = lose
    original = sample.guest.run

    def deaf(command, **options):  # type: ignore[no-untyped-def]
        heard = options.get("on_output", lambda _: None)
        options["on_output"] = lambda text: (
            heard(text) if "test_b" not in text or "collected" in text else None
        )
        return original(command, **options)

    sample.guest.run = deaf  # type: ignore[method-assign]

    results, run = sample.run()

    assert outcomes(results) == {"test_a": "passed", "test_b": "passed"}
    assert any(event["event"] == "recovered" and event["count"] == 2 for event in read(run.journal))


def test_only_changed_files_are_sent_and_vanished_ones_removed(bench: Callable[[str], Bench]) -> None:
    sample = bench("def test_a(): pass\n")
    extra = sample.suites / "helper.py"
    extra.write_text("x = 1\n", encoding="utf-8")
    sample.run()
    first, sample.guest.sent = sample.guest.sent, []

    sample.run()
    unchanged, sample.guest.sent = sample.guest.sent, []
    extra.unlink()
    (sample.suites / "test_sample.py").write_text("def test_z(): pass\n", encoding="utf-8")
    results, _ = sample.run()

    assert "C:\\Downlink\\suites\\helper.py" in first and "C:\\Downlink\\lib\\guest_plugin.py" in first
    assert unchanged == []
    assert sample.guest.sent == ["C:\\Downlink\\suites\\test_sample.py"]
    assert not sample.guest.path("C:\\Downlink\\suites\\helper.py").exists()
    assert outcomes(results) == {"test_z": "passed"}


def test_an_interrupted_upload_counts_as_none(bench: Callable[[str], Bench]) -> None:
    sample = bench("def test_a(): pass\n")
    sample.run()
    sample.guest.path(upload.MANIFEST).write_text('{"half": ', encoding="utf-8")
    sample.guest.sent = []

    sample.run()

    assert "C:\\Downlink\\suites\\test_sample.py" in sample.guest.sent


def test_an_upload_that_breaks_off_leaves_no_manifest_that_vouches_for_it(
    bench: Callable[[str], Bench],
) -> None:
    sample = bench("def test_a(): pass\n")
    sample.run()
    (sample.suites / "test_sample.py").write_text("def test_b(): pass\n", encoding="utf-8")
    put = sample.guest.put

    def break_off(*_: object, **__: object) -> int:
        raise ConnectionLostError("the connection was lost")

    sample.guest.put = break_off  # type: ignore[method-assign]
    with pytest.raises(ConnectionLostError):
        sample.run()
    assert not sample.guest.path(upload.MANIFEST).exists()

    sample.guest.put, sample.guest.sent = put, []  # type: ignore[method-assign]
    results, _ = sample.run()

    assert outcomes(results) == {"test_b": "passed"}
    assert "C:\\Downlink\\lib\\guest_plugin.py" in sample.guest.sent


def test_a_driver_without_suites_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no suite"):
        upload.gather(ROOT, tmp_path / "nowhere", tmp_path)


def test_junit_has_every_test_its_facts_and_the_machines_condition(bench: Callable[[str], Bench]) -> None:
    sample = bench(SUITE)
    sample.machine.present = Condition(violations=(Violation("leak", "a \x00 byte", "Sample"),))
    results, run = sample.run()

    junit.write(results, run.junit)

    suite = ElementTree.parse(run.junit).getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "8",
        "failures": "1",
        "errors": "2",
        "skipped": "2",
    }
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    facts = [
        prop.get("value") for prop in cases["test_that_passes"].iter("property") if prop.get("name") == "fact"
    ]
    assert facts == ["C8", "P1"]
    failure = cases["test_that_fails"].find("failure")
    assert failure is not None and "one is not two" in (failure.get("message") or "")
    assert "\\x00" in (cases["condition 1"].find("error").text or "")  # type: ignore[union-attr]
    assert not list(run.path.glob("*.part"))


def test_the_report_is_one_file_that_escapes_what_tests_print(bench: Callable[[str], Bench]) -> None:
    results, run = bench(SUITE).run()

    report.write(results, run.report)

    text = run.report.read_text(encoding="utf-8")
    assert "test_that_is_slow[&lt;b&gt;&amp;]" in text and "<b>&]" not in text
    assert "<h2>Facts</h2>" in text and "C8" in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_journal_cut_off_in_the_middle_still_gives_results(bench: Callable[[str], Bench]) -> None:
    _, run = bench("def test_a(): pass\ndef test_b(): pass\n").run()
    lines = run.journal.read_text(encoding="utf-8").splitlines(keepends=True)
    started = [number for number, line in enumerate(lines) if '"started"' in line]
    run.journal.write_text("".join(lines[: started[1] + 1]) + '{"event": "fin', encoding="utf-8")

    results = collect(read(run.journal))

    assert outcomes(results) == {"test_a": "passed", "test_b": "crashed"}
    assert not results.passed


def test_an_interruption_marks_the_test_in_flight_as_interrupted(bench: Callable[[str], Bench]) -> None:
    sample = bench("def test_a(): pass\ndef test_b(): pass\n")

    def interrupt(line: str) -> None:
        if '"event": "started"' in line and "test_b" in line:
            raise KeyboardInterrupt

    sample.guest.on_line = interrupt
    with pytest.raises(KeyboardInterrupt):
        sample.run()
    run = directory.latest(sample.runs)
    Journal(run.journal).write("interrupted")

    results = collect(read(run.journal))

    assert outcomes(results) == {"test_a": "passed", "test_b": "interrupted"}
    assert results.interrupted and not results.passed


def test_nothing_run_is_not_a_pass() -> None:
    assert not collect([{"event": "collected", "tests": []}, {"event": "end", "exit_code": 0}]).passed


def test_secrets_never_reach_journal_or_log(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.protect("hunter2")
    journal = Journal(tmp_path / "journal.jsonl", log)

    log.write("the password is hunter2\nand again hunter2")
    journal.write("problem", text="logon with hunter2 failed")

    assert "hunter2" not in stream.getvalue() + journal.path.read_text(encoding="utf-8")
    assert stream.getvalue().count("***") == 2


def test_latest_points_to_the_newest_run_and_old_ones_go(tmp_path: Path) -> None:
    made = [directory.create(tmp_path, "m", keep=3) for _ in range(5)]
    (tmp_path / "notes").mkdir()

    assert directory.latest(tmp_path).path == made[-1].path.resolve()
    assert [run.path.exists() for run in made] == [False, False, True, True, True]
    assert (tmp_path / "notes").exists()


def test_latest_works_as_a_text_file_where_links_are_not_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("a privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)

    made = directory.create(tmp_path, "m", keep=3)

    assert not (tmp_path / "latest").is_symlink()
    assert directory.latest(tmp_path).path == made.path.resolve()


def test_the_view_shows_failures_as_they_happen_and_counts_by_file() -> None:
    out = io.StringIO()
    view = RunView(Console(out, color=False))
    finished = {"seconds": 0.1, "text": "", "reason": "", "sections": {}, "properties": []}
    for event in (
        {"event": "collected", "tests": [{"id": "a.py::x"}, {"id": "a.py::y"}]},
        {"event": "started", "id": "a.py::x"},
        {"event": "finished", "id": "a.py::x", "outcome": "passed", **finished},
        {"event": "started", "id": "a.py::y"},
        {"event": "finished", "id": "a.py::y", "outcome": "failed", **finished},
        {"event": "end", "exit_code": 1},
    ):
        view.event(json.loads(json.dumps(event)))

    lines = out.getvalue().splitlines()
    assert lines[0] == "running 2 tests in the guest"
    assert lines[1] == "  failed  a.py::y"
    assert lines[2].endswith("a.py: 1 passed, 1 failed")


def test_a_run_in_which_everything_fails_shows_the_first_failures_and_counts_the_rest() -> None:
    tests = tuple(TestResult(f"a.py::t{n}", Outcome.FAILED, text=f"E   reason {n}") for n in range(40))
    out = io.StringIO()

    RunView(Console(out, color=False)).summary(Results(tests, ended=True), Path("runs/x"))

    assert "reason 9" in out.getvalue() and "reason 10" not in out.getvalue()
    assert "and 30 more, all of them in 'runs/x/report.html'" in out.getvalue()


def test_a_test_that_died_says_so_on_the_console_and_in_the_report(tmp_path: Path) -> None:
    results = Results((TestResult("a.py::t", Outcome.CRASHED),), problems=("the guest\nwent away",))
    out = io.StringIO()

    RunView(Console(out, color=False)).summary(results, Path("runs/x"))
    report.write(results, tmp_path / "report.html")

    sentence = "it was running when the machine or its process went down"
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"crashed: a.py::t\n  {sentence}\n" in out.getvalue()
    assert f"<pre>{sentence}</pre>" in text
    assert "<pre class=error>the guest\nwent away</pre>" in text
    assert "came through clean" not in text


def test_a_failure_shows_the_end_of_what_it_printed_and_cuts_endless_lines() -> None:
    printed = "".join(f"line {number}\n" for number in range(20))
    test = TestResult(
        "a.py::t",
        Outcome.FAILED,
        text="E   " + "x" * 1000 + "\nE\nE   why",
        sections=(("Captured stdout call", printed),),
    )
    out = io.StringIO()

    RunView(Console(out, color=False)).summary(Results((test,), ended=True), Path("runs/x"))

    lines = out.getvalue().splitlines()
    assert "  Captured stdout call:" in lines and "  line 19" in lines
    assert "  line 12" in lines and "  line 11" not in lines
    assert max(len(line) for line in lines) < 210 and "  E   why" in lines


def test_the_report_folds_files_in_which_everything_is_good(tmp_path: Path) -> None:
    tests = (
        TestResult("good.py::t", Outcome.PASSED, seconds=0.25),
        TestResult("bad.py::t", Outcome.FAILED, seconds=1.5),
    )

    report.write(Results(tests, ended=True), tmp_path / "report.html")

    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<details><summary><b>good.py</b>: <span class=passed>1 passed</span>" in text
    assert "<details open><summary><b>bad.py</b>: <span class=failed>1 failed</span>" in text
    assert "250 ms" in text and "1.50 s" in text
