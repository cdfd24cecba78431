"""`pnputil`: what a package has to be, where it goes, what it installs, and the exit codes of each way that ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.signing import SigningIdentity, load_or_create_identity, make_catalog, sign_image
from tests.harness.test_signing import made_image
from tests.vm.guest.conftest import Prompt, Result
from vm.emulated.guest import boot, certificates
from vm.emulated.guest.commands.pending_files import finish_pending, restart_pending
from vm.emulated.guest.power import PowerAction
from vm.emulated.image_files import CATALOG_DIRECTORY, ImageFiles
from vm.emulated.kernel.objects import StatusError
from vm.emulated.registry import SERVICES

CURRENT_VERSION = "HKLM\\SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion"
FLT_DO_NOT_DETACH = 0xC01C0010
INF = (Path(__file__).resolve().parents[3] / "driver" / "downlink.inf").read_text(encoding="utf-8")


@dataclass
class Package:
    """A package in C:\\Work\\package of the guest, and its publisher."""

    prompt: Prompt
    identity: SigningIdentity

    @property
    def directory(self) -> Path:
        return self.prompt.path("package")

    def write(
        self, version: str = "11/21/2026,0.1.0.0", *, text: str | None = None, image: bytes = b""
    ) -> None:
        inf = (text or INF).replace("$ARCH$", "amd64").replace("11/21/2026,0.1.0.0", version).encode()
        signed = sign_image(image or made_image(), self.identity)
        self.directory.mkdir(exist_ok=True)
        (self.directory / "downlink.inf").write_bytes(inf)
        (self.directory / "downlink.sys").write_bytes(signed)
        files = {"downlink.inf": inf, "downlink.sys": signed}
        (self.directory / "downlink.cat").write_bytes(make_catalog(files, self.identity))

    def trust(self, *stores: str) -> None:
        certificate = certificates.parse(self.identity.certificate_der)
        for store in stores:
            certificates.add(self.prompt.guest.registry, store, certificate)

    def add(self, options: str = "/install") -> Result:
        return self.prompt(f"pnputil /add-driver C:\\Work\\package\\downlink.inf {options}")


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> SigningIdentity:
    return load_or_create_identity(tmp_path_factory.mktemp("signing"))


@pytest.fixture
def package(prompt: Prompt, identity: SigningIdentity) -> Package:
    """A good package of a publisher that the machine trusts."""
    made = Package(prompt, identity)
    made.write()
    made.trust("Root", "TrustedPublisher")
    return made


def repository(prompt: Prompt) -> list[Path]:
    root = prompt.guest.drive.root / "Windows/System32/DriverStore/FileRepository"
    return sorted(root.iterdir()) if root.exists() else []


def log(prompt: Prompt) -> str:
    return (prompt.guest.drive.root / "Windows/INF/setupapi.dev.log").read_text(encoding="utf-8")


def untouched(prompt: Prompt) -> bool:
    """Whether nothing was staged, published or installed."""
    inf = prompt.guest.drive.root / "Windows/INF"
    return (
        not repository(prompt)
        and not list(inf.glob("oem*"))
        and not prompt.guest.registry.exists(f"{SERVICES}\\Downlink")
        and prompt("pnputil /enum-drivers").out.count("oem") == 0
    )


def test_a_package_is_staged_published_and_installed_out_of_the_store(
    package: Package, prompt: Prompt
) -> None:
    result = package.add()

    assert result.code == 0 and "oem0.inf" in result.out
    (directory,) = repository(prompt)
    assert (
        directory.name.startswith("downlink.inf_amd64_")
        and len(directory.name) == len("downlink.inf_amd64_") + 16
    )
    assert {file.name for file in directory.iterdir()} == {"downlink.inf", "downlink.sys", "downlink.cat"}
    assert (prompt.guest.drive.root / "Windows/INF/oem0.inf").read_bytes() == (
        directory / "downlink.inf"
    ).read_bytes()
    registry, key = prompt.guest.registry, f"{SERVICES}\\Downlink"
    image = f"\\SystemRoot\\System32\\DriverStore\\FileRepository\\{directory.name}\\downlink.sys"
    assert registry.get_string(key, "ImagePath") == image
    assert [registry.get_dword(key, name) for name in ("Type", "Start", "ErrorControl")] == [2, 3, 1]
    assert registry.get_string(key, "Group") == "FSFilter Activity Monitor"
    assert registry.get_multi_string(key, "DependOnService") == ["FltMgr"]
    instances = f"{key}\\Parameters\\Instances"
    assert registry.get_string(instances, "DefaultInstance") == "Downlink Instance"
    assert registry.get_string(f"{instances}\\Downlink Instance", "Altitude") == "370777.7"
    assert registry.get_dword(f"{instances}\\Downlink Instance", "Flags") == 0
    assert not registry.exists(f"{key}\\Instances")
    assert prompt.computer.calls == []  # a primitive driver is installed, not started


def test_before_24h2_the_image_goes_to_the_drivers_directory_and_instances_below_the_service(
    package: Package, prompt: Prompt
) -> None:
    prompt.guest.registry.set_string(CURRENT_VERSION, "CurrentBuildNumber", "20348")

    assert package.add().code == 0

    registry, key = prompt.guest.registry, f"{SERVICES}\\Downlink"
    assert registry.get_string(key, "ImagePath") == "\\SystemRoot\\System32\\drivers\\downlink.sys"
    image = prompt.guest.drive.root / "Windows/System32/drivers/downlink.sys"
    assert image.read_bytes() == (package.directory / "downlink.sys").read_bytes()
    assert registry.get_string(f"{key}\\Instances\\Downlink Instance", "Altitude") == "370777.7"
    assert not registry.exists(f"{key}\\Parameters")

    assert prompt("pnputil /delete-driver oem0.inf /uninstall").code == 0
    assert not image.exists() and untouched(prompt)


def test_staging_alone_installs_nothing(package: Package, prompt: Prompt) -> None:
    assert package.add("").code == 0

    assert len(repository(prompt)) == 1
    assert not prompt.guest.registry.exists(f"{SERVICES}\\Downlink")


@pytest.mark.parametrize(("language", "label"), [("en", "Published Name:"), ("de", "Veröffentlichter Name:")])
def test_packages_are_listed_in_the_language_of_the_display(
    package: Package, prompt: Prompt, language: str, label: str
) -> None:
    guest = replace(prompt.guest, settings=replace(prompt.guest.settings, language=language))
    prompt.session.guest = guest
    package.add()

    listed = prompt("pnputil /enum-drivers")

    assert listed.code == 0 and label in listed.out
    values = [line.split(":", 1)[1].strip() for line in listed.lines if ":" in line]
    assert values == [
        "oem0.inf",
        "downlink.inf",
        "Downlink",
        "ActivityMonitor",
        "{b86dff51-a31e-4bac-b3cf-e8cfe75c9fc2}",
        "11/21/2026 0.1.0.0",
        package.identity.subject,
    ]


def test_published_names_are_numbered_and_the_lowest_free_one_is_taken(
    package: Package, prompt: Prompt
) -> None:
    for number in range(3):
        package.write(f"11/21/2026,0.1.0.{number}")
        assert f"oem{number}.inf" in package.add("").out
    assert prompt("pnputil /delete-driver oem1.inf").code == 0
    package.write("11/21/2026,0.1.0.9")

    assert "oem1.inf" in package.add("").out


def test_the_same_package_again_is_known_and_there_is_nothing_to_install(
    package: Package, prompt: Prompt
) -> None:
    package.add()

    again = package.add()

    assert again.code == 259 and "oem0.inf" in again.out and "oem1.inf" not in again.out
    assert len(repository(prompt)) == 1


def test_a_newer_package_takes_the_service_over_and_an_older_one_does_not(
    package: Package, prompt: Prompt
) -> None:
    package.add()
    registry, key = prompt.guest.registry, f"{SERVICES}\\Downlink"
    first = registry.get_string(key, "ImagePath")
    package.write("11/22/2026,0.1.0.0")

    assert package.add().code == 0
    second = registry.get_string(key, "ImagePath")
    assert second != first and registry.get_multi_string(key, "Owners") == ["oem1.inf"]

    package.write("11/20/2026,9.0.0.0")
    assert package.add().code == 259
    assert registry.get_string(key, "ImagePath") == second


def test_a_package_installed_over_a_running_driver_needs_a_restart(package: Package, prompt: Prompt) -> None:
    package.add()
    prompt("fltmc load Downlink")
    package.write("11/22/2026,0.1.0.0")

    assert package.add().code == 3010


def test_a_windows_that_no_section_is_for_has_nothing_to_install(package: Package, prompt: Prompt) -> None:
    package.write(text=INF.replace("DefaultInstall.NT$ARCH$", "DefaultInstall.NTarm64"))

    assert package.add().code == 259
    assert not prompt.guest.registry.exists(f"{SERVICES}\\Downlink")


@pytest.mark.parametrize(
    ("stores", "code", "text"),
    [
        ((), 0x800B0109, "root certificate which is not trusted"),
        (("TrustedPublisher",), 0x800B0109, "root certificate which is not trusted"),
        (("Root",), 0xE0000242, "publisher of an Authenticode(tm) signed catalog"),
    ],
)
def test_the_publisher_has_to_be_in_root_and_in_trusted_publisher(
    prompt: Prompt, identity: SigningIdentity, stores: tuple[str, ...], code: int, text: str
) -> None:
    package = Package(prompt, identity)
    package.write()
    package.trust(*stores)

    result = package.add()

    assert result.code == code and text in result.out
    assert untouched(prompt)
    assert f"<<<  [Exit status: FAILURE(0x{code:08x})]" in log(prompt)


def test_a_certificate_that_is_not_valid_at_the_guests_time_is_refused(
    package: Package, prompt: Prompt
) -> None:
    prompt.guest.clock.step(20 * 365 * 86400)
    assert package.add().code == 0x800B0101
    prompt.guest.clock.step(-30 * 365 * 86400)
    assert package.add().code == 0x800B0101
    assert untouched(prompt)


def break_inf(package: Package) -> None:
    (package.directory / "downlink.inf").write_bytes(
        (package.directory / "downlink.inf").read_bytes() + b"\r\n; changed\r\n"
    )


def break_image(package: Package) -> None:
    data = bytearray((package.directory / "downlink.sys").read_bytes())
    data[0x300] ^= 1
    (package.directory / "downlink.sys").write_bytes(bytes(data))


def make_image_no_image(package: Package) -> None:
    (package.directory / "downlink.sys").write_bytes(b"MZ and nothing else")


def tamper_with_catalog(package: Package) -> None:
    path = package.directory / "downlink.cat"
    path.write_bytes(path.read_bytes().replace("2:10.0".encode("utf-16-le"), "2:10.1".encode("utf-16-le")))


def cut_catalog(package: Package) -> None:
    path = package.directory / "downlink.cat"
    path.write_bytes(path.read_bytes()[:-20])


def name_no_catalog(package: Package) -> None:
    package.write(text=INF.replace("CatalogFile = downlink.cat", ""))


def make_no_inf(package: Package) -> None:
    package.write(text="[Nothing]\n")


def break_syntax(package: Package) -> None:
    package.write(text=INF.replace("[Strings]", "[Strings\n[Strings]"))


def forget(name: str) -> object:
    def remove(package: Package) -> None:
        (package.directory / name).unlink()

    return remove


@pytest.mark.parametrize(
    ("spoil", "code", "text"),
    [
        (break_inf, 0xE000024B, "not present in the specified catalog file"),
        (break_image, 0xE000024B, "not present in the specified catalog file"),
        (make_image_no_image, 0xE000024B, "not present in the specified catalog file"),
        (tamper_with_catalog, 0x80096010, "did not verify"),
        (cut_catalog, 0x800B0100, "No signature was present"),
        (name_no_catalog, 0xE000022F, "does not contain digital signature information"),
        (make_no_inf, 0xE0000100, "style of the INF"),
        (break_syntax, 0xE0000003, "syntax error"),
        (forget("downlink.cat"), 2, "cannot find the file"),
        (forget("downlink.sys"), 2, "cannot find the file"),
        (forget("downlink.inf"), 2, "cannot find the file"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_was_changed_is_missing_or_is_no_package_is_refused_and_nothing_stays(
    package: Package, prompt: Prompt, spoil: object, code: int, text: str
) -> None:
    spoil(package)  # type: ignore[operator]

    result = package.add()

    assert result.code == code and text in result.out
    assert untouched(prompt)


def test_an_image_without_its_signature_is_the_one_in_the_catalog_and_loads_by_it(
    package: Package, prompt: Prompt
) -> None:
    bare = made_image() + bytes(-len(made_image()) % 8)
    (package.directory / "downlink.sys").write_bytes(bare)
    registry = prompt.guest.registry
    boot.set_testsigning(registry, on=True)
    boot.begin(registry)
    images = ImageFiles(prompt.guest.drive, registry, {})
    stray = prompt.path("stray.sys")
    stray.write_bytes(bare)
    with pytest.raises(StatusError):
        images.open("C:\\Work\\stray.sys")  # no catalog vouches for it yet

    assert package.add().code == 0

    image = registry.get_string(f"{SERVICES}\\Downlink", "ImagePath")
    assert images.open(image).data == bare
    assert images.open("C:\\Work\\stray.sys").data == bare  # a catalog vouches for content, wherever it is
    stray.write_bytes(bare.replace(b"\x01\x02\x03", b"\x01\x02\x04", 1))
    with pytest.raises(StatusError):
        images.open("C:\\Work\\stray.sys")
    (prompt.guest.drive.root / CATALOG_DIRECTORY / "oem0.cat").write_bytes(b"damaged")
    with pytest.raises(StatusError):
        images.open(image)


def test_a_catalog_does_not_help_without_test_signing(package: Package, prompt: Prompt) -> None:
    (package.directory / "downlink.sys").write_bytes(made_image() + bytes(-len(made_image()) % 8))
    assert package.add().code == 0

    with pytest.raises(StatusError):
        ImageFiles(prompt.guest.drive, prompt.guest.registry, {}).open(
            prompt.guest.registry.get_string(f"{SERVICES}\\Downlink", "ImagePath")
        )


def test_uninstalling_removes_service_package_and_files(package: Package, prompt: Prompt) -> None:
    package.add()
    prompt("fltmc load Downlink")

    result = prompt("pnputil /delete-driver oem0.inf /uninstall")

    assert result.code == 0
    assert prompt.computer.loaded == {} and untouched(prompt)
    assert not list((prompt.guest.drive.root / "Windows/System32/CatRoot").rglob("*.cat"))


def test_an_installed_package_is_not_deleted_without_uninstall_or_force(
    package: Package, prompt: Prompt
) -> None:
    package.add()

    refused = prompt("pnputil /delete-driver oem0.inf")

    assert refused.code == 0xE000023D and len(repository(prompt)) == 1
    assert prompt("pnputil /delete-driver oem0.inf /force").code == 0
    assert prompt.guest.registry.exists(f"{SERVICES}\\Downlink") and not repository(prompt)


@pytest.mark.parametrize("options", ["", "/uninstall", "/force"])
def test_what_is_not_in_the_store_cannot_be_deleted(prompt: Prompt, options: str) -> None:
    result = prompt(f"pnputil /delete-driver oem7.inf {options}")

    assert result.code == 0xE000023C and "not an installed OEM INF" in result.out


@pytest.fixture
def stubborn(package: Package, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """A package whose driver runs and refuses to stop."""
    package.add()
    prompt("fltmc load Downlink")
    monkeypatch.setattr(type(prompt.computer), "stop_service", lambda self, name: FLT_DO_NOT_DETACH)
    yield package


def test_a_driver_that_refuses_to_stop_goes_with_the_next_boot(stubborn: Package, prompt: Prompt) -> None:
    registry = prompt.guest.registry

    result = prompt("pnputil /delete-driver oem0.inf /uninstall")

    assert result.code == 3010
    assert prompt.computer.loaded and registry.get_dword(f"{SERVICES}\\Downlink", "DeleteFlag") == 1
    assert len(repository(prompt)) == 1 and restart_pending(registry)
    assert prompt("pnputil /enum-drivers").out.count("oem") == 0

    finish_pending(registry, prompt.guest.drive)
    assert not repository(prompt) and not restart_pending(registry)


def test_a_service_that_is_being_deleted_is_not_made_anew_before_the_next_boot(
    stubborn: Package, prompt: Prompt
) -> None:
    prompt("pnputil /delete-driver oem0.inf /uninstall")

    assert stubborn.add().code == 1072
    finish_pending(prompt.guest.registry, prompt.guest.drive)
    assert len(repository(prompt)) == 1  # staged again: the boot must not take it away
    prompt.computer.loaded.clear()
    boot.begin(prompt.guest.registry)
    assert stubborn.add().code == 0


def test_a_restart_that_was_asked_for_is_begun(stubborn: Package, prompt: Prompt) -> None:
    assert prompt("pnputil /delete-driver oem0.inf /uninstall /reboot").code == 1641
    for delivered in prompt.delivered:
        delivered()
    from vm.deadline import Deadline
    from vm.waiting import wait_until

    wait_until(
        lambda: None if prompt.happened == [PowerAction.RESTART] else "no restart",
        "the restart",
        Deadline.after(seconds=5),
        machine="",
    )


def test_the_log_has_one_section_for_each_thing_that_was_tried(package: Package, prompt: Prompt) -> None:
    package.add()
    break_inf(package)
    package.add()

    text = log(prompt)

    assert text.count(">>>  [") == text.count("<<<  [Exit status: ") == 3
    last = text[text.rindex(">>>  [") :]
    assert "package\\downlink.inf" in last and "Error = 0xE000024B" in last
    assert (
        "<<<  [Exit status: FAILURE(0xe000024b)]" in last
        and "\r\n" in (prompt.guest.drive.root / "Windows/INF/setupapi.dev.log").read_bytes().decode()
    )


@pytest.mark.parametrize(
    "line",
    [
        "pnputil /frobnicate",
        "pnputil /add-driver",
        "pnputil /add-driver a.inf /what",
        "pnputil /delete-driver",
    ],
)
def test_what_is_not_understood_says_how_it_is_used(prompt: Prompt, line: str) -> None:
    result = prompt(line)

    assert result.code == 87 and "/add-driver" in result.out


def test_a_directory_of_the_package_can_be_removed_after_staging(package: Package, prompt: Prompt) -> None:
    package.add()
    shutil.rmtree(package.directory)

    assert prompt("fltmc load Downlink").code == 0
