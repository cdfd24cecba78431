"""cmd.exe's own commands, and how it joins them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def test_an_unknown_command_answers_as_cmd_does(prompt: Any) -> None:
    result = prompt("nosuch /x")
    assert result.err == (
        "'nosuch' is not recognized as an internal or external command,\r\noperable program or batch file.\r\n"
    )
    assert result.code == 1
    assert prompt("echo %ERRORLEVEL%").out == "9009\r\n"


def test_a_command_of_the_host_is_unknown(prompt: Any) -> None:
    for name in ("sh -c id", "/bin/sh", "ls", "cat /etc/passwd", "..\\..\\bin\\sh"):
        assert "is not recognized" in prompt(name).err


@pytest.mark.parametrize(
    ("line", "out"),
    [
        ("echo a&& echo b", "a\r\nb\r\n"),
        ("nosuch 2>nul && echo b", ""),
        ("nosuch 2>nul || echo b", "b\r\n"),
        ("(echo a& echo b) | findstr b", "b\r\n"),
        ("cmd /c echo x", "x\r\n"),
        ('cmd /c "echo x & echo y"', "x \r\ny\r\n"),
        ("echo.", "\r\n"),
        ('echo "a | b"', '"a | b"\r\n'),
        ("set A=1& echo %A%", "%A%\r\n"),
        ("if 1==1 (echo yes) else (echo no)", "yes\r\n"),
        ("if 1==2 (echo yes) else (echo no)", "no\r\n"),
        ("if defined SystemRoot echo %SystemRoot%", "C:\\Windows\r\n"),
        ("echo to-stderr 1>&2 2>nul", ""),
        ("@echo off", ""),
    ],
)
def test_lines_run_as_in_cmd(prompt: Any, line: str, out: str) -> None:
    assert prompt(line).out == out


def test_variables_and_the_directory_belong_to_the_session(prompt: Any) -> None:
    prompt("set GREETING=hello& mkdir sub& cd sub")
    assert prompt("echo %GREETING% %CD%").out == "hello C:\\Work\\sub\r\n"
    assert prompt("cmd /c set GREETING=other& echo %GREETING%").out == "hello\r\n"
    assert prompt("set GREET").out == "GREETING=hello\r\n"
    assert prompt("set GREETING=& set GREETING").code == 1


@pytest.mark.parametrize(
    ("line", "directory"),
    [
        ("cd sub", "C:\\Work\\sub"),
        ("cd sub& cd ..", "C:\\Work"),
        ("cd..", "C:\\"),
        ("cd \\", "C:\\"),
        ("cd /d C:/Users/lab", "C:\\Users\\lab"),
        ("cd ..\\..\\..", "C:\\"),
        ('cd "sub\\..\\sub"', "C:\\Work\\sub"),
    ],
)
def test_the_directory_moves_as_on_windows(prompt: Any, line: str, directory: str) -> None:
    prompt("mkdir sub")
    assert prompt(line).code == 0
    assert prompt("cd").out == directory + "\r\n"


def test_exit_ends_the_line_with_its_code(prompt: Any) -> None:
    result = prompt("echo a& exit /b 7& echo b")
    assert (result.code, result.out) == (7, "a\r\n")
    assert prompt("exit -1").code == 0xFFFFFFFF
    assert prompt("cmd /c exit 5").code == 5
    assert prompt("cmd /c exit 5 & if errorlevel 5 echo five").out == "five\r\n"


def test_a_line_longer_than_cmd_takes_is_refused(prompt: Any) -> None:
    assert prompt("echo " + "x" * 8186).code == 0
    result = prompt("echo " + "x" * 8187)
    assert (result.code, result.err) == (1, "The command line is too long.\r\n")


def test_redirections_write_append_and_read(prompt: Any) -> None:
    prompt("echo one> f.txt& echo two>> F.TXT& nosuch 2>> f.txt")
    assert prompt.path("f.txt").read_bytes().startswith(b"one\r\ntwo\r\n'nosuch' is not")
    assert prompt("findstr two < f.txt").out == "two\r\n"
    assert prompt('type f.txt | find /c "o"').out.strip() == "4"
    assert prompt("findstr x < missing.txt").code == 1


def test_both_streams_can_go_to_one_file(prompt: Any) -> None:
    prompt("(echo out& nosuch) > both.txt 2>&1")
    text = prompt.path("both.txt").read_text()
    assert text.index("out") < text.index("nosuch")


def test_files_are_copied_moved_renamed_and_deleted(prompt: Any) -> None:
    prompt("echo data> a.txt& mkdir d")
    assert prompt("copy /y a.txt d\\b.txt").lines == ["        1 file(s) copied."]
    assert prompt("move /y a.txt d").lines == ["        1 file(s) moved."]
    assert prompt("ren d\\b.txt c.txt").code == 0
    assert prompt("dir /b d").lines == ["a.txt", "c.txt"]
    assert prompt("del /q d\\*.txt").code == 0
    assert prompt("dir /b d").lines == []
    assert prompt("del gone.txt").err == "Could Not Find C:\\Work\\gone.txt\r\n"


def test_a_directory_goes_only_empty_or_with_s(prompt: Any) -> None:
    prompt("mkdir a\\b\\c& echo x> a\\b\\f")
    assert prompt("mkdir a").err == "A subdirectory or file a already exists.\r\n"
    assert prompt("rmdir a").code == 145
    assert prompt("rd /s /q a").code == 0
    assert prompt("if not exist a echo gone").out == "gone\r\n"
    assert prompt("rmdir a").code != 0
    assert prompt("rd /s /q C:\\").code != 0
    assert prompt.guest.drive.root.is_dir()


def test_names_are_found_without_case_and_kept_with_it(prompt: Any) -> None:
    prompt("mkdir MixedCase& echo x> MixedCase\\File.TXT")
    assert prompt("type mixedcase\\file.txt").out == "x\r\n"
    assert prompt("dir /b MIXEDCASE").lines == ["File.TXT"]
    assert prompt("cd mixedcase & cd").out == "C:\\Work\\MixedCase\r\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("type missing.txt", "The system cannot find the file specified."),
        ("type missing\\x.txt", "The system cannot find the path specified."),
        ("type D:\\x", "The system cannot find the drive specified."),
        ("type \\\\server\\share\\x", "The system cannot find the drive specified."),
        ('type "a|b"', "The filename, directory name, or volume label syntax is incorrect."),
        ("type con:x", "The filename, directory name, or volume label syntax is incorrect."),
        ("type com1", "The filename, directory name, or volume label syntax is incorrect."),
        ("cd missing", "The system cannot find the path specified."),
        ("echo x> missing\\f", "The system cannot find the path specified."),
    ],
)
def test_a_bad_path_has_windows_words(prompt: Any, line: str, text: str) -> None:
    result = prompt(line)
    assert result.err.strip() == text
    assert result.code == 1


def test_nothing_leads_out_of_the_drive(prompt: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    prompt.path("link.txt").symlink_to(secret)
    prompt.path("up").symlink_to(tmp_path)
    for line in (
        "type link.txt",
        "type up\\secret.txt",
        "type ..\\..\\..\\secret.txt",
        "type C:\\..\\secret.txt",
        "copy up\\secret.txt mine.txt",
        "echo x> link.txt",
        "del up\\secret.txt",
        "certutil -hashfile link.txt",
    ):
        result = prompt(line)
        assert "secret" not in result.out.replace("secret.txt", "")
        assert result.code != 0, line
    assert secret.read_text() == "secret"


def test_a_write_into_the_shared_python_does_not_reach_the_cache(python_prompt: Any) -> None:
    file = next(python_prompt.guest.drive.root.glob("Python/**/pluggy/_manager.py"))
    other = file.with_name("hard-link")
    os.link(file, other)
    before = other.read_bytes()
    name = python_prompt.guest.drive.windows_path(file)
    assert python_prompt(f"echo x>> {name}").code == 0
    assert python_prompt(f"echo y> {python_prompt.guest.drive.windows_path(other)}").code == 0
    assert file.read_bytes() == before + b"x\r\n"
    assert other.read_bytes() == b"y\r\n"


def test_findstr_numbers_lines_across_the_pieces_in_which_they_arrive(prompt: Any) -> None:
    lines = [b"%07d x" % number + b"y" * (number % 90) for number in range(1, 20_001)]
    text = b"\r\n".join(lines)
    assert prompt('findstr "^" > copy.txt', text).code == 0
    assert prompt.path("copy.txt").read_bytes() == text + b"\r\n"
    assert prompt('findstr /n "0019999 0020000"', text).lines[-1].startswith("20000:0020000 x")
