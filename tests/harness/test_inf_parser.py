"""The INF parser: sections, quoting, continuation, comments, strings and encodings, as Windows reads them."""

from __future__ import annotations

import pytest

from harness.inf import parse
from vm.inf.install import Family, copied_files, for_architecture, registry, services
from vm.inf.parser import decode


def fields(line: str) -> list[str]:
    [entry] = parse(f"[A]\n{line}\n").sections["a"].entries
    return [field.text for field in entry.fields]


def test_names_of_sections_and_keys_have_no_case() -> None:
    inf = parse("[Version]\nCLASS = x\n[vERSION]\nProvider = y\n")

    section = inf.section("VERSION")
    assert section is not None and section.name == "Version" and section.line == 1
    assert (section.text("class"), section.text("PROVIDER")) == ("x", "y")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("a, b ,c", ["a", "b", "c"]),
        ('"a, b", c', ["a, b", "c"]),
        ('" a "', [" a "]),
        ('"a ""quoted"" word"', ['a "quoted" word']),
        ('"a;b" ; a comment', ["a;b"]),
        ("a,,b", ["a", "", "b"]),
        ("a,", ["a", ""]),
        ('HKR,"Instances\\"Name,"x=y"', ["HKR", "Instances\\Name", "x=y"]),
        ('""', [""]),
    ],
)
def test_fields_are_separated_by_commas_outside_quotation_marks(line: str, wanted: list[str]) -> None:
    assert fields(line) == wanted


def test_a_key_ends_at_the_first_equals_sign() -> None:
    [entry] = parse('[A]\nkey = "a=b", c = d\n').sections["a"].entries

    assert entry.key is not None and entry.key.text == "key"
    assert [field.text for field in entry.fields] == ["a=b", "c = d"]


def test_a_comment_ends_the_line_and_an_empty_line_is_nothing() -> None:
    inf = parse("; head\n[A] ; name\n\n  ; only\nx = 1 ; one\n")

    assert [entry.line for entry in inf.sections["a"].entries] == [5]
    assert inf.sections["a"].text("x") == "1"
    assert inf.problems == ()


def test_a_line_goes_on_after_a_backslash_and_counts_where_it_begins() -> None:
    inf = parse("[A]\nx = a, \\ ; more\n    b, \\\n    c\ny = 2\n")

    [x, y] = inf.sections["a"].entries
    assert [field.text for field in x.fields] == ["a", "b", "c"]
    assert (x.line, y.line) == (2, 5)


def test_a_backslash_inside_quotation_marks_continues_nothing() -> None:
    inf = parse('[A]\nx = "C:\\"\ny = 1\n')

    assert inf.sections["a"].text("x") == "C:\\"
    assert inf.sections["a"].text("y") == "1"


def test_strings_replace_tokens_also_inside_quotation_marks_and_beside_text() -> None:
    inf = parse(
        '[A]\nx = %Name%, "in %NAME%", "Key\\"%name%, %12%\\a.sys, 100%%, %Other%\n[Strings]\nName = "a, b"\n'
    )

    assert [field.text for field in inf.sections["a"].entries[0].fields] == [
        "a, b",
        "in a, b",
        "Key\\a, b",
        "%12%\\a.sys",
        "100%",
        "%Other%",
    ]
    assert inf.sections["a"].entries[0].fields[5].tokens == ("Other",)
    assert inf.sections["a"].entries[0].fields[3].tokens == ()


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("x = 1\n[A]\n", 1, "outside of any section"),
        ("[A\nx = 1\n", 1, "no section name"),
        ("[A] trailing\n", 1, "no section name"),
        ("[]\n", 1, "no section name"),
        ('[A]\nx = "open\n', 2, "quotation mark"),
        ("[A]\nx = 1, \\\n", 2, "continued"),
    ],
)
def test_what_is_no_inf_is_told_with_its_line(text: str, line: int, word: str) -> None:
    assert any(problem.line == line and word in problem.message for problem in parse(text).problems)


def test_utf_16_with_a_mark_is_read_in_both_orders() -> None:
    text = "[A]\nx = Größe\n"

    for encoding, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        assert decode(mark + text.encode(encoding)) == (text, [])


def test_eight_bit_characters_without_a_mark_are_told_with_their_line() -> None:
    _, [problem] = decode("[A]\nx = Größe\n".encode("cp1252"))

    assert problem.line == 2 and "0xF6" in problem.message


def test_half_a_utf_16_character_and_a_utf_8_mark_are_problems() -> None:
    assert "UTF-16-LE" in decode(b"\xff\xfe[\0A\0]")[1][0].message
    assert "UTF-8" in decode(b"\xef\xbb\xbf[A]\n")[1][0].message


def test_install_sections_are_told_apart_by_architecture_and_build() -> None:
    inf = parse(
        "[DefaultInstall.NTamd64]\n[DefaultInstall.NTamd64.Services]\n[DefaultInstall.NTamd64.10.0...25952]\n"
        "[DefaultInstall.NTamd64.10.0...22000]\n[DefaultInstall.NTarm64]\n[DefaultUninstall.NTamd64]\n[DefaultInstall]\n"
    )

    found = for_architecture(inf, "amd64")

    assert [(install.build, install.family) for install in found] == [
        (0, Family.DRIVERS),
        (25952, Family.STORE),
        (22000, Family.DRIVERS),
    ]


def test_an_install_section_is_followed_to_its_files_services_and_registry_values() -> None:
    inf = parse(
        "[DestinationDirs]\nDefaultDestDir = 12\nFiles = 13\n"
        "[DefaultInstall.NTamd64]\nCopyFiles = Files, @b.sys\n"
        "[Files]\nA.sys\nc.sys, original.sys\n"
        "[DefaultInstall.NTamd64.Services]\nAddService = S, 0, Service\n"
        '[Service]\nAddReg = Reg\n[Reg]\nHKR,"Instances\\X","Flags",0x00010001,0x3\n'
    )
    [install] = for_architecture(inf, "amd64")

    assert [(name, place) for name, place, _ in copied_files(inf, install)] == [
        ("a.sys", "13"),
        ("original.sys", "13"),
        ("b.sys", "12"),
    ]
    [service] = services(inf, install)
    [value] = registry(inf, service)
    assert (service.name, value.root, value.key, value.name) == ("S", "HKR", "Instances\\X", "Flags")
    assert (value.flags, value.number) == (0x00010001, 3)
