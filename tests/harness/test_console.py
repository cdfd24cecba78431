"""The console: lines that stay, the one that changes in place, and errors."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from harness import check
from harness.console import Console
from harness.interrupts import TerminatedError, exit_status
from vm.errors import DownlinkError, GuestError

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_there_is_no_transient_line_and_no_colour() -> None:
    out = io.StringIO()
    console = Console(out)

    console.transient("working")
    console.line(console.style("done", "green"))

    assert out.getvalue() == "done\n"


def test_on_a_terminal_the_transient_line_is_erased_before_the_next_one() -> None:
    out = Terminal()
    console = Console(out, color=False)

    console.transient("one of two")
    console.line("two of two")

    assert out.getvalue() == "one of two\r\x1b[2Ktwo of two\n"


def test_a_transient_line_is_cut_to_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()

    Console(out, color=False).transient("x" * 100)

    assert len(out.getvalue()) == 19


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert Console(Terminal()).style("word", "red") == "word"


def test_a_stream_that_cannot_write_a_character_gets_an_escape() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")

    Console(out, color=False).line("a … b")

    assert raw.getvalue() == b"a \\u2026 b\n"


def test_an_error_goes_to_standard_error_with_causes_and_hint() -> None:
    out, err = io.StringIO(), io.StringIO()
    error = GuestError(
        "it failed", hint="look there", machine="lab", causes=[DownlinkError("b", causes=[OSError("c")])]
    )

    Console(out, err).error(error)

    assert out.getvalue() == ""
    assert err.getvalue().splitlines() == [
        "error: it failed (machine 'lab')",
        "  because: b",
        "    because: c",
        "hint: look there",
    ]


def test_exit_statuses_of_interrupts_are_those_of_shells() -> None:
    assert exit_status(KeyboardInterrupt()) == 130
    assert exit_status(TerminatedError(15)) == 143


def script(text: str) -> tuple[str, ...]:
    return (sys.executable, "-c", text)


def test_check_runs_everything_and_shows_only_the_output_of_what_failed(tmp_path: Path) -> None:
    out = io.StringIO()
    checks = [
        check.Check("good", script("print('quiet'); print('3 passed')"), check._last_line),
        check.Check("bad", script("print('what is wrong'); raise SystemExit(3)"), check._first_line),
        check.Check("last", script("print('fine')"), check._last_line),
    ]

    status = check.run(tmp_path, Console(out, color=False), checks)

    lines = out.getvalue().splitlines()
    assert status == 1
    assert lines[0].endswith("good: ok  3 passed") and "quiet" not in out.getvalue()
    assert "bad: FAILED" in lines[1] and lines[2] == "what is wrong"
    assert lines[3].endswith("last: ok  fine")
    assert lines[-1] == "FAILED: bad"


def test_check_passes_when_everything_does(tmp_path: Path) -> None:
    out = io.StringIO()

    assert (
        check.run(tmp_path, Console(out, color=False), [check.Check("a", script(""), check._last_line)]) == 0
    )
    assert out.getvalue().splitlines()[-1] == "passed"


def test_the_checks_are_ruff_its_formatter_clang_format_mypy_and_pytest() -> None:
    assert [one.name for one in check.checks(ROOT)] == ["ruff", "format", "clang-format", "mypy", "pytest"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with our style and two files that follow it."""
    shutil.copy(ROOT / ".clang-format", tmp_path)
    (tmp_path / "driver" / "src").mkdir(parents=True)
    (tmp_path / "driver" / "src" / "good.c").write_text("int one;\n")
    (tmp_path / "driver" / "good.h").write_text("extern int one;\n")
    return tmp_path


def format_check(checkout: Path) -> tuple[int, str]:
    """The exit status and the output of the C formatter's check."""
    out = io.StringIO()
    found = [one for one in check.checks(checkout) if one.name == "clang-format"]
    return check.run(checkout, Console(out, color=False), found), out.getvalue()


def test_c_in_our_style_passes_and_is_counted(checkout: Path) -> None:
    status, output = format_check(checkout)

    assert status == 0
    assert "clang-format: ok  2 files" in output


@pytest.mark.parametrize("name", ["src/bad.c", "bad.h", "deeper/down/bad.h"])
def test_c_in_another_style_fails_with_its_file_and_is_left_as_it_is(checkout: Path, name: str) -> None:
    bad = checkout / "driver" / name
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_text("int  two( void ) { return 2; }\n")

    status, output = format_check(checkout)

    assert status == 1
    assert f"driver/{name}:1:" in output and "code should be clang-formatted" in output
    assert bad.read_text() == "int  two( void ) { return 2; }\n"


def test_no_c_at_all_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no C file"):
        check.checks(tmp_path)


def test_every_c_file_of_the_driver_is_checked() -> None:
    checked = check.c_sources(ROOT)
    assert {"driver/downlink_protocol.h", "driver/src/queue.c", "driver/clients/listen.c"} <= set(checked)
    assert "driver/cross/arm64/wdm.h" in checked
