"""What a `.ps1` file says about itself: the `param` block, read without PowerShell.

Reads the names, types, Mandatory, positions, validations and literal defaults of the one `param(...)` at the top of a
script; comments, help and `#Requires` in any place are skipped. It is no parser of PowerShell: what follows the block is
not looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from vm.errors import DownlinkError

Literal = str | int | bool | None


class DeclarationError(DownlinkError):
    """The head of a script is not of the form that this project writes (or not PowerShell at all)."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; `type` is the short .NET name in lower case without brackets ("string", "int", "switch")."""

    name: str
    type: str = "object"
    array: bool = False
    mandatory: bool = False
    position: int | None = None
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    """Of ValidateSet; compared without case."""
    minimum: int | None = None
    """Of ValidateRange."""
    maximum: int | None = None
    pattern: str = ""
    """Of ValidatePattern: a .NET regular expression, searched for without case."""
    not_empty: bool = False
    """ValidateNotNullOrEmpty."""
    default: Literal = None
    """The default if it is a literal; None if there is none, or if it is an expression."""
    default_text: str = ""
    """The default as it is written."""


@dataclass(frozen=True)
class Declaration:
    """The head of a script."""

    parameters: tuple[Parameter, ...]
    cmdlet_binding: bool
    """Whether `[CmdletBinding()]` is there: only then an unknown parameter is an error to PowerShell."""
    positional_binding: bool = True
    """False with `[CmdletBinding(PositionalBinding = $false)]`."""

    @cached_property
    def by_name(self) -> dict[str, Parameter]:
        """Parameters by their names and aliases in lower case."""
        return {
            name.casefold(): parameter
            for parameter in self.parameters
            for name in (parameter.name, *parameter.aliases)
        }


_TYPE_NAMES = {
    "int32": "int",
    "int64": "long",
    "boolean": "bool",
    "switchparameter": "switch",
    "management.automation.switchparameter": "switch",
    "single": "float",
}
_TOKEN = re.compile(
    r"""
      (?P<space>\s+|`\r?\n)
    | (?P<help><\#.*?\#>)
    | (?P<comment>\#[^\r\n]*)
    | (?P<here>@'\r?\n.*?\r?\n'@|@"\r?\n.*?\r?\n"@)
    | (?P<quoted>'(?:[^']|'')*')
    | (?P<expanding>"(?:[^"`]|`.|"")*")
    | (?P<variable>\$(?:\w+:)?\w+|\$\{[^}]*\})
    | (?P<number>-?(?:0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?))
    | (?P<word>[A-Za-z_][\w.\-]*)
    | (?P<mark>\$\(|@\(|@\{|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_OPENING = {"(": ")", "[": "]", "{": "}", "$(": ")", "@(": ")", "@{": "}"}
_CLOSING = frozenset(")]}")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str

    @property
    def value(self) -> str:
        """A string without its quotes."""
        if self.kind == "quoted":
            return self.text[1:-1].replace("''", "'")
        if self.kind == "expanding":
            return re.sub(r"`(.)", r"\1", self.text[1:-1].replace('""', '"'))
        return self.text


def parse_declaration(text: str, name: str = "the script") -> Declaration:
    """Read the head of a script.

    Args:
        text: the whole file, decoded.
        name: as messages call it.

    Raises:
        DeclarationError: a bracket or string is not closed, something stands before `param`, or a parameter is not of
            the form `[attributes][type]$Name = default`.
    """
    tokens = _tokens(text)
    position = 0
    attributes: list[list[_Token]] = []
    while position < len(tokens) and tokens[position].text == "[":
        end = _matching(tokens, position, name)
        attributes.append(tokens[position + 1 : end])
        position = end + 1
    binding = next((a for a in attributes if a and a[0].text.casefold() == "cmdletbinding"), None)
    if position >= len(tokens) or tokens[position].text.casefold() != "param":
        if binding is not None:
            raise DeclarationError(f"'{name}' has no 'param' block after [CmdletBinding()]")
        return Declaration((), cmdlet_binding=False)
    if position + 1 >= len(tokens) or tokens[position + 1].text != "(":
        raise DeclarationError(f"'{name}' has 'param' without a parenthesis after it")
    end = _matching(tokens, position + 1, name)
    parameters = [_parameter(part, name) for part in _split(tokens[position + 2 : end]) if part]
    named = dict(_arguments(binding)[0]) if binding is not None else {}
    declaration = Declaration(
        tuple(parameters),
        cmdlet_binding=binding is not None or any(p.mandatory for p in parameters),
        positional_binding=named.get("positionalbinding") is not False,
    )
    if len(declaration.by_name) != sum(1 + len(p.aliases) for p in parameters):
        raise DeclarationError(f"'{name}' declares a parameter twice")
    return declaration


def _tokens(text: str) -> list[_Token]:
    """All tokens that are neither space nor comment; a character that begins none is a token of its own."""
    found = []
    for match in _TOKEN.finditer(text.removeprefix("\ufeff")):
        kind = str(match.lastgroup)
        if kind not in ("space", "help", "comment"):
            found.append(_Token(kind, match[0]))
    return found


def _matching(tokens: list[_Token], start: int, name: str) -> int:
    """Index of what closes the bracket at `start`."""
    expected: list[str] = []
    for index in range(start, len(tokens)):
        token = tokens[index]
        if token.kind != "mark":
            continue
        if token.text in _OPENING:
            expected.append(_OPENING[token.text])
        elif token.text in _CLOSING:
            if not expected or expected.pop() != token.text:
                raise DeclarationError(f"'{name}' has '{token.text}' in its head where nothing is open")
            if not expected:
                return index
    raise DeclarationError(f"'{name}' does not close '{tokens[start].text}' in its head")


def _split(tokens: list[_Token]) -> list[list[_Token]]:
    """Parts between the commas of the outermost level."""
    parts: list[list[_Token]] = [[]]
    depth = 0
    for token in tokens:
        if token.kind == "mark":
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0 and token.kind == "mark" and token.text == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _parameter(tokens: list[_Token], script: str) -> Parameter:
    fields: dict[str, object] = {}
    position = 0
    while position < len(tokens) and tokens[position].text == "[":
        end = _matching(tokens, position, script)
        inner = tokens[position + 1 : end]
        if len(inner) > 1 and inner[1].text == "(":
            _attribute(inner, fields)
        elif inner:
            written = "".join(token.text for token in inner)
            kind = written.removesuffix("[]").casefold().removeprefix("system.")
            fields |= {"type": _TYPE_NAMES.get(kind, kind), "array": written.endswith("[]")}
        position = end + 1
    if position >= len(tokens) or tokens[position].kind != "variable":
        shown = tokens[position].text if position < len(tokens) else "nothing"
        raise DeclarationError(
            f"'{script}' has '{shown}' in its 'param' block where a parameter's name must be"
        )
    name = tokens[position].text.removeprefix("$")
    rest = tokens[position + 1 :]
    if rest:
        if rest[0].text != "=" or len(rest) == 1:
            raise DeclarationError(
                f"'{script}' has '{rest[0].text}' after the parameter '{name}' where a comma or a default must be"
            )
        fields |= {
            "default": _literal(rest[1:]),
            "default_text": " ".join(token.text for token in rest[1:]),
        }
    return Parameter(name=name, **fields)  # type: ignore[arg-type]  # names and types are those of the class


def _attribute(tokens: list[_Token], fields: dict[str, object]) -> None:
    """What one attribute says, as fields of `Parameter`; one that says nothing for binding is passed over."""
    named, plain = _arguments(tokens)
    numbers = [value for value in plain if isinstance(value, int) and not isinstance(value, bool)]
    match tokens[0].text.casefold().removeprefix("system.management.automation."):
        case "parameter":
            given = dict(named)
            if "mandatory" in given:
                fields["mandatory"] = given["mandatory"] is not False
            if isinstance(given.get("position"), int):
                fields["position"] = given["position"]
        case "validateset":
            fields["choices"] = tuple(str(value) for value in plain)
        case "validaterange" if len(numbers) == 2:
            fields |= {"minimum": numbers[0], "maximum": numbers[1]}
        case "validatepattern" if plain:
            fields["pattern"] = str(plain[0])
        case "validatenotnullorempty" | "validatenotnull":
            fields["not_empty"] = True
        case "alias":
            fields["aliases"] = tuple(str(value) for value in plain)


def _arguments(tokens: list[_Token]) -> tuple[list[tuple[str, Literal]], list[Literal]]:
    """`Name(a, b, Key = value, Flag)`: the named arguments in lower case, and the plain ones."""
    named: list[tuple[str, Literal]] = []
    plain: list[Literal] = []
    for part in _split(tokens[2:-1]):
        if not part:
            continue
        if part[0].kind == "word" and len(part) == 1:
            named.append((part[0].text.casefold(), True))
        elif part[0].kind == "word" and part[1].text == "=":
            named.append((part[0].text.casefold(), _literal(part[2:])))
        else:
            plain.append(_literal(part))
    return named, plain


def _literal(tokens: list[_Token]) -> Literal:
    """The value of a literal; None for `$null` and for every expression."""
    if len(tokens) != 1:
        return None
    token = tokens[0]
    if token.kind == "quoted" or (token.kind == "expanding" and "$" not in token.text):
        return token.value
    if token.kind == "number" and "." not in token.text:
        return int(token.text, 0)
    return {"$true": True, "$false": False}.get(token.text.casefold())
