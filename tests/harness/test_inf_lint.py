"""The INF lint: a good INF passes, and each rule is broken by one change that is told by its name and its line."""

from __future__ import annotations

import itertools
import re
import shutil
from datetime import date
from pathlib import Path

import pytest

from harness import builds, config
from harness.inf import RULES, Finding, Severity, lint
from harness.inf.filters import GROUPS
from harness.toolchain.source import DriverVersion, stamp_inf
from vm.errors import BuildError

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 11, 21)

GOOD = r"""; A minifilter for two families of Windows.
[Version]
Signature   = "$Windows NT$"
Class       = "ActivityMonitor"
ClassGuid   = {b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}
Provider    = %Provider%
DriverVer   = 11/21/2026,1.2.3.4
CatalogFile = sample.cat
PnpLockdown = 1

[SourceDisksNames]
1 = %Disk%

[SourceDisksFiles]
sample.sys = 1

[DestinationDirs]
DefaultDestDir = 12
Store.Files    = 13

[DefaultInstall.NTamd64.10.0...25952]
CopyFiles = Store.Files

[DefaultInstall.NTamd64.10.0...25952.Services]
AddService = %Service%,,Store.Service

[DefaultInstall.NTamd64]
CopyFiles = Old.Files

[DefaultInstall.NTamd64.Services]
AddService = %Service%,,Old.Service

[DefaultUninstall.NTamd64]
LegacyUninstall = 1
DelFiles        = Old.Files

[DefaultUninstall.NTamd64.Services]
DelService = %Service%,0x200

[Store.Files]
sample.sys

[Old.Files]
sample.sys

[Store.Service]
ServiceBinary  = %13%\sample.sys
Dependencies   = "FltMgr"
ServiceType    = 2
StartType      = 3
ErrorControl   = 1
LoadOrderGroup = "FSFilter Activity Monitor"
AddReg         = Store.Registry

[Old.Service]
ServiceBinary  = %12%\sample.sys
Dependencies   = "FltMgr"
ServiceType    = 2
StartType      = 3
ErrorControl   = 1
LoadOrderGroup = "FSFilter Activity Monitor"
AddReg         = Old.Registry

[Store.Registry]
HKR,"Parameters","SupportedFeatures",0x00010001,0x3
HKR,"Parameters\Instances","DefaultInstance",0x00000000,%Instance%
HKR,"Parameters\Instances\"%Instance%,"Altitude",0x00000000,%Altitude%
HKR,"Parameters\Instances\"%Instance%,"Flags",0x00010001,0x0

[Old.Registry]
HKR,,"SupportedFeatures",0x00010001,0x3
HKR,"Instances","DefaultInstance",0x00000000,%Instance%
HKR,"Instances\"%Instance%,"Altitude",0x00000000,%Altitude%
HKR,"Instances\"%Instance%,"Flags",0x00010001,0x0

[Strings]
Provider = "Sample"
Service  = "Sample"
Disk     = "Sample disk"
Instance = "Sample Instance"
Altitude = "370000.5"
"""

SECOND = 'HKR,"Instances\\Second","Altitude",0x00000000,"370000.50"\nHKR,"Instances\\Second","Flags",0x00010001,0x0\n'

# Rule, what is there, what is put in its place (first occurrence), a word of the message.
MUTATIONS = [
    ("syntax", "[Old.Files]", "[Old.Files", "no section name"),
    ("syntax", '"Sample disk"', '"Sample disk', "quotation mark"),
    ("string-undefined", "%Provider%", "%Vendor%", "'%Vendor%'"),
    ("string-unused", "[Strings]\n", '[Strings]\nSpare = "x"\n', "'Spare'"),
    ("repeated", "PnpLockdown = 1", "PnpLockdown = 1\nPnpLockdown = 1", "second time"),
    ("repeated", "StartType      = 3", "StartType = 3\nStartType = 2", "second time"),
    ("section-missing", "AddReg         = Old.Registry", "AddReg = Older.Registry", "'Older.Registry'"),
    ("section-missing", ",,Old.Service", ",,Older.Service", "'Older.Service'"),
    ("section-unreferenced", "[Strings]", "[Spare]\na\n[Strings]", "'Spare'"),
    ("version-keys", 'Signature   = "$Windows NT$"\n', "", "'Signature'"),
    ("version-keys", 'Class       = "ActivityMonitor"\n', "", "'Class'"),
    ("version-keys", "ClassGuid   = {b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}\n", "", "'ClassGuid'"),
    ("version-keys", "Provider    = %Provider%\n", "", "'Provider'"),
    ("version-keys", "DriverVer   = 11/21/2026,1.2.3.4\n", "", "'DriverVer'"),
    ("version-keys", "CatalogFile = sample.cat", "CatalogFile =", "'CatalogFile'"),
    ("version-keys", "PnpLockdown = 1\n", "", "'PnpLockdown'"),
    ("version-keys", "[Version]", "[Versoin]", "no section [Version]"),
    ("version-signature", "$Windows NT$", "$Windows 95$", "$Windows 95$"),
    ("version-class", "b86dff51", "b86dff52", "does not have the GUID"),
    ("version-class", '"ActivityMonitor"', '"System"', "no class of file system filters"),
    ("version-lockdown", "PnpLockdown = 1", "PnpLockdown = 0", "PnpLockdown is '0'"),
    ("version-catalog", "sample.cat", "sample.sys", "no name of a catalog"),
    ("driverver", "11/21/2026", "11/22/2026", "22.9.7"),
    ("driverver", "11/21/2026", "21/11/2026", "no date"),
    ("driverver", "11/21/2026,1.2.3.4", "11/21/2026", "not four numbers"),
    ("driverver", "1.2.3.4", "1.2.3.65536", "not four numbers"),
    ("driverver", "11/21/2026,1.2.3.4", "$TIME$", "no date"),
    ("decorated", "[DefaultInstall.NTamd64]", "[DefaultInstall]", "names no architecture"),
    ("decorated", "[DefaultUninstall.NTamd64]", "[DefaultUninstall]", "names no architecture"),
    ("decorated", "[Strings]", "[Manufacturer]\n[Strings]", "[Manufacturer]"),
    (
        "families",
        "[DefaultInstall.NTamd64.10.0...25952]",
        "[DefaultInstall.NTamd64.10.0...22000]",
        "11 24H2 and later",
    ),
    ("families", "[DefaultInstall.NTamd64]", "[DefaultInstall.NTarm64]", "before 11 24H2"),
    (
        "install-services",
        "[DefaultInstall.NTamd64.Services]",
        "[DefaultInstall.NTarm64.Services]",
        "no '.Services'",
    ),
    ("legacy-uninstall", "LegacyUninstall = 1\n", "", "LegacyUninstall=1"),
    ("directories", "Store.Files    = 13", "Store.Files = 12", "must go to 13"),
    ("directories", "DefaultDestDir = 12", "DefaultDestDir = 13", "must go to 12"),
    ("directories", "CopyFiles = Old.Files", "", "copies no file"),
    ("source-files", "[SourceDisksFiles]\nsample.sys = 1", "[SourceDisksFiles]", "does not list it"),
    ("source-files", "sample.sys = 1", "sample.sys = 2", "does not know"),
    ("source-files", "sample.sys = 1", "sample.sys = 1\nother.dll = 1", "nothing copies"),
    ("service-binary", "%13%\\sample.sys", "%12%\\sample.sys", "must begin with '%13%\\'"),
    ("service-binary", "%12%\\sample.sys", "%12%\\simple.sys", "does not copy"),
    ("service-types", "ServiceType    = 2", "ServiceType = 1", "ServiceType is '1'"),
    ("service-types", "StartType      = 3", "StartType = 5", "StartType is '5'"),
    ("service-types", "ErrorControl   = 1", "ErrorControl = four", "ErrorControl is 'four'"),
    ("service-dependencies", 'Dependencies   = "FltMgr"\n', "", "'FltMgr'"),
    ("service-group", "FSFilter Activity Monitor", "FSFilter Activities", "no load order group"),
    ("service-group", "FSFilter Activity Monitor", "FSFilter Undelete", "belongs to the class 'Undelete'"),
    ("service-flags", ",,Old.Service", ",0x2,Old.Service", "function driver"),
    ("service-name", "%Service%,,Old.Service", "Other,,Old.Service", "different names"),
    ("registry-root", 'HKR,,"SupportedFeatures"', 'HKLM,,"SupportedFeatures"', "'HKLM'"),
    (
        "instance-key",
        '"Parameters\\Instances","DefaultInstance"',
        '"Instances","DefaultInstance"',
        "does not belong",
    ),
    ("instance-key", 'HKR,,"SupportedFeatures"', 'HKR,"Parameters","SupportedFeatures"', "does not belong"),
    ("instance-key", "AddReg         = Old.Registry\n", "", "will not load"),
    (
        "default-instance",
        '"DefaultInstance",0x00000000,%Instance%',
        '"DefaultInstance",0x00000000,"Else"',
        "'Else'",
    ),
    (
        "default-instance",
        'HKR,"Instances","DefaultInstance",0x00000000,%Instance%\n',
        "",
        "no DefaultInstance",
    ),
    ("altitude", "370000.5", "340000.5", "outside of the group"),
    ("altitude", "370000.5", "390000", "outside of the group"),
    ("altitude", "370000.5", "370000.5.1", "no decimal number"),
    ("altitude", "370000.5", "0x5A550", "no decimal number"),
    ("altitude", "[Strings]", "", "no decimal number"),
    ("altitude", "\n[Strings]", SECOND + "\n[Strings]", "the same altitude"),
    ("altitude", 'HKR,"Instances\\"%Instance%,"Altitude",0x00000000,%Altitude%\n', "", "no altitude"),
    ("altitude-assigned", "370000.5", "370000", "Microsoft assigns"),
    ("instance-types", '"Altitude",0x00000000', '"Altitude",0x00010001', "must be a string"),
    ("instance-flags", '"Flags",0x00010001,0x0', '"Flags",0x00010001,0x4', "no DWORD from 0 to 3"),
    ("instance-flags", '"Flags",0x00010001,0x0', '"Flags",0x00000000,0x0', "no DWORD from 0 to 3"),
    ("instance-flags", 'HKR,"Instances\\"%Instance%,"Flags",0x00010001,0x0\n', "", "has no Flags"),
    (
        "supported-features",
        '"SupportedFeatures",0x00010001,0x3',
        '"SupportedFeatures",0x00010001,0x30',
        "known bits",
    ),
    ("supported-features", 'HKR,,"SupportedFeatures",0x00010001,0x3\n', "", "not set"),
    ("families-agree", '"Flags",0x00010001,0x0', '"Flags",0x00010001,0x1', "are others"),
]


def check(text: str, architecture: str = "x64") -> list[Finding]:
    return lint(text, architecture, today=TODAY)


def test_a_good_inf_has_no_findings() -> None:
    assert check(GOOD) == []
    assert check(GOOD.replace("amd64", "arm64"), "arm64") == []


@pytest.mark.parametrize(("rule", "there", "instead", "word"), MUTATIONS)
def test_each_rule_is_broken_by_one_change(rule: str, there: str, instead: str, word: str) -> None:
    assert there in GOOD
    findings = [finding for finding in check(GOOD.replace(there, instead, 1)) if finding.rule == rule]

    assert any(word in finding.message for finding in findings), findings
    assert all(finding.hint and finding.source for finding in findings)


def test_every_rule_has_a_change_that_breaks_it() -> None:
    assert {rule.id for rule in RULES} == {rule for rule, *_ in MUTATIONS}
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_every_rule_says_what_it_demands_what_to_do_and_who_says_so() -> None:
    for rule in RULES:
        assert rule.sentence.endswith(".") and rule.hint and "documentation" in rule.source


def test_a_finding_names_the_line_where_the_mistake_is() -> None:
    text = GOOD.replace("PnpLockdown = 1", "PnpLockdown = 0")
    [finding] = check(text)

    assert text.splitlines()[finding.line - 1] == "PnpLockdown = 0"
    assert finding.render("a.inf").startswith("a.inf(9): error version-lockdown: PnpLockdown is '0'")


def test_errors_come_before_warnings() -> None:
    findings = check(GOOD.replace("370000.5", "370000").replace("PnpLockdown = 1", "PnpLockdown = 0"))

    assert [finding.severity for finding in findings] == [Severity.ERROR, Severity.WARNING, Severity.WARNING][
        : len(findings)
    ]
    assert len(findings) >= 2


def test_a_stamp_of_today_in_utc_passes_and_one_of_tomorrow_is_explained() -> None:
    assert lint(GOOD, "x64", today=date(2026, 11, 21)) == []
    [finding] = lint(GOOD, "x64", today=date(2026, 11, 20))
    assert "UTC" in finding.hint and "/uselocaltime" in finding.hint


def test_a_date_is_compared_with_the_clock_if_no_day_is_given() -> None:
    assert [finding.rule for finding in lint(GOOD.replace("11/21/2026", "01/01/2999"), "x64")] == [
        "driverver"
    ]


def test_a_file_may_be_utf_16_with_characters_of_any_language(tmp_path: Path) -> None:
    path = tmp_path / "sample.inf"
    path.write_bytes(b"\xff\xfe" + GOOD.replace('"Sample disk"', '"Größe"').encode("utf-16-le"))
    assert lint(path, "x64", today=TODAY) == []

    path.write_bytes(GOOD.replace('"Sample disk"', '"Größe"').encode("cp1252"))
    [finding] = lint(path, "x64", today=TODAY)
    assert finding.rule == "syntax" and "UTF-16" in finding.hint


def test_the_altitude_groups_do_not_overlap() -> None:
    ranges = sorted((group.lowest, group.highest) for group in GROUPS.values())
    assert all(low <= high for low, high in ranges)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
    assert len({group.class_guid for group in GROUPS.values()}) == len(GROUPS)


@pytest.mark.parametrize("architecture", ["x64", "arm64"])
def test_the_projects_own_inf_has_no_findings(architecture: str) -> None:
    path = ROOT / "driver" / "downlink.inf"

    assert lint(path, architecture) == []
    stamped = stamp_inf(
        path.read_text(encoding="utf-8"), DriverVersion("1.2.3.4", "01/31/2026"), architecture
    )
    assert lint(stamped, architecture) == []
    assert {finding.rule for finding in lint(stamped, "arm64" if architecture == "x64" else "x64")} >= {
        "decorated"
    }


def test_a_build_stops_at_an_inf_with_an_error_and_shows_every_finding(tmp_path: Path) -> None:
    path = tmp_path / "sample.inf"
    path.write_text(GOOD.replace("370000.5", "340000"), encoding="utf-8")

    with pytest.raises(BuildError) as caught:
        builds.check_inf(path, "x64")

    rendered = caught.value.render()
    assert "breaks 2 rules" in rendered and rendered.count("error altitude:") == 2
    assert re.search(r"^sample\.inf\(\d+\): warning altitude-assigned", rendered, re.MULTILINE)


def test_a_build_goes_on_with_warnings_and_tells_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sample.inf"
    path.write_text(GOOD.replace("370000.5", "370000"), encoding="utf-8")

    builds.check_inf(path, "x64")

    assert "warning altitude-assigned" in caplog.text


def test_a_broken_inf_is_told_before_anything_is_packed(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "driver", tmp_path / "driver")
    shutil.copy(ROOT / "harness.toml", tmp_path / "harness.toml")
    inf = tmp_path / "driver" / "downlink.inf"
    inf.write_text(inf.read_text(encoding="utf-8").replace('"FltMgr"', '"RpcSs"'), encoding="utf-8")

    with pytest.raises(BuildError, match=r"'downlink\.inf' breaks 2 rules"):
        builds.prepare(config.load(tmp_path), None, None, None)()

    assert not (tmp_path / "out").exists()
