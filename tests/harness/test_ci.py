"""What CI systems are told: escaped, capped, complete; and that nothing else is a command to them."""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

import pytest

from harness import check as checks
from harness import ci, config
from harness.ci import markdown, report, scripts, systems, testsigning, wdk
from harness.ci.systems import Annotation, Azure, GitHub, Level
from harness.console import Console
from harness.runs import directory
from harness.runs.journal import Journal
from harness.runs.results import Outcome, Results, TestResult
from vm.errors import ConfigurationError, DownlinkError, MachineError

ROOT = Path(__file__).resolve().parents[2]
HEAD = {
    "driver": "downlink",
    "machine": "local",
    "package": "0123456789abcdef",
    "toolchain": "wdk",
    "revision": "abc",
    "versions": {"wdk": "10.0.28000.1839"},
    "untested": ["no rule class of Driver Verifier | was on"],
}
CRASH = {
    "code": 0xD1,
    "name": "DRIVER_IRQL_NOT_LESS_OR_EQUAL",
    "parameters": (1, 2, 0, 3),
    "rule": "paged memory at DISPATCH_LEVEL",
    "stack": ["Downlink!Send+0x10"],
}
VIOLATION = {
    "rule": "client-port-leaked",
    "message": "one port",
    "driver": "Downlink",
    "stack": [],
    "count": 2,
}
TEXT = (
    "../suites/test_connect.py:12: in test_one\n    connect()\n"
    "../suites/test_connect.py:34: in connect\n    assert 1 == 2\nE   assert 1 == 2\nE    +  where 1 = one()"
)


def failed(name: str = "test_one", text: str = TEXT) -> TestResult:
    return TestResult(f"test_connect.py::{name}", Outcome.FAILED, 0.5, text=text)


def results(*tests: TestResult, **others: object) -> Results:
    return Results(tests=tests, head=HEAD, ended=True, seconds=1.5, **others)  # type: ignore[arg-type]


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(out, io.StringIO()), out


@pytest.mark.parametrize(
    ("environment", "kind"),
    [
        ({}, type(None)),
        ({"GITHUB_ACTIONS": "false", "TF_BUILD": ""}, type(None)),
        ({"GITHUB_ACTIONS": "true"}, GitHub),
        ({"TF_BUILD": "True"}, Azure),
    ],
)
def test_the_system_is_known_by_its_variable(environment: dict[str, str], kind: type) -> None:
    assert type(systems.detect(environment)) is kind


def test_github_annotations_are_escaped() -> None:
    line = GitHub({}).annotation(
        Annotation(Level.ERROR, "100%: a, b\r\n::x", "50% done\nline: two, three\r", "tests/a,b.py", 7)
    )

    assert line == (
        "::error title=100%25%3A a%2C b%0D%0A%3A%3Ax,file=tests/a%2Cb.py,line=7::50%25 done%0Aline: two, three%0D"
    )


def test_azure_annotations_are_escaped() -> None:
    line = Azure().annotation(Annotation(Level.ERROR, "t", "50% done]\n;x\r", "a;b].py", 7))

    assert line == (
        "##vso[task.logissue type=error;sourcepath=a%3Bb%5D.py;linenumber=7]t: 50%AZP25 done]%0A;x%0D"
    )


@pytest.mark.parametrize("system", [GitHub({}), Azure()])
@pytest.mark.parametrize("level", Level)
def test_an_annotation_is_one_line_of_bounded_length(system: systems.System, level: Level) -> None:
    line = system.annotation(Annotation(level, "title", "x\n" * 10_000))

    assert len(line.splitlines()) == 1
    assert len(line) < 3 * systems.MESSAGE_CHARACTERS


@pytest.mark.parametrize(
    "text",
    [
        "::error::x",
        "   ::add-path::/tmp",
        "first\n\t::set-env name=PATH::x",
        "::::x",
        "some ##[error]text",
    ],
)
def test_text_of_others_is_no_command_to_github(text: str) -> None:
    said = GitHub({}).defuse(text)

    assert not re.search(r"^\s*::", said, re.MULTILINE)
    assert "##[" not in said


@pytest.mark.parametrize(
    "text", ["##vso[task.setvariable variable=a]b", "x ##VSO[a]", "##[error]x", "####[x]"]
)
def test_text_of_others_is_no_command_to_azure(text: str) -> None:
    said = Azure().defuse(text)

    assert not re.search(r"##(vso)?\[", said, re.IGNORECASE)


def test_ordinary_text_is_left_alone() -> None:
    text = "tests/driver/test_a.py::test_b: 3 ## x [y]"

    assert GitHub({}).defuse(text) == text
    assert Azure().defuse(text) == text


def test_a_value_cannot_set_another_output(tmp_path: Path) -> None:
    file = tmp_path / "output"
    system = GitHub({"GITHUB_OUTPUT": str(file)})

    system.output("first", "a\nend_0\nsecond=b")
    system.output("first", "c")

    text = file.read_text(encoding="utf-8")
    delimiters = re.findall(r"^first<<(end_[0-9a-f]{32})$", text, re.MULTILINE)
    assert len(set(delimiters)) == 2
    assert all(text.count(delimiter) == 2 for delimiter in delimiters)


def test_an_output_without_a_place_for_it_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="GITHUB_OUTPUT is not set"):
        GitHub({}).output("a", "b")


def test_a_failed_test_is_annotated_where_it_asserted() -> None:
    (annotation,) = report.of_run(results(failed()), "tests/driver")

    assert annotation.file == "tests/driver/test_connect.py"
    assert annotation.line == 34
    assert annotation.title == "failed: test_one"
    assert annotation.message == "assert 1 == 2\n+  where 1 = one()"


def test_crashes_and_broken_rules_come_first() -> None:
    found = report.of_run(results(failed(), crashes=(CRASH,), violations=(VIOLATION,), problems=("p",)), "s")

    assert [annotation.title.split(" ")[0] for annotation in found] == [
        "bugcheck",
        "client-port-leaked",
        "problem",
        "failed:",
    ]
    assert "paged memory" in found[0].message and "Downlink!Send" in found[0].message


def test_there_are_ten_annotations_at_most_and_the_last_one_counts() -> None:
    many = results(*(failed(f"test_{number}") for number in range(25)))

    found = report.of_run(many, "s")

    assert len(found) == 10
    assert found[-1].title == "16 more"
    assert len(report.of_run(results(*(failed(str(number)) for number in range(10))), "s")) == 10


def test_a_green_run_has_no_annotations_and_an_empty_one_has() -> None:
    assert report.of_run(results(TestResult("a.py::b", Outcome.PASSED)), "s") == []
    assert [found.title for found in report.of_run(results(), "s")] == ["no test passed"]
    assert [found.title for found in report.of_run(results(interrupted=True), "s")] == ["interrupted"]
    assert [found.title for found in report.of_run(results(problems=("no match",)), "s")] == ["problem"]


def test_the_summary_has_what_a_reader_needs() -> None:
    skipped = TestResult("a.py::c", Outcome.SKIPPED, reason="needs a second volume")
    text = markdown.summary(
        results(
            failed(),
            skipped,
            crashes=(CRASH,),
            violations=(VIOLATION,),
            steps=({"name": "deploy", "detail": "", "seconds": 2.0},),
        )
    )

    for expected in (
        "FAILED",
        "1 failed, 1 skipped",
        "local",
        "0123456789abcdef",
        "10.0.28000.1839",
        "bugcheck 0xD1 DRIVER&#95;IRQL",
        "paged memory at DISPATCH_LEVEL",
        "client&#45;port&#45;leaked",
        "test&#95;connect.py&#58;&#58;test&#95;one",
        "assert 1 == 2",
        "### Not tested",
        "no rule class of Driver Verifier &#124; was on",
        "needs a second volume (1)".replace("(", "&#40;").replace(")", "&#41;"),
        "| deploy | 2.00 |",
    ):
        assert expected in text, expected


def test_nothing_in_a_name_is_markdown_or_html() -> None:
    said = markdown.plain("a|b`c`<img src=x>*d*_e_[f](g)@h\n# i & ![j](k) http://l ~~m~~ \\n")

    assert not re.search(r"[|`<>*_\[\]()@!~\\\n]", said)
    assert "&amp;" not in said


def test_nothing_in_a_text_ends_its_block() -> None:
    said = markdown.block("a\n```\n<b>\n````\nc")

    lines = said.splitlines()
    assert lines[0] == "`````text" and lines[-1] == "`````"
    assert all(len(line) - len(line.lstrip("`")) < 5 for line in lines[1:-1])


def test_the_summary_is_capped() -> None:
    huge = results(*(failed(f"test_{number}", "x" * 50_000) for number in range(5000)))
    text = markdown.summary(huge)

    assert text.count("<details>") <= markdown.FAILURES_SHOWN + 1
    assert "and 4800 more" in text
    assert len(systems._cut_bytes("ä" * 10**6 + "\n").encode()) <= systems.SUMMARY_BYTES + 100


@pytest.fixture
def settings(tmp_path: Path) -> config.Configuration:
    shutil.copy(ROOT / "harness.toml", tmp_path)
    return config.load(tmp_path)


def write_run(settings: config.Configuration) -> Path:
    run = directory.create(settings.runs.directory, "local", keep=3)
    journal = Journal(run.journal)
    journal.write("run", **HEAD)
    journal.write("collected", tests=[{"id": "test_connect.py::test_one", "facts": [], "marks": []}])
    journal.write("started", id="test_connect.py::test_one")
    journal.write(
        "finished",
        id="test_connect.py::test_one",
        outcome="failed",
        seconds=0.1,
        text=TEXT,
        reason="",
        sections={},
        properties=[],
    )
    journal.write("end")
    journal.write("verdict", passed=False, seconds=1.0)
    journal.close()
    return run.path


def test_a_session_tells_github_of_the_run_made_in_it(settings: config.Configuration, tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    shown, out = console()

    with report.session(shown, settings, GitHub({"GITHUB_STEP_SUMMARY": str(summary)})):
        shown.line("  ::error::from the guest")
        write_run(settings)

    lines = out.getvalue().splitlines()
    token = lines[0].removeprefix("::stop-commands::")
    assert lines[1] == "  : :error::from the guest"
    assert lines[2] == f"::{token}::"
    assert lines[3].startswith("::error title=failed%3A test_one,file=tests/driver/test_connect.py,line=34::")
    assert "FAILED" in summary.read_text(encoding="utf-8")


def test_a_session_tells_azure_of_the_run_made_in_it(settings: config.Configuration) -> None:
    shown, out = console()

    with report.session(shown, settings, Azure()):
        shown.line("##vso[task.complete result=Succeeded]")
        run = write_run(settings)

    lines = out.getvalue().splitlines()
    assert lines[0] == "## vso[task.complete result=Succeeded]"
    assert lines[1].startswith(
        "##vso[task.logissue type=error;sourcepath=tests/driver/test_connect.py;linenumber=34]"
    )
    assert lines[2] == f"##vso[task.uploadsummary]{run / 'summary.md'}"
    assert "FAILED" in (run / "summary.md").read_text(encoding="utf-8")


def test_the_error_that_ends_a_command_is_not_told_as_a_problem_of_its_run(
    settings: config.Configuration,
) -> None:
    shown, out = console()

    with pytest.raises(MachineError), report.session(shown, settings, Azure()):
        run = directory.create(settings.runs.directory, "local", keep=3)
        journal = Journal(run.journal)
        for text in ("it went away", "another thing"):
            journal.write("problem", text=text, hint=None)
        journal.close()
        raise MachineError("it went away")

    assert "it went away" not in out.getvalue()
    assert "another thing" in out.getvalue()


def test_an_older_run_is_not_told_again(settings: config.Configuration) -> None:
    write_run(settings)
    shown, out = console()

    with pytest.raises(DownlinkError), report.session(shown, settings, Azure()):
        raise DownlinkError("nothing was run")

    assert out.getvalue() == ""


def test_outside_of_a_ci_system_nothing_is_said(
    settings: config.Configuration, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in systems.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    shown, out = console()

    with report.session(shown, settings):
        shown.line("::error::x")
        write_run(settings)

    assert out.getvalue() == "::error::x\n"


def test_an_error_of_a_command_is_annotated_and_is_no_command_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")

    said = ci.render(MachineError("it said:\n::error::x", hint="look", machine="m"))

    assert capsys.readouterr().out == "::error title=machine 'm'::it said:%0A::error::x%0Ahint: look\n"
    assert said == "error: it said:\n: :error::x (machine 'm')\nhint: look"


PYTEST = """
tests/vm/test_a.py:12: in test_b
E   assert False
tests/vm/test_a.py:14: AssertionError
=== short test summary info ===
FAILED tests/vm/test_a.py::test_b[x] - assert False
ERROR tests/vm/test_c.py
1 failed
"""


def test_the_projects_own_checks_are_annotated() -> None:
    first, second = report.of_check("pytest", PYTEST)

    assert (first.file, first.line, first.title, first.message) == (
        "tests/vm/test_a.py",
        14,
        "pytest: test_b[x]",
        "assert False",
    )
    assert (second.file, second.line, second.message) == ("tests/vm/test_c.py", 0, "failed")
    (typed,) = report.of_check("mypy", "harness/a.py:7: error: Name is bad  [x]\nFound 1 error in 1 file\n")
    assert (typed.file, typed.line) == ("harness/a.py", 7)
    (other,) = report.of_check("format", "something else\n")
    assert (other.file, other.message) == ("", "something else")


def test_the_output_of_a_check_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    shown, out = console()

    report.check_failed("pytest", "##vso[task.complete]", shown, Azure())

    first, second = out.getvalue().splitlines()
    assert first == "## vso[task.complete]"
    assert second == "##vso[task.logissue type=error]pytest: ## vso[task.complete]"


def test_what_the_projects_own_tests_print_is_not_for_the_ci_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in systems.VARIABLES:
        monkeypatch.setenv(variable, "true")
    seen = "import os; print([name for name in ('GITHUB_ACTIONS', 'TF_BUILD') if name in os.environ])"
    shown, out = console()

    checks.run(
        tmp_path, shown, [checks.Check("seen", (sys.executable, "-c", seen), lambda output: output.strip())]
    )

    assert "seen: ok  []" in out.getvalue()


@pytest.mark.parametrize(
    ("output", "possible", "reason"),
    [
        ("identifier  {current}\ntestsigning             Yes\n", True, "testsigning is on"),
        ("testsigning             Ja\n", True, "testsigning is on"),
        ("testsigning             No\n", False, "testsigning is off"),
        ("testsigning             Nein\n", False, "testsigning is off"),
        ("identifier  {current}\n", False, "does not mention testsigning"),
    ],
)
def test_testsigning_is_asked_for(output: str, possible: bool, reason: str) -> None:
    found = testsigning.ask(lambda: (0, output), "win32")

    assert found.possible is possible
    assert reason in found.reason


def test_a_load_test_that_is_skipped_says_why() -> None:
    def broken() -> tuple[int, str]:
        raise OSError("not found")

    assert (
        "exit code 1: access is denied" in testsigning.ask(lambda: (1, "access is\ndenied"), "win32").reason
    )
    assert "not found" in testsigning.ask(broken, "win32").reason
    finding = testsigning.ask(platform="linux")
    shown, out = console()

    testsigning.tell(shown, Azure(), finding)

    assert "##vso[task.setvariable variable=testsigning;isoutput=true]false" in out.getvalue()
    assert "##vso[task.logissue type=warning]load test skipped: this is not Windows" in out.getvalue()


def pinned(tmp_path: Path) -> Path:
    (tmp_path / "driver").mkdir()
    for name in (*wdk.PACKAGES, wdk.PROPS):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_wdk_is_moved_within_its_line_only(tmp_path: Path) -> None:
    root = pinned(tmp_path)
    now, before = (pin.version for pin in wdk.look(root, lambda package: []))
    newer = f"{now.rpartition('.')[0]}.99999"
    published = [now, before, newer, "10.0.99000.1", "10.0.28000.100000-preview", "9.0.28000.1"]

    first, second = pins = wdk.look(root, lambda package: published)
    changed = wdk.bump(root, pins)

    assert (first.newer, first.newer_line) == (newer, "10.0.99000.1")
    assert (second.version, second.newer) == (before, "")
    assert changed == [wdk.PROPS, wdk.PACKAGES[0]]
    assert [pin.version for pin in wdk.look(root, lambda package: [])] == [newer, before]
    assert now not in (root / wdk.PROPS).read_text(encoding="utf-8")
    assert before in (root / wdk.PROPS).read_text(encoding="utf-8")


def test_a_version_that_not_all_packages_have_does_not_count(tmp_path: Path) -> None:
    root = pinned(tmp_path)
    now = wdk.look(root, lambda package: [])[0].version
    newer = f"{now.rpartition('.')[0]}.99999"

    pins = wdk.look(root, lambda package: [now] if "arm64" in package else [now, newer])

    assert not any(pin.newer for pin in pins)
    assert wdk.bump(root, pins) == []


def test_the_packages_of_a_file_are_of_one_version(tmp_path: Path) -> None:
    root = pinned(tmp_path)
    file = root / wdk.PACKAGES[0]
    text = file.read_text(encoding="utf-8")
    version = wdk.look(root, lambda package: [])[0].version
    file.write_text(text.replace(version, "10.0.1.1", 1), encoding="utf-8")

    with pytest.raises(ConfigurationError, match="must pin all packages to one version, not to 2"):
        wdk.look(root, lambda package: [])


def test_the_outputs_of_the_wdk_check_name_the_versions() -> None:
    shown, out = console()

    wdk.tell(shown, Azure(), [wdk.Pin("a", "1.0.2.3", "1.0.2.4", ""), wdk.Pin("b", "1.0.1.3", "", "")])

    assert "##vso[task.setvariable variable=newer;isoutput=true]true" in out.getvalue()
    assert "##vso[task.setvariable variable=versions;isoutput=true]1.0.2.4" in out.getvalue()
    assert "a: 1.0.2.3: 1.0.2.4 is published" in out.getvalue()


def test_complaints_of_the_analyzer_are_annotated(monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(ROOT / "ci" / "scripts" / "Test-Scripts.ps1")
    complaints = [
        {"file": file, "line": 3, "rule": "PSAvoidX", "severity": "Warning", "message": "m"},
        {"file": file, "line": 4, "rule": "Missing", "severity": "ParseError", "message": "n"},
    ]
    answer = {"powershell": "5.1", "analyzer": "1.24.0", "complaints": complaints}
    monkeypatch.setattr(scripts, "_ask", lambda root, listed: answer)
    shown, out = console()

    assert scripts.run(ROOT, shown, GitHub({})) == 1
    assert "::warning title=PSAvoidX,file=ci/scripts/Test-Scripts.ps1,line=3::m" in out.getvalue()
    assert "::error title=Missing,file=ci/scripts/Test-Scripts.ps1,line=4::n" in out.getvalue()
    answer["complaints"] = []
    assert scripts.run(ROOT, shown, GitHub({})) == 0
