"""The `param` block of a script, read and bound without PowerShell."""

from __future__ import annotations

import pytest

from vm.powershell.binding import BindingError, bind
from vm.powershell.declaration import Declaration, DeclarationError, Parameter, parse_declaration

SCRIPT = r"""#Requires -Version 5.1
<#
.SYNOPSIS
    param( [string] $NotThis )
.EXAMPLE
    .\X.ps1 -Name 'a (b'
#>
[Diagnostics.CodeAnalysis.SuppressMessageAttribute('PSAvoid', '', Justification = 'it''s [fine] (really)')]
[CmdletBinding()]
param(
    # the name of it, with a bracket ]
    [Parameter(Mandatory = $true, HelpMessage = "which, please")]
    [ValidateNotNullOrEmpty()]
    [Alias('Machine', 'VM')]
    [string]
    $Name,

    [Parameter(Mandatory)] [ValidateSet('clean', 'verifier')] [string] $Checkpoint,
    [ValidateRange(1, 0xFFFF)] [System.Int32] $Port = 5986, # the usual one
    [ValidatePattern('^[A-Z]:\\')] [string] $Path = 'C:\It''s',
    [string[]] $Drivers = @(),
    [long] $Bytes = $(4GB),
    [switch] $Force,
    [bool] $Really = $true,
    [guid] $Id
)
Set-StrictMode -Version Latest
function Get-It { param([string] $Inner) }
"""


@pytest.fixture
def declaration() -> Declaration:
    return parse_declaration(SCRIPT, "X.ps1")


def test_every_part_of_a_parameter_is_read(declaration: Declaration) -> None:
    assert declaration.cmdlet_binding
    assert declaration.parameters == (
        Parameter("Name", "string", mandatory=True, aliases=("Machine", "VM"), not_empty=True),
        Parameter("Checkpoint", "string", mandatory=True, choices=("clean", "verifier")),
        Parameter("Port", "int", minimum=1, maximum=65535, default=5986, default_text="5986"),
        Parameter("Path", "string", pattern="^[A-Z]:\\\\", default="C:\\It's", default_text="'C:\\It''s'"),
        Parameter("Drivers", "string", array=True, default_text="@( )"),
        Parameter("Bytes", "long", default_text="$( 4 GB )"),
        Parameter("Force", "switch"),
        Parameter("Really", "bool", default=True, default_text="$true"),
        Parameter("Id", "guid"),
    )


def test_a_script_without_a_param_block_has_no_parameters() -> None:
    assert parse_declaration("# nothing\nWrite-Output 'param(' # [x]\n") == Declaration(
        (), cmdlet_binding=False
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[CmdletBinding()] param([string] $A", "does not close '('"),
        ("[CmdletBinding()] param([string) $A)", "')' in its head where nothing is open"),
        ("[CmdletBinding()]\n$x = 1", "no 'param' block"),
        ("param([string] A)", "'A' in its 'param' block where a parameter's name must be"),
        ("param([string] $A [int] $B)", "'[' after the parameter 'A'"),
        ("param([string] $A, [int] $a)", "declares a parameter twice"),
        ("param", "without a parenthesis"),
    ],
)
def test_a_head_of_another_form_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(DeclarationError) as error:
        parse_declaration(text, "X.ps1")
    assert said in error.value.message
    assert error.value.message.startswith("'X.ps1' ")


def test_words_become_typed_values_and_the_rest_has_its_defaults(declaration: Declaration) -> None:
    words = ["-name", "lab 1", "-CHECKPOINT", "Clean", "-Port:0x10", "-Force", "-Id", "{" + "AB" * 16 + "}"]
    assert bind(declaration, words) == {
        "Name": "lab 1",
        "Checkpoint": "Clean",
        "Port": 16,
        "Path": "C:\\It's",
        "Drivers": (),
        "Bytes": 0,
        "Force": True,
        "Really": True,
        "Id": "abababab-abab-abab-abab-abababababab",
    }


def test_names_may_be_shortened_aliased_or_left_out(declaration: Declaration) -> None:
    assert bind(declaration, ["-VM", "a", "-Check", "clean", "-Verbose"])["Name"] == "a"
    bound = bind(declaration, ["a", "verifier", "-Fo", "443"])
    assert (bound["Name"], bound["Checkpoint"], bound["Port"], bound["Force"]) == ("a", "verifier", 443, True)


def test_an_array_gets_one_element_through_file(declaration: Declaration) -> None:
    bound = bind(declaration, ["a", "clean", "-Drivers", "x.sys,y.sys"])
    assert bound["Drivers"] == ("x.sys,y.sys",)


def test_a_negative_number_is_a_value_and_no_name() -> None:
    assert bind(parse_declaration("param([int] $By)"), ["-By", "-5"]) == {"By": -5}


GOOD = ["-Name", "a", "-Checkpoint", "clean"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*GOOD, "-Nmae", "x"], "A parameter cannot be found that matches parameter name 'Nmae'."),
        ([*GOOD, "-P", "x"], "the parameter name 'P' is ambiguous. Possible matches include: -Port -Path."),
        ([*GOOD, "-Name", "b"], "parameter 'Name' is specified more than once"),
        (["-Name", "a"], "one or more missing mandatory parameters: Checkpoint."),
        ([], "one or more missing mandatory parameters: Name Checkpoint."),
        (
            [*GOOD, "-Port"],
            "Missing an argument for parameter 'Port'. Specify a parameter of type 'System.Int32'",
        ),
        ([*GOOD, "-Path", "-Force"], "Missing an argument for parameter 'Path'"),
        (
            [*GOOD, "-Port", "many"],
            'argument transformation on parameter \'Port\'. Cannot convert value "many" to type "System.Int32"',
        ),
        ([*GOOD, "-Port", "99999999999"], "too large or too small for an Int32"),
        ([*GOOD, "-Port", "0"], "less than the minimum allowed range of 1"),
        ([*GOOD, "-Port", "65536"], "greater than the maximum allowed range of 65535"),
        (["a", "dirty"], 'The argument "dirty" does not belong to the set "clean,verifier"'),
        ([*GOOD, "-Path", "D"], 'does not match the "^[A-Z]:\\\\" pattern'),
        (["-Name", "", "-Checkpoint", "clean"], "The argument is null or empty"),
        ([*GOOD, "-Really", "True"], 'to type "System.Boolean". Boolean parameters accept only'),
        ([*GOOD, "-Force:$true"], 'to type "System.Management.Automation.SwitchParameter"'),
        ([*GOOD, "-Id", "x"], "Guid should contain 32 digits"),
        ([*GOOD, "1", "C:\\", "x", "1", "x", "too much"], "System.Boolean"),
    ],
)
def test_words_that_do_not_fit_are_refused_as_powershell_does(
    declaration: Declaration, words: list[str], said: str
) -> None:
    with pytest.raises(BindingError) as error:
        bind(declaration, words)
    assert said in error.value.message


def test_more_words_than_positions_are_refused() -> None:
    with pytest.raises(BindingError, match="positional parameter cannot be found that accepts argument 'b'"):
        bind(parse_declaration("param([string] $A, [switch] $S)"), ["a", "b"])
    alone = "[CmdletBinding(PositionalBinding = $false)] param([string] $A)"
    with pytest.raises(BindingError, match="accepts argument 'a'"):
        bind(parse_declaration(alone), ["a"])
