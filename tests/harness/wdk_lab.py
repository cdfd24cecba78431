"""A checkout and a made-up Windows whose tools write what the cross build and our own signing really made.

So image, catalog and manifest of a package are checked for real, while what the tools print is a transcript: written from
their documentation and public logs, not recorded on Windows.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import pkcs12

from harness import config, signing, toolchain
from harness.config import Configuration
from harness.signing import SigningIdentity
from harness.toolchain.source import BuildResult, DriverSource, read_version, stamp_inf
from harness.toolchain.wdk.build import build
from harness.toolchain.wdk.certificate import IMPORT
from tests.harness.wdk_transcripts import Row, TranscriptProvider
from tests.harness.wdk_trees import VS2026, Host
from vm.deadline import Deadline
from vm.powershell.script import ParameterValue, Script, ScriptError

CHECKOUT = Path(__file__).resolve().parents[2]

MSBUILD_SAYS = "  driver.c\n  port.c\n  downlink.vcxproj -> C:\\src\\downlink.sys\n"


class Store:
    """A `ScriptHost` that is this user's certificate store, as the script of the project answers for it."""

    def __init__(self, error: ScriptError | None = None) -> None:
        self.error = error
        self.secrets: list[Mapping[str, str]] = []
        self.imported: set[str] = set()

    def run(
        self,
        script: Script,
        parameters: Mapping[str, ParameterValue],
        deadline: Deadline,
        *,
        secret: Mapping[str, str] | None = None,
    ) -> Any:
        assert script == IMPORT and script.path.is_file()
        assert secret is not None and set(secret) == {"pfx", "password"}
        assert set(parameters) == {"Thumbprint"}
        self.secrets.append(secret)
        if self.error is not None:
            raise self.error
        key, certificate, _ = pkcs12.load_key_and_certificates(
            base64.b64decode(secret["pfx"]), secret["password"].encode()
        )
        assert key is not None and certificate is not None
        thumbprint = str(parameters["Thumbprint"])
        new = thumbprint not in self.imported
        self.imported.add(thumbprint)
        return {"thumbprint": thumbprint, "imported": new}


@dataclass
class Lab:
    """A checkout in `root` with the project's own driver, on a Windows with Visual Studio 2026 and its WDK."""

    root: Path
    host: Host = field(default_factory=lambda: Host().studio(VS2026).kit(28000))
    store: Store = field(default_factory=Store)
    rows: dict[str, Row] = field(default_factory=dict)
    """In place of what a step usually answers: "msbuild", "stampinf", "infverif", "sign image", "inf2cat", "sign catalog"."""
    provider: TranscriptProvider | None = None
    """Of the latest build."""

    def __post_init__(self) -> None:
        shutil.copytree(
            CHECKOUT / "driver", self.root / "driver", ignore=shutil.ignore_patterns("packages", ".vs")
        )
        shutil.copy(CHECKOUT / "harness.toml", self.root / "harness.toml")

    @property
    def settings(self) -> Configuration:
        return config.load(self.root)

    @property
    def source(self) -> DriverSource:
        return DriverSource.at(self.root / "driver")

    @property
    def identity(self) -> SigningIdentity:
        return signing.load_or_create_identity(self.root / ".cache" / "signing")

    @property
    def place(self) -> Path:
        """Where the toolchain keeps its builds."""
        return self.root / ".cache" / "build"

    def artefacts(self, configuration: Any, architecture: str) -> dict[str, bytes]:
        """What the tools write."""
        crossed = toolchain.build(
            DriverSource.at(CHECKOUT / "driver"),
            configuration,
            self.root / "crossed",
            architecture=architecture,
        )
        image = crossed.image.read_bytes()
        source = self.source
        assert source.inf is not None and source.version_header is not None
        text = stamp_inf(source.inf.read_text("utf-8"), read_version(source.version_header), architecture)
        inf = "\r\n".join(text.splitlines()).encode() + b"\r\n"
        signed = signing.sign_image(image, self.identity, hash_pages=True)
        catalog = signing.make_catalog(
            {"downlink.sys": signed, "downlink.inf": inf}, self.identity, architecture, hash_pages=True
        )
        return {
            "image": image,
            "symbols": crossed.symbols.read_bytes(),
            "inf": inf,
            "signed": signed,
            "catalog": catalog,
        }

    def usual(self) -> dict[str, Row]:
        """A row for each step, as it is when all is well."""
        return {
            "msbuild": Row(
                "msbuild",
                (r"-property:OutDir=(?P<out>.+)", r"-property:IntDir=(?P<obj>.+)"),
                0,
                MSBUILD_SAYS,
                files={
                    "{out}downlink.sys": {"artefact": "image"},
                    "{out}downlink.pdb": {"artefact": "symbols"},
                },
            ),
            "stampinf": Row(
                "stampinf",
                ("-f", r"(?P<inf>.+\.inf)"),
                0,
                "Stamping {inf} [Version] section with DriverVer\n",
                files={"{inf}": {"artefact": "inf"}},
            ),
            "infverif": Row(
                "infverif", ("/v", r".+\.inf"), 0, "Running in Verbose\n\nChecking 1 INF(s)\n\nINF is VALID\n"
            ),
            "sign image": Row(
                "signtool",
                ("sign", "/ph", "/sha1", r"(?P<file>.+\.sys)"),
                0,
                "Successfully signed: {file}\n",
                files={"{file}": {"artefact": "signed"}},
            ),
            "inf2cat": Row(
                "inf2cat",
                (r"/driver:(?P<directory>.+)", r"/os:.+", "/uselocaltime"),
                0,
                "Signability test complete.\n\nErrors:\nNone\n\nWarnings:\nNone\n\nCatalog generation complete.\n",
                files={"{directory}/downlink.cat": "unsigned"},
            ),
            "sign catalog": Row(
                "signtool",
                ("sign", "/sha1", r"(?P<file>.+\.cat)"),
                0,
                "Successfully signed: {file}\n",
                files={"{file}": {"artefact": "catalog"}},
            ),
        }

    def prepare(self, configuration: Any = "debug", architecture: str = "x64") -> TranscriptProvider:
        """A Windows whose tools answer once each."""
        found = self.host.provider()
        found.rows = [*(self.usual() | self.rows).values(), *found.rows]
        found._artefacts = self.artefacts(configuration, architecture)
        self.provider = found
        return found

    def build(self, configuration: Any = "debug", architecture: str = "x64", **options: Any) -> BuildResult:
        """One build with the WDK."""
        return build(
            self.source,
            configuration,
            self.place,
            self.identity,
            architecture=architecture,
            provider=self.prepare(configuration, architecture),
            scripts=self.store,
            **options,
        )

    def failing(self, step: str, *lines: str, exit_code: int = 1) -> Lab:
        """Have a step fail and print that."""
        usual = self.usual()[step]
        self.rows[step] = replace(usual, exit_code=exit_code, stdout="\n".join(lines) + "\n", files={})
        return self

    def arguments(self, tool: str, number: int = 0) -> tuple[str, ...]:
        """With which arguments a tool was called in the latest build; MSBuild's question for its version does not count."""
        assert self.provider is not None
        calls = [call for call in self.provider.called(tool) if call.arguments != ("-version", "-noLogo")]
        return calls[number].arguments

    def order(self) -> list[str]:
        """The steps of the latest build in their order."""
        assert self.provider is not None
        steps = ("msbuild", "stampinf", "infverif", "signtool", "inf2cat")
        return [
            call.tool
            for call in self.provider.calls
            if call.tool in steps and call.arguments != ("-version", "-noLogo")
        ]
