"""How `powershell.exe -File` binds words to the parameters of a script, and what it says when it cannot.

With -File every argument is a string: an array parameter gets one element, a `[bool]` cannot be given at all, and a
switch is given by its name alone (Windows PowerShell 5.1, about_PowerShell_exe).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence

from vm.errors import DownlinkError
from vm.powershell.declaration import Declaration, Parameter

Bound = str | int | float | bool | tuple[str, ...] | tuple[int, ...]
_NAME = re.compile(r"-(?P<name>[A-Za-z_?]\w*)(?P<colon>:?)(?P<value>.*)", re.DOTALL)
_NET_NAMES = {
    "string": "System.String",
    "int": "System.Int32",
    "long": "System.Int64",
    "uint32": "System.UInt32",
    "uint64": "System.UInt64",
    "bool": "System.Boolean",
    "double": "System.Double",
    "float": "System.Single",
    "switch": "System.Management.Automation.SwitchParameter",
    "guid": "System.Guid",
}
_RANGES = {
    "int": (-(1 << 31), (1 << 31) - 1),
    "long": (-(1 << 63), (1 << 63) - 1),
    "uint32": (0, (1 << 32) - 1),
    "uint64": (0, (1 << 64) - 1),
}
_COMMON = ("verbose", "debug", "erroraction", "warningaction", "informationaction")
_COMMON_SWITCHES = ("verbose", "debug")


class BindingError(DownlinkError):
    """The words do not fit the parameters; the message is PowerShell's."""


def bind(declaration: Declaration, words: Sequence[str]) -> dict[str, Bound]:
    """Values of all parameters by their declared names; what was not given has its default.

    A parameter without a literal default that was not given has what PowerShell makes of nothing: "", 0, False or ().

    Raises:
        BindingError: an unknown, ambiguous, doubled, missing or ill-typed parameter.
    """
    given: dict[str, str | bool] = {}
    loose: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        found = _NAME.fullmatch(word)
        if found is None:
            loose.append(word)
            continue
        name = found["name"]
        parameter = _find(declaration, name)
        if parameter is None:
            if name.casefold() not in _COMMON_SWITCHES and rest and not found["colon"]:
                rest.pop(0)
            continue
        if parameter.name in given:
            raise BindingError(
                f"Cannot bind parameter because parameter '{parameter.name}' is specified more than once. To provide "
                "multiple values to parameters that can accept multiple values, use the array syntax."
            )
        if parameter.type == "switch":
            if found["colon"]:
                raise _cannot_convert(parameter, "System.String", "")
            given[parameter.name] = True
        elif found["colon"] and found["value"]:
            given[parameter.name] = found["value"]
        elif rest and _NAME.fullmatch(rest[0]) is None:
            given[parameter.name] = rest.pop(0)
        else:
            raise BindingError(
                f"Missing an argument for parameter '{parameter.name}'. Specify a parameter of type "
                f"'{_net_name(parameter)}' and try again."
            )
    _place(declaration, given, loose)
    missing = [p.name for p in declaration.parameters if p.mandatory and p.name not in given]
    if missing:
        raise BindingError(
            "Cannot process command because of one or more missing mandatory parameters: "
            f"{' '.join(missing)}."
        )
    return {
        p.name: _converted(p, given[p.name]) if p.name in given else _default(p)
        for p in declaration.parameters
    }


def _find(declaration: Declaration, name: str) -> Parameter | None:
    """The parameter of that name or unambiguous beginning; None for one that every advanced script takes."""
    folded = name.casefold()
    if folded in declaration.by_name:
        return declaration.by_name[folded]
    matches = [key for key in declaration.by_name if key.startswith(folded)]
    if declaration.cmdlet_binding and folded in _COMMON:
        return None
    if len({declaration.by_name[key].name for key in matches}) > 1:
        listed = " ".join(f"-{declaration.by_name[key].name}" for key in matches)
        raise BindingError(
            f"Parameter cannot be processed because the parameter name '{name}' is ambiguous. Possible matches "
            f"include: {listed}."
        )
    if not matches:
        raise BindingError(f"A parameter cannot be found that matches parameter name '{name}'.")
    return declaration.by_name[matches[0]]


def _place(declaration: Declaration, given: dict[str, str | bool], loose: Sequence[str]) -> None:
    """Words without a name go to the parameters by position."""
    takers = [p for p in declaration.parameters if p.position is not None]
    takers.sort(key=lambda p: p.position or 0)
    if not takers and declaration.positional_binding:
        takers = [p for p in declaration.parameters if p.type != "switch"]
    free = [p for p in takers if p.name not in given]
    for word in loose:
        if not free:
            raise BindingError(f"A positional parameter cannot be found that accepts argument '{word}'.")
        given[free.pop(0).name] = word


def _default(parameter: Parameter) -> Bound:
    if parameter.array:
        return () if parameter.default is None else _array(parameter, str(parameter.default))
    if parameter.default is not None:
        return parameter.default
    if parameter.type in ("switch", "bool"):
        return False
    if parameter.type in _RANGES:
        return 0
    return 0.0 if parameter.type in ("double", "float") else ""


def _converted(parameter: Parameter, given: str | bool) -> Bound:
    if isinstance(given, bool):
        return given
    value = _array(parameter, given) if parameter.array else _scalar(parameter, given)
    for element in value if isinstance(value, tuple) else (value,):
        _validate(parameter, element)
    return value


def _array(parameter: Parameter, text: str) -> tuple[str, ...] | tuple[int, ...]:
    element = _scalar(parameter, text)
    return (element,) if isinstance(element, int) else (str(element),)


def _scalar(parameter: Parameter, text: str) -> str | int | float:
    if parameter.type in _RANGES:
        low, high = _RANGES[parameter.type]
        stripped = text.strip()
        # PowerShell reads "" as 0, hexadecimal with 0x, and rounds fractions.
        if re.fullmatch(r"[+-]?(0[xX][0-9a-fA-F]+|\d+)", stripped):
            number = int(stripped, 16) if "x" in stripped.casefold() else int(stripped)
        elif not stripped:
            number = 0
        else:
            raise _cannot_convert(parameter, text, "Input string was not in a correct format.")
        if not low <= number <= high:
            raise _cannot_convert(
                parameter, text, f"Value was either too large or too small for an {_net_name(parameter)[7:]}."
            )
        return number
    match parameter.type:
        case "double" | "float":
            try:
                return float(text)
            except ValueError as error:
                raise _cannot_convert(parameter, text, "Input string was not in a correct format.") from error
        case "bool":
            raise _cannot_convert(parameter, "System.String", "")
        case "guid":
            try:
                return str(uuid.UUID(text))
            except ValueError as error:
                raise _cannot_convert(
                    parameter, text, "Guid should contain 32 digits with 4 dashes."
                ) from error
    return text


def _validate(parameter: Parameter, value: str | int | float) -> None:
    start = f"Cannot validate argument on parameter '{parameter.name}'."
    text = str(value)
    if parameter.choices and text.casefold() not in {choice.casefold() for choice in parameter.choices}:
        raise BindingError(
            f'{start} The argument "{text}" does not belong to the set "{",".join(parameter.choices)}" specified by '
            "the ValidateSet attribute. Supply an argument that is in the set and then try the command again."
        )
    if isinstance(value, int) and parameter.minimum is not None and parameter.maximum is not None:
        if value < parameter.minimum:
            raise BindingError(
                f"{start} The {value} argument is less than the minimum allowed range of {parameter.minimum}. Supply "
                f"an argument that is greater than or equal to {parameter.minimum} and then try the command again."
            )
        if value > parameter.maximum:
            raise BindingError(
                f"{start} The {value} argument is greater than the maximum allowed range of {parameter.maximum}. "
                f"Supply an argument that is less than or equal to {parameter.maximum} and then try the command again."
            )
    if parameter.pattern and re.search(parameter.pattern, text, re.IGNORECASE) is None:
        raise BindingError(
            f'{start} The argument "{text}" does not match the "{parameter.pattern}" pattern. Supply an argument that '
            f'matches "{parameter.pattern}" and try the command again.'
        )
    if text == "" and parameter.not_empty:
        raise BindingError(
            f"{start} The argument is null or empty. Provide an argument that is not null or empty, and then try the "
            "command again."
        )
    if text == "" and parameter.mandatory and parameter.type == "string":
        raise BindingError(
            f"Cannot bind argument to parameter '{parameter.name}' because it is an empty string."
        )


def _cannot_convert(parameter: Parameter, text: str, error: str) -> BindingError:
    name = _net_name(parameter)
    if parameter.type in ("bool", "switch"):
        reason = (
            f'Cannot convert value "{text}" to type "{name}". Boolean parameters accept only Boolean values and '
            "numbers, such as $True, $False, 1 or 0."
        )
    else:
        reason = f'Cannot convert value "{text}" to type "{name}". Error: "{error}"'
    return BindingError(f"Cannot process argument transformation on parameter '{parameter.name}'. {reason}")


def _net_name(parameter: Parameter) -> str:
    name = _NET_NAMES.get(parameter.type, parameter.type)
    return f"{name}[]" if parameter.array else name
