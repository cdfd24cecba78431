"""`harness.toml`: what is accepted, and how each kind of mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import config
from vm.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
[defaults]
driver = "downlink"
machine = "emulated"
toolchain = "zig"
configuration = "debug"

[drivers.downlink]
service = "Downlink"
sources = "driver"
inf = "driver/downlink.inf"
port = '\\DownlinkPort'
instance = "Downlink Instance"
altitude = "385210.7"
suites = "tests/driver"

[drivers.downlink.rules]
io_path_waits = "forbid"

[machines.emulated]
kind = "emulated"

[runs]
keep = 3
"""


def load(tmp_path: Path, text: str = GOOD, local: str | None = None) -> config.Configuration:
    (tmp_path / "harness.toml").write_text(text, encoding="utf-8")
    if local is not None:
        (tmp_path / "harness.local.toml").write_text(local, encoding="utf-8")
    return config.load(tmp_path)


def refused(tmp_path: Path, text: str = GOOD, local: str | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, local)
    return caught.value


def test_the_projects_own_file_is_valid_and_its_default_machine_is_emulated() -> None:
    configuration = config.load(ROOT)

    assert configuration.default_machine == "emulated"
    assert configuration.machine().kind.name == "emulated"
    assert configuration.driver().rules["io_path_waits"] == "forbid"
    assert configuration.driver().port == "\\DownlinkPort"


def test_the_names_are_those_that_the_inf_installs_the_driver_under() -> None:
    driver = config.load(ROOT).driver()
    inf = driver.inf.read_text(encoding="ascii")
    strings = dict(re.findall(r'^(\w+)\s*=\s*"([^"]*)"', inf, re.MULTILINE))

    assert strings["Altitude"] == driver.altitude
    assert strings["Instance"] == driver.instance
    assert strings["Service"].casefold() == driver.service.casefold()
    assert f'LoadOrderGroup = "{driver.load_order_group}"' in inf


def test_values_come_typed_and_paths_are_absolute(tmp_path: Path) -> None:
    configuration = load(tmp_path)

    assert configuration.driver("downlink").sources == tmp_path / "driver"
    assert configuration.runs == config.RunsConfig(tmp_path / "runs", 900, 60, 3)


def test_the_local_file_overrides_single_keys_and_leaves_the_others(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        local='[drivers.downlink]\naltitude = "370001"\n[machines.second]\nkind = "emulated"\nseed = 7\n',
    )

    assert configuration.driver().altitude == "370001"
    assert configuration.driver().service == "Downlink"
    assert configuration.machine("second").settings == {"seed": 7}
    assert "emulated" in configuration.machines


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('service = "Downlink"', "service = 3", "'drivers.downlink.service' is 3 but must be a string", None),
        ("keep = 3", "keep = true", "'runs.keep' is true but must be a whole number", None),
        ("keep = 3", "keep = 0", "'runs.keep' is 0 but must be at least 1", None),
        ("keep = 3", "kep = 3", "the key 'runs.kep' is not known", "did you mean 'keep'?"),
        ("[runs]", "[rnus]", "the key 'rnus' is not known", "did you mean 'runs'?"),
        (
            'kind = "emulated"',
            'kind = "emulatd"',
            "'machines.emulated.kind' is 'emulatd'",
            "did you mean 'emulated'?",
        ),
        (
            'machine = "emulated"',
            'machine = "hyperv"',
            "'defaults.machine' is 'hyperv'",
            "known are 'emulated'",
        ),
        ('sources = "driver"', "", "'drivers.downlink.sources' is missing", "add it to harness.toml"),
        (
            'altitude = "385210.7"',
            'altitude = "high"',
            "'drivers.downlink.altitude' is 'high'",
            "write digits",
        ),
        ("port = '\\DownlinkPort'", 'port = "x"', "'drivers.downlink.port' is 'x'", None),
        ("[drivers.downlink.rules]", "[drivers.downlink.rulez]", "'drivers.downlink.rulez'", "'rules'"),
        (
            'io_path_waits = "forbid"',
            'io_path_waits = "no"',
            "'drivers.downlink.rules.io_path_waits'",
            "known are",
        ),
        ("[defaults]", "[defaults", "harness.toml is not valid TOML", "look at"),
    ],
)
def test_each_mistake_is_named_with_file_key_and_hint(
    tmp_path: Path, old: str, new: str, message: str, hint: str | None
) -> None:
    assert old in GOOD

    error = refused(tmp_path, GOOD.replace(old, new, 1))

    assert message in error.message
    assert "harness.toml" in error.message
    assert (hint or "") in (error.hint or "")


def test_a_mistake_in_the_local_file_is_blamed_on_the_local_file(tmp_path: Path) -> None:
    error = refused(tmp_path, local="[runs]\nkeep = 'many'\n")

    assert error.message.startswith("harness.local.toml: 'runs.keep'")


def test_an_unknown_setting_of_a_machine_is_refused_by_its_kind(tmp_path: Path) -> None:
    error = refused(tmp_path, local="[machines.emulated]\nsead = 4\n")

    assert error.message == "harness.local.toml: the key 'machines.emulated.sead' is not known"
    assert error.hint == "did you mean 'seed'?"


def test_an_unknown_machine_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path).machine("emulatet")

    assert caught.value.message == "there is no machine 'emulatet' in harness.toml"
    assert caught.value.hint == "did you mean 'emulated'?"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no harness\.toml"):
        config.load(tmp_path)


def test_a_table_where_a_value_belongs_and_the_reverse_are_refused(tmp_path: Path) -> None:
    assert (
        "must be a table"
        in refused(
            tmp_path, GOOD.replace("[runs]\nkeep = 3", "").replace("[defaults]", "runs = 1\n[defaults]")
        ).message
    )
    assert (
        "is a table but must be a string"
        in refused(tmp_path, GOOD.replace('machine = "emulated"', "machine = {}")).message
    )
