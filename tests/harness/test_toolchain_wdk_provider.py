"""Running tools: everything they print arrives, nothing they start stays, no secret is kept; and the tests' double."""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path, PureWindowsPath

import pytest

from harness.toolchain.wdk.provider import (
    ToolResult,
    Variables,
    WindowsProvider,
    decode,
    shown_command,
    tool_name,
)
from tests.harness.wdk_transcripts import Row, TranscriptProvider, UnexpectedCallError
from vm.deadline import Deadline
from vm.errors import BuildError, DeadlineExceededError


def soon() -> Deadline:
    return Deadline.after(seconds=30)


def run_python(code: str, *more: str, deadline: Deadline | None = None, stdin: bytes = b"") -> ToolResult:
    return WindowsProvider().run(
        sys.executable, ["-c", code, *more], deadline=deadline or soon(), stdin=stdin
    )


def test_both_streams_the_exit_code_and_the_duration_arrive() -> None:
    result = run_python("import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)")
    assert (result.stdout, result.stderr, result.exit_code) == ("one\n", "two\n", 3)
    assert result.output == "one\ntwo"
    assert 0 < result.seconds < 30


def test_more_than_a_pipe_holds_arrives_on_both_streams_while_input_is_read() -> None:
    code = (
        "import sys; data = sys.stdin.read(); sys.stderr.write('e' * 300000);"
        "sys.stdout.write('o' * 300000); sys.exit(len(data) != 200000)"
    )
    result = run_python(code, stdin=b"x" * 200000)
    assert (len(result.stdout), len(result.stderr), result.exit_code) == (300000, 300000, 0)


def test_a_tool_that_reads_nothing_does_not_fail_for_it() -> None:
    assert run_python("pass", stdin=b"x" * 1_000_000).exit_code == 0


@pytest.mark.skipif(os.name != "posix", reason="asks for processes by signal 0")
def test_what_the_tool_left_running_neither_stays_nor_holds_the_pipes() -> None:
    code = (
        "import subprocess, sys;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    result = run_python(code)
    assert result.seconds < 20
    assert is_gone(int(result.stdout))


@pytest.mark.skipif(os.name != "posix", reason="asks for processes by signal 0")
def test_a_tool_that_does_not_end_is_ended_with_its_children_and_its_last_line_is_told(
    tmp_path: Path,
) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('first'); print('linking', flush=True);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(60)"
    )
    with pytest.raises(DeadlineExceededError, match=r"did not end within \d+ s; its last line was 'linking'"):
        run_python(code, str(note), deadline=Deadline.after(seconds=2))
    assert is_gone(int(note.read_text()))


def test_a_deadline_that_has_passed_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(DeadlineExceededError, match="to be started"):
        run_python(
            "import sys; open(sys.argv[1], 'w')", str(tmp_path / "ran"), deadline=Deadline.after(seconds=-1)
        )
    assert not (tmp_path / "ran").exists()


def test_a_tool_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(BuildError, match="'stampinf' cannot be started: No such file") as caught:
        WindowsProvider().run(r"C:\kit\stampinf.exe", [], deadline=soon())
    assert caught.value.hint == "./inv doctor says which tools were found"


def test_directory_and_environment_are_those_that_were_given(tmp_path: Path) -> None:
    result = WindowsProvider().run(
        sys.executable,
        ["-c", "import os; print(os.getcwd()); print(os.environ['ONLY'])"],
        directory=tmp_path,
        environment={"ONLY": "this", "SYSTEMROOT": os.environ.get("SYSTEMROOT", "")},
        deadline=soon(),
    )
    assert result.stdout.split() == [str(tmp_path.resolve()), "this"]


def test_a_secret_is_neither_logged_nor_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        result = WindowsProvider().run(
            sys.executable, ["-c", "pass", "/p", "open sesame", "/p:Configuration=Debug"], deadline=soon()
        )
    assert "sesame" not in caplog.text and "sesame" not in repr(result)
    assert "/p:Configuration=Debug" in caplog.text
    assert "exit code 0 after" in caplog.text


def test_values_of_variables_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    variables = {**os.environ, "TOKEN": "open sesame"}
    with caplog.at_level(logging.DEBUG):
        provider = WindowsProvider(variables)
        provider.run(sys.executable, ["-c", "pass"], deadline=soon())
    assert "sesame" not in caplog.text
    assert "sesame" not in repr(provider.environment)


def test_only_the_value_of_a_secret_option_is_masked() -> None:
    assert shown_command("signtool", ["sign", "/P", "x", "/f", "a.pfx"]) == (
        "signtool",
        "sign",
        "/P",
        "***",
        "/f",
        "a.pfx",
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("Zugriff verweigert: für".encode(), "Zugriff verweigert: für"),
        ("f\u00fcr".encode("cp437") + b"\r\n" + "für".encode(), "für\nfür"),
        (b"\xef\xbb\xbfone\r\ntwo\r\n", "one\ntwo\n"),
        ("Läuft\r\n".encode("utf-16-le"), "Läuft\n"),
        ("Läuft\r\n".encode("utf-16"), "Läuft\n"),
        (b"", ""),
        (b"a\0", "a\0"),
        (b"50 %\r100 %\n", "50 %\n100 %\n"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="the OEM code page is this host's there")
def test_output_is_decoded_line_by_line(data: bytes, text: str) -> None:
    assert decode(data) == text


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        (PureWindowsPath(r"C:\Kits\x64\StampInf.exe"), "StampInf"),
        (Path("/opt/signtool.exe"), "signtool"),
        ("msbuild", "msbuild"),
    ],
)
def test_a_tool_is_named_without_its_directory(tool: str | Path, name: str) -> None:
    assert tool_name(tool) == name


def test_variables_are_found_in_any_case_and_keep_their_names() -> None:
    found = Variables({"ProgramFiles(x86)": "C:", "Path": "D:"})
    assert found["PROGRAMFILES(X86)"] == "C:" and found.get("path") == "D:" and "nope" not in found
    assert dict(found) == {"ProgramFiles(x86)": "C:", "Path": "D:"}


def test_a_directory_is_searched_without_regard_to_case(tmp_path: Path) -> None:
    for name in ("10.0.26100.0", "10.0.28000.0", "X64"):
        (tmp_path / name).mkdir()
    provider = WindowsProvider()
    assert [entry.name for entry in provider.glob(tmp_path, "10.0.*")] == ["10.0.26100.0", "10.0.28000.0"]
    assert [entry.name for entry in provider.glob(tmp_path, "x64")] == ["X64"]
    assert provider.glob(tmp_path / "missing", "*") == ()


def test_a_transcript_answers_each_row_once_and_writes_its_files(tmp_path: Path) -> None:
    row = Row.read(
        {
            "tool": "msbuild",
            "arguments": ["/p:OutDir=(?P<out>.+)", "/t:(build|rebuild)"],
            "exit_code": 1,
            "stdout": ["to {out}", "{not a group}"],
            "files": {"{out}/a.txt": "in {out}", "{out}/b.bin": {"artefact": "image"}},
        }
    )
    provider = TranscriptProvider(rows=[row], artefacts={"image": b"MZ"})
    arguments = ["x.vcxproj", "/t:Rebuild", f"/p:OutDir={tmp_path}"]
    result = provider.run(PureWindowsPath(r"C:\VS\MSBuild.exe"), arguments, deadline=soon())
    assert (result.exit_code, result.stdout) == (1, f"to {tmp_path}\n{{not a group}}\n")
    assert (tmp_path / "a.txt").read_text() == f"in {tmp_path}"
    assert (tmp_path / "b.bin").read_bytes() == b"MZ"
    provider.finish()
    with pytest.raises(UnexpectedCallError, match="no row expects"):
        provider.run("msbuild", arguments, deadline=soon())


def test_a_transcript_fails_on_other_arguments_and_on_rows_left_over() -> None:
    provider = TranscriptProvider(rows=[Row("signtool", ("sign", "/ph"))])
    with pytest.raises(UnexpectedCallError, match="signtool sign /fd"):
        provider.run("signtool", ["sign", "/fd"], deadline=soon())
    with pytest.raises(UnexpectedCallError, match="never called: signtool sign /ph"):
        provider.finish()


def test_the_made_up_tree_is_searched_as_windows_does() -> None:
    provider = TranscriptProvider(
        {r"C:\Kits\10\bin\10.0.28000.0\x64\signtool.exe": "", r"C:\Kits\10\a.txt": "text"},
        {"Path": r"C:\other;C:\kits\10\bin\10.0.28000.0\X64"},
    )
    kits = PureWindowsPath(r"c:\kits\10")
    assert provider.exists(kits / "BIN") and not provider.exists(kits / "lib")
    assert [entry.name for entry in provider.glob(kits / "bin", "10.*")] == ["10.0.28000.0"]
    assert provider.read_text(kits / "A.TXT") == "text"
    assert provider.find("SignTool") is not None and provider.find("inf2cat.exe") is None
    assert isinstance(provider.find("signtool"), PureWindowsPath)


def is_gone(pid: int) -> bool:
    """Whether a process is gone, or only its entry is left until its parent asks."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False
