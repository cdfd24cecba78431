"""What cmd.exe makes of a line."""

from __future__ import annotations

import pytest

from vm.emulated.guest.commands.parsing import (
    Chain,
    CommandSyntaxError,
    Group,
    If,
    Operator,
    Pipeline,
    Redirection,
    Simple,
    expand,
    parse,
    split_arguments,
)


def test_operators_bind_as_in_cmd() -> None:
    assert parse("a& b&& c|| d") == Chain(
        Simple("a"),
        Operator.ALWAYS,
        Chain(Chain(Simple("b"), Operator.ON_SUCCESS, Simple("c")), Operator.ON_FAILURE, Simple("d")),
    )
    assert parse("a| b| c") == Pipeline((Simple("a"), Simple("b"), Simple("c")))


def test_quotes_and_carets_protect_operators() -> None:
    assert parse('echo "a & b > c"') == Simple('echo "a & b > c"')
    assert parse("echo a ^& b ^> c ^^") == Simple("echo a & b > c ^")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x > f", Redirection(1, "f")),
        ("x >> f", Redirection(1, "f", append=True)),
        ("x 2> f", Redirection(2, "f")),
        ("x 2>&1", Redirection(2, None, duplicate=1)),
        ("x < f", Redirection(0, "f")),
        ('x > "a b"', Redirection(1, "a b")),
        ("x >nul", Redirection(1, "nul")),
    ],
)
def test_redirections_are_taken_out_of_the_command(line: str, expected: Redirection) -> None:
    assert parse(line) == Simple("x ", (expected,))


def test_a_digit_is_a_handle_only_when_it_stands_alone() -> None:
    assert parse("echo 12> f") == Simple("echo 12", (Redirection(1, "f"),))
    assert parse("echo 1 2> f") == Simple("echo 1 ", (Redirection(2, "f"),))


def test_groups_and_if_nest() -> None:
    assert parse("(a& b) > f") == Group(
        Chain(Simple("a"), Operator.ALWAYS, Simple("b")), (Redirection(1, "f"),)
    )
    tree = parse('if not exist "C:\\a b" (mkdir x) else (echo y)')
    assert tree == If("exist", "C:\\a b", "", True, False, Group(Simple("mkdir x")), Group(Simple("echo y")))
    assert parse("if /i %a%==B echo c") == If("==", "%a%", "B", False, True, Simple("echo c"), None)


@pytest.mark.parametrize("line", ["a &&", "| a", "(a", "a >", "a & & b", "if exist", "a )b( |", "& a"])
def test_an_incomplete_line_is_refused(line: str) -> None:
    with pytest.raises(CommandSyntaxError):
        parse(line)


@pytest.mark.parametrize("line", ["", "   "])
def test_nothing_is_nothing(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%A%", "value"),
        ("%a%x", "valuex"),
        ("%nothing%", "%nothing%"),
        ("100%", "100%"),
        ("%nothing%A%", "%nothingvalue"),
        ("'%d' % 3 %A%", "'%d' % 3 value"),
        ("%A:*L=_%", "_ue"),
        ("%A:~1,3%", "alu"),
        ("%A:~-2%", "ue"),
        ("%A:~0,-2%", "val"),
        ("%A:AL=--%", "v--ue"),
    ],
)
def test_variables_are_expanded_as_on_the_command_line(line: str, expected: str) -> None:
    assert expand(line, {"A": "value", "a": "value"}.get) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b", ["a", "b"]),
        ('"a b" c', ["a b", "c"]),
        ('a\\\\b "c\\\\"', ["a\\\\b", "c\\"]),
        ('\\"a\\" b', ['"a"', "b"]),
        ('"a""b"', ['a"b']),
        ('--x="C:\\a b\\c"', ["--x=C:\\a b\\c"]),
        ('"" x', ["", "x"]),
        ("", []),
    ],
)
def test_programs_get_their_arguments_by_the_rules_of_windows(text: str, expected: list[str]) -> None:
    assert split_arguments(text) == expected
